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

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.errors import SettingsError, ShapeError, nearest, of_type
from tidegate.nn import GRU

GATE_ORDERS = {
    "tidegate": "rzn",
    "torch": "rzn",  # and cuDNN
    "keras": "zrn",  # where they are called z, r, h
    "onnx": "zrn",  # z, r, h
    "onednn": "zrn",  # u, r, o
}
"""In which order each program stacks the gates r (reset), z (update), n (candidate).

Sources: the page of torch.nn.GRU; keras/src/layers/rnn/gru.py; the operator GRU of ONNX; oneDNN's page on RNN, whose bias
has a row more for reset="after": b_iz + b_hz, b_ir + b_hr, b_in, b_hn.
"""

Array = TypeVar("Array", Tensor, np.ndarray)
Directions = Sequence[Sequence[Any]]
"""One layer in our layout: for each direction w_ih [3H, I], w_hh [3H, H] and, with biases, b_ih [3H], b_hh [3H]."""


def reorder_gates(gates: Array, source: str, target: str, axis: int = 0) -> Array:
    """The three gates stacked along `axis`, from one program's order to another's. A copy; of tensors, differentiable.

    source, target: names in `GATE_ORDERS`. gates: 3H along `axis`.

    >>> reorder_gates(torch.tensor([1, 1, 2, 2, 3, 3]), "torch", "keras")    # r r z z n n -> z z r r n n
    tensor([2, 2, 1, 1, 3, 3])

    Raises `SettingsError` for a program that is not in the table, and `ShapeError` where the axis isn't 3H long.
    """
    for program in (source, target):
        if program not in GATE_ORDERS:
            known = ", ".join(map(repr, GATE_ORDERS))
            raise SettingsError(
                f"Unknown gate order {program!r}; known are {known}.{nearest(str(program), GATE_ORDERS)}"
            )
    if not -gates.ndim <= axis < gates.ndim or gates.shape[axis] % 3:
        raise ShapeError(f"reorder_gates: gates is {list(gates.shape)}, expected 3H along axis {axis}.")
    order = [GATE_ORDERS[source].index(gate) for gate in GATE_ORDERS[target]]
    if isinstance(gates, Tensor):
        blocks = gates.tensor_split(3, axis)
        return torch.cat([blocks[k] for k in order], axis)
    parts = np.split(gates, 3, axis)
    return np.concatenate([parts[k] for k in order], axis)


# ------------------------------------------------------------------------------------------------ torch


def from_torch(layer: nn.GRU) -> GRU:
    """A `tidegate.GRU` with the options, values, dtype, device and mode (training or not) of a `torch.nn.GRU`.

    Weights that are made of others (parametrised, pruned) arrive as their values.

    >>> from_torch(nn.GRU(3, 8, num_layers=2, dropout=0.1, batch_first=True))
    GRU(3, 8, num_layers=2, batch_first=True, dropout=0.1)

    Raises `TypeError` for anything but a `torch.nn.GRU`.
    """
    if not isinstance(layer, nn.GRU):
        raise TypeError(f"from_torch: layer is {of_type(layer)}, expected a torch.nn.GRU.")
    return _twin(GRU, layer)


def to_torch(layer: GRU) -> nn.GRU:
    """A `torch.nn.GRU` with the options, values, dtype, device and mode (training or not) of a `tidegate.GRU`.

    What says how to compute (backend, checkpoint_every) or how to begin (init, update_bias) stays behind.

    >>> to_torch(GRU(3, 8, bidirectional=True))
    GRU(3, 8, bidirectional=True)

    Raises `SettingsError` for a layer that computes what `torch.nn.GRU` can't, and `TypeError` for anything but a
    `tidegate.GRU`.
    """
    _check_layer("to_torch", layer, "torch", "Keep the tidegate.GRU, or train one without.")
    return _twin(nn.GRU, layer)


def _twin(make: Any, layer: Any) -> Any:
    weights = [weight for run in layer.all_weights for weight in run]
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    twin = _filled(make, weights, weights[0].device, **{name: getattr(layer, name) for name in names})
    for own, given in zip(twin.parameters(), weights, strict=True):
        own.requires_grad_(given.requires_grad)
    return twin.train(layer.training)


def _filled(make: Any, weights: Sequence[Tensor], device: Any, **options: Any) -> Any:
    # Made without values, as drawing some would move the random numbers of the program around us.
    layer = make(**options, dtype=weights[0].dtype, device="meta").to_empty(device=device)
    with torch.no_grad():
        for own, given in zip(layer.parameters(), weights, strict=True):
            own.copy_(given)
    return layer


