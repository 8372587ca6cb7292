"""Several runs of one training: with other seeds, or of the folds of a cross-validation."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, DieAfter, StopAfter, same_weights
from tidegate.cli import main
from tidegate.data.tables import write_table
from tidegate.errors import DataError, Interrupted, RunError, SettingsError
from tidegate.run import Ensemble
from tidegate.training.lock import LOCK, FolderLock
from tidegate.training.progress import Silent

pytestmark = pytest.mark.usefixtures("ctrl_c")

SETTINGS = QUICK | ROLES | {"hidden_size": 4}
FOLDS = SETTINGS | {"epochs": 4, "seed": 1}
FILES = ("model.safetensors", "preprocessing.json", "results.json")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_run(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    write_table(signal_table(16), path)
    return path


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, table) -> tidegate.Run:
    """Three runs with other seeds, of which the best is kept."""
    out = tmp_path_factory.mktemp("seeds") / "run"
    return tidegate.train(table, out=out, seeds=[3, 1, 7], **(SETTINGS | {"baselines": True}))


@pytest.fixture(scope="module")
def folds(tmp_path_factory, table) -> tidegate.Run:
    """Three folds and a run on the rows of all of them."""
    return tidegate.train(table, out=tmp_path_factory.mktemp("folds") / "run", folds=3, **FOLDS)


def test_each_of_several_seeds_is_bit_for_bit_that_seed_alone(tmp_path, table, seeds):
    folder = seeds.folder.parent
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"seed-1", "seed-3", "seed-7"}
    for seed in (1, 3):
        tidegate.train(table, out=tmp_path / str(seed), seed=seed, **(SETTINGS | {"baselines": True}))
        assert same_run(folder / f"seed-{seed}", tmp_path / str(seed))
        alone, member = ((f / "config.yaml").read_text() for f in (tmp_path / str(seed), folder / f"seed-{seed}"))
        assert re.sub(r"seconds: .*", "", member) == re.sub(r"seconds: .*", "", alone)


def test_each_of_several_folds_is_bit_for_bit_that_fold_alone(tmp_path, table, folds):
    tidegate.train(table, out=tmp_path / "run", fold="2/3", **FOLDS)
    assert same_run(folds.folder.parent / "fold-2", tmp_path / "run")


def test_the_best_of_several_seeds_is_chosen_by_validation_rows_and_never_by_test_rows(seeds):
    members = [tidegate.load(seeds.folder.parent / m.name) for m in seeds.repeats.members]

    def row(run: tidegate.Run) -> dict[str, float]:
        return run.history[run.resolved.best_epoch - 1]

    valid = {m.folder.name: (row(m)["valid_accuracy"], -row(m)["valid_loss"]) for m in members}
    test = {m.folder.name: m.results.model.summary["accuracy"] for m in members}
    best = max(valid, key=valid.get)
    assert best != max(test, key=test.get)  # else this test would show nothing
    assert seeds.repeats.kept == seeds.folder.name == best
    opened = tidegate.load(seeds.folder.parent)
    assert opened.folder == seeds.folder
    assert same_weights(opened, seeds)
    assert opened.repeats == seeds.repeats


def test_the_report_has_mean_and_deviation_of_model_and_baselines_and_a_row_a_run(seeds):
    folder, repeats = seeds.folder.parent, seeds.repeats
    for name in ("accuracy", "nll"):
        values = [json.loads((folder / m.name / "results.json").read_text()) for m in repeats.members]
        mine = [v["model"]["summary"][name] for v in values]
        theirs = [v["baselines"]["same head, no recurrence"]["summary"][name] for v in values]
        for spread, numbers in (
            (repeats.spread(name), mine),
            (repeats.spread(name, "same head, no recurrence"), theirs),
        ):
            assert spread.mean == pytest.approx(statistics.mean(numbers), rel=1e-12)
            assert spread.sd == pytest.approx(statistics.stdev(numbers), rel=1e-9)
    mean = repeats.spread("accuracy")
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text(encoding="utf-8")
        assert f"{mean.mean:.4f} ± {mean.sd:.4f}" in text
        for part in (
            "majority class",
            "same head, no recurrence",
            "seed-3/report",
            repeats.verdict().split("'")[0][:20],
        ):
            assert part in text
        assert "Each run drew a split of its own" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert (folder / "validation_accuracy.svg").is_file()
    assert str(repeats).count("seed-1") >= 1


def test_the_ratio_of_the_corrected_test_is_that_of_scored_to_training_rows(seeds, folds):
    counts = [tidegate.load(seeds.folder.parent / f"seed-{k}").resolved.parts for k in (1, 3, 7)]
    ratio = statistics.mean(c["test"]["rows"] / c["train"]["rows"] for c in counts)
    assert seeds.repeats.ratio == pytest.approx(ratio, rel=1e-12)
    counts = [tidegate.load(folds.folder.parent / f"fold-{k}").resolved.parts for k in (1, 2, 3)]
    ratio = statistics.mean(c["valid"]["rows"] / c["train"]["rows"] for c in counts)
    assert folds.repeats.ratio == pytest.approx(ratio, rel=1e-12)


def test_runs_on_the_same_rows_are_compared_without_correction_and_validation_rows_in_place_of_test_rows_are_told(
    table,
):
    run = tidegate.train(table, out=False, seeds=[1, 2], split_seed=0, split=(0.7, 0.3, 0), **SETTINGS)
    assert "these figures are of the validation rows, which also chose the epochs" in str(run.repeats)
    assert not run.repeats.drawn
    assert run.repeats.ratio == 0
    assert "so it speaks of the seed alone" in str(run.repeats)


def test_figures_of_folds_are_of_their_validation_rows_and_of_the_common_test_rows(table, folds):
    assert folds.repeats.of_folds
    assert folds.repeats.tested
    for member in folds.repeats.members:
        run = tidegate.load(folds.folder.parent / member.name)
        assert member.evaluation.model == run.evaluate(table, rows="valid").model
        assert member.test.model == run.evaluate(table, rows="test").model
        assert member.evaluation.model.summary["accuracy"] == run.history[run.resolved.best_epoch - 1]["valid_accuracy"]
    assert len({m.test.model.count for m in folds.repeats.members}) == 1
    assert "gru, refit" in str(folds.repeats)


def test_after_folds_a_run_on_all_their_rows_is_kept_for_the_median_of_their_best_epochs(tmp_path, table, folds):
    best = [m.best_epoch for m in folds.repeats.members]
    epochs = math.ceil(statistics.median(best))
    assert min(best) < epochs < max(best)  # else this test would show less
    assert folds.folder.name == folds.repeats.kept == "refit"
    settings = FOLDS | {"fold": "0/3", "epochs": epochs, "patience": 0}
    assert same_weights(folds, tidegate.train(table, out=tmp_path / "run", **settings))
    assert folds.resolved.parts["valid"]["rows"] == 0
    assert folds.resolved.epochs_run == epochs
    assert folds.repeats.own == folds.evaluate(table, rows="test")
    assert same_weights(tidegate.load(folds.folder.parent), folds)


def test_without_test_rows_what_is_kept_after_folds_has_no_figures_of_its_own(table):
    settings = SETTINGS | {"split": (1, 0, 0), "epochs": 1}
    for keep in ("refit", "ensemble"):
        run = tidegate.train(table, out=False, folds=2, keep=keep, **settings)
        assert run.repeats.own is None
        assert not run.repeats.tested
        assert f"Kept: {'the ensemble' if keep == 'ensemble' else 'refit'}" in str(run.repeats)


def test_folds_of_one_long_sequence_go_forward_in_time():
    frame = pl.DataFrame({"x": [math.sin(k / 3) for k in range(80)]})
    settings = QUICK | {"target": "x", "horizon": 1, "epochs": 1, "hidden_size": 2}
    run = tidegate.train(frame, out=False, folds=3, keep="ensemble", **settings)
    train, scored = zip(*((m.train, m.scored) for m in run.repeats.members), strict=True)
    assert train == (17, 34, 51)
    assert scored == (17, 17, 17)


@pytest.mark.parametrize("stop", [StopAfter, pytest.param(DieAfter, marks=pytest.mark.long)])
def test_an_interrupted_repeat_goes_on_and_what_was_trained_is_not_touched(tmp_path, table, seeds, stop):
    settings = SETTINGS | {"baselines": True}
    batches = math.ceil(seeds.resolved["parts"]["train"]["sequences"] / seeds.resolved.batch_size)
    cut = tmp_path / "cut"
    error = Interrupted if stop is StopAfter else ZeroDivisionError
    with pytest.raises(error) as caught:
        tidegate.train(table, out=cut, seeds=[3, 1, 7], **(settings | {"progress": stop(batches * 5 + 1)}))
    if stop is StopAfter:
        assert str(caught.value).endswith(
            f"Interrupted in seed-1; all is saved in {cut}. Go on with: tidegate train --resume --out {cut}"
        )
    with pytest.raises(
        RunError, match=r"is not finished: 1 of 3 runs are trained\. Go on with: .* runs of their own: .*seed-3"
    ):
        tidegate.load(cut)
    before, begun = files_of(cut / "seed-3"), []

    class Begun(Silent):
        def begin(self, title: str, batches: int, done: int) -> None:
            begun.append(done)

    resumed = tidegate.train(out=cut, resume=True, progress=Begun())
    assert begun[0] > 0  # the second run goes on where it stopped
    assert files_of(cut / "seed-3") == before
    for name in ("seed-1", "seed-3", "seed-7"):
        assert same_run(cut / name, seeds.folder.parent / name)
    assert (cut / "results.json").read_bytes() == (seeds.folder.parent / "results.json").read_bytes()
    assert resumed.repeats == seeds.repeats
    for named in ({"out": cut}, {"table": cut}):
        with pytest.raises(RunError, match="is finished; there is nothing to resume"):
            tidegate.train(**named, resume=True)


def test_resume_refuses_other_settings_and_another_table(tmp_path, table):
    path = tmp_path / "t.parquet"
    write_table(signal_table(16), path)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        tidegate.train(path, out=out, seeds=[1, 2], **(SETTINGS | {"progress": StopAfter(1)}))
    for changed, message in (
        ({"seeds": [1, 3]}, r"seeds can't change on resume \(the runs began with \(1, 2\)\)"),
        ({"hidden_size": 9}, "hidden_size can't change on resume"),
        ({"overwrite": True}, "can't be combined with overwrite"),
    ):
        with pytest.raises(SettingsError, match=message):
            tidegate.train(out=out, resume=True, **changed)
    write_table(signal_table(15), path)
    with pytest.raises(RunError, match=rf"t\.parquet has changed since {re.escape(str(out))} began"):
        tidegate.train(out=out, resume=True)
    assert not (out / LOCK).exists()
    with pytest.raises(SettingsError, match=r"seed-1 doesn't hold several runs, so it can't go on with seeds or folds"):
        tidegate.train(out=out / "seed-1", resume=True, folds=3)


def test_a_folder_of_runs_is_locked_from_the_first_run_to_the_report(tmp_path, table):
    out = tmp_path / "run"

    class Second(Silent):
        refused = 0

        def note(self, text: str) -> None:
            if not text.startswith("\nRun "):  # between two runs none of them is locked
                return
            for options in ({"seeds": [1, 2], "overwrite": True}, {"overwrite": True}, {"resume": True}):
                given = {} if "resume" in options else SETTINGS
                with pytest.raises(RunError, match="is in use by another training"):
                    tidegate.train(table, out=out, **(given | options))
                Second.refused += 1

    tidegate.train(table, out=out, seeds=[1, 2], **(SETTINGS | {"epochs": 1, "progress": Second()}))
    assert Second.refused == 6
    lock = FolderLock(out)
    lock.take()
    try:
        with pytest.raises(RunError, match="is in use by another training"):
            tidegate.train(table, out=out, folds=2, overwrite=True, **SETTINGS)
    finally:
        lock.release()


def test_overwrite_replaces_a_run_by_several_and_several_by_a_run_and_nothing_else_does(tmp_path, table):
    out, settings = tmp_path / "run", SETTINGS | {"epochs": 1}
    tidegate.train(table, out=out, **settings)
    with pytest.raises(RunError, match="already holds a run"):
        tidegate.train(table, out=out, seeds=[1, 2], **settings)
    tidegate.train(table, out=out, seeds=[1, 2], overwrite=True, **settings)
    assert not (out / "config.yaml").exists()
    with pytest.raises(RunError, match="already holds a run"):
        tidegate.train(table, out=out, **settings)
    assert tidegate.load(out).repeats is not None
    tidegate.train(table, out=out, overwrite=True, **settings)
    assert not (out / "repeats.yaml").exists()
    assert not (out / "seed-1").exists()
    assert tidegate.load(out).repeats is None


def test_mistakes_are_found_before_anything_is_written_or_trained(tmp_path, table):
    one = signal_table(16).with_columns(
        rare=pl.when(pl.col("device") == "d0").then(pl.col("x"))
    )  # one sequence alone has it
    for frame, options, error, message in (
        (one, {"folds": 3, "split": (1, 0, 0)}, DataError, r"'rare' is empty in every training row.*\(In fold-\d\.\)"),
        (
            table,
            {"seeds": [1, 2], "keep": "ensemble"},
            SettingsError,
            r"Each seed draws a split of its own.*split_seed=0",
        ),
        (table, {"seeds": [1, 2], "split": (0.8, 0, 0.2)}, SettingsError, "nothing to choose the best run by"),
        (table, {"folds": 99}, SettingsError, "99 folds need at least 99 sequences"),
    ):
        with pytest.raises(error, match=message):
            tidegate.train(frame, out=tmp_path / "run", **(SETTINGS | options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1]}, r"seeds=\[1\]: expected two or more different ones"),
        ({"seeds": [1, 2, 1]}, "expected two or more different ones"),
        ({"seeds": [1, -2]}, "expected numbers from 0"),
        ({"seeds": "a,b"}, "expected whole numbers, such as 1,2,3"),
        ({"seeds": [1, 2], "folds": 3}, "seeds and folds can't be combined"),
        ({"seeds": [1, 2], "seed": 3}, "seed is of one run and seeds are of several"),
        ({"seeds": [1, 2], "keep": "refit"}, "keep='refit' needs folds"),
        ({"keep": "ensemble"}, "keep='ensemble' says which of several runs is kept. Name seeds or folds"),
        ({"folds": 3, "fold": "1/3"}, "fold trains one fold alone and folds trains them all"),
        ({"folds": 1}, "folds=1: expected at least 2"),
        ({"seeds": [1, 2], "from_run": "old"}, "the runs of seeds and folds begin anew"),
        ({"folds": 3, "label_thresholds": "f1"}, "the run that folds keep has none"),
        ({"seeds": [1, 2], "out": False, "overwrite": True}, "overwrite replaces a run folder"),
        ({"seeds": [1, 2], "out": True}, "out=True: expected the run folder"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_sentence(table, options, message):
    with pytest.raises(SettingsError, match=message):
        tidegate.train(table, **(SETTINGS | {"out": False} | options))


def test_in_memory_the_same_runs_come_out_and_nothing_is_written(tmp_path, table, seeds, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tidegate.train(table, out=False, seeds=(3, 1, 7), **(SETTINGS | {"baselines": True}))
    assert list(tmp_path.iterdir()) == []
    assert same_weights(run, seeds)
    assert run.repeats == seeds.repeats
    run.save("saved")
    assert same_weights(tidegate.load("saved"), seeds)


def test_the_command_line_a_yaml_file_and_python_mean_the_same(tmp_path, table, seeds, capsys):
    options = [
        "--target",
        "label",
        "--group",
        "device",
        "--time",
        "t",
        "--hidden-size",
        "4",
        "--epochs",
        "2",
        "--device",
        "cpu",
    ]
    command = tmp_path / "command"
    assert main(["train", str(table), *options, "--seeds", "3,1,7", "--out", str(command)]) == 0
    shown = capsys.readouterr().err
    for text in (
        "Run 1 of 3: seed-3",
        "Run 3 of 3: seed-7",
        "epoch 2/2",
        " ± ",
        "Kept: seed-",
        f"Report: {command}/report.html",
    ):
        assert text in shown
    settings = yaml.safe_load((seeds.folder.parent / "repeats.yaml").read_text())
    assert settings["seeds"] == [3, 1, 7]
    tidegate.train(config=seeds.folder.parent / "repeats.yaml", out=tmp_path / "again", progress=False)
    for name in ("command", "again"):
        assert (tmp_path / name / "results.json").read_bytes() == (seeds.folder.parent / "results.json").read_bytes()


@pytest.mark.long
def test_the_folder_of_several_runs_goes_where_that_of_one_goes(tmp_path, table, seeds, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = seeds.folder.parent
    assert main(["evaluate", str(folder), str(table)]) == 0
    assert main(["predict", str(folder), str(table), "-o", "p.csv"]) == 0
    assert main(["inspect", str(folder), str(table), "-o", "g.html"]) == 0
    assert main(["export", str(folder), "--to", "c"]) == 0
    assert (tmp_path / f"run-{seeds.folder.name}.h").is_file()  # two of such folders don't write one file
    assert main(["evaluate", str(table), str(folder)]) == 2
    assert "name the run first" in capsys.readouterr().err


def test_folders_of_a_later_version_and_damaged_ones_are_refused(tmp_path, table):
    out = tmp_path / "run"
    tidegate.train(table, out=out, seeds=[1, 2], **(SETTINGS | {"epochs": 1}))
    plan, results = out / "repeats.yaml", out / "results.json"
    good = plan.read_text()
    for bad, message in (
        (good.replace("version: 1", "version: 2"), "was written by a later version of Tidegate"),
        (good.replace("  kept:", "  fashion: 1\n  kept:"), "fashion.*Where that is a later version, update this one"),
        ("a: [", "is damaged"),
        ("a: 1", "was not written by Tidegate"),
    ):
        plan.write_text(bad)
        with pytest.raises(RunError, match=message):
            tidegate.load(out)
    plan.write_text(good)
    results.write_text("{}")
    with pytest.raises(RunError, match=r"results\.json is damaged or was written by a later version"):
        tidegate.load(out)
    results.unlink()
    with pytest.raises(RunError, match=r"results\.json is missing"):
        tidegate.load(out)


def test_a_setting_of_repeats_that_says_nothing_changes_nothing(tmp_path, table):
    none: dict[str, Any] = {"seeds": None, "folds": None, "keep": "auto"}
    run = tidegate.train(table, out=False, **(SETTINGS | none))
    assert run.repeats is None
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(none | {k: v for k, v in SETTINGS.items() if k != "progress"}))
    assert same_weights(run, tidegate.train(table, out=False, config=config, progress=False))
    assert not isinstance(run, Ensemble)


def test_one_of_several_runs_gets_no_more_epochs_than_the_others(tmp_path, table):
    run = tidegate.train(table, out=tmp_path / "run", seeds=[1, 2], **SETTINGS)
    before = files_of(tmp_path / "run")
    for more in ({"epochs": 5}, {"patience": 50}):
        with pytest.raises(RunError, match=r"seed-[12] is one of several runs, .*--config .*--out NEW"):
            tidegate.train(run.folder, resume=True, progress=False, **more)
    assert files_of(tmp_path / "run") == before


def test_folds_of_which_only_some_can_be_judged_on_the_test_rows_have_a_report(tmp_path):
    """The class of all test rows is one that the training rows of only one fold have."""
    rows = [
        (
            f"g{g}",
            t,
            float(t * (g + 1) % 5),
            "rare" if g in (0, 8) else "ab"[(g + t) % 2],
            "test" if g == 8 else "train",
        )
        for g in range(9)
        for t in range(6)
    ]
    table = pl.DataFrame(rows, schema=["g", "t", "x", "y", "split"], orient="row")
    how = QUICK | {"target": "y", "group": "g", "time": "t", "split": "split", "folds": 2, "keep": "ensemble"}
    run = tidegate.train(table, out=tmp_path / "run", **how)
    assert [member.test is not None for member in run.repeats.members] == [True, False]
    assert "On the test rows" not in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
