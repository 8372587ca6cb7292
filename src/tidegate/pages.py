"""Templates to text. Whatever a page shows of a table, a run or a name is escaped, as HTML must be and Markdown need not."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape


def render(package: str, name: str, values: dict[str, Any]) -> str:
    """The template templates/NAME.j2 of a package, filled in."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=select_autoescape(["html.j2"]),  # the names end in .html.j2: ["html"] would match none of them
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(f"{name}.j2").render(values)
