"""The example that runs an ONNX file without torch and Tidegate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tidegate
from tests.helpers import runs
from tests.helpers.onnx_files import CLOSE, a_run, exported, file_of
from tests.helpers.tables import QUICK
from tidegate.data.preprocessing import NumberColumn
from tidegate.export import take_apart

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[2]


BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "tidegate", "polars", "onnx"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Run Python where torch and Tidegate can't be imported; return what it said."""
    folder = tmp_path_factory.mktemp("block")
    (folder / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUTF8": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run


def test_torch_and_tidegate_are_out_of_reach_of_the_example(without_torch):
    for name in ("torch", "tidegate"):
        assert f"{name} is blocked" in without_torch("-c", f"import {name}").stderr


ON_CSV = ["class", "yes/no", "whole-number classes", "labels", "two numbers", "forecast of two", "class ahead"]


@pytest.mark.parametrize("name", [*ON_CSV, "categories alone", "sequence mean both ways", "learned start"])
def test_the_example_predicts_what_the_run_predicts_without_torch_and_tidegate(name, without_torch, tmp_path):
    run = runs.run_of(name)
    table = tmp_path / "table.csv"
    runs.table_of(name).sample(fraction=1, shuffle=True, seed=1).write_csv(table)
    said = without_torch(ROOT / "examples" / "05_onnx_without_torch.py", file_of(name), table)
    assert said.returncode == 0, said.stderr
    expected = run.predict(table)
    columns = [c for c in expected.columns if c.startswith("prediction")]
    answer = tmp_path / "answer.csv"
    answer.write_text(said.stdout, encoding="utf-8")
    found = pl.read_csv(answer, infer_schema=False)
    assert found.columns == expected.columns
    assert found["device"].to_list() == expected["device"].to_list()
    assert len(set(found[columns[0]])) > 1 or name == "yes/no"  # where the run always says yes
    for column in columns:
        ours, theirs = expected[column], found[column]
        if ours.dtype.is_float():
            np.testing.assert_allclose(theirs.cast(pl.Float64), ours, rtol=0, atol=CLOSE * ours.std())
        else:
            assert theirs.str.to_lowercase().to_list() == ours.cast(pl.String).to_list()


def example(without_torch, model, table, text):
    table.write_text(text, encoding="utf-8")
    return without_torch(ROOT / "examples" / "05_onnx_without_torch.py", model, table)


def test_the_example_reads_codes_with_gaps_as_the_run_does(without_torch, tmp_path):
    rng = np.random.default_rng(1)
    code = pl.Series([f"{c}.0" if c > 1 else "1.00" for c in rng.choice([1, 2, 3], runs.sensors().height)])
    frame = runs.sensors().with_columns(code=pl.when(pl.col("x") > 0.5).then(pl.lit("NA")).otherwise(code))
    (tmp_path / "train.csv").write_text(frame.write_csv(), encoding="utf-8")
    run = a_run(tmp_path, tmp_path / "train.csv", target="label", features=["code", "x"], categories=["code"])
    assert take_apart(run).description["tokens"][0]["whole_numbers"]
    said = example(without_torch, exported(run, tmp_path)[0].path, tmp_path / "t.csv", "\ufeff" + frame.write_csv())
    assert said.returncode == 0, said.stderr
    (tmp_path / "answer.csv").write_text(said.stdout, encoding="utf-8")
    found, right = pl.read_csv(tmp_path / "answer.csv")["prediction"], run.predict(tmp_path / "train.csv")["prediction"]
    assert found.to_list() == right.to_list()
    assert len(set(right)) > 1


def test_the_example_stops_with_a_sentence_where_it_cant_read(without_torch, tmp_path):
    class_, table = file_of("class"), tmp_path / "t.csv"
    head = "device,t,x,far,level,on,kind,colour\n"
    for text, said in (
        (head, "has no rows."),
        ("device,t,x\nd0,1,2\n", "has no column 'far'."),
        (head + 'd0,1,"1,5",1,1,true,c,c\n', "row 1, column 'x': '1,5' is no number."),
        (head + "d0,,1,1,1,true,c,c\n", "column 't', which has the rows' order, lacks a value."),
    ):
        stopped = example(without_torch, class_, table, text)
        assert stopped.returncode == 1
        assert stopped.stderr.strip().endswith(said)
        assert len(stopped.stderr.splitlines()) == 1
    whole = example(without_torch, class_, table, head + "d0,1,NA,null,1,true,NA,null\nd0,2,,1,1,true\n")
    assert whole.returncode == 0, whole.stderr
    lists = example(without_torch, file_of("words"), table, "words\nplay\n")
    assert "reads sentences or lists" in lists.stderr
    assert lists.returncode == 1
    mood = pl.DataFrame({"sentence": ["play it", "stop the noise"] * 10, "mood": ["happy", "sad"] * 10})
    settings = QUICK | {"epochs": 1, "target": "mood", "text": ["sentence"], "per": "sequence"}
    run = tidegate.train(mood, out=tmp_path / "run", **settings)
    sentences = example(without_torch, exported(run, tmp_path)[0].path, table, mood.write_csv())
    assert "reads sentences or lists" in sentences.stderr


def test_no_case_lacks_a_number_column_that_needs_its_digits():
    # Else the standardisation in float64 would be tested nowhere.
    columns = [c for n in runs.SENSORS for c in runs.run_of(n).preprocessing.features if isinstance(c, NumberColumn)]
    assert max(abs(c.mean) / c.std for c in columns) > 1e4