# ------------------------------------------------------------------------------------------------ Keras


def to_keras(layer: GRU) -> list[list[np.ndarray]]:
    """For each layer what `set_weights` of a `keras.layers.GRU`, or of a `Bidirectional` one, takes.

    Keras' layers are one layer each: make one for each of ours, with units=H, use_bias=layer.bias,
    reset_after=(layer.reset == "after") and return_sequences=True. Its x is [B, T, I]. Dropout, which falls in training
    alone, is an option and no weight.

    With reset="before" Keras has one bias, b_ih + b_hh, rounded once.

    >>> kernel, recurrent_kernel, bias = to_keras(GRU(3, 8))[0]
    >>> kernel.shape, recurrent_kernel.shape, bias.shape
    ((3, 24), (8, 24), (2, 24))

    Raises `SettingsError` for a layer that Keras' GRU can't be or whose state is learned, `ShapeError` for weights that
    numpy can't hold, and `TypeError` for anything but a `tidegate.GRU`.
    """
    _check_layer("to_keras", layer, "keras", _BY_HAND.format("layer_to_keras", "initial_state"))
    return [_to_keras(f"to_keras: layer {k}", directions, layer.reset) for k, directions in enumerate(_stack(layer))]


def from_keras(
    layers: Iterable[Sequence[Any]], *, reset: str | None = None, batch_first: bool = True, device: Any = None
) -> GRU:
    """A `tidegate.GRU` with the values and dtype of Keras layers that stand on each other.

    layers: for each what `get_weights()` returns: `[first.get_weights(), second.get_weights()]`. All of them
        `keras.layers.GRU`, or all of them `Bidirectional` ones (of merge_mode "concat").
    reset: "after" where Keras has reset_after=True, its default; "before" where it has False. None: as the biases say,
        which are [2, 3H] for "after" and [3H] for "before"; without biases it must be given.
    batch_first: whether x is [B, T, I], as in Keras.
    device: of the parameters.

    The one bias of reset="before" comes as b_ih, with b_hh zeros. Weights can't tell activations: they must have been
    tanh and, for the gates, sigmoid, which are Keras' defaults (before TensorFlow 2 the gates' was "hard_sigmoid").

    >>> kernel, recurrent_kernel, bias = torch.rand(3, 24), torch.rand(8, 24), torch.rand(2, 24)
    >>> from_keras([[kernel, recurrent_kernel, bias]])
    GRU(3, 8, batch_first=True)
    >>> from_keras([[kernel, recurrent_kernel.T, bias]])
    Traceback (most recent call last):
        ...
    tidegate.errors.ShapeError: from_keras: layer 0: recurrent_kernel is [24, 8], expected [H, 3H].

    Raises `ShapeError` for arrays of other shapes or dtypes, and `SettingsError` where `reset` is missing, or isn't what
    the biases say.
    """
    if reset not in (None, "after", "before"):
        raise SettingsError(f"from_keras: reset is {reset!r}, expected 'after', 'before' or None.")
    stack: list[list[list[np.ndarray]]] = []
    told = reset
    for k, weights in enumerate(layers):
        directions, said = _from_keras(f"from_keras: layer {k}", weights)
        stack.append(directions)
        if said is not None and told not in (None, said):
            other = (
                f"the ones below say {told!r}. {_ONE_BY_ONE}" if reset is None else f"{told!r} was given. Leave it out."
            )
            raise SettingsError(f"from_keras: layer {k}: its bias says reset={said!r}, and {other}")
        told = told or said
    if stack and told is None:
        raise SettingsError(
            "from_keras: without biases the weights don't say where the reset gate falls. "
            "Give reset='after' where Keras has reset_after=True, its default, and reset='before' where it has False."
        )
    return _build("from_keras", stack, reset=told, batch_first=batch_first, device=device)


