"""Thresholds of 0/1 labels, chosen on the validation rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score, binary_precision_recall_curve

import tidegate
from tests.helpers.tables import QUICK, assert_decided_by, two_labels
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.tables import write_table
from tidegate.errors import RunError, SettingsError
from tidegate.trained.thresholds import best_threshold
from tidegate.training import train

TOLD = QUICK | {"group": "device", "time": "t", "label_thresholds": "f1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_table(two_labels(), folder / "t.parquet")
    return tidegate.train(
        folder / "t.parquet",
        target=["up", "rare", "never"],
        out=folder / "run",
        **(TOLD | {"baselines": True, "epochs": 8}),
    )


def without_thresholds(pre: Preprocessing) -> Preprocessing:
    return replace(pre, target=replace(pre.target, thresholds=()))


def f1(probability: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    found = probability > threshold
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30).filter(
        lambda v: any(t for _, t in v)
    )
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_threshold_has_a_better_f1_and_of_equal_ones_it_is_the_nearest_to_one_half(pairs):
    probability, truth = np.array([p / 12 for p, _ in pairs]), np.array([t for _, t in pairs])
    chosen = best_threshold(probability, truth.astype(float))
    grid = np.append(np.linspace(0, 1, 97)[1:-1], 0.5)  # 8 to a step of the probabilities: halfway is among them
    scores = np.array([f1(probability, truth, t) for t in grid])
    assert f1(probability, truth, chosen) == scores.max()
    best = np.unique(np.append(probability, [0.0, 1.0]))
    halfway = np.append((best[1:] + best[:-1]) / 2, 0.5)
    equal = [t for t in halfway if f1(probability, truth, t) == scores.max() and t < max(probability.max(), 0.5 + 1e-9)]
    assert abs(chosen - 0.5) == pytest.approx(min(abs(t - 0.5) for t in equal))


def test_the_f1_is_the_best_of_torchmetrics_curve():
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth = rng.random(200) < 0.2
        probability = np.clip(0.3 * truth + 0.5 * rng.random(200).round(2), 0, 1)
        p, t = torch.from_numpy(probability), torch.from_numpy(truth).long()
        precision, recall, _ = binary_precision_recall_curve(p, t)
        best = (2 * precision * recall / (precision + recall).clamp(min=1e-12)).max()
        chosen = best_threshold(probability, truth.astype(float))
        assert float(binary_f1_score(p, t, threshold=chosen)) == pytest.approx(float(best))


def test_a_label_without_a_one_keeps_one_half_and_missing_truths_are_not_looked_at():
    probability = np.array([0.1, 0.2, 0.9])
    assert best_threshold(probability, np.zeros(3)) == 0.5
    assert best_threshold(probability, np.array([np.nan, np.nan, np.nan])) == 0.5
    assert best_threshold(probability, np.array([1.0, np.nan, 0.0])) == pytest.approx(0.05)
    assert best_threshold(np.array([0.1, 0.2, 0.9]), np.array([0.0, 1.0, 1.0])) == pytest.approx(0.15)


def test_a_run_keeps_its_thresholds_and_all_decisions_are_by_them(run):
    again = tidegate.load(run.folder)
    up, rare, never = again.preprocessing.target.thresholds
    assert rare < 0.4
    assert never == 0.5
    predicted = again.predict(run.source, probabilities=True)
    for name, threshold in zip(("up", "rare", "never"), (up, rare, never), strict=True):
        expected = (predicted[f"p_{name}"].cast(pl.Float64) > threshold).cast(pl.Int64)
        assert predicted[f"prediction_{name}"].to_list() == expected.to_list()
    assert 0 < predicted["prediction_rare"].sum() < predicted.height
    assert predicted["prediction_rare"].sum() > (predicted["p_rare"] > 0.5).sum()
    stream = again.stream()
    rows = pl.read_parquet(run.source).filter(pl.col("device") == "d3")
    streamed = [stream.push(row, key="d3")["prediction_rare"] for row in rows.iter_rows(named=True)]
    assert streamed == predicted.filter(pl.col("device") == "d3")["prediction_rare"].to_list()
    seen = again.inspect(rows).outputs[1]
    assert seen.values == streamed


def test_on_the_validation_rows_each_labels_f1_is_the_best_and_that_it_flatters_is_said(run):
    chosen = run.evaluate(run.source, rows="valid")
    plain = tidegate.load(run.folder)
    plain.preprocessing = without_thresholds(plain.preprocessing)
    half = plain.evaluate(run.source, rows="valid")
    for ours, theirs in zip(chosen.model.rows, half.model.rows, strict=True):
        assert ours["f1"] >= theirs["f1"]
    assert chosen.model.rows[1]["f1"] > half.model.rows[1]["f1"]
    assert "thresholds were chosen on these validation rows" in str(chosen)
    assert "thresholds were chosen" not in str(run.evaluate(run.source, rows="test"))


def test_the_report_shows_each_threshold_and_the_baseline_has_its_own(run):
    report = (run.folder / "report.md").read_text()
    assert "| threshold |" in report
    assert f"| {run.preprocessing.target.thresholds[1]:.4f} |" in report
    own = json.loads((run.folder / "no_memory" / "preprocessing.json").read_text())["target"]["thresholds"]
    assert own != list(run.preprocessing.target.thresholds)
    assert tidegate.load(run.folder).no_memory.preprocessing.target.thresholds == tuple(own)


def test_a_file_with_thresholds_is_refused_by_versions_that_would_not_read_them_and_others_stay_as_they_were(run):
    text = run.preprocessing.to_json()
    assert json.loads(text)["version"] == 3
    assert Preprocessing.from_json(text) == run.preprocessing
    plain = json.loads(without_thresholds(run.preprocessing).to_json())
    assert plain["version"] == 1
    assert "thresholds" not in plain["target"]
    with pytest.raises(RunError, match="newer Tidegate"):
        Preprocessing.from_json(text.replace('"version": 3', '"version": 4'))


def test_other_targets_and_tables_without_validation_rows_are_refused(signals):
    with pytest.raises(SettingsError, match="label_thresholds are for several 0/1 labels"):
        train(signals, target="label", out=False, **TOLD)
    with pytest.raises(SettingsError, match="needs validation rows to choose by"):
        valid = pl.col("device") == "d1"
        table = two_labels().with_columns(
            *(pl.when(~valid).then(name).alias(name) for name in ("up", "rare")),
            part=pl.when(valid).then(pl.lit("valid")).otherwise(pl.lit("train")),
        )
        train(table, target=["up", "rare"], split="part", out=False, **TOLD)


def test_an_exported_header_decides_by_the_thresholds(run, tmp_path):
    path = tmp_path / "m.h"
    run.export("c", path)
    found = re.search(r"_cut\[\w+\] = \{([^}]*)\}", path.read_text())
    assert found is not None
    numbers = re.findall(r"(\S+)f,? /\*", found[1])
    assert np.array_equal(np.array(numbers, np.float32), np.array(run.preprocessing.target.cuts, np.float32))
    assert path.read_text().count("> m_cut[c]") == 1


@pytest.mark.long
def test_pytorchs_archive_decides_by_the_thresholds(run, tmp_path):
    path = tmp_path / "m.pt2"
    run.export("pt2", path)
    rng = np.random.default_rng(0)
    given = {"numbers": rng.standard_normal((2, 40, 1)), "codes": rng.integers(0, 4, (2, 40, 1))}
    given["lengths"] = np.array([40, 40])
    found = torch.export.load(path).module()(
        **{k: torch.from_numpy(v) for k, v in given.items()}, h_0=torch.zeros(1, 2, 8)
    )
    assert_decided_by(run, found["scores"].detach().numpy(), found["prediction"].numpy())


def test_a_warm_start_chooses_its_epochs_by_one_half_whatever_the_earlier_run_decides_by(run):
    of_halves = tidegate.Run.of(run)
    of_halves.preprocessing = without_thresholds(run.preprocessing)
    how = {"epochs": 1, "choose_by": "micro_f1", "label_thresholds": "half", "baselines": False, "out": False}
    histories = [train(two_labels(), from_run=begun, progress=False, **how).history for begun in (run, of_halves)]
    one, other = ([{k: v for k, v in row.items() if k != "seconds"} for row in h] for h in histories)
    assert str(one) == str(other)  # (a figure of epoch 0 is NaN)
