"""What any test may ask for."""

from __future__ import annotations

import polars as pl
import pytest

pytest.register_assert_rewrite("tests.helpers")  # so that their assertions say as much as those of a test

from tests.helpers.tables import signal_table  # noqa: E402


@pytest.fixture
def signals() -> pl.DataFrame:
    return signal_table()
