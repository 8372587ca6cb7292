"""Layers of every kind that can be converted, with weights that show what went wrong; shared with tests/peers."""

from __future__ import annotations

import itertools

import numpy as np
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


def options_of(layer):
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    return {name: getattr(layer, name) for name in names} | {"training": layer.training}


def assert_same_values(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert torch.equal(value, b[name]), name


def assert_same_arrays(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=True)


def arrays_of(operator):
    return [operator.W, operator.R] if operator.B is None else [operator.W, operator.R, operator.B]
