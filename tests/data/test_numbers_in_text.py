"""Text that is numbers is read as numbers where it can be nothing else, and what was made of it is told."""

from __future__ import annotations

import io
import json
import random
import re

import numpy as np
import polars as pl
import pytest

from tests.helpers.tables import QUICK
from tidegate.cli import main
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.lines import RowLines
from tidegate.data.numerals import PLAIN, NumberFormat
from tidegate.data.preprocessing import NumberColumn, Preprocessing
from tidegate.data.rows import RowReader
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.run import load, train

VALUES = [round(1000 + 900 * (t % 7) / 7 + random.Random(t).random() * 50, 2) for t in range(120)]


def swap(text: str) -> str:
    """1,234.5 as 1.234,5."""
    return text.translate(str.maketrans(",.", ".,"))


def write(path, cell, separator=",", values=VALUES):
    """A table of t, x (as `cell` writes it) and y."""
    rows = [separator.join(["t", "x", "y"])]
    for t, value in enumerate(values):
        text = cell(value)
        text = f'"{text}"' if separator in text else text
        rows.append(f"{t}{separator}{text}{separator}{'a' if t % 3 else 'b'}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def prepare(source, **settings):
    chosen = DataSettings.make(**({"target": "y", "time": "t", "split": (1.0, 0.0, 0.0)} | settings))
    return fit_preprocessing(read_table(source, **chosen.reading), chosen, 0)


def mean_of(pre, name="x") -> float:
    (column,) = [c for c in pre.features if c.name == name]
    assert isinstance(column, NumberColumn), f"{name} is a {column.kind}"
    return column.mean


MEAN = sum(VALUES) / len(VALUES)
WAYS = {
    "thousands and cents": (lambda v: f"{v:,.2f}", ","),
    "thousands in a table with tabs": (lambda v: f"{v * 1000:,.0f}", "\t"),
    "millions": (lambda v: f"{v * 1000:,.0f}", ","),
    "dollars": (lambda v: f"${v:.2f}", ","),
    "dollars with thousands": (lambda v: f"${v:,.2f}", ","),
    "euros behind": (lambda v: f"{v:.2f} €", ","),
    "pounds": (lambda v: f"£ {v:.2f}", ","),
    "yen": (lambda v: f"¥{v * 100:.0f}", ","),
    "per cent": (lambda v: f"{v:.1f}%", ","),
    "per cent with a blank": (lambda v: f"{v:.1f} %", ","),
    "a unit": (lambda v: f"{v:.1f} kW", ","),
    "a unit without a blank": (lambda v: f"{v:.1f}kg", ","),
    "degrees": (lambda v: f"{v:.1f} °C", ","),
    "blanks around": (lambda v: f"  {v:.2f} ", ","),
    "blanks between thousands": (lambda v: f"{v * 1000:,.0f}".replace(",", " "), ","),
    "narrow blanks": (lambda v: f"{v * 1000:,.0f}".replace(",", "\u202f"), ","),
    "apostrophes": (lambda v: f"{v:,.2f}".replace(",", "'"), ","),
    "a real minus": (lambda v: f"−{v:.2f}", ","),
    "brackets for a minus": (lambda v: f"({v:,.2f})", ","),
    "a decimal comma between commas": (lambda v: f"{v:.2f}".replace(".", ","), ","),
}
SCALE = {"millions": 1000, "thousands in a table with tabs": 1000, "yen": 100, "blanks between thousands": 1000}
SCALE |= {"narrow blanks": 1000, "a real minus": -1, "brackets for a minus": -1}


@pytest.mark.parametrize("way", WAYS)
def test_a_number_is_read_however_it_is_written(tmp_path, way):
    cell, separator = WAYS[way]
    pre, data = prepare(write(tmp_path / ("t.tsv" if separator == "\t" else "t.csv"), cell, separator))
    assert mean_of(pre) == pytest.approx(MEAN * SCALE.get(way, 1), rel=1e-3)
    told = [note for note in data.notes if note.startswith("Numbers written as text, read as numbers: x (")]
    assert len(told) == (way != "blanks around")


def test_what_is_told_shows_a_cell_and_its_number(tmp_path):
    _, data = prepare(write(tmp_path / "t.csv", lambda v: f"${v:,.2f}"))
    cell = f"${VALUES[0]:,.2f}"
    assert f"Numbers written as text, read as numbers: x ({cell!r} is {VALUES[0]:g})." in data.notes


GERMAN = {
    "cents": lambda v: swap(f"{v:,.2f}"),
    "whole": lambda v: swap(f"{v * 10:,.0f}"),
    "some of each": lambda v: swap(f"{v:,.2f}" if round(v) % 2 else f"{v:,.0f}"),
    "euros": lambda v: swap(f"{v:,.2f}") + " €",
}


@pytest.mark.parametrize("way", GERMAN)
def test_dots_stand_between_thousands_where_the_comma_is_a_decimal_one(tmp_path, way):
    path = write(tmp_path / "t.csv", GERMAN[way], ";")
    pre, _ = prepare(path, decimal_comma=True)
    assert mean_of(pre) == pytest.approx(MEAN * (10 if way == "whole" else 1), rel=1e-3)
    if way != "whole":  # which nothing tells from numbers with three decimals
        with pytest.raises(DataError, match=r"looks like a number with a decimal comma.*--decimal-comma"):
            prepare(path)


def test_blanks_after_the_separator_are_no_part_of_names_numbers_times_or_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        'when, x, n, yes, word, y\n2026-01-01 00:00, 1.5, 3, true, "a, b", p\n2026-01-01 01:00,  , -2, false, c , q\n'
    )
    frame = read_table(path).frame
    assert frame.columns == ["when", "x", "n", "yes", "word", "y"]
    assert frame.dtypes == [pl.Datetime("us"), pl.Float64, pl.Int64, pl.Boolean, pl.String, pl.String]
    assert frame["word"].to_list() == ["a, b", "c"]
    assert frame["x"].to_list() == [1.5, None]