def layer_to_keras(directions: Directions, *, reset: str = "after") -> list[np.ndarray]:
    """One layer in Keras' layout: kernel [I, 3H], recurrent_kernel [H, 3H] and, with biases, bias: [2, 3H] for
    reset="after", and for "before" [3H], the sum of the two. The second direction follows the first.

    >>> w_ih, w_hh, b_ih, b_hh = [[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]
    >>> kernel, recurrent_kernel, bias = layer_to_keras([[w_ih, w_hh, b_ih, b_hh]])
    >>> print(kernel, recurrent_kernel)
    [[2. 1. 3.]] [[5. 4. 6.]]
    >>> print(bias)
    [[0.2 0.1 0.3]
     [2.  1.  3. ]]
    >>> print(layer_to_keras([[w_ih, w_hh, b_ih, b_hh]], reset="before")[2])
    [2.2 1.1 3.3]

    Raises `ShapeError` for arrays of other shapes or dtypes, and `SettingsError` for another `reset`.
    """
    return _to_keras("layer_to_keras", directions, reset)


def layer_from_keras(weights: Sequence[Any]) -> list[list[np.ndarray]]:
    """What a Keras layer's `get_weights()` returns, in our layout: for each direction w_ih, w_hh and, with a bias, b_ih,
    b_hh. The one bias of reset_after=False comes as b_ih, with b_hh zeros. Raises `ShapeError`.

    >>> ((w_ih, w_hh, b_ih, b_hh),) = layer_from_keras([[[2.0, 1.0, 3.0]], [[5.0, 4.0, 6.0]], [0.2, 0.1, 0.3]])
    >>> print(w_ih.T, w_hh.T, b_ih, b_hh)
    [[1. 2. 3.]] [[4. 5. 6.]] [0.1 0.2 0.3] [0. 0. 0.]
    """
    return _from_keras("layer_from_keras", weights)[0]


def _to_keras(place: str, directions: Directions, reset: str) -> list[np.ndarray]:
    _check_reset(place, reset)
    weights = []
    for w_ih, w_hh, *biases in _ours(place, directions):
        weights += [np.ascontiguousarray(reorder_gates(w, "tidegate", "keras").T) for w in (w_ih, w_hh)]
        if biases:
            # One bias is enough for "before": nothing stands between b_in and b_hn.
            bias = np.stack(biases) if reset == "after" else biases[0] + biases[1]
            weights.append(reorder_gates(bias, "tidegate", "keras", -1))
    return weights


