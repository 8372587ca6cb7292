"""`torch.nn.RNN`, h_t = tanh(W x_t + U h_(t-1) + b), as a core."""

from torch import nn

from tidegate.model.cells.torch_cells import TorchCell

cell = TorchCell(nn.RNN, parts=1)
