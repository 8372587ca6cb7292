"""What an update of a training does beside the recurrence, by the kernels: `csrc/update.h` says what each function computes.

For float32 on the CPU with the C++ kernels; `available` tells. The bits of all results are the same on any number of threads.
Nothing here is asked of autograd: what goes forward has its gradient beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.affine import affine as _affine
from tidegate.ops.gru.native.affine import gradients as affine_gradients

__all__ = [
    "Dropout",
    "Encoding",
    "Scored",
    "adam",
    "affine",
    "affine_gradients",
    "available",
    "cut",
    "loss",
    "scored_rows",
]

CLASSES, LABELS, NUMBERS = 0, 1, 2
"""The losses of `loss`: cross-entropy over classes, binary cross-entropy of labels, squared error of numbers."""


def available(*tensors: Tensor) -> bool:
    """Whether these functions can work on tensors such as these: contiguous, float32 or int64, on the CPU."""
    return kernels.missing() is None and all(
        t.is_cpu and t.is_contiguous() and t.dtype in (torch.float32, torch.int64) for t in tensors
    )


class CutSteps(NamedTuple):
    numbers: Tensor  # [T, B, F]
    codes: Tensor  # [T, B, C]
    y: Tensor  # [T, B, max(horizon, 1), ...], or [B, 1, ...] of sequences


def cut(
    numbers: Tensor,  # [N, F]
    codes: Tensor,  # [N, C]
    y: Tensor,  # [N, ...], or [S, ...] of sequences
    stretch: Tensor | None,  # [N]
    starts: Tensor,  # [B], as lengths, limits and owners
    lengths: Tensor,
    limits: Tensor,
    owners: Tensor | None,  # None: a target for each step
    horizon: int,
    missing: int,  # what a target of classes is where there is none; of others it is NaN
) -> CutSteps:
    """T steps of B sequences out of the N steps, padded as `BatchSource.cut` does."""
    T, B, F, C = int(lengths.max()), lengths.size(0), numbers.size(1), codes.size(1)
    of_classes = y.dtype is torch.int64
    shape = (B, 1, *y.shape[1:]) if owners is not None else (T, B, max(horizon, 1), *y.shape[1:])
    found = CutSteps(
        numbers.new_empty(T, B, F),
        codes.new_empty(T, B, C),
        y.new_empty(shape),
    )
    kernels.cpp.cut(
        starts=starts, lengths=lengths, limits=limits, owners=owners, T=T, B=B, F=F, C=C, numbers=numbers, codes=codes, y=y,
        y_bytes=y.element_size() * y[:1].numel(), of_classes=of_classes, missing=missing, stretch=stretch, horizon=horizon,
        numbers_to=found.numbers, codes_to=found.codes, y_to=found.y,
    )  # fmt: skip
    return found


class Scored(NamedTuple):
    """rows [count]: those that have a target, in order; targets: how many there are."""

    rows: Tensor
    targets: int


def scored_rows(y: Tensor, rows: int) -> Scored:
    """Which of the rows of y [rows, ...] have a target: a class of 0 or more, a number that isn't NaN."""
    to = torch.empty(rows, dtype=torch.int64)
    count, targets = kernels.cpp.scored_rows(
        y=y, of_classes=y.dtype is torch.int64, rows=rows, per_row=y.numel() // max(rows, 1), to=to
    )
    return Scored(to[:count], targets)


