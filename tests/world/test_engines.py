"""The recipes of docs/scale.md predict on each engine, with two workers, what one `tidegate predict` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.helpers.pages import blocks, read
from tests.helpers.runs import FEATURES, ROLES, sensors
from tests.helpers.tables import QUICK
from tidegate.run import train

pytestmark = pytest.mark.world

# What is around the page's code: two workers on this machine, each in a process of its own.
BEGIN = {
    "ray": "import ray; ray.init(num_cpus=2, include_dashboard=False, logging_level='warning')",
    "pyspark": "",
    "dask": "from distributed import Client; client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)",
}
SCRIPT = """
def main():
    {begin}
    exec(compile(open("recipe.py").read(), "recipe.py", "exec"), {{"__name__": "recipe"}})

if __name__ == "__main__":
    main()
"""


def recipe(engine: str) -> str:
    (code,) = (
        code
        for code in blocks(read("docs/scale.md"), "python")
        if f"import {engine}" in code or f"from {engine}" in code
    )
    return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in runs/data and its tables in in/, whose groups lie in several files."""
    folder = tmp_path_factory.mktemp("world")
    frame = sensors().select("device", "t", *FEATURES, "label")
    (folder / "in").mkdir()
    for k in range(4):
        frame[k::4].write_parquet(folder / "in" / f"{k}.parquet")
    train(frame, "label", features=FEATURES, out=folder / "runs/data", **ROLES, **QUICK)
    return folder


@pytest.mark.parametrize("engine", BEGIN)
def test_the_recipe_predicts_what_one_predict_does(place, engine, tmp_path):
    for name in ("in", "runs"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "recipe.py").write_text(recipe(engine))
    (tmp_path / "main.py").write_text(SCRIPT.format(begin=BEGIN[engine] or "pass"))
    own = {
        "OMP_NUM_THREADS": "1",
        "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false pyspark-shell",
        "PYSPARK_PYTHON": sys.executable,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    alone = [sys.executable, "-m", "tidegate", "predict", "runs/data", "in", "-o", "one.parquet"]
    subprocess.run(alone, cwd=tmp_path, env=os.environ | own, check=True)
    one = pl.read_parquet(tmp_path / "one.parquet").sort("device", "t")
    rows = pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
    rows = rows.select(one.columns).cast(dict(one.schema)).sort("device", "t")
    assert rows.equals(one)
    assert one["prediction"].n_unique() == 2
