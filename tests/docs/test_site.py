"""The pages of the documentation site, before MkDocs makes HTML of them (`make docs` checks the rest)."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tidegate
from tests.helpers.pages import ROOT, links
from tidegate.cli import COMMANDS
from tidegate.trained.settings import RepeatSettings

SITE = runpy.run_path(str(ROOT / "tools/make_site.py"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    SITE["stage"](folder)
    return folder


def test_every_link_leads_to_a_page_or_picture_of_the_site(pages):
    count = 0
    for page in pages.rglob("*.md"):
        if "source" in page.relative_to(pages).parts:
            continue  # code
        for link in links(page.read_text(encoding="utf-8")):
            if not link.startswith(("https://", "#")):
                assert (page.parent / link.partition("#")[0]).is_file(), f"{page.name}: {link}"
                count += 1
    assert count > 100


def test_every_page_is_in_the_navigation(pages):
    navigation = re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert len(navigation) == len(set(navigation))
    names = {page.relative_to(pages).as_posix() for page in pages.rglob("*.md")}
    assert names - set(navigation) == {n for n in names if n.startswith("source/") or re.match(r"decisions/\d", n)}
    decisions = (pages / "decisions/README.md").read_text(encoding="utf-8")
    for name in names:
        assert not re.match(r"decisions/\d", name) or f"({Path(name).name})" in decisions


def test_the_reference_has_every_setting_and_command(pages):
    settings = (pages / "api/settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", settings, re.MULTILINE)
    assert rows == [*tidegate.TrainSettings.model_fields, *RepeatSettings.model_fields]
    commands = (pages / "api/commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## tidegate (\w+)$", commands, re.MULTILINE) == list(COMMANDS)


def test_the_reference_has_every_public_name(pages):
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (pages / "api").glob("*.md"))
    documented = set(re.findall(r"^::: tidegate\.(\S+)$", reference, re.MULTILINE))
    # `nn` hands on the layers, `ops` is for those who write back ends, and the settings have a table.
    assert set(tidegate.__all__) - {"nn", "ops", "TrainSettings"} <= documented


def test_a_link_that_leads_nowhere_is_an_error():
    with pytest.raises(SITE["BrokenLink"], match=r"docs/a.md links to nowhere.md, which isn't there."):
        SITE["rewritten"]("[x](nowhere.md)", "docs/a.md", set())


def test_links_in_code_stay_as_they_are():
    for code in ("`[x](nowhere.md)`", "    [x](nowhere.md)\n", "```text\n[x](nowhere.md)\n```"):
        assert SITE["rewritten"](code + "\n[l](../LICENSE)", "docs/a.md", set()).startswith(code)


def test_what_a_page_would_fetch_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<script src="a.js"></script><link rel="canonical" href="https://x.org/a.html">')
    assert SITE["fetched"](tmp_path) == []
    (tmp_path / "b.html").write_text('<script src="https://x.org/b.js"></script><a href="https://x.org">x</a>')
    (tmp_path / "c.css").write_text('@import "//x.org/c.css";')
    assert [hit.split(":")[0] for hit in SITE["fetched"](tmp_path)] == ["b.html", "c.css"]


def test_a_docstring_becomes_markdown(monkeypatch):
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    as_markdown = runpy.run_path(str(ROOT / "tools/docstrings.py"))["as_markdown"]
    docstring = """Adds.

        y = x + more

    Arguments:
        x: a number
            of any size.
        **more: others; see note: below.
    note: no argument, so it stays.

    >>> add(1)
    2
    """
    assert (
        as_markdown(docstring, {"x", "more"})
        == """Adds.

    y = x + more

Arguments:

- **`x`**: a number of any size.
- **`**more`**: others; see note: below.

note: no argument, so it stays.

```pycon
>>> add(1)
2
```"""
    )
