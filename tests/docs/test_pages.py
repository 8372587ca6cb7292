"""Every page: its links lead somewhere, and the commands, options and Python it shows exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.helpers.pages import PAGES, ROOT, anchors, blocks, known_options, links, read
from tidegate.cli import COMMANDS

# Options of other programs that the pages name.
OTHERS = {
    "--inputs",
    "--jobs",
    "--rounds",
    "--seconds",
    "--until",
    "--rows",
    "--save",
    "--strict",
    "--no-deps",
    "--index-url",
}
# torchrun's
OTHERS |= {
    "--nproc-per-node",
    "--max-restarts",
    "--nnodes",
    "--node-rank",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--rdzv-id",
}
every_page = pytest.mark.parametrize("page", PAGES)


def test_the_pages_are_found():
    assert {"README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/ship.md", "benchmarks/README.md"} <= set(PAGES)


@every_page
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page):
    folder = (ROOT / page).parent
    for link in links(read(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@every_page
def test_every_command_option_and_make_target_it_names_exists(page):
    text = read(page)
    for command in re.findall(r"(?:^ +|^\$ |`|\| )tidegate ([a-z]\w*)", text, re.MULTILINE):
        assert command in COMMANDS, command
    known = known_options() | OTHERS
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
        assert option in known, option
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^    )make ([a-z][\w-]*)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@every_page
def test_the_python_it_shows_is_python(page):
    for block in blocks(read(page), "python"):
        if ">>> " not in block:  # what is shown with its output is run by that page's own test
            ast.parse(block)


@pytest.mark.parametrize("page", [p for p in PAGES if p.startswith("docs/") and "decisions/" not in p])
def test_a_long_page_begins_with_a_list_of_its_contents(page):
    """A page of over a hundred lines; tutorials, which are read from the first line to the last, have none."""
    text = read(page)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    listed = set(re.findall(r"^- \[.*\]\(#(.*)\)$", text, re.MULTILINE))
    if listed:
        own = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert own <= listed
    elif "gru-" not in page:
        assert len(text.splitlines()) <= 100
