"""Times with the day or the month first are read as their column allows, and never guessed."""

from __future__ import annotations

import datetime as dt
import warnings

import polars as pl
import pytest

from tests.helpers.tables import QUICK
from tidegate.cli import main
from tidegate.data.arrange import arrange
from tidegate.data.dates import read_dates
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.errors import DataError, DataWarning, UserError
from tidegate.run import train

EARLY = [dt.datetime(2026, 1 + k // 4, 1 + k % 4) for k in range(40)]  # in either order dates
DAYS = [dt.datetime(2025, 12, 28) + dt.timedelta(days=3 * k, hours=k) for k in range(40)]


def write(path, form, days=DAYS, order=None):
    """A table whose rows are shuffled, so that the order of time shows; x counts in that order."""
    rows = [f"{day.strftime(form)},{k / 4},{'pq'[k % 2]}" for k, day in enumerate(days)]
    order = order or [(7 * k) % len(rows) for k in range(len(rows))]
    path.write_text("\n".join(["when,x,y", *(rows[k] for k in order)]) + "\n")
    return path


def prepare(source, **settings):
    chosen = DataSettings.make(**({"target": "y", "time": "when", "split": (1.0, 0.0, 0.0)} | settings))
    return fit_preprocessing(read_table(source, **chosen.reading), chosen, 0)


def in_order(data) -> bool:
    return bool((data.numbers[1:, 0] > data.numbers[:-1, 0]).all())


FORMS = {
    "%d/%m/%Y": "dmy", "%m/%d/%Y": "mdy", "%d-%m-%Y": "dmy", "%d.%m.%Y": "dmy", "%d/%m/%y": "dmy", "%m/%d/%y": "mdy",
    "%m/%d/%Y %H:%M": "mdy", "%d/%m/%Y %H:%M:%S": "dmy", "%m/%d/%Y %I:%M %p": "mdy", " %m/%d/%Y ": "mdy",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_column_says_what_comes_first_and_a_note_says_why(tmp_path, form):
    pre, data = prepare(write(tmp_path / "t.csv", form))
    assert pre.date_order == FORMS[form]
    assert in_order(data)
    (note,) = [n for n in data.notes if n.startswith("The times in 'when' are read with")]
    assert f"with the {'day' if FORMS[form] == 'dmy' else 'month'} first, as '" in note
    assert "(t.csv, line " in note
    assert Preprocessing.from_json(pre.to_json()) == pre
    data = prepare(tmp_path / "t.csv", date_order=FORMS[form])[1]
    assert in_order(data)
    assert len(data.notes) == 1


def test_where_both_are_possible_the_user_is_asked(tmp_path):
    path = write(tmp_path / "t.csv", "%m/%d/%Y", EARLY)
    with pytest.raises(
        DataError,
        match=r"t.csv, line 2, column 'when': '01/01/2026' may have the day or the month first.*--date-order dmy",
    ):
        prepare(path)
    assert in_order(prepare(path, date_order="mdy")[1])
    assert not in_order(prepare(path, date_order="dmy")[1])
    dots = write(tmp_path / "dots.csv", "%d.%m.%Y", EARLY)
    data = prepare(dots)[1]
    assert in_order(data)
    assert any("with the day first, as dates with dots have it" in note for note in data.notes)


def test_times_in_two_orders_or_two_forms_are_named_with_their_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("when,x,y\n01/02/2026,1,p\n13/02/2026,2,q\n02/14/2026,3,p\n")
    with pytest.raises(
        DataError,
        match=r"line 4, column 'when': '02/14/2026' has the month first, and '13/02/2026' before it has the day first",
    ):
        prepare(path)
    path.write_text("when,x,y\n13/02/2026,1,p\n2026-02-14,2,q\n")
    with pytest.raises(DataError, match=r"line 3, column 'when': '2026-02-14' is not written as '13/02/2026' is"):
        prepare(path)
    path.write_text("when,x,y\n2026-02-14,1,p\n15/02/2026,2,q\n")
    with pytest.raises(DataError, match=r"line 3, column 'when': '15/02/2026' is not a time"):
        prepare(path)
    path.write_text("when,x,y\n13/02/2026,1,p\n14/02/2026,2,q\n")
    with pytest.raises(DataError, match=r"line 2, column 'when': '13/02/2026' is no date that has the month first"):
        prepare(path, date_order="mdy")
    path.write_text("when,x,y\n31/02/2026,1,p\n14/02/2026,2,q\n")
    with pytest.raises(DataError, match=r"'31/02/2026' is no date that has the day first"):
        prepare(path)


def test_a_later_table_is_read_as_the_first_one_was(tmp_path):
    run = train(write(tmp_path / "t.csv", "%m/%d/%Y"), target="y", time="when", out=False, **QUICK)
    later = tmp_path / "later.csv"
    later.write_text("when,x\n03/01/2026,3\n02/05/2026,2\n01/09/2026,1\n")
    data = run.preprocessing.apply(run.read(later), with_target=False)
    assert in_order(data)
    iso = train(write(tmp_path / "iso.csv", "%Y-%m-%d"), target="y", time="when", out=False, **QUICK)
    assert iso.preprocessing.date_order == ""
    with pytest.warns(DataWarning, match=r"later.csv, line 2, column 'when': '03/01/2026' is read with the day first"):
        iso.predict(later)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.predict(later)


def test_text_in_memory_is_read_like_text_in_a_file():
    frame = pl.DataFrame(
        {"when": [day.strftime("%m/%d/%Y") for day in DAYS], "x": [k / 4 for k in range(40)], "y": ["p", "q"] * 20}
    )
    pre, data = prepare(frame.sample(fraction=1.0, shuffle=True, seed=1))
    assert pre.date_order == "mdy"
    assert in_order(data)


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y"])
def test_dates_without_a_role_are_left_out_and_no_target(tmp_path, form):
    path = write(tmp_path / "t.csv", form)
    pre, data = prepare(path, time=None)
    assert [c.name for c in pre.features] == ["x"]
    assert any("Left out, as neither numbers nor text: when (dates)." in note for note in data.notes)
    for settings in ({"features": ["x", "when"], "time": None}, {"target": "when", "time": None}):
        with pytest.raises(UserError, match="'when' holds dates"):
            prepare(path, **settings)


def test_times_that_begin_with_the_year_are_read_as_ever(tmp_path):
    path = tmp_path / "t.csv"
    for text, dtype in (
        ("2026-01-02", pl.Date),
        ("2026/01/02", pl.Date),
        ("2026-01-02 03:04:05", pl.Datetime("us")),
        ("2026-01-02T03:04", pl.Datetime("us")),
    ):
        path.write_text(f"when,x\n{text},1\n\n{text},2\n,3\n")
        assert read_table(path).frame["when"].dtype == dtype
    arranged = arrange(
        read_table(pl.DataFrame({"when": [" 2026-01-02 ", "2026-01-01"], "x": [1, 2]})),
        group=[],
        time="when",
        used=["x"],
    )
    assert arranged.column("x").to_list() == [2, 1]


def test_the_command_line_takes_the_order(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "%m/%d/%Y", EARLY)
    arguments = [
        "train",
        str(path),
        "--target",
        "y",
        "--time",
        "when",
        "--out",
        str(tmp_path / "run"),
        "--hidden-size",
        "8",
        "--epochs",
        "1",
        "--no-baselines",
    ]
    assert main(arguments) == 2
    assert "--date-order dmy" in capsys.readouterr().err
    assert main([*arguments, "--date-order", "mdy"]) == 0


def test_the_time_of_day_is_read_too():
    cells = ["31/12/2025 11:59 PM", "01/01/2026 12:00 am", "01/01/2026 12:05 PM", "1/1/26 9:30:15.25 pm", "02/01/26"]
    table = read_table(pl.DataFrame({"when": cells}))
    times, order, _ = read_dates(table, "when", "auto")
    assert order == "dmy"
    assert times.to_list() == [
        dt.datetime(2025, 12, 31, 23, 59),
        dt.datetime(2026, 1, 1, 0, 0),
        dt.datetime(2026, 1, 1, 12, 5),
        dt.datetime(2026, 1, 1, 21, 30, 15, 250_000),
        dt.datetime(2026, 1, 2),
    ]
    for wrong in ("31/12/2025 24:00", "31/12/2025 9:75", "31/12/2025 9"):
        with pytest.raises(DataError, match="row 2, column 'when'"):
            read_dates(read_table(pl.DataFrame({"when": [cells[0], wrong]})), "when", "auto")
