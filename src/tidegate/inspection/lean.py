"""Which inputs a prediction leans on: the gradient of its score by every input.

After "connectivity" in A. Madsen, "Visualizing memorization in RNNs", Distill 2019, doi:10.23915/distill.00016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tidegate.gates.gates import Gates
from tidegate.model import SequenceModel
from tidegate.model.tasks import TASKS, Task

WHOLE = 512  # sequences up to here are derived from end to end; in longer ones a prediction looks back so many steps
AROUND = 128  # or, where the model reads both ways and every window is run through whole, at so many around it
_STEPS_AT_ONCE = 16_384  # rows times steps of one backward pass, so that memory stays bounded


class Stretch(NamedTuple):
    """A sequence, or a stretch of one, as the model read it.

    encoded [T, 1, E]: see `SequenceModel.encode`; gates: its trace, each field [T, H]; edges [layers·D, H]: the states that come
    into it from outside, forwards before step 0, backwards after step T - 1.
    """

    encoded: Tensor
    gates: Mapping[str, Gates]
    edges: Tensor


@dataclass(frozen=True)
class Lean:
    """How strongly each prediction depends on each input: the length of the gradient of its score.

    steps [P, S]: of prediction p on the inputs of bucket s (a root of the sum of squares where a bucket has several steps);
    columns [P, C]: on each input column over all steps that were looked at, shown or not. reach: how many steps before (and,
    in a model that reads both ways, around) a prediction were looked at; None: all of the sequence. outputs [P]: of labels and numbers
    which output each prediction's score was, counted through all columns one step ahead, then two ...
    """

    steps: np.ndarray
    columns: np.ndarray
    reach: int | None
    outputs: np.ndarray | None = None


def lean(
    model: SequenceModel,
    task: str,
    stretch: Stretch,
    predictions: np.ndarray,
    buckets: np.ndarray,
    columns: Sequence[Sequence[int]],
    *,
    end: int | None = None,
) -> Lean:
    """Derive the predictions at some steps by the inputs of a sequence, or of a stretch of one.

        lean[p, s] = || d score_p / d e_s ||        e_s: what the core reads at step s, standardised numbers and word vectors

    score: for classes the best one's lead over the second best, else the output that is largest in size (of numbers in
    standard deviations from the mean, of labels as the logarithm of their odds).

    predictions [P]: their steps (ignored with per="sequence", which has one prediction, for which the stretch must be the
    whole sequence); buckets [S]: the first step of
    each bucket, the last of which ends before `end` (None: T); columns: for each input column the features of e it has.
    """
    encoded, teller = stretch.encoded, TASKS[task]
    T = len(encoded)
    end = T if end is None else end
    with model.evaluating():
        if model.spec.per == "sequence":
            slopes, chosen = _slopes(model, teller, encoded, None, np.array([T - 1]))
            return Lean(*_summed(slopes, np.zeros(1, int), end, buckets, columns), None, chosen)
        whole = T <= WHOLE
        both = model.spec.bidirectional
        length = T if whole else min(T, AROUND if both else WHOLE)
        if both and not whole:
            starts = np.clip(predictions - length // 2, 0, T - length)
        else:
            starts = np.clip(predictions - length + 1, 0, None)
        at = predictions - (0 if whole else starts)
        by_step = np.zeros((len(predictions), len(buckets)))
        by_column = np.zeros((len(predictions), len(columns)))
        outputs: np.ndarray | None = None
        # Those early in the sequence need the fewest steps before them: together they make short batches.
        for part in np.array_split(np.arange(len(predictions)), -(-len(predictions) * length // _STEPS_AT_ONCE)):
            if not len(part):
                continue
            first = np.zeros(len(part), int) if whole else starts[part]
            steps = length if both else int(at[part].max()) + 1
            index = torch.from_numpy(first)[None, :] + torch.arange(steps)[:, None]
            x = encoded[index.clamp(max=T - 1), 0]
            state = _states(stretch, first, first + steps).to(encoded.device)
            slopes, chosen = _slopes(model, teller, x, state, at[part])
            if chosen is not None:
                outputs = np.zeros(len(predictions), int) if outputs is None else outputs
                outputs[part] = chosen
            by_step[part], by_column[part] = _summed(slopes, first, end, buckets, columns)
        return Lean(by_step, by_column, None if whole else length, outputs)


def _slopes(
    model: SequenceModel, task: Task, x: Tensor, state: Tensor | None, at: np.ndarray
) -> tuple[Tensor, np.ndarray | None]:
    """d score / d x of one prediction a row, [T, B, E], and of labels and numbers which output the score is, [B]; at [B]: the
    step of each.
    """
    T, B, _ = x.shape
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        scores = model.scores(x, torch.full((B,), T), state)
        if model.spec.per != "sequence":
            scores = scores[torch.from_numpy(at), torch.arange(B)]  # [B, K, W]
        score, which = task.telling(scores)
        (slopes,) = torch.autograd.grad(score.sum(), x)
    return slopes.double().cpu(), None if which is None else which[:, 0].cpu().numpy()


def _states(stretch: Stretch, first: np.ndarray, end: np.ndarray) -> Tensor:
    """What every layer and direction held where the windows first:end begin, [layers * D, B, H]."""
    states = []
    for edge, (name, found) in zip(stretch.edges, stretch.gates.items(), strict=True):
        before = end if name.endswith("_reverse") else first - 1
        inside = (before >= 0) & (before < len(found.hidden))
        state = found.hidden[torch.from_numpy(np.where(inside, before, 0))]
        states.append(torch.where(torch.from_numpy(inside)[:, None], state, edge))
    return torch.stack(states)


def _summed(
    slopes: Tensor, first: np.ndarray, end: int, buckets: np.ndarray, columns: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    squares = slopes.square().numpy()  # [steps, B, E]
    by_column = np.stack([squares[..., list(features)].sum(axis=(0, 2)) for features in columns], axis=1)
    total = squares.sum(axis=2)  # [steps, B]
    out = np.zeros((len(first), len(buckets)))
    for b, start in enumerate(first):
        steps = start + np.arange(len(total))
        where = np.searchsorted(buckets, steps, side="right") - 1
        inside = (where >= 0) & (steps < end)
        np.add.at(out[b], where[inside], total[inside, b])
    return np.sqrt(out), np.sqrt(by_column)
