"""What `tidegate.GRU` has beyond `torch.nn.GRU`: lengths, nested tensors, resets, other recurrences, other beginnings."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import tidegate
from tests.helpers.layers import BACKENDS, FORMS, OURS, assert_at_most_twice, error, jagged, layer_of, pair
from tidegate import backends
from tidegate.errors import BackendUnavailableError, SettingsError, ShapeError

# ------------------------------------------------------------------------------------------- lengths

LENGTHS = [3, 0, 5, 1, 5]


def each_alone(theirs, x, h_0, lengths, d_output, d_h_n):
    """Values and gradients of torch.nn.GRU over one sequence at a time; x is [T, B, I]."""
    x, h_0 = x.clone().requires_grad_(), h_0.clone().requires_grad_()
    outputs, states = [], []
    for b, n in enumerate(lengths):
        if n == 0:
            outputs.append(torch.zeros_like(d_output[:, b]))
            states.append(h_0[:, b])
        else:
            output, h_n = theirs(x[:n, b], h_0[:, b].contiguous())
            outputs.append(torch.cat([output, torch.zeros_like(d_output[n:, b])]))
            states.append(h_n)
    output, h_n = torch.stack(outputs, 1), torch.stack(states, 1)
    leaves = [x, h_0, *theirs.parameters()]
    return [output, h_n, *torch.autograd.grad([output, h_n], leaves, [d_output, d_h_n])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["lengths", "a list", "not contiguous", "nested"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["T_first", "batch_first"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_with_lengths_each_sequence_gets_what_torch_gives_it_alone(
    num_layers, bidirectional, bias, batch_first, kind, dtype
):
    T, B, I, H = 6, len(LENGTHS), 4, 7
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    runs = num_layers * (1 + bidirectional)
    torch.manual_seed(1)
    x, h_0 = torch.randn(T, B, I, dtype=dtype), torch.randn(runs, B, H, dtype=dtype)
    d_output, d_h_n = torch.randn(T, B, H * (1 + bidirectional), dtype=dtype), torch.randn_like(h_0)
    theirs = pair("torch", I, H, **options, dtype=dtype)[1]
    of_torch = each_alone(theirs, x, h_0, LENGTHS, d_output, d_h_n)
    wide = [v.double() for v in (x, h_0)]
    exact = each_alone(theirs.double(), *wide, LENGTHS, d_output.double(), d_h_n.double())

    for backend in BACKENDS:
        ours, _ = pair(backend, I, H, **options, batch_first=batch_first, dtype=dtype)
        leaf, h = x.clone().requires_grad_(), h_0.clone().requires_grad_()
        given = leaf.transpose(0, 1) if batch_first else leaf
        if kind == "not contiguous":
            given = given.repeat_interleave(2, dim=-1)[..., ::2]
        if kind == "nested":
            given = torch.nested.nested_tensor_from_jagged(
                torch.cat([leaf[:n, b] for b, n in enumerate(LENGTHS)]), torch.tensor([0, *LENGTHS]).cumsum(0)
            )
            output, h_n = ours(given, h)
            assert output.is_nested
            assert torch.equal(output.offsets(), given.offsets())
            output = torch.stack([nn.functional.pad(v, (0, 0, 0, T - len(v))) for v in output.unbind()], 1)
        else:
            lengths = LENGTHS if kind == "a list" else torch.tensor(LENGTHS)
            output, h_n = ours(given, h, lengths=lengths)
            output = output.transpose(0, 1) if batch_first else output
        gradients = torch.autograd.grad([output, h_n], [leaf, h, *ours.parameters()], [d_output, d_h_n])
        of_ours = [output, h_n, *gradients]
        mine, its = ([error(v, e) for v, e in zip(vs, exact, strict=True)] for vs in (of_ours, of_torch))
        if dtype == torch.float64:
            assert max(mine) < 1e-14, backend
        else:
            assert_at_most_twice(mine, its)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[0, 0, 0], [4, 4, 4], [0, 0, 4]])
def test_all_empty_or_all_full_is_no_special_case(lengths, backend):
    layer = layer_of(3, 5, bidirectional=True, backend=backend)
    x, h_0 = torch.randn(4, 3, 3), torch.randn(2, 3, 5)
    output, h_n = layer(x, h_0, lengths=lengths)
    for b, n in enumerate(lengths):
        alone, last = layer(x[:n, b], h_0[:, b])
        torch.testing.assert_close(output[:n, b], alone)
        assert (output[n:, b] == 0).all()
        torch.testing.assert_close(h_n[:, b], last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_steps_and_no_sequences_are_no_special_case(backend):
    layer = layer_of(3, 5, backend=backend)
    output, h_n = layer(torch.zeros(0, 2, 3), torch.ones(1, 2, 5), lengths=[0, 0])
    assert output.shape == (0, 2, 5)
    assert (h_n == 1).all()
    output, h_n = layer(torch.zeros(4, 0, 3), lengths=[])
    assert output.shape == (4, 0, 5)
    assert h_n.shape == (1, 0, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_give_the_bits_of_a_packed_sequence(backend):
    layer = layer_of(3, 33, num_layers=2, bidirectional=True, backend=backend)
    lengths = [2, 5, 1]
    x = torch.randn(5, 3, 3)
    packed, of_packed = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    output, h_n = layer(x, lengths=lengths)
    assert torch.equal(h_n, of_packed)
    assert torch.equal(pack_padded_sequence(output, lengths, enforce_sorted=False).data, packed.data)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", OURS)
def test_half_types_are_computed_in_float32_and_rounded_once(backend, dtype):
    for form in FORMS.values():
        layer = layer_of(3, 9, num_layers=2, bidirectional=True, backend=backend, dtype=dtype, **form)
        wide = copy.deepcopy(layer).float()
        x, more = torch.randn(6, 2, 3, dtype=dtype), {"lengths": [6, 4], "resets": torch.rand(2, 6) < 0.3}
        torch.manual_seed(5)
        narrow = layer(x, **more)
        torch.manual_seed(5)
        for a, b in zip(narrow, wide(x.float(), **more), strict=True):
            assert torch.equal(a, b.to(dtype))


# ------------------------------------------------------------------------------------------- resets


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", ["batched", "batch_first", "one", "packed", "nested", "lengths"])
@pytest.mark.parametrize("backend", OURS)
def test_a_reset_begins_a_new_sequence_in_every_layer_and_direction(backend, kind, form):
    """Two pieces in one: as if each had been given alone, to the bit in the native back end."""
    T, cut, I, H = 7, 3, 4, 9
    form = {k: v for k, v in form.items() if k not in ("zoneout", "recurrent_dropout")}  # (drawn for each call)
    form |= {"num_layers": 2, "bidirectional": True, "backend": backend}
    layer = layer_of(I, H, batch_first=kind == "batch_first", **form)
    x = torch.randn(T, 2, I)
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[:, cut] = True
    if kind == "packed":
        resets[0] = False  # it ends there, and in the pack it comes second
    plain = layer_of(I, H, **form)
    expected = torch.cat([plain(x[:cut])[0], plain(x[cut:])[0]])
    if kind == "one":
        got = layer(x[:, 0], resets=resets[0])[0].unsqueeze(1)
        expected = expected[:, :1]
    elif kind == "batch_first":
        got = layer(x.transpose(0, 1), resets=resets)[0].transpose(0, 1)
    elif kind == "packed":
        shorter = pack_sequence([x[:, 0][:cut], x[:, 1]], enforce_sorted=False)
        got = layer(shorter, resets=resets)[0]
        got = torch.nn.utils.rnn.pad_packed_sequence(got)[0][:, 1:]
        expected = expected[:, 1:]
    elif kind == "nested":
        got = layer(jagged([x[:cut, 0], x[:, 1]]), resets=resets)[0].unbind()[1].unsqueeze(1)
        expected = expected[:, 1:]
    elif kind == "lengths":
        got = layer(x, lengths=[T, cut], resets=resets)[0][:, :1]
        expected = expected[:, :1]
    else:
        got = layer(x, resets=resets)[0]
    if backend == "native":
        assert torch.equal(got, expected)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", OURS)
def test_hx_is_where_the_first_piece_begins_and_a_reset_begins_at_the_initial_state(backend):
    layer = layer_of(3, 5, learn_initial_state=True, backend=backend)
    x, h_0, resets = torch.randn(4, 1, 3), torch.randn(1, 1, 5), torch.tensor([[False, False, True, False]])
    output, _ = layer(x, h_0, resets=resets)
    torch.testing.assert_close(output[:2], layer(x[:2], h_0)[0])
    torch.testing.assert_close(output[2:], layer(x[2:])[0])
    resets[0, 0] = True
    torch.testing.assert_close(layer(x, h_0, resets=resets)[0][:2], layer(x[:2])[0])
    d_h = torch.autograd.grad(layer(x, resets=resets)[0].sum(), layer.initial_h)[0]
    twice = torch.autograd.grad(layer(x[:2])[0].sum() + layer(x[2:])[0].sum(), layer.initial_h)[0]
    torch.testing.assert_close(d_h, twice)


def test_resets_in_chunks_with_the_state_carried_give_the_bits_of_one_call():
    layer = layer_of(3, 20, num_layers=2, backend="native", layer_norm=True, reset="before").eval()
    x, resets = torch.randn(9, 3, 3), torch.rand(3, 9) < 0.3
    whole, h_n = layer(x, resets=resets)
    parts, state = [], None
    for first, last in ((0, 2), (2, 3), (3, 9)):
        part, state = layer(x[first:last], state, resets=resets[:, first:last])
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, h_n)


# ------------------------------------------------------------------------------------------- other recurrences


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_the_native_layer_gives_what_the_reference_gives(form, training):
    x, more = torch.randn(6, 3, 4, dtype=torch.float64), {"lengths": [6, 0, 4], "resets": torch.rand(3, 6) < 0.3}
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.2, "dtype": torch.float64, **form}
    found = []
    for backend in OURS:
        layer = layer_of(4, 7, backend=backend, **options).train(training)
        torch.manual_seed(3)
        output, h_n = layer(x, **more)
        found.append([output, h_n, *torch.autograd.grad(output.sum() + h_n.square().sum(), [*layer.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", OURS)
def test_evaluation_uses_expectations_and_training_draws_again_each_call(backend):
    x = torch.randn(5, 3, 4)
    for form in ({"recurrent_dropout": 0.4}, {"zoneout": 0.3}):
        layer = layer_of(4, 7, backend=backend, **form)
        assert not torch.equal(layer(x)[0], layer(x)[0])
        torch.manual_seed(1)
        first = layer(x)[0]
        torch.manual_seed(1)
        assert torch.equal(layer(x)[0], first)
        layer.eval()
        assert torch.equal(layer(x)[0], layer(x)[0])
        torch.manual_seed(1)
        assert not torch.equal(layer(x)[0], first)


@pytest.mark.parametrize("backend", OURS)
def test_zoneout_keeps_a_unit_as_often_as_it_should_and_a_part_of_it_in_evaluation(backend):
    layer = layer_of(4, 50, backend=backend, zoneout=0.25)
    x, h_0 = torch.randn(40, 50, 4), torch.randn(1, 50, 50)
    output, _ = layer(x, h_0)
    before = torch.cat([h_0, output[:-1]])
    kept = (output == before).double().mean().item()
    assert abs(kept - 0.25) < 0.01
    layer.eval()
    plain = layer_of(4, 50, backend=backend)
    torch.testing.assert_close(layer(x[:1], h_0)[0], 0.25 * h_0 + 0.75 * plain(x[:1], h_0)[0], rtol=1e-5, atol=1e-6)
    layer.zoneout = 1.0
    assert torch.equal(layer(x, h_0)[0], h_0.expand(40, 50, 50))


@pytest.mark.parametrize("backend", OURS)
def test_recurrent_dropout_masks_the_same_units_at_every_step_and_never_the_memory_itself(backend):
    layer = layer_of(1, 40, backend=backend, recurrent_dropout=0.5)
    with torch.no_grad():  # only what a state says to the candidate of its own unit, and z = 1/2
        for p in layer.parameters():
            p.zero_()
        layer.weight_hh_l0[80:].copy_(torch.eye(40))
        layer.bias_ih_l0[:40] = 20  # r = 1
    output, _ = layer(torch.zeros(6, 1, 1), torch.full((1, 1, 40), 0.1))
    before, after = output[:-1, 0], output[1:, 0]
    dropped = torch.isclose(after, before / 2)  # n = tanh(0)
    doubled = torch.isclose(after, (torch.tanh(2 * before) + before) / 2)
    assert (dropped ^ doubled).all()
    assert (dropped == dropped[0]).all()
    assert 5 < dropped[0].sum() < 35


@pytest.mark.parametrize("backend", OURS)
def test_layer_norm_makes_the_layer_indifferent_to_the_scale_of_its_input(backend):
    layer = layer_of(4, 16, backend=backend, layer_norm=True)
    plain = layer_of(4, 16, backend=backend)
    x = torch.randn(6, 2, 4)
    torch.testing.assert_close(layer(100 * x)[0], layer(1e4 * x)[0], rtol=1e-4, atol=1e-4)
    assert (plain(100 * x)[0] - plain(1e4 * x)[0]).abs().max() > 0.1


def test_the_gains_of_layer_norm_are_parameters_that_start_at_one():
    layer = tidegate.GRU(3, 4, num_layers=2, bidirectional=True, layer_norm=True)
    names = [name for name, _ in layer.named_parameters() if "ln" in name]
    assert names == [f"weight_ln_{side}_l{k}{way}" for k in (0, 1) for way in ("", "_reverse") for side in ("ih", "hh")]
    assert all((getattr(layer, name) == 1).all() for name in names)
    assert [len(ws) for ws in layer.all_weights] == [6] * 4


def test_nothing_of_all_that_is_in_a_layer_by_default():
    layer = tidegate.GRU(3, 4, 2, bidirectional=True)
    assert [*layer.state_dict()] == [*nn.GRU(3, 4, 2, bidirectional=True).state_dict()]


@pytest.mark.parametrize("form", [*FORMS.values(), {"zoneout": 0.3, "reset": "before"}], ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", OURS)
def test_steps_give_what_one_call_over_the_sequence_gives(backend, grad, form):
    layer = layer_of(4, 20, num_layers=2, backend=backend, **form).eval()
    x = torch.randn(6, 3, 4)
    with torch.set_grad_enabled(grad):
        output, h_n = layer(x)
        state = None
        for t, x_t in enumerate(x):
            y, state = layer.step(x_t, state)
            if backend == "native":
                assert torch.equal(y, output[t])
            torch.testing.assert_close(y, output[t])
        torch.testing.assert_close(state, h_n)


def test_a_changed_form_is_noticed_between_two_steps():
    layer = layer_of(4, 8, backend="native").eval()
    x_t, state = torch.randn(2, 4), torch.randn(1, 2, 8)
    with torch.no_grad():
        plain = [layer.step(x_t, state)[0] for _ in range(3)][-1]
        for name, value in (("reset", "before"), ("zoneout", 0.5), ("reset", "after"), ("zoneout", 0.0)):
            setattr(layer, name, value)
            other = copy.deepcopy(layer)
            other.backend = "reference"
            torch.testing.assert_close(layer(x_t.unsqueeze(0), state), other(x_t.unsqueeze(0), state))
            expected = layer(x_t.unsqueeze(0), state)[0][0]
            for _ in range(3):
                assert torch.equal(layer.step(x_t, state)[0], expected)
        assert torch.equal(expected, plain)


# ------------------------------------------------------------------------------------------- how a layer begins


def test_the_initial_state_is_zeros_or_learned():
    plain = tidegate.GRU(3, 4, 2, bidirectional=True, dtype=torch.float64)
    assert torch.equal(plain.initial_state(5), torch.zeros(4, 5, 4, dtype=torch.float64))
    assert plain.initial_state().shape == (4, 4)
    layer = tidegate.GRU(3, 4, 2, bidirectional=True, learn_initial_state=True)
    assert layer.initial_h.shape == (4, 4)
    assert (layer.initial_h == 0).all()
    with torch.no_grad():
        layer.initial_h.normal_()
    x = torch.randn(6, 5, 3)
    torch.testing.assert_close(layer(x), layer(x, layer.initial_state(5)))
    assert layer(x)[1].sum().backward() is None
    assert layer.initial_h.grad.abs().min() > 0


def test_a_learned_initial_state_trains():
    torch.manual_seed(0)
    layer = tidegate.GRU(1, 8, learn_initial_state=True)
    optimiser = torch.optim.Adam(layer.parameters(), 0.02)
    target = torch.linspace(-0.8, 0.8, 8)  # of the very first step, with nothing in x to tell it
    for _ in range(200):
        optimiser.zero_grad()
        loss = (layer(torch.zeros(1, 2, 1))[0] - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-3
    assert layer.initial_h.abs().max() > 0.05


def test_orthogonal_weights_are_so_for_each_gate():
    layer = tidegate.GRU(5, 16, 2, bidirectional=True, init="orthogonal")
    for names in layer._weight_names:
        w_ih, w_hh, b_ih, b_hh = (getattr(layer, name).detach() for name in names)
        for gate in w_hh.chunk(3):
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=0, atol=1e-5)
        bound = math.sqrt(6 / (16 + w_ih.size(1)))
        for gate in w_ih.chunk(3):
            assert 0.8 * bound < gate.abs().max() <= bound
        assert not b_ih.any()
        assert not b_hh.any()
    assert not torch.equal(*layer.weight_hh_l0.detach().chunk(3)[:2])


def test_the_memory_that_was_asked_for_is_the_memory_there_is():
    """With nothing else to hear, the state falls to 1/e in τ steps."""
    layer = tidegate.GRU(1, 6, update_bias=50.0)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("weight"):
                p.zero_()
        layer.bias_ih_l0[12:] = layer.bias_hh_l0[12:] = 0
    output, _ = layer(torch.zeros(50, 1, 1), torch.ones(1, 1, 6))
    torch.testing.assert_close(output[-1], torch.full((1, 6), (1 - 1 / 50) ** 50), rtol=1e-4, atol=0)
    assert output[-1, 0, 0].item() == pytest.approx(1 / math.e, rel=0.02)


def test_a_range_of_memories_is_chrono_initialisation():
    torch.manual_seed(0)
    layer = tidegate.GRU(1, 4000, num_layers=2, update_bias=(2, 100))
    for k in range(2):
        b_iz, b_hz = (getattr(layer, f"bias_{side}_l{k}").detach()[4000:8000] for side in ("ih", "hh"))
        assert not b_hz.any()
        steps = b_iz.exp() + 1
        assert 2 <= steps.min() < 3
        assert 99 < steps.max() <= 100.01
        assert abs(steps.mean().item() - 51) < 2
    same = tidegate.GRU(3, 4)
    torch.manual_seed(1)
    same.reset_parameters()
    torch.manual_seed(1)
    other = tidegate.GRU(3, 4, update_bias=10)
    assert torch.equal(same.weight_hh_l0, other.weight_hh_l0)  # the rest is drawn as ever


# ------------------------------------------------------------------------------------------- which back end


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"reset": "before"}, {}),
        ({"layer_norm": True}, {}),
        ({"zoneout": 0.1}, {}),
        ({"recurrent_dropout": 0.1}, {}),
        ({"checkpoint_every": 3}, {}),
        ({}, {"resets": torch.zeros(2, 4, dtype=torch.bool)}),
    ],
    ids=str,
)
def test_torchs_back_end_says_what_it_has_not(options, call):
    layer = tidegate.GRU(3, 5, backend="torch", **options)
    with pytest.raises(BackendUnavailableError, match=r"Back end 'torch' can't run: it has no (\w|=|\")+\. Use one of"):
        layer(torch.zeros(4, 2, 3), **call)
    with pytest.raises(BackendUnavailableError):
        layer.trace(torch.zeros(4, 2, 3), **call)


def test_on_a_gpu_what_cudnn_lacks_goes_to_the_reference_and_explain_says_so():
    said = backends.explain(device="cuda", wishes=["zoneout", "resets"])
    assert said.chosen == "reference"
    assert "it has no zoneout, resets" in said.reasons["torch"]
    assert backends.explain(device="cuda").chosen == "torch"
    assert backends.explain(device="cpu", wishes=["zoneout"]).chosen == "native"
    x = torch.zeros(1, device="meta")  # any device that is not the CPU
    assert backends.choose("auto", x).__name__.endswith("torch_aten")
    assert backends.choose("auto", x, ["zoneout"]).__name__.endswith("reference")
    with pytest.raises(SettingsError, match="'zoneuot'"):
        backends.explain(wishes=["zoneuot"])


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reset": "befor"}, "reset is 'befor', expected 'after' or 'before'. Did you mean 'before'?"),
        ({"layer_norm": 1}, "layer_norm should be of type bool"),
        ({"zoneout": 1.1}, "zoneout must be a number in [0, 1], got 1.1"),
        ({"zoneout": -0.1}, "zoneout must be a number in [0, 1], got -0.1"),
        ({"recurrent_dropout": 2}, "recurrent_dropout must be a number in [0, 1], got 2"),
        ({"recurrent_dropout": math.nan}, "recurrent_dropout must be a number in [0, 1], got nan"),
        ({"learn_initial_state": "yes"}, "learn_initial_state should be of type bool"),
        ({"init": "orthonormal"}, "init is 'orthonormal', expected 'torch' or 'orthogonal'"),
        ({"update_bias": 1}, "update_bias is a memory in steps, a number above 1 or a pair"),
        ({"update_bias": (5, 2)}, "update_bias is a memory in steps"),
        ({"update_bias": (2, math.inf)}, "update_bias is a memory in steps"),
        ({"update_bias": "long"}, "update_bias is a memory in steps"),
        ({"update_bias": 5, "bias": False}, "update_bias needs biases, and bias is False"),
        ({"checkpoint_every": -1}, "checkpoint_every must be greater than zero, got -1"),
        ({"checkpoint_every": 2.5}, "checkpoint_every should be of type int"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_before_anything_is_made(options, said):
    with pytest.raises((SettingsError, TypeError)) as caught:
        tidegate.GRU(3, 8, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_lengths_are_told_with_the_place_and_the_way_out(backend):
    me = "GRU(input_size=3, hidden_size=8): "
    layer, x = tidegate.GRU(3, 8, backend=backend), torch.zeros(7, 2, 3)
    for lengths, said in (
        ([3, 9], "lengths[1] is 9, expected 0 ... 7, as x has T=7 steps."),
        ([-1, 3], "lengths[0] is -1, expected 0 ... 7, as x has T=7 steps."),
        ([3], "lengths is [1], expected [B=2], the steps of each sequence of x."),
        (torch.tensor([[3, 2]]), "lengths is [1, 2], expected [B=2], the steps of each sequence of x."),
        (
            torch.tensor([3.0, 2.0]),
            "lengths is torch.float32, expected whole numbers (torch.int64). Use lengths.long().",
        ),
        (torch.tensor([True, False]), "lengths is torch.bool, expected whole numbers"),
        (
            torch.tensor([1, 2], device="meta"),
            "lengths is on meta, expected on cpu (or with x, on cpu). Use lengths.cpu().",
        ),
        ([1.5, 2], "lengths is [1.5, 2]; expected whole numbers, one for each sequence of x."),
        (["a", 2], "lengths is ['a', 2]; expected whole numbers"),
    ):
        with pytest.raises(ShapeError) as caught:
            layer(x, lengths=lengths)
        assert (me + said) in str(caught.value)
    with pytest.raises(TypeError, match="lengths is of type int, expected a tensor or a list"):
        layer(x, lengths=7)
    for given, why in (
        (torch.zeros(7, 3), "one sequence without a batch"),
        (pack_sequence([torch.zeros(2, 3)]), "a PackedSequence has its own"),
        (jagged([torch.zeros(2, 3)]), "a nested tensor has its own"),
    ):
        with pytest.raises(SettingsError, match=why):
            layer(given, lengths=[2])


@pytest.mark.parametrize("backend", OURS)
def test_wrong_resets_are_told_with_the_place_and_the_way_out(backend):
    me = "GRU(input_size=3, hidden_size=8): "
    layer, x = tidegate.GRU(3, 8, backend=backend), torch.zeros(7, 2, 3)
    good = torch.zeros(2, 7, dtype=torch.bool)
    for resets, said in (
        (good.t(), "resets is [7, 2], expected [B=2, T=7] for this x, whatever batch_first says. It is the other way "
                   "round: use resets.transpose(0, 1)."),
        (good[:, :3], "resets is [2, 3], expected [B=2, T=7] for this x, whatever batch_first says."),
        (good.float(), "resets is torch.float32, expected torch.bool. Use resets.bool()."),
        (good.to("meta"), "resets is on meta, x is on cpu. Use resets.to('cpu')."),
    ):  # fmt: skip
        with pytest.raises(ShapeError) as caught:
            layer(x, resets=resets)
        assert str(caught.value) == me + said
    with pytest.raises(ShapeError, match=r"resets is \[2, 7\], expected \[T=7\]"):
        layer(x[:, 0], resets=good)
    with pytest.raises(TypeError, match="resets is of type list"):
        layer(x, resets=[[True] * 7] * 2)


def test_a_nested_tensor_that_is_no_batch_of_sequences_is_told():
    layer = tidegate.GRU(3, 8)
    with pytest.raises(ShapeError, match=r"x is nested, torch\.strided.*Use torch\.nested\.nested_tensor"):
        layer(torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)]))
    with pytest.raises(ShapeError, match=r"x has 5 features, expected 3\. x is nested, \[B=2, steps, I=5\]"):
        layer(jagged([torch.zeros(2, 5), torch.zeros(1, 5)]))
    with pytest.raises(ShapeError, match=r"h_0 is \[1, 3, 8\], expected \[layers\*D=1, B=2, H=8\]"):
        layer(jagged([torch.zeros(2, 3), torch.zeros(1, 3)]), torch.zeros(1, 3, 8))


def test_everything_that_was_asked_for_is_in_the_repr():
    layer = tidegate.GRU(
        3, 8, reset="before", zoneout=0.1, update_bias=(2, 9), init="orthogonal", learn_initial_state=True
    )
    assert repr(layer) == (
        "GRU(3, 8, reset='before', zoneout=0.1, learn_initial_state=True, init='orthogonal', update_bias=(2.0, 9.0))"
    )
