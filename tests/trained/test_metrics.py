"""Figures held against small cases counted by hand and against torchmetrics' own classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS, UNSEEN_CLASS
from tidegate.errors import SettingsError
from tidegate.model.tasks import TASKS, Chances
from tidegate.trained.metrics import MANY_CLASSES, chooser, is_bio, primary, score, span_scores

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
    truth = np.array([[[1.0, 0.0]], [[1.0, 1.0]], [[np.nan, np.nan]]])
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


def numbers(truth, predicted, stds=(1.0,)):
    names = tuple("abc"[: len(stds)])
    target = Target(names, "number", means=(0.0,) * len(stds), stds=stds)
    return score(target, np.array(predicted, float), np.array(truth, float), np.arange(len(truth)))


def test_the_error_of_several_targets_counts_each_in_its_own_standard_deviations():
    truth = np.array([[[0.0, 0.0]], [[1.0, 10.0]], [[np.nan, 20.0]]])
    predicted = truth + np.array([[[3.0, 8.0]], [[-3.0, 8.0]], [[0.0, 8.0]]])
    got = numbers(truth, predicted, stds=(2.0, 16.0)).summary
    assert got["scaled_rmse"] == pytest.approx((3 / 2 + 8 / 16) / 2)
    assert got["scaled_mae"] == pytest.approx((3 / 2 + 8 / 16) / 2)
    assert "scaled_rmse" not in numbers(truth[..., :1], predicted[..., :1]).summary


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1.0, 1e12])
def test_figures_without_units_are_the_same_in_any_unit(unit):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((50, 2, 2))
    predicted = truth + 0.5 * rng.standard_normal((50, 2, 2))
    plain = numbers(truth, predicted, stds=(1.0, 1.0)).summary
    got = numbers(truth * [1.0, unit], predicted * [1.0, unit], stds=(1.0, unit)).summary
    for name in ("scaled_rmse", "scaled_mae", "r2"):
        assert got[name] == pytest.approx(plain[name], rel=1e-9)
    assert plain["r2"] == pytest.approx(
        np.mean(
            [1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum() for p, t in zip(predicted.T, truth.T, strict=True)]
        )
    )


def test_a_target_that_does_not_vary_has_no_r2_and_the_mean_leaves_it_out():
    truth = [[[0.1, 1.0]], [[0.1, 2.0]], [[0.1, 4.0]]]
    got = numbers(truth, truth, stds=(1.0, 1.0))
    assert np.isnan(got.rows[0]["r2"])
    assert got.summary["r2"] == 1.0


def chances_of(p, truth) -> Chances:
    return Chances(-np.log(np.where(np.array(truth) > 0, p, 1 - np.array(p))), np.array(p))


def test_label_figures_of_probabilities_agree_with_torchmetrics():
    rng = np.random.default_rng(1)
    p, truth = rng.random((60, 1, 3)), rng.integers(0, 2, (60, 1, 3)).astype(float)
    p[10:20] = p[:10]  # ties
    target = Target(("a", "b", "c"), "labels")
    got = score(target, p > 0.5, truth, np.arange(60), chances_of(p, truth)).summary
    args = torch.from_numpy(p[:, 0]), torch.from_numpy(truth[:, 0]).long(), 3
    assert got["auroc"] == pytest.approx(float(multilabel_auroc(*args)), abs=1e-6)
    assert got["auprc"] == pytest.approx(float(multilabel_average_precision(*args)), abs=1e-6)
    bce = torch.nn.functional.binary_cross_entropy(args[0], args[1].double(), reduction="sum") / 60
    assert got["nll"] == pytest.approx(float(bce))


def test_a_label_that_never_changes_has_no_area_and_the_mean_leaves_it_out():
    truth = np.array([[[1.0, 1.0]], [[0.0, 1.0]]])
    p = np.array([[[0.2, 0.9]], [[0.1, 0.9]]])
    target = Target(("a", "b"), "labels")
    got = score(target, p > 0.5, truth, np.arange(2), chances_of(p, truth)).summary
    assert (got["auroc"], got["auprc"]) == (1.0, 1.0)
    got = score(target, p[1:] > 0.5, truth[1:], np.arange(1), chances_of(p[1:], truth[1:])).summary
    assert np.isnan(got["auroc"])
    assert np.isnan(got["auprc"])


def test_a_step_of_which_a_label_is_missing_is_scored_by_the_others():
    truth = np.array([[[1.0, np.nan]], [[0.0, 1.0]], [[np.nan, np.nan]]])
    predicted = np.array([[[1, 1]], [[1, 1]], [[1, 1]]])
    p = np.full(truth.shape, 0.75)
    got = score(Target(("a", "b"), "labels"), predicted, truth, np.arange(3), chances_of(p, truth))
    assert got.count == 2
    assert got.summary["exact_match"] == 0.5
    assert got.summary["micro_f1"] == pytest.approx(4 / 5)
    assert got.summary["nll"] == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 2)


@pytest.mark.parametrize("task", ["class", "labels"])
def test_the_worth_of_probabilities_is_the_loss_and_its_bits_are_those_of_the_row_alone(task):
    torch.manual_seed(0)
    scores = torch.randn(37, 2, 5) * 10
    y = torch.randint(0, 5, (37, 2)) if task == "class" else torch.randint(0, 2, (37, 2, 5)).float()
    nll, ones = TASKS[task].chances(scores, y)
    loss, count = TASKS[task].loss_sum(scores, y)
    assert nll.mean() == pytest.approx(float(loss / count), rel=1e-5)
    for k in range(37):
        alone = TASKS[task].chances(scores[k : k + 1], y[k : k + 1])
        assert (alone.nll == nll[k]).all()
        assert ones is None or (alone.ones == ones[k]).all()


def test_a_sure_model_still_orders_its_rows():
    scores = torch.tensor([20.0, 25.0, 30.0]).reshape(3, 1, 1)  # all of them 1 as a float32 probability
    ones = TASKS["labels"].chances(scores, torch.ones(3, 1, 1)).ones
    assert ones.ravel().argsort().tolist() == [0, 1, 2]
    assert len(set(ones.ravel())) == 3


@pytest.mark.parametrize("task", ["class", "labels"])
def test_many_classes_or_labels_are_taken_in_pieces(monkeypatch, task):
    from tidegate.model import tasks

    torch.manual_seed(0)
    scores, y = torch.randn(11, 3, 7), torch.randint(0, 7, (11, 3))
    y[4, 1] = MISSING_CLASS
    if task == "labels":
        y = torch.where(torch.rand(11, 3, 7) < 0.1, torch.nan, torch.randint(0, 2, (11, 3, 7)).float())
    whole = TASKS[task].chances(scores, y)
    monkeypatch.setattr(tasks, "BLOCK", 50)
    sizes, logarithms = [], torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda s, *more: sizes.append(s.numel()) or logarithms(s, *more))
    pieces = TASKS[task].chances(scores, y)
    assert max(sizes) <= (100 if task == "labels" else 50)  # a label has two probabilities
    assert (pieces.nll == whole.nll).all()
    assert task == "class" or (pieces.ones == whole.ones).all()
    empty = TASKS[task].chances(scores[:0], y[:0])
    assert empty.nll.shape == ((0, 3) if task == "class" else (0, 3, 7))


def test_the_rule_of_thumb_has_the_shares_of_the_training_rows():
    target = Target(("y",), "class", ("a", "b"), counts=(3, 1))
    nll, _ = TASKS["class"].chances_of_shares(np.array([[0], [1], [MISSING_CLASS]]), target, 4)
    assert nll[:2].ravel().tolist() == pytest.approx([-np.log(0.75), -np.log(0.25)])
    target = Target(("a", "b", "c"), "labels", means=(0.25, 0.0, 1.0))
    nll, ones = TASKS["labels"].chances_of_shares(np.array([[[1.0, 1.0, 0.0]]]), target, 8)
    assert ones.ravel().tolist() == pytest.approx([0.25, 0.1, 0.9])
    assert nll.ravel().tolist() == pytest.approx([-np.log(0.25), -np.log(0.1), -np.log(0.1)])


CLASSES, TAGGED = Target(("y",), "class", ("a", "b")), Target(("y",), "class", tuple(TAGS))
LABELS, ONE, TWO = Target(("a", "b"), "labels"), Target(("a",), "number"), Target(("a", "b"), "number")


@pytest.mark.parametrize(
    ("target", "choose_by", "chosen", "counts_most"),
    [
        (CLASSES, "auto", "accuracy", "accuracy"),
        (CLASSES, "loss", "loss", "accuracy"),
        (CLASSES, "nll", "loss", "accuracy"),
        (CLASSES, "macro_f1", "macro_f1", "macro_f1"),
        (TAGGED, "auto", "span_f1", "span_f1"),
        (LABELS, "auto", "loss", "nll"),
        (LABELS, "micro_f1", "micro_f1", "micro_f1"),
        (ONE, "auto", "rmse", "rmse"),
        (ONE, "mae", "mae", "mae"),
        (TWO, "auto", "scaled_mae", "scaled_mae"),
        (TWO, "rmse", "scaled_rmse", "scaled_rmse"),
        (TWO, "mae", "scaled_mae", "scaled_mae"),
    ],
)
def test_what_chooses_the_epoch_never_depends_on_a_unit(target, choose_by, chosen, counts_most):
    assert chooser(target, 0, choose_by) == chosen
    assert primary(target, 0, choose_by)[0] == counts_most


@pytest.mark.parametrize(
    ("target", "choose_by", "known"),
    [
        (CLASSES, "auroc", "one of 2 classes.*Choose by accuracy, macro_f1, loss, nll, or"),
        (CLASSES, "span_f1", "Choose by accuracy"),
        (Target(("y",), "class", tuple(range(3_000))), "macro_f1", "Choose by accuracy, loss, nll, or"),
        (LABELS, "accuracy", "0/1 labels.*Choose by loss, nll, micro_f1, macro_f1, exact_match, auroc, auprc, or"),
        (ONE, "macro_f1", "numbers.*Choose by rmse, mae, r2, loss, or"),
    ],
)
def test_a_figure_that_the_task_has_not_is_refused_with_those_that_it_has(target, choose_by, known):
    with pytest.raises(SettingsError, match=rf"choose_by='{choose_by}'.*{known}"):
        chooser(target, 0, choose_by)


def test_spans_several_steps_ahead_overlap_and_choose_nothing():
    assert chooser(TAGGED, 1) == "span_f1"
    assert chooser(TAGGED, 2) == "accuracy"
