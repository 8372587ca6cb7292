"""Run folders that an earlier version wrote open, answer and go on; those of a later one are refused with a sentence.

runs_of_version_1 was written by Tidegate at commit 7b687ac, of 26 November 2026, before files had the options of the core.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, safe_open, save_file

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tidegate.errors import RunError

OLD = Path(__file__).parent / "runs_of_version_1"
KINDS = ["gru", "lstm"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the run of a GRU, to be damaged."""
    return Path(shutil.copytree(OLD / "gru", tmp_path / "gru"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_run_predicts_what_it_predicted_then(kind):
    run = tidegate.load(OLD / kind)
    found = run.predict(OLD / "table.csv", probabilities=True)
    assert_frame_equal(found, pl.read_csv(OLD / f"{kind}.csv"), check_dtypes=False, abs_tol=1e-6, rel_tol=1e-5)
    assert run.resolved.version == 1
    assert run.resolved["table_name"] == "table.csv"
    assert run.history[-1]["epoch"] == 2
    assert run.results.model.count == 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_of_an_earlier_run_is_what_it_was(kind):
    assert tidegate.load(OLD / kind).fingerprint == (OLD / f"{kind}.fingerprint").read_text().strip()


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_file_of_states_is_taken_up(kind):
    stream = tidegate.load(OLD / kind).stream()
    stream.restore(OLD / f"{kind}.state")
    assert stream.state("d0").rows == 1
    answer = stream.push({"x": -0.25, "colour": "green"}, "d0")
    assert answer == json.loads((OLD / f"{kind}.answer.json").read_text())


def test_an_earlier_run_is_scored_beside_the_baseline_that_it_had():
    evaluation = tidegate.load(OLD / "gru").evaluate(OLD / "table.csv", rows="all")
    assert "same head, no recurrence" in evaluation.baselines
    assert "same head, no recurrence" not in tidegate.load(OLD / "lstm").evaluate(OLD / "table.csv").baselines


def test_whole_numbers_ahead_that_an_earlier_version_took_for_classes_stay_classes(tmp_path):
    path = tmp_path / "t.csv"
    signal_table().with_columns(sold=pl.int_range(pl.len()) % 5).write_csv(path)
    roles = {"target": "sold", "group": "device", "time": "t", "horizon": 2}
    folder = tmp_path / "run"
    trained = tidegate.train(path, task="class", out=folder, **(QUICK | roles))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("task: class", "task: auto", 1))
    run = tidegate.load(folder)
    assert run.settings.task == "auto"
    assert run.evaluate(path).model == trained.results.model


def test_an_earlier_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    folder = shutil.copytree(OLD / "interrupted", tmp_path / "run")
    tidegate.train(OLD / "table.csv", out=folder, resume=True, progress=False)
    whole, found = load_file(OLD / "interrupted.whole.safetensors"), load_file(folder / "model.safetensors")
    assert whole.keys() == found.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)  # to the bit on one instruction set


def change(folder: Path, **values) -> None:
    """Put values into `resolved` of config.yaml; `setting` goes beside the settings."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, value in values.items():
        (config["resolved"] if name != "setting" else config)[name] = value
    path.write_text(yaml.safe_dump(config))


def rewrite_header(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tidegate"])
    edit(header)
    save_file(tensors, path, metadata={"tidegate": json.dumps(header)})


def test_a_run_of_a_later_version_is_refused_with_a_sentence(folder):
    change(folder, version=3, tidegate="9.1.0")
    with pytest.raises(RunError, match=r"config.yaml was written by a later version of Tidegate \(9.1.0; .* version 3"):
        tidegate.load(folder)


def test_an_unknown_field_of_what_was_resolved_is_named(folder):
    change(folder, epoch_run=2)
    with pytest.raises(RunError, match=r"unknown field 'epoch_run' under resolved\. Did you mean 'epochs_run'\?"):
        tidegate.load(folder)


def test_an_unknown_setting_is_named_with_the_version_that_wrote_it(folder):
    change(folder, setting=3)
    with pytest.raises(RunError, match=r"config.yaml: There is no setting 'setting'.*written by Tidegate 0.1.0"):
        tidegate.load(folder)


def test_a_model_file_of_a_later_version_is_refused(folder):
    rewrite_header(folder, lambda header: header.update(version=3))
    with pytest.raises(RunError, match=r"model.safetensors was written by another version .* Update this one"):
        tidegate.load(folder)


@pytest.mark.parametrize(("place", "name"), [("model", "'memory'"), ("core", "'core.memory'")])
def test_a_model_file_with_a_field_more_says_which(folder, place, name):
    def edit(header):
        fields = header["model"] if place == "model" else header["model"].setdefault("core", {})
        fields["memory"] = 3

    rewrite_header(folder, edit)
    with pytest.raises(RunError, match=rf"model.safetensors has the unknown field {name}.*update this one"):
        tidegate.load(folder)


def test_a_model_file_with_a_field_less_is_damaged(folder):
    rewrite_header(folder, lambda header: header["model"].pop("hidden_size"))
    with pytest.raises(RunError, match=r"model.safetensors is damaged"):
        tidegate.load(folder)
