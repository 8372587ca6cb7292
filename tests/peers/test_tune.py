"""`tidegate tune` on Optuna: trials that repeat, test rows that nobody looks at, studies that are shared, stopped, killed and damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest

import tidegate
from tests.helpers.tables import signal_table
from tests.helpers.training import StopAfter
from tests.helpers.tuning import ROLES, SMALL, SPACE, definition
from tidegate.cli import main
from tidegate.data.tables import read_table, write_table
from tidegate.errors import DataError, Interrupted, RunError, SettingsError, TrainingFailed
from tidegate.files import DiskError
from tidegate.training import prepared, trainer
from tidegate.training.progress import Silent
from tidegate.tuning import open_study, study, trial, write_report
from tidegate.tuning.place import Place
from tidegate.tuning.record import Tuned
from tidegate.tuning.space import read_search
from tidegate.tuning.study import Asked, Study

pytestmark = pytest.mark.peers


class Told(Silent):
    """What a person would read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def parted(seed: int = 0) -> pl.DataFrame:
    """Sequences with a split column, so that test rows can be told."""
    part = {f"d{g}": ("train", "valid", "test")[min(2, g // 9)] for g in range(24)}
    return signal_table(seed=seed).with_columns(part=pl.col("device").replace_strict(part))


def search(table: Any, **more: Any) -> Tuned:
    """Four trials of a moment each."""
    return tidegate.tune(table, **(ROLES | SMALL | {"search": SPACE, "trials": 4, "progress": False} | more))


def outcome(tuned: Tuned) -> list[Any]:
    return [(t.number, t.state, t.figure, t.loss, t.settings, t.seed, t.epochs) for t in tuned.trials]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_table(parted(), tmp_path / "t.csv")
    return tmp_path / "t.csv"


# ------------------------------------------------------------------------------------------------ trials


def test_one_process_repeats_to_the_bit_also_where_it_was_stopped_and_went_on(table, tmp_path):
    whole = search(table, study=tmp_path / "a.study", trials=14)
    assert len({str(t.settings) for t in whole.trials}) == 14
    assert len(whole.of("pruned")) < 14
    search(table, study=tmp_path / "b.study", trials=3)
    search(table, study=tmp_path / "b.study", trials=12)
    parts = tidegate.tune(study=tmp_path / "b.study", trials=14, progress=False)
    assert outcome(parts) == outcome(whole)
    assert outcome(search(table, trials=14)) == outcome(whole)  # in memory
    assert outcome(search(table, trials=3, seed=1)) != outcome(whole)[:3]


def test_absurd_test_rows_give_the_same_trials(tmp_path):
    good = parted()
    test = pl.col("part") == "test"
    absurd = good.with_columns(
        x=pl.when(test).then(1e6).otherwise("x"),
        label=pl.when(test).then(pl.lit("up")).otherwise("label"),
        colour=pl.when(test).then(pl.lit("ultraviolet")).otherwise("colour"),
    )
    assert outcome(search(absurd, split="part")) == outcome(search(good, split="part"))


def test_no_trial_scores_a_row_that_is_not_a_validation_row(table, monkeypatch):
    parts = []
    judge = trainer.Loop._judge

    def spied(loop: Any, row: Any) -> Any:
        parts.append("valid")
        return judge(loop, row)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the rows at the end of a training were scored")

    monkeypatch.setattr(trainer.Loop, "_judge", spied)
    monkeypatch.setattr(trainer, "score_rows", never)
    tuned = search(table, trials=2)
    assert len(tuned.of("finished")) == 2
    assert parts == ["valid"] * 8
    with pytest.raises(AssertionError):  # it is there that a training scores them
        tidegate.train(table, **ROLES, **SMALL, out=False, progress=False)


def test_the_first_trial_is_what_the_defaults_train(table):
    run = tidegate.train(table, **ROLES, **SMALL, out=False, progress=False)
    first = search(table, search=None, trials=1).trials[0]
    assert first.defaults
    assert first.settings["hidden_size"] == 128
    best = next(row for row in run.history if row["epoch"] == run.resolved.best_epoch)
    assert (first.figure, first.loss) == (best["valid_accuracy"], best["valid_loss"])


def test_the_command_of_the_best_trial_trains_it_again_to_the_bit(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuned = search(table, study="a.study", trials=6)
    best = max(tuned.of("finished"), key=lambda t: t.number)  # one with a seed of its own
    assert best.seed != 0
    words = shlex.split(tuned.command(best))
    assert words[:3] == ["tidegate", "train", "t.csv"]
    assert main([*words[1:], "--out", "run", "--no-baselines", "--quiet"]) == 0
    run = tidegate.load("run")
    row = next(row for row in run.history if row["epoch"] == run.resolved.best_epoch)
    assert (row["valid_accuracy"], row["valid_loss"]) == (best.figure, best.loss)
    again = tidegate.train(table, **tuned.settings_of(best), out=False, baselines=False, progress=False)
    assert again.history[-1]["valid_loss"] == run.history[-1]["valid_loss"]


def test_a_default_outside_of_the_space_is_the_first_trial_all_the_same(table, tmp_path):
    space = SPACE | {"init": ["orthogonal", "torch"], "num_layers": "2,3"}
    first, *others = search(table, search=space, trials=12, study=tmp_path / "a.study").trials
    assert (first.settings["hidden_size"], first.settings["num_layers"], first.settings["init"]) == (128, 1, "torch")
    assert all(4 <= t.settings["hidden_size"] <= 12 for t in others)
    assert {t.settings["num_layers"] for t in others} == {2, 3}
    learned = Study(Place.of(tmp_path / "a.study"))._all()[0].params  # what Optuna is told of it lies in the space
    assert {"hidden_size", "num_layers"}.isdisjoint(learned)
    assert learned["init"] == "torch"


def test_all_trials_have_the_same_rows_whatever_their_seeds(table, monkeypatch):
    parts = []
    fit = prepared.fit_preprocessing

    def spied(*arguments: Any) -> Any:
        pre, data = fit(*arguments)
        parts.append(data.part.tobytes())
        return pre, data

    monkeypatch.setattr(prepared, "fit_preprocessing", spied)
    tuned = search(table, trials=3)
    assert len({t.seed for t in tuned.trials}) == 3
    assert len(parts) == 3
    assert len(set(parts)) == 1


def test_a_trial_that_cant_be_trained_counts_and_the_report_says_why(table, monkeypatch, tmp_path):
    fit = trial.fit

    def failing(read: Any, settings: Any, **more: Any) -> Any:
        if settings.seed:
            raise TrainingFailed("The loss became nan.")
        return fit(read, settings, **more)

    monkeypatch.setattr(trial, "fit", failing)
    told = Told()
    tuned = search(table, study=tmp_path / "a.study", progress=told, trials=3)
    assert [t.state for t in tuned.trials] == ["finished", "pruned", "pruned"]
    assert tuned.trials[1].why == "The loss became nan."
    assert any(line.startswith("trial 1  stopped: The loss became nan.") for line in told.lines)
    assert "The loss became nan." in (tmp_path / "a.study.html").read_text()


def test_a_figure_of_which_less_is_better_is_minimised(table, tmp_path):
    frame = parted().with_columns(y=pl.col("x").cum_sum().over("device"))
    tuned = tidegate.tune(
        frame, target="y", exclude="label", group="device", time="t", **SMALL, search=SPACE, trials=3, progress=False
    )
    assert tuned.definition.chosen_by == "rmse"
    assert tuned.best.figure == min(t.figure for t in tuned.of("finished"))


# ------------------------------------------------------------------------------------------------ pruning


def begun(place: Place, **changes: Any) -> Study:
    space, _ = read_search({"lr": "0.001..0.02:log"})
    about = definition(space={"lr": "0.001..0.02:log"}, defaults={"lr": 0.005}, **changes)
    kept = Study(place)
    kept.create(about)
    kept.begin(about, space)
    return kept


def new(kept: Study, trials: int = 100) -> Asked:
    asked = kept.ask(trials)
    assert asked is not None
    asked.begin()
    return asked


@pytest.mark.parametrize(("chosen_by", "good", "bad"), [("accuracy", 0.9, 0.5), ("rmse", 0.5, 0.9)])
def test_a_trial_is_pruned_that_is_worse_than_the_median_after_the_first_three_tenths(chosen_by, good, bad):
    kept = begun(Place(), chosen_by=chosen_by)
    for _ in range(5):
        one = new(kept)
        assert not any(one.report(part, good) for part in range(1, 11))
        one.end("finished", good)
    worse, better = new(kept), new(kept)
    assert [worse.report(part, bad) for part in range(1, 5)] == [False, False, True, True]
    assert not any(better.report(part, good) for part in range(1, 11))
    assert not worse.report(4, bad)  # the same part again, as where an epoch is less than a tenth


def test_parts_are_tenths_of_the_epochs_and_what_is_reported_is_the_best_so_far(table):
    told = []

    def report(part: int, figure: float) -> bool:
        told.append((part, figure))
        return False

    settings = tidegate.TrainSettings.make(**(ROLES | SMALL | {"epochs": 20, "hidden_size": 4}))
    read = read_table(table)
    state, figure, about = trial.run(read, settings, report=report, may_stop=True, step=lambda *_: None, until=None)
    assert state == "finished"
    assert [part for part, _ in told] == [k // 2 for k in range(1, about["epochs"] + 1)]
    figures = [figure for _, figure in told]
    assert figures == sorted(figures)
    assert figure == max(figures)


@pytest.mark.parametrize("may_stop", [True, False])
def test_a_trial_that_isnt_worth_it_stops_at_once_but_not_the_one_with_the_defaults(table, may_stop):
    settings = tidegate.TrainSettings.make(**(ROLES | SMALL | {"hidden_size": 4}))
    read = read_table(table)
    state, _, about = trial.run(
        read, settings, report=lambda *_: True, may_stop=may_stop, step=lambda *_: None, until=None
    )
    assert (state, about["epochs"]) == (("pruned", 1) if may_stop else ("finished", 4))


# ------------------------------------------------------------------------------------------------ a study


def test_a_failed_trial_is_made_up_for_and_the_defaults_come_again():
    kept = begun(Place())
    new(kept).end("failed", why="interrupted")
    second = kept.ask(2)
    assert second.begin().defaults
    assert not kept.ask(2).begin().defaults
    assert not kept.wanted(2)


def test_of_two_that_ask_for_the_last_trial_one_gets_it(tmp_path):
    one, two = begun(Place.of(tmp_path / "a.study")), None
    two = Study(Place.of(tmp_path / "a.study"))
    two.begin(two.definition(), one.space)
    assert one.wanted(1)
    assert two.wanted(1)
    assert one.ask(1) is not None
    assert two.ask(1) is None
    assert [t.number for t in one.trials()] == [0]


def test_who_makes_a_study_second_gets_what_the_first_one_said(tmp_path):
    place = Place.of(tmp_path / "a.study")
    one, two = Study(place), Study(place)
    assert one.create(definition()) == definition()
    assert two.create(definition(validates=7)) == definition()


def test_a_trial_that_others_have_ended_is_lost_and_the_search_goes_on(table, tmp_path, monkeypatch):
    path, begin = tmp_path / "a.study", Asked.begin

    def buried(asked: Asked) -> Any:
        made = begin(asked)
        if asked.number == 1:
            other = Study(Place.of(path))
            other.begin(other.definition(), asked._study.space)
            other.tell(1, None, optuna.trial.TrialState.FAIL)
        return made

    monkeypatch.setattr(Asked, "begin", buried)
    told = Told()
    tuned = search(table, study=path, trials=3, progress=told)
    assert [t.state for t in tuned.trials] == ["finished", "failed", "finished", "finished"]
    assert any("trial 1  was taken for dead by another process" in line for line in told.lines)


def test_signs_of_life_are_written_while_a_trial_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "BEAT", 0.02)
    kept = begun(Place.of(tmp_path / "a.study"))
    one = new(kept)
    seen = lambda: kept._all()[0].user_attrs["seen"]  # noqa: E731
    first = seen()
    until = time.monotonic() + 20
    while seen() == first:
        assert time.monotonic() < until
    one.end("finished", 0.5)
    assert not one._beat.is_alive()


def test_a_study_of_something_else_is_refused_with_what_differs_and_stays_as_it_is(table, tmp_path):
    path = tmp_path / "a.study"
    search(table, study=path, trials=1)
    before = path.read_bytes()
    write_table(parted(seed=1), tmp_path / "other.csv")
    for more, message in (
        ({"epochs": 5}, "epochs (4 there, 5 here)"),
        ({"search": SPACE | {"lr": "0.1..0.2"}}, "the search over lr (0.001..0.05:log there, 0.1..0.2 here)"),
        (
            {"search": {k: v for k, v in SPACE.items() if k != "lr"}, "lr": 0.1},
            "the search over lr (0.001..0.05:log there, not searched",
        ),
        ({"target": "colour"}, "target (label there, colour here)"),
    ):
        with pytest.raises(RunError) as error:
            search(table, study=path, **more)
        assert f"{path} is another search: it differs in" in str(error.value)
        assert message in str(error.value)
    with pytest.raises(RunError, match=r"the table \(it is of t.csv, not of other.csv\)"):
        search(tmp_path / "other.csv", study=path)
    with pytest.raises(RunError, match=r"epochs \(4 there, 9 here\)"):
        tidegate.tune(study=path, epochs=9, progress=False)
    write_table(parted(seed=1), table)
    with pytest.raises(RunError, match=r"the table \(it has changed\)"):
        tidegate.tune(study=path, progress=False)
    assert path.read_bytes() == before


def test_a_table_in_memory_is_known_again_by_its_values(tmp_path):
    path = tmp_path / "a.study"
    search(parted(), study=path, trials=1)
    assert len(search(parted(), study=path, trials=2).trials) == 2
    with pytest.raises(RunError, match=r"the table \(it has changed\)"):
        search(parted(seed=1), study=path)
    with pytest.raises(SettingsError, match="is of a table in memory: pass the same table again"):
        tidegate.tune(study=path, progress=False)


def test_a_damaged_study_another_programs_and_none_have_sentences(table, tmp_path):
    path = tmp_path / "a.study"
    search(table, study=path, trials=1)
    lines = path.read_bytes().splitlines(keepends=True)
    for damage, where in (
        (b"garbage\n", "a.study is damaged, line 4"),
        (b'{"op_code": 99, "worker_id": "x"}\n', "a.study can't be used"),
    ):
        path.write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))
        for act in (lambda: search(table, study=path), lambda: open_study(path)):
            with pytest.raises(RunError) as error:
                act()
            assert where in str(error.value)
    path.write_bytes(b"".join(lines).replace(b'"settings":{"hidden_size"', b'"settings":{"hidden_size":[1],"x"'))
    with pytest.raises(RunError, match=r"settings\.hidden_size"):
        open_study(path)
    other = tmp_path / "other.study"
    backend = optuna.storages.journal.JournalFileBackend(str(other))
    optuna.create_study(study_name="mine", storage=optuna.storages.JournalStorage(backend))
    with pytest.raises(RunError, match=r"holds a study of another program \(mine\)"):
        search(table, study=other)
    with pytest.raises(RunError, match=r"No such study: .*none.study. Begin one: tidegate tune TABLE"):
        open_study(tmp_path / "none.study")
    with pytest.raises(SettingsError, match=r"No table, and no such study: .*none.study. Name a table"):
        tidegate.tune(study=tmp_path / "none.study")
    assert not (tmp_path / "none.study").exists()


def test_what_is_wrong_is_said_before_a_study_is_made(table, tmp_path):
    path = tmp_path / "new" / "a.study"
    for more, message in (
        ({"trials": 0}, "trials=0: expected a whole number of at least 1"),
        ({"time_limit": "soon"}, "time_limit='soon': expected a time above 0"),
        ({"search": "window=4..400"}, "search: window=4..400: window=400 is longer than every training sequence"),
        ({"hidden_size": 8}, "hidden_size is both given and searched"),
        ({"seeds": [1, 2]}, "seeds is for tidegate train"),
        ({"from_run": "r"}, "from_run is for tidegate train"),
        ({"study_name": "x"}, "names a study in a database"),
        ({"choose_by": "rmse"}, "choose_by='rmse': the target is one of 2 classes"),
        ({"search": {}, **dict.fromkeys(["dropout", "recurrent_dropout"], 0.1), "hidden_size": 4, "num_layers": 1, "lr": 0.1,
          "batch_size": 4, "reset": "after", "layer_norm": False}, "Nothing is left to search"),
    ):  # fmt: skip
        with pytest.raises(SettingsError) as error:
            search(table, study=path, **more)
        assert message in str(error.value)
    with pytest.raises(
        DataError, match=r"no validation row has a target, and trials are compared by these. Name them by a split"
    ):
        search(parted().filter(pl.col("part") != "valid"), study=path, split=(0.8, 0.0, 0.2))
    assert not path.parent.exists()


def test_a_place_that_cant_be_read_is_named(table, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/a.study can't be read \(Not a directory\)"):
        search(table, study=tmp_path / "file" / "a.study")


def test_a_full_disk_is_said_and_what_was_written_is_kept(table, tmp_path, monkeypatch):
    path = tmp_path / "a.study"
    search(table, study=path, trials=2)
    backend = optuna.storages.journal.JournalFileBackend

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(backend, "append_logs", full)
        with pytest.raises(
            DiskError,
            match=r"a.study could not be written or read \(No space left on device\). What was written is kept",
        ):
            search(table, study=path, trials=3)
    assert len(search(table, study=path, trials=3).of("finished")) == 3


# ------------------------------------------------------------------------------------------------ stopped


def test_ctrl_c_fails_the_running_trial_keeps_the_others_and_says_how_to_go_on(table, tmp_path, ctrl_c):
    path = tmp_path / "a.study"
    search(table, study=path, trials=1)
    with pytest.raises(Interrupted) as error:
        search(table, study=path, trials=3, progress=StopAfter(2))
    again = f"tidegate tune --study {path} --trials 3"
    assert str(error.value) == (
        f"Interrupted in trial 1, which counts as failed; the others are kept in {path}. Go on with: {again}"
    )
    assert [(t.state, t.why) for t in open_study(path).trials] == [("finished", ""), ("failed", "interrupted")]
    assert main([*shlex.split(again)[1:], "--quiet"]) == 0
    assert len(open_study(path).of("finished")) == 3


def test_after_the_time_limit_no_trial_begins(table, tmp_path):
    told = Told()
    tuned = search(table, study=tmp_path / "a.study", time_limit=1e-6, progress=told)
    assert tuned.trials == []
    assert "The time is over." in told.lines
    assert "No trial is finished yet." in (tmp_path / "a.study.html").read_text()


def test_a_trial_that_runs_when_the_time_is_over_counts_as_failed(table, tmp_path):
    path, told = tmp_path / "a.study", Told()
    tuned = search(table, study=path, time_limit=0.5, epochs=4000, patience=0, progress=told)
    assert [(t.state, t.why) for t in tuned.trials] == [("failed", "the time was over")]
    assert "The time is over." in told.lines


def start(table: Path, path: Path, trials: int, **more: Any) -> subprocess.Popen[str]:
    words = ["tune", str(table), "--study", str(path), "--trials", str(trials)]
    for name, value in (ROLES | SMALL | more).items():
        words += [f"--{name}", str(value)]
    for name, value in SPACE.items():
        words += ["--search", f"{name}={value}"]
    return subprocess.Popen([sys.executable, "-m", "tidegate", *words], stderr=subprocess.PIPE, text=True)


def test_two_processes_on_one_file_make_the_trials_together(table, tmp_path):
    path = tmp_path / "a.study"
    both = [start(table, path, 8) for _ in range(2)]
    told = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    tuned = open_study(path)
    assert len(tuned.of("finished")) + len(tuned.of("pruned")) == 8
    assert not tuned.of("failed")
    assert not tuned.of("running")
    assert sum(t.defaults for t in tuned.trials) == 1
    assert all("Traceback" not in text for text in told)
    owners = {
        t.user_attrs["owner"]["process"] for t in Study(Place.of(path))._all() if not t.user_attrs.get("not_needed")
    }
    assert owners <= {process.pid for process in both}


def wait_for(path: Path, number: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(RunError):
            if any(t.number == number and t.state == "running" and t.settings for t in open_study(path).trials):
                return
        time.sleep(0.05)
    raise AssertionError(f"trial {number} never began")


def test_after_a_kill_the_half_line_is_cut_off_the_trial_counts_as_failed_and_another_takes_its_place(table, tmp_path):
    path = tmp_path / "a.study"
    process = start(table, path, 2, epochs=4000, patience=0)
    wait_for(path, 0)
    process.kill()
    process.communicate()
    assert [t.state for t in open_study(path).trials] == ["running"]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":6,"wor')
    told = Told()
    tuned = search(table, study=path, trials=1, time_limit=5, epochs=4000, patience=0, progress=told)
    assert tuned.trials[0].state == "failed"
    assert "trial 0  its process is gone: it counts as failed" in told.lines
    assert tuned.trials[1].defaults
    assert path.read_bytes().startswith(whole)
    for line in path.read_bytes().splitlines():
        json.loads(line)


def test_sigterm_ends_a_search_as_ctrl_c_does(table, tmp_path):
    path = tmp_path / "a.study"
    process = start(table, path, 2, epochs=4000, patience=0)
    wait_for(path, 0)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"Go on with: tidegate tune --study {path} --trials 2" in told
    assert [(t.state, t.why) for t in open_study(path).trials] == [("failed", "interrupted")]


# ------------------------------------------------------------------------------------------------ databases, YAML, words


def test_a_database_keeps_several_studies_apart(table, tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    for name, trials in (("one", 1), ("two", 2)):
        tuned = search(table, study=url, study_name=name, trials=trials, report=tmp_path / name)
        assert len(tuned.trials) == trials
        assert (tmp_path / name / "tune.html").exists()
    assert len(open_study(url, "one").trials) == 1
    with pytest.raises(RunError, match="There is no study 'tidegate' in sqlite:///"):
        open_study(url)
    with pytest.raises(RunError, match=r"the study 'one' in sqlite.* differs in epochs \(4 there, 9 here\)"):
        search(table, study=url, study_name="one", epochs=9)
    with pytest.raises(RunError, match="Name a folder"):
        write_report(tuned)


@pytest.mark.parametrize("url", ["nonsense://x", "sqlite:////no/such/folder/a.db", "mysql://nobody@localhost:1/x"])
def test_a_database_that_cant_be_opened_is_a_sentence(table, url):
    with pytest.raises((RunError, SettingsError), match=r"can't be (opened|used)"):
        search(table, study=url)


def test_a_yaml_file_says_the_same_and_the_command_line_wins(table, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"table: {table}\ntarget: label\ngroup: device\ntime: t\nepochs: 4\ndevice: cpu\nthreads: 1\nlr: 0.5\ntrials: 2\n"
        f"study: {tmp_path}/a.study\nsearch:\n  hidden_size: 4..12\n  reset: [after, before]\n"
    )
    tuned = tidegate.tune(config=config, progress=False)
    assert [*tuned.definition.space] == ["hidden_size", "reset"]
    assert len(tuned.trials) == 2
    assert tuned.settings["lr"] == 0.5
    arguments = ["--study", str(tmp_path / "b.study"), "--trials", "1", "--search", "lr=0.1..0.2", "--quiet"]
    assert main(["tune", "--config", str(config), *arguments]) == 0
    assert open_study(tmp_path / "b.study").definition.space == {"lr": "0.1..0.2"}
    config.write_text("target: label\nserach: {}\n")
    with pytest.raises(SettingsError, match=r"there is no setting 'serach'\. Did you mean 'search'"):
        tidegate.tune(config=config)


def test_the_command_line_prints_a_line_a_trial_the_best_ones_and_the_report(table, tmp_path, capfd, monkeypatch):
    words = start(table, tmp_path / "a.study", 3)
    told = words.communicate(timeout=120)[1]
    assert words.returncode == 0
    lines = told.splitlines()
    assert "t.csv: up to 3 trials, compared by their validation accuracy" in told
    assert [line.split("  ")[0] for line in lines if line.startswith("trial ") and "acc" in line][:3] == [
        "trial 0",
        "trial 1",
        "trial 2",
    ]
    assert "(defaults: hidden_size 128" in told
    assert "tidegate train" in told
    assert lines[-1] == f"Report: {tmp_path / 'a.study.html'}"
    assert "[I " not in told  # Optuna's own lines
    assert "Warning" not in told
    before = (tmp_path / "a.study").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--report", "--study", "a.study", "-o", "pages"]) == 0
    assert "Report: pages/a.study.html" in capfd.readouterr().out
    assert (tmp_path / "a.study").read_bytes() == before
    assert {p.name for p in (tmp_path / "pages").iterdir()} == {"a.study.html", "a.study.md", "a.study.pictures"}


def test_optunas_own_loudness_is_as_it_was(table):
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    search(table, trials=1)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    optuna.logging.set_verbosity(optuna.logging.INFO)


def test_it_is_imported_when_a_search_begins_and_not_before():
    code = "import sys, tidegate, tidegate.tuning.search, tidegate.tuning.record, tidegate.cli.tune; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"
