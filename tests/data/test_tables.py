"""Reading tables, and the sentences for those that can't be read."""

from __future__ import annotations

import polars as pl
import pytest

from tidegate.data.tables import read_table, write_table
from tidegate.errors import DataError

FRAME = pl.DataFrame({"id": ["a", "a", "b"], "x": [1.5, None, -2.0], "n": [1, 2, 3]})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".arrow", ".feather"])
def test_what_is_written_is_read_back_the_same(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    write_table(FRAME, path)
    assert read_table(path).frame.equals(FRAME)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_is_found(tmp_path, separator):
    path = tmp_path / "t.csv"
    path.write_text(FRAME.write_csv(separator=separator))
    assert read_table(path).frame.equals(FRAME)


def test_a_quoted_cell_may_hold_separators_and_line_ends(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,note\n1,"a, b"\n2,"two\nlines"\n3,c\n')
    table = read_table(path)
    assert table.frame["note"].to_list() == ["a, b", "two\nlines", "c"]
    assert table.where(2) == "t.csv, line 5"


def test_windows_line_ends_and_a_byte_order_mark_are_taken_in_stride(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfid,x\r\n1,2.5\r\n\r\n2,3.5\r\n")
    assert read_table(path).frame.to_dict(as_series=False) == {"id": [1, 2], "x": [2.5, 3.5]}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["id,x|1,2.5||2,3.5||", "id,x|1,2.5|2,3.5|||", '"id",x|1,2.5|2,3.5||', "id|1|2||"])
def test_blank_lines_are_no_rows_wherever_they_are(tmp_path, text, end):
    path = tmp_path / "t.csv"
    path.write_bytes(text.replace("|", end).encode())
    assert read_table(path).frame["id"].to_list() == [1, 2]


@pytest.mark.parametrize("name", ["^x$", "^.*$", "*"])
def test_a_column_may_have_a_name_that_is_a_pattern_to_polars(tmp_path, name):
    path = tmp_path / "t.csv"
    path.write_text(f"id,{name}\n1, a\n2,b\n")
    assert read_table(path).frame[name].to_list() == [" a", "b"]
    path.write_text(f"id,{name}\n1,0.5\n2,NaN\n")
    assert read_table(path).frame[name].to_list() == [0.5, None]


def test_a_byte_order_mark_before_json_lines_is_skipped(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"x": 1}\n{"x": 2}\n')
    assert read_table(path).frame.to_dict(as_series=False) == {"x": [1, 2]}


def test_tables_in_memory_are_taken_as_they_are():
    assert read_table(FRAME).frame is FRAME
    assert read_table(FRAME.lazy()).frame.equals(FRAME)
    assert read_table({"x": [1, 2]}).frame.to_dict(as_series=False) == {"x": [1, 2]}
    assert read_table({"x": [1, 2], "c": "a"}).frame.to_dict(as_series=False) == {"x": [1, 2], "c": ["a", "a"]}


def test_another_encoding_is_read_when_it_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("name\nCaf\xe9\n".encode("latin-1"))
    assert read_table(path, encoding="latin-1").frame["name"][0] == "Café"


def test_rs_unnamed_row_numbers_are_left_out_on_request(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('"x","y"\n"1",0.5,1\n"2",0.7,0\n')
    assert read_table(path, row_names=True).frame.to_dict(as_series=False) == {"x": [0.5, 0.7], "y": [1, 0]}


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ";"), (".csv", "|"), (".tsv", "\t")])
def test_a_decimal_comma_is_read_on_request(tmp_path, suffix, separator):
    path = tmp_path / f"t{suffix}"
    path.write_text("x;y\n1,5;a\n-2;b\n".replace(";", separator))
    assert read_table(path, decimal_comma=True).frame.to_dict(as_series=False) == {"x": [1.5, -2.0], "y": ["a", "b"]}
    assert read_table(path).frame["x"].to_list() == ["1,5", "-2"]


def bad(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(path, **options)
    return str(error.value)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "sensors.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"No such file: .*sensor\.csv\. Did you mean 'sensors\.csv'\?"):
        read_table(tmp_path / "sensor.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b" \n\n", "t.csv is empty"),
        ("t.csv", b"a,b\n", "t.csv has a header but no rows"),
        ("t.parquet", b"", "t.parquet is empty"),
        ("t.csv", b"a,b\n1,2\n3\n", "t.csv, line 3: 1 field, but the header names 2 columns. It looks like a missing field"),
        ("t.csv", b"a,b\n1,2\n3,4,5\n", "t.csv, line 3: 3 fields, but the header names 2 columns. It looks like an unquoted separator"),
        ("t.csv", b'a,b\n"1",2,3\n"2",4,5\n', "It looks like a file written by R: the first field ('1') is an unnamed row number. Read it with row_names=True"),
        ("t.csv", b"a,b\n1,caf\xe9\n", "t.csv, line 2: byte 0xE9 is not utf-8"),
        ("t.csv", "a\n1\n".encode("utf-16"), "t.csv is UTF-16"),
        ("t.csv", b"a,a\n1,2\n", "the header names 'a' more than once"),
        ("t.csv", b"PK\x00\x00,b\n1,2\n", "holds binary data"),
        ("t.parquet", b"PAR1 cut off", "t.parquet is not a whole Parquet file"),
        ("t.arrow", b"nonsense", "t.arrow is not a whole Arrow file"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "t.jsonl, line 2: not JSON"),
        ("t.jsonl", b"[1, 2]\n", "t.jsonl, line 1: a list, not an object"),
        ("t.xlsx", b"PK", "unknown kind of table '.xlsx'"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_with_its_place_and_the_way_out(tmp_path, name, content, message):
    assert message in bad(tmp_path, name, content)


def test_the_original_occupancy_layout_is_recognised_and_its_way_out_works(tmp_path):
    content = (
        b'"date","Temperature","Occupancy"\n"1","2015-02-04 17:51:00",23.18,1\n"2","2015-02-04 17:51:59",23.15,1\n'
    )
    assert "line 2: 4 fields, but the header names 3 columns; so it is in every row" in bad(tmp_path, "t.txt", content)
    frame = read_table(tmp_path / "t.txt", row_names=True).frame
    assert frame.columns == ["date", "Temperature", "Occupancy"]
    assert frame["date"].dtype == pl.Datetime


def test_an_unknown_encoding_and_a_folder_are_refused(tmp_path):
    assert "encoding='klingon' is unknown" in bad(tmp_path, "t.csv", b"a\n1\n", encoding="klingon")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is a folder, not a table, and no table lies in it"):
        read_table(tmp_path / "empty")


def test_a_list_becomes_words_in_a_csv_cell_and_nothing_half_written_stays(tmp_path):
    write_table(pl.DataFrame({"w": [["a", "b"], ["c"]]}), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "w\na b\nc\n"
    with pytest.raises(DataError, match=r"can't write '\.xlsx'"):
        write_table(FRAME, tmp_path / "t.xlsx")
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_decimal_comma_can_not_be_told_from_a_separating_one(tmp_path):
    assert "its separator is a comma" in bad(tmp_path, "t.csv", b"x,y\n1,5\n", decimal_comma=True)
