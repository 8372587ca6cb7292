"""What else is going on in PyTorch while a call runs: the transforms of torch.func, forward-mode derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import TransformType, get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor
from torch._C._functorch import peek_interpreter_stack as functorch_level
from torch.autograd import forward_ad

__all__ = [
    "forward_mode",
    "functorch_level",
    "innermost_is_vmap",
    "not_compiled",
    "transformed",
    "unwrapped",
    "values_are_hidden",
    "writes_onnx",
]


def forward_mode() -> bool:
    """Whether forward-mode derivatives are wanted: inside `forward_ad.dual_level()`, or `jvp` anywhere around."""
    if forward_ad._current_level >= 0:
        return True
    if functorch_level() is None:
        return False
    return any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) or forward mode is around."""
    return _inside_functorch() or forward_ad._current_level >= 0


def values_are_hidden() -> bool:
    """Whether nobody may look at the values of a tensor (lengths), because a graph is captured or a transform is around."""
    return torch.compiler.is_compiling() or functorch_level() is not None


def unwrapped(v: torch.Tensor) -> torch.Tensor:
    """The tensor with values beneath the wrappers of torch.func: of vmap all values at once."""
    while is_functorch_wrapped_tensor(v):
        v = get_unwrapped(v)
    return v


_Question = Callable[[], bool]


def _constant(question: _Question) -> _Question:
    """What torch.compiler.assume_constant_result does, which would load all of torch.compile for it: twice the time that
    `import torch` takes."""
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return question


def not_compiled(function: Callable[..., Any]) -> Any:
    """A compiled graph breaks off before this function and goes on after it, as with torch.compiler.disable, which would load all of
    torch.compile."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


# These are to be asked, not traced, while `torch.compile` captures a graph: it guards these levels by itself, and what it
# makes of `functorch_level()` is never None.


@_constant
def _inside_functorch() -> bool:
    return functorch_level() is not None


@_constant
def writes_onnx() -> bool:
    """Whether `torch.onnx.export` is at work."""
    return torch.onnx.is_in_onnx_export()


@_constant
def innermost_is_vmap() -> bool:
    """Whether the transform of torch.func that an operator meets first is vmap."""
    level = functorch_level()
    return level is not None and level.key() == TransformType.Vmap
