"""What came of a search: the best trial, its command line, the sentences about it, and what makes two searches different."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from tests.helpers.tuning import definition, finished, tuned
from tidegate.errors import RunError
from tidegate.tuning.record import Definition, Trial, options_of


def test_the_best_trial_has_the_best_figure_then_the_smallest_loss_then_the_smallest_number():
    trials = [finished(0, 0.9, 0.5), finished(1, 0.95, 0.4), finished(2, 0.95, 0.3), finished(3, 0.95, 0.3)]
    assert [t.number for t in tuned(*trials).ranked] == [2, 3, 1, 0]
    assert [t.number for t in tuned(*trials, chosen_by="rmse").ranked] == [0, 2, 3, 1]


def test_a_trial_without_a_number_is_never_the_best():
    assert tuned(finished(0, float("nan")), finished(1, 0.1)).best.number == 1
    assert tuned(Trial(0, "pruned", 0.99), Trial(1, "failed"), Trial(2, "running")).best is None


def test_the_command_of_the_best_trial_has_what_was_fixed_what_it_tried_and_its_seeds():
    result = tuned(
        finished(0, 0.9, defaults=True), finished(1, 0.95, seed=77, lr=0.003, layer_norm=True, reset="after")
    )
    words = shlex.split(result.command())
    assert words[:3] == ["tidegate", "train", "TABLE"]
    for part in (["--layer-norm"], ["--lr", "0.003"], ["--seed", "77"], ["--split-seed", "5"], ["--group", "a b"]):
        at = words.index(part[0])
        assert words[at : at + len(part)] == part
    assert "--reset" not in words  # the default
    assert result.settings == {
        "target": ["label"], "group": ["a b"], "split": [0.8, 0.1, 0.1], "split_seed": 5, "layer_norm": True, "lr": 0.003, "seed": 77,
    }  # fmt: skip


def test_the_trial_with_the_defaults_needs_no_seed_of_the_split_but_one_that_was_given():
    assert "--split-seed" not in tuned(finished(0, 0.9, seed=5, defaults=True)).command()


def test_no_settings_without_a_finished_trial():
    with pytest.raises(RunError, match=r"has no finished trial yet\. Go on with it"):
        tuned(Trial(0, "failed")).settings  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"from_run": "r"}, ["--from", "r"]),
        ({"class_weights": {"yes": 5.0, "no": 1}}, ["--class-weights", "yes=5.0,no=1"]),
        ({"update_bias": [2.0, 50.0]}, ["--update-bias", "2.0,50.0"]),
        ({"features": ["a", "b"]}, ["--features", "a", "--features", "b"]),
        ({"header": False}, ["--no-header"]),
    ],
)
def test_settings_become_options(settings, words):
    assert options_of(settings) == words


# ------------------------------------------------------------------------------------------------ sentences


def test_a_lead_within_the_standard_error_is_called_noise():
    result = tuned(finished(0, 0.90, defaults=True), finished(1, 0.91), validates=100, unit="sequences")
    told = " ".join(result.verdict())
    assert "The best is trial 1, validation accuracy 0.9100; the defaults (trial 0) have 0.9000, 0.0100 less." in told
    assert "1 of 2 finished trials was better than the defaults." in told
    assert "within the noise: on 100 sequences an accuracy has a standard error of 0.0300" in told
    assert "The test rows were not looked at" in told
    beyond = tuned(finished(0, 0.90, defaults=True), finished(1, 0.95), validates=100, unit="sequences")
    assert "noise" not in " ".join(beyond.verdict())


def test_another_figure_is_compared_with_the_spread_of_the_best_trials():
    figures = [1.00, 0.99, 0.97, 0.98, 0.96]
    trials = [finished(0, figures[0], defaults=True), *(finished(k, f) for k, f in enumerate(figures[1:], 1))]
    told = " ".join(tuned(*trials, chosen_by="rmse").verdict())
    assert "the defaults (trial 0) have 1.0000, 0.0400 more. 4 of 5 finished trials were better" in told
    assert "no more than the best 5 trials differ among themselves (0.0400)" in told
    clear = [finished(0, 5.0, defaults=True), *(finished(k, 1 + k / 1000) for k in range(1, 6))]
    assert "may be luck" not in " ".join(tuned(*clear, chosen_by="rmse").verdict())


def test_where_no_trial_was_better_the_defaults_are_kept():
    told = tuned(finished(0, 0.9, 0.1, defaults=True), finished(1, 0.9, 0.2), Trial(2, "pruned", 0.5)).verdict()
    assert told == ["No trial was better than the defaults (validation accuracy 0.9000; 2 others). Keep them."]


def test_without_the_defaults_nothing_is_said_about_them():
    (first, *_) = tuned(finished(3, 0.9)).verdict()
    assert "The trial with the defaults isn't finished" in first
    assert tuned(Trial(0, "failed")).verdict() == ["No trial is finished yet."]


def test_trials_are_counted_by_what_became_of_them():
    trials = [
        finished(0, 0.9),
        Trial(1, "pruned", 0.5),
        Trial(2, "pruned", why="loss"),
        Trial(3, "failed"),
        Trial(4, "running"),
    ]
    assert tuned(*trials).counted == (
        "5 trials: 1 finished, 1 pruned, 1 that could not be trained, 1 failed or interrupted, 1 running elsewhere"
    )


def test_the_table_has_the_defaults_even_where_they_are_not_among_the_best():
    trials = [finished(0, 0.1, defaults=True), *(finished(k, 0.9) for k in range(1, 9))]
    rows = tuned(*trials).table(3)[1]
    assert [row[0] for row in rows] == ["1", "2", "0 (defaults)"]


# ------------------------------------------------------------------------------------------------ the same search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table_sha256": "other"}, "the table (it has changed)"),
        ({"table_sha256": "other", "table": "b.csv"}, "the table (it is of t.csv, not of b.csv)"),
        ({"settings": {"target": ["other"]}}, "target (label there, other here)"),
        ({"settings": {"epochs": 7}}, "epochs (None there, 7 here)"),
        ({"space": {"lr": "0.1..0.2"}}, "the search over lr (0.001..0.02:log there, 0.1..0.2 here)"),
        ({"space": {"init": "torch,orthogonal"}}, "the search over init (not searched there, torch,orthogonal here)"),
    ],
)
def test_what_differs_from_a_study_is_named(changes, message):
    study = definition()
    merged = {k: getattr(study, k) | v if isinstance(v, dict) else v for k, v in changes.items()}
    assert study.differs(dataclasses.replace(study, **merged)) == [message]


def test_machines_may_differ_in_device_and_threads():
    study = definition()
    other = dataclasses.replace(study, settings=study.settings | {"device": "cuda", "threads": 3}, tidegate="later")
    assert study.differs(other) == []


def test_a_study_of_an_earlier_version_may_lack_a_setting():
    values = definition().to_dict()
    del values["settings"]["categories"], values["settings"]["word_features"]
    settings = Definition.from_dict(values, "x").settings
    assert (settings["categories"], settings["word_features"]) == ([], "none")  # as it was before there was one


def test_a_definition_survives_its_way_through_json():
    study = definition()
    assert Definition.from_dict(study.to_dict(), "x") == study


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "x.study is damaged (it doesn't say what it is of)"),
        ({}, "x.study is damaged"),
        ({"format": 2, "tidegate": "9.0"}, "x.study is of a later version of Tidegate ('9.0'). Update this one."),
        (definition().to_dict() | {"chosen_by": "beauty"}, "x.study is damaged (the figure 'beauty')"),
        (definition().to_dict() | {"space": 3}, "x.study is damaged (space: "),
        (definition().to_dict() | {"space": {"lr": "1"}}, "x.study is damaged (search: lr=1 is a single value"),
        (definition().to_dict() | {"defaults": {}}, "x.study is damaged (no default of reset)"),
        (definition().to_dict() | {"settings": {"lrr": 1}}, "x.study is damaged (There is no setting 'lrr'"),
    ],
)
def test_a_damaged_definition_is_refused(values, message):
    with pytest.raises(RunError) as error:
        Definition.from_dict(values, "x.study")
    assert message in str(error.value)
