"""What a back end may keep of a layer's weights from one call to the next."""

from __future__ import annotations

from typing import Any


class Kept(dict[Any, Any]):
    """A dictionary that no copy, pickle or `torch.save` of the layer takes along: it begins empty there.

    The native back end keeps the packed weights in it. `clear()` it after changing a single value through `.data` or NumPy
    in the midst of a stream, which is noticed at the next sequence only.
    """

    def __copy__(self) -> Kept:
        return Kept()

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
