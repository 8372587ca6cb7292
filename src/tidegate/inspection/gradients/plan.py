"""Which predictions are followed back, and from where their sequences are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tidegate.data.batches import BatchSource
from tidegate.errors import DataError
from tidegate.model import ModelSpec

FARTHEST = 200  # steps back
PREDICTIONS = 200
MOST_STEPS = (
    20_000  # of a sequence that are read before the last prediction; states hold no trace of what lies further back
)


@dataclass(frozen=True)
class Piece:
    """Steps start : end (flat) of a sequence, begun with an empty state, and the steps in it (from start) that predict."""

    sequence: int
    start: int
    end: int
    at: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.end - self.start


def offsets(plan: Sequence[Piece]) -> np.ndarray:
    """Where the predictions of each piece begin."""
    return np.cumsum([0, *(len(p.at) for p in plan)])[:-1]


def make_plan(spec: ModelSpec, source: BatchSource, part: int | None, what: str) -> list[Piece]:
    """Up to 200 predictions, each with a target and with a step before it."""
    data = source.data
    if source.y is None:
        raise DataError(f"Nothing to score: {what} hold no target.")
    y = source.all_targets(part).flatten(1)
    known = (y >= 0 if y.dtype == torch.int64 else ~torch.isnan(y)).any(dim=1).numpy()
    if not known.any():
        raise DataError(f"Nothing to score: {what} hold no target value.")
    scored: dict[int, np.ndarray] = {}  # of each sequence: the steps, from its beginning
    for s in data.containing(part):
        if spec.per == "sequence":
            steps = np.array([data.lengths[s] - 1]) if known[s] else np.zeros(0, int)
        else:
            steps = np.flatnonzero(known[data.offsets[s] : data.offsets[s + 1]])
        steps = steps[steps > 0]
        if len(steps):
            scored[int(s)] = steps
    if not scored:
        raise DataError(
            f"No prediction on {what} has a step before it, so no gradient can go back. Longer sequences are needed."
        )
    names = list(scored)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, PREDICTIONS).round().astype(int))]
    each = max(1, PREDICTIONS // len(chosen))
    plan = []
    for s in chosen:
        steps, begin = scored[s], int(data.offsets[s])
        last = int(steps[-1])
        first = max(0, last + 1 - MOST_STEPS)
        end = min(int(data.lengths[s]), last + 1 + MOST_STEPS) if spec.bidirectional else last + 1
        # Those that reach back as far as the last one does, or 200 steps.
        far = steps[steps - first >= min(last - first, FARTHEST)]
        at = far[np.unique(np.linspace(len(far) - 1, 0, each).round().astype(int))] if each > 1 else far[-1:]
        plan.append(Piece(s, begin + first, begin + end, tuple(int(t) - first for t in at)))
    return plan


def batches(plan: Sequence[Piece], hidden_size: int, values: int) -> list[list[int]]:
    """Indices of pieces of similar length, as many at once as memory allows."""
    order = sorted(range(len(plan)), key=lambda i: -plan[i].length)
    batches: list[list[int]] = []
    longest = 0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * longest * hidden_size > values:
            batches.append([])
            longest = plan[i].length
        batches[-1].append(i)
    return batches
