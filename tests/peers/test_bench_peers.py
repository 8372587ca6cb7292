"""The GRUs that `tidegate bench` writes for other programs are the same GRU as ours."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.helpers.bench import SHAPES, as_cell, checked
from tidegate.bench import case
from tidegate.bench.peers import PEERS, onnx_model
from tidegate.bench.shapes import Cell, Shape

HERE = [(name, kind) for name in ("onnxruntime", "jax", "keras") for kind in PEERS[name].kinds()]
pytestmark = pytest.mark.peers


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "kind"), HERE)
def test_its_numbers_are_right(name, kind, shape):
    assert not PEERS[name].missing()
    error, passed = checked(PEERS[name](1), case.make(as_cell(kind, shape)))
    assert passed
    assert error < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_onnx_file_is_valid_and_takes_any_batch_and_number_of_steps(shape):
    model = onnx_model(case.make(Cell("forward", shape)))
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    other = case.make(Cell("forward", Shape(shape.B + 2, shape.T + 3, shape.I, shape.H, shape.layers)))
    assert all(np.array_equal(other.weights[n], w) for n, w in case.make(Cell("forward", shape)).weights.items())
    (output,) = session.run(["output"], {"x": other.x, "h_0": other.h_0})
    assert case.check({"output": output}, case.truth(other))[1]
