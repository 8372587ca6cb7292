"""Our docstrings as Markdown, for the site's reference: a griffe extension that mkdocs.yml names.

A docstring here is for the terminal: equations are indented, examples begin with >>>, and an argument is a line
`name: what it is`, indented under a heading or not. Markdown would run these together.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from griffe import Extension, Object

# `rows: "all"; "train" ...`, `device, dtype: of the parameters.`, `target, **settings: see ...`
ITEM = re.compile(r"^(?P<names>\**[a-z_]\w*(?:, \**[a-z_]\w*)*): (?P<text>.*)$")


def as_markdown(text: str, names: set[str]) -> str:
    """The docstring with fenced examples, and a list where lines begin with one of these names."""
    lines, at = inspect.cleandoc(text).splitlines(), 0
    out: list[str] = []
    while at < len(lines):
        line = lines[at]
        if line.strip().startswith(">>> "):
            end = next((k for k in range(at, len(lines)) if not lines[k].strip()), len(lines))
            out += ["", "```pycon", *textwrap.dedent("\n".join(lines[at:end])).splitlines(), "```", ""]
            at = end
            continue
        item = ITEM.match(line.strip())
        if item and {name.lstrip("*") for name in item["names"].split(", ")} <= names:
            indent = len(line) - len(line.lstrip())
            end = at + 1
            while end < len(lines) and lines[end].strip() and len(lines[end]) - len(lines[end].lstrip()) > indent:
                end += 1
            if not (out and out[-1].startswith("- **")):
                out.append("")
            title = ", ".join(f"`{name}`" for name in item["names"].split(", "))
            out.append(f"- **{title}**: " + " ".join([item["text"], *(more.strip() for more in lines[at + 1 : end])]))
            at = end
            continue
        if out and out[-1].startswith("- **") and line.strip():
            out.append("")
        out.append(line.lstrip() if out and out[-1] == "" and not line.startswith("    ") else line)
        at += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


class Docstrings(Extension):
    """Rewrites every docstring when griffe has read it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        obj.docstring.value = as_markdown(obj.docstring.value, self._names(obj))

    def _names(self, obj: Object) -> set[str]:
        names: set[str] = {p.name.lstrip("*") for p in getattr(obj, "parameters", None) or []}
        if obj.is_class:
            names |= set(obj.members)
            if (make := obj.members.get("__init__")) is not None and not make.is_alias:
                names |= {p.name for p in getattr(make, "parameters", None) or []}
        return names - {"self"}
