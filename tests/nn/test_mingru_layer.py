"""`tidegate.MinGRU`: the layer and its layouts."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import tidegate
from tidegate.errors import SettingsError, ShapeError

DTYPES = [torch.float32, torch.float64]


def by_the_paper(layer, x, h_0):
    """The stack in float64, forwards, x [T, B, I]: the paper's equations with the paper's z, 1 minus ours."""
    last = []
    for k, (w, b) in enumerate(layer.all_weights):
        (w_z, w_h), (b_z, b_h) = w.double().chunk(2), b.double().chunk(2)
        h, outputs = h_0[k].double(), []
        for x_t in x.double():
            z, v = torch.sigmoid(-(x_t @ w_z.T + b_z)), x_t @ w_h.T + b_h
            h = (1 - z) * h + z * torch.where(v >= 0, v + 0.5, torch.sigmoid(v))
            outputs.append(h)
        x = torch.stack(outputs)
        last.append(h)
    return x, torch.stack(last)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 7, 33])
@pytest.mark.parametrize("h_0", [0.0, -3.0, 1e4])
def test_outputs_and_gradients_are_those_of_the_papers_equations(dtype, hidden, h_0):
    layer = tidegate.MinGRU(3, hidden, num_layers=2, dtype=dtype)
    x = torch.randn(19, 4, 3, dtype=dtype, requires_grad=True)
    state = torch.full((2, 4, hidden), h_0, dtype=dtype, requires_grad=True)
    ours, theirs = layer(x, state), by_the_paper(layer, x, state)
    near = {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(ours, theirs, check_dtype=False, **near)
    inputs = [x, state, *layer.parameters()]
    d_y = torch.randn_like(theirs[0])
    d_ours = torch.autograd.grad(ours[0], inputs, d_y.to(dtype))
    d_theirs = torch.autograd.grad(theirs[0], inputs, d_y)
    for a, b in zip(d_ours, d_theirs, strict=True):
        torch.testing.assert_close(a, b, check_dtype=False, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_one_as_update_gate_keeps_the_state_and_zero_replaces_it():
    layer = tidegate.MinGRU(2, 3)
    x, h_0 = torch.zeros(4, 1, 2), torch.rand(1, 1, 3) + 7
    with torch.no_grad():
        layer.bias_ih_l0[:3] = 200.0
        assert torch.equal(layer(x, h_0)[1], h_0)
        layer.bias_ih_l0[:3] = -200.0
        layer.bias_ih_l0[3:] = torch.tensor([-1.0, 0.0, 2.0])
        torch.testing.assert_close(
            layer(x, h_0)[1].flatten(), torch.tensor([torch.sigmoid(torch.tensor(-1.0)), 0.5, 2.5])
        )


def test_states_lie_between_zero_and_the_largest_candidate_or_first_state():
    layer = tidegate.MinGRU(3, 9)
    x, h_0 = 4 * torch.randn(40, 5, 3), 3 * torch.rand(1, 5, 9)
    trace = layer.trace(x, h_0)
    top = torch.cat([h_0, trace["l0"].candidate]).cummax(0).values[1:]
    assert (trace.output >= 0).all()
    assert (trace.output <= top * (1 + 1e-5)).all()


# ------------------------------------------------------------------------------------------ bits without gradients


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 40),
    B=st.integers(1, 6),
    H=st.sampled_from([1, 7, 9, 33]),
    cut=st.integers(0, 40),
    wide=st.booleans(),
)
@torch.no_grad()
def test_pieces_steps_and_rows_alone_give_the_bits_of_the_whole(T, B, H, cut, wide):
    dtype = torch.float64 if wide else torch.float32
    layer = tidegate.MinGRU(5, H, num_layers=2, dtype=dtype)
    x, h_0 = 3 * torch.randn(T, B, 5, dtype=dtype), torch.randn(2, B, H, dtype=dtype)
    output, h_n = layer(x, h_0)

    first, h = layer(x[:cut], h_0)
    second, h = layer(x[cut:], h)
    assert torch.equal(torch.cat([first, second]), output)
    assert torch.equal(h, h_n)

    state = h_0
    for t in range(T):
        y, state = layer.step(x[t], state)
        assert torch.equal(y, output[t])
    assert torch.equal(state, h_n)

    b = cut % B
    alone, h = layer(x[:, b], h_0[:, b])
    assert torch.equal(alone, output[:, b])
    assert torch.equal(h, h_n[:, b])


@torch.no_grad()
def test_the_order_of_axes_changes_no_bit():
    layer = tidegate.MinGRU(5, 33)
    other = tidegate.MinGRU(5, 33, batch_first=True)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(17, 3, 5)
    assert torch.equal(other(x.transpose(0, 1).contiguous())[0].transpose(0, 1), layer(x)[0])


def test_training_and_evaluation_agree_to_rounding():
    layer = tidegate.MinGRU(5, 33, num_layers=3)
    x = torch.randn(300, 3, 5)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- two directions


def test_a_bidirectional_layer_is_two_runs():
    both = tidegate.MinGRU(3, 5, bidirectional=True)
    forwards, backwards = tidegate.MinGRU(3, 5), tidegate.MinGRU(3, 5)
    forwards.load_state_dict({n: v for n, v in both.state_dict().items() if "reverse" not in n})
    backwards.load_state_dict({n.removesuffix("_reverse"): v for n, v in both.state_dict().items() if "reverse" in n})
    x, h_0 = torch.randn(9, 2, 3), torch.randn(2, 2, 5)
    output, h_n = both(x, h_0)
    there, h_there = forwards(x, h_0[:1])
    back, h_back = backwards(x.flip(0), h_0[1:])
    torch.testing.assert_close(output, torch.cat([there, back.flip(0)], dim=-1))
    torch.testing.assert_close(h_n, torch.cat([h_there, h_back]))


# ------------------------------------------------------------------------------------------------ lengths and resets

LENGTHS = [4, 0, 9, 1]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_is_not_looked_at_and_each_sequence_gives_what_it_gives_alone(bidirectional, gradients):
    layer = tidegate.MinGRU(3, 5, num_layers=2, bidirectional=bidirectional)
    x, h_0 = torch.randn(9, 4, 3), torch.randn(4 if bidirectional else 2, 4, 5)
    for b, length in enumerate(LENGTHS):
        x[length:, b] = float("nan")
    x.requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        output, h_n = layer(x, h_0, lengths=LENGTHS)
        for b, length in enumerate(LENGTHS):
            alone, h = layer(x[:length, b], h_0[:, b])
            torch.testing.assert_close(output[:length, b], alone)
            torch.testing.assert_close(h_n[:, b], h)
            assert (output[length:, b] == 0).all()
    if gradients:
        output.sum().backward()
        assert all(v.grad.isfinite().all() for v in (x, *layer.parameters()))


@torch.no_grad()
def test_packed_and_nested_sequences_give_the_bits_of_padded_ones():
    layer = tidegate.MinGRU(3, 5, num_layers=2, bidirectional=True, batch_first=True)
    pieces = [torch.randn(n, 3) for n in (4, 1, 9)]
    h_0 = torch.randn(4, 3, 5)
    packed, h_packed = layer(pack_sequence(pieces, enforce_sorted=False), h_0)
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    x, _ = pad_packed_sequence(pack_sequence(pieces, enforce_sorted=False), batch_first=True)
    expected, h_n = layer(x, h_0, lengths=lengths)
    assert torch.equal(padded, expected)
    assert torch.equal(h_packed, h_n)
    nested, h_nested = layer(torch.nested.nested_tensor(pieces, layout=torch.jagged), h_0)
    for b, piece in enumerate(nested.unbind()):
        assert torch.equal(piece, expected[b, : len(piece)])
    assert torch.equal(h_nested, h_n)


def test_gradients_pass_through_packed_sequences():
    layer = tidegate.MinGRU(3, 5)
    x = torch.randn(6, 3, 3, requires_grad=True)
    packed, _ = layer(pack_padded_sequence(x, [6, 4, 1]))
    expected, _ = layer(x, lengths=[6, 4, 1])
    d_packed = torch.autograd.grad(packed.data.square().sum(), x)[0]
    torch.testing.assert_close(d_packed, torch.autograd.grad(expected.square().sum(), x)[0])


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_after_a_reset_a_piece_gives_the_bits_it_gives_alone(learned, bidirectional):
    layer = tidegate.MinGRU(3, 5, num_layers=2, bidirectional=bidirectional, learn_initial_state=learned)
    if learned:
        layer.initial_h.normal_()
    x = torch.randn(10, 2, 3)
    resets = torch.zeros(2, 10, dtype=torch.bool)
    resets[0, [3, 7]] = True
    output, _ = layer(x, resets=resets)
    alone = [layer(x[first:last, :1])[0] for first, last in ((0, 3), (3, 7), (7, 10))]
    assert torch.equal(output[:, :1], torch.cat(alone))
    assert torch.equal(output[:, 1:], layer(x[:, 1:])[0])


def test_no_gradient_passes_a_reset():
    layer = tidegate.MinGRU(3, 5)
    x = torch.randn(6, 1, 3, requires_grad=True)
    resets = torch.zeros(1, 6, dtype=torch.bool)
    resets[0, 4] = True
    output, _ = layer(x, resets=resets)
    d_x = torch.autograd.grad(output[-1].sum(), x)[0]
    assert (d_x[:4] == 0).all()
    assert (d_x[4:] != 0).all()


def test_marks_in_the_padding_reset_nothing():
    layer = tidegate.MinGRU(3, 5, bidirectional=True)
    x, resets = torch.randn(6, 2, 3), torch.zeros(2, 6, dtype=torch.bool)
    h_0 = torch.randn(2, 2, 5)  # backwards a sequence begins with it at its own last step
    expected = layer(x, h_0, lengths=[6, 3])
    resets[1, 3:] = True
    torch.testing.assert_close(layer(x, h_0, lengths=[6, 3], resets=resets), expected, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------- odd sizes, types


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("T", "B"), [(0, 3), (5, 0), (0, 0)])
def test_no_steps_or_no_sequences_give_empty_outputs_and_the_state_back(T, B, gradients):
    layer = tidegate.MinGRU(3, 4, num_layers=2, bidirectional=True)
    h_0 = torch.randn(4, B, 4)
    with torch.set_grad_enabled(gradients):
        output, h_n = layer(torch.zeros(T, B, 3), h_0)
    assert output.shape == (T, B, 8)
    assert h_n.shape == h_0.shape
    if T == 0:
        assert torch.equal(h_n, h_0)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32_and_rounded_once(dtype, gradients):
    layer = tidegate.MinGRU(3, 9, num_layers=2).to(dtype)
    wide = copy.deepcopy(layer).float()
    x = torch.randn(30, 2, 3, dtype=dtype)
    with torch.set_grad_enabled(gradients):
        output, h_n = layer(x)
        expected, h_expected = wide(x.float())
    assert output.dtype == h_n.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    assert torch.equal(h_n, h_expected.to(dtype))


def test_autocast_does_not_narrow_the_recurrence():
    layer = tidegate.MinGRU(3, 9)
    x = torch.randn(30, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(x)
    assert torch.equal(output, layer(x)[0])


def test_a_large_input_gives_finite_values_and_gradients():
    layer = tidegate.MinGRU(3, 9)
    x = (1e4 * torch.randn(100, 2, 3)).requires_grad_()
    output, _ = layer(x)
    assert output.isfinite().all()
    assert all(d.isfinite().all() for d in torch.autograd.grad(output.sum(), [x, *layer.parameters()]))


# ------------------------------------------------------------------------------------------------------- the module


def test_parameters_have_the_names_and_shapes_of_a_stack_of_two_gates():
    layer = tidegate.MinGRU(3, 5, num_layers=2, bidirectional=True, learn_initial_state=True)
    assert {name: tuple(v.shape) for name, v in layer.named_parameters()} == {
        "weight_ih_l0": (10, 3),
        "bias_ih_l0": (10,),
        "weight_ih_l0_reverse": (10, 3),
        "bias_ih_l0_reverse": (10,),
        "weight_ih_l1": (10, 10),
        "bias_ih_l1": (10,),
        "weight_ih_l1_reverse": (10, 10),
        "bias_ih_l1_reverse": (10,),
        "initial_h": (4, 5),
    }
    assert [*tidegate.MinGRU(3, 5, bias=False).state_dict()] == ["weight_ih_l0"]
    with torch.no_grad():
        layer.initial_h.fill_(1.0)
    layer.reset_parameters()
    assert (layer.initial_h == 0).all()
    assert layer.weight_ih_l1.abs().max() <= 10**-0.5 < 2 * layer.weight_ih_l1.abs().max()


def test_without_biases_the_layer_is_one_with_biases_of_zero():
    bare, layer = tidegate.MinGRU(3, 5, bias=False), tidegate.MinGRU(3, 5)
    layer.load_state_dict({**bare.state_dict(), "bias_ih_l0": torch.zeros(10)})
    x = torch.randn(7, 2, 3)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert torch.equal(bare(x)[0], layer(x)[0])


def test_update_bias_sets_the_memory_to_begin_with():
    layer = tidegate.MinGRU(3, 5, num_layers=2, update_bias=20)
    for _, b in layer.all_weights:
        torch.testing.assert_close(torch.sigmoid(b[:5]), torch.full((5,), 1 - 1 / 20))
        assert (b[5:] != b[5]).any()
    drawn = torch.sigmoid(tidegate.MinGRU(3, 500, update_bias=(2, 100)).bias_ih_l0[:500])
    assert 1 - 1 / 2 <= drawn.min() < 0.9 < drawn.max() <= 1 - 1 / 100


def test_a_learned_initial_state_is_where_sequences_start_and_takes_gradients():
    layer = tidegate.MinGRU(3, 5, learn_initial_state=True)
    with torch.no_grad():
        layer.initial_h.normal_()
    x = torch.randn(7, 2, 3)
    output, _ = layer(x)
    torch.testing.assert_close(output, layer(x, layer.initial_state(2))[0], rtol=0, atol=0)
    output.sum().backward()
    assert (layer.initial_h.grad != 0).all()
    assert torch.equal(layer.step(x[0])[0], layer.step(x[0], layer.initial_state(2))[0])


def test_copies_pickles_and_loaded_states_give_the_same_outputs():
    layer = tidegate.MinGRU(3, 5, num_layers=2, learn_initial_state=True)
    x = torch.randn(7, 2, 3)
    loaded = tidegate.MinGRU(3, 5, num_layers=2, learn_initial_state=True)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x)[0], layer(x)[0])
        assert repr(other) == repr(layer)


def test_repr_shows_what_is_not_the_default():
    assert repr(tidegate.MinGRU(3, 5)) == "MinGRU(3, 5)"
    layer = tidegate.MinGRU(3, 5, num_layers=2, dropout=0.5, update_bias=9)
    assert repr(layer) == "MinGRU(3, 5, num_layers=2, dropout=0.5, update_bias=9.0)"


def test_dropout_falls_between_layers_in_training_only():
    layer = tidegate.MinGRU(3, 5, num_layers=2, dropout=1.0)
    x = torch.randn(7, 2, 3)
    silent = layer(x)[0]
    assert torch.equal(silent, layer(torch.randn_like(x))[0])  # nothing of x reaches the second layer
    layer.eval()
    assert not torch.equal(silent, layer(x)[0])
    with pytest.warns(UserWarning, match="has no effect with num_layers=1"):
        tidegate.MinGRU(3, 5, dropout=0.5)


@pytest.mark.long
def test_training_compiles_as_one_graph_and_gives_the_same_gradients():
    layer = tidegate.MinGRU(3, 5, num_layers=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(9, 4, 3), torch.tensor(LENGTHS)
    for options in ({}, {"lengths": lengths, "resets": torch.rand(4, 9) < 0.2}):
        found = torch.autograd.grad(compiled(x, **options)[0].square().sum(), list(layer.parameters()))
        expected = torch.autograd.grad(layer(x, **options)[0].square().sum(), list(layer.parameters()))
        torch.testing.assert_close(found, expected)


def test_vmap_and_forward_mode_derivatives_go_through():
    layer = tidegate.MinGRU(3, 5)
    x, d_x = torch.randn(7, 4, 3), torch.randn(7, 4, 3)
    alone = torch.func.vmap(lambda one: layer(one)[0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(alone, layer(x)[0])
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            _, d_y = torch.func.jvp(lambda v: layer(v)[0], (x,), (d_x,))
        step = 1e-3
        with torch.no_grad():
            near = (layer(x + step * d_x)[0] - layer(x - step * d_x)[0]) / (2 * step)
        torch.testing.assert_close(d_y, near, rtol=1e-2, atol=1e-3)


# --------------------------------------------------------------------------------------------------------- the trace


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_trace_has_the_gates_and_states_of_every_layer_and_direction(batch_first):
    layer = tidegate.MinGRU(3, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(4, 4, 3)
    trace = layer.trace(x, lengths=[4, 2, 0, 1])
    torch.testing.assert_close(trace.output, layer(x, lengths=[4, 2, 0, 1])[0], rtol=0, atol=0)
    assert list(trace) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    gates = trace["l0_reverse"]
    k, v = (x @ layer.weight_ih_l0_reverse.T + layer.bias_ih_l0_reverse).chunk(2, -1)
    steps = torch.arange(4).unsqueeze(1) < torch.tensor([4, 2, 0, 1])
    inside = (steps.T if batch_first else steps).unsqueeze(-1)
    torch.testing.assert_close(gates.update, torch.sigmoid(k) * inside)
    torch.testing.assert_close(gates.candidate, torch.where(v >= 0, v + 0.5, torch.sigmoid(v)) * inside)
    joined = torch.cat([trace["l1"].hidden, trace["l1_reverse"].hidden], dim=-1)
    assert torch.equal(joined, trace.output)


def test_what_a_trace_has_not_is_none_in_its_gates_and_absent_from_what_is_counted():
    layer = tidegate.MinGRU(3, 5)
    trace = layer.trace(torch.randn(12, 2, 3))
    assert trace["l0"].reset is None
    assert trace["l0"].recurrent is None
    assert trace.reset == {}
    assert trace.saturation()["l0"].reset_near_1 is None
    statistics = trace.statistics()["l0"]
    assert statistics.reset_mean is None
    assert [*statistics.shares] == ["update_mean", "update_near_0", "update_near_1"]
    assert not any("reset" in name for name in statistics.columns())
    torch.testing.assert_close(
        trace["l0"].update.mean((0, 1)).double(), torch.from_numpy(statistics.update_mean), rtol=1e-5, atol=1e-6
    )
    assert trace.to_frame().columns == ["layer", "sequence", "step", "unit", "update", "candidate", "hidden"]
    assert "reset" not in trace._repr_html_().split("<img")[0]
    assert len([axis for axis in trace.plot().axes if "units" in axis.get_ylabel()]) == 3


def test_a_trace_of_packed_sequences_is_packed():
    pieces = [torch.randn(n, 3) for n in (4, 1, 9)]
    layer = tidegate.MinGRU(3, 5)
    trace = layer.trace(pack_sequence(pieces, enforce_sorted=False))
    for b, piece in enumerate(pieces):
        torch.testing.assert_close(trace.sequence(b)["l0"].update, layer.trace(piece)["l0"].update.detach())


# ---------------------------------------------------------------------------------------------------------- bad input


def test_errors_are_those_of_the_gru_with_this_layers_name():
    layer = tidegate.MinGRU(3, 5)
    with pytest.raises(ShapeError, match=r"MinGRU\(input_size=3, hidden_size=5\): x has 4 features, expected 3"):
        layer(torch.zeros(2, 2, 4))
    with pytest.raises(ShapeError, match=r"h_0 is \[1, 3, 5\], expected \[layers\*D=1, B=2, H=5\]"):
        layer(torch.zeros(2, 2, 3), torch.zeros(1, 3, 5))
    with pytest.raises(ShapeError, match=r"x is torch\.float64, the weights are torch\.float32"):
        layer(torch.zeros(2, 2, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"lengths\[1\] is 3, expected 0 \.\.\. 2"):
        layer(torch.zeros(2, 2, 3), lengths=[1, 3])
    with pytest.raises(ShapeError, match=r"resets is \[2, 3\]"):
        layer(torch.zeros(2, 2, 3), resets=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="x has 4 features"):
        layer.step(torch.zeros(2, 4))
    with pytest.raises(SettingsError, match=r"MinGRU: step\(\) runs forwards in time"):
        tidegate.MinGRU(3, 5, bidirectional=True).step(torch.zeros(2, 3))
    with pytest.raises(SettingsError, match="hidden_size must be greater than zero"):
        tidegate.MinGRU(3, 0)
    with pytest.raises(SettingsError, match="update_bias needs biases"):
        tidegate.MinGRU(3, 5, bias=False, update_bias=9)
    with pytest.raises(TypeError):
        tidegate.MinGRU(3, 5, 1, True, False, 0.0, False, "cpu")
