"""Templates to text. Whatever a page shows of a table, a run or a name is escaped, as HTML must be and Markdown need not."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape


def render(package: str, name: str, values: dict[str, Any]) -> str:
    """The template templates/NAME.j2 of a package, filled in."""
    return _environment(package).get_template(f"{name}.j2").render(values)


@functools.cache  # with it the compiled templates: compiling takes as long as training a small table for an epoch
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=select_autoescape(["html.j2"]),  # the names end in .html.j2: ["html"] would match none of them
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment


def jsonable(value: Any) -> Any:
    """Arrays, tuples and numpy numbers as what JSON knows; NaN and infinity as None."""
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
