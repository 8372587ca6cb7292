"""Layers of the native back end, on every instruction set and any number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

import tidegate
from tidegate.ops.gru import native

ISAS = native.isas()
examples = settings(max_examples=20, deadline=None, derandomize=True)


def on_threads(n, run):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def layer_of(I, H, seed=0, **options):
    torch.manual_seed(seed)
    layer = tidegate.GRU(I, H, **options, backend="native")
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, p.size(-1) ** -0.5)
    return layer


def gradients(layer, x, h_0=None):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output, h_n = layer(x, h_0)
    torch.manual_seed(9)
    torch.autograd.backward([output, h_n], [torch.randn_like(output), torch.randn_like(h_n)])
    return [output.detach(), h_n.detach(), x.grad, *(p.grad for p in layer.parameters())]


# ------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_are_right_by_finite_differences(bidirectional, packed):
    layer = layer_of(3, 5, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    sizes = torch.tensor([3, 2, 2, 1]) if packed else None
    D = 1 + bidirectional

    def run(x, h_0, *weights):
        return native.gru(x, h_0, list(weights), num_layers=2, bidirectional=bidirectional, batch_sizes=sizes)

    x = torch.randn((8, 3) if packed else (4, 3, 3), dtype=torch.float64, requires_grad=True)
    h_0 = torch.randn(2 * D, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, h_0, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, h_0, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.ones(1).expand(d),
        lambda d: torch.randn(d[0], 1, d[2]).expand(d),
        lambda d: torch.randn(*d[:2], 1).expand(d),
        lambda d: torch.randn(d[1], d[0], d[2]).transpose(0, 1),
        lambda d: torch.randn(d[0], d[1], 2 * d[2])[..., ::2],
    ],
    ids=["one value", "all rows alike", "all units alike", "batch first", "every other"],
)
def test_gradients_that_arrive_in_odd_strides_are_read_right(make):
    layer = layer_of(3, 5, bidirectional=True)
    x = torch.randn(4, 2, 3, requires_grad=True)
    d = make((4, 2, 10))
    inputs = [x, *layer.parameters()]
    strange = torch.autograd.grad(layer(x)[0], inputs, d)
    plain = torch.autograd.grad(layer(x)[0], inputs, d.contiguous())
    for a, b in zip(strange, plain, strict=True):
        assert torch.equal(a, b)


def test_backward_keeps_no_more_than_four_values_a_unit_besides_output_and_x():
    T, B, I, H = 20, 3, 4, 32
    layer = layer_of(I, H)
    x = torch.randn(T, B, I)
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output, h_n = layer(x)
    for known in (x, output, h_n, *layer.parameters()):
        kept.pop(known.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) <= 4 * (4 * T * B * H + B * H)  # bytes; h_0 is the rest
