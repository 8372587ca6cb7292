"""A model's core taken apart in float64, and the gradients of predictions by its states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.inspection.gradients.plan import FARTHEST, Piece, batches, offsets
from tidegate.model import ModelSpec, SequenceModel
from tidegate.model.cells import CELLS, parts_of
from tidegate.model.tasks import TASKS

_VALUES_AT_ONCE = 2**22  # of float64 in one tensor: 32 MB

State = tuple[Tensor, ...]  # the parts of a state by the row's names, (h,) or (h, c); [B, H] each


class Unrolled:
    """A model's core in float64, taken apart: the layers below the top one, the top one, and its forward direction, which is
    gone through step by step. Options of the core stay what they are; it is in evaluation mode.

    first: the state before a sequence, [1, H] each.
    """

    def __init__(self, model: SequenceModel):
        spec = model.spec
        assert model.core is not None
        weights = {k: v.detach().double().cpu() for k, v in model.core.state_dict().items()}
        top, D = spec.num_layers - 1, spec.directions
        self.hidden_size = spec.hidden_size
        self.below = _core(spec, weights, range(top), D) if top else None
        self.top = _core(spec, weights, range(top, top + 1), D)
        self.forwards = _core(spec, weights, range(top, top + 1), 1)
        self.cell = CELLS[spec.cell].load()
        fresh = self.cell.fresh(self.forwards, replace(spec, num_layers=1, bidirectional=False))
        self.first: State = tuple(part[0].double() for part in parts_of(fresh))

    def read(self, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """What the top layer reads [T, B, I], the states of its forward direction and the output of its backward one
        (None: there is none), [T, B, H] each.
        """
        x = encoded if self.below is None else _run(self.below, encoded, lengths)
        _, *backward = _run(self.top, x, lengths).split(self.hidden_size, dim=-1)
        begin = tuple(part.expand(x.size(1), -1) for part in self.first)
        states = tuple(torch.stack(parts) for parts in zip(*self.forward(x, begin), strict=True))
        return x, states, backward[0] if backward else None

    def forward(self, x: Tensor, first: State, there: Tensor | None = None) -> list[State]:
        """The top layer's forward direction over x [T, B, I], a state a step.

        first: the state before the first step. there [T, B]: the step of a row begins from `first` where the step before isn't
        there; a state of a step that isn't means nothing.
        """
        states: list[State] = []
        for t, x_t in enumerate(x):
            state = states[-1] if states else first
            if states and there is not None:
                before = there[t - 1, :, None]
                state = tuple(torch.where(before, was, f) for was, f in zip(state, first, strict=True))
            states.append(self.cell.unrolled(self.forwards, x_t, state))
        return states


def _core(spec: ModelSpec, weights: dict[str, Tensor], layers: range, directions: int) -> nn.Module:
    """Some layers of a core, in so many directions, as a core of their own."""
    own: dict[str, Tensor] = {}
    for k, layer in enumerate(layers):
        for end in ("", "_reverse")[:directions]:
            of = f"_l{layer}{end}"
            own |= {name.removesuffix(of) + f"_l{k}{end}": w for name, w in weights.items() if name.endswith(of)}
    if "initial_h" in weights:
        by_layer = weights["initial_h"].unflatten(0, (-1, spec.directions))
        own["initial_h"] = by_layer[layers.start : layers.stop, :directions].flatten(0, 1)
    sizes = replace(
        spec,
        number_width=own["weight_ih_l0"].size(1),
        vocabularies=(),
        embedding_dims=(),
        num_layers=len(layers),
        bidirectional=directions == 2,
        dropout=0.0,
    )
    core = CELLS[spec.cell].load().make(sizes)
    assert core is not None
    core.double().load_state_dict(own)
    return core.eval().requires_grad_(False)


def _run(core: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(core(packed)[0], total_length=x.shape[0])[0]


def relative_gradients(
    model: SequenceModel, pre: Preprocessing, source: BatchSource, part: int | None, plan: Sequence[Piece]
) -> dict[str, np.ndarray]:
    """|dL/dh_{t-k}| / |dL/dh_t| of every prediction of the plan, and the same of an LSTM's c.

    [N, K] each with K = the farthest reach + 1; NaN beyond a prediction's own reach, and throughout where dL/dh_t is 0.
    """
    model = copy.deepcopy(model).cpu().double().eval()
    core = Unrolled(model)
    y = source.all_targets(part).cpu()
    y = y if y.dtype == torch.int64 else y.double()
    width = 1 + min(FARTHEST, max(t for p in plan for t in p.at))
    names = CELLS[model.spec.cell].state
    out = {name: np.full((sum(len(p.at) for p in plan), width), np.nan) for name in names}
    where = offsets(plan)
    for pieces in batches(plan, core.hidden_size, _VALUES_AT_ONCE):
        some = [plan[i] for i in pieces]
        rows = torch.tensor([where[i] + k for i in pieces for k in range(len(plan[i].at))])
        owner = torch.tensor([b for b, p in enumerate(some) for _ in p.at])
        at = torch.tensor([t for p in some for t in p.at])
        starts, ends = torch.tensor([p.start for p in some]), torch.tensor([p.end for p in some])
        batch = source.cut(starts, ends - starts, ends, sequences=torch.tensor([p.sequence for p in some]))
        numbers = batch.numbers.double()
        with torch.no_grad():
            x, states, backward = core.read(model.encode(numbers, batch.codes), batch.lengths)
        per_sequence = model.spec.per == "sequence"
        y_of = torch.tensor([p.sequence for p in some])[owner] if per_sequence else starts[owner] + at
        chunk = max(1, _VALUES_AT_ONCE // (width * core.hidden_size * 4))
        for i in range(0, len(rows), chunk):
            b, t = owner[i : i + chunk], at[i : i + chunk]
            steps, first = _before(states, core.first, b, t)
            there = steps >= (t - FARTHEST).clamp(min=0)
            steps = steps.clamp(min=0)
            first = tuple(v.requires_grad_() for v in first)
            chain = core.forward(x[steps, b], first, there)
            h = chain[-1][0]  # (every prediction's own step is there)
            if backward is not None:  # with per="sequence" it has read everything at the first step
                h = torch.cat([h, backward[torch.zeros_like(t) if per_sequence else t, b]], dim=-1)
            if per_sequence:  # one state in the place of the last, the largest and the mean
                h = h.repeat(1, len(model.spec.poolings))
            scores = model.score(h, numbers[t, b])
            loss, _ = TASKS[pre.target.task].loss_sum(scores, y[y_of[i : i + chunk]])
            nodes = [state[n] for n in range(len(names)) for state in reversed(chain)]
            sizes = torch.stack([g.norm(dim=-1) for g in torch.autograd.grad(loss, nodes)])
            sizes = sizes.view(len(names), len(chain), len(b))
            reach = there.flip(0)
            for n, name in enumerate(names):
                ratio = torch.where(reach & (sizes[n, 0] > 0), sizes[n] / sizes[n, 0], torch.nan)
                out[name][rows[i : i + chunk], : len(chain)] = ratio.T.numpy()
    return out


def _before(states: State, first: State, b: Tensor, t: Tensor) -> tuple[Tensor, State]:
    """The steps up to each prediction, [1 + reach, N], aligned at the prediction, and the state before the first of them, which of a
    sequence that begins there is `first` [1, H]."""
    reach = t.clamp(max=FARTHEST)
    longest = int(reach.max())
    steps = t - longest + torch.arange(longest + 1)[:, None]
    before = t - reach - 1
    return steps, tuple(
        torch.where((before >= 0)[:, None], v[before.clamp(min=0), b], f) for v, f in zip(states, first, strict=True)
    )
