"""What any test may ask for."""

from __future__ import annotations

import os
from collections import Counter

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core of its own; torch reads this when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import polars as pl
import pytest

pytest.register_assert_rewrite("tests.helpers")  # so that their assertions say as much as those of a test

from tests.helpers.tables import signal_table  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a grid that is marked one_in(n), all but every n-th test are long."""
    places: Counter[str] = Counter()
    for item in items:
        if mark := item.get_closest_marker("one_in"):
            grid = item.nodeid.partition("[")[0]
            if places[grid] % mark.args[0]:
                item.add_marker("long")
            places[grid] += 1


@pytest.fixture
def signals() -> pl.DataFrame:
    return signal_table()
