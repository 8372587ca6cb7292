"""Rows line by line are the rows that a file of these lines holds."""

from __future__ import annotations

import io
import re

import pytest

from tests.helpers.runs import run_of, sensors
from tidegate.data.lines import RowLines
from tidegate.data.tables import read_table
from tidegate.errors import DataError

ROW = b'{"x": 1, "far": 2, "level": 3, "on": true, "kind": "c", "colour": "red"}\n'
HEAD = b"device,x,far,level,on,kind,colour\n"


def read(data: bytes, name: str = "number", **options) -> list:
    return list(RowLines(io.BytesIO(data), run_of(name).preprocessing, **options))


def row_of(cells: str, **options) -> dict:
    (line,) = read(HEAD + cells.encode() + b"\n", **options)
    assert line.error is None
    return line.row


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_stream_of_lines_gives_what_the_file_gives(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    if suffix == ".jsonl":
        sensors().write_ndjson(path)
    else:
        sensors().write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    run = run_of("number")
    expected = run.predict(path)["prediction"].to_list()
    stream = run.stream()
    lines = read(path.read_bytes())
    assert [stream.push(line.row, line.row["device"])["prediction"] for line in lines] == expected
    assert [line.number for line in lines] == list(
        range(1 + (suffix != ".jsonl"), len(lines) + 1 + (suffix != ".jsonl"))
    )
    assert read_table(path).frame.height == len(lines)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.5", 1.5), ("-3", -3.0), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("+2E-2", 0.02), ("true", True), ("false", False),
        ("", None), ("NA", None), ("null", None), ("1_000", "1_000"), (" 1 ", 1.0), ("NaN", None), ("n/a", None), (" - ", None), (" ", None), ("0x10", "0x10"), ("1,5", "1,5"), ("٣", "٣"),
        ("True", True), ("FALSE", False), ("ten", "ten"), ("--1", "--1"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_a_cell_of_a_numeric_column_is_a_number_or_stays_what_it_is(cell, value):
    found = row_of(f'd,0,"{cell}",0,true,ä,red')["far"]
    assert found == value
    assert type(found) is type(value)


def test_infinity_is_a_number_that_the_run_decides_on():
    assert row_of("d,0,inf,0,true,ä,red")["far"] == float("inf")


def test_a_row_of_nothing_but_missing_values_is_a_row():
    pre = run_of("numbers alone").preprocessing
    rows = list(RowLines(io.BytesIO(b"far\tx\n1\t2\n\t\n\n3\t1\n"), pre))
    assert [line.row["far"] for line in rows] == [1.0, None, 3.0]
    bad = list(RowLines(io.BytesIO(b"far,x\n1,2\n  \n"), pre))[1]
    assert "1 field, but the header names 2 columns" in bad.error


def test_words_stay_what_they_are():
    pre = run_of("words").preprocessing
    words = ["NA", "null", "7", "07", "7.0", "Infinity", "true", "Größe"]
    lines = RowLines(io.BytesIO(("words\n" + "\n".join(words)).encode()), pre)
    assert [line.row["words"] for line in lines] == words


def test_codes_are_read_as_numbers_where_they_are_not_known_as_they_stand():
    assert row_of("d,0,0,02,true,ä,red", name="yes/no")["level"] == 2
    assert row_of("d,0,0,-2.0,true,ä,red", name="yes/no")["level"] == -2
    assert row_of("d,0,0,2,true,null,NA")["kind"] is None
    assert row_of("d,0,0,2,true,05,1.0")["colour"] == "1.0"  # of a column of text numbers are texts


def test_decimal_commas_row_names_encodings_and_byte_order_marks_are_read_as_in_a_file():
    pre = run_of("numbers alone").preprocessing
    lines = list(RowLines(io.BytesIO(b"far;x\n1000000,5;-2\n"), pre, decimal_comma=True))
    assert lines[0].row == {"far": 1000000.5, "x": -2.0}
    with pytest.raises(DataError, match="the separator is a comma, so a decimal comma can't be told"):
        list(RowLines(io.BytesIO(b"far,x\n1,2\n"), pre, decimal_comma=True))
    lines = list(RowLines(io.BytesIO(b"far,x\n1,1000,3\n"), pre, row_names=True))
    assert lines[0].row == {"far": 1000.0, "x": 3.0}
    latin = HEAD + "d,0,1,1,true,ä,red\n".encode("latin-1")
    assert read(latin, encoding="latin-1")[0].row["kind"] == "ä"
    assert read(b"\xef\xbb\xbf" + HEAD + b"d,0,1,1,true,b,red\r\n\r\n\n")[0].row["device"] == "d"
    for encoding in ("utf-16", "UTF-32LE"):  # no lines to be cut: the stream of such a run is UTF-8
        assert read(HEAD + "d,0,1,1,true,ä,red\n".encode(), encoding=encoding)[0].row["kind"] == "ä"
    with pytest.raises(DataError, match="encoding='utf-9' is unknown"):
        read(HEAD, encoding="utf-9")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"d,0,1", "3 fields, but the header names 7 columns: a field is missing, or the line is cut short"),
        (b"d,0,1,1,true,a,red,8", "8 fields, but the header names 7 columns: an unquoted separator"),
        (b'd,0,1,1,true,"a,red', "not a row of CSV .unexpected end of data.; a row is one line"),
        (b"d,0,1,1,true,\xff,red", "byte 0xFF is not utf-8"),
    ],
)
def test_a_bad_line_of_csv_is_told_and_the_next_one_is_read(line, message):
    bad, good = read(HEAD + line + b"\n" + b"d,0,1,1,true,a,red\n")
    assert bad.row is None
    assert re.search(message, bad.error)
    assert (bad.number, good.number) == (2, 3)
    assert good.row["far"] == 1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"x": 1', "not JSON (Expecting ',' delimiter, column 8); one object a line is expected"),
        (b"[1, 2]", 'a list, not an object such as {"x": 1}'),
        (b"nonsense", "not JSON (Expecting value, column 1)"),
        (b'{"x":' + b"[" * 100_000, "not a row: JSON that is nested too deeply"),
        (b'{"x":' + b"9" * 5000 + b"}", "not a row (Exceeds the limit"),
        (b'{"x": "\xc3"}', "byte 0xC3 is not utf-8"),
    ],
)
def test_a_bad_line_of_json_is_told_and_the_next_one_is_read(line, message):
    first, bad, good = read(b'{"x": 1}\n' + line + b"\n" + b'{"x": 2, "y": [1]}\n')
    assert first.row == {"x": 1}
    assert message in bad.error
    assert good.row == {"x": 2, "y": [1]}


