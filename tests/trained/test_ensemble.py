"""Several runs that predict together."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

import tidegate
from tests.helpers.runs import ROLES, SENSORS, sensors
from tests.helpers.tables import QUICK, signal_table
from tidegate.cli import main
from tidegate.data.tables import write_table
from tidegate.errors import RunError, SettingsError
from tidegate.model.tasks import TASKS
from tidegate.run import Ensemble

SETTINGS = QUICK | ROLES | {"epochs": 1, "split": "split", "seeds": [1, 2], "keep": "ensemble"}
KINDS = ["class", "labels", "two numbers", "forecast", "sequence max"]


def trained(kind: str, **options: Any) -> Ensemble:
    run = tidegate.train(sensors(), out=False, **(SETTINGS | SENSORS[kind] | options))
    assert isinstance(run, Ensemble)
    return run


def columns(frames: list[pl.DataFrame], start: str) -> dict[str, np.ndarray]:
    """The mean over some tables of the columns whose names begin so."""
    names = [n for n in frames[0].columns if n.startswith(start)]
    return {n: np.mean([f[n].to_numpy() for f in frames], axis=0, dtype=np.float64) for n in names}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_predicts_the_mean_of_its_members(kind):
    run = trained(kind)
    sure = kind in ("class", "labels", "sequence max")
    together = run.predict(sensors(), probabilities=sure)
    each = [member.predict(sensors(), probabilities=sure) for member in run.members]
    assert together.columns == each[0].columns
    assert together.dtypes == each[0].dtypes
    assert (each[0][together.columns[-1]] != each[1][together.columns[-1]]).any()
    means = columns(each, "p_" if sure else "prediction")
    for name, mean in means.items():
        np.testing.assert_allclose(together[name].to_numpy(), mean, rtol=1e-6 if sure else 1e-12, atol=1e-12)
    if kind == "labels":
        for name in ("alarm", "door"):
            assert (together[f"prediction_{name}"].to_numpy() == (means[f"p_{name}"] > 0.5)).all()
    elif sure:
        best = np.array(list(means)).take(np.argmax(list(means.values()), axis=0))
        assert together["prediction"].to_list() == [str(name).removeprefix("p_") for name in best]


@pytest.mark.filterwarnings("ignore:Column .*gaps:tidegate.errors.DataWarning")
def test_an_ensemble_is_scored_across_no_gap_in_time_as_its_members_are():
    frame = signal_table().filter(~pl.col("t").is_in([5, 6, 7]))
    how = {"target": "x", "group": "device", "time": "t", "horizon": 2, "split_seed": 0, "task": "number"}
    run = tidegate.train(frame, out=False, **(QUICK | how | {"epochs": 1, "seeds": [1, 2], "keep": "ensemble"}))
    counts = [one.evaluate(frame, rows="all").model.count for one in (run, *run.members)]
    assert counts[0] == counts[1] == counts[2]


def test_an_ensemble_decides_labels_by_the_mean_of_its_members_thresholds():
    run = trained("labels", label_thresholds="f1", epochs=2)
    thresholds = np.mean([member.preprocessing.target.thresholds for member in run.members], axis=0)
    together = run.predict(sensors(), probabilities=True)
    p = together.select("p_alarm", "p_door").to_numpy()
    assert ((p > thresholds) != (p > 0.5)).any()  # or there is nothing to see
    assert (together.select("prediction_alarm", "prediction_door").to_numpy() == (p > thresholds)).all()


@pytest.mark.parametrize("kind", ["class", "labels", "two numbers"])
def test_its_figures_are_those_of_its_predictions(kind):
    run = trained(kind)
    frame = sensors()
    scores = run.evaluate(frame, rows="all").model.summary
    told = run.predict(frame, probabilities=kind != "two numbers")
    if kind == "class":
        assert scores["accuracy"] == pytest.approx((told["prediction"] == frame["label"]).mean(), rel=1e-12)
        chance = pl.select(pl.when(frame["label"] == "up").then(told["p_up"]).otherwise(told["p_down"])).to_series()
        assert scores["nll"] == pytest.approx(-np.log(chance.to_numpy()).mean(), rel=1e-5)
    elif kind == "labels":
        p = np.stack([told[f"p_{name}"].to_numpy() for name in ("alarm", "door")]).astype(float)
        y = np.stack([frame[name].to_numpy() for name in ("alarm", "door")])
        assert scores["nll"] == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).sum(axis=0).mean(), rel=1e-5)
        assert scores["exact_match"] == pytest.approx(((p > 0.5) == y).all(axis=0).mean(), rel=1e-6)  # a float32
    else:
        errors = [float(((told[f"prediction_{n}"] - frame[n]) ** 2).mean()) for n in ("y", "y2")]
        assert scores["mse"] == pytest.approx(np.mean(errors), rel=1e-6)


def test_the_head_without_a_recurrence_is_an_ensemble_too_and_the_loss_is_the_nll_of_the_mean():
    run = trained("class", baselines=True)
    evaluation = run.evaluate(sensors(), rows="all")
    bare = evaluation.baselines["same head, no recurrence"].summary["nll"]
    alone = [m.evaluate(sensors(), rows="all") for m in run.members]
    # The NLL of a mean of probabilities is at most the mean of the NLLs (Jensen).
    assert bare < np.mean([e.baselines["same head, no recurrence"].summary["nll"] for e in alone])
    assert evaluation.model.summary["nll"] < np.mean([e.model.summary["nll"] for e in alone])
    assert evaluation.loss == pytest.approx(evaluation.model.summary["nll"], rel=1e-12)
    assert evaluation.name == "gru, mean of 2"


def test_an_ensemble_of_one_model_twice_has_its_figures():
    member = tidegate.train(
        sensors(), out=False, **(SETTINGS | SENSORS["labels"] | {"seeds": (), "keep": "auto", "seed": 1})
    )
    run = trained("labels")
    twice = Ensemble([member, member], run.repeats, None)
    one, two = (r.evaluate(sensors(), rows="all") for r in (member, twice))
    assert two.model.summary == pytest.approx(one.model.summary, rel=1e-6)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    for name, scores in one.baselines.items():
        assert two.baselines[name].summary == pytest.approx(scores.summary, rel=1e-6)


def test_members_that_know_different_classes_vote_on_all_of_them():
    rows = [(s, t, "rare" if s in (3, 4) else "yz"[s % 2], float(s % 2) + t / 10) for s in range(12) for t in range(4)]
    frame = pl.DataFrame(rows, schema=["s", "t", "kind", "x"], orient="row")
    settings = QUICK | {"target": "kind", "group": "s", "time": "t", "epochs": 1, "split": (1, 0, 0)}
    only = frame.with_columns(pl.when(pl.col("s") == 4).then(pl.lit("z")).otherwise(pl.col("kind")).alias("kind"))
    run = tidegate.train(only, out=False, folds=2, keep="ensemble", **settings)
    known = [m.preprocessing.target.classes for m in run.members]
    assert sorted(known) == [("rare", "y", "z"), ("y", "z")]
    told = run.predict(only, probabilities=True)
    sums = told["p_y"] + told["p_z"] + told["p_rare"]
    np.testing.assert_allclose(sums.to_numpy(), 1, rtol=1e-6)
    who = next(m for m in run.members if "rare" in m.preprocessing.target.classes)
    alone = who.predict(only, probabilities=True)["p_rare"].to_numpy()
    np.testing.assert_allclose(told["p_rare"].to_numpy(), alone / 2, rtol=1e-6)
    evaluation = run.evaluate(only, rows="all")
    chance = told.select(
        pl.coalesce(*(pl.when(pl.col("kind") == c).then(pl.col(f"p_{c}")) for c in ("rare", "y", "z")))
    )
    assert evaluation.model.summary["nll"] == pytest.approx(-np.log(chance.to_series().to_numpy()).mean(), rel=1e-5)
    for rows_ in ("train", "valid"):
        with pytest.raises(SettingsError, match=r"every row but the test rows trained some member\. Use test, or all"):
            run.evaluate(only, rows=rows_)


def test_an_ensemble_goes_into_a_folder_and_back(tmp_path, capsys):
    table, folder = tmp_path / "t.parquet", tmp_path / "run"
    write_table(sensors(), table)
    run = tidegate.train(table, out=folder, **(SETTINGS | SENSORS["class"]))
    opened = tidegate.load(folder)
    assert isinstance(opened, Ensemble)
    assert opened.repeats == run.repeats
    told = run.predict(table, probabilities=True)
    assert opened.predict(table, probabilities=True).equals(told)
    assert opened.results == run.results == opened.evaluate(table, rows="valid")
    assert main(["predict", str(folder), str(table), "-o", str(tmp_path / "p.parquet"), "--probabilities"]) == 0
    assert pl.read_parquet(tmp_path / "p.parquet").equals(told)
    assert main(["evaluate", str(folder), str(table), "--rows", "valid"]) == 0
    assert str(run.results) in capsys.readouterr().out
    memory = trained("class")
    memory.save(tmp_path / "saved")
    assert tidegate.load(tmp_path / "saved").predict(table, probabilities=True).equals(told)
    for name in ("results.json", "seed-2/model.safetensors"):
        assert (tmp_path / "saved" / name).is_file()
    with pytest.raises(RunError, match="already holds a run"):
        memory.save(folder)


def test_what_takes_one_model_names_the_members(tmp_path, capsys):
    run = trained("class")
    run.save(tmp_path / "run")
    for ask in (
        run.stream,
        lambda: run.inspect(sensors()),
        lambda: run.export("c"),
        lambda: run.model,
        lambda: run.preprocessing,
        lambda: run.history,
        lambda: run.fingerprint,
    ):
        with pytest.raises(
            RunError,
            match=r"run is an ensemble of 2 runs, and this needs a single model\. Name one of them: .*seed-1, .*seed-2\.",
        ):
            ask()
    for command in (
        ["inspect", str(tmp_path / "run"), "t.csv"],
        ["export", str(tmp_path / "run"), "--to", "c"],
        ["diagram", str(tmp_path / "run")],
    ):
        assert main(command) == 2
        assert "is an ensemble of 2 runs" in capsys.readouterr().err
    assert repr(run) == f"Ensemble('{tmp_path / 'run'}': 2 runs)"
    with pytest.raises(RunError, match=r"This is an ensemble .* Name one of them: \.members\[0\], \.members\[1\]"):
        trained("class").stream()


@pytest.mark.parametrize("kind", ["class", "labels", "sequence max", "class ahead"])
def test_the_probabilities_of_all_classes_are_there_for_some_rows_at_a_time(monkeypatch, kind):
    """Of a member and of their mean: thousands of classes of all rows would be the largest array by far."""
    run = trained(kind)
    frame = sensors()
    whole, figures = run.predict(frame, probabilities=True), run.evaluate(frame, rows="all").to_dict()
    task = TASKS[run.members[0].preprocessing.target.task]
    sizes, probabilities = [], task.probabilities
    monkeypatch.setattr(task, "probabilities", lambda scores: sizes.append(scores.numel()) or probabilities(scores))
    monkeypatch.setattr("tidegate.trained.ensemble.PROBABILITIES_AT_ONCE", 50)
    assert run.predict(frame, probabilities=True).equals(whole)
    assert max(sizes) <= 50
    assert run.evaluate(frame, rows="all").to_dict() == figures
    assert max(sizes) <= 50
