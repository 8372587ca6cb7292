"""Several runs that predict together: the mean of their probabilities, or of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import Sequences
from tidegate.data.tables import Table
from tidegate.errors import SettingsError
from tidegate.model.tasks import TASKS, Chances
from tidegate.trained.comparison import Evaluation
from tidegate.trained.evaluation import (
    NO_RECURRENCE,
    Outcome,
    judge,
    judged_rules,
    rules_of_thumb,
    run_model,
    truth_of,
    unseen_classes,
)
from tidegate.trained.metrics import primary
from tidegate.trained.predict import add_predictions, check_probabilities
from tidegate.trained.rows import Rows, batch_source, rows_to_predict, rows_to_score, warn_of
from tidegate.trained.trained import Trained

Members = Sequence[Trained]


def predict(members: Members, table: Any, *, probabilities: bool, batch_size: int | None) -> pl.DataFrame:
    """The mean of what the members predict, beside the table's rows. Arguments and errors are those of `Run.predict`.

    Of classes the most probable one in the mean, of labels those whose mean probability is above 1/2, or above the mean of the members'
    thresholds.
    """
    first = members[0]
    table = first.read(table)
    check_probabilities(first.preprocessing, probabilities)
    rows = rows_to_predict(first, table)
    outcome = _mean(members, table, rows.data, None, batch_size=batch_size, truth=False)
    outcome = outcome if probabilities else replace(outcome, probabilities=None)
    return add_predictions(table.frame, joined(members), rows.data, outcome)


def evaluate(members: Members, table: Any, *, rows: str, batch_size: int | None) -> Evaluation:
    """The figures of what the members predict together. Arguments and errors are those of `Run.evaluate`.

    Raises SettingsError: training or validation rows of an ensemble of folds, as each of them trained some member.
    """
    first = members[0]
    if rows in ("train", "valid") and first.settings.fold is not None:
        raise SettingsError(
            f"rows={rows!r}: of an ensemble of folds every row but the test rows trained some member. Use test, or all."
        )
    table = first.read(table)
    scored = rows_to_score(first, table, rows)
    evaluation = evaluate_rows(members, table, scored, batch_size)
    warn_of(unseen_classes(joined(members), _of_all(members, table, scored)))
    return evaluation


def evaluate_rows(members: Members, table: Table, rows: Rows, batch_size: int | None = None) -> Evaluation:
    """The same on rows of a table that was read; rows: as the first member has them."""
    first, part, pre = members[0], rows.part, joined(members)
    source = _of_all(members, table, rows).source
    outcome = _mean(members, table, rows.data, part, batch_size=batch_size, truth=True)
    metric, more = primary(pre.target, pre.horizon, first.settings.choose_by)
    unit = "sequences" if pre.per == "sequence" else "rows"
    count = sum(m.resolved.parts["train"][unit] for m in members)
    baselines = judged_rules(pre, source, part, rules_of_thumb(pre, source, first.settings.season), count)
    bare = [m.no_memory for m in members if m.no_memory is not None]
    if len(bare) == len(members):
        other = _mean(bare, table, rows.data, part, batch_size=batch_size, truth=True)
        baselines[NO_RECURRENCE] = judge(pre, source, part, other.values, other.chances)
    scores = judge(pre, source, part, outcome.values, outcome.chances)
    loss = _loss(pre, truth_of(pre, source, part), outcome)
    name = f"{first.settings.cell}, mean of {len(members)}"
    return Evaluation(name, rows.what, metric, more, scores, loss, baselines)


def joined(members: Members) -> Preprocessing:
    """The first member's preprocessing, with the target of all: every class that some member knows, and the mean of what else was
    fitted on their training rows.
    """
    targets = [m.preprocessing.target for m in members]
    classes = tuple(sorted({c for t in targets for c in t.classes}))
    counts = tuple(sum(t.counts[t.classes.index(c)] for t in targets if c in t.classes and t.counts) for c in classes)

    def mean(name: str) -> tuple[float, ...]:
        return tuple(float(v) for v in np.mean([getattr(t, name) for t in targets], axis=0))

    target = replace(
        targets[0],
        classes=classes,
        counts=counts,
        means=mean("means"),
        stds=mean("stds"),
        rule=mean("rule"),
        thresholds=mean("thresholds"),
    )
    return replace(members[0].preprocessing, target=target)


def _encoded(pre: Preprocessing, table: Table, like: Sequences, *, with_target: bool = True) -> Sequences:
    """The table by other preprocessing, in the parts and the stretches of `like`."""
    data = pre.apply(table, with_target=with_target, across_gaps=True)
    return replace(data, part=like.part, stretch=like.stretch)


def _of_all(members: Members, table: Table, rows: Rows) -> Rows:
    """The same rows with the target as all members together have it."""
    pre = joined(members)
    data = _encoded(pre, table, rows.data)
    return replace(rows, data=data, source=batch_source(data, pre, members[0].device))


def _mean(
    members: Members, table: Table, like: Sequences, part: int | None, *, batch_size: int | None, truth: bool
) -> Outcome:
    """What all members predict together, in the terms of `joined`. truth: the table has the target, and what the probabilities
    are worth is asked for.
    """
    target = joined(members).target
    task = TASKS[target.task]
    total: Any = 0.0
    nll: list[np.ndarray] = []
    ones: Any = 0.0
    for member in members:
        pre = member.preprocessing
        source = batch_source(_encoded(pre, table, like, with_target=truth), pre, member.device)
        sure = task.has_probabilities
        outcome = run_model(
            member.model, pre, source, part, batch_size=batch_size, probabilities=sure, chances=sure and truth
        )
        if target.task == "class":
            assert outcome.probabilities is not None
            mine: np.ndarray = outcome.probabilities
            if pre.target.classes != target.classes:
                mine = np.zeros((*mine.shape[:2], len(target.classes)))
                mine[..., [target.classes.index(c) for c in pre.target.classes]] = outcome.probabilities
            total = total + mine.astype(float)
        else:
            total = total + (outcome.values if outcome.probabilities is None else outcome.probabilities.astype(float))
        if outcome.chances is not None:
            known = truth_of(pre, source, part)
            lost = known >= len(pre.target.classes) if target.task == "class" else np.zeros(known.shape, dtype=bool)
            nll.append(np.where(lost, np.inf, outcome.chances.nll))  # a class that this member never saw
            ones = ones if outcome.chances.ones is None else ones + outcome.chances.ones
    mean = total / len(members)
    chances = None
    if nll:
        with np.errstate(divide="ignore", invalid="ignore"):  # log 0: no member saw the class; NaN: nothing predicted
            together = np.log(len(members)) - np.logaddexp.reduce([-n for n in nll], axis=0)
        chances = Chances(together, ones / len(members) if target.task == "labels" else None)
    if target.task == "number":
        return Outcome(mean, None, float("nan"))
    there = ~np.isnan(mean)
    if target.task == "class":
        values = np.where(there.all(axis=-1), np.nan_to_num(mean).argmax(axis=-1), -1)
    else:
        values = np.where(there, mean > np.array(target.thresholds or 0.5), np.nan)
    return Outcome(values, mean.astype(np.float32), float("nan"), chances)


def _loss(pre: Preprocessing, truth: np.ndarray, outcome: Outcome) -> float:
    """As the loss of one model: over the targets that are there, and of a class that some member saw."""
    if outcome.chances is None:
        errors = (outcome.values - truth) / np.array(pre.target.stds)
        return float(np.nanmean(errors**2))
    known = (truth >= 0) & (truth < len(pre.target.classes)) if pre.target.task == "class" else ~np.isnan(truth)
    return float(outcome.chances.nll[known].mean()) if known.any() else float("nan")