def test_a_header_that_lacks_a_column_is_refused_with_the_nearest_one():
    with pytest.raises(
        DataError, match=r"standard input, line 2: the header has no column 'far'. Did you mean 'farr'\? Its columns"
    ):
        read(b"\n" + HEAD.replace(b"far", b"farr"))
    with pytest.raises(DataError, match="the header has no column 'user'"):
        read(HEAD, key=["user"])
    with pytest.raises(DataError, match="the header names 'x' more than once"):
        read(HEAD.replace(b"device", b"x"))
    with pytest.raises(DataError, match="line 1: byte 0xFF is not utf-8"):
        read(b"\xff\xfe")


def test_the_key_is_the_runs_group_where_the_first_row_has_it():
    pre = run_of("number").preprocessing
    for data, group, expected in [
        (HEAD, ("device",), ("device",)),
        (HEAD, (), ()),
        (HEAD.replace(b"device", b"user"), ("device",), ()),
        (ROW[:-2] + b', "device": 1}\n', ("device",), ("device",)),
        (b'{"user": 1}\n{"device": 1}\n', ("device",), None),
        (b"{}\n" + ROW[:-2] + b', "device": 1}\n', ("device",), ("device",)),
        (ROW + ROW[:-2] + b', "device": 1}\n', ("device",), ()),
    ]:
        lines = RowLines(io.BytesIO(data), pre, group=group)
        list(lines)
        assert lines.key == expected
    lines = RowLines(io.BytesIO(HEAD), pre, group=("device",), key=("x",))
    list(lines)
    assert lines.key == ("x",)
