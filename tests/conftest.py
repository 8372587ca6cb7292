"""What any test may ask for."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core of its own; torch reads this when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import polars as pl
import pytest

pytest.register_assert_rewrite("tests.helpers")  # so that their assertions say as much as those of a test

from tests.helpers.tables import signal_table  # noqa: E402


@pytest.fixture
def signals() -> pl.DataFrame:
    return signal_table()
