"""The self-test's made-up rows, and what Python makes of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from tidegate.data.arrange import Arranged
from tidegate.data.preprocessing import encode_features
from tidegate.data.tables import Table
from tidegate.export.c.spelling import LONGEST_LITERAL, braced, number, real, text
from tidegate.export.c.weights import Weights
from tidegate.export.parts import Parts
from tidegate.model.tasks import TASKS, in_units

if TYPE_CHECKING:
    from tidegate.model import SequenceModel

LENGTHS = (1, 7, 24)  # of the self-test's sequences


def recorded(parts: Parts, weights: Weights) -> dict[str, Any]:
    """Made-up rows, always the same ones for a run, and what Python makes of them."""
    pre = parts.preprocessing
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    numbers = np.array([[c.mean for c in pre.numbers]]) + rng.standard_normal((rows, len(pre.numbers))) * [
        [c.std for c in pre.numbers]
    ]
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float32).astype(np.float64)  # so that TIDEGATE_FLOAT_INPUT reads the same numbers
    numbers = np.where(np.isfinite(rounded), rounded, numbers)
    gone = rng.random(numbers.shape) < 0.15
    texts = [_made_up(c.vocabulary, c.kind, rows, rng) for c in pre.tokens]
    columns = {
        c.name: pl.Series(np.where(gone[:, k], np.nan, numbers[:, k])).fill_nan(None) for k, c in enumerate(pre.numbers)
    }
    columns |= {c.name: pl.Series(t, dtype=pl.String) for c, t in zip(pre.tokens, texts, strict=True)}
    offsets = np.cumsum([0, *LENGTHS])
    arranged = Arranged(Table(pl.DataFrame(), "the self-test"), columns, None, offsets, np.arange(rows), {}, ())
    encoded, codes = encode_features(arranged, pre.features, "error")
    model = copy.deepcopy(weights.model).cpu()
    scores = _scores(model, encoded, codes)
    # How far rounding alone goes: float32 against float64, on these rows.
    apart = np.abs(scores - _scores(model.double(), encoded.astype(np.float64), codes)) / np.maximum(1, np.abs(scores))
    allowed = max(1e-5, 20 * float(apart.max()))
    task = pre.target.task
    # What a task doesn't have is filled in all the same: the test of such a header leaves it out.
    with_probabilities = TASKS[task].has_probabilities
    probabilities = TASKS[task].probabilities(torch.from_numpy(scores)).numpy() if with_probabilities else scores
    predicted = scores if with_probabilities else in_units(scores.astype(np.float64), pre.target)

    def nested(values: np.ndarray, spell: Any) -> list[str]:
        return [braced(braced(map(spell, k)) for k in row) for row in values.tolist()]

    return {
        "lengths": LENGTHS,
        "test_numbers": [braced(map(number, row)) for row in numbers.tolist()],
        "missing": [braced(map(str, at)) for at in np.argwhere(gone).tolist()],
        "test_texts": [braced("0" if t is None else text(t) for t in row) for row in zip(*texts, strict=True)],
        "test_codes": [braced(map(str, row)) for row in codes.tolist()],
        "test_scores": nested(scores, real),
        "test_probabilities": nested(probabilities, real),
        "test_predictions": nested(predicted, number),
        "tolerance": number(allowed, 2),
    }


def _made_up(vocabulary: Sequence[str], kind: str, rows: int, rng: np.random.Generator) -> list[str | None]:
    """Texts of a column: of the vocabulary (those that fit into a literal), unknown ones and missing ones."""
    known = [t for t in vocabulary if len(t.encode()) <= LONGEST_LITERAL]
    choices: list[str | None] = [None, "not in the vocabulary, surely"]
    choices += [known[i] for i in rng.choice(len(known), min(len(known), rows), replace=False)] if known else []
    out = [choices[i] for i in rng.permutation(np.resize(np.arange(len(choices)), rows))]
    if kind == "words":  # A to Z may come in capitals
        out = [t.capitalize() if t is not None and t.isascii() else t for t in out]
    return out


def _scores(model: SequenceModel, encoded: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[rows, K, outputs], or [sequences, 1, outputs]: each sequence of LENGTHS by itself."""
    out, first = [], 0
    with torch.no_grad():
        for length in LENGTHS:
            steps = slice(first, first + length)
            numbers, words = torch.from_numpy(encoded[steps, None]), torch.from_numpy(codes[steps, None])
            scores = model(numbers, words, torch.tensor([length]))[0]
            out.append(scores[:, 0] if model.spec.per == "step" else scores)
            first += length
    return torch.cat(out).numpy()
