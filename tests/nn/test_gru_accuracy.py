"""The promise of the design, section 8: against a float64 run, our error is at most twice torch's, at the shapes that
`tidegate bench` names, their whole length."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.layers import assert_at_most_twice, errors, pair, values_and_gradients
from tidegate.bench.shapes import GRID
from tidegate.ops.gru import native


@pytest.mark.one_in(5)
@pytest.mark.parametrize("shape", GRID, ids=str)
def test_at_most_twice_the_error_of_torch_at_the_named_shapes(shape):
    ours, theirs = pair("native", shape.I, shape.H, shape.layers)
    x = torch.randn(shape.T, shape.B, shape.I)
    h_0 = torch.randn(shape.layers, shape.B, shape.H)
    of_ours, of_torch = values_and_gradients(ours, x, h_0), values_and_gradients(theirs, x, h_0)
    exact = values_and_gradients(theirs.double(), x.double(), h_0.double())
    mine, its = (errors(values, exact, torch.float32) for values in (of_ours, of_torch))
    assert_at_most_twice(mine.values(), its.values())
    assert all(e < 1e-4 for e in mine.values()), mine


@pytest.mark.parametrize("isa", native.isas() if native.missing() is None else [])
def test_every_instruction_set_is_as_accurate(isa):
    before = native.isa()
    native.set_isa(isa)
    try:
        for shape in GRID[:4]:
            test_at_most_twice_the_error_of_torch_at_the_named_shapes(shape)
    finally:
        native.set_isa(before)
