"""Checks that the layers share. Each says what was given, what was expected and what to do.

Those of the constructor run once and return the value. Those of a call run every time, so the layer itself
asks the cheap question, "is anything wrong?", and comes here only to find out what to say.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tidegate.errors import SettingsError, ShapeError, nearest
from tidegate.ops.gru.modes import unwrapped, values_are_hidden
from tidegate.ops.gru.reference import are_steps

# ---------------------------------------------------------------------------------------------- constructor


def positive_int(layer: str, name: str, value: Any) -> int:
    """`value` as an int; `TypeError` for what is no integer, `SettingsError` for one below 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{layer}: {name} should be of type int, got: {type(value).__name__} ({value!r}).")
    if value < 1:
        raise SettingsError(f"{layer}: {name} must be greater than zero, got {value}.")
    return int(value)


def true_or_false(layer: str, name: str, value: Any) -> bool:
    """`value`; `TypeError` for anything but True and False (1 in the wrong place is a slip, not a wish)."""
    if not isinstance(value, bool):
        raise TypeError(f"{layer}: {name} should be of type bool, got: {type(value).__name__} ({value!r}).")
    return value


def probability(layer: str, name: str, value: Any) -> float:
    """`value` as a float; `SettingsError` for anything but a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise SettingsError(f"{layer}: {name} must be a number in [0, 1], got {value!r}.")
    return float(value)


def one_of(layer: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    """`value`; `SettingsError` for what is none of the known words."""
    if value not in known:
        words = " or ".join(map(repr, known))
        raise SettingsError(f"{layer}: {name} is {value!r}, expected {words}.{nearest(str(value), known)}")
    return value


def update_bias(layer: str, value: Any, bias: bool) -> float | tuple[float, float] | None:
    """A time constant in steps, or a range of them; `SettingsError` for one that is not above 1."""
    if value is None:
        return None
    both = value if isinstance(value, tuple) else (value, value)
    good = len(both) == 2 and all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in both)
    if not (good and 1 < both[0] <= both[1] < float("inf")):
        raise SettingsError(
            f"{layer}: update_bias is a memory in steps, a number above 1 or a pair (shortest, longest) of such, got {value!r}."
        )
    if not bias:
        raise SettingsError(f"{layer}: update_bias needs biases, and bias is False.")
    return (float(both[0]), float(both[1])) if isinstance(value, tuple) else float(value)


# ---------------------------------------------------------------------------------------------- a call


def fits(tensor: Tensor, weight: Tensor) -> bool:
    """Whether both are on one device and, unless autocast sees to it, of one dtype."""
    return tensor.device == weight.device and (tensor.dtype == weight.dtype or _autocast(tensor))


def _autocast(tensor: Tensor) -> bool:
    kind = tensor.device.type
    return tensor.is_floating_point() and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def sequence_error(layer: Any, input: Any, weight: Tensor) -> Exception:
    """What is wrong with the `input` of `GRU`; called only when something is."""
    me = _me(layer)
    x = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):
        return TypeError(f"{me}: x is {_a(x)}, expected a tensor or a PackedSequence.")
    if isinstance(input, PackedSequence):
        if x.dim() != 2:
            return ShapeError(f"{me}: the data of the PackedSequence has {x.dim()} axes, expected 2: [rows, I].")
        is_ = f"x is packed, {_named('rows I', x)}"
    elif x.is_nested:
        if x.layout != torch.jagged or x.dim() != 3:
            return ShapeError(
                f"{me}: x is nested, {x.layout}, with {x.dim()} axes; expected torch.jagged, [B, steps, I]. "
                "Use torch.nested.nested_tensor(sequences, layout=torch.jagged), with sequences [steps, I]."
            )
        is_ = f"x is nested, [B={x.size(0)}, steps, I={x.size(-1)}]"
    elif x.dim() not in (2, 3):
        axes = "[B, T, I]" if layer.batch_first else "[T, B, I]"
        return ShapeError(
            f"{me}: x has {x.dim()} axes, expected 3, {axes} (batch_first={layer.batch_first}), "
            f"or 2, [T, I], for one sequence without a batch. x is {list(x.shape)}."
        )
    elif x.dim() == 2:
        is_ = f"x is {_named('T I', x)} (one sequence, no batch)"
    else:
        is_ = f"x is {_named('B T I' if layer.batch_first else 'T B I', x)} (batch_first={layer.batch_first})"
    return _vector_error(me, "x", x, weight, size=layer.input_size, parts="features", is_=is_)


def batch_sizes(layer: Any, sizes: Tensor, x: Tensor) -> None:
    """Raise `ShapeError` unless these are the steps of x, a packed sequence's data: `PackedSequence(...)` takes anything."""
    steps = sizes.tolist() if sizes.dim() == 1 and sizes.dtype == torch.int64 else []
    if are_steps(steps, x.size(0)):
        return
    me = _me(layer)
    raise ShapeError(
        f"{me}: the batch_sizes of the PackedSequence are {sizes.tolist()}, {sizes.dtype}; expected int64 numbers above 0 "
        f"that never grow and add up to the {x.size(0)} rows of its data. Use pack_padded_sequence() or pack_sequence()."
    )


