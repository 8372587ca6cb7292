"""The README tells the truth: its Python runs, its figures are the measured ones, its commands are there."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from tidegate.cli import COMMANDS, FILES
from tidegate.cli.diagram import app

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "README.zh-CN.md"]


@pytest.fixture(params=PAGES)
def page(request) -> str:
    return (ROOT / request.param).read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs_as_written(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Better than every baseline" in done.stdout
    assert (tmp_path / "runs/vowels/report.html").exists()


def test_both_languages_show_the_same_code_and_diagram():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    strip = lambda block: re.sub(r"\s*#.*", "", block)  # noqa: E731 (comments are translated)
    for language in ("python", "mermaid"):
        pattern = rf"^```{language}\n(.*?)^```$"
        ours, theirs = (re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in (english, chinese))
        assert ours
        assert [strip(b) for b in ours] == [strip(b) for b in theirs]


def test_the_figures_are_those_that_were_measured(page):
    figures = runpy.run_path(str(ROOT / "benchmarks/figures.py"))
    for table in (figures[name]() for name in ("reach", "forward_speed", "train_speed", "cost")):
        for row in table.splitlines()[2:]:
            for cell in re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", row):
                assert cell in page, row


def test_the_english_page_holds_the_tables_whole():
    figures = runpy.run_path(str(ROOT / "benchmarks/figures.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("reach", "forward_speed", "train_speed", "cost"):
        assert figures[name]() in text, name
    assert figures["bounds"]() in (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")


def test_the_diagram_is_what_the_command_prints(page):
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert (
        diagram == CliRunner().invoke(app, ["--input-size", "10", "--hidden-size", "20"], catch_exceptions=False).output
    )


def test_every_command_option_and_make_target_it_names_exists(page):
    for command in re.findall(r"tidegate (\w+)", re.sub(r"import tidegate", "", page)):
        assert command in {*COMMANDS, "import"} or command[0].isupper(), command
    known = {"--help"}
    for name in COMMANDS:
        command = typer.main.get_command(importlib.import_module(f"tidegate.cli.{FILES.get(name, name)}").app)
        known |= {option for p in command.params for option in [*p.opts, *p.secondary_opts]}
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page):
        assert option in known, option
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make (\w+)", page, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.skipif(os.name == "nt", reason="make is not on Windows")
def test_make_help_lists_the_two_commands():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo", "test", "check"} <= {line.split()[0] for line in shown.splitlines()}
