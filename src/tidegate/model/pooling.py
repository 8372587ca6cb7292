"""The table of poolings: what the head reads of a whole sequence, and of a sequence so far: chunk by chunk, and row by row.

The forms of a pooling stand side by side and give the same bits on a CPU without gradients, so that a stream answers what
`predict` would, were the sequence to end there, and `predict` never has a long sequence in memory at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tidegate.model.spec import ModelSpec

Array = np.ndarray[Any, np.dtype[Any]]


class Pooled(NamedTuple):
    """carried: what the next row needs of the rows so far; None where nothing is. value [parts·H]: what the head reads."""

    carried: Array | None
    value: Array


class Pooling(Protocol):
    """carries: how many values a unit the running form hands on from row to row; 0 where it hands on nothing."""

    @property
    def carries(self) -> int: ...

    def whole(self, output: Tensor, lengths: Tensor, spec: ModelSpec) -> Tensor:
        """output [T, B, D·H], lengths [B] >= 1 on its device -> [B, parts·D·H]. Padded steps are not looked at."""

    def more(self, carried: Any, output: Tensor, inside: Tensor) -> Any:
        """What is carried after a further chunk: output [T, B, H] of some more steps, forward in time; inside [T, B]: which of them
        are steps of their sequences. A sequence of the batch may have none. carried: what the call before returned; None: none was.
        """

    def pooled(self, carried: Any, lengths: Tensor) -> Tensor:
        """[B, parts·H] after the last chunk, as `whole` gives it. lengths [B]: all steps of each sequence."""

    def running(self, carried: Array | None, y: Array, rows: int) -> Pooled:
        """With one more row's output y [H], float32, after `rows` rows that left `carried` [carries·H] (None: the first row)."""


class _Last:
    """The last output. The backward direction has read the whole sequence at its first step."""

    carries = 0

    def whole(self, output: Tensor, lengths: Tensor, spec: ModelSpec) -> Tensor:
        last = output[lengths - 1, torch.arange(output.size(1), device=output.device)]
        if spec.cell == "none" or not spec.bidirectional:
            return last
        return torch.cat([last[:, : spec.hidden_size], output[0, :, spec.hidden_size :]], dim=-1)

    def more(self, carried: Tensor | None, output: Tensor, inside: Tensor) -> Tensor:
        here = inside.sum(dim=0)
        last = output[(here - 1).clamp(min=0), torch.arange(output.size(1), device=output.device)]
        return last if carried is None else torch.where((here > 0)[:, None], last, carried)

    def pooled(self, carried: Tensor, lengths: Tensor) -> Tensor:
        return carried

    def running(self, carried: Array | None, y: Array, rows: int) -> Pooled:
        return Pooled(None, y)


class _Mean:
    """The mean over the steps, added up one after the other in float64."""

    carries = 1

    def whole(self, output: Tensor, lengths: Tensor, spec: ModelSpec) -> Tensor:
        inside = _inside(output, lengths)
        if not torch.is_grad_enabled() and output.is_cpu:
            return (_sum_in_order(output, inside) / lengths[:, None]).to(output.dtype)
        return torch.where(inside, output, 0).sum(dim=0) / lengths[:, None]

    def more(self, carried: Tensor | None, output: Tensor, inside: Tensor) -> Tensor:
        if output.is_cpu:
            return _sum_in_order(output, inside[..., None], carried)
        total = torch.where(inside[..., None], output, 0).sum(dim=0)  # (not every device has float64)
        return total if carried is None else carried + total

    def pooled(self, carried: Tensor, lengths: Tensor) -> Tensor:
        return (carried / lengths[:, None]).to(torch.float32)

    def running(self, carried: Array | None, y: Array, rows: int) -> Pooled:
        total = y.astype(np.float64) if carried is None else carried + y
        return Pooled(total, (total / (rows + 1)).astype(np.float32))


class _Max:
    """Each unit's largest output."""

    carries = 1

    def whole(self, output: Tensor, lengths: Tensor, spec: ModelSpec) -> Tensor:
        return torch.where(_inside(output, lengths), output, -torch.inf).amax(dim=0)

    def more(self, carried: Tensor | None, output: Tensor, inside: Tensor) -> Tensor:
        largest = torch.where(inside[..., None], output, -torch.inf).amax(dim=0)
        return largest if carried is None else torch.maximum(carried, largest)

    def pooled(self, carried: Tensor, lengths: Tensor) -> Tensor:
        return carried

    def running(self, carried: Array | None, y: Array, rows: int) -> Pooled:
        largest = y.copy() if carried is None else np.maximum(carried, y)
        return Pooled(largest, largest)


class _Joined:
    """Several poolings side by side: the concat pooling of Howard and Ruder 2018 (arXiv:1801.06146, section 3.3)."""

    def __init__(self, *parts: Pooling):
        self.parts = parts
        self.carries = sum(part.carries for part in parts)

    def whole(self, output: Tensor, lengths: Tensor, spec: ModelSpec) -> Tensor:
        return torch.cat([part.whole(output, lengths, spec) for part in self.parts], dim=-1)

    def more(self, carried: list[Any] | None, output: Tensor, inside: Tensor) -> list[Any]:
        before = [None] * len(self.parts) if carried is None else carried
        return [part.more(own, output, inside) for part, own in zip(self.parts, before, strict=True)]

    def pooled(self, carried: list[Any], lengths: Tensor) -> Tensor:
        return torch.cat([part.pooled(own, lengths) for part, own in zip(self.parts, carried, strict=True)], dim=-1)

    def running(self, carried: Array | None, y: Array, rows: int) -> Pooled:
        H, first = len(y), 0
        after, values = np.empty(self.carries * H), []  # in float64, which a float32 goes through unchanged
        for part in self.parts:
            mine = slice(first * H, (first + part.carries) * H)
            own = part.running(None if carried is None else carried[mine], y, rows)
            if own.carried is not None:
                after[mine] = own.carried
            values.append(own.value.astype(np.float32, copy=False))
            first += part.carries
        return Pooled(after, np.concatenate(values))


POOLINGS: dict[str, Pooling] = {"last": _Last(), "mean": _Mean(), "max": _Max()}
# Named after its parts, in their order: `ModelSpec.poolings` reads them there, and so do the exports.
POOLINGS |= {"last+max+mean": _Joined(POOLINGS["last"], POOLINGS["max"], POOLINGS["mean"])}


def _inside(output: Tensor, lengths: Tensor) -> Tensor:
    """[T, B, 1]: False where padded."""
    return (torch.arange(len(output), device=output.device)[:, None] < lengths)[..., None]


def _sum_in_order(output: Tensor, inside: Tensor, before: Tensor | None = None) -> Tensor:
    """The sum over time [B, H], float64, one step after the other, as a stream adds them up: the same bits. A block of steps at a
    time, as all sums so far are there for a moment. before: the sum of earlier steps."""
    total = output.new_zeros(output.shape[1:], dtype=torch.float64) if before is None else before
    for first in range(0, len(output), 64):
        block = torch.where(inside[first : first + 64], output[first : first + 64], 0).double()
        block[0] += total
        total = block.cumsum_(dim=0)[-1]
    return total
