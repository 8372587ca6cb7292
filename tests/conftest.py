"""What any test may ask for."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core of its own; torch reads this when it is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import polars as pl
import pytest

pytest.register_assert_rewrite("tests.helpers")  # so that their assertions say as much as those of a test

from tests.helpers.tables import signal_table  # noqa: E402

# What these stand on (torch's own module tests; the headers of every kind of run) takes as long as hundreds of
# tests, so the fast lane leaves them alone.
LONG_FILES = {"test_torch_module_suite.py", "test_c.py", "test_c_header.py", "test_c_self_test.py"}

# What `pip install tidegate[train,test]` leaves out. Where these are installed all the same (by make install-all), the tests
# that may not need them don't find them. (SciPy isn't among them: torchmetrics goes by the list of what is installed.)
OF_OTHER_EXTRAS = (
    *("onnx", "onnxruntime", "onnxscript", "tensorflow", "keras", "jax", "openvino", "hoptorch", "torchrl", "seqeval"),
    *(
        "sklearn",
        "pandas",
        "pyarrow",
        "optuna",
        "playwright",
        "mkdocs",
        "mypy",
        "ray",
        "pyspark",
        "dask",
        "distributed",
    ),
)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr not in ("peers", "browser", "world"):
        # None: to import it is a ModuleNotFoundError, and importlib.util.find_spec returns None.
        sys.modules.update(dict.fromkeys(OF_OTHER_EXTRAS))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in LONG_FILES and "not long" in config.option.markexpr else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a grid that is marked one_in(n), all but every n-th test are long."""
    places: Counter[str] = Counter()
    for item in items:
        if item.path.name in LONG_FILES:
            item.add_marker("long")
        if mark := item.get_closest_marker("one_in"):
            grid = item.nodeid.partition("[")[0]
            if places[grid] % mark.args[0]:
                item.add_marker("long")
            places[grid] += 1


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """A run is a dozen files, each on the disk before it takes its place: no test needs that to outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def signals() -> pl.DataFrame:
    return signal_table()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches the test, and what it starts, also where the tests run in the background, which ignores it (`make test &`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
