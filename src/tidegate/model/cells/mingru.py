"""`tidegate.MinGRU` as a core."""

from __future__ import annotations

from torch import Tensor

from tidegate.model.spec import ModelSpec
from tidegate.nn import MinGRU


class _MinGRU:
    def make(self, spec: ModelSpec) -> MinGRU:
        return MinGRU(
            spec.input_width,
            spec.hidden_size,
            num_layers=spec.num_layers,
            dropout=spec.dropout if spec.num_layers > 1 else 0.0,
            bidirectional=spec.bidirectional,
            learn_initial_state=spec.core.learn_initial_state,
            update_bias=spec.core.update_bias,
        )

    def fresh(self, core: MinGRU, spec: ModelSpec) -> Tensor:
        return core.initial_state(1).detach().clone()

    def step(self, core: MinGRU, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return core.step(x, state)

    def unrolled(self, core: MinGRU, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (core.step(x, state[0].unsqueeze(0))[0],)


cell = _MinGRU()
