"""ONNX files of the small runs, in ONNX Runtime and OpenVINO, and what they must give."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import tidegate
from tests.helpers import runs
from tests.helpers.tables import QUICK

FOLDER = Path(tempfile.mkdtemp(prefix="tidegate-onnx-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
# Over all cases and batches ONNX Runtime's scores and states were at most 2.9e-6 away from the model's (at H=33; else 1e-6),
# and OpenVINO's 5.0e-6 from those of a model that standardises in float32, as it does itself. Gates swapped, biases or masks
# dropped and lengths shifted all led further than 0.01.
CLOSE = 1e-5


@functools.cache
def file_of(name, codes=False):
    path = FOLDER / f"{runs.CASES.index(name)}{'-codes' * codes}.onnx"
    return runs.run_of(name).export("onnx", path, **({"codes": True} if codes else {})).path


@functools.cache
def session_of(name, codes=False):
    return open_session(file_of(name, codes))


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more wait for each other, and for other tests
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers(session, given):
    """Outputs by name; of `given`, a dictionary or a runs.Batch, what the file asks for."""
    given = given if isinstance(given, dict) else vars(given)
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, {value.name: given[value.name] for value in session.get_inputs()})
    return dict(zip(names, found, strict=True))


def some_sequences(name, count):
    every = runs.batch_of(runs.run_of(name), runs.table_of(name))
    # The first ones, but of one alone the longest.
    return [int(every.lengths.argmax())] if count == 1 else list(range(count))


def a_state(run, B):
    spec = run.model.spec
    runs = spec.num_layers * (2 if spec.bidirectional else 1)
    return np.random.default_rng(B).uniform(-1, 1, (runs, B, spec.hidden_size)).astype(np.float32)


@functools.cache
def batch_for(name, count, with_state):
    """Not to be changed: others read it too."""
    run = runs.run_of(name)
    h_0 = a_state(run, count) if with_state else None
    return runs.batch_of(run, runs.table_of(name), some_sequences(name, count), h_0)


def assert_same(run, batch, found, close=CLOSE, codes=False):
    pre = run.preprocessing
    inside = batch.inside if pre.per == "step" else slice(None)
    assert set(found) == {"prediction", "scores", "h_n"} | (set() if pre.target.task == "number" else {"probabilities"})
    for name in ("scores", "probabilities", "h_n"):
        if name in found:
            where = slice(None) if name == "h_n" else inside
            assert found[name].dtype == np.float32
            assert found[name].shape == getattr(batch, name).shape
            np.testing.assert_allclose(found[name][where], getattr(batch, name)[where], rtol=0, atol=close)
    prediction, expected = found["prediction"], batch.prediction
    assert prediction.shape == expected.shape
    if pre.target.task == "number":
        assert prediction.dtype == np.float64
        away = np.abs(prediction[inside] - expected[inside]) / np.array(pre.target.stds)
        assert away.max() <= close
    elif pre.target.task == "class" and not codes:
        assert prediction[inside].tolist() == np.array(pre.target.classes, object)[expected][inside].tolist()
    else:
        assert prediction.dtype == np.int64
        np.testing.assert_array_equal(prediction[inside], expected[inside])


def a_run(tmp_path, frame, **settings):
    given = QUICK | {"epochs": 1, "group": "device", "time": "t"} | settings
    run = tidegate.train(frame, out=tmp_path / "run", **given)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(3)
    return run


def exported(run, tmp_path, **options):
    result = run.export("onnx", tmp_path / "model.onnx", **options)
    return result, open_session(result.path)


FAR = [np.nan, np.inf, -np.inf, 1e300]


def read_as_missing(answer, run):
    """`answer` of the codes' batch, for each of FAR in place of all numbers of a step."""
    batch = runs.batch_of(run, runs.table_of("class"), [5, 1, 2])
    found = []
    for value in FAR:
        batch.numbers[:, 0] = value
        found.append(answer(batch))
    assert np.isfinite(found[0]).all()
    for value, other in zip(FAR[1:], found[1:], strict=True):
        np.testing.assert_array_equal(other, found[0], err_msg=str(value))


@functools.cache
def compiled(path):
    import openvino

    # Else it computes in bfloat16 where the processor can.
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_answers(path, given):
    model = compiled(path)
    found = model({name: value for name, value in vars(given).items() if any(name in i.names for i in model.inputs)})
    names = ("prediction", "probabilities", "scores", "h_n")
    return {name: found[name] for name in names if any(name in o.names for o in model.outputs)}


def in_float32(run, batch):
    """The batch with what the model gives if numbers are standardised in float32, as OpenVINO does."""
    columns = run.preprocessing.numbers
    mean, std = (np.array([getattr(c, key) for c in columns], np.float32) for key in ("mean", "std"))
    missing = np.isnan(batch.numbers)
    scaled = np.where(missing, 0, (batch.numbers.astype(np.float32) - mean) / std).astype(np.float32)
    mask = missing[..., [k for k, c in enumerate(columns) if c.mask]].astype(np.float32)
    encoded = torch.from_numpy(np.concatenate([scaled, mask], axis=-1)).transpose(0, 1)
    codes, lengths, h_0 = torch.from_numpy(batch.codes).transpose(0, 1), batch.lengths, torch.from_numpy(batch.h_0)
    with torch.no_grad():
        scores = run.model(encoded, codes, torch.from_numpy(lengths), h_0)[0]
        ends = [
            run.model(encoded[:n, b : b + 1], codes[:n, b : b + 1], torch.tensor([n]), h_0[:, b : b + 1])[1]
            for b, n in enumerate(lengths.tolist())
        ]
    pre = run.preprocessing
    scores = scores.transpose(0, 1) if pre.per == "step" else scores
    prediction = batch.prediction
    if pre.target.task == "number":
        prediction = scores.double().numpy() * np.array(pre.target.stds) + np.array(pre.target.means)
    probabilities = {"class": torch.softmax(scores, -1), "labels": torch.sigmoid(scores)}.get(pre.target.task)
    return dataclasses.replace(
        batch,
        scores=scores.numpy(),
        h_n=torch.cat(ends, 1).numpy(),
        prediction=prediction,
        probabilities=None if probabilities is None else probabilities.numpy(),
    )
