"""What `make` says while pip works: little, and nothing that pip is told differently for."""

from __future__ import annotations

import doctest
import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.helpers.pages import ROOT

SET_UP = ROOT / "tools/set_up.py"
NAMES = runpy.run_path(str(SET_UP))


def test_its_examples_are_right():
    examples = doctest.DocTestFinder().find(NAMES["news"], "news", globs=NAMES)
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.tries == 4
    assert runner.failures == 0


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"], 1), (["--help"], 0)]
)
def test_it_ends_as_pip_ends_and_shows_pips_words_where_that_failed(tmp_path, arguments, status):
    missing = [] if "--help" in arguments else [str(tmp_path / "nothing.whl")]
    fake = tmp_path / "pip"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(
        "import sys; print('Collecting nothing'); print(sys.argv[1:]); sys.exit('no such wheel' if 'nothing.whl' in sys.argv[-1] else 0)"
    )
    done = subprocess.run(
        [sys.executable, str(SET_UP), *arguments, *missing],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == status
    assert done.stdout.startswith("Setting up .venv: pip fetches the packages")
    if status:
        assert str(["install", *arguments, *missing]) in done.stderr
        assert "no such wheel" in done.stderr
    else:
        assert re.search(r"Ready after \d+ s\.", done.stdout)
        assert done.stderr == ""


def test_the_size_of_torch_is_told_where_it_matters(monkeypatch):
    large_torch = NAMES["large_torch"]
    there = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "--index-url https://download.pytorch.org/whl/cpu" in large_torch(["-c", "constraints.txt", "-e", "."])
    assert large_torch(["-e", "."]) is None  # with a GPU
    there.append("torch")
    assert large_torch(["-c", "constraints.txt"]) is None
    there.clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert large_torch(["-c", "constraints.txt"]) is None


def test_make_gives_pip_what_it_gave_before():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.findall(r"^\t@\$\(SET_UP\) (.*)$", makefile, re.MULTILINE)
    assert "$(CONSTRAINTS) -e '.[train]'" in lines
    assert all(re.fullmatch(r"\$\(CONSTRAINTS\) -e '\.\[[a-z,]+\]'", line) for line in lines)
    assert "pip install --quiet" not in makefile
