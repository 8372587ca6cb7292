"""More epochs on a run that has ended, as if they had been asked for from the start."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import tidegate
from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import Interrupted, RunError, SettingsError
from tidegate.training.progress import Silent

pytestmark = pytest.mark.usefixtures("ctrl_c")


class Notes(Silent):
    def __init__(self) -> None:
        self.text = ""

    def note(self, text: str) -> None:
        self.text += text + "\n"


def history(run) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]


@pytest.fixture
def table(tmp_path, signals):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    return path


@pytest.mark.one_in(2)
@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_two_epochs_and_two_more_are_four_to_the_bit(tmp_path, table, schedule):
    settings = QUICK | ROLES | {"baselines": True, "schedule": schedule}
    whole = tidegate.train(table, out=tmp_path / "whole", **(settings | {"epochs": 4}))
    tidegate.train(table, out=tmp_path / "run", **settings)
    notes = Notes()
    more = tidegate.train(out=tmp_path / "run", resume=True, epochs=4, progress=notes)
    assert "Goes on after epoch 2, to 4 at most, to the bit as if that had been asked for from the start." in notes.text
    assert same_weights(whole, more)
    assert same_weights(whole.no_memory, more.no_memory)
    assert history(whole) == history(more)
    assert whole.results.to_dict() == more.results.to_dict()
    ends = [load_file(tmp_path / name / "checkpoints/last.safetensors") for name in ("whole", "run")]
    assert any(name.startswith("optimizer") for name in ends[0])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    for name in ("model.safetensors", "results.json", "no_memory/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert tidegate.load(tmp_path / "run").settings == whole.settings


def test_the_cosine_schedule_says_what_it_does_and_does_that(tmp_path, table):
    tidegate.train(table, out=tmp_path / "run", **(QUICK | ROLES))
    notes = Notes()
    more = tidegate.train(tmp_path / "run", resume=True, epochs=4, progress=notes)
    # Half of 4 epochs are over: (0.5 - 0.05) / 0.95 of the way from the warm-up to the end, cos² of a quarter turn of that.
    assert (
        "The cosine schedule is that of 4 epochs from here on: the learning rate goes on at 0.0027 (54% of lr)"
        in notes.text
    )
    whole = tidegate.train(table, out=tmp_path / "whole", **(QUICK | ROLES | {"epochs": 4}))
    assert [row["lr"] for row in more.history[2:]] == [row["lr"] for row in whole.history[2:]]
    assert not same_weights(whole, more)


def test_a_larger_patience_goes_on_where_the_smaller_one_stopped(tmp_path, table):
    settings = QUICK | ROLES | {"epochs": 12, "lr": 0.2, "patience": 1}
    whole = tidegate.train(table, out=tmp_path / "whole", **(settings | {"patience": 3}))
    short = tidegate.train(table, out=tmp_path / "run", **settings)
    assert short.resolved.epochs_run < whole.resolved.epochs_run
    with pytest.raises(
        RunError,
        match=r"stopped after epoch \d+, as 1 epochs were no better than epoch \d+, and would stop there with epochs=20 too",
    ):
        tidegate.train(out=tmp_path / "run", resume=True, epochs=20, progress=False)
    with pytest.raises(
        RunError, match=r"there is nothing to resume.*or a patience above 1 \(--patience\), as it stopped after epoch"
    ):
        tidegate.train(out=tmp_path / "run", resume=True, progress=False)
    more = tidegate.train(out=tmp_path / "run", resume=True, patience=3, progress=False)
    assert same_weights(whole, more)
    assert history(whole) == history(more)


def test_where_the_patience_moves_the_plateaus_that_is_told(tmp_path, table):
    tidegate.train(table, out=tmp_path / "run", **(QUICK | ROLES | {"schedule": "plateau"}))
    notes = Notes()
    tidegate.train(out=tmp_path / "run", resume=True, epochs=3, patience=15, progress=notes)
    assert "halved after 3 epochs that were no better, before after 2, as that follows the patience" in notes.text


def test_more_epochs_that_are_interrupted_go_on_to_the_same_bits(tmp_path, table):
    settings = QUICK | ROLES | {"schedule": "constant", "batch_size": 4}
    whole = tidegate.train(table, out=tmp_path / "whole", **(settings | {"epochs": 4}))
    tidegate.train(table, out=tmp_path / "run", **settings)
    with pytest.raises(Interrupted):
        tidegate.train(out=tmp_path / "run", resume=True, epochs=4, progress=StopAfter(6))
    half = tidegate.load(tmp_path / "run")
    assert half.results is None  # those of two epochs are no longer those of these weights
    assert not half.resolved.finished
    assert same_weights(whole, tidegate.train(out=tmp_path / "run", resume=True, progress=False))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_that_was_interrupted_in_its_first_epoch_may_get_more_epochs_too(tmp_path, table, schedule):
    settings = QUICK | ROLES | {"schedule": schedule, "batch_size": 4}
    whole = tidegate.train(table, out=tmp_path / "whole", **(settings | {"epochs": 3}))
    with pytest.raises(Interrupted):
        tidegate.train(table, out=tmp_path / "run", **(settings | {"progress": StopAfter(2)}))
    notes = Notes()
    more = tidegate.train(out=tmp_path / "run", resume=True, epochs=3, progress=notes)
    assert same_weights(whole, more) == (schedule == "constant")
    assert ("to the bit as if" in notes.text) == (schedule == "constant")


def test_a_run_that_went_on_from_another_gets_more_epochs_without_that(tmp_path, table, signals):
    old = tidegate.train(signals, out=False, **(QUICK | ROLES))
    settings = {"from_run": old, "schedule": "constant", "progress": False, "device": "cpu"}
    whole = tidegate.train(table, out=tmp_path / "whole", epochs=2, **settings)
    tidegate.train(table, out=tmp_path / "run", epochs=0, **settings)
    more = tidegate.train(out=tmp_path / "run", resume=True, epochs=2, progress=False)
    assert same_weights(whole, more)
    assert whole.results.to_dict() == more.results.to_dict()


def test_what_makes_no_sense_is_answered_and_leaves_the_run_as_it_was(tmp_path, table):
    folder = tmp_path / "run"
    run = tidegate.train(table, out=folder, **(QUICK | ROLES))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    wrong = [
        (
            {},
            RunError,
            r"is finished; there is nothing to resume\. For more epochs on the same table say how many in all, above 2",
        ),
        ({"epochs": 2}, RunError, "is finished; there is nothing to resume"),
        ({"epochs": 1}, SettingsError, r"epochs=1, but the run was to have 2 \(2 are done\)\. Say more"),
        (
            {"epochs": 4, "patience": 3},
            SettingsError,
            r"patience=3, but the run began with 10\. On resume it can only grow",
        ),
        ({"epochs": 4, "lr": 0.1}, SettingsError, "lr can't change on resume"),
    ]
    for settings, kind, message in wrong:
        with pytest.raises(kind, match=message):
            tidegate.train(out=folder, resume=True, progress=False, **settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(RunError, match="There is no run folder"):
        tidegate.train(tmp_path / "ran", resume=True, progress=False)
    with pytest.raises(RunError, match=r"has no checkpoints/last\.safetensors.*tidegate train TABLE --from"):
        run.save(tmp_path / "copy")
        tidegate.train(table, out=tmp_path / "copy", resume=True, epochs=4, progress=False)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(RunError, match=r"it was removed, or the run was saved from memory"):
        tidegate.train(out=folder, resume=True, epochs=4, progress=False)
