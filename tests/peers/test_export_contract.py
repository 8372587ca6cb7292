"""ONNX's and Keras' files take and give what the contract of exports says: names, dtypes, axes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.contracts import described, promised
from tests.helpers.exported import model_of
from tests.helpers.onnx_files import session_of
from tests.helpers.runs import CASES, CASES_OF, run_of
from tidegate import keras_models
from tidegate.export import take_apart
from tidegate.export.contract import contract
from tidegate.export.probe import batch

pytestmark = pytest.mark.peers


def contract_of(name, **options):
    run = run_of(name)
    return contract(run.model.spec, run.preprocessing, **options)


def made_up(name):
    parts = take_apart(run_of(name))
    return batch(parts).inputs(parts.missing_text)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_onnx_files_keep_the_contract(name, codes):
    session, (inputs, outputs) = session_of(name, codes), contract_of(name, codes=codes)
    kinds = {"tensor(double)": "float64", "tensor(float)": "float32", "tensor(string)": "text", "tensor(bool)": "bool"}
    for values, declared in ((session.get_inputs(), inputs), (session.get_outputs(), outputs)):
        said = {v.name: (kinds.get(v.type, v.type[7:-1]), tuple(v.shape)) for v in values}
        assert said == {name: tuple(value) for name, value in declared.items()}
        assert list(said) == list(declared)
    found = session.run(list(outputs), {k: made_up(name)[k] for k in inputs})
    assert described(dict(zip(outputs, found, strict=True))) == promised(outputs)


@pytest.mark.parametrize("name", CASES_OF["keras"])
def test_keras_files_keep_the_contract(name):
    keras_models.import_keras("this test", tensorflow=True)
    import tensorflow

    model = model_of(name)
    inputs, outputs = contract_of(name, states_batch_first=True)
    open_axes = {name: tuple(None if isinstance(a, str) else a for a in value.axes) for name, value in inputs.items()}
    assert {name: tuple(value.shape) for name, value in model.input.items()} == open_axes
    dtypes = {name: "text" if value.dtype == "string" else value.dtype for name, value in model.input.items()}
    assert dtypes == {name: value.dtype for name, value in inputs.items()}
    given = made_up(name)
    given["h_0"] = np.swapaxes(given["h_0"], 0, 1)
    found = model({k: tensorflow.constant(given[k]) for k in inputs})
    assert described({k: v.numpy() for k, v in found.items()}) == promised(outputs)
