"""Names that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def names_of(package: str, homes: dict[str, str | None]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`. homes: public name -> the module that has it (None: it is a module itself)."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        try:
            module = importlib.import_module(home or f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "tidegate":
                raise
            raise ModuleNotFoundError(
                f"{package}.{name} needs {error.name!r}, which is not installed: pip install 'tidegate[train]'",
                name=error.name,
            ) from error
        value = getattr(module, name) if home else module
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