@pytest.mark.parametrize("cell", ["{:10.3f}", "{:.3f} ", " {:.3f}"])
def test_padded_numbers_and_times_are_what_they_are_without_the_blanks(tmp_path, cell):
    path = tmp_path / "t.csv"
    path.write_text("t,x,n\n" + "".join(f"  2026-01-0{k},{cell.format(k / 8)},{k:6d}\n" for k in range(1, 9)))
    frame = read_table(path).frame
    assert frame.dtypes == [pl.Date, pl.Float64, pl.Int64]
    assert frame["x"].to_list() == [k / 8 for k in range(1, 9)]


def test_blanks_inside_of_text_stay(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n x,1\ny ,2\n")
    assert read_table(path).frame["a"].to_list() == [" x", "y "]


THREE = [v * 10 for v in VALUES]  # all above 1000


def test_thousands_are_told_from_decimals_by_the_whole_column_or_asked_for(tmp_path):
    mixed = [float(v) for v in [999, 8520, 12, 1234, 4711, 5150]] * 10
    pre, _ = prepare(write(tmp_path / "mixed.tsv", lambda v: f"{v:,.0f}", "\t", mixed))
    assert mean_of(pre) == pytest.approx(sum(mixed) / len(mixed))
    path = write(tmp_path / "t.tsv", lambda v: f"{v:,.0f}", "\t")
    with pytest.raises(DataError) as error:
        prepare(path)
    for word in ("t.tsv, line 2, column 'x'", "--thousands comma", "--decimal-comma", "three digits behind it"):
        assert word in str(error.value)
    assert mean_of(prepare(path, thousands="comma")[0]) == pytest.approx(MEAN, rel=1e-3)
    assert mean_of(prepare(path, thousands=",")[0]) == pytest.approx(MEAN, rel=1e-3)
    assert mean_of(prepare(path, decimal_comma=True)[0]) == pytest.approx(MEAN / 1000, rel=1e-3)


def test_between_commas_a_quoted_comma_stands_between_thousands_and_a_note_says_so(tmp_path):
    path = write(tmp_path / "t.csv", lambda v: f"{v:,.0f}")
    pre, data = prepare(path)
    assert mean_of(pre) == pytest.approx(MEAN, rel=1e-3)
    assert any("In x every comma has three digits behind it" in n and "--thousands none" in n for n in data.notes)
    assert mean_of(prepare(path, thousands="none")[0]) == pytest.approx(MEAN / 1000, rel=1e-3)


def test_a_decimal_comma_is_not_believed_where_it_stands_between_thousands(tmp_path):
    mixed = [float(v) for v in [999, 8520, 12, 1234, 4711, 5150]] * 10
    path = write(tmp_path / "t.tsv", lambda v: f"{v:,.0f}", "\t", mixed)
    with pytest.raises(
        DataError,
        match=r"line 3, column 'x': '8,520' looks like a number with a thousands separator.*Leave decimal_comma",
    ):
        prepare(path, decimal_comma=True)
    assert mean_of(prepare(path, decimal_comma=True, thousands="none")[0]) < 999
    with pytest.raises(SettingsError, match="contradict each other"):
        prepare(path, decimal_comma=True, thousands="comma")


def test_three_decimals_and_a_euro_sign_are_asked_about(tmp_path):
    path = write(tmp_path / "t.csv", lambda v: f"{v / 1000:.3f} €")
    with pytest.raises(DataError, match=r"may have a thousands separator or a decimal dot.*--thousands dot"):
        prepare(path)
    assert mean_of(prepare(path, thousands="none")[0]) == pytest.approx(MEAN / 1000, rel=1e-3)


@pytest.mark.parametrize(
    "cells",
    [["2D", "3D"], ["1st", "2nd", "3rd"], ["10.0.0.1", "10.0.0.2"], ["05:00", "06:00"], ["3-4", "5-6"], ["1.2.3", "1.2.4"], ["A1", "B2"]],
)  # fmt: skip
def test_names_with_digits_stay_categories(tmp_path, cells):
    values = list(range(60))
    path = write(tmp_path / "t.csv", lambda v: cells[v % len(cells)], ",", values)
    pre, data = prepare(path, time=None)
    kinds = [c.kind for c in pre.features if c.name == "x"]
    assert kinds in (["category"], [])  # a time of day is left out, with a note
    assert not any("read as numbers" in note for note in data.notes)


def test_a_few_odd_cells_among_numbers_are_named_and_many_are_told_of(tmp_path):
    cell = lambda v: "broken" if v % 20 == 7 else f"{v:,.1f}"  # noqa: E731
    path = write(tmp_path / "few.csv", cell, ",", [float(v) for v in range(900, 1100)])
    with pytest.raises(
        DataError,
        match=r"few.csv, line 9, column 'x': 'broken' is not a number, while 190 other values are.*--missing broken",
    ):
        prepare(path)
    assert mean_of(prepare(path, missing="broken")[0]) == pytest.approx(1000, rel=0.01)
    cell = lambda v: "out of range" if v % 4 == 3 else f"{v:.1f}"  # noqa: E731
    path = write(tmp_path / "many.csv", cell, ",", [float(v) for v in range(200)])
    pre, data = prepare(path)
    assert [c.kind for c in pre.features] == ["category"]
    (told,) = [n for n in data.notes if "'out of range' is not a number, while 75% of the values are" in n]
    assert told.startswith("many.csv, line 5, column 'x'")
    assert '--missing "out of range"' in told
    assert "--categories x" in told
    assert mean_of(prepare(path, missing="out of range")[0]) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("spelling", ["NA", "N/A", "n/a", "NaN", "nan", "null", "None", "-", "#N/A", "?", " ", ""])
def test_the_usual_spellings_of_a_missing_number_are_known(tmp_path, spelling):
    path = write(tmp_path / "t.csv", lambda v: spelling if v % 5 == 2 else f"{v / 4}", ",", list(range(100)))
    pre, data = prepare(path)
    assert mean_of(pre) == pytest.approx(sum(v / 4 for v in range(100) if v % 5 != 2) / 80)
    assert pre.numbers[0].mask
    known = spelling in ("NA", "null", " ", "")  # of a CSV file everywhere
    spelled = "NaN in x" if spelling == "NaN" else repr(spelling)
    assert any(n.startswith("Taken as missing:") and "(20)" in n for n in data.notes) == (not known)
    assert known or any(spelled in n for n in data.notes)


def test_missing_values_are_what_the_user_says_in_every_kind_of_column_and_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "t,x,c,y\n"
        + "".join(f"{t},{-999 if t % 4 == 1 else t},{'off' if t % 3 else 'u'},{'pq'[t % 2]}\n" for t in range(40))
    )
    for source in (path, pl.read_csv(path)):
        pre, _ = prepare(source, missing="off, -999")
        assert pre.missing == ("off", "-999")
        assert pre.numbers[0].mean == pytest.approx(sum(t for t in range(40) if t % 4 != 1) / 30)
        assert pre.tokens[0].vocabulary == ("u",)
        assert Preprocessing.from_json(pre.to_json()) == pre
    assert DataSettings.make(missing=-999).missing == ("-999",)
    assert DataSettings.make(missing=["a,b", "c"]).missing == ("a", "b", "c")