def lengths(layer: Any, given: Any, x: Tensor, kind: str) -> Tensor:
    """`given` as [B], int64, on the CPU; x is [T, B, I]. `ShapeError` for what can't be lengths of x."""
    me = _me(layer)
    if kind != "batched":
        why = {
            "one": "x is one sequence without a batch; give its steps alone, x[:length]",
            "packed": "a PackedSequence has its own; give one of them",
            "nested": "a nested tensor has its own; give one of them",
        }[kind]
        raise SettingsError(f"{me}: lengths were given, but {why}.")
    T, B = x.size(0), x.size(1)
    if isinstance(given, (list, tuple)):
        try:
            numbers = torch.tensor(given) if given else torch.zeros(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError):
            numbers = None
        if numbers is None or numbers.is_floating_point():
            raise ShapeError(f"{me}: lengths is {given!r}; expected whole numbers, one for each sequence of x.")
        given = numbers
    if not isinstance(given, Tensor):
        raise TypeError(f"{me}: lengths is {_a(given)}, expected a tensor or a list of whole numbers.")
    if given.shape != (B,):
        raise ShapeError(f"{me}: lengths is {list(given.shape)}, expected [B={B}], the steps of each sequence of x.")
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ShapeError(f"{me}: lengths is {given.dtype}, expected whole numbers (torch.int64). Use lengths.long().")
    if given.device.type != "cpu" and given.device != x.device:
        raise ShapeError(
            f"{me}: lengths is on {given.device}, expected on cpu (or with x, on {x.device}). Use lengths.cpu()."
        )
    given = given.to("cpu", torch.int64)
    if (
        B and not torch.compiler.is_compiling()
    ):  # (while a graph is captured there are no values yet: the operator looks)
        values = unwrapped(given)
        least, most = map(int, values.aminmax())
        if least < 0 or most > T:
            b = int(values.argmin() if least < 0 else values.argmax())
            which = f"lengths[{b}]" if values is given else "a length"
            raise ShapeError(
                f"{me}: {which} is {least if least < 0 else most}, expected 0 ... {T}, as x has T={T} steps."
            )
    return given


def lengths_of(layer: Any, mask: Any, lengths: Any, input: Any) -> Tensor:
    """The lengths that a mask [B, T] stands for. `ShapeError` for what can't be one of a batch of sequences."""
    me = _me(layer)
    if lengths is not None:
        raise SettingsError(
            f"{me}: lengths and mask were given, and both say how many steps there are. Give one of them."
        )
    if not isinstance(mask, Tensor):
        raise TypeError(f"{me}: mask is {_a(mask)}, expected a tensor of True and False.")
    if not isinstance(input, Tensor) or input.is_nested or input.dim() != 3:
        raise SettingsError(
            f"{me}: mask was given, but x is no batch of padded sequences. Give x with 3 axes, or no mask."
        )
    B, T = (input.size(0), input.size(1)) if layer.batch_first else (input.size(1), input.size(0))
    if mask.shape != (B, T) or mask.dtype != torch.bool:
        raise ShapeError(
            f"{me}: mask is {list(mask.shape)}, {mask.dtype}; expected [B={B}, T={T}] for this x, whatever batch_first says, torch.bool."
        )
    if not values_are_hidden():
        gap = (unwrapped(mask)[..., 1:] & ~unwrapped(mask)[..., :-1]).any(-1)
        if bool(gap.any()):
            raise ShapeError(
                f"{me}: mask has steps after padding (sequence {int(gap.flatten().nonzero()[0])}); expected all of a sequence's steps "
                "first. Move the steps to the front, or begin anew within a sequence with resets=."
            )
    return mask.sum(1)


