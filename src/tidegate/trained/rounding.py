"""What rounded weights cost: the scores and the run's figure before and after, and where a run's folder keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tidegate.documents import Damaged, check, from_json
from tidegate.errors import DataError, SettingsError
from tidegate.files import DiskError, write_text
from tidegate.model import SequenceModel
from tidegate.nn import quantize
from tidegate.trained.comparison import Evaluation, nice, number
from tidegate.trained.evaluation import Gathered, judge, run_model, scored_pieces
from tidegate.trained.metrics import primary
from tidegate.trained.rows import Rows, scored_rows, training_table
from tidegate.trained.trained import Trained
from tidegate.workers import here

FILE = "quantised.json"  # in a run's folder: for each kind of weights what it cost, as far as it was asked for


@dataclass(frozen=True)
class Figures:
    """The run's figure on some rows, with its own weights and with rounded ones. scores: the largest difference of a score;
    what: which rows, in words.
    """

    metric: str
    what: str
    before: float
    after: float
    scores: float

    def sentence(self, before: str, after: str) -> str:
        """before, after: how the two kinds of weights are called."""
        change = self.after - self.before
        return (
            f"{_capital(nice(self.metric))} on {self.what}: {self.before:.4g} as {before}, {self.after:.4g} as {after} "
            f"({change:+.2g})."
        )


def figures_of(trained: Trained, rounded: SequenceModel, table: Any = None) -> Figures | DataError | str:
    """The run's figure on the test rows of a table (all rows where there are none), with its own weights and with the rounded ones.

    table: None: the one of the training. Where it isn't to be had, why, as a sentence without its full stop; where it can't be read
    or scored, the error, which of a table that was named is raised.
    """
    try:
        if table is None:
            read, gone = training_table(trained)
            if read is None:
                return gone
        else:
            read = trained.read(table)
        return figures_on(trained, rounded, scored_rows(trained, read))
    except DataError as error:
        if table is not None:
            raise
        return error


@torch.no_grad()
def figures_on(trained: Trained, rounded: SequenceModel, rows: Rows) -> Figures:
    """The same on rows that were read. Raises DataError where none has a target."""
    pre, source, part = trained.preprocessing, rows.source, rows.part
    metric = _metric(trained)
    models = (trained.model, rounded)
    gathered = [Gathered(pre, source, chances=True) for _ in models]
    largest = 0.0
    for both in zip(*(scored_pieces(model, pre, source, part) for model in models), strict=True):
        for each, piece in zip(gathered, both, strict=True):
            each.take(piece)
        one, other = both
        if len(one.scores):
            largest = max(largest, float((one.scores - other.scores).abs().max()))
        del both, one, other, piece  # before the next ones are computed
    values = []
    for each in gathered:
        outcome = each.outcome()
        scores = judge(pre, source, part, outcome.values, outcome.chances)
        if not scores.count:
            raise DataError("these rows hold no target value.")
        values.append(float(scores.summary[metric]))
    return Figures(metric, rows.what, values[0], values[1], largest)


def _metric(trained: Trained) -> str:
    return primary(trained.preprocessing.target, trained.preprocessing.horizon, trained.settings.choose_by)[0]


def quantised_model(trained: Trained, weights: str) -> SequenceModel:
    """A copy of the run's model with its core's weights rounded. Raises what `tidegate.quantize` raises."""
    if trained.model.spec.cell != "gru":
        raise SettingsError(
            f"The cell of {trained.name} is {trained.model.spec.cell!r}; what is quantised are GRUs. Train one with cell='gru' (--cell gru), "
            "or take this one as it is, without weights= (--weights)."
        )
    rounded: SequenceModel = quantize(trained.model, weights)
    return rounded


def bytes_of(module: nn.Module) -> int:
    """What its weights take."""
    return sum(v.nbytes for v in (*module.parameters(), *module.buffers()))


def _sizes(trained: Trained, rounded: SequenceModel) -> tuple[int, int]:
    """The bytes of the core's weights, before and after."""
    assert trained.model.core is not None
    assert rounded.core is not None
    return bytes_of(trained.model.core), bytes_of(rounded.core)


