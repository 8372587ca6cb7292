"""Training without a folder: `fit`, `tidegate.train(out=False)`, and the folder that `run.save` writes of it."""

from __future__ import annotations

import os

import pytest
import torch

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.errors import Interrupted, RunError, SettingsError
from tidegate.trained import Trained, TrainSettings
from tidegate.training import fit

pytestmark = pytest.mark.usefixtures("ctrl_c")

SETTINGS = QUICK | ROLES | {"baselines": True}


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty working directory, which must stay empty."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert os.listdir(tmp_path) == []


def test_fit_takes_data_and_settings_and_writes_nothing(nowhere, signals):
    settings = TrainSettings.make(**{k: v for k, v in SETTINGS.items() if k != "progress"})
    trained = fit(signals, settings)
    assert type(trained) is Trained
    assert trained.folder is None
    assert trained.settings is settings
    assert trained.resolved.finished
    assert len(trained.history) == 2
    assert trained.results.model.count > 0
    assert trained.no_memory.model.core is None


def test_a_run_in_memory_has_the_bits_of_one_in_a_folder(tmp_path, signals):
    memory = tidegate.train(signals, out=False, **SETTINGS)
    folder = tidegate.train(signals, out=tmp_path / "run", **SETTINGS)
    assert same_weights(memory, folder)
    assert memory.fingerprint == folder.fingerprint == tidegate.load(tmp_path / "run").fingerprint
    assert memory.results.to_dict() == folder.results.to_dict()
    assert memory.predict(signals).equals(folder.predict(signals))
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in (memory, folder)
    ]
    assert without_time[0] == without_time[1]


def test_a_run_in_memory_has_the_weights_of_its_best_epoch_not_of_the_last(tmp_path, signals):
    settings = QUICK | ROLES | {"epochs": 12, "lr": 0.2, "schedule": "constant", "patience": 0}
    memory = tidegate.train(signals, out=False, **settings)
    assert memory.resolved.best_epoch < memory.resolved.epochs_run == 12
    tidegate.train(signals, out=tmp_path / "run", **settings)
    assert same_weights(memory, tidegate.load(tmp_path / "run"))


def test_a_run_in_memory_evaluates_streams_is_inspected_and_exported(nowhere, signals, tmp_path_factory):
    run = tidegate.train(signals, out=False, **SETTINGS)
    assert "same head, no recurrence" in run.evaluate(signals).baselines
    rows = signals.filter(signals["device"] == "d0").to_dicts()
    answers = [run.stream().push(rows[0])["prediction"]]
    assert answers == run.predict(signals)["prediction"].to_list()[:1]
    assert run.inspect(signals).run == "the run in memory"
    assert "in memory" in repr(run)
    with pytest.raises(SettingsError, match="has no folder to be named after, so name the file"):
        run.export("pt2")
    file = tmp_path_factory.mktemp("exports") / "m.pt2"
    assert run.export("pt2", file).path.exists()


def test_a_saved_run_is_the_folder_that_training_writes_but_for_checkpoints(tmp_path, signals):
    run = tidegate.train(signals, out=False, **SETTINGS)
    run.save(tmp_path / "saved")
    trained = tidegate.train(signals, out=tmp_path / "trained", **SETTINGS)
    files = {
        name: {str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("saved", "trained")
    }
    assert files["saved"] == {name for name in files["trained"] if "checkpoints" not in name}
    assert run.folder == tmp_path / "saved"
    opened = tidegate.load(tmp_path / "saved")
    assert same_weights(opened, trained)
    assert opened.results.to_dict() == trained.results.to_dict()
    assert same_weights(opened.no_memory, trained.no_memory)
    for name in ("preprocessing.json", "results.json", "model.safetensors", "no_memory/model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "trained" / name).read_bytes()


def test_a_run_is_not_saved_over_what_is_there(tmp_path, signals):
    run = tidegate.train(signals, out=False, **(SETTINGS | {"baselines": False}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and is not a run; nothing in it is touched"):
        run.save(tmp_path / "other")
    run.save(tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        run.save(tmp_path / "run")
    run.save(tmp_path / "run", overwrite=True)
    assert (tmp_path / "other" / "diary.txt").read_text() == "mine"


def test_a_run_that_could_not_be_saved_is_still_in_memory(tmp_path, signals, monkeypatch):
    from tidegate.training import journal

    run = tidegate.train(signals, out=False, **(SETTINGS | {"baselines": False}))
    monkeypatch.setattr(journal, "write_report", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.save(tmp_path / "run")
    assert run.folder is None


def test_ctrl_c_in_memory_says_that_nothing_is_left(nowhere, signals):
    with pytest.raises(Interrupted, match=r"in memory alone \(out=False\), so nothing of it is left"):
        tidegate.train(signals, out=False, **(SETTINGS | {"progress": StopAfter(2)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": False, "overwrite": True}, "overwrite replaces a run folder, and out=False writes none"),
        ({"out": False, "resume": True}, "resume needs the run folder"),
        ({"out": True}, "out=True: expected the run folder"),
    ],
)
def test_what_needs_a_folder_says_so(nowhere, signals, options, message):
    with pytest.raises(SettingsError, match=message):
        tidegate.train(signals, **options, **SETTINGS)


def test_a_training_in_memory_leaves_torchs_random_state_alone(nowhere):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    tidegate.train(signal_table(8), out=False, **(SETTINGS | {"baselines": False}))
    assert torch.equal(torch.rand(3), expected)
