"""With `carry_state`: what the rows of a batch take over from those of the batch before, and hand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tidegate.model import SequenceModel
from tidegate.model.cells import CELLS, parts_of


@dataclass(frozen=True)
class Lanes:
    """The states of the rows of one batch (see `BatchSource.training_lanes`); nothing is carried where `fresh` is None.

    fresh [B] bool: in which rows another stretch begins. before: the parts of the state that the batch before left in its rows,
    [layers, B', H] each, B' ≥ B; none at the beginning of an epoch. after [layers, B, H]: those that this one leaves, once it was
    computed. They are detached: the gradient ends at the window.

    A batch may be computed some rows at a time: `rows` are views, and what they leave is in `after`.
    """

    fresh: Tensor | None
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]

    @staticmethod
    def of(model: SequenceModel, arguments: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Lanes:
        """arguments: of a batch."""
        if len(arguments) < 5:
            return Lanes(None, (), ())
        spec, device = model.spec, model.head.weight.device
        shape = (spec.states, len(arguments[0]), spec.hidden_size)
        after = tuple(torch.empty(shape, dtype=torch.float32, device=device) for _ in CELLS[spec.cell].state)
        return Lanes(arguments[4], before, after)

    def rows(self, first: int, last: int) -> Lanes:
        """Those of the rows first ... last - 1."""
        if self.fresh is None:
            return self
        before, after = (tuple(part[:, first:last] for part in parts) for parts in (self.before, self.after))
        return Lanes(self.fresh[first:last], before, after)

    @property
    def carried(self) -> bool:
        return self.fresh is not None

    def begin(self, model: SequenceModel) -> Any:
        """The state with which the rows begin."""
        return None if self.fresh is None else model.begin(self.before, self.fresh)

    def end(self, state: Any) -> None:
        """The rows have come to this state, each after its last step."""
        if self.carried:
            for to, part in zip(self.after, parts_of(state), strict=True):
                to.copy_(part.detach())
