"""The native back end's first and second derivatives, and what it keeps for them."""

from __future__ import annotations

import pytest
import torch

import tidegate
from tests.helpers.native import layer_of
from tidegate.ops.gru import native

# Every test of this file runs on every instruction set of this machine.
pytestmark = pytest.mark.usefixtures("every_isa")


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


# ------------------------------------------------------------------------------------------- backward of backward


def second_order(backend, run):
    layer = tidegate.GRU(3, 4, bidirectional=True, dtype=torch.float64)
    torch.manual_seed(0)
    for p in layer.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    layer.backend = backend
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    result = run(layer, x)
    first = [g for g in torch.autograd.grad(result, inputs, create_graph=True, allow_unused=True) if g is not None]
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
    return [*first, *(g for g in second if g is not None)]


def two_calls(layer, x):
    h = layer(x)[1]
    return layer(x * 2, h)[0].square().sum()


def tied(layer, x):
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    return layer(x)[0].square().sum()


def negative(layer, x):
    """The registered operator's road."""
    return layer(torch._neg_view(x))[0].square().sum()


def cells(layer, x):
    cell = tidegate.GRUCell(3, 4, dtype=torch.float64, backend=layer.backend)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(layer, f"{name}_l0"))
    h = torch.zeros(2, 4, dtype=torch.float64)
    for x_t in x:
        h = cell(x_t, h)
    return h.sum() + sum(p.sum() for p in layer.parameters())


@pytest.mark.parametrize("run", [two_calls, tied, negative, cells], ids=lambda f: f.__name__)
def test_second_derivatives_are_the_references_when_inputs_depend_on_each_other(run):
    for a, b in zip(second_order("native", run), second_order("reference", run), strict=True):
        torch.testing.assert_close(a, b)
