"""Means over runs, their spread, and when two models are told apart."""

from __future__ import annotations

import json
import math

import pytest

from tidegate.trained.comparison import Evaluation
from tidegate.trained.metrics import Scores
from tidegate.trained.repeats import Member, Repeats
from tidegate.trained.spread import margin, spread, student_quantile


def repeats_of(ours: list[float], theirs: list[float], *, drawn: bool = False, nll: float = 0.5) -> Repeats:
    """Runs with these accuracies, beside a baseline with those."""
    members = []
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        model = Scores({"accuracy": a, "nll": nll + k / 100}, count=10)
        baselines = {
            "majority class": Scores({"accuracy": b, "nll": 0.7}),
            "poor": Scores({"accuracy": 0.0, "nll": 9.0}),
        }
        evaluation = Evaluation("gru", "the test rows of t", "accuracy", True, model, 0.5, baselines)
        members.append(Member(f"seed-{k}", k, None, 3, a, 80, 20, evaluation))
    return Repeats("t", members, "best", "seed-0", chosen_by="accuracy", drawn=drawn)


# Student, t with 97.5 and 99.5 % below it: table 26.10 of Abramowitz and Stegun, Handbook of Mathematical Functions (1964).
@pytest.mark.parametrize(
    ("freedom", "usual", "strict"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (5, 2.571, 4.032),
        (10, 2.228, 3.169),
        (60, 2.000, 2.660),
    ],
)
def test_quantiles_of_student_are_the_published_ones(freedom, usual, strict):
    assert student_quantile(0.975, freedom) == pytest.approx(usual, abs=5.1e-4)
    assert student_quantile(0.995, freedom) == pytest.approx(strict, abs=5.1e-4)


def test_the_spread_is_the_sample_standard_deviation_and_leaves_out_what_is_no_number():
    assert spread([2.0, 4.0, math.nan, 4.0, 5.0]) == (3.75, pytest.approx(math.sqrt(4.75 / 3)), 4)
    assert math.isnan(spread([1.0]).sd)
    assert math.isnan(spread([]).mean)
    assert math.isnan(margin([1.0], 0.0))


def test_shared_training_rows_widen_the_interval_as_nadeau_and_bengio_say():
    differences = [1.0, 2.0, 3.0]  # a standard deviation of 1
    assert margin(differences, 0.0) == pytest.approx(4.302653 * math.sqrt(1 / 3))
    assert margin(differences, 0.25) == pytest.approx(4.302653 * math.sqrt(1 / 3 + 1 / 4))


def test_a_lead_within_the_spread_is_not_told_apart_and_a_clear_one_is():
    clear = repeats_of([0.90, 0.92, 0.91], [0.80, 0.81, 0.82])
    assert clear.verdict().startswith(
        "Better than the best baseline, 'majority class': accuracy 0.9100 ± 0.0100 against"
    )
    close = repeats_of([0.90, 0.70, 0.95], [0.80, 0.81, 0.82])
    assert close.verdict().startswith("Not told apart from 'majority class': accuracy 0.8500 ± 0.1323")
    assert "By other figures: ahead by NLL" in close.verdict()
    worse = repeats_of([0.70, 0.72, 0.71], [0.80, 0.81, 0.82])
    assert worse.verdict().startswith("Worse than 'majority class'")


def test_runs_that_drew_their_rows_need_a_clearer_lead():
    ours, theirs = [0.90, 0.92, 0.91], [0.89, 0.905, 0.89]
    assert repeats_of(ours, theirs).contests()[0].told_apart
    drawn = repeats_of(ours, theirs, drawn=True)
    assert drawn.ratio == 0.25
    assert not drawn.contests()[0].told_apart


def test_a_figure_in_which_less_is_better_counts_the_other_way_round():
    contest = next(c for c in repeats_of([0.9, 0.9], [0.8, 0.8], nll=0.5).contests() if c.figure == "nll")
    assert contest.lead == pytest.approx(0.7 - 0.505)
    behind = repeats_of([0.9, 0.91, 0.9], [0.8, 0.8, 0.8], nll=1.5)
    assert "behind by NLL" in behind.verdict()


def test_repeats_go_to_json_and_back():
    one = repeats_of([0.9, 0.8], [0.7, 0.7])
    again = Repeats.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert str(again) == str(one)
