"""What every format but C takes and gives: as the page of `tidegate.export` says, and as PyTorch's files do.

ONNX and Keras are held to it in tests/peers/test_export_contract.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.contracts import B, T, described, promised
from tests.helpers.exported import program
from tests.helpers.runs import CASES, CASES_OF, run_of
from tidegate.export import take_apart
from tidegate.export.contract import Value, contract
from tidegate.export.probe import batch


def contract_of(name: str, **options: bool):
    run = run_of(name)
    return contract(run.model.spec, run.preprocessing, **options)


def test_classes_of_each_row_in_words() -> None:
    inputs, outputs = contract_of("class")
    assert inputs == {
        "numbers": Value("float64", ("B", "T", 4)),
        "tokens": Value("text", ("B", "T", 2)),
        "lengths": Value("int64", ("B",)),
        "h_0": Value("float32", (1, "B", 8)),
    }
    assert outputs == {
        "prediction": Value("text", ("B", "T", 1)),
        "probabilities": Value("float32", ("B", "T", 1, 2)),
        "scores": Value("float32", ("B", "T", 1, 2)),
        "h_n": Value("float32", (1, "B", 8)),
    }


def test_one_class_a_sequence_as_codes_with_states_batch_first() -> None:
    inputs, outputs = contract_of("sequence last both ways", codes=True, states_batch_first=True)
    assert inputs["codes"] == Value("int64", ("B", "T", 2))
    assert "tokens" not in inputs
    assert outputs["prediction"] == Value("int64", ("B", 1))
    assert outputs["probabilities"] == Value("float32", ("B", 1, 2))
    assert inputs["h_0"] == outputs["h_n"] == Value("float32", ("B", 4, 8))


def test_numbers_ahead_have_no_probabilities_and_labels_are_whole_numbers() -> None:
    inputs, outputs = contract_of("forecast of two")
    assert list(inputs) == ["numbers", "lengths", "h_0"]
    assert list(outputs) == ["prediction", "scores", "h_n"]
    assert outputs["prediction"] == Value("float64", ("B", "T", 2, 2))
    assert contract_of("labels").outputs["prediction"] == Value("int64", ("B", "T", 1, 2))


def test_a_class_comes_in_its_own_type() -> None:
    assert contract_of("whole-number classes").outputs["prediction"].dtype == "int64"
    assert contract_of("yes/no").outputs["prediction"].dtype == "bool"


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", CASES)
def test_made_up_sequences_are_as_the_contract_says(name: str) -> None:
    parts = take_apart(run_of(name))
    every = batch(parts).inputs(parts.missing_text)
    assert (len(every["lengths"]), every["lengths"].max()) == (B, T)
    for codes in (False, True):
        inputs = contract_of(name, codes=codes).inputs
        assert described({k: every[k] for k in inputs}) == promised(inputs)


@pytest.mark.one_in(29)
@pytest.mark.parametrize("name", CASES_OF["pt2"])
def test_pytorchs_files_keep_the_contract(name: str) -> None:
    parts = take_apart(run_of(name))
    inputs, outputs = contract_of(name, codes=True)
    every = batch(parts).inputs(parts.missing_text)
    found = program(name)(**{k: torch.from_numpy(every[k]) for k in inputs})
    assert described({k: v.detach().numpy() for k, v in found.items()}) == promised(outputs)
