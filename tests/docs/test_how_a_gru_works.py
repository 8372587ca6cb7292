"""The page in pictures: its commands are real, its pictures are there, its numbers add up, and both languages say the same."""

from __future__ import annotations

import math
import re

import pytest

from tests.helpers.pages import ROOT, options_of
from tidegate.cli import COMMANDS
from tidegate.gates.diagram import StepValues, sequence_diagram

DOCS = ROOT / "docs"
PAGES = ["how-a-gru-works.md", "how-a-gru-works.zh-CN.md"]


@pytest.fixture(params=PAGES)
def page(request) -> str:
    return (DOCS / request.param).read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    return re.findall(r"^    (tidegate .*)$", text, re.MULTILINE)


def test_every_command_and_option_is_there(page):
    lines = commands(page)
    assert len(lines) >= 12
    for line in lines:
        _, name, *rest = line.split()
        assert name in COMMANDS
        known = options_of(name)
        assert [word for word in rest if word.startswith("-") and word not in known] == [], line


def test_both_languages_have_the_same_commands_pictures_diagrams_and_figures():
    english, chinese = ((DOCS / name).read_text(encoding="utf-8") for name in PAGES)
    for pattern in (r"^    .*$", r"\]\((images/.*)\)", r"^```mermaid\n.*?^```$", r"\| ([-> .,\d|]+) \|$"):
        ours, theirs = (re.findall(pattern, text, re.MULTILINE | re.DOTALL if "mermaid" in pattern else re.MULTILINE) for text in (english, chinese))  # fmt: skip
        assert ours
        assert ours == theirs


def test_the_pictures_are_there_and_each_has_a_command_under_it(page):
    for picture in re.finditer(r"!\[(.+)\]\((.+)\)\n", page):
        file = DOCS / picture[2]
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size < 200_000
        assert re.match(r"\n    tidegate ", page[picture.end() :])
        assert len(picture[1]) > 20  # a reader who can't see it is told what it shows
    assert page.count("](images/") == 3


def number(text: str) -> float:
    return float(text.strip("()").replace("−", "-"))


def test_the_numbers_of_the_step_add_up_and_stand_in_the_diagram_we_draw(page):
    (text,) = re.findall(r"^```mermaid\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    said = {name: number(value) for name, value in re.findall(r"(W_\w+ [xh] \+ b_\w+) = (\S+)\n", text)}
    r, inside, passed = map(number, re.search(r"→ (\S+)·(\S+) = (\S+)\n", text).groups())
    (h,) = (number(v) for v in re.findall(r" \+ \S+·(\S+) = \S+\n", text))
    v = StepValues("", said["W_ir x + b_ir"], said["W_hr h + b_hr"], said["W_iz x + b_iz"], said["W_hz h + b_hz"],
                   said["W_in x + b_in"], inside, h)  # fmt: skip
    assert r == pytest.approx(1 / (1 + math.exp(-v.input_r - v.state_r)), abs=1e-3)
    assert passed == pytest.approx(r * inside, abs=3e-3)
    ours = sequence_diagram(64, 128, values=v)
    figures = r"−?\d+\.\d{3}|\d+%"
    assert re.sub(figures, "#", ours).splitlines()[7:] == re.sub(figures, "#", text).splitlines()[7:]
    for a, b in zip(re.findall(figures, ours), re.findall(figures, text), strict=True):
        assert number(a.rstrip("%")) == pytest.approx(number(b.rstrip("%")), abs=3e-3)


def test_the_kinds_of_units_add_up(page):
    total, *kinds = map(
        int, re.search(r"(\d+) units: (\d+) remember over \d+ steps; (\d+) remember .*; (\d+) follow", page).groups()
    )
    assert sum(kinds) == total == 128