def resets(layer: Any, given: Any, T: int, B: int, one: bool, x: Tensor) -> Tensor:
    """`given` time first, [T, B]. `ShapeError` for what can't be resets of x."""
    me = _me(layer)
    if not isinstance(given, Tensor):
        raise TypeError(f"{me}: resets is {_a(given)}, expected a tensor of True and False.")
    shape = (T,) if one else (B, T)
    if given.shape != shape:
        want = f"[T={T}]" if one else f"[B={B}, T={T}]"
        turned = " It is the other way round: use resets.transpose(0, 1)." if given.shape == (T, B) and not one else ""
        raise ShapeError(
            f"{me}: resets is {list(given.shape)}, expected {want} for this x, whatever batch_first says.{turned}"
        )
    if given.dtype != torch.bool:
        raise ShapeError(f"{me}: resets is {given.dtype}, expected torch.bool. Use resets.bool().")
    if given.device != x.device:
        raise ShapeError(f"{me}: resets is on {given.device}, x is on {x.device}. Use resets.to({str(x.device)!r}).")
    return given.unsqueeze(1) if one else given.transpose(0, 1)


def cell_input_error(layer: Any, x: Any, weight: Tensor) -> Exception:
    """What is wrong with the `input` of `GRUCell`; called only when something is."""
    me = _me(layer)
    if not isinstance(x, Tensor):
        return TypeError(f"{me}: x is {_a(x)}, expected a tensor.")
    if x.dim() not in (1, 2):
        return ShapeError(
            f"{me}: x has {x.dim()} axes, expected 2, [B, I], or 1, [I], without a batch. x is {list(x.shape)}."
        )
    is_ = f"x is {_named('B I' if x.dim() == 2 else 'I', x)}"
    return _vector_error(me, "x", x, weight, size=layer.input_size, parts="features", is_=is_)


def state_error(layer: Any, h_0: Any, expected: tuple[int, ...], axes: str, weight: Tensor) -> Exception:
    """What is wrong with the state (`hx`); asked only when something is. `axes` names those expected."""
    me = _me(layer)
    if not isinstance(h_0, Tensor):
        return TypeError(f"{me}: h_0 is {_a(h_0)}, expected a tensor or None.")
    if h_0.shape != expected:
        want = ", ".join(f"{axis}={size}" for axis, size in zip(axes.split(), expected, strict=True))
        return ShapeError(f"{me}: h_0 is {list(h_0.shape)}, expected [{want}] for this x.")
    return _vector_error(me, "h_0", h_0, weight, size=layer.hidden_size, parts="units", is_=f"h_0 is {list(h_0.shape)}")


def _me(layer: Any) -> str:
    return f"{type(layer).__name__}(input_size={layer.input_size}, hidden_size={layer.hidden_size})"


def _vector_error(me: str, name: str, v: Tensor, weight: Tensor, *, size: int, parts: str, is_: str) -> ShapeError:
    """What is wrong with v, whose last axis should have `size` parts; is_: what it is, in words."""
    if v.size(-1) != size:
        return ShapeError(f"{me}: {name} has {v.size(-1)} {parts}, expected {size}. {is_}.")
    if v.device != weight.device:
        return ShapeError(
            f"{me}: {name} is on {v.device}, the weights are on {weight.device}. "
            f"Use {name}.to({str(weight.device)!r}), or layer.to({str(v.device)!r})."
        )
    return ShapeError(
        f"{me}: {name} is {v.dtype}, the weights are {weight.dtype}. "
        f"Use {name}.to({weight.dtype}){f', or layer.to({v.dtype})' if v.is_floating_point() else ''}."
    )


def _named(axes: str, x: Tensor) -> str:
    """[T=20, B=4, I=5]"""
    return "[" + ", ".join(f"{axis}={size}" for axis, size in zip(axes.split(), x.shape, strict=True)) + "]"


def _a(value: Any) -> str:
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
