"""A layer's weights as arrays of ours: taken out of it, checked against each other, and put into a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tidegate.documents import shown
from tidegate.errors import SettingsError, ShapeError, of_type
from tidegate.nn import GRU

Directions = Sequence[Sequence[Any]]
"""One layer in our layout: for each direction w_ih [3H, I], w_hh [3H, H] and, with biases, b_ih [3H], b_hh [3H]."""

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

BY_HAND = (
    "Train one without. Where it is the learned state alone: convert the weights with {}(), and give the state as {}."
)
ONE_BY_ONE = "The layers of a tidegate.GRU are alike: convert these one by one."
WAYS = ("", " (backwards)")
_DTYPES = ("float16", "float32", "float64")


def lacks(layer: GRU, program: str) -> list[str]:
    """Which options of the layer the GRU of a program ("torch", "keras" or "onnx") has not, as they would be written.

    >>> lacks(GRU(3, 8, reset="before", layer_norm=True), "torch"), lacks(GRU(3, 8, reset="before"), "keras")
    (["reset='before'", 'layer_norm=True'], [])
    """
    options = _PROGRAMS[program][1]
    return [f"{name}={getattr(layer, name)!r}" for name in options if getattr(layer, name) != _PLAIN[name]]


def check_layer(me: str, layer: Any, program: str, advice: str) -> None:
    if not isinstance(layer, GRU):
        hint = " Use from_torch() first." if isinstance(layer, nn.GRU) else ""
        raise TypeError(f"{me}: layer is {of_type(layer)}, expected a tidegate.GRU.{hint}")
    said = lacks(layer, program)
    if said:
        raise SettingsError(f"{me}: {_PROGRAMS[program][0]} has no {' and no '.join(said)}. {advice}")


def check_reset(place: str, reset: str) -> None:
    if reset not in ("after", "before"):
        raise SettingsError(f"{place}: reset is {shown(reset)}, expected 'after' or 'before'.")


def layers_of(layer: GRU) -> list[Directions]:
    """The layer's weights, layer by layer."""
    runs = layer.all_weights
    D = len(runs) // layer.num_layers
    return [runs[k : k + D] for k in range(0, len(runs), D)]


def filled(make: Any, weights: Sequence[Tensor], device: Any, **options: Any) -> Any:
    # Made without values, as drawing some would move the random numbers of the program around us.
    layer = make(**options, dtype=weights[0].dtype, device="meta").to_empty(device=device)
    with torch.no_grad():
        for own, given in zip(layer.parameters(), weights, strict=True):
            own.copy_(given)
    return layer


def build(me: str, stack: list[list[list[np.ndarray]]], *, reset: str | None, batch_first: bool, device: Any) -> GRU:
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
                raise ShapeError(f"{me}: layer {k} has {name}={value!r}, layer 0 has {first[name]!r}. {ONE_BY_ONE}")
        if directions[0][0].shape[1] != width:
            raise ShapeError(
                f"{me}: layer {k} reads {directions[0][0].shape[1]} features, "
                f"expected D*H={width}, which the layer below gives."
            )
    del first["dtype"]
    weights = [torch.from_numpy(array) for directions in stack for arrays in directions for array in arrays]
    sizes = {"input_size": weights[0].shape[1], "num_layers": len(stack)}
    device = torch.get_default_device() if device is None else device
    return filled(GRU, weights, device, **sizes, **first, batch_first=batch_first, reset=reset)


def our_arrays(place: str, directions: Directions) -> list[list[np.ndarray]]:
    """One layer in our layout as arrays of the right shapes."""
    if len(directions) not in (1, 2) or {*map(len, directions)} not in ({2}, {4}):
        raise ShapeError(
            f"{place}: found {len(directions)} directions of {' and '.join(str(len(d)) for d in directions)} arrays, "
            "expected one or two of [w_ih, w_hh] or of [w_ih, w_hh, b_ih, b_hh]."
        )
    ours = as_arrays(place, directions, ("w_ih", "w_hh", "b_ih", "b_hh"))
    sizes: dict[str, int] = {}
    for way, (w_ih, w_hh, *biases) in zip(WAYS, ours, strict=False):
        match_axes(place, "w_hh" + way, w_hh, "3H H", sizes)
        match_axes(place, "w_ih" + way, w_ih, "3H I", sizes)
        for name, b in zip(("b_ih", "b_hh"), biases, strict=False):
            match_axes(place, name + way, b, "3H", sizes)
    return ours


def as_arrays(place: str, parts: Sequence[Sequence[Any]], names: Sequence[str]) -> list[list[np.ndarray]]:
    """Tensors, arrays or lists as arrays of one dtype, on this machine. parts: for each direction, by `names`."""
    found: list[list[np.ndarray]] = []
    one = None
    for way, part in zip(WAYS, parts, strict=False):
        found.append([])
        for name, value in zip(names, part, strict=False):
            if isinstance(value, Tensor) and value.is_meta:
                raise ShapeError(
                    f"{place}: {name}{way} is on meta, where tensors have no values. Load the weights first."
                )
            try:
                value = value.detach().cpu() if isinstance(value, Tensor) else np.asarray(value)
            except (ValueError, OverflowError) as error:  # lists of different lengths
                raise ShapeError(f"{place}: {name}{way} is no array ({error}).") from None
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


def match_axes(place: str, name: str, array: np.ndarray, axes: str, sizes: dict[str, int]) -> None:
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
