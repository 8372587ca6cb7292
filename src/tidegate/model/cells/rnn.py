"""`torch.nn.RNN`, h_t = tanh(W x_t + U h_(t-1) + b), as a core."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tidegate.model.cells.torch_cells import TorchCell


class _RNN(TorchCell):
    def unrolled(self, core: nn.RNN, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.rnn_tanh_cell(x, *state, *core.all_weights[0]),)


cell = _RNN(nn.RNN, parts=1)
