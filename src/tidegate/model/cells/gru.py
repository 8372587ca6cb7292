"""`tidegate.GRU` as a core."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from tidegate.model.spec import ModelSpec
from tidegate.nn import GRU
from tidegate.ops.gru import reference
from tidegate.ops.gru.extras import Extras


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

    def unrolled(self, core: GRU, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        options = Extras(reset=core.reset, layer_norm=core.layer_norm, zoneout=core.zoneout)
        weights: list[Tensor] = [*core.all_weights[0]]
        return (reference.step(x, state[0].unsqueeze(0), weights, bias=core.bias, extras=options)[0],)


cell = _GRU()
