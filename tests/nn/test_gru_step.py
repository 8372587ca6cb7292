"""`GRU.step`: one time step; in the native back end the quick road of a stream too, which must never be taken wrongly."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import tidegate
from tests.helpers.layers import BACKENDS, pair
from tidegate.errors import SettingsError, ShapeError
from tidegate.ops.gru import native


def steps(layer, x, state=None):
    outputs = []
    for x_t in x:
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs), state


@pytest.mark.one_in(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("B", [None, 1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_give_what_one_call_over_the_sequence_gives(backend, B, layers, bias, grad, dtype):
    layer = pair(backend, 4, 9, layers, bias=bias, dtype=dtype)[0]
    x = torch.randn(6, 4, dtype=dtype) if B is None else torch.randn(6, B, 4, dtype=dtype)
    h_0 = torch.randn(layers, *x.shape[1:-1], 9, dtype=dtype)
    with torch.set_grad_enabled(grad):
        for start in (None, h_0):
            output, h_n = layer(x, start)
            y, state = steps(layer, x, start)
            off = {"rtol": 0, "atol": 0} if backend == "native" and dtype.itemsize > 2 else {}
            # half types: forward rounds the state once, at the end; a step is handed the rounded one
            off = {"rtol": 0, "atol": 0.05} if dtype == torch.bfloat16 else off
            torch.testing.assert_close(y, output, **off)
            torch.testing.assert_close(state, h_n, **off)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_flow_through_steps(backend):
    layer = pair(backend, 3, 5, 2, dtype=torch.float64)[0]
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(steps(layer, x)[0].sum(), weights),
        torch.autograd.grad(layer(x)[0].sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_is_a_value(backend):
    layer = pair(backend, 3, 5)[0]
    state = torch.zeros(1, 2, 5)
    with torch.no_grad():
        for _ in range(3):
            before = state.clone()
            y, new = layer.step(torch.randn(2, 3), state)
            assert torch.equal(state, before)
            kept = new.clone()
            y.zero_()  # what is done to y is not done to the state
            assert torch.equal(new, kept)
            state = new


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_falls_between_the_layers_of_a_step_in_training_alone(backend):
    layer = tidegate.GRU(3, 40, 2, dropout=0.5, backend=backend)
    x_t, state = torch.randn(2, 3), torch.randn(2, 2, 40)
    with torch.no_grad():
        layer.eval()
        plain = [layer.step(x_t, state)[0] for _ in range(2)]
        assert torch.equal(*plain)
        layer.train()
        assert not torch.equal(layer.step(x_t, state)[0], layer.step(x_t, state)[0])


def test_a_wrong_step_is_told_with_the_answer_in_it_at_the_first_step_and_later():
    layer = tidegate.GRU(3, 8, 2)
    with torch.no_grad():
        for _ in range(3):
            with pytest.raises(ShapeError, match=r"x has 5 features, expected 3\. x is \[B=4, I=5\]"):
                layer.step(torch.zeros(4, 5), torch.zeros(2, 4, 8))
            with pytest.raises(ShapeError, match=r"h_0 is \[2, 3, 8\], expected \[layers=2, B=4, H=8\]"):
                layer.step(torch.zeros(4, 3), torch.zeros(2, 3, 8))
            with pytest.raises(ShapeError, match=r"x is torch\.float64, the weights are torch\.float32"):
                layer.step(torch.zeros(4, 3, dtype=torch.float64), torch.zeros(2, 4, 8))
            with pytest.raises(TypeError, match="h_0 is of type list"):
                layer.step(torch.zeros(4, 3), [0.0])
            with pytest.raises(TypeError, match="x is of type str"):
                layer.step("x", torch.zeros(2, 4, 8))
            with pytest.raises(ShapeError, match="x is on meta"):
                layer.step(torch.zeros(4, 3, device="meta"), torch.zeros(2, 4, 8))
            layer.step(torch.zeros(4, 3), torch.zeros(2, 4, 8))
    with pytest.raises(SettingsError, match="Use bidirectional=False"):
        tidegate.GRU(3, 8, bidirectional=True).step(torch.zeros(4, 3))


# ------------------------------------------------------------------------------------------- the quick road


def streaming(**options):
    """A native layer whose next step would take the quick road, its arguments, and what that step gives."""
    layer = pair("native", 3, 5, **options)[0]
    x_t, state = torch.randn(2, 3), torch.randn(layer.num_layers, 2, 5)
    with torch.no_grad():
        y, h = layer.step(x_t, state)
        again = native.quick_step(layer._kept, x_t, state, layer._parameters)
    assert torch.equal(again[0], y)
    assert torch.equal(again[1], h)
    return layer, x_t, state, y


def fresh(layer, x_t, state):
    other = tidegate.GRU(3, 5, layer.num_layers, bias=layer.bias, backend="reference")
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        return other.step(x_t, state)[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.add_(0.5),
        lambda p: p.view(-1)[4].add_(0.5),
        lambda p: p.data.mul_(2),
        lambda p: setattr(p, "data", p.data * 2),
        lambda p: p.numpy().__imul__(2),
    ],
    ids=["in place", "one value in place", "through .data", "another .data", "through numpy"],
)
@pytest.mark.parametrize("which", range(8))
def test_a_changed_weight_is_noticed_between_two_steps(change, which):
    layer, x_t, state, y = streaming(num_layers=2)
    with torch.no_grad():
        change(list(layer.parameters())[which])
        now = layer.step(x_t, state)[0]
    assert not torch.equal(now, y)
    torch.testing.assert_close(now, fresh(layer, x_t, state))


def test_a_replaced_or_parametrised_weight_is_noticed_between_two_steps():
    layer, x_t, state, y = streaming()
    with torch.no_grad():
        layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0 * 2)
        now = layer.step(x_t, state)[0]
        torch.testing.assert_close(now, fresh(layer, x_t, state))
        assert not torch.equal(now, y)
        torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        torch.testing.assert_close(layer.step(x_t, state)[0], now)
        layer.parametrizations.weight_hh_l0.original0.mul_(3)
        assert not torch.allclose(layer.step(x_t, state)[0], now)


def test_another_back_end_or_instruction_set_is_noticed_between_two_steps(monkeypatch):
    layer, x_t, state, _ = streaming()
    asked = []
    monkeypatch.setattr(tidegate.ops.gru.reference, "step", lambda *args, **options: asked.append(args) or (x_t, state))
    with torch.no_grad():
        layer.backend = "reference"
        layer.step(x_t, state)
    assert len(asked) == 1
    before = native.isa()
    try:
        for name in native.isas():
            native.set_isa(name)
            with torch.no_grad():
                assert (native.quick_step(layer._kept, x_t, state, layer._parameters) is None) == (name != before)
    finally:
        native.set_isa(before)


def test_whatever_is_out_of_the_ordinary_takes_the_long_road():
    layer, x_t, state, _ = streaming()

    def quick(x, h, parameters=layer._parameters):
        return native.quick_step(layer._kept, x, h, parameters)

    assert quick(x_t, state) is None  # gradients are on
    with torch.no_grad():
        assert quick(x_t, state) is not None
        wide = torch.randn(2, 6)[:, ::2]
        negative = torch._neg_view(x_t)  # as of `z.conj().imag`: the memory holds the negative
        assert negative.is_neg()
        parameter = torch.nn.Parameter(x_t)
        for odd in (wide, negative, parameter, x_t.double(), x_t[0], x_t[None], x_t[:1], x_t.to("meta"), None, 3):
            assert quick(odd, state) is None
        for odd in (state.mT.contiguous().mT, state.double(), state[0], state[:, :1], None, "h"):
            assert quick(x_t, odd) is None
        assert quick(x_t, state, {}) is None
        assert quick(x_t, state, {**layer._parameters, "more": x_t}) is None
        torch.testing.assert_close(layer.step(negative, state)[0], fresh(layer, negative.clone(), state))
        torch.testing.assert_close(layer.step(wide, state)[0], fresh(layer, wide, state))
        layer.backend = "auto"
        tangent = torch.func.jvp(lambda x: layer.step(x, state)[0], (x_t,), (torch.ones_like(x_t),))[1]
        assert tangent.abs().sum() > 0


def test_copies_and_files_of_a_streaming_layer_stream_by_themselves():
    layer, x_t, state, y = streaming()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert not other._kept
        with torch.no_grad():
            assert torch.equal(other.step(x_t, state)[0], y)
            next(other.parameters()).mul_(2)
            assert not torch.equal(other.step(x_t, state)[0], y)
            assert torch.equal(layer.step(x_t, state)[0], y)


def test_a_cell_takes_the_quick_road_too():
    torch.manual_seed(0)
    cell, theirs = tidegate.GRUCell(3, 5, backend="native"), torch.nn.GRUCell(3, 5)
    theirs.load_state_dict(cell.state_dict())
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(cell(x, h), theirs(x, h))
        assert "step" in cell._kept
        for module in (cell, theirs):
            module.weight_hh.mul_(2)
        torch.testing.assert_close(cell(x, h), theirs(x, h))
        with pytest.raises(ShapeError):
            cell(x, h[:1])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_compiled_step_gives_the_eager_numbers(backend):
    torch._dynamo.reset()
    layer = pair(backend, 3, 5, 2)[0].eval()
    compiled = torch.compile(lambda x, h: layer.step(x, h), fullgraph=True, backend="aot_eager")
    x_t, state = torch.randn(2, 3), torch.randn(2, 2, 5)
    with torch.no_grad():
        for a, b in zip(compiled(x_t, state), layer.step(x_t, state), strict=True):
            torch.testing.assert_close(a, b)