def _from_keras(place: str, weights: Sequence[Any]) -> tuple[list[list[np.ndarray]], str | None]:
    """The directions, and the reset that the biases tell of, if there are any."""
    count = len(weights) if isinstance(weights, (list, tuple)) else None
    if count not in (2, 3, 4, 6):
        raise ShapeError(
            f"{place} is {of_type(weights) if count is None else f'a list of {count}'}, expected what get_weights() returns: a list "
            "of kernel, recurrent_kernel and, with use_bias, bias; as many again if Bidirectional."
        )
    D = 1 if count < 4 else 2
    parts = _arrays(place, [weights[: count // D], weights[count // D :]][:D], ("kernel", "recurrent_kernel", "bias"))
    said = None if count in (2, 4) else "before" if parts[0][2].ndim == 1 else "after"
    sizes: dict[str, int] = {}
    directions = []
    for way, (kernel, recurrent_kernel, *biases) in zip(_WAYS, parts, strict=False):
        _match(place, "recurrent_kernel" + way, recurrent_kernel, "H 3H", sizes)
        _match(place, "kernel" + way, kernel, "I 3H", sizes)
        ours = [reorder_gates(np.ascontiguousarray(w.T), "keras", "tidegate") for w in (kernel, recurrent_kernel)]
        for bias in biases:
            _match(place, "bias" + way, bias, "2 3H" if said == "after" else "3H", sizes)
            both = bias if said == "after" else np.stack([bias, np.zeros_like(bias)])
            ours += [*reorder_gates(both, "keras", "tidegate", 1)]
        directions.append(ours)
    return directions, said


# ------------------------------------------------------------------------------------------------ ONNX


@dataclass(frozen=True, eq=False)
class OnnxGRU:
    """An operator GRU of an ONNX file: the weights that go in, and the attributes that say what it computes.

    The defaults are ONNX's. Its other attributes must be at theirs (activations Sigmoid and Tanh, no clip), but for layout,
    which is about x and not about weights. To write a node and to read one:

        node = onnx.helper.make_node("GRU", ["x", "W", "R", "B", "", "h_0"], ["Y", "Y_h"], **operator.attributes)

        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        direction = given.get("direction", b"forward").decode()
        operator = OnnxGRU(W, R, B, given.get("linear_before_reset", 0), direction)

    Y is [T, D, B, H]; the next layer, and our `output`, want [T, B, D*H].
    """

    W: Any  # [D, 3H, I], gates in the order z, r, n, as in all three
    R: Any  # [D, 3H, H]
    B: Any = None  # [D, 6H]: W's biases, then R's; None: zeros
    linear_before_reset: int = 0
    direction: str = "forward"  # or "bidirectional"; "reverse" is none of ours

    @property
    def hidden_size(self) -> int:
        return np.shape(self.R)[-1]

    @property
    def reset(self) -> str:
        """Our word for linear_before_reset."""
        return "after" if self.linear_before_reset else "before"

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "direction": self.direction,
            "linear_before_reset": self.linear_before_reset,
        }


def to_onnx(layer: GRU) -> list[OnnxGRU]:
    """For each layer the ONNX operator that computes it; its B is None if the layer has no biases.

    >>> operator = to_onnx(GRU(3, 8))[0]
    >>> operator.W.shape, operator.R.shape, operator.B.shape
    ((1, 24, 3), (1, 24, 8), (1, 48))

    Raises `SettingsError` for a layer that the operator can't be or whose state is learned, `ShapeError` for weights that
    numpy can't hold, and `TypeError` for anything but a `tidegate.GRU`.
    """
    advice = f"{_BY_HAND.format('layer_to_onnx', 'initial_h')} tidegate.export.onnx.write_layer() writes any layer to a file."
    _check_layer("to_onnx", layer, "onnx", advice)
    return [_to_onnx(f"to_onnx: layer {k}", directions, layer.reset) for k, directions in enumerate(_stack(layer))]


def from_onnx(operators: Iterable[OnnxGRU], *, batch_first: bool = False, device: Any = None) -> GRU:
    """A `tidegate.GRU` with the values and dtype of ONNX operators that stand on each other.

    batch_first: whether x is [B, T, I]; ONNX's is [T, B, I], unless its layout is 1.
    device: of the parameters.

    >>> W, R, B = np.zeros((1, 24, 3)), np.zeros((1, 24, 8)), np.zeros((1, 48))
    >>> from_onnx([OnnxGRU(W, R, B, linear_before_reset=1)])
    GRU(3, 8)
    >>> from_onnx([OnnxGRU(W, R, B[:, :24], linear_before_reset=1)])
    Traceback (most recent call last):
        ...
    tidegate.errors.ShapeError: from_onnx: layer 0: B is [1, 24], expected [D=1, 6H=48].

    Raises `ShapeError` for arrays of other shapes or dtypes, and `SettingsError` for operators that differ in
    linear_before_reset, or have another direction than "forward" and "bidirectional".
    """
    stack: list[list[list[np.ndarray]]] = []
    reset = None
    for k, operator in enumerate(operators):
        stack.append(_from_onnx(f"from_onnx: layer {k}", operator))
        if reset not in (None, operator.reset):
            raise SettingsError(
                f"from_onnx: layer {k} has linear_before_reset={operator.linear_before_reset}, "
                f"the ones below have another. {_ONE_BY_ONE}"
            )
        reset = operator.reset
    return _build("from_onnx", stack, reset=reset, batch_first=batch_first, device=device)


def layer_to_onnx(directions: Directions, *, reset: str = "after") -> OnnxGRU:
    """One layer as ONNX's operator.

    >>> w_ih, w_hh, b_ih, b_hh = [[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]
    >>> operator = layer_to_onnx([[w_ih, w_hh, b_ih, b_hh]])
    >>> print(operator.W[0].T, operator.R[0].T, operator.B[0])
    [[2. 1. 3.]] [[5. 4. 6.]] [0.2 0.1 0.3 2.  1.  3. ]

    Raises `ShapeError` for arrays of other shapes or dtypes, and `SettingsError` for another `reset`.
    """
    return _to_onnx("layer_to_onnx", directions, reset)


def layer_from_onnx(operator: OnnxGRU) -> list[list[np.ndarray]]:
    """The operator's weights in our layout: for each direction w_ih, w_hh and, if there is a B, b_ih, b_hh.

    Raises `ShapeError` for arrays of other shapes or dtypes, and `SettingsError` for another direction than "forward" and
    "bidirectional".
    """
    return _from_onnx("layer_from_onnx", operator)


def _to_onnx(place: str, directions: Directions, reset: str) -> OnnxGRU:
    _check_reset(place, reset)
    ours = _ours(place, directions)
    W, R, *biases = (
        [reorder_gates(array, "tidegate", "onnx") for array in arrays] for arrays in zip(*ours, strict=True)
    )
    return OnnxGRU(
        np.stack(W),
        np.stack(R),
        np.hstack([np.stack(b) for b in biases]) if biases else None,
        linear_before_reset=int(reset == "after"),
        direction="bidirectional" if len(ours) == 2 else "forward",
    )


def _from_onnx(place: str, operator: OnnxGRU) -> list[list[np.ndarray]]:
    if not isinstance(operator, OnnxGRU):
        raise TypeError(
            f"{place} is {of_type(operator)}, expected an OnnxGRU: OnnxGRU(W, R, B, linear_before_reset=..., direction=...)."
        )
    if operator.direction not in ("forward", "bidirectional"):
        raise SettingsError(
            f"{place}: direction is {operator.direction!r}, expected 'forward' or 'bidirectional'. "
            "'reverse' is 'forward' with x and the output turned round in time; bytes want .decode()."
        )
    D = 2 if operator.direction == "bidirectional" else 1
    given = [operator.W, operator.R] if operator.B is None else [operator.W, operator.R, operator.B]
    ((W, R, *biases),) = _arrays(place, [given], ("W", "R", "B"))
    sizes = {"D": D}
    _match(place, "R", R, "D 3H H", sizes)
    _match(place, "W", W, "D 3H I", sizes)
    parts = [W, R]
    for B in biases:
        _match(place, "B", B, "D 6H", sizes)
        parts += np.split(B, 2, axis=1)
    return [[reorder_gates(part[d], "onnx", "tidegate") for part in parts] for d in range(D)]


# ------------------------------------------------------------------------------------------------ shared

_PLAIN = {"reset": "after", "layer_norm": False, "zoneout": 0.0, "recurrent_dropout": 0.0, "learn_initial_state": False}
"""What `torch.nn.GRU` has not, and the value at which a `tidegate.GRU` is the same as it."""

_NOT_IN_WEIGHTS = ["layer_norm", "zoneout", "learn_initial_state"]
"""Of these, what changes the numbers outside training, and has no place in Keras' and ONNX's weights."""

_PROGRAMS = {
    "torch": ("torch.nn.GRU", [*_PLAIN]),
    "keras": ("keras.layers.GRU", _NOT_IN_WEIGHTS),
    "onnx": ("ONNX's GRU", _NOT_IN_WEIGHTS),
}
"""What each calls its layer, and which options of ours that one has not."""

_BY_HAND = (
    "Train one without. Where it is the learned state alone: convert the weights with {}(), and give the state as {}."
)
_ONE_BY_ONE = "The layers of a tidegate.GRU are alike: convert these one by one."
_WAYS = ("", " (backwards)")
_DTYPES = ("float16", "float32", "float64")


def lacks(layer: GRU, program: str) -> list[str]:
    """Which options of the layer the GRU of a program ("torch", "keras" or "onnx") has not, as they would be written.

    >>> lacks(GRU(3, 8, reset="before", layer_norm=True), "torch"), lacks(GRU(3, 8, reset="before"), "keras")
    (["reset='before'", 'layer_norm=True'], [])
    """
    options = _PROGRAMS[program][1]
    return [f"{name}={getattr(layer, name)!r}" for name in options if getattr(layer, name) != _PLAIN[name]]


def _check_layer(me: str, layer: Any, program: str, advice: str) -> None:
    if not isinstance(layer, GRU):
        hint = " Use from_torch() first." if isinstance(layer, nn.GRU) else ""
        raise TypeError(f"{me}: layer is {of_type(layer)}, expected a tidegate.GRU.{hint}")
    said = lacks(layer, program)
    if said:
        raise SettingsError(f"{me}: {_PROGRAMS[program][0]} has no {' and no '.join(said)}. {advice}")


def _check_reset(place: str, reset: str) -> None:
    if reset not in ("after", "before"):
        raise SettingsError(f"{place}: reset is {reset!r}, expected 'after' or 'before'.")


def _stack(layer: GRU) -> list[Directions]:
    """The layer's weights, layer by layer."""
    runs = layer.all_weights
    D = 2 if layer.bidirectional else 1
    return [runs[k : k + D] for k in range(0, len(runs), D)]


def _build(me: str, stack: list[list[list[np.ndarray]]], *, reset: str | None, batch_first: bool, device: Any) -> GRU:
    """A `tidegate.GRU` of layers in our layout, each of which is right by itself."""
    if not stack:
        raise SettingsError(f"{me}: there are no layers, expected one or more.")

    def traits(directions: list[list[np.ndarray]]) -> dict[str, Any]:
        w_hh = directions[0][1]
        return {
            "hidden_size": w_hh.shape[1],
            "bidirectional": len(directions) == 2,
            "bias": len(directions[0]) == 4,
            "dtype": str(w_hh.dtype),
        }

    first = traits(stack[0])
    width = (1 + first["bidirectional"]) * first["hidden_size"]
    for k, directions in enumerate(stack[1:], 1):
        for name, value in traits(directions).items():
            if value != first[name]:
                raise ShapeError(f"{me}: layer {k} has {name}={value!r}, layer 0 has {first[name]!r}. {_ONE_BY_ONE}")
        if directions[0][0].shape[1] != width:
            raise ShapeError(
                f"{me}: layer {k} reads {directions[0][0].shape[1]} features, "
                f"expected D*H={width}, which the layer below gives."
            )
    del first["dtype"]
    weights = [torch.from_numpy(array) for directions in stack for arrays in directions for array in arrays]
    sizes = {"input_size": weights[0].shape[1], "num_layers": len(stack)}
    device = torch.get_default_device() if device is None else device
    return _filled(GRU, weights, device, **sizes, **first, batch_first=batch_first, reset=reset)


def _ours(place: str, directions: Directions) -> list[list[np.ndarray]]:
    """One layer in our layout as arrays of the right shapes."""
    if len(directions) not in (1, 2) or {*map(len, directions)} not in ({2}, {4}):
        raise ShapeError(
            f"{place}: found {len(directions)} directions of {' and '.join(str(len(d)) for d in directions)} arrays, "
            "expected one or two of [w_ih, w_hh] or of [w_ih, w_hh, b_ih, b_hh]."
        )
    ours = _arrays(place, directions, ("w_ih", "w_hh", "b_ih", "b_hh"))
    sizes: dict[str, int] = {}
    for way, (w_ih, w_hh, *biases) in zip(_WAYS, ours, strict=False):
        _match(place, "w_hh" + way, w_hh, "3H H", sizes)
        _match(place, "w_ih" + way, w_ih, "3H I", sizes)
        for name, b in zip(("b_ih", "b_hh"), biases, strict=False):
            _match(place, name + way, b, "3H", sizes)
    return ours


def _arrays(place: str, parts: Sequence[Sequence[Any]], names: Sequence[str]) -> list[list[np.ndarray]]:
    """Tensors, arrays or lists as arrays of one dtype, on this machine. parts: for each direction, by `names`."""
    found: list[list[np.ndarray]] = []
    one = None
    for way, part in zip(_WAYS, parts, strict=False):
        found.append([])
        for name, value in zip(names, part, strict=False):
            if isinstance(value, Tensor) and value.is_meta:
                raise ShapeError(
                    f"{place}: {name}{way} is on meta, where tensors have no values. Load the weights first."
                )
            value = value.detach().cpu() if isinstance(value, Tensor) else np.asarray(value)
            dtype = str(value.dtype).removeprefix("torch.")
            if dtype not in _DTYPES:
                raise ShapeError(
                    f"{place}: {name}{way} is {dtype}, expected {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}. "
                    "Use .float() on a layer or a tensor, .astype('float32') on an array."
                )
            one = one or dtype
            if dtype != one:
                raise ShapeError(f"{place}: {name}{way} is {dtype}, {names[0]} is {one}. Give all in one dtype.")
            found[-1].append(np.asarray(value))
    return found


def _match(place: str, name: str, array: np.ndarray, axes: str, sizes: dict[str, int]) -> None:
    """Raise `ShapeError` unless the array has these axes, such as "3H I". A letter that is new gets its size here."""
    parsed = [(int(axis.rstrip("DHI") or 1), axis.lstrip("0123456789")) for axis in axes.split()]
    wanted = [
        f"{axis}={times * sizes[letter]}" if letter in sizes else axis
        for axis, (times, letter) in zip(axes.split(), parsed, strict=True)
    ]
    if array.ndim != len(parsed) or not all(
        size > 0 and size == times * (sizes.setdefault(letter, size // times) if letter else 1)
        for size, (times, letter) in zip(array.shape, parsed, strict=True)
    ):
        raise ShapeError(f"{place}: {name} is {list(array.shape)}, expected [{', '.join(wanted)}].")
