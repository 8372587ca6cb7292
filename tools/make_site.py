"""The documentation as a site: `make docs` runs this.

    python tools/make_site.py            # build/site-source, then build/site
    python tools/make_site.py --source   # build/site-source alone, without MkDocs

The pages are those that people read in the repository. This script puts them side by side under build/site-source, with
what only a site has: a reference of the settings and the commands, and a page for each source file that a page links to.
Links are rewritten to where things are there; one that leads nowhere is an error. MkDocs (mkdocs.yml) makes the rest.
"""

from __future__ import annotations

import importlib
import posixpath
import re
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, SITE = ROOT / "build/site-source", ROOT / "build/site"
MERMAID = ROOT / "tests/browser/node_modules/mermaid/dist/mermaid.min.js"
# Pages outside of docs/, and what they are called on the site.
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh-CN.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "src/tidegate/datasets/README.md": "datasets.md",
    "src/tidegate/ops/gru/README.md": "back-ends.md",
    "examples": "examples.md",
}
LANGUAGES = {".py": "python", ".h": "c", ".cpp": "cpp", ".txt": "text", ".csv": "text"}
LINK = re.compile(r"(?P<before>\]\()(?P<path>[^)#\s]+)(?P<after>[)#\s])")
CONTENTS = re.compile(r"(?:^- \[[^\n]*\]\(#[^)\n]*\)\n)+", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|^ {4}[^\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


class BrokenLink(Exception):
    """A page links to what isn't there."""


# ------------------------------------------------------------------------------------------------ pages


def address(path: str) -> str:
    """Where a file of the repository is on the site: docs/a.md -> a.md, LICENSE -> source/LICENSE.md."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def rewritten(text: str, page: str, linked: set[str]) -> str:
    """The text of a page with its links as the site needs them; the files outside of docs/ that it links to join `linked`."""

    def link(match: re.Match[str]) -> str:
        path = match["path"]
        if "://" in path or path.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if not (ROOT / target).exists():
            raise BrokenLink(f"{page} links to {path}, which isn't there.")
        if target not in PAGES and not target.startswith("docs/"):
            linked.add(target)
        here = posixpath.dirname(address(page)) or "."
        return match["before"] + posixpath.relpath(address(target), here) + match["after"]

    pieces, end = [], 0
    for code in CODE.finditer(text):  # code stays as it is
        pieces += [LINK.sub(link, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, LINK.sub(link, text[end:])])


def code_page(path: str) -> str:
    """A page that shows a source file; the search leaves it out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n`````{language}\n{text}\n`````\n"


def examples_page() -> str:
    """All examples, one under the other, each under the first sentence of its docstring."""
    lines = ["# Examples", "", "Each runs as it stands: `python examples/01_first_gru.py`.", ""]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines += [f"## {path.stem[3:].replace('_', ' ').capitalize()}", "", f"`{path.relative_to(ROOT)}`", ""]
        lines += ["```python", text.rstrip(), "```", ""]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ reference


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()


def type_name(annotation: typing.Any) -> str:
    """What a setting may be, for people: 'whole number', 'gru, lstm, rnn or none'."""
    names = {int: "whole number", float: "number", str: "text", bool: "yes or no", types.NoneType: "None"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(type_name(a) for a in arguments)
    if origin is tuple:
        several = "names" if arguments[0] is str else "whole numbers"
        return several if arguments[-1] is Ellipsis else f"{len(arguments)} numbers"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def settings_table() -> str:
    """Every field of TrainSettings and RepeatSettings, under the headings of `tidegate train --help`."""
    from tidegate.trained.settings import RepeatSettings, TrainSettings

    panels: dict[str, list[str]] = {}
    for name, field in (TrainSettings.model_fields | RepeatSettings.model_fields).items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        row = f"| `{name}` | {type_name(field.annotation)} | `{field.default!r}` | {cell(field.description or '')} |"
        panels.setdefault(str(extra.get("panel", "More")), []).append(row)
    head = ["| setting | what it may be | default | what it does |", "| --- | --- | --- | --- |"]
    return "\n\n".join("\n".join([f"## {panel}", "", *head, *rows]) for panel, rows in panels.items())


def commands_table() -> str:
    """Every command of `tidegate` with its arguments and options; those of training that are settings are left out."""
    import typer.main

    from tidegate import TrainSettings
    from tidegate.cli import COMMANDS, FILES

    def section(name: str, command: typing.Any, level: str) -> list[str]:
        text = re.sub(r"^ +", "", command.help or "", flags=re.MULTILINE).replace("\b", "").strip()
        lines = [f"{level} tidegate {name}", "", re.sub(r"^Example: (.*?)$", r"    \1", text, flags=re.MULTILINE), ""]
        rows = []
        for parameter in command.params:
            if parameter.name in TrainSettings.model_fields and name in ("train", "tune"):
                continue
            if parameter.param_type_name == "argument":
                title, help_ = f"`{parameter.metavar or parameter.name.upper()}`", getattr(parameter, "help", "")
            else:
                title, help_ = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts]), parameter.help
            rows.append(f"| {title} | {cell(help_ or '')} |")
        if rows:
            lines += ["| argument or option | what it does |", "| --- | --- |", *rows, ""]
        if name == "train":
            lines += ["Every [setting](settings.md) is an option too: `hidden_size` is `--hidden-size`.", ""]
        if name == "tune":
            lines += [
                "So are the [settings](settings.md) of a single training that begins anew: what is given is fixed.",
                "",
            ]
        for below, sub in getattr(command, "commands", {}).items():
            lines += section(f"{name} {below}", sub, level + "#")
        return lines

    lines = []
    for name in COMMANDS:
        app = importlib.import_module(f"tidegate.cli.{FILES.get(name, name)}").app
        lines += section(name, typer.main.get_command(app), "##")
    return "\n".join(lines)


def decisions_list() -> str:
    """The decisions by number, each a link."""
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    titles = [page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ") for page in pages]
    return "\n".join(f"- [{title}]({page.name})" for title, page in zip(titles, pages, strict=True))


GENERATED = {"settings": settings_table, "commands": commands_table, "decisions": decisions_list}


# ------------------------------------------------------------------------------------------------ the site


def stage(to: Path) -> None:
    """Write all pages of the site, and what they show, under `to`."""
    shutil.rmtree(to, ignore_errors=True)
    linked: set[str] = set()

    def write(name: str, text: str) -> None:
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    pages = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    for page in [*pages, *(page for page in PAGES if page.endswith(".md"))]:
        text = rewritten((ROOT / page).read_text(encoding="utf-8"), page, linked)
        for mark, make in GENERATED.items():
            if f"<!-- {mark} -->\n" in text:
                text = text.replace(f"<!-- {mark} -->\n", make() + "\n")
        if not MERMAID.exists():
            text = text.replace("```mermaid\n", "```text\n")  # else the theme would fetch Mermaid from a server
        text = CONTENTS.sub("", text)  # the site has a list of contents beside every page
        if page.startswith("docs/decisions/") or page == "CHANGELOG.md":
            text = f"---\nsearch:\n  boost: 0.3\n---\n\n{text}"  # the search lists guides and the reference first
        write(address(page), text)
    write(address("examples"), examples_page())
    for path in sorted(linked):
        write(address(path), code_page(path))
    for folder in ("images", "assets"):
        shutil.copytree(ROOT / "docs" / folder, to / folder)
    if MERMAID.exists():
        shutil.copy(MERMAID, to / "assets/mermaid.min.js")
    else:
        write(
            "assets/mermaid.min.js",
            "// npm ci in tests/browser brings Mermaid; without it diagrams are shown as text.\n",
        )


def fetched(site: Path) -> list[str]:
    """What a browser would fetch from elsewhere to show a page. There must be nothing."""
    tag = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^\">]*|<link\b[^>]*\bhref=\"?(?:https?:)?//[^\">]*"
    )
    css = re.compile(r"@import[^;]*//[^;]*|url\(\"?(?:https?:)?//[^)]*")
    foreign = []
    for path in sorted(site.rglob("*")):
        if path.suffix in {".html", ".css"}:
            pattern = tag if path.suffix == ".html" else css
            hits = pattern.findall(path.read_text(encoding="utf-8"))
            foreign += [
                f"{path.relative_to(site)}: {hit}" for hit in hits if "rel=canonical" not in hit.replace('"', "")
            ]
    return foreign


def main() -> int:
    try:
        stage(SOURCE)
    except BrokenLink as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if "--source" in sys.argv[1:]:
        return 0
    # Not --quiet: it would hide the warnings from --strict too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return status
    if foreign := fetched(SITE):
        print("Error: these pages would fetch something from elsewhere:", *foreign, sep="\n", file=sys.stderr)
        return 1
    print(f"{SITE.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