def test_a_target_is_read_as_a_number_too_but_a_few_names_stay_classes(tmp_path):
    path = write(tmp_path / "t.csv", lambda v: f"${v:,.2f}")
    pre, _ = prepare(path, target="x")
    assert pre.target.task == "number"
    assert pre.target.means[0] == pytest.approx(MEAN)
    path = write(tmp_path / "classes.csv", lambda v: "-" if v % 3 == 2 else str(v % 3), ",", list(range(30)))
    assert prepare(path, target="x")[0].target.classes == ("-", "0", "1")
    assert prepare(path, target="x", task="number")[0].target.classes == ()


def test_whole_numbers_in_a_column_of_text_stay_codes_and_decimals_are_numbers():
    frame = pl.DataFrame(
        {
            "t": range(40),
            "code": [f"{k % 9:02d}" for k in range(40)],
            "x": [f"{k / 4}" for k in range(40)],
            "y": list("pq") * 20,
        }
    )
    pre, data = prepare(frame)
    assert [c.kind for c in pre.features] == ["category", "number"]
    assert any("read as numbers: x (" in note for note in data.notes)


ROWS = [f"{v:,.2f}" for v in (999.5, 8520.25, 1234567.0)]


def test_a_run_reads_later_tables_and_streams_as_it_read_its_own(tmp_path):
    path = write(tmp_path / "t.csv", lambda v: "$" + swap(f"{v:,.2f}"), ";")
    run = train(path, target="y", time="t", decimal_comma=True, out=tmp_path / "run", bidirectional=False, **QUICK)
    run = load(tmp_path / "run")
    assert run.preprocessing.formats == {"x": NumberFormat(",", ".", "$", "")}
    later = tmp_path / "later.csv"
    later.write_text("t;x\n0;$12.345\n1;$8.520\n2;-$1.234,5\n3;n/a\n")
    plain = pl.DataFrame({"t": range(4), "x": [12345.0, 8520.0, -1234.5, None]})
    right = run.predict(plain, probabilities=True)["p_a"].to_list()
    found = run.predict(later, probabilities=True)
    assert found["x"].to_list() == ["$12.345", "$8.520", "-$1.234,5", "n/a"]
    assert found["p_a"].to_list() == right
    stream = run.stream(probabilities=True)
    lines = RowLines(io.BytesIO(later.read_bytes()), run.preprocessing, **run.settings.reading)
    assert [stream.push(line.row)["p_a"] for line in lines] == right
    stream.clear()
    assert [stream.push({"x": cell})["p_a"] for cell in found["x"]] == right
    assert run.evaluate(path).model.count
    bad = tmp_path / "bad.csv"
    bad.write_text("t;x\n0;$1,5\n1;5 kg\n")
    with pytest.raises(DataError, match=r"bad.csv, line 3, column 'x': '5 kg' is not a number"):
        run.predict(bad)
    with pytest.raises(DataError, match="The row, column 'x': '5 kg' is not a number"):
        stream.push({"x": "5 kg"})


