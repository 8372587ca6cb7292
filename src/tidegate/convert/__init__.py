"""Gate orders and weights: from and to torch, Keras and ONNX. One table, one place.

A GRU is the same numbers everywhere; programs differ in the order of the gates, in which axis comes first, and in how
they keep the biases. Values are copied: nothing here shares memory, and the other program need not be installed.

| whole layers | here | there |
| --- | --- | --- |
| `from_torch`, `to_torch` | a `tidegate.GRU` | a `torch.nn.GRU` |
| `from_keras`, `to_keras` | a `tidegate.GRU` | for each layer the weights of a `keras.layers.GRU` or of a `Bidirectional` one |
| `from_onnx`, `to_onnx` | a `tidegate.GRU` | for each layer an `OnnxGRU`: the operator's W, R, B and attributes |

(`tidegate.load_keras_gru` takes a Keras file, model or layer as a whole, and needs Keras.)

`lacks` lists what of a `tidegate.GRU` a program's layer has not.

Below them, for those who hold arrays and no layer: `layer_from_keras`, `layer_to_keras`, `layer_from_onnx` and
`layer_to_onnx` for one layer of a stack, and `reorder_gates` for one array.

Axes: I input features, H hidden units, D directions (1, or 2 with the forward one first). In all of these programs
**z = 1 keeps the old state**. Where the reset gate falls has a name in each:

    reset="after"     n = tanh(W_in x + b_in + r * (W_hn h + b_hn))    Keras: reset_after=True     ONNX: linear_before_reset=1
    reset="before"    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)    Keras: reset_after=False    ONNX: linear_before_reset=0

>>> import torch, tidegate
>>> from tidegate import convert
>>> layer = tidegate.GRU(3, 8, num_layers=2, bidirectional=True)
>>> below, above = convert.to_keras(layer)
>>> [weight.shape for weight in above]                        # forwards, then backwards
[(16, 24), (8, 24), (2, 24), (16, 24), (8, 24), (2, 24)]
>>> below, above = convert.to_onnx(layer)
>>> above.W.shape, above.R.shape, above.B.shape
((2, 24, 16), (2, 24, 8), (2, 48))
>>> above.attributes
{'hidden_size': 8, 'direction': 'bidirectional', 'linear_before_reset': 1}
>>> x = torch.randn(5, 1, 3)
>>> for again in (
...     convert.from_torch(convert.to_torch(layer)),
...     convert.from_keras(convert.to_keras(layer), batch_first=False),
...     convert.from_onnx(convert.to_onnx(layer)),
... ):
...     assert torch.equal(again(x)[0], layer(x)[0])
"""

from tidegate.convert.gate_orders import GATE_ORDERS, reorder_gates
from tidegate.convert.keras import from_keras, layer_from_keras, layer_to_keras, to_keras
from tidegate.convert.layouts import lacks
from tidegate.convert.onnx import OnnxGRU, from_onnx, layer_from_onnx, layer_to_onnx, to_onnx
from tidegate.convert.torch import from_torch, to_torch

__all__ = [
    "GATE_ORDERS",
    "OnnxGRU",
    "from_keras",
    "from_onnx",
    "from_torch",
    "lacks",
    "layer_from_keras",
    "layer_from_onnx",
    "layer_to_keras",
    "layer_to_onnx",
    "reorder_gates",
    "to_keras",
    "to_onnx",
    "to_torch",
]
