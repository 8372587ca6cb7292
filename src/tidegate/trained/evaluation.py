"""A model run over whole sequences, and the rules of thumb to hold it against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tidegate.data.batches import EVALUATION_STEPS, BatchSource
from tidegate.data.preprocessing import Preprocessing, named
from tidegate.data.sequences import MISSING_CLASS, PART_NAMES, UNSEEN_CLASS, VALID
from tidegate.errors import DataError, SettingsError
from tidegate.model import SequenceModel
from tidegate.model.pooling import POOLINGS
from tidegate.model.tasks import TASKS, Chances
from tidegate.trained.comparison import Evaluation
from tidegate.trained.metrics import TALLIES, Scores, chooser, is_bio, primary, score
from tidegate.trained.rows import Rows, rows_to_score, warn_of
from tidegate.trained.trained import Trained
from tidegate.workers import Alone, here

NO_RECURRENCE = "same head, no recurrence"  # what the baseline of that kind is called
CHUNK = 4_096  # steps at a time of a long sequence, its state carried on: memory stays bounded
SCORES_AT_ONCE = (
    16_777_216  # of the head while evaluating: with thousands of classes they are what takes the most memory
)


def evaluate(
    trained: Trained,
    table: Any,
    *,
    rows: str,
    batch_size: int | None,
    more_notes: Callable[[Rows, Evaluation], list[str]] = lambda rows, evaluation: [],
) -> Evaluation:
    """What `Run.evaluate` does; see there. more_notes: sentences on the figures of some rows."""
    if rows not in {"auto", "all", *PART_NAMES}:
        raise SettingsError(f"rows={rows!r}: expected auto, all, train, valid or test.")
    scored = rows_to_score(trained, trained.read(table), rows)
    evaluation = evaluate_rows(trained, scored, batch_size)
    evaluation.notes += more_notes(scored, evaluation)
    warn_of(unseen_classes(trained.preprocessing, scored))
    return evaluation


def evaluate_rows(trained: Trained, rows: Rows, batch_size: int | None = None) -> Evaluation:
    """The model's figures on some rows, beside those of the baselines.

    Raises DataError where none has a target, or none a class that training saw.
    """
    return score_rows(trained, rows, batch_size)[0]


@dataclass(frozen=True)
class Guesses:
    """What the figures are of. values: by name, the model's first and then those of the baselines, in the layout of
    `Outcome.values`; truth: the same of the targets; chances: of the model, as `Outcome.chances`. steps: all these are of the steps
    first:end alone, where there are too many to keep all; None: of all.
    """

    values: dict[str, np.ndarray]
    truth: np.ndarray
    chances: Chances | None
    steps: tuple[int, int] | None = None


def score_rows(trained: Trained, rows: Rows, batch_size: int | None = None) -> tuple[Evaluation, Guesses]:
    """What `evaluate_rows` returns and raises, and the predictions that it counted: all of them, or those of `Guesses.steps`."""
    pre, settings, source, part = trained.preprocessing, trained.settings, rows.source, rows.part
    steps = steps_to_keep(pre, source, part)
    own = figures(trained.model, pre, source, part, batch_size=batch_size, chances=True, keep=steps)
    if not own.scores.count:
        raise DataError(f"Nothing to score: {rows.what} hold no target value.")
    if not source.has_targets(part):
        raise DataError(
            f"Nothing to score: no target among {rows.what} is of a class that training saw ({named(pre.target.classes)}). They "
            f"are {named(list(_unseen(rows)))}."
        )
    metric, more = primary(pre.target, pre.horizon, settings.choose_by)
    count = trained.resolved.parts["train"]["sequences" if pre.per == "sequence" else "rows"]
    if steps is None:
        guesses = rules_of_thumb(pre, source, settings.season)
        baselines = judged_rules(pre, source, part, guesses, count)
        truth = truth_of(pre, source, part)
    else:
        guesses = rules_between(pre, source, settings.season, *steps)
        baselines = _tallied_rules(pre, source, part, settings.season, count)
        truth = truth_between(pre, source, part, *steps)
    if trained.no_memory is not None:
        bare = trained.no_memory.model.to(source.device)
        theirs = trained.no_memory.preprocessing  # its labels have thresholds of their own
        other = figures(bare, theirs, source, part, batch_size=batch_size, chances=True, keep=steps)
        guesses[NO_RECURRENCE] = other.values
        baselines[NO_RECURRENCE] = other.scores
    before = None
    if trained.before is not None:
        then = _as_it_began(trained)
        first = trained.before.to(source.device)
        before = figures(first, then, source, part, batch_size=batch_size, chances=True, keep=steps).scores
    notes = _notes(pre, part)
    evaluation = Evaluation(
        settings.cell, rows.what, metric, more, own.scores, own.loss, baselines, before=before, notes=notes
    )
    return evaluation, Guesses({settings.cell: own.values} | guesses, truth, own.chances, steps)


def _as_it_began(trained: Trained) -> Preprocessing:
    """With the thresholds of the run that this one goes on from, by which its weights predicted labels."""
    pre, origin = trained.preprocessing, trained.resolved.origin or {}
    return replace(pre, target=replace(pre.target, thresholds=tuple(origin.get("thresholds", ()))))


def _notes(pre: Preprocessing, part: int | None) -> list[str]:
    if not pre.target.thresholds or part != VALID:
        return []
    return [
        "The labels' thresholds were chosen on these validation rows, so F1 and exact match are better here than on new rows."
    ]


def _unseen(rows: Rows) -> dict[Any, int]:
    """The classes of the scored targets that training never saw, the most frequent first, with their numbers."""
    y = rows.source.all_targets(rows.part)
    codes, counts = np.unique(y[y <= UNSEEN_CLASS].cpu().numpy(), return_counts=True)
    codes, counts = codes[::-1], counts[::-1]  # in the order of `unseen`
    return {rows.data.unseen[int(UNSEEN_CLASS - codes[k])]: int(counts[k]) for k in np.argsort(-counts, kind="stable")}


def unseen_classes(pre: Preprocessing, rows: Rows) -> list[str]:
    """A sentence on the scored targets whose class training never saw."""
    counts = _unseen(rows) if rows.data.unseen else {}
    if not counts:
        return []
    total, scored = sum(counts.values()), int((rows.source.all_targets(rows.part) != MISSING_CLASS).sum())
    return [
        f"Column {pre.target.names[0]!r}: {total:,} of {scored:,} scored targets of {rows.what} {'is' if total == 1 else 'are'} of "
        f"{'a class' if len(counts) == 1 else 'classes'} that training never saw: {named(list(counts))}. "
        f"{'It counts' if total == 1 else 'They count'} as missed in every figure, and the loss leaves "
        f"{'it' if total == 1 else 'them'} out."
    ]


@dataclass
class Outcome:
    """Predictions for each step [N, K, ...] or sequence [S, 1, ...], in the order of `Sequences`.

    values: classes as whole numbers [., K], labels as 0/1 or numbers in the table's units [., K, W].
    probabilities [., K, W] and chances, where asked for. Where nothing was predicted: -1 or NaN. loss: mean over scored targets.
    """

    values: np.ndarray
    probabilities: np.ndarray | None
    loss: float
    chances: Chances | None = None


@dataclass
class Carry:
    """The state that a model left at the end of a piece of a sequence, with which the next piece begins; None: the sequence begins."""

    state: Any = None


@torch.no_grad()
def run_model(
    model: SequenceModel,
    pre: Preprocessing,
    source: BatchSource,
    part: int | None,
    *,
    batch_size: int | None = None,
    probabilities: bool = False,
    chances: bool = False,
    carry: Carry | None = None,
) -> Outcome:
    """Predict every sequence that has a step in `part`, each from its beginning with its state carried.

    chances: also what the probabilities of classes and labels are worth; the targets must be there. carry: as in `scored_pieces`.
    The result doesn't depend on batch_size (beyond the last bits), and not on how many workers share it: all get all of it.
    """
    gathered, workers = Gathered(pre, source, probabilities=probabilities, chances=chances), here()
    for scored in scored_pieces(model, pre, source, part, batch_size=batch_size, mine=workers.mine, carry=carry):
        gathered.take(scored)
        del scored  # before the next piece is computed
    gathered.exchange(workers)
    return gathered.outcome()


class Gathered:
    """An `Outcome` that is put together of pieces. steps: of these alone, first:end; None: of all."""

    def __init__(
        self,
        pre: Preprocessing,
        source: BatchSource,
        *,
        probabilities: bool = False,
        chances: bool = False,
        steps: tuple[int, int] | None = None,
    ):
        self._task, self._target, self._steps = TASKS[pre.target.task], pre.target, steps
        self._values, self._proba = blank_of(pre, source, probabilities, steps)
        self._worth = no_chances(self._values) if chances and self._task.has_probabilities else None
        self._losses: list[tuple[float, float, float]] = []  # the batch, its summed loss, how many targets
        self._at: list[np.ndarray] = []

    def take(self, scored: Piece) -> None:
        task = self._task
        if scored.y is not None:
            self._losses.append((scored.batch, scored.loss, scored.known))
        at, scores, y = scored.at, scored.scores, scored.y
        if self._steps is not None:
            first, end = self._steps
            inside = np.flatnonzero((at >= first) & (at < end))
            if not len(inside):
                return
            at, scores = at[inside] - first, scores[inside]
            y = None if y is None else y[inside]
        self._at.append(at)
        self._values[at] = task.decide(scores, self._target)
        if self._proba is not None:
            self._proba[at] = task.probabilities(scores).numpy()
        if self._worth is not None:
            assert y is not None
            here = task.chances(scores, y)
            self._worth.nll[at] = here.nll
            if self._worth.ones is not None:
                self._worth.ones[at] = here.ones

    def exchange(self, workers: Alone) -> None:
        """Take what other workers have done."""
        if workers.size == 1:
            return
        nll, ones = (None, None) if self._worth is None else (self._worth.nll, self._worth.ones)
        arrays = [a for a in (self._values, self._proba, nll, ones) if a is not None]
        at = np.concatenate([*self._at, np.zeros(0, dtype=np.int64)])
        losses = np.array(self._losses).reshape(-1, 3)
        self._losses.clear()
        workers.meet()  # one may have more to do, or be slower
        for theirs, losses_of, *found in workers.gather([at, losses, *(a[at] for a in arrays)]):
            self._losses += [tuple(row) for row in losses_of.tolist()]
            for array, values in zip(arrays, found, strict=True):
                array[theirs] = values

    def outcome(self) -> Outcome:
        total, count = 0.0, 0.0
        for _, loss, known in sorted(self._losses, key=lambda row: row[0]):
            total, count = total + loss, count + known
        loss = total / count if count else float("nan")
        return Outcome(self._values, self._proba, loss, self._worth)


MOST_KEPT = 2**22
"""Rows up to which all predictions are kept while they are scored. Of more, figures are added up piece by piece."""
MOST_DRAWN = 2**18  # rows whose predictions are kept for the report's pictures then


def steps_to_keep(pre: Preprocessing, source: BatchSource, part: int | None) -> tuple[int, int] | None:
    """The steps first:end whose predictions are kept where there are more than MOST_KEPT: from the first one of the part on. None: all
    are kept, as there are fewer, or as the figures need them all.

    It goes by the number of rows, not by where they lie, so that a table in memory has the figures of one on disk.
    """
    if len(source.data.part) <= MOST_KEPT or not can_be_tallied(pre):
        return None
    first = 0
    if part is not None:
        first = next(
            (
                a + int(at[0])
                for a, b in source.data.blocks()
                if len(at := np.flatnonzero(source.data.part[a:b] == part))
            ),
            0,
        )
    return first, min(first + MOST_DRAWN, len(source.data.part))


def can_be_tallied(pre: Preprocessing) -> bool:
    """Whether the figures can be added up piece by piece."""
    return pre.per == "step" and pre.target.task in TALLIES and not is_bio(pre.target.seen)


@dataclass
class Figured:
    """A model's figures on a part, its loss, and predictions as `Outcome` has them: all, or of the steps that were to be kept."""

    scores: Scores
    loss: float
    values: np.ndarray
    chances: Chances | None


