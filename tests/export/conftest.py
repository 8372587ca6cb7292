"""The headers of every kind of run, and libraries compiled from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.compiling import Library, headers, name_of, need
from tests.helpers.runs import CASES, run_of
from tidegate.run import Run


@pytest.fixture(scope="module")
def folder() -> Path:
    need("cc", "gcc")
    return headers()


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name_of(case): run_of(case) for case in CASES}


@pytest.fixture(scope="module")
def library(folder: Path, runs: dict[str, Run]) -> Library:
    return Library(folder, runs, "-O1")


@pytest.fixture(scope="module")
def without_math(folder: Path, runs: dict[str, Run]) -> Library:
    return Library(folder, runs, "-O0", "-DTIDEGATE_NO_MATH")


@pytest.fixture(scope="module")
def library_8(folder: Path, runs: dict[str, Run]) -> Library:
    return Library(folder / "8", runs, "-O0")
