"""The weights of Keras layers from one of ours, and back. Keras itself isn't needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tidegate.convert.gate_orders import reorder_gates
from tidegate.convert.layouts import (
    BY_HAND,
    ONE_BY_ONE,
    WAYS,
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
from tidegate.errors import SettingsError, ShapeError, of_type
from tidegate.nn import GRU


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
    check_layer("to_keras", layer, "keras", BY_HAND.format("layer_to_keras", "initial_state"))
    return [_to_keras(f"to_keras: layer {k}", directions, layer.reset) for k, directions in enumerate(layers_of(layer))]


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

    >>> import torch
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
        raise SettingsError(f"from_keras: reset is {shown(reset)}, expected 'after', 'before' or None.")
    stack: list[list[list[np.ndarray]]] = []
    told = reset
    for k, weights in enumerate(layers):
        directions, said = _from_keras(f"from_keras: layer {k}", weights)
        stack.append(directions)
        if said is not None and told not in (None, said):
            other = (
                f"the ones below say {told!r}. {ONE_BY_ONE}" if reset is None else f"{told!r} was given. Leave it out."
            )
            raise SettingsError(f"from_keras: layer {k}: its bias says reset={said!r}, and {other}")
        told = told or said
    if stack and told is None:
        raise SettingsError(
            "from_keras: without biases the weights don't say where the reset gate falls. "
            "Give reset='after' where Keras has reset_after=True, its default, and reset='before' where it has False."
        )
    return build("from_keras", stack, reset=told, batch_first=batch_first, device=device)


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
    check_reset(place, reset)
    weights = []
    for w_ih, w_hh, *biases in our_arrays(place, directions):
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
    parts = as_arrays(place, [weights[: count // D], weights[count // D :]][:D], ("kernel", "recurrent_kernel", "bias"))
    said = None if count in (2, 4) else "before" if parts[0][2].ndim == 1 else "after"
    sizes: dict[str, int] = {}
    directions = []
    for way, (kernel, recurrent_kernel, *biases) in zip(WAYS, parts, strict=False):
        match_axes(place, "recurrent_kernel" + way, recurrent_kernel, "H 3H", sizes)
        match_axes(place, "kernel" + way, kernel, "I 3H", sizes)
        ours = [reorder_gates(np.ascontiguousarray(w.T), "keras", "tidegate") for w in (kernel, recurrent_kernel)]
        for bias in biases:
            match_axes(place, "bias" + way, bias, "2 3H" if said == "after" else "3H", sizes)
            both = bias if said == "after" else np.stack([bias, np.zeros_like(bias)])
            ours += [*reorder_gates(both, "keras", "tidegate", 1)]
        directions.append(ours)
    return directions, said
