"""The layers: `torch.nn.Module`s that hold parameters and check what comes in. No arithmetic."""

from tidegate.nn.cell import GRUCell
from tidegate.nn.gru import GRU
from tidegate.nn.mingru import MinGRU
from tidegate.nn.quantised import QuantisedGRU, quantize
from tidegate.ops.gru.native.flops import fvcore_handle

__all__ = ["GRU", "GRUCell", "MinGRU", "QuantisedGRU", "fvcore_handle", "quantize"]
