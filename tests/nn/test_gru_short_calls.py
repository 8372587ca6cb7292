"""A short call of a layer, from its second call on: `ops/gru/native/quick.py`. It has the bits, gradients and errors of any other."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import pytest
import torch
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

import tidegate
from tidegate.errors import ShapeError
from tidegate.ops.gru import native
from tidegate.ops.gru.native import quick


def layer_of(I=3, H=5, **options):
    torch.manual_seed(0)
    layer = tidegate.GRU(I, H, **options)
    x = torch.randn(*((4, 6) if layer.batch_first else (6, 4)), I, dtype=layer.weight_ih_l0.dtype)
    layer(x)
    with torch.no_grad():
        layer(x)  # (from now on a call without gradients is short as well)
    return layer, x


def is_short(v):
    """Whether this is the output of a short call that wants gradients."""
    return hasattr(v.grad_fn, "call") and isinstance(v.grad_fn.call, native.kernels.cpp.QuickCall)


def results(layer, x, h_0, loss, short):
    inputs = [v for v in (x, h_0, *layer.parameters()) if v is not None and v.requires_grad]
    if not short:
        layer._kept.clear()
    output, h_n = layer(x, h_0)
    assert is_short(output) == short
    with torch.no_grad():
        again, _ = layer(x, h_0)
    return [output, h_n, again, *torch.autograd.grad(loss(output, h_n), inputs, allow_unused=True)]


def random_like(v):
    return torch.randn(v.shape, generator=torch.Generator().manual_seed(1), dtype=v.dtype)


LOSSES = {
    "the sum": lambda output, h_n: output.sum(),
    "other gradients": lambda output, h_n: (output * random_like(output)).sum(),
    "h_n": lambda output, h_n: (h_n * random_like(h_n)).sum(),
    "both": lambda output, h_n: (output * random_like(output)).sum() + h_n.square().sum(),
    "a part": lambda output, h_n: output[1:, ::2].square().sum(),
    "features side by side": lambda output, h_n: (output.transpose(1, 2) * random_like(output.transpose(1, 2))).sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("state", ["no h_0", "h_0", "h_0 with gradient"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_has_the_bits_of_the_long_road(dtype, options, state, loss):
    layer, x = layer_of(dtype=dtype, **options)
    D = 2 if layer.bidirectional else 1
    h_0 = None if state == "no h_0" else torch.randn(D, 4, 5, dtype=dtype, requires_grad="gradient" in state)
    for needs_x in (False, True):
        x.requires_grad_(needs_x)
        long, *short = (results(layer, x, h_0, loss, short) for short in (False, True, True))
        for found in short:
            for a, b in zip(long, found, strict=True):
                assert torch.equal(a, b)
                assert a.stride() == b.stride()


def test_every_layer_of_a_stack_takes_it():
    layer, x = layer_of(num_layers=3, bidirectional=True)
    h_0 = torch.randn(6, 4, 5, requires_grad=True)
    found = [layer(x, h_0)]
    layer._kept.clear()
    found.append(layer(x, h_0))
    assert [is_short(output) for output, _ in found] == [True, False]
    gradients = [
        torch.autograd.grad(output.sum() + h_n.square().sum(), [h_0, *layer.parameters()]) for output, h_n in found
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_x_may_lie_in_any_way():
    layer, x = layer_of()
    wide = torch.randn(6, 4, 8)
    for v in (wide[:, :, 2:5], wide[..., :3].transpose(0, 1), x[:1].expand(6, 4, 3), wide[:, :, ::3]):
        output = layer(v)[0]
        assert is_short(output) == (v.stride(2) == 1)
        layer._kept.clear()
        assert torch.equal(layer(v)[0], output)
        layer(v)


def test_weights_without_gradients_get_none_and_cost_the_others_nothing():
    layer, x = layer_of()
    layer.weight_hh_l0.requires_grad_(False)
    layer.bias_ih_l0.requires_grad_(False)
    output = layer(x)[0]
    assert is_short(output)
    output.sum().backward()
    assert [p.grad is None for p in layer.parameters()] == [False, True, True, False]
    layer.requires_grad_(False)
    output = layer(x)[0]
    assert not output.requires_grad
    assert torch.equal(output, layer_of()[0](x)[0])


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
def test_it_has_second_derivatives_and_many_gradients_at_once(options):
    layer, x = layer_of(I=2, H=3, dtype=torch.float64, **options)
    x.requires_grad_()
    h_0 = torch.randn(2 if layer.bidirectional else 1, 4, 3, dtype=torch.float64, requires_grad=True)

    def call(x, h_0, *_):
        output, h_n = layer(x, h_0)
        assert is_short(output)
        return output, h_n

    assert torch.autograd.gradcheck(call, (x, h_0, *layer.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, h_0, *layer.parameters()), fast_mode=True)
    one_by_one = torch.autograd.functional.jacobian(lambda v: call(v, h_0)[0], x)
    at_once = torch.autograd.functional.jacobian(lambda v: call(v, h_0)[0], x, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one)


@pytest.mark.parametrize("which", ["x", "h_0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_what_backward_reads_must_not_be_changed_in_place_before_it(which):
    layer, x = layer_of()
    h_0 = torch.randn(1, 4, 5)
    output = layer(x, h_0)[0]
    assert is_short(output)
    with torch.no_grad():
        {"x": x, "h_0": h_0, **dict(layer.named_parameters())}[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_an_output_changed_in_place_is_read_as_it_was():
    layer, x = layer_of()
    found = []
    for clear in (False, True):
        if clear:
            layer._kept.clear()
        output = layer(x)[0]
        assert is_short(output) != clear
        torch.relu_(output)
        found.append(torch.autograd.grad(output.sum(), [*layer.parameters()]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_graph_may_be_used_twice_where_it_was_retained_and_else_not():
    layer, x = layer_of()
    output = layer(x)[0]
    first = torch.autograd.grad(output.sum(), [*layer.parameters()], retain_graph=True)
    second = torch.autograd.grad(output.sum(), [*layer.parameters()])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="a second time"):
        output.sum().backward()


def test_weights_that_moved_since_are_looked_at_again():
    layer, x = layer_of()
    output = layer(x)[0]
    expected = torch.autograd.grad(output.sum(), [*layer.parameters()], retain_graph=True)
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.clone()
    found = torch.autograd.grad(output.sum(), [*layer.parameters()])
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change", [lambda w: w.mT, lambda w: w[:9], lambda w: w.double()], ids=["turned", "cut", "wide"]
)
def test_a_weight_of_another_shape_or_type_at_the_same_address_is_told(change):
    layer, x = layer_of()
    layer.weight_hh_l0.data = change(layer.weight_hh_l0.data)
    with pytest.raises(ShapeError, match="a weight is"):
        layer(x)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.add_(0.5),
        lambda p: p.data.mul_(2),
        lambda p: setattr(p, "data", p.data * 2),
        lambda p: p.numpy().__imul__(2),
    ],
    ids=["in place", "through .data", "another .data", "through numpy"],
)
def test_a_changed_weight_is_noticed_by_a_call_without_gradients(change, which):
    layer, x = layer_of()
    with torch.no_grad():
        before = layer(x)[0]
        change([*layer.parameters()][which])
        now = layer(x)[0]
        layer._kept.clear()
        assert torch.equal(now, layer(x)[0])
    assert not torch.equal(now, before)


def test_a_loop_over_single_steps_packs_its_weights_once(monkeypatch):
    layer, x = layer_of(H=40)
    packed = []
    pack = native.weights.pack
    monkeypatch.setattr(native.weights, "pack", lambda *a: packed.append(1) or pack(*a))

    def gradients():
        h, outputs = None, []
        for x_t in x:
            output, h = layer(x_t.unsqueeze(0), h)
            outputs.append(output)
        return torch.autograd.grad(torch.cat(outputs).square().sum(), [*layer.parameters()])

    with torch.no_grad():
        layer.weight_hh_l0.add_(0.1)
    found = gradients()
    assert len(packed) == 1
    expected = torch.autograd.grad(layer(x)[0].square().sum(), [*layer.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        layer.weight_hh_l0.data.mul_(2)  # (past its version)
    for a, b in zip(gradients(), found, strict=True):
        assert not torch.equal(a, b)


def test_hooks_for_saved_tensors_see_all_of_them():
    layer, x = layer_of()
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: seen.append(v) or v, lambda v: v):
        output = layer(x)[0]
    assert not is_short(output)
    assert any(v is layer.weight_hh_l0 for v in seen)


def test_whatever_is_out_of_the_ordinary_takes_the_long_road():
    layer, x = layer_of()
    h_0 = torch.zeros(1, 4, 5)

    def short(x=x, h_0=None, parameters=layer._parameters, batch_first=False):
        return native.quick_gru(layer._kept, x, h_0, parameters, batch_first) is not None

    assert short()
    assert short(h_0=h_0)
    for odd in (
        "x",
        None,
        x.double(),
        x.to("meta"),
        x[0],
        x[:, :, :2],
        x[:0],
        x[:, :0],
        torch.nn.Parameter(x),
    ):
        assert not short(odd)
    assert not short(torch._neg_view(x))
    for odd in ("h", h_0.double(), h_0[0], h_0[:, :3], h_0.expand(2, 4, 5), torch._neg_view(h_0), h_0.to("meta")):
        assert not short(h_0=odd)
    assert not short(parameters=dict(reversed(layer._parameters.items())))
    assert not short(parameters=dict(list(layer._parameters.items())[:3]))
    assert not short(parameters=layer._parameters | {"more": layer.bias_hh_l0})
    assert not short(parameters=[*layer.parameters()][:3])
    assert not short(torch.zeros(6, quick.MOST // 30 + 1, 3))
    with FlopCounterMode(display=False):
        assert not short()
    with torch.autograd.forward_ad.dual_level():
        assert not short()
    with torch.autocast("cpu", torch.bfloat16):
        assert not short()
    found = []
    vmap(lambda v: found.append(short()) or v)(x)
    torch.jit.trace(lambda v: found.append(short()) or v, x, check_trace=False)
    assert not any(found)
    assert short()


def test_other_sizes_from_call_to_call_are_no_matter():
    layer, _ = layer_of(batch_first=True)
    other, _ = layer_of(batch_first=True)
    for B, T in ((4, 6), (2, 3), (2, 3), (3, 2), (1, 1), (1, 6), (4, 6)):
        x = torch.randn(B, T, 3, requires_grad=True)
        other._kept.clear()
        for a, b in zip(
            *(torch.autograd.grad(v(x)[0].square().sum(), [x, *v.parameters()]) for v in (layer, other)), strict=True
        ):
            assert torch.equal(a, b)


def test_inference_mode_and_other_calls_may_take_turns():
    layer, x = layer_of()
    for _ in range(3):
        with torch.inference_mode():
            output = layer(x)[0]
            assert output.is_inference()
        found = layer(x)[0]
        assert not found.is_inference()
        assert torch.equal(found, output)
        found.sum().backward()
        assert not layer.weight_hh_l0.grad.is_inference()


def test_a_loss_that_is_kept_does_not_keep_x():
    layer, _ = layer_of()
    x = torch.randn(6, 4, 3)
    output = layer(x)[0]
    assert is_short(output)
    seen, loss = weakref.ref(x), output.sum()
    loss.backward()
    del x
    assert seen() is None
    assert loss.grad_fn is not None


def test_a_layer_whose_hook_holds_it_is_collected():
    layer, x = layer_of()
    layer.weight_hh_l0.register_hook(lambda d, layer=layer: d)
    layer(x)[0].sum().backward()
    seen = weakref.ref(layer)
    del layer
    gc.collect()
    assert seen() is None


@pytest.fixture
def busy_switching():
    """Threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("call", ["inference", "gradients", "step"])