@pytest.mark.parametrize(
    ("separator", "settings"), [(";", {"decimal_comma": True}), (",", {"thousands": "dot"}), (",", {})]
)
def test_a_column_without_a_mark_is_still_text_to_a_run_that_knows_its_format(tmp_path, separator, settings):
    cell = GERMAN["some of each"] if separator == ";" else lambda v: swap(f"{v * 1000:,.0f}")
    path = write(tmp_path / "t.csv", cell, separator)
    run = train(path, target="y", time="t", out=False, **QUICK, **settings)
    assert run.preprocessing.formats == {"x": NumberFormat(",", ".")}
    later = tmp_path / "later.csv"
    later.write_text("t;x\n0;12.345\n1;8.520\n".replace(";", separator))
    plain = pl.DataFrame({"t": range(2), "x": [12345.0, 8520.0]})
    right = run.preprocessing.apply(read_table(plain), with_target=False).numbers
    assert (run.preprocessing.apply(run.read(later), with_target=False).numbers == right).all()
    lines = RowLines(io.BytesIO(later.read_bytes()), run.preprocessing, **run.settings.reading)
    for line, expected in zip(lines, right, strict=True):
        found = np.zeros(1, dtype=np.float32)
        RowReader(run.preprocessing, []).read(line.row, found, "here")
        assert found == expected