def _saved(weights: str, before: int, after: int) -> str:
    return f"The core's weights take {after:,} bytes as {weights}, {before:,} as float32."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Cost:
    """What rounding saves and what it costs. bytes_before, bytes_after: of the core's weights. figures: None where there are no rows
    to score; then `unknown` says why.
    """

    weights: str
    bytes_before: int
    bytes_after: int
    figures: Figures | None = None
    unknown: str = ""

    def __str__(self) -> str:
        saved = _saved(self.weights, self.bytes_before, self.bytes_after)
        if self.figures is None:
            return f"{saved} What that costs is unknown: {self.unknown}"
        told = self.figures.sentence("float32", self.weights)
        return f"{saved} {told} Scores differ by at most {self.figures.scores:.2g}."


def cost_of(trained: Trained, rounded: SequenceModel, weights: str, table: Any = None) -> Cost:
    """What the weights of `rounded` save and cost. Of a run in a folder the figures on the table of its training are kept there, in
    FILE, and counted once.
    """
    sizes = _sizes(trained, rounded)
    if table is None and (kept := _kept(trained, weights)) is not None:
        return Cost(weights, *sizes, kept)
    found = figures_of(trained, rounded, table)
    if isinstance(found, Figures):
        if table is None:
            _keep(trained, weights, found)
        return Cost(weights, *sizes, found)
    unknown = (
        str(found)
        if isinstance(found, DataError)
        else f"{found}. Evaluate a table with weights={weights!r} (--weights {weights})."
    )
    return Cost(weights, *sizes, None, unknown)


def note_on_rounding(whole: Trained, rounded: SequenceModel, weights: str) -> Callable[[Rows, Evaluation], list[str]]:
    """A sentence for the figures of a run with rounded weights: what its own ones give on the same rows."""

    def note(rows: Rows, evaluation: Evaluation) -> list[str]:
        pre, metric = whole.preprocessing, evaluation.metric
        outcome = run_model(whole.model, pre, rows.source, rows.part, chances=True)
        before = judge(pre, rows.source, rows.part, outcome.values, outcome.chances).summary[metric]
        after = evaluation.model.summary[metric]
        saved = _saved(weights, *_sizes(whole, rounded))
        return [
            f"{saved} {_capital(nice(metric))} {number(after)} as {weights}, {number(before)} as float32 ({after - before:+.2g})."
        ]

    return note


def _kept(trained: Trained, weights: str) -> Figures | None:
    """What an earlier call kept of this very run."""
    values = _read(trained).get(weights)
    try:
        check(Figures, values)
        figures = Figures(**values) if isinstance(values, dict) else None
    except (Damaged, TypeError):
        return None
    if figures is None or figures.metric != _metric(trained) or not figures.what:
        return None
    return figures if math.isfinite(figures.after - figures.before) and math.isfinite(figures.scores) else None


def _read(trained: Trained) -> dict[str, Any]:
    """What FILE holds; nothing where it is damaged, or of other weights than the run has by now: it is only kept to save time."""
    if trained.folder is None:
        return {}
    try:
        values = from_json((trained.folder / FILE).read_bytes())
    except (OSError, Damaged):
        return {}
    mine = isinstance(values, dict) and values.get("run") == trained.fingerprint
    return values if mine else {}


def _keep(trained: Trained, weights: str, figures: Figures) -> None:
    if trained.folder is None or not here().leads:
        return
    values = _read(trained) | {"run": trained.fingerprint, weights: asdict(figures)}
    path: Path = trained.folder / FILE
    try:
        write_text(path, json.dumps(values, indent=1) + "\n")
    except DiskError:  # a folder that may only be read: it is counted again next time
        return
