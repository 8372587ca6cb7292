"""A stream that is told the times of its rows: late and repeated rows, whichever way they come, and what its files remember."""

from __future__ import annotations

import io
import json
from datetime import date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.runs import run_of, sensors
from tests.helpers.streams import GOOD, new_stream
from tidegate.data.lines import RowLines
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.streaming import StreamState
from tidegate.streaming.answers import Answers
from tidegate.streaming.times import LateError, Moment, moment_of
from tidegate.training import train


def row(t: object) -> dict:
    return GOOD | {"t": t}


def answers(data: bytes, name: str = "number", **options):
    run = run_of(name)
    time = options.get("time")
    lines = RowLines(io.BytesIO(data), run.preprocessing, group=run.preprocessing.group, time=time)
    out = io.BytesIO()
    counts = Answers(run, lines, out, **options).all()
    return [json.loads(line) for line in out.getvalue().splitlines()], counts


def test_rows_in_the_order_of_their_time_are_answered_as_without_it():
    timed, plain = new_stream("number", time="t"), new_stream("number")
    rows = sensors().rows(named=True)
    keys = sensors()["device"].to_list()
    assert [timed.push(r, k) for r, k in zip(rows, keys, strict=True)] == [
        plain.push(r, k) for r, k in zip(rows, keys, strict=True)
    ]


@pytest.mark.parametrize("late", [3, 2.5, 0])
def test_a_late_or_repeated_row_is_refused_and_its_key_stands_where_it_stood(late):
    stream = new_stream("number", time="t")
    stream.push(row(1), "a")
    stream.push(row(3), "a")
    before = stream.state("a")
    with pytest.raises(
        LateError,
        match=rf"The row, column 't': {late} is not after 3, the last time of 'a': this row is late or repeated, and is left out. "
        r"To take such rows all the same, say late='take' \(--late take\)\.",
    ):
        stream.push(row(late), "a")
    assert stream.state("a") == before
    assert stream.keys() == ["a"]
    stream.push(row(late), "b")  # each key has its own time
    stream.push(row(4), "a")


def test_a_late_row_is_taken_where_that_is_asked_for_and_the_latest_time_stays():
    stream, plain = new_stream("number", time="t", late="take"), new_stream("number")
    assert [stream.push(row(t)) for t in (3, 3, 1)] == [plain.push(row(t)) for t in (3, 3, 1)]
    assert stream.state().time == Moment("number", 3)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), min_size=1, max_size=8))
def test_push_many_refuses_what_push_refuses_and_then_takes_nothing(rows):
    one, many = new_stream("one number", time="t"), new_stream("one number", time="t")
    keys = [key for key, _ in rows]
    expected, wrong = [], False
    for key, t in rows:
        try:
            expected.append(one.push(row(t), key))
        except LateError:
            wrong = True
            break
    if wrong:
        with pytest.raises(LateError, match=r"^Row "):
            many.push_many([row(t) for _, t in rows], keys)
        assert len(many) == 0
    else:
        assert many.push_many([row(t) for _, t in rows], keys) == expected
        assert {key: many.state(key) for key in many} == {key: one.state(key) for key in one}


def test_a_key_that_begins_anew_has_no_last_time():
    now = [0.0]
    stream = new_stream("number", time="t", ttl=10, clock=lambda: now[0])
    stream.push(row(5), "a")
    now[0] = 11
    stream.push(row(5), "a")
    stream.reset("a")
    stream.push_many([row(1), row(2)], ["a", "a"])
    with pytest.raises(LateError):
        stream.push(row(2), "a")


@pytest.mark.parametrize(
    "text", ["2026-11-23", "2026-11-23 14:05", "2026-11-23T14:05:00.5", "2026-11-23T14:05:00Z", "17", "1e3"]
)
def test_text_is_read_as_the_number_or_date_that_it_is(text):
    python = (
        datetime.fromisoformat(text.replace("Z", "+00:00").replace("0.5", "0.500000")) if "-" in text else float(text)
    )
    assert moment_of(text, "here") == moment_of(python, "here")
    assert moment_of(f" {text} ", "here") == moment_of(text, "here")