def test_dots_between_thousands_are_read_on_request_where_they_can_be(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,a,b,y\n" + "".join(f"{t},{t + 1}.{t:03d},{t}.25,{'pq'[t % 2]}\n" for t in range(40)))
    pre, _ = prepare(path, thousands="dot")
    assert mean_of(pre, "a") == pytest.approx(1001 * 19.5 + 1000)
    assert mean_of(pre, "b") == 19.75
    assert mean_of(prepare(path)[0], "a") == pytest.approx(1.001 * 19.5 + 1)


def test_the_missing_values_of_a_run_are_missing_in_its_streams_too(tmp_path):
    path = tmp_path / "t.csv"
    cells = ["-999" if v % 7 == 3 else "off" if v % 7 == 5 else str(v) for v in range(60)]
    path.write_text("t,x,y\n" + "".join(f"{t},{c},{'pq'[t % 2]}\n" for t, c in enumerate(cells)))
    run = train(path, target="y", time="t", missing=["-999", "off"], out=False, bidirectional=False, **QUICK)
    right = run.predict(path, probabilities=True)["p_p"].to_list()
    for rows in (
        path.read_bytes(),
        b"".join(json.dumps({"x": int(c) if c != "off" else c}).encode() + b"\n" for c in cells),
    ):
        stream = run.stream(probabilities=True)
        lines = RowLines(io.BytesIO(rows), run.preprocessing, **run.settings.reading)
        assert [stream.push(line.row)["p_p"] for line in lines] == right


def test_a_stream_knows_blanks_after_separators(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t, x, c, y\n" + "".join(f"{t}, {t / 8}, {'uv'[t % 2]}, {'pq'[t % 2]}\n" for t in range(40)))
    run = train(path, target="y", time="t", out=False, bidirectional=False, **QUICK)
    stream = run.stream(probabilities=True)
    lines = list(RowLines(io.BytesIO(path.read_bytes()), run.preprocessing, **run.settings.reading))
    assert lines[1].row == {"t": "1", "x": 0.125, "c": "v", "y": "q"}
    assert [stream.push(line.row)["p_p"] for line in lines] == run.predict(path, probabilities=True)["p_p"].to_list()


@pytest.mark.parametrize(
    ("form", "cell", "number"),
    [
        (PLAIN, "1.5", 1.5), (PLAIN, " -2 ", -2.0), (PLAIN, "5.", 5.0), (PLAIN, ".5", 0.5), (PLAIN, "1e3", 1000.0), (PLAIN, "1,5", None),
        (PLAIN, "", None), (PLAIN, "--1", None), (PLAIN, "(5)", -5.0), (PLAIN, "(5", None), (PLAIN, "−5", -5.0), (PLAIN, "(-5)", 5.0),
        (NumberFormat(thousands=","), "1,234,567.5", 1234567.5), (NumberFormat(thousands=","), "12,34", None), (NumberFormat(thousands=","), "12,34,567", 1234567.0),
        (NumberFormat(thousands=","), "0,126", None), (NumberFormat(thousands=","), "1234", 1234.0),
        (NumberFormat(",", "."), "1.234,5", 1234.5), (NumberFormat(",", " "), "1 234,5", 1234.5),
        (NumberFormat(before="$"), "-$5", -5.0), (NumberFormat(before="$"), "$-5", -5.0), (NumberFormat(before="$"), "-$-5", None),
        (NumberFormat(after="%"), "12.5 %", 12.5), (NumberFormat(after="%"), "12.5", None), (NumberFormat(after="km/h"), "7km/h", 7.0),
    ],
)  # fmt: skip
def test_a_cell_and_a_column_are_read_alike(form, cell, number):
    assert form.number(cell) == number
    assert form.read(pl.Series([cell, None])).to_list() == [number, None]


def test_cells_and_columns_agree_to_the_last_bit():
    draw = random.Random(3)
    numbers = [draw.uniform(-1, 1) * 10 ** draw.randint(-8, 15) for _ in range(2000)]
    for form, cells in (
        (NumberFormat(thousands=","), [f"{v:,.{draw.randint(0, 12)}f}" for v in numbers]),
        (PLAIN, [repr(v) for v in numbers]),
    ):
        assert form.read(pl.Series(cells)).to_list() == [form.number(c) for c in cells]


def test_the_command_line_takes_missing_values_and_thousands(tmp_path, capsys):
    path = write(tmp_path / "t.tsv", lambda v: "off" if int(v) % 9 == 4 else f"{v:,.0f}", "\t")
    quick = ["--hidden-size", "8", "--epochs", "1", "--no-baselines", "--device", "cpu"]
    arguments = [
        "train",
        str(path),
        "--target",
        "y",
        "--time",
        "t",
        "--missing",
        "n/a,off,-1",
        "--thousands",
        "comma",
        *quick,
    ]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().err
    assert "Reads 1 number;" in shown
    assert "read as numbers: x ('1," in shown
    assert load(tmp_path / "run").settings.missing == ("n/a", "off", "-1")
    again = [
        "train",
        str(path),
        "--target",
        "y",
        "--time",
        "t",
        "--missing",
        "-",
        "--missing",
        "-999",
        "--missing=off",
        *quick,
    ]
    assert main([*again, "--thousands", ",", "--out", str(tmp_path / "again")]) == 0
    assert load(tmp_path / "again").settings.missing == ("-", "-999", "off")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            lambda k: f"{k + 0.5} kg" if k % 3 else f"{k * 1000} g",
            "'0 g'|'1.5 kg' has another sign or unit than '1.5 kg'",
        ),
        (lambda k: f"{k + 0.5}k" if k % 2 else f"{k + 0.5}M", "has another sign or unit than"),
        (
            lambda k: f"${k}.50" if k % 5 else f"€{k}.50",
            r"line 2, column 'x': '€0.50' has another sign or unit than '\$1.50' \(line 3\)",
        ),
    ],
)
def test_two_units_in_a_column_are_told_of(tmp_path, cell, message):
    path = write(tmp_path / "t.csv", cell, ",", list(range(100)))
    pre, data = prepare(path)
    assert [c.kind for c in pre.features] == ["category"]
    (note,) = [n for n in data.notes if re.search(message, n)]
    assert "Write all values in one unit" in note
    assert len(data.notes) == 2, "beside the split"
    assert "--categories x" in note


