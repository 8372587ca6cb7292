"""The export commands of docs/ship.md for ONNX and Keras, run as written; what they write is loaded by its own program."""

from __future__ import annotations

import re
import shlex
import warnings

import numpy as np
import onnxruntime
import pytest

from tests.helpers.runs import batch_of, sensors
from tests.helpers.ship import commands, working_directory
from tidegate import keras_models
from tidegate.cli import main
from tidegate.training import load

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return working_directory(tmp_path_factory.mktemp("ship"))


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """A command of the page in that folder; what it prints."""

    def run(command: str) -> str:
        monkeypatch.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as Python does outside of tests
            assert main(shlex.split(command)[1:]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return run


def expected(folder):
    batch = batch_of(load(folder / "runs/sensors"), sensors())
    return batch, {"numbers": batch.numbers, "tokens": batch.tokens, "lengths": batch.lengths, "h_0": batch.h_0}


def test_the_onnx_command_of_the_page_writes_what_onnx_runtime_runs(folder, run):
    (command,) = [c for c in commands() if "onnx" in c]
    assert "Checked with ONNX Runtime" in run(command)
    batch, given = expected(folder)
    session = onnxruntime.InferenceSession(folder / re.search(r"-o (\S+)", command)[1])
    (scores,) = session.run(["scores"], given)
    assert np.abs(scores - batch.scores)[batch.inside].max() < 1e-5


def test_the_keras_command_of_the_page_writes_what_keras_runs(folder, run):
    (command,) = [c for c in commands() if "keras" in c]
    assert "keras.saving.load_model" in run(command)
    keras = keras_models.import_keras("this test", tensorflow=True)
    import tensorflow as tf

    batch, given = expected(folder)
    model = keras.saving.load_model(folder / re.search(r"-o (\S+)", command)[1])
    found = model({name: tf.constant(np.moveaxis(v, 0, 1) if name == "h_0" else v) for name, v in given.items()})
    assert np.abs(found["scores"].numpy() - batch.scores)[batch.inside].max() < 1e-5
