"""Whether what a program gave is what the contract of exports says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidegate.export.contract import Value

B, T = 3, 7
"""Sizes of `probe.batch`."""


def dtype_of(array: np.ndarray[Any, Any]) -> str:
    """numpy's name; "text" for str or bytes, as objects too."""
    return "text" if array.dtype.kind in "OSU" else array.dtype.name


def described(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (dtype_of(array), array.shape) for name, array in arrays.items()}


def promised(values: Mapping[str, Value]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes at these sizes."""
    sizes: dict[Any, int] = {"B": B, "T": T}
    return {name: (dtype, tuple(sizes.get(axis, axis) for axis in axes)) for name, (dtype, axes) in values.items()}
