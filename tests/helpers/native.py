"""Layers of the native back end, on every instruction set and any number of threads."""

from __future__ import annotations

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
