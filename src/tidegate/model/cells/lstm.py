"""`torch.nn.LSTM` as a core."""

from torch import nn

from tidegate.model.cells.torch_cells import TorchCell

cell = TorchCell(nn.LSTM, parts=2)
