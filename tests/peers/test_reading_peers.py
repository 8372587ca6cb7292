"""CSV files as pandas reads them, and a split by date as scikit-learn makes it."""

from __future__ import annotations

import gzip

import numpy as np
import polars as pl
import pytest

from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import TEST
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table

pytestmark = pytest.mark.peers
HEADER, *ROWS = 'id,t,note,x\na,1,"two\nlines",1.5\na,2,"x, ""y""",-2\nb,1,,3e2\nb,2,z,'.replace(
    "two\nlines", "two"
).split("\n")
FILES = {
    "plain": ([HEADER, *ROWS], {}),
    "comments": (["# a", "#b", HEADER, *ROWS, "# end"], {"comment": "#"}),
    "blank lines": (["", HEADER, "", *ROWS, "", ""], {}),
    "separators at the end": ([HEADER + ",", *(row + "," for row in ROWS)], {}),
    "separators behind the rows": ([HEADER, *(row + "," for row in ROWS)], {"index_col": False}),
    "no header": (ROWS, {"header": None}),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
@pytest.mark.parametrize(("lines", "options"), FILES.values(), ids=FILES)
def test_a_csv_file_holds_what_pandas_reads(tmp_path, lines, options, pack, end):
    import pandas

    path = tmp_path / ("t.csv" if pack(b"") == b"" else "t.csv.gz")
    path.write_bytes(pack((end.join(lines) + end).encode()))
    ours = read_table(path, header="header" not in options).frame
    theirs = pandas.read_csv(path, **options).dropna(axis="columns", how="all")
    assert ours.shape == theirs.shape
    if "header" not in options:
        assert ours.columns == list(theirs.columns)
    for k, column in enumerate(ours.get_columns()):
        for mine, other in zip(column.to_list(), theirs.iloc[:, k], strict=True):
            assert mine == other or (mine is None and other != other)


def test_the_last_rows_by_date_are_those_of_scikit_learns_split_by_time():
    from sklearn.model_selection import TimeSeriesSplit

    frame = pl.DataFrame({"g": list("abcd") * 20, "t": np.repeat(np.arange(1990, 2010), 4), "y": np.arange(80.0) % 7})
    chosen = DataSettings.make(target="y", group="g", time="t", horizon=1, split_by="date", split="0.75,0.25")
    data = fit_preprocessing(read_table(frame), chosen, 0)[1]
    years = np.unique(frame["t"])
    *_, (train, test) = TimeSeriesSplit(n_splits=3, test_size=5).split(years)
    t = frame["t"].to_numpy()[data.rows]
    assert set(t[data.part == TEST]) == set(years[test])
    assert set(t[data.part != TEST]) == set(years[train])
