"""What the gates of a layer did, counted: how long each unit remembers, how often its gates are shut or open, what moves.

Arrays of torch or numpy in, numbers a unit out; nothing here knows a model or a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEAR = 0.1  # a gate below it is shut, above 1 - NEAR open (Karpathy, Johnson and Li 2015, arXiv:1506.02078, figure 3)
STILL = 0.01  # a state, which lies in -1..1, that moves no further than this is called still
_HALF = float(np.log(2.0)) - 1e-7  # a hair less: gates of float32 whose product is 1/2 should be found to be there
_ROUND = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

MEMORY = "memory_length_steps"
# In the order in which `Counter.add` sums them up.
SHARES = ("update_mean", "update_near_0", "update_near_1", "reset_mean", "reset_near_0", "reset_near_1")


@dataclass(frozen=True)
class UnitStatistics:
    """Numbers of the H units of one layer in one direction, over `steps` steps of `sequences` sequences, of which the
    longest stretch seen at once has `longest` steps. Arrays [H].

    memory_length_steps: after how many steps half of what a unit holds is forgotten. What is in the state after step t
        is scaled by z_{t+1} z_{t+2} ... ; the length is the first k at which this product is at most 1/2. It is found for
        every t, and the median of all is taken; where a sequence ends first, the wait counts as unfinished (the
        product-limit estimate of Kaplan and Meier 1958). 1: half is gone a step later. inf: more than half of
        all waits were not over when they ended.
    update_mean, reset_mean: of z and r.   update_near_0 ... reset_near_1: the share of steps with the gate below 0.1
        or above 0.9.
        Those of r are None where the layer has no reset gate.
    low, high: the smallest and the largest state.   zoneout: the part of the state that is kept in any case, beside z.
    never_forgot: no wait was ever over (and there was one).   still: high - low <= 0.01, a unit that doesn't move.
    """

    steps: int
    sequences: int
    longest: int
    memory_length_steps: np.ndarray
    never_forgot: np.ndarray
    update_mean: np.ndarray
    update_near_0: np.ndarray
    update_near_1: np.ndarray
    reset_mean: np.ndarray | None
    reset_near_0: np.ndarray | None
    reset_near_1: np.ndarray | None
    low: np.ndarray
    high: np.ndarray
    zoneout: float = 0.0

    @property
    def units(self) -> int:
        return len(self.low)

    @property
    def shares(self) -> dict[str, np.ndarray]:
        """Mean, shut and open of each gate that the layer has, by the names in `SHARES`."""
        every = {name: getattr(self, name) for name in SHARES}
        return {name: share for name, share in every.items() if share is not None}

    @property
    def still(self) -> np.ndarray:
        return (self.high - self.low <= STILL) & (self.steps > 1)

    @property
    def order(self) -> np.ndarray:
        """The units, those that remember longest first."""
        return np.lexsort((np.arange(self.units), -self.update_mean, -self.memory_length_steps))

    @property
    def long(self) -> int:
        """From how many steps on a memory is called long: the largest round number that one in twenty units passes, and
        that is at most half of the longest stretch counted (at least 5, or the longest wait that can be seen).
        """
        enough = max(1, self.units // 20)
        passed = [k for k in _ROUND if k <= self.longest / 2 and (self.memory_length_steps > k).sum() >= enough]
        return min(max(passed, default=_ROUND[0]), max(1, self.longest - 1))

    def kinds(self) -> list[str]:
        """A word for each unit: "still", "never forgets", "long memory", "short memory", "follows the input", or, where no
        sequence has a second step, "unknown".

        long: half is left for more than `long` steps; follows the input: half is gone after a single one.
        """
        memory, out = self.memory_length_steps, np.full(self.units, "short memory", dtype=object)
        out[memory <= 1] = "follows the input"
        out[memory > self.long] = "long memory"
        out[self.never_forgot] = "never forgets"
        out[self.still] = "still"
        if self.longest < 2:
            out[:] = "unknown"
        return list(out)

    def columns(self) -> dict[str, Any]:
        """A column a figure, a row a unit."""
        memory = {MEMORY: self.memory_length_steps}
        ends = {"low": self.low, "high": self.high}
        return {"unit": np.arange(self.units), "kind": self.kinds()} | memory | self.shares | ends


class Counter:
    """Adds up the gates of one layer and direction, a batch at a time, into `UnitStatistics`."""

    def __init__(self, reverse: bool = False, zoneout: float = 0.0) -> None:
        """reverse: the direction that reads from the last step to the first. zoneout: of the layer; on average it keeps
        that share of the state whatever the gate says.
        """
        self.reverse, self.zoneout = reverse, zoneout
        self.steps = self.sequences = self.longest = 0
        self._sums: Tensor | None = (
            None  # [6, H]: z, z near 0, z near 1, and the same of r; without a reset gate [3, H]
        )
        self._range: Tensor | None = None  # [2, H]
        self._over = self._unfinished = np.zeros(
            (0, 0), np.int64
        )  # [k, H]: waits that ended after k steps, or were cut off

    def add(
        self, gates: Any, lengths: Tensor | None = None, resets: Tensor | None = None, *, continued: bool = False
    ) -> None:
        """gates: `Gates` of [T, B, H]; lengths [B]: steps of each sequence (None: all T); resets [T, B] as `forward`'s.

        continued: these are further steps of sequences that were begun before. Waits are cut off where a part ends.
        """
        update, hidden = gates.update.detach(), gates.hidden.detach()
        counted = [update] if gates.reset is None else [update, gates.reset.detach()]
        T, B, H = update.shape
        lengths = torch.full((B,), T) if lengths is None else lengths.cpu()
        if not int(lengths.sum()):
            return
        inside = (torch.arange(T)[:, None] < lengths).to(update.device)
        whole = bool((lengths == T).all())
        self.steps += int(lengths.sum())
        self.sequences += 0 if continued else int((lengths > 0).sum())
        self.longest = max(self.longest, int(lengths.max()))
        *rows, states = [v.reshape(-1, H) if whole else v[inside] for v in (*counted, hidden)]
        sums = []
        for v in rows:
            # Sums of many float32 are taken in float64, so that a million steps lose nothing.
            sums += [v.sum(0, dtype=torch.float64), (v < NEAR).sum(0).double(), (v > 1 - NEAR).sum(0).double()]
        found, ends = torch.stack(sums).cpu(), torch.stack([-states.amin(0), states.amax(0)]).double().cpu()
        self._sums = found if self._sums is None else self._sums + found
        self._range = ends if self._range is None else torch.maximum(self._range, ends)
        self._add_waits(update, lengths, resets)

    def _add_waits(self, update: Tensor, lengths: Tensor, resets: Tensor | None) -> None:
        T, _, H = update.shape
        keep = update.double().cpu()
        if self.zoneout:
            keep = keep + self.zoneout * (1 - keep)
        log = keep.clamp(min=1e-30).log_()
        if resets is not None:
            resets = resets.cpu()
            if self.reverse:  # where a session begins at a step, this direction is new at the step before
                resets = torch.cat([resets[1:], torch.zeros_like(resets[:1])])
            log = torch.where(resets[..., None], -100.0, log)  # a new beginning: nothing is left
        inside = torch.arange(T)[:, None] < lengths
        log = torch.where(inside[..., None], log, 0.0)
        if self.reverse:
            # Its memory runs from the end of a sequence to its beginning: turned round, each within its own length.
            turned = torch.where(inside, lengths - 1 - torch.arange(T)[:, None], torch.arange(T)[:, None])
            log = log.gather(0, turned[..., None].expand_as(log))
        # left[t] is the log of what survives from the beginning to step t; it only falls, so the step at which half
        # of what there was at t is gone is found by bisection.
        left = log.cumsum(0).permute(1, 2, 0).contiguous()  # [B, H, T]
        at = torch.searchsorted(-left, -left + _HALF)  # [B, H, T]; the step, counted from 0, or T: never
        t = torch.arange(T)
        last = (lengths - 1)[:, None, None]
        over = at <= last
        waited = torch.where(over, at, last) - t
        counts = waited > 0  # after the last step there is nothing to wait for
        # One count of all three kinds of waits: over, cut off, none at all.
        size = T * H
        index = torch.where(counts, waited * H + torch.arange(H)[None, :, None] + size * ~over, 2 * size)
        found = torch.bincount(index.view(-1), minlength=2 * size + 1)[:-1].view(2, T, H).numpy()
        self._over, self._unfinished = _added(self._over, found[0]), _added(self._unfinished, found[1])

    def result(self) -> UnitStatistics:
        """Raises ValueError where nothing was added."""
        if self._sums is None or self._range is None:
            raise ValueError("No step was counted.")
        memory = median_wait(self._over, self._unfinished)
        # (Without a reset gate the names of z alone find a sum.)
        shares: dict[str, Any] = dict.fromkeys(SHARES) | dict(
            zip(SHARES, (self._sums / self.steps).numpy(), strict=False)
        )
        low, high = -self._range[0].numpy(), self._range[1].numpy()
        any_wait = (self._over + self._unfinished).sum(axis=0) > 0
        never = any_wait & (self._over.sum(axis=0) == 0)
        return UnitStatistics(
            self.steps, self.sequences, self.longest, memory, never, low=low, high=high, zoneout=self.zoneout, **shares
        )


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two counts by wait, of which one may know longer waits than the other."""
    short, long = sorted((a, b), key=len)
    if len(short):
        long[: len(short)] += short
    return long


def median_wait(over: np.ndarray, unfinished: np.ndarray) -> np.ndarray:
    """The median of waits some of which were cut off: the first k at which the product-limit estimate is at most 1/2.

        S(k) = (1 - over_1 / risk_1) (1 - over_2 / risk_2) ... (1 - over_k / risk_k)

    over, unfinished [K, N]: row k has the waits that ended, or were cut off, after k steps; risk_k is how many lasted at
    least k. Returns [N]; inf where S stays above 1/2. Source: Kaplan and Meier, J. Amer. Statist. Assoc. 53 (1958).

    >>> over, cut = np.array([[0], [1], [0], [1]]), np.array([[0], [0], [1], [0]])   # 1, at least 2, 3 steps
    >>> median_wait(over, cut)
    array([3.])
    """
    if not over.size:
        return np.full(over.shape[1], np.inf)
    both = over + unfinished
    risk = both[::-1].cumsum(axis=0)[::-1]
    survival = np.cumprod(1 - over / np.maximum(risk, 1), axis=0)
    # A share of exactly one half must not be missed by a rounding error.
    below = survival <= 0.5 + 1e-12
    return np.where(below.any(axis=0), below.argmax(axis=0), np.inf).astype(float)
