"""The README tells the truth: its Python runs, its promises are measured, and it stays short."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.helpers.pages import ROOT, blocks, read

FIGURES = runpy.run_path(str(ROOT / "benchmarks/figures.py"))


@pytest.fixture(params=["README.md", "README.zh-CN.md"])
def page(request) -> str:
    return read(request.param)


@pytest.mark.long
def test_the_python_of_the_readme_runs_as_written(tmp_path):
    code = "\n".join(blocks(read("README.md"), "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Better than every baseline" in done.stdout
    assert (tmp_path / "runs/vowels/report.html").exists()


def test_both_languages_show_the_same_code_and_lead_to_the_same_pages():
    english, chinese = read("README.md"), read("README.zh-CN.md")
    strip = lambda block: re.sub(r"\s*#.*", "", block)  # noqa: E731 (comments are translated)
    ours, theirs = blocks(english, "python"), blocks(chinese, "python")
    assert ours
    assert [strip(b) for b in ours] == [strip(b) for b in theirs]
    commands = r"^    (\S[^#\n]*?) *(?:#.*)?$"
    assert re.findall(commands, english, re.MULTILINE) == re.findall(commands, chinese, re.MULTILINE)
    pages = lambda text: {link.replace(".zh-CN", "") for link in re.findall(r"\]\(([^)#]+)", text)}  # noqa: E731
    assert pages(english) == pages(chinese)


def test_it_is_read_in_a_minute(page):
    assert len(page.splitlines()) <= 120
    assert page.count("![") == 1


def test_it_names_what_a_newcomer_looks_for():
    text = read("README.md").lower()
    words = "update gate, reset gate, candidate, mermaid, pytorch, tensorflow, keras, plain rnn, lstm"
    for word in words.split(", "):
        assert word in text, word


def test_its_promises_of_speed_are_the_measured_ones(page):
    over_torch = FIGURES["over_torch"]()
    least, most = (float(x) for x in re.search(r"(\d\.\d) (?:to|至) (\d+)", page).groups())
    assert (least, most) == (round(min(over_torch), 1), round(max(over_torch)))

    ratios = FIGURES["over_the_fastest"]()
    slower = sorted(f"{1 / ratio - 1:.0%}".replace("%", " %") for ratio in ratios if ratio < 1)
    assert slower == sorted(["4 %", "15 %"])
    assert len(ratios) == 40
    for text in (page, read("docs/speed.md")):
        assert re.search(r"slower in two of the 40 comparisons|40 项对比中有两项", text)
        assert all(share in text for share in slower)


def test_its_promise_of_quality_is_the_measured_one():
    for row in FIGURES["reach"]().splitlines()[2:]:
        ours, no_recurrence, rule = (float(re.search(r"\d+\.\d+", cell)[0]) for cell in row.split("|")[3:6])
        if "lower is better" in row:
            assert ours < min(no_recurrence, rule), row
        else:
            assert ours > max(no_recurrence, rule), row


@pytest.mark.skipif(os.name == "nt", reason="make is not on Windows")
def test_make_help_lists_the_two_commands():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test", "check"} <= {line.split()[0] for line in shown.splitlines()}
