"""The pages that people read, and what the tests ask of each: its code, its commands, its links."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import typer.main

from tidegate.cli import COMMANDS, FILES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *(ROOT / "docs").rglob("*.md")]
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def between(text: str, mark: str) -> str:
    """What stands between `<!-- mark -->` and `<!-- /mark -->`."""
    (part,) = re.findall(rf"<!-- {mark} -->\n(.*?)\n<!-- /{mark} -->", text, re.DOTALL)
    return part


def options_of(command: str) -> set[str]:
    """The options that a command of `tidegate` knows."""
    app = importlib.import_module(f"tidegate.cli.{FILES.get(command, command)}").app
    command_line = typer.main.get_command(app)
    of_commands = getattr(command_line, "commands", {}).values()
    parameters = [p for c in (command_line, *of_commands) for p in c.params]
    return {option for p in parameters for option in [*p.opts, *p.secondary_opts]}


def known_options() -> set[str]:
    return {"--help", "--debug"}.union(*(options_of(name) for name in COMMANDS))


def links(text: str) -> Iterator[str]:
    """Where the links and pictures of a page lead, without their titles; code is left out."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.finditer(r"\]\(([^ )]+)(?: \"[^\"]*\")?\)", prose):
        yield link[1]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as a forge and the documentation site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
