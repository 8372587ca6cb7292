"""Figures held against small cases counted by hand and against torchmetrics' own classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassF1Score

from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS, UNSEEN_CLASS
from tidegate.model.tasks import TASKS
from tidegate.trained.metrics import MANY_CLASSES, is_bio, primary, score, span_scores

TAGS = ["O", "B-x", "I-x", "B-y", "I-y"]


def spans(predicted: str, truth: str, sequence=None):
    p, t = ([TAGS.index(w) for w in text.split()] for text in (predicted, truth))
    return span_scores(
        TAGS, np.array(p), np.array(t), np.zeros(len(p), int) if sequence is None else np.array(sequence)
    )[0]


@pytest.mark.parametrize(
    ("predicted", "truth", "precision", "recall"),
    [
        ("O B-x I-x O", "O B-x I-x O", 1, 1),
        ("O B-x O O", "O B-x I-x O", 0, 0),  # half a span is no span
        ("O B-y I-y O", "O B-x I-x O", 0, 0),  # nor one of another kind
        ("B-x B-x O O", "B-x I-x O O", 0, 0),  # two spans are not one
        ("B-x B-x O B-y", "B-x B-x O O", 2 / 3, 1),
        ("O I-x I-x O", "O B-x I-x O", 1, 1),  # an I that follows nothing begins a span
        ("B-x I-y O O", "B-x I-x O O", 0, 0),  # a change of kind ends it
        ("O O O O", "B-x O O O", 0, 0),
        ("O O O O", "O O O O", 0, 0),
    ],
)  # fmt: skip
def test_a_span_counts_when_kind_and_both_ends_agree(predicted, truth, precision, recall):
    got = spans(predicted, truth)
    assert (got["span_precision"], got["span_recall"]) == (pytest.approx(precision), pytest.approx(recall))


def test_a_span_ends_with_its_sequence():
    assert spans("B-x I-x", "B-x I-x", [0, 1])["span_f1"] == 1.0
    # One span over the border would not match the two: the same tags in one sequence are one span.
    assert spans("B-x B-x", "B-x I-x", [0, 0])["span_f1"] == 0.0
    assert spans("B-x B-x", "B-x I-x", [0, 1])["span_f1"] == 1.0


def test_bio_classes_are_recognised_by_their_form():
    assert is_bio(TAGS)
    assert not is_bio(["up", "down"])
    assert not is_bio(["O", "o"])
    assert not is_bio([0, 1])
    assert primary(Target(("y",), "class", tuple(TAGS)), 0)[0] == "span_f1"


def test_class_figures_agree_with_torchmetrics_own_classes():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (200, 1)), rng.integers(0, 4, (200, 1))
    truth[::7] = MISSING_CLASS
    got = score(Target(("y",), "class", ("a", "b", "c", "d")), predicted, truth, np.arange(200))
    known = truth[:, 0] >= 0
    macro = MulticlassF1Score(4, average="macro")(torch.tensor(predicted[known, 0]), torch.tensor(truth[known, 0]))
    assert got.summary["macro_f1"] == pytest.approx(float(macro))
    assert got.summary["accuracy"] == pytest.approx((predicted[known] == truth[known]).mean())
    assert got.count == known.sum() == sum(r["count"] for r in got.rows)


def test_number_figures_leave_missing_targets_out():
    truth = np.array([[[1.0]], [[np.nan]], [[3.0]]])
    predicted = np.array([[[2.0]], [[100.0]], [[3.0]]])
    got = score(Target(("y",), "number", means=(0.0,), stds=(1.0,)), predicted, truth, np.arange(3))
    assert got.summary["mse"] == pytest.approx(0.5)
    assert got.summary["mae"] == pytest.approx(0.5)
    assert got.count == 2


def test_label_figures_count_each_label():
    truth = np.array([[[1.0, 0.0]], [[1.0, 1.0]], [[np.nan, 1.0]]])
    predicted = np.array([[[1, 1]], [[1, 1]], [[0, 0]]])
    got = score(Target(("a", "b"), "labels"), predicted, truth, np.arange(3))
    assert got.summary["micro_f1"] == pytest.approx(6 / 7)
    assert got.summary["exact_match"] == pytest.approx(0.5)
    assert [r["f1"] for r in got.rows] == [1.0, pytest.approx(2 / 3)]


@pytest.mark.parametrize("task", ["class", "labels", "number"])
def test_missing_targets_reach_neither_the_loss_nor_its_gradient(task):
    torch.manual_seed(0)
    scores = torch.randn(5, 1, 3, requires_grad=True)
    if task == "class":
        y = torch.tensor([[0], [1], [MISSING_CLASS], [2], [MISSING_CLASS]])
        missing = (y == MISSING_CLASS).squeeze(1)
    else:
        y = torch.randint(0, 2, (5, 1, 3)).float()
        y[2], y[4] = float("nan"), float("nan")
        missing = torch.isnan(y).all(dim=-1).squeeze(1)
    loss, count = TASKS[task].loss_sum(scores, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert int(count) == (3 if task == "class" else 9)
    assert (scores.grad[missing] == 0).all()
    assert (scores.grad[~missing] != 0).all()


def test_a_class_that_training_never_saw_is_missed_in_every_figure():
    rng = np.random.default_rng(0)
    target = Target(("y",), "class", ("a", "b", "c"), counts=(5, 5, 5)).with_unseen(["d", "e"])
    truth, predicted = rng.integers(0, 5, (200, 1)), rng.integers(0, 3, (200, 1))
    truth[::7] = MISSING_CLASS
    got = score(target, predicted, truth, np.arange(200))
    known = truth[:, 0] >= 0
    macro = MulticlassF1Score(5, average="macro")(torch.tensor(predicted[known, 0]), torch.tensor(truth[known, 0]))
    assert got.summary["macro_f1"] == pytest.approx(float(macro))
    assert got.summary["accuracy"] == pytest.approx((predicted[known] == truth[known]).mean())
    assert got.count == known.sum() == sum(r["count"] for r in got.rows)
    assert {r["class"]: r["recall"] for r in got.rows}["d"] == 0.0


def test_thousands_of_classes_that_training_never_saw_leave_the_figures_as_they_are():
    rng = np.random.default_rng(0)
    seen = Target(("y",), "class", ("a", "b", "c"), counts=(5, 5, 5))
    predicted, truth = rng.integers(0, 3, (9_000, 1)), np.arange(9_000)[:, None]
    got = score(seen.with_unseen([f"new{k}" for k in range(9_000)]), predicted, truth, np.arange(9_000))
    assert set(got.summary) == set(score(seen, predicted, truth % 3, np.arange(9_000)).summary)
    assert len(got.rows) == MANY_CLASSES


def test_a_span_of_a_kind_that_training_never_saw_is_missed():
    target = Target(("y",), "class", tuple(TAGS), counts=(1,) * 5).with_unseen(["B-new", "I-new", "odd"])
    truth = np.array([1, 2, 5, 6, 0, 3, 7])[:, None]
    predicted = np.array([1, 2, 0, 0, 0, 3, 4])[:, None]
    got = score(target, predicted, truth, np.zeros(7, int))
    assert got.summary["span_recall"] == pytest.approx(1 / 3)  # of x, new and y; a word of no kind ends y
    assert {r["class"]: (r["recall"], r["count"]) for r in got.rows} == {"new": (0, 1), "x": (1, 1), "y": (0, 1)}


def test_classes_that_training_never_saw_reach_neither_the_loss_nor_its_gradient():
    scores = torch.randn(4, 1, 3, requires_grad=True)
    y = torch.tensor([[0], [UNSEEN_CLASS], [UNSEEN_CLASS - 5], [2]])
    loss, count = TASKS["class"].loss_sum(scores, y)
    loss.backward()
    assert torch.equal(loss, TASKS["class"].loss_sum(scores[[0, 3]], y[[0, 3]])[0])
    assert int(count) == 2
    assert (scores.grad[1:3] == 0).all()
    assert TASKS["class"].truth(y.numpy(), Target(("y",), "class", ("a", "b", "c")))[:, 0].tolist() == [0, 3, 8, 2]
