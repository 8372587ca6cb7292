"""The verdict: one sentence where the figures agree, and no praise or blame where they don't."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tidegate.data.preprocessing import Target
from tidegate.trained.comparison import Evaluation, comparison, remarks, verdict
from tidegate.trained.figures import KNOWN
from tidegate.trained.metrics import Scores, score


def evaluation(ours: dict[str, float], rows=(), **baselines: dict[str, float]) -> Evaluation:
    """One whose first figure counts most."""
    metric = next(iter(ours))
    named = {name.replace("_", " "): Scores(figures) for name, figures in baselines.items()}
    return Evaluation("gru", "rows", metric, KNOWN[metric].more_is_better, Scores(ours, list(rows), 9), 0.1, named)


def test_where_all_figures_agree_the_verdict_is_one_sentence():
    good = evaluation(
        {"accuracy": 0.9, "macro_f1": 0.8, "nll": 0.3},
        majority_class={"accuracy": 0.5, "macro_f1": 0.3, "nll": 0.7},
        no_recurrence={"accuracy": 0.6, "macro_f1": 0.6, "nll": 0.6},
    )
    assert verdict(good) == "Better than every baseline: accuracy 0.9000; the next best, no recurrence: 0.6000."
    bad = evaluation({"rmse": 2.0, "mae": 1.5, "r2": 0.1}, training_mean={"rmse": 1.0, "mae": 0.5, "r2": 0.2})
    assert verdict(bad) == (
        "No better than 'training mean': RMSE 2.0000 against 1.0000. This model is not worth its trouble yet."
    )


def test_a_figure_that_is_level_or_missing_is_no_disagreement():
    level = evaluation(
        {"nll": 1.0, "micro_f1": 0.5, "exact_match": 0.0, "auroc": math.nan},
        thumb={"nll": 2.0, "micro_f1": 0.4, "exact_match": 0.0, "auroc": math.nan},
        last_value={"micro_f1": 0.1, "exact_match": 0.0},
    )
    assert verdict(level) == "Better than every baseline: NLL 1.0000; the next best, thumb: 2.0000."


@pytest.mark.parametrize(
    ("ours", "theirs", "ahead", "behind"),
    [
        ({"micro_f1": 0.5, "exact_match": 0.1}, {"micro_f1": 0.4, "exact_match": 0.2}, "micro F1", "exact match"),
        ({"nll": 1.0, "micro_f1": 0.1}, {"nll": 2.0, "micro_f1": 0.3}, "NLL", "micro F1"),
        ({"rmse": 1.0, "mae": 0.9, "r2": 0.5}, {"rmse": 1.1, "mae": 0.8, "r2": 0.4}, "RMSE", "MAE"),
        # The one that counts most is level: not better, and yet not worthless.
        ({"accuracy": 0.9, "nll": 0.2}, {"accuracy": 0.9, "nll": 0.6}, "NLL", "accuracy"),
        ({"accuracy": 0.8, "nll": 0.2}, {"accuracy": 0.9, "nll": 0.6}, "NLL", "accuracy"),
        (
            {"scaled_rmse": 0.5, "scaled_mae": 0.4, "r2": 0.3, "rmse": 5.0, "mae": 4.0},
            {"scaled_rmse": 0.6, "scaled_mae": 0.3, "r2": 0.2, "rmse": 1.0, "mae": 9.0},
            "RMSE in SD",
            "MAE in SD",
        ),
    ],
)
def test_figures_that_disagree_are_named_with_their_numbers(ours, theirs, ahead, behind):
    text = verdict(evaluation(ours, thumb=theirs))
    assert text.startswith("The figures disagree. Ahead of the best baseline by ")
    gains, rest = text.split("; not ahead by ")
    assert ahead in gains
    assert behind in rest
    assert "(thumb: " in gains
    assert "(thumb: " in rest
    assert "trouble" not in text
    assert "Better than every baseline" not in text


@pytest.mark.parametrize("rmse", [0.9, 1.1])
@pytest.mark.parametrize("mae", [0.4, 0.6])
def test_a_model_worse_than_the_mean_of_the_scored_rows_is_told_so(rmse, mae):
    found = evaluation({"rmse": rmse, "mae": mae, "r2": -0.25}, training_mean={"rmse": 1.0, "mae": 0.5, "r2": -0.3})
    text = verdict(found)
    assert text.startswith("Worse than the mean of the scored rows: R² -0.2500. ")
    assert "better than every baseline" not in text.lower()
    if rmse < 1 and mae < 0.5:
        assert text.endswith("The baselines are worse still: RMSE 0.9000; the next best, training mean: 1.0000.")


def test_targets_worse_than_their_mean_are_named():
    rows = [{"class": f"t{k}", "rmse": 1.0, "mae": 1.0, "r2": -0.1 * k, "count": 5} for k in range(8)]
    found = evaluation({"scaled_rmse": 1.0}, rows, training_mean={"scaled_rmse": 2.0})
    assert remarks(found) == [
        "Predicted worse than by the mean of the scored rows: 't1' (R² -0.1000), 't2' (R² -0.2000), 't3' (R² -0.3000), "
        "'t4' (R² -0.4000), 't5' (R² -0.5000) and 2 more."
    ]


def scored(classes: int, rarely: int = 0) -> Scores:
    """Every class occurs, k + 1 times the k-th; those from `rarely` on are predicted as class 0."""
    truth = np.repeat(np.arange(classes), np.arange(classes) + 1)[:, None]
    predicted = np.where(truth < rarely, truth, 0)
    names = tuple(f"c{k}" for k in range(classes))
    return score(Target(("y",), "class", names), predicted, truth, np.zeros(len(truth), int))


def told(scores: Scores) -> list[str]:
    return remarks(Evaluation("gru", "rows", "accuracy", True, scores, 0.1))


@pytest.mark.parametrize("classes", [9, 2_100])
def test_classes_that_are_never_predicted_right_are_named_the_most_frequent_first(classes):
    last = classes - 1
    names = ", ".join(f"'c{last - k}'" for k in range(5))
    assert told(scored(classes)) == [
        f"Never predicted right (recall 0), though the scored rows hold them: {names} and {classes - 6:,} more."
    ]


def test_one_class_that_is_never_predicted_right_is_named_alone():
    assert told(scored(4, rarely=3)) == ["Never predicted right (recall 0), though the scored rows hold it: 'c3'."]
    assert told(scored(4, rarely=4)) == []


def test_a_class_that_is_not_among_the_scored_rows_is_not_missed():
    truth = np.array([[0], [0], [1]])
    scores = score(Target(("y",), "class", (7, 8, 9)), np.array([[0], [0], [2]]), truth, np.zeros(3, int))
    assert (scores.missed, scores.missed_count) == ([8], 1)


def test_labels_and_kinds_of_spans_that_are_never_right_are_missed():
    truth = np.array([[[1.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]]])
    predicted = np.array([[[0, 0, 1]], [[0, 0, 1]]])
    assert score(Target(("a", "b", "c"), "labels"), predicted, truth, np.zeros(2, int)).missed == ["a"]
    tags = ("O", "B-x", "B-y")
    found = score(Target(("y",), "class", tags), np.array([[1], [0]]), np.array([[1], [2]]), np.zeros(2, int))
    assert found.missed == ["y"]


def test_a_table_of_several_targets_mixes_no_units():
    target = Target(("a", "b"), "number", means=(0.0, 0.0), stds=(1.0, 1000.0))
    truth = np.array([[[0.0, 0.0]], [[1.0, 2000.0]]])
    scores = score(target, truth + np.array([1.0, 1000.0]), truth, np.zeros(2, int))
    found = Evaluation("gru", "the rows", "scaled_rmse", False, scores, 1.0)
    assert comparison(found) == (["", "RMSE in SD", "MAE in SD", "R²"], [["gru", "1.0000", "1.0000", "-1.5000"]])
    lines = str(found).splitlines()
    at = lines.index("Each target in its own unit:")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["target", "RMSE", "MAE", "R²", "count"],
        ["a", "1.0000", "1.0000", "-3.0000", "2"],
        ["b", "1000", "1000", "0.0000", "2"],
    ]
