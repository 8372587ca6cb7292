"""CSV files as programs and people write them: what stands around the rows is no part of the table, and lines are named right."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import tracemalloc

import numpy as np
import polars as pl
import pytest

from tests.helpers.tables import QUICK, signal_table
from tidegate.cli import main
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.lines import RowLines
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table, write_table
from tidegate.errors import DataError
from tidegate.streaming.stream import Stream
from tidegate.training import train

FRAME = signal_table(groups=8, least=4, most=6).with_columns(pl.col("x").round(3))
PLAIN = FRAME.write_csv()
HEADER, *ROWS = PLAIN.splitlines()
ROLES = {"target": "label", "group": "device", "time": "t"}


def lines(*all_lines: str, end: str = "\n") -> str:
    return end.join(all_lines) + end


ONE_EMPTY = "The last column has neither a name nor a value (lines end with a comma): left out."
SPREADSHEET = [row.replace(",", ";") for row in (HEADER, *ROWS)]
# What a file looks like, and the one sentence that is said of it.
DRESSED = {
    "a separator at the end of every line": (lines(*(row + "," for row in (HEADER, *ROWS))), ONE_EMPTY),
    "a separator at the end of the header": (lines(HEADER + ",", *ROWS), ONE_EMPTY),
    "a separator at the end of the rows": (lines(HEADER, *(row + "," for row in ROWS)), ONE_EMPTY),
    "a separator at the end of some rows": (lines(HEADER, ROWS[0] + ", ", *ROWS[1:-1], ROWS[-1] + ","), ONE_EMPTY),
    "semicolons at the end of every line": (
        lines(*(row + ";;" for row in SPREADSHEET)),
        "The last 2 columns have neither a name nor a value (lines end with a semicolon): left out.",
    ),
    "comments before the header": (
        lines("# sensors, 2026", "#", "# unit: V", HEADER, *ROWS),
        "Left out as comments: 3 lines with # at the beginning.",
    ),
    "a comment after the rows": (
        lines(HEADER, *ROWS, "# end of the file"),
        "Left out as comments: 1 line with # at the beginning.",
    ),
    "blank lines before, between and after": (lines("", "", HEADER, *ROWS[:3], "", *ROWS[3:], "", ""), None),
    "two blank lines at the end": (lines(HEADER, *ROWS, "", ""), None),
    "blank lines of Windows": (lines("", HEADER, *ROWS, "", "", end="\r\n"), None),
    "a byte order mark": ("\ufeff" + PLAIN, None),
    "Excel's line on the separator": (lines("sep=;", *SPREADSHEET), None),
}
TOTALS = {
    "a total": ("Total,,1.5,,", "'Total'"),
    "a total with its sum alone": (f"total:,0,{FRAME['x'].sum():.3f},red,up", "'total:'"),
    "a total in Chinese": ("合计,,,,", "'合计'"),
    "no word": (f",{FRAME['t'].sum()},{FRAME['x'].sum():.3f},,", ""),
}


@pytest.fixture(scope="module")
def run():
    return train(read_table(FRAME), out=False, **QUICK, **ROLES, bidirectional=False)


@pytest.fixture(scope="module")
def predicted(run):
    return run.predict(FRAME)


def written(folder, text: str, name: str = "t.csv"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def streamed(run, data: bytes, **options) -> list[str]:
    stream = Stream(run)
    rows = RowLines(io.BytesIO(data), run.preprocessing, group=run.preprocessing.group, **options)
    return [stream.push(line.row, line.row["device"])["prediction"] for line in rows]


@pytest.mark.parametrize(("text", "note"), DRESSED.values(), ids=DRESSED)
def test_what_stands_around_the_rows_changes_nothing(tmp_path, run, predicted, text, note):
    path = written(tmp_path, text)
    table = read_table(path)
    assert table.frame.equals(FRAME)
    pre, data = fit_preprocessing(table, DataSettings.make(**ROLES), 0)
    assert pre.to_json() == run.preprocessing.to_json()
    assert [n for n in data.notes if "left out" in n.lower()] == ([note] if note else [])
    assert run.predict(path).equals(predicted)
    assert run.evaluate(path).model == run.evaluate(FRAME).model
    assert streamed(run, text.encode()) == predicted["prediction"].to_list()


@pytest.mark.parametrize(("text", "note"), DRESSED.values(), ids=DRESSED)
def test_rows_are_named_by_the_line_on_which_they_stand(tmp_path, text, note):
    table = read_table(written(tmp_path, text))
    for row in (0, 5, FRAME.height - 1):
        line = text.splitlines()[int(table.lines[row]) - 1]
        assert line.replace(";", ",").strip(", ") == ROWS[row]


@pytest.mark.parametrize(("last", "word"), TOTALS.values(), ids=TOTALS)
def test_a_row_of_totals_at_the_end_is_no_row_and_is_told_of(tmp_path, run, predicted, last, word):
    path = written(tmp_path, lines(HEADER, *ROWS, last))
    assert read_table(path).frame.equals(FRAME)
    told = f"t.csv, line {len(ROWS) + 2}: left out, as it holds totals ({word}"
    notes = fit_preprocessing(read_table(path), DataSettings.make(**ROLES), 0)[1].notes
    assert [n for n in notes if n.startswith(told)] == [notes[0]]
    with pytest.warns(UserWarning, match="left out, as it holds totals"):
        assert run.predict(path).equals(predicted)


def test_several_rows_of_totals_are_left_out(tmp_path):
    table = read_table(written(tmp_path, lines(HEADER, *ROWS, "Average,,0.1,,", "Sum,,3.5,,")))
    assert table.frame.equals(FRAME)
    assert [n.split(":")[0] for n in table.lost] == [f"t.csv, line {len(ROWS) + 3}", f"t.csv, line {len(ROWS) + 2}"]


@pytest.mark.parametrize(
    "rows",
    [
        ["word,tag", "the,D", "grand,A", "cat,N", "total,N"],  # a word like others
        ["kind,x", "sum,1.5", "mean,2.5", "min,0.5", "sum,3.5"],
        ["a,b", ",1", "u,0", "v,0", ",1"],  # a first cell that is empty elsewhere, too
        ["a,b", "u,1", "v,0", "w,0", ",1"],  # a 1 that happens to be the sum
        ["t,x", "1,2.5", "2,3.5", "3,4.5", ",9.5"],  # no sum
    ],
)
def test_a_last_row_that_only_looks_like_totals_stays(tmp_path, rows):
    table = read_table(written(tmp_path, lines(*rows)))
    assert table.frame.height == len(rows) - 1
    assert not table.lost


def test_a_file_without_names_says_so_and_is_read_on_request(tmp_path, run, predicted):
    text = lines(*ROWS)
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=r"no target column 'label'.* looks like a row of data.*--no-header"):
        train(path, out=False, **QUICK, **ROLES)
    table = read_table(path, header=False)
    assert table.frame.columns == [f"column_{k}" for k in range(1, 6)]
    assert table.frame.rows() == FRAME.rows()
    assert table.where(0) == "t.csv, line 1"
    roles = {"target": "column_5", "group": "column_1", "time": "column_2"}
    own = train(path, out=False, header=False, bidirectional=False, **QUICK, **roles)
    assert own.predict(path)["prediction"].to_list() == predicted["prediction"].to_list()
    rows = RowLines(io.BytesIO(text.encode()), own.preprocessing, group=["column_1"], header=False)
    stream = Stream(own)
    answers = [stream.push(line.row, line.row["column_1"])["prediction"] for line in rows]
    assert answers == predicted["prediction"].to_list()


def test_text_whose_names_are_values_looks_like_rows(tmp_path):
    path = written(tmp_path, "the,DET\ncat,NOUN\nthe,DET\n")
    with pytest.raises(DataError, match="looks like a row of data"):
        train(path, out=False, target="tag", **QUICK)
    with pytest.raises(DataError, match="no target column 'tga'") as error:
        train(written(tmp_path, PLAIN), out=False, target="tga", **QUICK)
    assert "row of data" not in str(error.value)
    with pytest.raises(DataError, match=r"'1' more than once.*--no-header"):
        read_table(written(tmp_path, "1,1,0\n2,3,4\n"))


@pytest.mark.parametrize("first", ["#device,t,x,colour,label", "# device,t,x,colour,label"])
def test_a_header_may_begin_with_a_comment_sign(tmp_path, first):
    path = written(tmp_path, lines("# of 2026", first, *ROWS))
    assert read_table(path).frame.columns == [first.split(",")[0], *FRAME.columns[1:]]


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_is_read_with_and_without_its_suffix(tmp_path, suffix):
    for name in (f"t.csv.{suffix}", "t.csv"):
        (tmp_path / name).write_bytes(PACKED[suffix](PLAIN.encode()))
        assert read_table(tmp_path / name).frame.equals(FRAME)
    for kind in ("jsonl", "parquet"):
        write_table(FRAME, tmp_path / f"t.{kind}")
        path = tmp_path / f"u.{kind}.{suffix}"
        path.write_bytes(PACKED[suffix]((tmp_path / f"t.{kind}").read_bytes()))
        assert read_table(path).frame.equals(FRAME)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)[:-20], "t.csv.gz is not a whole gzip file"),
        ("t.csv.zst", b"\x28\xb5\x2f\xfd....", "packed with Zstandard, which Tidegate doesn't read.*zstd -d"),
        ("t.csv", b"\x28\xb5\x2f\xfd....", "packed with Zstandard"),
        ("t.xlsx", b"PK\x03\x04....", "packed with zip.*an Excel file is one, too: save it as CSV"),
        ("t.gz", gzip.compress(b"a,b\n1,2\n", mtime=0), r"unknown kind of table '\(no suffix\)'.*\.csv.*\.gz"),
    ],
)
def test_what_cannot_be_unpacked_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_a_run_is_named_after_a_packed_table_without_its_suffixes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sales.csv.gz").write_bytes(gzip.compress(PLAIN.encode()))
    assert str(train("sales.csv.gz", **QUICK, **ROLES).folder) == "runs/sales"


QUOTED = 'id,note,x\n1,"two\nlines",1.5\n2,"a ""b"", c",2.5\n\n3,"\n",3.5\n'


@pytest.mark.parametrize("before", ["", "# one\n# two\n", "\n\n"])
@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("4,z\n", "2 fields, but the header names 3 columns. It looks like a missing field or a line cut short"),
        ("4,z,5,6", "4 fields, but the header names 3 columns. It looks like an unquoted separator"),
        ('4,"z,5\n', "2 fields, .* It looks like a quote that is never closed"),
    ],
)
def test_a_broken_last_line_is_named_by_its_number(tmp_path, before, last, message):
    text = before + QUOTED + last
    with pytest.raises(DataError, match=rf"t.csv, line {8 + before.count(chr(10))}: {message}"):
        read_table(written(tmp_path, text))


def test_a_bad_cell_is_named_by_its_line_behind_cells_of_several_lines(tmp_path):
    table = read_table(written(tmp_path, "# one\n\n" + QUOTED))
    assert [table.where(row) for row in range(3)] == [f"t.csv, line {k}" for k in (4, 6, 8)]
    assert table.frame.rows() == [
        (int(i), note, float(x)) for i, note, x in [row for row in csv.reader(io.StringIO(QUOTED)) if row][1:]
    ]


def test_a_name_may_hold_a_line_end(tmp_path):
    table = read_table(written(tmp_path, 'a,"b\n[V]"\n1,2\n3,4\n'))
    assert table.frame.columns == ["a", "b\n[V]"]
    assert table.where(1) == "t.csv, line 4"


def test_lines_that_end_with_a_carriage_return_alone_are_lines(tmp_path):
    assert read_table(written(tmp_path, PLAIN.replace("\n", "\r"))).frame.equals(FRAME)


def test_a_nameless_last_column_that_holds_values_is_no_empty_one(tmp_path):
    table = read_table(written(tmp_path, "a,b,\n1,2,x\n3,4,y\n"))
    assert table.frame.columns == ["a", "b", ""]
    with pytest.raises(DataError, match="line 2: 3 fields, but the header names 2 columns; so it is in every row"):
        read_table(written(tmp_path, "a,b\n1,2,NA\n3,4,NA\n"))


def test_a_packed_stream_says_how_to_unpack_it(run):
    with pytest.raises(DataError, match=r"packed with gzip\. Unpack it on the way: zcat"):
        streamed(run, gzip.compress(PLAIN.encode()))


def test_the_keys_of_a_stream_may_be_a_list(run):
    for data in (PLAIN, FRAME.write_ndjson(), lines("# two", HEADER + ",", *ROWS)):
        rows = RowLines(io.BytesIO(data.encode()), run.preprocessing, key=["colour, device"])
        assert len([*rows]) == FRAME.height
        assert rows.key == ("colour", "device")
    odd = FRAME.rename({"device": "a,b"}).write_csv().encode()
    rows = RowLines(io.BytesIO(odd), run.preprocessing, key=["a,b", "t"])
    assert len([*rows]) == FRAME.height
    assert rows.key == ("a,b", "t")


def test_the_command_line_streams_by_a_list_of_keys(tmp_path, run, monkeypatch, capfdbinary):
    run.save(tmp_path / "run")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PLAIN.encode())))
    assert main(["stream", str(tmp_path / "run"), "--key", "device,colour"]) == 0
    out, err = capfdbinary.readouterr()
    answers = pl.read_ndjson(out)
    assert answers.select("device", "colour").equals(FRAME.select("device", "colour"))
    keys = FRAME.select("device", "colour").n_unique()
    assert f"; {keys} keys." in err.decode()


def test_dressed_files_are_read_at_any_size():
    """The counting of fields by NumPy and that by a CSV reader agree, whatever stands around."""
    from tidegate.data.csv_text import look

    for text, _ in DRESSED.values():
        text = text.removeprefix("\ufeff")
        plain, quoted = look(text.encode(), "t"), look(text.replace("d0", '"d0"').encode(), "t")
        assert np.array_equal(plain.lines, quoted.lines)
        assert plain.names == quoted.names


MANY = 60_000
LINES = "".join(f"d{k % 50},{k},0.{k:07d},blue\n" for k in range(MANY))
LARGE = {
    # what stands in the file, its encoding, and how many times its size Python may hold
    "as it is": ("device,t,x,colour\n" + LINES, "utf-8", 1.5),
    "letters that take more than a byte": ("device,t,x,colour\n" + LINES.replace("blue", "漢"), "utf-8", 1.5),
    "quotes": ("device,t,x,colour\n" + LINES.replace("blue", '"blue"'), "utf-8", 1.5),
    "written anew": ("# a note\ndevice, t, x, colour\n\n" + LINES.replace(",", ", "), "utf-8", 2.5),
    "another encoding": ("device,t,x,colour\n" + LINES.replace("blue", "blé"), "latin-1", 2.5),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_file_is_held_once_while_it_is_read(tmp_path, name):
    """What polars takes for the table itself is none of Python's memory, which is counted here to the byte."""
    text, encoding, times = LARGE[name]
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    read_table(path, encoding=encoding)  # what is loaded late
    tracemalloc.start()
    try:
        table = read_table(path, encoding=encoding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.frame.height == MANY
    rows = 7 * 8 * MANY  # of each, for a moment: its line, its fields, where it begins and ends
    assert peak - rows < times * path.stat().st_size


def test_utf_16_without_a_byte_order_mark_is_read_as_a_whole(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\n1,é\n".encode("utf-16-le"))
    assert read_table(path, encoding="utf-16").frame.row(0) == (1, "é")


def test_a_byte_that_is_no_utf_8_is_named_where_a_byte_order_mark_precedes_it(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,\xff4\n")
    with pytest.raises(DataError, match=r"line 2: byte 0xFF is not utf-8"):
        read_table(path)


def test_blanks_in_a_header_alone_are_no_part_of_its_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a, b, c\n1,"x\ny",3\n4,5,6\n')
    assert read_table(path).frame.columns == ["a", "b", "c"]
