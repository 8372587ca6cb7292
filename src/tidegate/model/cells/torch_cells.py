"""PyTorch's other recurrent layers as cores, but for their equations: there to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tidegate.model.cells import State, state_of
from tidegate.model.spec import ModelSpec


class TorchCell:
    """A module of torch's that takes what `torch.nn.RNN` takes; parts: how many tensors its state has."""

    def __init__(self, module: type[nn.RNNBase], parts: int):
        self.module, self.parts = module, parts

    def make(self, spec: ModelSpec) -> nn.Module:
        module: Any = self.module
        core: nn.Module = module(
            spec.input_width,
            spec.hidden_size,
            num_layers=spec.num_layers,
            dropout=spec.dropout if spec.num_layers > 1 else 0.0,
            bidirectional=spec.bidirectional,
        )
        return core

    def fresh(self, core: nn.Module, spec: ModelSpec) -> State:
        zeros = torch.zeros(spec.states, 1, spec.hidden_size, dtype=torch.float32)
        return state_of((zeros,) * self.parts)

    def step(self, core: nn.Module, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = core(x.unsqueeze(0), state)
        return y[0], state
