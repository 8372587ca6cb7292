"""`tidegate.GRU` as a core."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from tidegate.model.spec import ModelSpec
from tidegate.nn import GRU


class _GRU:
    def make(self, spec: ModelSpec) -> GRU:
        return GRU(
            spec.input_width,
            spec.hidden_size,
            num_layers=spec.num_layers,
            dropout=spec.dropout if spec.num_layers > 1 else 0.0,
            bidirectional=spec.bidirectional,
            **asdict(spec.core),
        )

    def fresh(self, core: GRU, spec: ModelSpec) -> Tensor:
        return core.initial_state(1).detach().clone()

    def step(self, core: GRU, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return core.step(x, state)


cell = _GRU()
