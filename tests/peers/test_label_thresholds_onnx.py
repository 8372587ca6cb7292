"""ONNX Runtime decides labels by the run's thresholds."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import tidegate
from tests.helpers.tables import QUICK, assert_decided_by, two_labels

pytestmark = pytest.mark.peers


def test_onnx_runtime_decides_by_the_thresholds(tmp_path):
    how = QUICK | {"group": "device", "time": "t", "label_thresholds": "f1", "epochs": 8}
    run = tidegate.train(two_labels(), target=["up", "rare", "never"], out=False, **how)
    run.export("onnx", tmp_path / "m.onnx")
    given = {
        "numbers": np.random.default_rng(0).standard_normal((2, 40, 1)),
        "tokens": np.full((2, 40, 1), "red", object),
        "lengths": np.array([40, 40]),
        "h_0": np.zeros((1, 2, 8), np.float32),
    }
    predicted, scores = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(["prediction", "scores"], given)
    assert_decided_by(run, scores, predicted)
