"""Several runs that predict together: the mean of their probabilities, or of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import UNSEEN_CLASS, Sequences
from tidegate.data.tables import Table
from tidegate.errors import SettingsError
from tidegate.model.tasks import TASKS
from tidegate.trained.comparison import Evaluation
from tidegate.trained.evaluation import (
    NO_RECURRENCE,
    Carry,
    Outcome,
    blank_of,
    judge,
    judged_rules,
    no_chances,
    rules_of_thumb,
    scored_pieces,
    truth_of,
    unseen_classes,
)
from tidegate.trained.metrics import primary
from tidegate.trained.predict import add_predictions, check_probabilities
from tidegate.trained.rows import Rows, batch_source, rows_to_predict, rows_to_score, warn_of
from tidegate.trained.trained import Trained

Members = Sequence[Trained]
PROBABILITIES_AT_ONCE = 2**22  # in float64, of each member and of their sum


def predict(
    members: Members,
    table: Any,
    *,
    probabilities: bool,
    batch_size: int | None,
    carries: Sequence[Carry] | None = None,
) -> pl.DataFrame:
    """The mean of what the members predict, beside the table's rows. Arguments and errors are those of `Run.predict`.

    Of classes the most probable one in the mean, of labels those whose mean probability is above 1/2, or above the mean of the members'
    thresholds. carries: of each member, as in `scored_pieces`.
    """
    first = members[0]
    table = first.read(table)
    check_probabilities(first.preprocessing, probabilities)
    rows = rows_to_predict(first, table)
    outcome = _mean(
        members,
        table,
        rows.data,
        None,
        batch_size=batch_size,
        truth=False,
        probabilities=probabilities,
        carries=carries,
    )
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
    members: Members,
    table: Table,
    like: Sequences,
    part: int | None,
    *,
    batch_size: int | None,
    truth: bool,
    probabilities: bool = False,
    carries: Sequence[Carry] | None = None,
) -> Outcome:
    """What all members predict together, in the terms of `joined`. truth: the table has the target, and what the probabilities
    are worth is asked for. probabilities: these, too.

    Members go through the rows side by side, so that the probabilities of all classes are there for a piece of the rows alone.
    """
    pre = joined(members)
    target, task = pre.target, TASKS[pre.target.task]
    sources = _sources(members, table, like, with_target=truth)
    values, proba = blank_of(pre, sources[0], probabilities)
    worth = no_chances(values) if truth and task.has_probabilities else None
    at_once = max(1, PROBABILITIES_AT_ONCE // (max(pre.horizon, 1) * target.width))
    every = [
        scored_pieces(m.model, m.preprocessing, source, part, batch_size=batch_size, at_once=at_once, carry=carry)
        for m, source, carry in zip(members, sources, carries or [None] * len(members), strict=True)
    ]
    for pieces in zip(*every, strict=True):
        at = pieces[0].at
        total: Any = 0.0
        nll: list[np.ndarray] = []
        ones: Any = 0.0
        for member, piece in zip(members, pieces, strict=True):
            assert np.array_equal(piece.at, at)
            own = member.preprocessing.target
            if not task.has_probabilities:
                total = total + task.decide(piece.scores, own)
                continue
            mine = task.probabilities(piece.scores).numpy().astype(float)
            if target.task == "class" and own.classes != target.classes:
                wider = np.zeros((*mine.shape[:2], len(target.classes)))
                wider[..., [target.classes.index(c) for c in own.classes]] = mine
                mine = wider
            total = total + mine
            if worth is not None:
                assert piece.y is not None
                here = task.chances(piece.scores, piece.y)
                # A class that this member never saw: it gives it no chance.
                lost = piece.y.numpy() <= UNSEEN_CLASS if target.task == "class" else False
                nll.append(np.where(lost, np.inf, here.nll.astype(float)))
                ones = ones if here.ones is None else ones + here.ones
        mean = total / len(members)
        if target.task == "class":
            values[at] = mean.argmax(axis=-1)
        elif target.task == "labels":
            values[at] = mean > np.array(target.thresholds or 0.5)
        else:
            values[at] = mean
        if proba is not None:
            proba[at] = mean
        if worth is not None:
            with np.errstate(
                divide="ignore", invalid="ignore"
            ):  # log 0: no member saw the class; NaN: nothing predicted
                worth.nll[at] = np.log(len(members)) - np.logaddexp.reduce([-n for n in nll], axis=0)
            if worth.ones is not None:
                worth.ones[at] = ones / len(members)
        del pieces, piece  # before the next ones are computed
    return Outcome(values, proba, float("nan"), worth)


def _sources(members: Members, table: Table, like: Sequences, *, with_target: bool) -> list[BatchSource]:
    """The table as each member reads it: those that read it alike share it."""
    alike: dict[str, BatchSource] = {}
    for member in members:
        pre = member.preprocessing
        key = pre.to_json()
        if key not in alike:
            alike[key] = batch_source(_encoded(pre, table, like, with_target=with_target), pre, member.device)
    return [alike[m.preprocessing.to_json()] for m in members]


def _loss(pre: Preprocessing, truth: np.ndarray, outcome: Outcome) -> float:
    """As the loss of one model: over the targets that are there, and of a class that some member saw."""
    if outcome.chances is None:
        errors = (outcome.values - truth) / np.array(pre.target.stds)
        return float(np.nanmean(errors**2))
    known = (truth >= 0) & (truth < len(pre.target.classes)) if pre.target.task == "class" else ~np.isnan(truth)
    return float(outcome.chances.nll[known].mean()) if known.any() else float("nan")
