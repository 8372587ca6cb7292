"""ONNX's GRU operators from a layer of ours, and back. The package onnx isn't needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.convert.gate_orders import reorder_gates
from tidegate.convert.layouts import (
    BY_HAND,
    ONE_BY_ONE,
    Directions,
    as_arrays,
    build,
    check_layer,
    check_reset,
    layers_of,
    match_axes,
    our_arrays,
)
from tidegate.documents import shown
from tidegate.errors import SettingsError, of_type
from tidegate.nn import GRU


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
    advice = (
        f"{BY_HAND.format('layer_to_onnx', 'initial_h')} tidegate.export.onnx.write_layer() writes any layer to a file."
    )
    check_layer("to_onnx", layer, "onnx", advice)
    return [_to_onnx(f"to_onnx: layer {k}", directions, layer.reset) for k, directions in enumerate(layers_of(layer))]


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
                f"from_onnx: layer {k} has linear_before_reset={shown(operator.linear_before_reset)}, "
                f"the ones below have another. {ONE_BY_ONE}"
            )
        reset = operator.reset
    return build("from_onnx", stack, reset=reset, batch_first=batch_first, device=device)


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
    check_reset(place, reset)
    ours = our_arrays(place, directions)
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
            f"{place}: direction is {shown(operator.direction)}, expected 'forward' or 'bidirectional'. "
            "'reverse' is 'forward' with x and the output turned round in time; bytes want .decode()."
        )
    D = 2 if operator.direction == "bidirectional" else 1
    given = [operator.W, operator.R] if operator.B is None else [operator.W, operator.R, operator.B]
    ((W, R, *biases),) = as_arrays(place, [given], ("W", "R", "B"))
    sizes = {"D": D}
    match_axes(place, "R", R, "D 3H H", sizes)
    match_axes(place, "W", W, "D 3H I", sizes)
    parts = [W, R]
    for B in biases:
        match_axes(place, "B", B, "D 6H", sizes)
        parts += np.split(B, 2, axis=1)
    return [[reorder_gates(part[d], "onnx", "tidegate") for part in parts] for d in range(D)]
