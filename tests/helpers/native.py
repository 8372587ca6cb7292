"""Layers of the native back end, on every instruction set and any number of threads."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

import tidegate
from tidegate.ops.gru import native

ISAS = native.isas()
# Those that differ in float32 and float64, too. The others have instructions for bfloat16 and 8 bits.
FLOAT_ISAS = [name for name in ISAS if not name.endswith(("_amx", "_bf16"))]
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


# What bits must not depend on. data: hypothesis's.


def assert_rows_alone(layer, x, h_0, data):
    """Some rows of a batch have the bits that they have in it."""
    output, h_n = layer(x, h_0)
    B = x.size(1)
    rows = data.draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=B, unique=True))
    some, h_some = layer(x[:, rows], h_0[:, rows])
    assert torch.equal(some, output[:, rows])
    assert torch.equal(h_some, h_n[:, rows])


def assert_cut(layer, x, h_0, data):
    """Chunks have the bits of one call; with and without gradients, and so with and without kept weights, it is the same kernel."""
    output, h_n = layer(x, h_0)
    T, parts, h = x.size(0), [], h_0
    cuts = sorted(data.draw(st.sets(st.integers(0, T))))
    for first, last in zip([0, *cuts], [*cuts, T], strict=True):
        with torch.set_grad_enabled(first % 2 == 0):
            part, h = layer(x[first:last], h)
        parts.append(part)
    assert torch.equal(torch.cat(parts), output)
    assert torch.equal(h, h_n)


def assert_steps(layer, x, h_0=None):
    """Steps have the bits of one call."""
    (output, h_n), h = layer(x, h_0), h_0
    for x_t, y in zip(x, output, strict=True):
        found, h = layer.step(x_t, h)
        assert torch.equal(found, y)
    assert torch.equal(h, h_n)