def test_times_are_compared_to_the_nanosecond_and_across_time_zones():
    early, later = "2026-11-23 14:05:00.000000001", "2026-11-23 14:05:00.000000002"
    assert moment_of(early, "").value < moment_of(later, "").value
    assert moment_of(np.datetime64(early.replace(" ", "T")), "") == moment_of(early, "")
    assert str(moment_of(later, "")) == later
    assert moment_of(1_764_500_000_000_000_001, "") > moment_of("1764500000000000000", "")
    assert moment_of("2026-11-23 14:05:00+02:00", "") == moment_of("2026-11-23T12:05:00Z", "")
    there = timezone(timedelta(hours=2))
    assert moment_of(datetime(2026, 11, 23, 14, 5, tzinfo=there), "") == moment_of("2026-11-23 14:05+02", "")
    assert moment_of(date(2026, 11, 23), "") == moment_of("2026-11-23", "")
    assert moment_of("1969-12-31 23:59:59.5", "").value == -(10**9) // 2
    assert str(moment_of("1969-12-31 23:59:59.5", "")) == "1969-12-31 23:59:59.5"
    assert moment_of("1,5", "", decimal_comma=True) == Moment("number", 1.5)


@pytest.mark.parametrize(
    "value", ["01/02", "yesterday", "2026-02-30", "1,5", float("inf"), True, [1], {}, np.array([1, 2])]
)
def test_what_is_no_time_is_told_and_not_guessed(value):
    with pytest.raises(
        DataError, match=r"line 3: .* is not a time. Write times as 2026-11-23 14:05:00, or as numbers."
    ):
        moment_of(value, "line 3")


@pytest.mark.parametrize("value", [None, "", " ", float("nan"), np.datetime64("NaT")])
def test_a_missing_time_is_told(value):
    with pytest.raises(DataError, match="line 3: the time is missing"):
        moment_of(value, "line 3")


def test_a_row_without_the_column_and_times_of_two_kinds_are_told():
    stream = new_stream("number", time="t")
    for without in (GOOD, list(GOOD.values())):
        with pytest.raises(DataError, match="The row: there is no column 't', which holds the time"):
            stream.push(without)
    stream.push(row("2026-11-23"))
    with pytest.raises(
        DataError, match="5 is a number, and the last time, 2026-11-23 00:00:00, a date: they can't be compared"
    ):
        stream.push(row(5))
    named = new_stream("one number", time="far")
    assert named.push([1.0]) is not None
    with pytest.raises(LateError):
        named.push([1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"time": "t", "late": "drop"}, "late='drop': expected"), ({"late": "take"}, "Name the column")],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        new_stream("number", **options)


# ------------------------------------------------------------------------------------------------ files


def test_a_state_and_a_file_of_states_remember_the_last_time_of_each_key(tmp_path):
    stream = new_stream("number", time="t")
    times = {"a": 5, "b": 2.5, "c": "2026-11-23 14:05:00.000000001", "d": "2026-11-23 14:05Z"}
    for key, t in times.items():
        stream.push(row(t), key)
    stream.save(tmp_path / "s")
    other, third = new_stream("number", time="t"), new_stream("number", time="t")
    other.restore(tmp_path / "s")
    for key, t in times.items():
        moved = StreamState.from_bytes(stream.state(key).to_bytes())
        assert moved == stream.state(key)
        third.put(moved, key)
        for one in (other, third):
            with pytest.raises(LateError):
                one.push(row(t), key)
            assert one.state(key) == stream.state(key)


def test_a_stream_without_times_writes_the_bytes_that_it_wrote_before(tmp_path):
    plain, timed = new_stream("number"), new_stream("number", time="t")
    plain.push(row(1), "a")
    timed.push(row(1), "a")
    headers = []
    for stream in (plain, timed):
        stream.save(tmp_path / "s")
        data = (tmp_path / "s").read_bytes()
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        headers.append((json.loads(head["__metadata__"]["tidegate"])["version"], "times" in head))
    assert headers == [(1, False), (2, True)]


