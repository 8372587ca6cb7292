"""What else is going on in PyTorch while a call runs: the transforms of torch.func, forward-mode derivatives."""

from __future__ import annotations

from torch._C._functorch import TransformType, get_interpreter_stack
from torch._C._functorch import peek_interpreter_stack as functorch_level
from torch.autograd import forward_ad

__all__ = ["forward_mode", "functorch_level", "transformed"]


def forward_mode() -> bool:
    """Whether forward-mode derivatives are wanted: inside `forward_ad.dual_level()`, or `jvp` anywhere around."""
    if forward_ad._current_level >= 0:
        return True
    if functorch_level() is None:
        return False
    return any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ())


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) or forward mode is around."""
    return functorch_level() is not None or forward_ad._current_level >= 0