def test_one_cell_in_another_unit_stops_training(tmp_path):
    path = write(tmp_path / "t.csv", lambda k: "500 g" if k == 7 else f"{k + 0.5} kg", ",", list(range(100)))
    with pytest.raises(
        DataError, match=r"line 9, column 'x': '500 g' has another sign or unit than '0.5 kg' \(line 2\) and most other"
    ):
        prepare(path)


def test_a_sign_may_be_that_of_any_country_and_a_unit_of_two_words(tmp_path):
    for cell in ("R$ {:,.2f}", "₹{:,.2f}", "{:.2f} zł", "SEK {:.2f}", "{:.2f} sq ft", "{:.2f} kWh/m²"):
        pre, _ = prepare(write(tmp_path / "t.csv", cell.format))
        assert mean_of(pre) == pytest.approx(MEAN, rel=1e-3)


def test_dots_between_thousands_ask_for_the_decimal_comma_that_goes_with_them(tmp_path):
    path = write(tmp_path / "t.csv", lambda v: swap(f"{v * 1000:,.0f}"), ";")
    with pytest.raises(
        DataError, match=r"looks like a number with dots between thousands, and so a decimal comma.*--decimal-comma"
    ):
        prepare(path)


def test_padded_numbers_are_keys_without_the_blanks():
    pre, _ = prepare(
        pl.DataFrame(
            {"t": range(40), "g": [k % 4 for k in range(40)], "x": [k / 8 for k in range(40)], "y": list("pq") * 20}
        ),
        group="g",
    )
    lines = RowLines(io.BytesIO(b"g,x\n  7,1\n 12,2\n  a,3\n"), pre, group=pre.group)
    assert [line.row["g"] for line in lines] == ["7", "12", "  a"]


def test_what_an_earlier_version_would_misread_is_of_a_later_version_of_the_file(tmp_path):
    plain, texts = (
        train(write(tmp_path / f"{k}.csv", cell), target="y", time="t", out=False, **QUICK).preprocessing
        for k, cell in enumerate((str, lambda v: f"{v} kg"))
    )
    assert [json.loads(p.to_json())["version"] for p in (plain, texts)] == [1, 2]
    assert Preprocessing.from_json(texts.to_json()) == texts
    with pytest.raises(RunError, match="written by a newer Tidegate"):
        Preprocessing.from_json(texts.to_json().replace('"version": 2', '"version": 4'))


def test_an_export_says_of_which_columns_it_takes_the_number_alone(tmp_path):
    path = write(tmp_path / "t.csv", lambda v: f"${v:,.2f}")
    run = train(path, target="y", time="t", out=False, bidirectional=False, **QUICK)
    note = "The run reads numbers in text: x ('$1,234.5'). This file takes them as numbers (1234.5)."
    assert run.export("c", tmp_path / "a.h").notes[-1] == note
    plain = train(write(tmp_path / "u.csv", str), target="y", time="t", out=False, bidirectional=False, **QUICK)
    assert note not in plain.export("c", tmp_path / "b.h").notes
