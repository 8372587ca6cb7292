"""`torch.nn.LSTM` as a core."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tidegate.model.cells.torch_cells import TorchCell


class _LSTM(TorchCell):
    def unrolled(self, core: nn.LSTM, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """torch.lstm_cell written out, since h is to be made of the very c that is returned: dL/dc goes through both.

        c' = f ⊙ c + i ⊙ g        h' = o ⊙ tanh(c')
        """
        h, c = state
        w_ih, w_hh, b_ih, b_hh = core.all_weights[0]
        i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


cell = _LSTM(nn.LSTM, parts=2)
