"""No core: the head reads the inputs themselves."""

from __future__ import annotations

from torch import Tensor

from tidegate.model.spec import ModelSpec


class _None:
    def make(self, spec: ModelSpec) -> None:
        return None

    def fresh(self, core: None, spec: ModelSpec) -> None:
        return None

    def step(self, core: None, x: Tensor, state: None) -> tuple[Tensor, None]:
        return x, None

    def unrolled(self, core: None, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ()


cell = _None()
