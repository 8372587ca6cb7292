"""The right answer, and the gate that holds a peer against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tidegate.bench import case
from tidegate.bench.shapes import Cell, Shape

SHAPE = Shape(B=3, T=5, I=4, H=6, layers=2)


def double_gru(given):
    gru = torch.nn.GRU(SHAPE.I, SHAPE.H, SHAPE.layers, dtype=torch.float64)
    gru.load_state_dict({name: torch.from_numpy(w) for name, w in given.weights.items()})
    return gru


def test_the_truth_is_what_torch_computes_in_float64_outputs_and_gradients():
    given = case.make(Cell("train", SHAPE))
    gru = double_gru(given)
    output = gru(torch.from_numpy(given.x).double())[0]
    output.backward(torch.from_numpy(given.d_output).double())
    right = case.truth(given)
    assert list(right) == ["output", *given.weights]
    np.testing.assert_allclose(right["output"], output.detach().numpy(), rtol=1e-12)
    for name, weight in gru.named_parameters():
        np.testing.assert_allclose(right[name], weight.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_the_truth_of_a_step_is_that_after_several_with_the_state_handed_on():
    given = case.make(Cell("step", Shape(3, 1, 4, 6, 2)))
    gru, x, h_n = double_gru(given), torch.from_numpy(given.x).double(), None
    outputs = []
    for _ in range(case.GATE_STEPS):
        output, h_n = gru(x, h_n)
        outputs.append(output[0].detach().numpy())
    right = case.truth(given)["output"]
    np.testing.assert_allclose(right, outputs[-1], rtol=1e-12)
    assert np.max(np.abs(right - outputs[-2])) > 100 * case.BOUNDS["output"]  # one step less would be noticed


def test_every_gate_and_every_row_has_weights_and_gradients_of_its_own():
    given = case.make(Cell("train", SHAPE))
    for array in (*given.weights.values(), given.x, given.d_output):
        assert len(np.unique(array)) == array.size
        assert array.dtype == np.float32


def test_the_gate_takes_the_worst_tensor_relative_to_its_largest_value():
    right = {"output": np.array([0.5, -2.0]), "weight_hh_l0": np.array([10.0, 1.0])}
    found = {"output": np.array([0.5, -2.0001]), "weight_hh_l0": np.array([10.0, 1.005])}
    error, passed = case.check(found, right)
    assert error == pytest.approx(5e-4)
    assert passed


@pytest.mark.parametrize("name", ["output", "weight_ih_l0"])
def test_a_tensor_beyond_its_bound_does_not_pass(name):
    bound = case.BOUNDS["output" if name == "output" else "gradient"]
    right = {name: np.array([1.0, 0.0])}
    assert case.check({name: np.array([1.0, 0.99 * bound])}, right)[1]
    assert not case.check({name: np.array([1.0, 1.01 * bound])}, right)[1]


def test_a_nan_does_not_pass_wherever_it_is():
    right = {"output": np.ones(2), "weight_ih_l0": np.ones(2), "weight_hh_l0": np.ones(2)}
    for name in right:
        error, passed = case.check(right | {name: np.array([1.0, np.nan])}, right)
        assert np.isnan(error)
        assert not passed


def test_a_missing_tensor_or_another_shape_raises():
    right = {"output": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"output is missing, expected \(2, 3\)"):
        case.check({}, right)
    with pytest.raises(ValueError, match=r"output has shape \(3, 2\), expected \(2, 3\)"):
        case.check({"output": np.ones((3, 2))}, right)
