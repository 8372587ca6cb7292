"""Sequences to batches: padded only here, and never read where padded."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tidegate.data.sequences import MISSING_CLASS, Sequences

BUCKET = 50  # batches that are sorted by length together: similar lengths share a batch, yet the order stays random
EVALUATION_STEPS = 65_536  # most steps in memory at once while evaluating
MOST_PADDING = 65_536  # steps of a batch that are padding: where it is more, and more than half, the batch is divided


@dataclass
class Batch:
    """T steps of B sequences.

    numbers [T, B, F]   codes [T, B, C]   lengths [B] on the CPU   steps [T, B]: the flat step each one came from
    y: [T, B, K', ...] a step, [B, ...] a sequence; missing and padded targets are MISSING_CLASS or NaN; a class that training
    never saw is below MISSING_CLASS.
    inside [T, B]: False where padded.
    """

    numbers: Tensor
    codes: Tensor
    lengths: Tensor
    steps: Tensor
    inside: Tensor
    y: Tensor | None
    sequences: Tensor | None = None


class Readable(NamedTuple):
    """Rows of the arrays of a `BatchSource`: all of them, or copies of some. starts, limits: where a batch's pieces begin there, and
    before which row their targets end. moved [B]: what makes its rows steps of all; None: they are.
    """

    numbers: Tensor
    codes: Tensor
    y: Tensor | None
    part: Tensor | None
    stretch: Tensor | None
    starts: Tensor
    limits: Tensor
    moved: Tensor | None = None


class BatchSource:
    """The tensors of some `Sequences` on a device, and how to cut batches out of them.

    horizon k > 0 makes the target of step t the values of steps t+1..t+k; where these leave the sequence, the part (train,
    valid, test) or the stretch of step t, it is missing.
    """

    def __init__(self, data: Sequences, *, per_sequence: bool, horizon: int, device: torch.device | str = "cpu"):
        self.data, self.per_sequence, self.horizon = data, per_sequence, horizon
        self.device = torch.device(device)
        self.home = self.device if data.mapped is None else torch.device("cpu")  # where the tensors are
        self.numbers = _tensor(data.numbers).to(self.home)
        self.codes = _tensor(data.codes).to(self.home)
        y = (
            data.y.copy() if data.y is not None and data.mapped is not None and per_sequence else data.y
        )  # (it is small then)
        self.y = None if y is None else _tensor(y).to(self.home)
        self.part = _tensor(data.part).to(self.home)
        self.stretch = None if data.stretch is None else _tensor(data.stretch).to(self.home)

    def readable(self, starts: Tensor, lengths: Tensor, limits: Tensor, *, parts: bool = False) -> Readable:
        """Where the steps starts[b] : starts[b] + lengths[b] and the targets after them, before limits[b], can be read: in the arrays
        themselves, or, of arrays on disk, in copies of these pieces. parts: whether their parts are asked for, too.
        """
        mapped = self.data.mapped
        if mapped is None:
            return Readable(self.numbers, self.codes, self.y, self.part, self.stretch, starts, limits)
        firsts = starts.numpy()
        ends = np.maximum(np.minimum(firsts + lengths.numpy() + self.horizon, limits.numpy()), firsts + lengths.numpy())
        counts = ends - firsts
        here = np.cumsum(counts) - counts

        def read(name: str) -> Tensor:
            return torch.from_numpy(mapped.read(name, getattr(self.data, name), firsts, ends))

        y = self.y if self.per_sequence or self.y is None else read("y")
        moved = torch.from_numpy(firsts - here)
        return Readable(
            read("numbers"),
            read("codes"),
            y,
            read("part") if parts else None,
            None,
            starts - moved,
            limits - moved,
            moved,
        )

    def to(self, device: torch.device | str) -> BatchSource:
        """The same on another device."""
        if self.device == torch.device(device):
            return self
        return BatchSource(self.data, per_sequence=self.per_sequence, horizon=self.horizon, device=device)

    def cut(
        self,
        starts: Tensor,
        lengths: Tensor,
        limits: Tensor,
        *,
        part: int | None = None,
        sequences: Tensor | None = None,
    ) -> Batch:
        """The batch of the steps starts[b] : starts[b] + lengths[b].

        limits [B]: targets of a horizon come from before this flat step; part: score only its steps.
        sequences [B]: whose target to take when one value a sequence is predicted.
        """
        longest = int(lengths.max())
        offset = torch.arange(longest)[:, None]
        inside = offset < lengths
        # Padding repeats a sequence's last step: always a valid index, never read.
        read = self.readable(starts, lengths, limits, parts=part is not None)
        steps = (read.starts + torch.minimum(offset, lengths - 1)).to(self.home)
        inside = inside.to(self.home)
        y = None
        if self.y is not None:
            if self.per_sequence:
                assert sequences is not None
                y = self.y[sequences.to(self.home)].unsqueeze(1)
            else:
                y = self._targets(read, steps, inside, read.limits.to(self.home), part)
        numbers, codes = read.numbers[steps], read.codes[steps]
        steps = steps if read.moved is None else steps + read.moved
        if self.home != self.device:
            numbers, codes, steps, inside = (t.to(self.device) for t in (numbers, codes, steps, inside))
            y = None if y is None else y.to(self.device)
        return Batch(numbers, codes, lengths, steps, inside, y, sequences)

    def _targets(self, read: Readable, steps: Tensor, inside: Tensor, limits: Tensor, part: int | None) -> Tensor:
        """The targets of steps that can be read there."""
        assert read.y is not None
        blank = MISSING_CLASS if read.y.dtype == torch.int64 else float("nan")
        if part is not None:
            assert read.part is not None
            inside = inside & (read.part[steps] == part)
        shifts = range(1, self.horizon + 1) if self.horizon else (0,)
        out = []
        for shift in shifts:
            at = steps + shift
            known = inside & (at < limits)
            at = torch.minimum(at, limits - 1)
            if read.part is not None and part is not None:
                known = known & (read.part[at] == part)
            if read.stretch is not None:
                known = known & (read.stretch[at] == read.stretch[steps])
            y = read.y[at]
            out.append(torch.where(known if y.ndim == 2 else known[..., None], y, blank))
        return torch.stack(out, dim=2)  # [T, B, max(horizon, 1), ...]

    def all_targets(self, part: int | None) -> Tensor:
        """What is to be predicted at every step [N, K, ...] or for every sequence [S, 1, ...], missing outside `part`."""
        assert self.y is not None
        if self.per_sequence:
            blank = MISSING_CLASS if self.y.dtype == torch.int64 else float("nan")
            y = torch.full_like(self.y, blank)
            chosen = torch.from_numpy(self.data.containing(part)).to(self.home)
            y[chosen] = self.y[chosen]
            return y.unsqueeze(1)
        return self.targets_between(0, len(self.data.part), part)

    def targets_between(self, first: int, end: int, part: int | None) -> Tensor:
        """What is to be predicted at the steps first:end, [n, K, ...], missing outside `part`."""
        _, limits = self.data.bounds(first, end)
        steps = torch.arange(first, end, device=self.home)[:, None]
        inside = torch.ones_like(steps, dtype=torch.bool)
        ends = torch.from_numpy(limits).to(self.home)[:, None]
        whole = Readable(self.numbers, self.codes, self.y, self.part, self.stretch, steps, ends)
        return self._targets(whole, steps, inside, ends, part).squeeze(1)

    def has_targets(self, part: int | None) -> bool:
        """Whether anything in a part can be scored: a target that is there and, of classes, one that training saw."""
        if self.per_sequence:
            return _any_known(self.all_targets(part))
        return any(_any_known(self.targets_between(first, end, part)) for first, end in self.data.blocks())

    # --- training -------------------------------------------------------------------------------------------

    def training_batches(
        self, part: int, batch_size: int, window: int | None, rng: np.random.Generator
    ) -> list[tuple[Tensor, ...]]:
        """One epoch's worth of arguments for `cut`, in random order; every step of the part occurs once.

        Long sequences are cut into windows from a random first cut, so that the cuts move from epoch to epoch.
        """
        starts, ends, limits, owners = self._windows(part, window, rng)
        lengths = ends - starts  # once: there may be millions
        order = rng.permutation(len(starts))
        batches = []
        for bucket in np.array_split(order, max(1, round(len(order) / (BUCKET * batch_size)))):
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            for i in range(0, len(bucket), batch_size):
                batches += _divided(bucket[i : i + batch_size], lengths)
        return [
            tuple(torch.from_numpy(a[batches[i]]) for a in (starts, lengths, limits, owners))
            for i in rng.permutation(len(batches))
        ]

    def training_lanes(self, part: int, lanes: int, window: int, rng: np.random.Generator) -> list[tuple[Tensor, ...]]:
        """One epoch's worth of arguments for `cut`, to be taken in order; every step of the part occurs once.

        Row b of all batches is a lane: whole stretches of the part one after the other, window by window. The arguments have one
        more at their end, fresh [B] bool: where True, another stretch begins in that row; elsewhere the row goes on where it
        stood in the batch before. Lanes that have ended are left out, and the longest come first, so a row keeps its number.
        Windows are those of `training_batches`. One ends where its stretch does: it is not filled up with the next one.
        """
        starts, ends, limits, owners = self._windows(part, window, rng)
        # All windows of a stretch, and of no other one, have its end as their limit.
        fresh = np.diff(limits, prepend=-1) != 0
        first = np.flatnonzero(fresh)
        counts = np.diff(np.append(first, len(starts)))
        dealt = [
            np.concatenate([np.arange(first[k], first[k] + counts[k]) for k in own])
            for own in _dealt(counts, lanes, rng)
        ]
        sizes = np.array([len(lane) for lane in dealt])
        arguments = (starts, ends - starts, limits, owners, fresh)
        batches = []
        for i in range(sizes.max(initial=0)):
            rows = np.array([lane[i] for lane in dealt[: int((sizes > i).sum())]])
            batches.append(tuple(torch.from_numpy(a[rows]) for a in arguments))
        return batches

    def _windows(self, part: int, window: int | None, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        segments = self.data.segments(part)
        if self.per_sequence:
            assert self.data.y is not None
            missing = self.data.y < 0 if self.data.y.ndim == 1 else np.isnan(self.data.y).all(axis=1)
            owner = np.searchsorted(self.data.offsets, segments[:, 0], side="right") - 1
            segments = segments[~missing[owner]]
        starts, ends = segments[:, 0], segments[:, 1]
        limits = ends
        if window is not None and not self.per_sequence:
            lengths = ends - starts
            long = lengths > window
            first = np.where(long, rng.integers(1, window + 1, size=len(lengths)), lengths)
            pieces = 1 + -(-(lengths - first) // window)
            which = np.repeat(np.arange(len(lengths)), pieces)
            number = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
            cut = starts[which] + np.where(number > 0, first[which] + (number - 1) * window, 0)
            end = np.minimum(starts[which] + first[which] + number * window, ends[which])
            starts, ends, limits = cut, end, limits[which]
        owners = np.searchsorted(self.data.offsets, starts, side="right") - 1
        return starts, ends, limits, owners

    def training_batch(self, arguments: tuple[Tensor, ...]) -> Batch:
        starts, lengths, limits, owners = arguments[:4]
        return self.cut(starts, lengths, limits, sequences=owners)

    # --- evaluation -----------------------------------------------------------------------------------------

    def whole_sequences(
        self,
        part: int | None,
        batch_size: int | None,
        chunk: int | None,
        *,
        only: np.ndarray | None = None,
        most_steps: int = EVALUATION_STEPS,
    ) -> Iterator[Iterator[Batch]]:
        """Batches of whole sequences that have a step in `part`; each comes as its chunks of at most `chunk` steps.

        The state is to be carried from chunk to chunk. batch_size=None: as many as most_steps, of a chunk, allows. only: these
        sequences instead of all.
        """
        chosen = self.data.containing(part) if only is None else only
        lengths = self.data.lengths[chosen]
        chosen = chosen[np.argsort(-lengths, kind="stable")]
        at = 0
        while at < len(chosen):
            longest = int(self.data.lengths[chosen[at]])
            fits = max(1, most_steps // min(longest, chunk or longest))
            batch = chosen[at : at + min(batch_size or fits, fits)]
            # Short sequences that have ended would ride along through all chunks of a long one.
            batch = _divided(batch[::-1], self.data.lengths)[-1][::-1]
            yield self._chunks(batch, part, chunk)
            at += len(batch)

    def _chunks(self, chosen: np.ndarray, part: int | None, chunk: int | None) -> Iterator[Batch]:
        starts = torch.from_numpy(self.data.offsets[chosen])
        ends = torch.from_numpy(self.data.offsets[chosen + 1])
        lengths, owners = ends - starts, torch.from_numpy(chosen)
        longest = int(lengths.max())
        for first in range(0, longest, chunk or longest):
            # A sequence that has ended stays in the batch (its state rides along) with no step inside.
            here = (lengths - first).clamp(0, chunk or longest)
            yield self._cut_ended(starts + first, here, ends, None if self.per_sequence else part, owners)

    def _cut_ended(self, starts: Tensor, lengths: Tensor, limits: Tensor, part: int | None, owners: Tensor) -> Batch:
        ended = lengths == 0
        batch = self.cut(
            torch.where(ended, limits - 1, starts), lengths.clamp(min=1), limits, part=part, sequences=owners
        )
        if bool(ended.any()):
            dead = ended.to(self.device)
            batch.inside = batch.inside & ~dead
            if batch.y is not None and not self.per_sequence:
                blank = MISSING_CLASS if batch.y.dtype == torch.int64 else float("nan")
                batch.y[:, dead] = blank
        return batch


def _tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor that shares its memory; one on disk may only be read, of which torch would warn."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _any_known(y: Tensor) -> bool:
    return bool((y >= 0).any() if y.dtype == torch.int64 else (~torch.isnan(y)).any())


def _divided(batch: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """A batch in the order of its lengths, in pieces: one long sequence among short ones must not make all of them as long."""
    own, count = lengths[batch], len(batch)
    padding = int(own[-1]) * count - int(own.sum())
    if padding <= max(MOST_PADDING, int(own.sum())):
        return [batch]
    first = np.arange(1, count)
    cut = 1 + int(np.argmin(own[:-1] * first + own[-1] * (count - first)))
    return _divided(batch[:cut], lengths) + _divided(batch[cut:], lengths)


def _dealt(sizes: np.ndarray, lanes: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which of some stretches, of so many windows, each lane has, in random order; the longest lane first.

    The longest of a random order come first, each into the lane that is the shortest so far (Graham 1969): no lane gets longer
    than 4/3 of the best that can be had.
    """
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    shortest = [(0, lane) for lane in range(min(lanes, len(sizes)))]
    dealt: list[list[int]] = [[] for _ in shortest]
    for k in order.tolist():
        size, lane = shortest[0]
        dealt[lane].append(k)
        heapq.heapreplace(shortest, (size + int(sizes[k]), lane))
    dealt.sort(key=lambda own: -int(sizes[own].sum()))
    return [rng.permutation(own) for own in dealt]
