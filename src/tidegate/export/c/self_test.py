"""The self-test's made-up rows, and what Python makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tidegate.export.c.spelling import LONGEST_LITERAL, braced, number, real, text
from tidegate.export.c.weights import Weights
from tidegate.export.parts import Parts
from tidegate.export.probe import rounding, sequences
from tidegate.model.tasks import TASKS, in_units


def recorded(parts: Parts, weights: Weights) -> dict[str, Any]:
    """Made-up rows, always the same ones for a run, and what Python makes of them."""
    pre = parts.preprocessing
    probe = sequences(parts, longest_text=LONGEST_LITERAL)
    scores = probe.scores(weights.model)
    # How far rounding alone goes: float32 against float64, on these rows.
    allowed = max(1e-5, 20 * rounding(scores, probe.scores(weights.model, torch.float64)))
    task = TASKS[pre.target.task]
    # What a task doesn't have is filled in all the same: the test of such a header leaves it out.
    probabilities = task.probabilities(torch.from_numpy(scores)).numpy() if task.has_probabilities else scores
    predicted = scores if task.has_probabilities else in_units(scores.astype(np.float64), pre.target)
    values, missing, texts, codes = (
        each[probe.inside] for each in (probe.values, probe.missing, probe.texts, probe.codes)
    )

    def nested(values: np.ndarray, spell: Any) -> list[str]:
        return [braced(braced(map(spell, k)) for k in row) for row in values.tolist()]

    return {
        "lengths": probe.lengths.tolist(),
        # Each is one that a float holds, so that TIDEGATE_FLOAT_INPUT reads the same numbers.
        "test_numbers": [braced(map(number, row)) for row in values.tolist()],
        "missing": [braced(map(str, at)) for at in np.argwhere(missing).tolist()],
        "test_texts": [braced("0" if t is None else text(t) for t in row) for row in texts.tolist()],
        "test_codes": [braced(map(str, row)) for row in codes.tolist()],
        "test_scores": nested(scores, real),
        "test_probabilities": nested(probabilities, real),
        "test_predictions": nested(predicted, number),
        "tolerance": number(allowed, 2),
    }
