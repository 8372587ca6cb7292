"""The weights in C's order, in 32 or 8 bits, and the model that has exactly these."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tidegate.export.parts import Parts

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


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, n] as int8 [rows, n] and a float32 scale a row: the nearest of 255 evenly spaced values to each."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scales = (largest / 127).astype(np.float32)
    # A row of zeros, or one so small that 1/127 of it is no number, is one of zeros.
    by = np.where(scales > 0, scales, np.inf)[:, None]
    return np.clip(np.rint(rows / by), -127, 127).astype(np.int8), scales


class Weights:
    """The weights in C's order, and the model that has exactly these."""

    def __init__(self, parts: Parts, int8: bool):
        self.int8 = int8
        self.layers = [
            [(self._columns(w_ih), self._columns(w_hh), b_ih, b_hh) for w_ih, w_hh, b_ih, b_hh in layer]
            for layer in parts.layers
        ]
        self.embeddings = [self._rows(e) for e in parts.embeddings]
        self.head, self.head_bias = self._columns(parts.head_weight), parts.head_bias
        self.model = self._model(parts)

    def _rows(self, rows: np.ndarray) -> Matrix:
        if not self.int8:
            return Matrix(rows)
        numbers, scales = quantise(rows)
        return Matrix(numbers * scales[:, None], numbers, scales)

    def _columns(self, w: np.ndarray) -> Matrix:
        """w [outputs, inputs] as PyTorch has it."""
        m = self._rows(w)
        return Matrix(m.values.T, None if m.numbers is None else m.numbers.T, m.scales)

    def _model(self, parts: Parts) -> SequenceModel:
        """A copy of the run's model, on its device, with the weights that C has."""
        model = copy.deepcopy(parts.run.model).eval()
        flat: list[Any] = [direction for layer in self.layers for direction in layer]
        given_weights: Any = model.core.all_weights  # type: ignore[union-attr]
        with torch.no_grad():
            for given, (w_ih, w_hh, b_ih, b_hh) in zip(given_weights, flat, strict=True):
                for parameter, value in zip(given, (w_ih.values.T, w_hh.values.T, b_ih, b_hh), strict=True):
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
            for embedding, matrix in zip(model.embeddings, self.embeddings, strict=True):
                embedding.weight.copy_(torch.from_numpy(matrix.values))  # type: ignore[operator]
            model.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(self.head.values.T)))
        return model

    @property
    def bytes(self) -> int:
        each = [
            w_ih.bytes + w_hh.bytes + b_ih.nbytes + b_hh.nbytes for l in self.layers for w_ih, w_hh, b_ih, b_hh in l
        ]
        return sum(each) + sum(e.bytes for e in self.embeddings) + self.head.bytes + self.head_bias.nbytes
