"""ONNX files in OpenVINO."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import runs
from tests.helpers.onnx_files import CLOSE, assert_same, batch_for, file_of, in_float32, openvino_answers

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("count", [1, 3, 24])
@pytest.mark.parametrize("name", runs.CASES)
def test_openvino_gives_the_models_outputs_in_float32(name, count, openvino):
    run = runs.run_of(name)
    for with_state in (False, True):
        batch = in_float32(run, batch_for(name, count, with_state))
        found = openvino_answers(file_of(name, codes=True), batch)
        if run.preprocessing.target.task == "number":  # its float64 outputs hold float32 numbers
            target = run.preprocessing.target
            room = np.abs(np.array(target.means)) * 2**-22 / np.array(target.stds)
            inside = batch.inside if run.preprocessing.per == "step" else slice(None)
            away = np.abs(found["prediction"] - batch.prediction)[inside] / np.array(target.stds)
            assert (away <= CLOSE + room).all()
            found["prediction"] = batch.prediction
        assert_same(run, batch, found, codes=True)


def test_openvino_keeps_of_values_far_from_0_what_the_notes_say(tmp_path, openvino):
    run = runs.run_of("one number")
    batch = runs.batch_of(run, runs.table_of("one number"))
    away = np.abs(openvino_answers(file_of("one number", codes=True), batch)["scores"] - batch.scores)[batch.inside]
    assert CLOSE < away.max() < 2e-3  # ONNX Runtime: less than CLOSE
    said = run.export("onnx", tmp_path / "model.onnx", codes=True).notes[-1]
    assert "far (1e-03)" in said


def test_openvino_reads_no_text(openvino):
    with pytest.raises(Exception, match="LabelEncoder"):
        openvino.Core().read_model(file_of("class"))
