"""A folder or a pattern of files is one table, in the order of their names."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.helpers.tables import QUICK, signal_table
from tidegate.data.tables import Table, read_table
from tidegate.errors import DataError
from tidegate.run import train


def divided(frame: pl.DataFrame, folder: Path, kind: str, cuts: tuple[int, ...]) -> Path:
    """A table in files of the rows between the cuts: part-0, part-1, ..."""
    folder.mkdir(exist_ok=True)
    for k, (first, end) in enumerate(zip((0, *cuts), (*cuts, frame.height), strict=True)):
        path = folder / f"part-{k}.{kind}"
        getattr(frame[first:end], {"parquet": "write_parquet", "arrow": "write_ipc", "csv": "write_csv"}[kind])(path)
    return folder


def refused(source: Path, **options) -> str:
    with pytest.raises(DataError) as told:
        read_table(source, **options)
    return str(told.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize("as_pattern", [False, True])
def test_files_are_one_table_in_the_order_of_their_names(tmp_path, kind, as_pattern):
    frame = signal_table()
    folder = divided(frame, tmp_path / "data", kind, (100, 101))
    (folder / "_SUCCESS").touch()
    (folder / "notes.md").touch()
    (folder / f".part-0.{kind}").touch()
    if not as_pattern:
        (folder / f"_part-0.{kind}").touch()
    table = read_table(folder / f"*.{kind}" if as_pattern else folder)
    assert table.frame.equals(frame)
    assert table.name == (f"data/*.{kind}" if as_pattern else "data")


@pytest.mark.parametrize(("kind", "first", "second"), [("parquet", "row 100", "row 1"), ("csv", "line 101", "line 2")])
def test_a_row_is_named_by_its_file_and_its_place_there(tmp_path, kind, first, second):
    table = read_table(divided(signal_table(), tmp_path / "data", kind, (100,)))
    assert table.where(99) == f"part-0.{kind}, {first}"
    assert table.where(100) == f"part-1.{kind}, {second}"
    assert table.also_where(99, 100) == f"part-1.{kind}, {second}"
    assert table.also_where(100, 101) == ("row 2" if kind == "parquet" else "line 3")


def test_a_pattern_with_folders_finds_files_in_folders_and_names_them_by_both(tmp_path):
    frame = signal_table()
    for year, rows in (("2025", frame[:50]), ("2026", frame[50:])):
        divided(rows, tmp_path / year, "parquet", ())
    table = read_table(tmp_path / "**" / "*.parquet")
    assert table.frame.equals(frame)
    assert table.where(50) == str(Path("2026") / "part-0.parquet") + ", row 1"


def test_a_column_that_only_some_files_have_is_named_with_its_file(tmp_path):
    folder = divided(signal_table(), tmp_path / "data", "parquet", (100,))
    frame = pl.read_parquet(folder / "part-1.parquet")
    frame.drop("x").write_parquet(folder / "part-1.parquet")
    assert refused(folder).startswith("part-1.parquet has no column 'x', which part-0.parquet has.")
    frame.with_columns(z=1).write_parquet(folder / "part-1.parquet")
    assert refused(folder).startswith("part-1.parquet has a column 'z', which part-0.parquet doesn't have.")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_column_of_another_type_is_named_with_both_files_and_types(tmp_path, kind):
    folder = divided(signal_table(), tmp_path / "data", kind, (100, 200))
    frame = pl.DataFrame(read_table(folder / f"part-2.{kind}").frame).with_columns(x=pl.lit("much"))
    getattr(frame, {"parquet": "write_parquet", "csv": "write_csv"}[kind])(folder / f"part-2.{kind}")
    assert refused(folder).startswith(
        f"part-2.{kind}: column 'x' holds String, and in part-0.{kind} it holds Float64. All files"
    )


def test_typed_files_are_not_widened_and_those_whose_types_are_guessed_are(tmp_path):
    whole, broken = pl.DataFrame({"a": [1, 2]}), pl.DataFrame({"a": [0.5, 3.0]})
    for kind in ("parquet", "csv"):
        (tmp_path / kind).mkdir()
        for name, frame in (("1", whole), ("2", broken)):
            getattr(frame, f"write_{kind}")(tmp_path / kind / f"{name}.{kind}")
    assert "column 'a' holds Float64, and in 1.parquet it holds Int64" in refused(tmp_path / "parquet")
    assert read_table(tmp_path / "csv").frame["a"].to_list() == [1.0, 2.0, 0.5, 3.0]


def test_a_column_without_a_value_in_one_file_takes_its_type_from_the_others(tmp_path):
    (tmp_path / "1.csv").write_text("a,b\n1,\n")
    (tmp_path / "2.csv").write_text("a,b\n2,3\n")
    assert read_table(tmp_path).frame.rows() == [(1, None), (2, 3)]


def test_a_file_without_rows_among_others_is_no_error(tmp_path):
    folder = divided(signal_table(), tmp_path / "data", "parquet", (0,))
    assert read_table(folder).frame.height == signal_table().height


def test_a_truncated_file_is_named(tmp_path):
    folder = divided(signal_table(), tmp_path / "data", "parquet", (100,))
    path = folder / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(folder).startswith("part-1.parquet is not a whole Parquet file")


def test_files_of_two_kinds_and_patterns_that_fit_nothing_are_refused(tmp_path):
    folder = divided(signal_table(), tmp_path / "data", "parquet", ())
    divided(signal_table(), folder, "csv", ())
    assert "holds tables of several kinds (part-0.csv and part-0.parquet)" in refused(folder)
    assert refused(folder / "*.arrow") == f"No file fits {folder}/*.arrow."


def test_a_time_that_occurs_twice_in_two_files_names_both(tmp_path):
    frame = signal_table(groups=6)
    folder = divided(pl.concat([frame, frame[-1:]]), tmp_path / "data", "parquet", (frame.height,))
    with pytest.raises(DataError, match=r"part-0\.parquet, row \d+ and part-1\.parquet, row 1, column 't'"):
        train(folder, target="label", group="device", time="t", out=False, **QUICK)


def test_the_digest_changes_with_a_file_and_with_its_name(tmp_path):
    folder = divided(signal_table(), tmp_path / "data", "parquet", (100,))
    before = read_table(folder).sha256
    assert read_table(folder / "*.parquet").sha256 == before
    (folder / "part-1.parquet").rename(folder / "part-2.parquet")
    assert read_table(folder).sha256 != before


def test_a_run_on_a_folder_knows_its_table_again_and_is_named_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = divided(signal_table(), tmp_path / "data", "parquet", (100,))
    run = train(folder / "*.parquet", target="label", group="device", time="t", **QUICK)
    assert run.folder == Path("runs/data")
    assert run.evaluate(folder).what == "the test rows of data"
    alone = train(Table(signal_table(), "alone"), target="label", group="device", time="t", out=False, **QUICK)
    assert run.fingerprint == alone.fingerprint
