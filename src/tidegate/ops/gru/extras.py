"""What a call of a GRU may have beyond `torch.nn.GRU`'s: lengths, resets, and changes of the recurrence itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from tidegate.ops.gru.equations import sums_in
from tidegate.ops.gru.modes import functorch_level, values_are_hidden

WISHES = (
    "resets",
    'reset="before"',
    "layer_norm",
    "recurrent_dropout",
    "zoneout",
    "checkpoint_every",
    "lengths in torch.compile or torch.func",
    "trace",
)
"""What of a call `torch.nn.GRU` can't do."""


def draw(shape: Sequence[int], p: float, like: Tensor) -> Tensor:
    """A tensor of True with probability p; on the CPU, to the nearest 1/65536.

    There a draw for each value would take as long as the recurrence itself: one of 64 bits serves four of them.
    """
    if not like.is_cpu or torch.compiler.is_compiling() or functorch_level() is not None:
        return torch.rand(shape, device=like.device) < p
    threshold = round(p * 65536) - 32768
    if threshold > 32767:
        return torch.ones(shape, dtype=torch.bool)
    n = prod(shape)
    bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:n] < threshold).view(shape)


class LayerExtras(NamedTuple):
    """The same for one layer, in both directions, the random masks drawn."""

    lengths: Tensor | None = None  # [B], int64, on the CPU
    starts: Tensor | None = None  # [B], int64, on the CPU
    resets: Tensor | None = None  # [T, B], bool
    fresh: Tensor | None = None  # [D, B, H]
    mask: Tensor | None = None  # [D, B, H]: recurrent dropout, 0 or 1 / (1 - p)
    zone: Tensor | None = None  # bool, of the shape of the output: the units that keep their state
    zone_rate: float = 0.0  # and the part of its state that each keeps where nothing was drawn
    before: bool = False
    norm: bool = False
    checkpoint_every: int = 0


class Extras(NamedTuple):
    """See `tidegate.GRU`, whose arguments these are."""

    lengths: Tensor | None = None  # [B], int64, on the CPU, each 0 ... T, in any order. Not with batch_sizes
    starts: Tensor | None = (
        None  # [B], int64, on the CPU, with lengths: x is [rows, I], sequence b from row starts[b] on
    )
    resets: Tensor | None = None  # [T, B], bool; packed: in the order of the pack
    fresh: Tensor | None = None  # [layers * D, B, H]: the state after a reset; None: zeros
    reset: str = "after"
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    checkpoint_every: int = 0

    def of_layer(self, layer: int, x: Tensor, B: int, D: int, H: int, training: bool) -> LayerExtras:
        """Draws the masks, in the order of the layers: one seed gives every back end the same ones."""
        mask = zone = None
        if training and self.recurrent_dropout > 0:
            mask = drop(x.new_ones(D, B, H, dtype=sums_in(x)), self.recurrent_dropout)
        if training and self.zoneout > 0:
            zone = draw((*x.shape[:-1], D * H), self.zoneout, x)
        return LayerExtras(
            self.lengths,
            self.starts,
            self.resets,
            None if self.fresh is None else self.fresh[layer * D : (layer + 1) * D],
            mask,
            zone,
            0.0 if training else self.zoneout,
            self.reset == "before",
            self.layer_norm,
            self.checkpoint_every,
        )

    def wishes(self, training: bool) -> list[str]:
        """By name: what of this `torch.nn.GRU` can't do. (Lengths become a PackedSequence.)"""
        wished = (
            self.resets is not None,
            self.reset != "after",
            self.layer_norm,
            training and self.recurrent_dropout > 0,
            self.zoneout > 0,
            self.checkpoint_every > 0,
            self.lengths is not None and values_are_hidden(),
        )
        return [name for name, wish in zip(WISHES, wished, strict=False) if wish]

    def to(self, dtype: torch.dtype) -> Extras:
        return self if self.fresh is None else self._replace(fresh=self.fresh.to(dtype))


class PackedRows(NamedTuple):
    """Where the real steps of sequences with `lengths` lie: the rows of a PackedSequence."""

    numbers: Tensor  # [rows]: which row of x.flatten(0, 1), or of x that lies end to end, each one is
    batch_sizes: Tensor  # [longest]
    order: Tensor  # the sequences that are not empty, the longest first

    @staticmethod
    def of(lengths: Tensor, starts: Tensor | None) -> PackedRows:
        order = lengths.argsort(descending=True, stable=True)[: int(lengths.count_nonzero())]
        longest = int(lengths.max()) if len(order) else 0
        there = lengths[order] > torch.arange(longest).unsqueeze(1)  # [longest, B]
        t, b = there.nonzero(as_tuple=True)
        numbers = t * len(lengths) + order[b] if starts is None else starts[order[b]] + t
        return PackedRows(numbers, there.sum(1), order)
