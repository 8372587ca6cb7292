"""The weights in C's order, in 32 or 8 bits, and the model that has exactly these."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from tidegate.export.parts import Parts
from tidegate.ops.rounding import quantise

if TYPE_CHECKING:
    from tidegate.model import SequenceModel


@dataclass
class Matrix:
    """values [inputs, outputs] (of an embedding: [words, width]) as C multiplies by them; 8-bit: numbers and scales too."""

    values: np.ndarray
    numbers: np.ndarray | None = None  # int8, of the same shape
    scales: np.ndarray | None = None  # float32, one an output; of an embedding one a word

    @property
    def bytes(self) -> int:
        if self.numbers is None or self.scales is None:
            return self.values.nbytes
        return self.numbers.nbytes + self.scales.nbytes

    def outputs(self, which: slice) -> Matrix:
        """Some of its outputs."""
        numbers = None if self.numbers is None else self.numbers[:, which]
        return Matrix(self.values[:, which], numbers, None if self.scales is None else self.scales[which])


class Direction(NamedTuple):
    """One layer in one direction. b_ih, b_hh [3H]; gains: layer norm's g_ih, g_hh [3H], or none."""

    w_ih: Matrix
    w_hh: Matrix
    b_ih: np.ndarray
    b_hh: np.ndarray
    gains: list[np.ndarray]

    @property
    def bytes(self) -> int:
        return self.w_ih.bytes + self.w_hh.bytes + sum(v.nbytes for v in (self.b_ih, self.b_hh, *self.gains))


class Weights:
    """The weights in C's order, and the model that has exactly these."""

    def __init__(self, parts: Parts, int8: bool):
        self.int8 = int8
        self.layers = [
            [
                Direction(self._columns(w_ih), self._columns(w_hh), b_ih, b_hh, more)
                for w_ih, w_hh, b_ih, b_hh, *more in layer
            ]
            for layer in parts.layers
        ]
        self.embeddings = [self._rows(e) for e in parts.embeddings]
        self.initial_h = parts.initial_h
        self.head, self.head_bias = self._columns(parts.head_weight), parts.head_bias
        self.model = self._model(parts)

    def _rows(self, rows: np.ndarray) -> Matrix:
        if not self.int8:
            return Matrix(rows)
        numbers, scales = (v.numpy() for v in quantise(torch.from_numpy(rows)))
        return Matrix(numbers * scales[:, None], numbers, scales)

    def _columns(self, w: np.ndarray) -> Matrix:
        """w [outputs, inputs] as PyTorch has it."""
        m = self._rows(w)
        return Matrix(m.values.T, None if m.numbers is None else m.numbers.T, m.scales)

    def _model(self, parts: Parts) -> SequenceModel:
        """A copy of the run's model, on its device, with the weights that C has."""
        model = copy.deepcopy(parts.run.model).eval()
        core: Any = model.core
        flat = [direction for layer in self.layers for direction in layer]
        with torch.no_grad():
            for (w_ih, w_hh, *_), direction in zip(core.all_weights, flat, strict=True):
                for parameter, matrix in ((w_ih, direction.w_ih), (w_hh, direction.w_hh)):  # all else stays in 32 bits
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(matrix.values.T)))
            for embedding, matrix in zip(model.embeddings, self.embeddings, strict=True):
                embedding.weight.copy_(torch.from_numpy(matrix.values))  # type: ignore[operator]
            model.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(self.head.values.T)))
        return model

    @property
    def bytes(self) -> int:
        recurrent = sum(direction.bytes for layer in self.layers for direction in layer)
        start = 0 if self.initial_h is None else self.initial_h.nbytes
        return recurrent + start + sum(e.bytes for e in self.embeddings) + self.head.bytes + self.head_bias.nbytes
