"""Layers of every kind that can be converted, with weights that show what went wrong; shared with tests/peers."""

from __future__ import annotations

import itertools

import pytest
import torch

import tidegate

I, H = 3, 5


def kinds(layers=(1, 2, 3), resets=("after", "before")):
    """A parametrisation: the options of every kind of layer."""
    options = [
        {"num_layers": n, "bidirectional": bidirectional, "bias": bias, "reset": reset}
        for n, bidirectional, bias, reset in itertools.product(layers, (False, True), (True, False), resets)
    ]
    names = [
        f"{o['num_layers']} layers{' both ways' * o['bidirectional']}{'' if o['bias'] else ' no bias'} {o['reset']}"
        for o in options
    ]
    return pytest.mark.parametrize("kind", options, ids=names)


def spread(layer, seed=0):
    """The layer with normal weights: no gate, layer or direction like another, and biases that count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return layer


def ours(seed=0, **options):
    return spread(tidegate.GRU(I, H, **options), seed)