class Encoding:
    """What the core reads of numbers and codes, under dropout, and the gradients of the vectors.

    weights: of each column of codes, [V, width]. rates: of each the probability [V] with which a code is read as unknown; empty:
    none is. learned: which weights want a gradient.
    """

    def __init__(self, weights: Sequence[Tensor], rates: Sequence[Tensor], learned: Sequence[bool]):
        self.weights, self.rates = [w.detach() for w in weights], [*rates]
        self.widths = [w.size(1) for w in weights]
        # Only rows of words that a batch has are ever written, and made 0 again before the next batch.
        self.gradients = [
            torch.zeros_like(w) if wanted else None for w, wanted in zip(self.weights, learned, strict=True)
        ]
        self._read: Tensor | None = None
        self._before: Tensor | None = None

    def forward(self, numbers: Tensor, codes: Tensor, dropout: float, key: int) -> Tensor:
        """[T, B, E]"""
        T, B, F = numbers.shape
        self._how = (F, dropout, key)
        encoded = numbers.new_empty(T, B, F + sum(self.widths))
        self._read = torch.empty_like(codes)
        kernels.cpp.encode(
            numbers=numbers, codes=codes, rows=T * B, F=F, weights=self.weights, rates=self.rates, widths=self.widths,
            dropout=dropout, key=key, to=encoded, read=self._read, threads=torch.get_num_threads(),
        )  # fmt: skip
        return encoded

    def backward(self, d_encoded: Tensor) -> None:
        """The gradients of the last `forward` into `gradients`."""
        F, dropout, key = self._how
        read, before = self._read, self._before
        assert read is not None
        C = len(self.widths)
        kernels.cpp.encode_backward(
            d=d_encoded, read=read, before=before, rows=read.numel() // C, before_rows=0 if before is None else before.numel() // C,
            F=F, weights=self.weights, d_weights=self.gradients, widths=self.widths, dropout=dropout, key=key,
        )  # fmt: skip
        self._before = read


class Dropout(NamedTuple):
    """Some rows of a matrix under dropout. rows [count]: which; None: all of them. key: what the mask is a hash of."""

    rows: Tensor | None
    rate: float
    key: int

    def forward(self, x: Tensor) -> Tensor:  # [all, width] -> [count, width]
        if self.rows is None and not self.rate:
            return x
        y = x if self.rows is None else x.new_empty(self.rows.size(0), x.size(1))
        y = torch.empty_like(x) if y is x else y
        kernels.cpp.drop(
            x=x, rows=self.rows, count=y.size(0), width=y.size(1), rate=self.rate, key=self.key, to=y,
            threads=torch.get_num_threads(),
        )  # fmt: skip
        return y

    def backward(self, d_y: Tensor, rows: int) -> Tensor:  # [count, width] -> [rows, width]
        if self.rows is None and not self.rate:
            return d_y
        d_x = d_y.new_empty(rows, d_y.size(1))
        kernels.cpp.drop_backward(
            d_y=d_y, rows=self.rows, count=d_y.size(0), all=rows, width=d_y.size(1), rate=self.rate, key=self.key, to=d_x,
            threads=torch.get_num_threads(),
        )  # fmt: skip
        return d_x


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b of many rows [rows, I], with the bits of `tidegate.ops.affine` in training."""
    return _affine(x, weight, bias, in_blocks=True)


def loss(
    kind: int,
    scores: Tensor,  # [count, K W]: becomes the gradient, times scale
    rows: Tensor,  # [count]: which rows of y and numbers
    y: Tensor,  # [all, K], or of labels and numbers [all, K, W]
    *,
    ahead: int,
    scale: float,
    class_weights: Tensor | None = None,  # [W]
    numbers: Tensor | None = None,  # [all, F]
    residual: Tensor | None = None,  # [W]: from which of the numbers a score counts
) -> float:
    """The loss summed over the targets that there are, and its gradient in place of the scores."""
    count, width = scores.shape
    value: float = kernels.cpp.loss(
        kind=kind, scores=scores, rows=rows, y=y, class_weights=class_weights, numbers=numbers, residual=residual, count=count,
        K=ahead, W=width // ahead, F=0 if numbers is None else numbers.size(-1), scale=scale, threads=torch.get_num_threads(),
    )  # fmt: skip
    return value


def adam(
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    steps: Sequence[float],
    **options: Any,  # lr, beta1, beta2, eps, weight_decay, clip
) -> None:
    """One update of the weights and of both moments, after clipping: as `torch.optim.Adam`, with a weight decay as `AdamW`."""
    kernels.cpp.adam(
        weights=weights, first=first, second=second, gradients=gradients, sizes=[w.numel() for w in weights], steps=steps,
        threads=torch.get_num_threads(), **options,
    )  # fmt: skip
    torch.autograd.graph.increment_version(weights)  # C++ wrote to them, and packed copies must notice