@pytest.mark.parametrize("damage", [b"[", b"[]", b'[["year", 3]]', b'[["number", "3"]]', b'[["date", 1.5]]', b"[7]"])
def test_a_file_whose_times_are_damaged_is_refused(tmp_path, damage):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    stream = new_stream("number", time="t")
    stream.push(row(1), "a")
    path = tmp_path / "s"
    stream.save(path)
    with safe_open(str(path), "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        header = file.metadata()
    save_file(tensors | {"times": np.frombuffer(damage, dtype=np.uint8)}, str(path), header)
    with pytest.raises(DataError, match="s: not the state of a stream, or damaged"):
        new_stream("number", time="t").restore(path)


# ------------------------------------------------------------------------------------------------ the command


def csv(frame=None) -> bytes:
    return (sensors() if frame is None else frame).write_csv().encode()


def test_answers_hold_the_line_and_the_time_of_their_row():
    found, counts = answers(csv(), time="t")
    assert [a["line"] for a in found] == list(range(2, sensors().height + 2))
    assert [int(a["t"]) for a in found] == sensors()["t"].to_list()
    plain, _ = answers(csv())
    assert [{k: v for k, v in a.items() if k not in ("line", "t")} for a in found] == plain
    assert (counts.bad, counts.late) == (0, 0)


def test_a_late_row_gets_an_error_and_the_rows_after_it_the_answers_they_had():
    lines = csv().splitlines(keepends=True)
    key = lines[5].split(b",", 1)[0]
    assert lines[4].startswith(key + b",")
    whole, _ = answers(b"".join(lines), time="t")
    found, counts = answers(b"".join([*lines[:6], lines[4], *lines[6:]]), time="t")
    bad = found.pop(5)
    assert (bad["line"], bad["device"], bad["t"]) == (7, key.decode(), lines[4].split(b",")[1].decode())
    assert "is late or repeated, and is left out" in bad["error"]
    assert [a["prediction"] for a in found] == [a["prediction"] for a in whole]
    assert (counts.bad, counts.late) == (1, 1)
    taken, counts = answers(b"".join([*lines[:6], lines[4], *lines[6:]]), time="t", late="take")
    assert counts.bad == 0
    assert "prediction" in taken[5]


def test_rows_that_are_sent_again_after_a_crash_are_known_by_their_time(tmp_path):
    lines = csv().splitlines(keepends=True)
    whole, _ = answers(b"".join(lines), time="t")
    answers(b"".join(lines[:21]), time="t", state=tmp_path / "s")
    found, counts = answers(lines[0] + b"".join(lines[16:]), time="t", state=tmp_path / "s", new_rows=True)
    assert counts.late == 5
    assert [a["prediction"] for a in found[5:]] == [a["prediction"] for a in whole[20:]]


def test_a_time_column_may_have_a_name_that_answers_have_themselves():
    data = b'{"line": 3, "device": "a", "far": 1, "x": 2}\n{"line": null, "device": "a", "far": 1, "x": 2}\n'
    good, bad = answers(data, "numbers alone", time="line")[0]
    assert (good["line"], good["time.line"], good["device"]) == (1, 3, "a")
    assert bad.keys() == {"line", "device", "error"}
    assert "column 'line': the time is missing" in bad["error"]
    nan = answers(b'{"t": NaN, "device": "a", "far": 1, "x": 2}\n', "numbers alone", time="t")[0]
    assert nan[0].keys() == {"line", "device", "error"}


def test_a_header_without_the_time_is_refused_and_so_is_a_key_that_is_the_time():
    with pytest.raises(DataError, match=r"the header has no column 'tt'\. Did you mean 't'\?"):
        answers(csv(), time="tt")
    run = run_of("number")
    lines = RowLines(io.BytesIO(csv()), run.preprocessing, key=["t"], time="t")
    with pytest.raises(SettingsError, match="time and key both name the column 't'"):
        Answers(run, lines, io.BytesIO(), time="t")


# ------------------------------------------------------------------------------------------------ empty columns


def gone(rows: int, *names: str) -> bytes:
    values = GOOD | {"device": "a"} | dict.fromkeys(names)
    return b"".join(json.dumps(values).encode() + b"\n" for _ in range(rows))


@pytest.mark.parametrize("rows", [10, 1_000, 2_500])
def test_a_column_that_is_empty_in_all_rows_is_told_once(rows):
    told = min(rows, 1_000)
    with pytest.warns(DataWarning) as caught:
        answers(gone(rows, "far"))
    assert [str(w.message) for w in caught] == [
        f"column 'far' is empty in all {told:,} rows so far, and the run reads it: its predictions do without."
    ]
    with pytest.warns(
        DataWarning, match="columns 'far', 'kind' are empty in all 10 rows so far, and the run reads them"
    ):
        answers(gone(10, "kind", "far"))


def test_a_column_with_a_value_or_a_few_rows_are_not_worth_a_word(recwarn):
    answers(gone(9, "far") + gone(1))
    answers(gone(9, "far"))
    answers(b"")
    answers(gone(1, "far") + b"[]\n" * 20)
    assert list(recwarn) == []


@pytest.mark.parametrize(
    ("order", "text", "same"),
    [
        ("dmy", "31/12/2026", "2026-12-31"),
        ("mdy", "12/31/26 2:05 PM", "2026-12-31 14:05"),
        ("dmy", " 1.2.2026 12:00:30.5 am", "2026-02-01 00:00:30.5"),
        ("mdy", "1/2/69", "1969-01-02"),
        ("dmy", "2026-12-31T14:05Z", "2026-12-31T14:05Z"),
    ],
)
def test_dates_are_read_in_the_order_of_the_training(order, text, same):
    assert moment_of(text, "here", date_order=order) == moment_of(same, "here")


def test_a_day_that_is_none_in_that_order_is_no_time():
    with pytest.raises(DataError, match="'12/31/2026' is not a time"):
        moment_of("12/31/2026", "here", date_order="dmy")


def test_a_stream_reads_the_times_of_its_run_as_the_table_had_them():
    times = [f"{1 + k % 28:02}/{1 + k // 28:02}/2026" for k in range(40)]
    table = pl.DataFrame({"day": times, "x": np.arange(40.0) % 7, "y": np.arange(40.0) % 5})
    run = train(table, "y", time="day", hidden_size=2, epochs=1, baselines=False, progress=False, out=False)
    stream = run.stream(time="day")
    stream.push({"day": "09/02/2026", "x": 1.0, "y": 0.0})
    with pytest.raises(LateError):
        stream.push({"day": "10/01/2026", "x": 1.0, "y": 0.0})  # the tenth of January; month first, it would come later
    with pytest.raises(
        DataError, match=r"column 'other': '09/02/2026' may have the day or the month first.*--date-order dmy"
    ):
        run.stream(time="other").push({"other": "09/02/2026", "x": 1.0, "y": 0.0})


def test_the_order_of_a_streams_dates_can_be_said():
    month_first, day_first = (new_stream("number", time="day", date_order=order) for order in ("mdy", "dmy"))
    for stream in (month_first, day_first):
        stream.push(GOOD | {"day": "09/02/2026"})
    month_first.push(GOOD | {"day": "10/01/2026"})
    with pytest.raises(LateError):
        day_first.push(GOOD | {"day": "10/01/2026"})
    with pytest.raises(SettingsError, match="date_order='ymd': expected 'auto', 'dmy' or 'mdy'"):
        new_stream("number", time="other", date_order="ymd")


def test_a_stream_reads_dates_in_the_order_that_was_said_in_training():
    table = pl.DataFrame({"x": np.arange(40.0) % 7, "y": np.arange(40.0) % 5})
    run = train(table, "y", date_order="dmy", hidden_size=2, epochs=1, baselines=False, progress=False, out=False)
    stream = run.stream(time="day")
    stream.push({"day": "09/02/2026", "x": 1.0})
    with pytest.raises(LateError):
        stream.push({"day": "10/01/2026", "x": 1.0})