def test_several_threads_may_call_one_layer_at_once_each_with_its_own_sizes(call, busy_switching):
    layer = tidegate.GRU(4, 16)
    xs = [torch.randn(t, b, 4) for t, b in [(2, 1), (40, 8), (20, 16), (5, 50)]]

    def run(x):
        if call == "step":
            with torch.no_grad():
                return layer.step(x[0], torch.zeros(1, x.size(1), 16))[0]
        with torch.set_grad_enabled(call == "gradients"):
            return layer(x)[0]

    expected = [run(x) for x in xs]
    wrong = []

    def work(first):
        for i in range(1500):
            k = (first + i * 7) % 4
            if not torch.equal(run(xs[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def narrowed(layer):
    layer.bfloat16()


def cut(layer):
    layer.weight_hh_l0.data = layer.weight_hh_l0.data[:1]


def widened(layer):
    layer.double()


@pytest.mark.parametrize("change", [narrowed, cut, widened])
@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize("options", [{}, {"reset": "before", "num_layers": 2}], ids=str)
def test_weights_of_another_type_or_shape_at_backward_are_refused(change, short, options):
    layer, x = layer_of(**options)
    if not short:
        layer._kept.clear()
    loss = layer(x)[0].square().sum()
    change(layer)
    with pytest.raises(ShapeError, match=r"a weight is .* expected .* none between forward and backward"):
        loss.backward()


def test_a_cell_and_a_product_refuse_them_too():
    cell, mingru, x = tidegate.GRUCell(3, 5), tidegate.MinGRU(3, 5), torch.randn(4, 2, 3)
    for layer, loss in ((cell, cell(x[0]).sum()), (mingru, mingru(x)[0].sum())):
        layer.bfloat16()
        with pytest.raises(ShapeError, match=r"a weight (is|became) .* between forward and backward"):
            loss.backward()
