"""pandas tables: what stands in the index, what can't be read, and files that pandas wrote."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tidegate.data.tables import read_table
from tidegate.errors import DataError, PackageMissingError
from tidegate.run import train

pytestmark = pytest.mark.peers
QUICK = {"hidden_size": 8, "epochs": 1, "baselines": False, "progress": False, "device": "cpu", "out": False}


@pytest.fixture
def pd():
    import pandas

    return pandas


@pytest.fixture
def frame(pd):
    rng = np.random.default_rng(0)
    days = pd.date_range("2025-01-01", periods=40)
    return pd.DataFrame(
        {
            "shop": np.repeat(list("abcdef"), 40),
            "day": list(days) * 6,
            "x": rng.normal(size=240),
            "y": rng.normal(size=240),
        }
    )


def test_named_levels_of_an_index_are_columns(frame):
    right = train(frame, target="y", group="shop", time="day", **QUICK)
    for other in (frame.set_index("day"), frame.set_index(["shop", "day"])):
        run = train(other, target="y", group="shop", time="day", **QUICK)
        assert run.predict(other)["prediction"].to_list() == right.predict(frame)["prediction"].to_list()
    assert read_table(frame.set_index("day")).frame.columns == ["day", "shop", "x", "y"]
    assert read_table(frame).frame.columns == ["shop", "day", "x", "y"]


def test_a_name_that_is_there_twice_is_refused(frame):
    with pytest.raises(DataError, match="names the column 'day' more than once"):
        read_table(frame.set_index("day", drop=False))


def test_an_index_without_a_name_is_no_feature_of_a_file(pd, frame, tmp_path):
    shuffled = frame.sample(frac=1, random_state=0)
    shuffled.to_parquet(tmp_path / "t.parquet")
    shuffled.to_csv(tmp_path / "t.csv")
    for path in tmp_path.iterdir():
        run = train(path, target="y", group="shop", time="day", **QUICK)
        assert [c.name for c in run.preprocessing.features] == ["x"]
        assert any("a row number without a name" in note for note in run.resolved.notes)


def test_every_kind_of_column_is_read_or_named(pd, frame):
    n = len(frame)
    read = lambda **columns: read_table(frame.assign(**columns)).frame  # noqa: E731
    assert str(read(day=frame.day.dt.to_period("D"))["day"].dtype).startswith("Datetime")
    assert read(i=pd.array([1, None] * (n // 2), dtype="Int64"))["i"].null_count() == n // 2
    assert read(x=frame.x.where(frame.x > 0))["x"].null_count() > 0
    assert read(c=pd.Categorical(["u", "v"] * (n // 2)))["c"].to_list()[:2] == ["u", "v"]
    assert read_table(frame.rename(columns={"x": 0})).frame.columns == ["shop", "day", "0", "y"]
    assert read_table(frame["y"]).frame.columns == ["y"]
    with pytest.raises(DataError, match=r"Column 'o' of the table \(pandas' object\) can't be read"):
        read(o=[1, "two"] * (n // 2))
    with pytest.raises(DataError, match="columns have several levels"):
        read_table(frame.pivot(index="day", columns="shop", values=["y"]))


def test_without_pyarrow_a_sentence_says_what_to_install(frame, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PackageMissingError, match="needs pyarrow, which is not installed: pip install pyarrow"):
        read_table(frame)
