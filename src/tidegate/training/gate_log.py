"""log_gates=True: what the gates of a model do, counted after every epoch for metrics.csv. `report.gate_curves` draws it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tidegate.data.batches import BatchSource
from tidegate.data.sequences import TRAIN, VALID
from tidegate.gates.statistics import MEMORY, Counter
from tidegate.model import SequenceModel

MOST_STEPS = 4_096
SHARE = 0.02  # of an epoch's training steps: so that an epoch gets at most a twentieth slower (benchmarks/log_gates_cost.py)
FEWEST_STEPS = 64  # a sample this small costs milliseconds


class GateLog:
    """Counts the gates of a fixed sample of sequences: validation ones, or training ones where there are none.

    The sample is drawn by the seed and the same in every epoch: whole sequences (of each its stretch in that part, begun
    with an empty state) of up to 4,096 steps in all, fewer where an epoch of training is short; a longer one is cut.
    """

    def __init__(self, source: BatchSource, seed: int):
        part = VALID if source.data.count(VALID) else TRAIN
        segments = source.data.segments(part)
        steps = source.data.count(TRAIN)
        budget = max(FEWEST_STEPS, min(MOST_STEPS, int(SHARE * steps)))
        chosen: list[tuple[int, int]] = []
        for i in np.random.default_rng([seed, 4]).permutation(len(segments)):
            start, end = (int(v) for v in segments[i])
            room = budget - sum(b - a for a, b in chosen)
            if end - start > room and 2 * room <= budget:
                break  # a stump would only be a sequence whose end isn't seen
            chosen.append((start, min(end, start + room)))
            if end - start >= room:
                break
        chosen.sort(key=lambda piece: piece[0] - piece[1])  # the longest first
        self.batches = [self._cut(source, some) for some in _of_similar_length(chosen)]

    @staticmethod
    def _cut(source: BatchSource, pieces: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        starts, ends = torch.tensor(pieces).T
        owners = torch.from_numpy(np.searchsorted(source.data.offsets, starts.numpy(), side="right") - 1)
        batch = source.cut(starts, ends - starts, ends, sequences=owners)
        return batch.numbers, batch.codes, batch.lengths

    @torch.no_grad()
    def row(self, model: SequenceModel) -> dict[str, float]:
        """l0_update_mean ... l0_reset_near_1: means over the units; l0_memory_length_steps: the median over the units,
        inf where for half of them most waits were cut off by a sequence's end. So for every layer and direction.
        """
        counters: dict[str, Counter] = {}
        with model.evaluating():
            for numbers, codes, lengths in self.batches:
                for name, gates in model.trace(numbers, codes, lengths).gates.items():
                    counters.setdefault(name, Counter(name.endswith("_reverse"))).add(gates, lengths)
        row: dict[str, float] = {}
        for name, counter in counters.items():
            counted = counter.result()
            row |= {f"{name}_{field}": float(share.mean()) for field, share in counted.shares.items()}
            row[f"{name}_{MEMORY}"] = float(np.median(counted.memory_length_steps))
        return row


def _of_similar_length(pieces: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Sorted pieces in batches that are at least a quarter full: padding costs time, and so does a batch."""
    batches: list[list[tuple[int, int]]] = []
    longest = 0
    for start, end in pieces:
        if not batches or 4 * (end - start) < longest:
            batches.append([])
            longest = end - start
        batches[-1].append((start, end))
    return batches