@torch.no_grad()
def figures(
    model: SequenceModel,
    pre: Preprocessing,
    source: BatchSource,
    part: int | None,
    *,
    batch_size: int | None = None,
    chances: bool = False,
    keep: tuple[int, int] | None = None,
) -> Figured:
    """Predict a part as `run_model` does, and judge that. keep: what `steps_to_keep` says of this part."""
    if keep is None:
        outcome = run_model(model, pre, source, part, batch_size=batch_size, chances=chances)
        scores = judge(pre, source, part, outcome.values, outcome.chances)
        return Figured(scores, outcome.loss, outcome.values, outcome.chances)
    task, target = TASKS[pre.target.task], pre.target
    tally = TALLIES[target.task](target.with_unseen(source.data.unseen))
    kept = Gathered(pre, source, chances=chances, steps=keep)
    for scored in scored_pieces(model, pre, source, part, batch_size=batch_size):
        assert scored.y is not None
        worth = task.chances(scored.scores, scored.y) if chances and task.has_probabilities else None
        tally.take(task.decide(scored.scores, target), task.truth(scored.y.numpy(), target), worth)
        kept.take(scored)
        del scored
    outcome = kept.outcome()
    return Figured(tally.scores(), outcome.loss, outcome.values, outcome.chances)


class Piece(NamedTuple):
    """The scores [P, K, W] of some steps or sequences, on the CPU. batch: the number of the batch they are of. at [P]: which they are,
    in the order of `Sequences`. y: their targets, with the loss summed over those that have one, and how many do; None where the
    table has no target.
    """

    batch: int

    at: np.ndarray
    scores: Tensor
    y: Tensor | None
    loss: float
    known: int


