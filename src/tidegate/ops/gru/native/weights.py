"""The weights of a layer on their way into C++: checked, packed into the kernel's order, and kept from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from tidegate.errors import ShapeError
from tidegate.ops.gru.native import kernels

_Kind = getattr(kernels.cpp, "Kind", None)
_dtype, _shape, _version = attrgetter("dtype"), attrgetter("shape"), attrgetter("_version")


@lru_cache
def kind_of(I: int, H: int, bias: bool, norm: bool, before: bool, wide: bool, narrow: int = 0) -> Any:
    """What weights of a layer there are and how they are meant, for C++. wide: float64; before: reset="before"; narrow: the bits
    of what is multiplied, 16 (bfloat16) or 8, where these are fewer than the weights' own.
    """
    assert _Kind is not None
    return _Kind(I=I, H=H, bias=bias, norm=norm, before=before, wide=wide, narrow=narrow)


def per_direction(bias: bool, norm: bool) -> int:
    """How many weights a direction of a layer has: w_ih, w_hh, with bias b_ih, b_hh, with layer norm g_ih, g_hh."""
    return 2 + 2 * bias + 2 * norm


def tight(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights, all contiguous. Give the result a name: copies must live until C++ has read them."""
    for w in weights:
        if not w.is_contiguous():
            return [w.contiguous() for w in weights]
    return weights


def check(weights: Sequence[Tensor], per: int, I: int, H: int, dtype: torch.dtype) -> None:
    """Raise `ShapeError` for weights whose addresses C++ must not be given: `.data` and `setattr` take anything."""
    one = [(3 * H, I), (3 * H, H), (3 * H,), (3 * H,), (3 * H,), (3 * H,)][:per]
    expected = one * (len(weights) // per)
    if [*map(_shape, weights)] == expected and {*map(_dtype, weights)} == {dtype} and all(w.is_cpu for w in weights):
        return
    for w, shape in zip(weights, expected, strict=True):
        if w.shape != shape or w.dtype != dtype or not w.is_cpu:
            raise ShapeError(
                f"GRU: a weight is {list(w.shape)}, {w.dtype}, on {w.device}; expected {list(shape)}, {dtype}, on cpu, "
                f"for input_size={I}, hidden_size={H}. Convert or replace all weights of the layer together, and none between forward and backward."
            )


def pack(weights: Sequence[Tensor], kind: Any, threads: int) -> Any:
    """A handle of C++ on a copy of the weights in the kernel's order."""
    weights = tight(weights)
    # (In shared memory, or in a mapped file, another process may change them, and no version tells.)
    return kernels.cpp.pack(weights, kind, shared=any(map(Tensor.is_shared, weights)), threads=threads)


FEW, LINES, ALL = 0, 1, 2
"""At how much of the weights a call looks: eight values of each; one of every row and every column, and all biases; all."""
LONG, MANY = 16, 1024
"""From so many steps on a call has the time for `LINES`, from so many rows on for `ALL`: a hundredth of it, or less."""


def look_of(T: int, rows: int, state: Tensor | None) -> int:
    """At how much of the weights a call without gradients looks. One of a few steps that goes on from a state, as in a stream,
    has no time for more than `FEW`.
    """
    if rows >= MANY:
        return ALL
    return LINES if T >= LONG or begins(state) else FEW


def begins(state: Tensor | None) -> bool:
    """Whether a call begins a sequence, from no state or from zeros."""
    if state is None:
        return True
    found: bool = kernels.cpp.is_beginning(state, state.dtype is torch.float64)
    return found


class Pack:
    """The packed weights of a layer, and what they were packed from."""

    __slots__ = ("addresses", "handle", "versions", "weights")

    handle: Any

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """The marks of the weights as they are now. To be made before they are packed: whoever changes them in
        between is then noticed at the next call.
        """
        self.weights = [*weights]  # alive as long as this is: a new tensor can't take the place of one of them
        self.versions: list[int] = [*map(_version, weights)]
        self.addresses = [*map(Tensor.data_ptr, weights)]

    def is_of(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that were packed, whatever their values are by now."""
        return len(weights) == len(self.weights) and all(map(is_, weights, self.weights))

    def fits(self, weights: Sequence[Tensor], look: int) -> bool:
        """Whether these are the weights that were packed, as they were. look: `FEW`, `LINES` or `ALL`, for changes that have no
        version. (Of weights in shared memory, and of 16 KiB or less where `LINES` is asked for, C++ looks at all.)
        """
        return (
            all(map(is_, weights, self.weights))
            and [*map(_version, weights)] == self.versions
            and [*map(Tensor.data_ptr, weights)] == self.addresses
            and not self.handle.looks_changed(look)
        )


def packed(
    weights: Sequence[Tensor],
    bias: bool,
    norm: bool,
    before: bool,
    I: int,
    H: int,
    threads: int,
    kept: dict[Any, Any] | None,
    layer: int,
    look: int,
    narrow: int = 0,
) -> Any:
    """The handle of these weights: the one in `kept`, where nothing has changed since it was made (`look`: see `Pack.fits`)."""
    place = (layer, bias, norm, before, narrow)
    pack_before = None if kept is None else kept.get(place)
    if pack_before is not None and pack_before.fits(weights, look):
        return pack_before.handle
    dtype = weights[0].dtype
    check(weights, per_direction(bias, norm), I, H, dtype)
    kind = kind_of(I, H, bias, norm, before, dtype == torch.float64, narrow)
    # A tensor that was made in inference mode has no version: nobody can tell whether it changed. What was computed of
    # others is another tensor at the next call, and would be kept alive with all that it was computed from.
    if kept is None or any(w.is_inference() or not w.is_contiguous() or not w.is_leaf for w in weights):
        if kept is not None:
            kept.pop(place, None)
        return pack(weights, kind, threads)
    entry = Pack(weights)
    entry.handle = pack(weights, kind, threads)
    kept[place] = entry
    return entry.handle


def seen_before(weights: Sequence[Tensor], kept: dict[Any, Any], layer: int) -> bool:
    """Whether the call before this one was asked the same of weights of the same versions, so that it pays to keep them."""
    if any(map(Tensor.is_inference, weights)):
        return False
    versions = [*map(_version, weights)]
    place = ("versions", layer)
    same: bool = kept.get(place) == versions
    kept[place] = versions
    return same
