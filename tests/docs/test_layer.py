"""docs/layer.md tells the truth: its Python runs, its figures were measured, and behind every yes stands a test."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys

import pytest

from tests.helpers.pages import ROOT, between, blocks

PAGE = ROOT / "docs" / "layer.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.long
def test_the_python_of_the_page_runs_as_written():
    code = "\n".join(blocks(TEXT, "python"))
    assert code.count("assert") >= 3
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_costs_are_those_that_were_measured():
    figures = runpy.run_path(str(ROOT / "benchmarks/figures.py"))
    assert between(TEXT, "costs") == figures["extras_cost"]()


def rows():
    head, _, *body = between(TEXT, "table").splitlines()
    assert head.split("|")[2].strip() == "`tidegate.GRU`"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in body]


def test_behind_every_yes_of_ours_stands_a_test():
    links = 0
    for feature, ours, *others in rows():
        assert all(others), feature
        assert len(others) == 4, feature
        found = re.findall(r'\[[^\]]+\]\((\.\./tests/[^ )]+\.py) "([^"]+)"\)', ours)
        assert found, f"{feature}: no test behind {ours!r}"
        for path, names in found:
            tree = ast.parse((PAGE.parent / path).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            for name in names.split():
                assert name.startswith("test_"), feature
                assert name in there, f"{feature}: {name} is not in {path}"
                links += 1
    assert links >= 30


def test_every_option_of_the_layer_is_on_the_page():
    import inspect

    import tidegate

    ours = set(inspect.signature(tidegate.GRU).parameters)
    theirs = {
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "device",
        "dtype",
    }
    for name in ours - theirs - {"backend"}:
        assert f"`{name}=" in TEXT, name