@torch.no_grad()
def scored_pieces(
    model: SequenceModel,
    pre: Preprocessing,
    source: BatchSource,
    part: int | None,
    *,
    batch_size: int | None = None,
    at_once: int | None = None,
    mine: Callable[[int], bool] = lambda number: True,
    carry: Carry | None = None,
) -> Iterator[Piece]:
    """What the model gives for every sequence that has a step in `part`, each from its beginning with its state carried, piece by
    piece: never more than SCORES_AT_ONCE scores and some ten thousand steps at once, however many classes there are and however long a
    sequence is. (Two directions have to read a sequence as a whole.)

    at_once: how many rows (or sequences) a piece has at most; None: as many as SCORES_AT_ONCE allows. With the same number the
    pieces of models of the same cell, on sequences of the same lengths, are the same rows. mine: of which numbers of batches pieces
    are wanted. carry: there is one sequence, or a piece of one, which begins with this state, and leaves its own there. Raises
    SettingsError: batch_size.
    """
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise SettingsError(f"batch_size={batch_size!r}: expected a whole number of at least 1, or None.")
    task, per_sequence = TASKS[pre.target.task], pre.per == "sequence"
    rows = at_once or max(1, SCORES_AT_ONCE // (max(pre.horizon, 1) * pre.target.width))
    # Where scores are cut anyway, the recurrence needn't run over as many steps as are worth it elsewhere.
    most_steps = min(EVALUATION_STEPS, max(rows, 4 * CHUNK))
    chunk = None if model.spec.bidirectional else CHUNK
    pooling = POOLINGS[model.spec.pooling]

    def piece(number: int, at: np.ndarray, scores: Tensor, y: Tensor | None, inside: Tensor | None) -> Piece:
        loss, n = (0.0, 0) if y is None else task.loss_sum(scores, y)
        if inside is not None:
            scores = scores.flatten(0, 1) if bool(inside.all()) else scores[inside]  # without padding no copy is needed
            y = None if y is None else y[inside]
        return Piece(number, at, scores.cpu(), None if y is None else y.cpu(), float(loss), int(n))

    with model.evaluating():
        for number, chunks in enumerate(
            source.whole_sequences(part, min(batch_size or rows, rows), chunk, most_steps=most_steps)
        ):
            if not mine(number):
                continue
            state, batch = None if carry is None else carry.state, None
            carried: Any = None
            lengths: Any = 0
            for batch in chunks:
                output, state = model.recur(batch.numbers, batch.codes, batch.lengths, state)
                if not per_sequence:
                    # The head by the block of steps, as classes may be thousands.
                    block = max(1, rows // output.size(1))
                    for first in range(0, len(output), block):
                        some = slice(first, first + block)
                        at, y = batch.steps[some][batch.inside[some]], None if batch.y is None else batch.y[some]
                        # (No name for the scores here: they would be there twice while the next ones are computed.)
                        yield piece(
                            number,
                            at.cpu().numpy(),
                            model.score(output[some], batch.numbers[some]),
                            y,
                            batch.inside[some],
                        )
                elif chunk is None:
                    carried = pooling.whole(output, batch.lengths.to(output.device), model.spec)
                else:
                    carried, lengths = pooling.more(carried, output, batch.inside), lengths + batch.inside.sum(dim=0)
            if carry is not None:
                carry.state = state
            if per_sequence:
                assert batch is not None
                assert batch.sequences is not None
                read = carried if chunk is None else pooling.pooled(carried, lengths)
                yield piece(number, batch.sequences.numpy(), model.score(read, batch.numbers[-1]), batch.y, None)


def no_chances(values: np.ndarray) -> Chances:
    """Chances where nothing is predicted yet, of the shape of these values."""
    nll = np.full(values.shape, np.nan)
    return Chances(nll, nll.copy() if values.ndim > 2 else None)


def _chances_of_shares(pre: Preprocessing, source: BatchSource, part: int | None, rows: int) -> Chances | None:
    task = TASKS[pre.target.task]
    return task.chances_of_shares(truth_of(pre, source, part), pre.target, rows) if task.has_probabilities else None


def blank_of(
    pre: Preprocessing, source: BatchSource, probabilities: bool, steps: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Values and, where asked for, probabilities as in `Outcome`, where nothing is predicted yet. steps: of these alone."""
    rows = _count(pre, source) if steps is None else steps[1] - steps[0]
    task, ahead, width = TASKS[pre.target.task], max(pre.horizon, 1), pre.target.width
    wanted = probabilities and task.has_probabilities
    values = task.blank((rows, ahead), width)
    return values, np.full((rows, ahead, width), np.nan, dtype=np.float32) if wanted else None


def _count(pre: Preprocessing, source: BatchSource) -> int:
    """How many predictions there are: one a sequence, or one a step."""
    return len(source.data) if pre.per == "sequence" else len(source.data.part)


def truth_of(pre: Preprocessing, source: BatchSource, part: int | None) -> np.ndarray:
    """The targets as `Outcome.values` has the predictions; missing ones are MISSING_CLASS or NaN, and classes that training
    never saw count on from those of the target.
    """
    return TASKS[pre.target.task].truth(source.all_targets(part).cpu().numpy(), pre.target)


def truth_between(pre: Preprocessing, source: BatchSource, part: int | None, first: int, end: int) -> np.ndarray:
    """The same of the steps first:end."""
    return TASKS[pre.target.task].truth(source.targets_between(first, end, part).cpu().numpy(), pre.target)


def owners(pre: Preprocessing, source: BatchSource) -> np.ndarray:
    """Which sequence each entry of `Outcome.values` is of."""
    count = len(source.data)
    return np.arange(count) if pre.per == "sequence" else np.repeat(np.arange(count), source.data.lengths)


def judge(
    pre: Preprocessing, source: BatchSource, part: int | None, values: np.ndarray, chances: Chances | None = None
) -> Scores:
    """The figures of some predictions, and of their probabilities where there are any, on the scored steps of a part."""
    target = pre.target.with_unseen(source.data.unseen)
    return score(target, values, truth_of(pre, source, part), owners(pre, source), chances)


def check_choice(pre: Preprocessing, source: BatchSource, choose_by: str) -> None:
    """Raise SettingsError where no epoch can be chosen so: the task has no such figure, or these validation rows don't."""
    name = chooser(pre.target, pre.horizon, choose_by)
    needs = {
        "auroc": "a label that is 0 in some validation rows and 1 in others",
        "auprc": "a label that is 0 in some validation rows and 1 in others",
        "r2": "two different values of a target in the validation rows",
    }
    if name not in needs or not source.has_targets(VALID):
        return
    if steps_to_keep(pre, source, VALID) is not None:
        summary = next(iter(_tallied_rules(pre, source, VALID, None, 1).values())).summary
    else:
        summary = _judged_first_rule(pre, source).summary
    if np.isnan(summary[name]):
        raise SettingsError(
            f"choose_by={choose_by!r} needs {needs[name]}, and there is none. Choose by another figure (loss), or split otherwise."
        )


def _judged_first_rule(pre: Preprocessing, source: BatchSource) -> Scores:
    guess = next(iter(rules_of_thumb(pre, source, None).values()))
    return judge(pre, source, VALID, guess, _chances_of_shares(pre, source, VALID, 1))


def rules_of_thumb(pre: Preprocessing, source: BatchSource, season: int | None) -> dict[str, np.ndarray]:
    """Predictions that need no model, by name, in the layout of `Outcome.values`.

    The majority class, the majority of each label or the training mean; for a forecast also the last value and,
    with `season`, the value one season before the one to predict.
    """
    return rules_between(pre, source, season, 0, _count(pre, source))


def rules_between(
    pre: Preprocessing, source: BatchSource, season: int | None, first: int, end: int
) -> dict[str, np.ndarray]:
    """The same of the steps (or sequences) first:end."""
    values, _ = blank_of(pre, source, False, (first, end))
    name, value = TASKS[pre.target.task].rule_of_thumb(pre.target)
    constant = np.broadcast_to(value, values.shape).astype(values.dtype)
    out = {name: constant}
    if pre.horizon:
        out["last value"] = _shifted(pre, source, constant, first, season=None)
        if season:
            out[f"last season ({season} rows)"] = _shifted(pre, source, out["last value"], first, season=season)
    return out


def _tallied_rules(
    pre: Preprocessing, source: BatchSource, part: int | None, season: int | None, count: int
) -> dict[str, Scores]:
    """What `judged_rules` gives, a block of steps at a time."""
    task, tallies = TASKS[pre.target.task], {}
    for first, end in source.data.blocks():
        truth = truth_between(pre, source, part, first, end)
        by_shares = task.chances_of_shares(truth, pre.target, count) if task.has_probabilities else None
        for k, (name, values) in enumerate(rules_between(pre, source, season, first, end).items()):
            if name not in tallies:
                tallies[name] = TALLIES[pre.target.task](pre.target.with_unseen(source.data.unseen))
            tallies[name].take(values, truth, by_shares if k == 0 else None)
    return {name: tally.scores() for name, tally in tallies.items()}


def judged_rules(
    pre: Preprocessing, source: BatchSource, part: int | None, rules: dict[str, np.ndarray], count: int
) -> dict[str, Scores]:
    """The figures of what `rules_of_thumb` says. count: training rows, or sequences where one value a sequence is predicted."""
    by_shares = _chances_of_shares(pre, source, part, count)
    return {
        # The first rule, the constant one, comes with probabilities: the shares among the training rows.
        name: judge(pre, source, part, values, by_shares if k == 0 else None)
        for k, (name, values) in enumerate(rules.items())
    }


def _shifted(
    pre: Preprocessing, source: BatchSource, otherwise: np.ndarray, begin: int, season: int | None
) -> np.ndarray:
    """otherwise: what is guessed where no such value is there, for the steps from `begin` on."""
    data = source.data
    assert data.y is not None
    first, _ = data.bounds(begin, begin + len(otherwise))
    step = np.arange(begin, begin + len(otherwise))
    out: np.ndarray = otherwise.copy()
    for ahead in range(1, pre.horizon + 1):
        at = step if season is None else step + ahead - season * -(-ahead // season)
        there = at >= first
        if data.stretch is not None:  # a season ago is as many rows back only where none are missing
            there &= data.stretch[np.where(there, at, step)] == data.stretch[step]
        guess = TASKS[pre.target.task].truth(data.y[np.where(there, at, step)], pre.target)
        there = there & (guess != MISSING_CLASS if guess.ndim == 1 else ~np.isnan(guess).any(axis=1))
        out[there, ahead - 1] = guess[there]
    return out
