"""The tables of speed, cost and quality are those that were measured, whole and word for word."""

from __future__ import annotations

import runpy

import pytest

from tests.helpers.pages import ROOT, read
from tidegate.workers import SMALL

FIGURES = runpy.run_path(str(ROOT / "benchmarks/figures.py"))


def test_the_model_of_many_workers_has_the_limit_of_the_code():
    assert FIGURES["SMALL"] == SMALL


@pytest.mark.parametrize(
    ("table", "page"),
    [
        ("reach", "docs/quality.md"),
        ("small_sets", "docs/quality.md"),
        ("elsewhere", "docs/quality.md"),
        ("forward_speed", "docs/speed.md"),
        ("train_speed", "docs/speed.md"),
        ("cost", "docs/speed.md"),
        ("bfloat16", "docs/speed.md"),
        ("quantised", "docs/speed.md"),
        ("epoch", "docs/speed.md"),
        ("busy", "docs/speed.md"),
        ("bounds", "benchmarks/README.md"),
        ("fuzz", "docs/reliability.md"),
        ("carry_state", "docs/scale.md"),
        ("faults", "docs/scale.md"),
        ("link", "docs/scale.md"),
        ("many_workers", "docs/scale.md"),
    ],
)
def test_the_page_holds_the_table_as_it_was_measured(table, page):
    assert FIGURES[table]() in read(page)
