"""The loop of `tidegate stream`: an answer a row, in order, and with a state file none lost and none different."""

from __future__ import annotations

import io
import json
import signal
import warnings

import pytest

from tests.helpers.runs import folder_of, run_of, sensors
from tidegate.cli import main
from tidegate.data.lines import RowLines
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.files import DiskError
from tidegate.streaming.answers import Answers

pytestmark = pytest.mark.usefixtures("ctrl_c")


class Killed(Exception):
    pass


class DyingOutput(io.BytesIO):
    """Takes so many answers, then the process is gone."""

    def __init__(self, most: int):
        super().__init__()
        self.left = most

    def write(self, data):
        if not self.left:
            raise Killed
        self.left -= 1
        return super().write(data)


def csv(frame=None) -> bytes:
    return (sensors() if frame is None else frame).write_csv().encode()


def run_answers(data: bytes, name: str = "number", out=None, **options):
    run = run_of(name)
    lines = RowLines(io.BytesIO(data), run.preprocessing, group=run.preprocessing.group)
    out = io.BytesIO() if out is None else out
    counts = Answers(run, lines, out, **options).all()
    return [json.loads(line) for line in out.getvalue().splitlines()], counts


def told(out: io.BytesIO) -> list:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_every_row_gets_what_predict_gives_it_in_order():
    found, counts = run_answers(csv())
    frame = run_of("number").predict(sensors())
    assert [a["prediction"] for a in found] == frame["prediction"].to_list()
    assert [a["device"] for a in found] == frame["device"].to_list()
    assert (counts.rows, counts.bad, counts.skipped, counts.stopped) == (frame.height, 0, 0, False)


@pytest.mark.parametrize("died_after", [0, 1, 7, 10, 23, 30])
def test_a_killed_process_goes_on_and_every_row_has_its_one_answer(tmp_path, died_after):
    whole, _ = run_answers(csv())
    state = tmp_path / "s"
    out = DyingOutput(died_after)
    with pytest.raises(Killed):
        run_answers(csv(), out=out, state=state, save_every=10)
    first = told(out)
    again, counts = run_answers(csv(), state=state, save_every=10)
    assert counts.skipped == died_after // 10 * 10
    assert counts.skipped + counts.rows == len(whole)
    assert first == whole[:died_after]
    assert again == whole[counts.skipped :]  # those answered twice: the same answer
    once_more, counts = run_answers(csv(), state=state)
    assert once_more == []
    assert counts.skipped == len(whole)


def test_bad_rows_count_as_taken_in(tmp_path):
    lines = csv().splitlines(keepends=True)
    lines[3] = b"d0,cut\n"
    data = b"".join(lines)
    whole, counts = run_answers(data)
    assert counts.bad == 1
    assert whole[2] == {"line": 4, "error": f"line 4: 2 fields, but the header names {sensors().width} columns: a field is missing, or the line is cut short."}  # fmt: skip
    with pytest.raises(Killed):
        run_answers(data, out=DyingOutput(5), state=tmp_path / "s", save_every=3)
    again, counts = run_answers(data, state=tmp_path / "s", save_every=3)
    assert counts.skipped == 3
    assert again == whole[3:]


def test_a_row_with_an_error_does_not_touch_the_state():
    good, _ = run_answers(csv())
    lines = csv().splitlines(keepends=True)
    with_bad = b"".join([*lines[:4], lines[4].replace(b"true", b"maybe").replace(b"false", b"maybe"), *lines[4:]])
    found, counts = run_answers(with_bad)
    assert counts.bad == 1
    bad = found.pop(3)
    assert bad["line"] == 5
    assert bad["device"] == "d0"
    assert "column 'on': 'maybe' is not a number" in bad["error"]
    assert found == good


def test_another_input_is_refused_and_the_file_stays(tmp_path):
    state = tmp_path / "s"
    frame = sensors()
    run_answers(csv(frame[:20]), state=state)
    kept = state.read_bytes()
    with pytest.raises(
        DataError, match=r"has taken in 20 rows of an input, and this one begins with another row. Give it the same"
    ):
        run_answers(csv(frame[20:]), state=state)
    with pytest.raises(DataError, match="has taken in 20 rows of an input, and this one ends after 10"):
        run_answers(csv(frame[:10]), state=state)
    with pytest.raises(DataError, match="ends after 0"):
        run_answers(b"", state=state)
    lines = csv(frame).splitlines(keepends=True)
    lines[12] = lines[11]
    with pytest.raises(DataError, match="and this one has others among its first 20"):
        run_answers(b"".join(lines), state=state)
    assert state.read_bytes() == kept


def test_new_rows_go_on_from_the_states(tmp_path):
    frame, state = sensors(), tmp_path / "s"
    whole, _ = run_answers(csv())
    first, _ = run_answers(csv(frame[:33]), state=state)
    second, counts = run_answers(csv(frame[33:]), state=state, new_rows=True)
    assert (first + second, counts.skipped) == (whole, 0)
    assert run_answers(csv(frame[33:]), state=state)[1].skipped == frame.height - 33


def test_only_the_last_answer_of_each_key(tmp_path):
    whole, _ = run_answers(csv())
    last = list({a["device"]: a for a in whole}.values())
    assert run_answers(csv(), only_last=True)[0] == last
    state, frame = tmp_path / "s", sensors()
    with pytest.raises(Killed):  # a bad row is answered at once; here that is where the process dies
        run_answers(csv(frame[:50]) + b"d0\n", out=DyingOutput(0), state=state, save_every=20, only_last=True)
    found, counts = run_answers(csv(), state=state, only_last=True)
    assert (found, counts.skipped) == (last, 40)
    with pytest.raises(SettingsError, match="was written with --only-last"):
        run_answers(csv(), state=state)


def test_a_key_that_is_forgotten_gets_its_last_answer_then():
    whole, _ = run_answers(csv(), max_keys=2)
    found, _ = run_answers(csv(), only_last=True, max_keys=2)
    assert found == list({a["device"]: a for a in whole}.values())


def test_strict_stops_at_a_bad_row_and_keeps_what_came_before(tmp_path):
    state = tmp_path / "s"
    lines = csv().splitlines(keepends=True)
    bad = b"".join([*lines[:8], b"d0,cut\n", *lines[8:]])
    out = io.BytesIO()
    with pytest.raises(DataError, match="line 9: 2 fields, but the header names"):
        run_answers(bad, out=out, strict=True, state=state)
    assert told(out) == run_answers(csv())[0][:7]
    with pytest.raises(DataError, match="line 9: 2 fields"):
        run_answers(bad, strict=True, state=state)
    assert run_answers(bad, state=state)[1].skipped == 7


def test_a_key_that_can_not_be_one_is_a_bad_row():
    data = b'{"device": "a", "far": 1, "x": 2}\n{"far": 1, "x": 2}\n{"device": null, "far": 1, "x": 2}\n{"device": [1], "far": 1, "x": 2}\n'
    found, counts = run_answers(data + data[:34], "numbers alone")
    assert counts.bad == 3
    assert found[1] == {"line": 2, "error": "line 2: there is no column 'device', which says whose row it is."}
    assert found[2]["error"] == "line 3, column 'device': None can't say whose row it is; text or a number is expected."
    assert "line 4, column 'device': [1] can't say" in found[3]["error"]
    assert found[4]["device"] == "a"


def test_the_state_of_another_run_is_a_sentence_and_status_2(tmp_path, capsys, monkeypatch):
    state = tmp_path / "s"
    run_answers(csv(), state=state)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(csv())))
    assert main(["stream", str(folder_of("class")), "--state", str(state)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "s is of another run" in shown.err


def test_half_a_character_and_not_a_number_as_keys_are_bad_rows():
    good = b'{"device": "a", "far": 1, "x": 2}\n'
    found, counts = run_answers(
        good + good.replace(b'"a"', b'"\\ud800"') + good.replace(b'"a"', b"NaN") + good, "numbers alone"
    )
    assert counts.bad == 2
    assert "line" in found[1]
    assert "device" not in found[1]
    assert "holds half of a character; a key is text, a finite number" in found[1]["error"]
    assert "line 3: key=nan is not finite; a key is text" in found[2]["error"]
    assert found[3]["device"] == "a"
    odd = b'{"device": "a", "x": 2, "fa\\ud800": 1}\n'
    assert r"Did you mean 'fa\ud800'?" in run_answers(odd, "numbers alone")[0][0]["error"]


def test_strict_keeps_what_came_before_a_bad_key_too(tmp_path):
    state = tmp_path / "s"
    good = b'{"device": "a", "far": 1, "x": 2}\n'
    bad = good.replace(b'"a"', b"NaN")
    with pytest.raises(DataError, match=r"line 4: key=nan is not finite; a key is text"):
        run_answers(good * 3 + bad, "numbers alone", strict=True, state=state)
    assert run_answers(good * 3 + bad, "numbers alone", state=state)[1].skipped == 3


def test_new_rows_are_safe_to_go_on_with_from_the_first_row_on(tmp_path):
    frame, state = sensors(), tmp_path / "s"
    whole, _ = run_answers(csv())
    run_answers(csv(frame[:33]), state=state)
    with pytest.raises(Killed):
        run_answers(csv(frame[33:]), out=DyingOutput(5), state=state, new_rows=True)  # before it has saved a row
    again, counts = run_answers(csv(frame[33:]), state=state)
    assert (again, counts.skipped) == (whole[33:], 0)


def test_new_rows_that_begin_as_the_last_input_did_are_warned_of(tmp_path):
    state = tmp_path / "s"
    run_answers(csv(sensors()[:5]), state=state)
    with pytest.warns(DataWarning, match="begins with the same row as the one that .*s has taken in 5 rows of"):
        run_answers(csv(sensors()[:6]), state=state, new_rows=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_answers(csv(sensors()[7:]), state=state, new_rows=True)


def test_a_file_goes_on_with_its_own_key_alone(tmp_path):
    state = tmp_path / "s"
    run_answers(csv(sensors()[:20]), state=state)
    kept = state.read_bytes()
    for new_rows, data in ((False, csv()), (True, csv(sensors()[20:]))):
        run = run_of("number")
        lines = RowLines(io.BytesIO(data), run.preprocessing, key=["kind"])
        with pytest.raises(
            SettingsError, match=r"holds states by \['device'\], and these rows go by \['kind'\]. Say --key device"
        ):
            Answers(run, lines, io.BytesIO(), state=state, new_rows=new_rows).all()
    assert kept != b""
    assert run_answers(csv(sensors()[20:]), state=state, new_rows=True)[1].rows == sensors().height - 20


def test_the_header_is_part_of_the_input_that_a_file_knows(tmp_path):
    state = tmp_path / "s"
    data = b"device,far,x\na,1,2\na,3,4\n"
    run_answers(data, "numbers alone", state=state)
    with pytest.raises(DataError, match="begins with another row"):
        run_answers(data.replace(b"far,x", b"x,far"), "numbers alone", state=state)
    assert run_answers(data, "numbers alone", state=state)[1].skipped == 2


def test_a_first_row_that_is_none_does_not_decide_the_key():
    rows = [b'{"device": "a", "far": 1, "x": 2}\n', b'{"device": "b", "far": 1, "x": 2}\n']
    for first in (b"{}\n", b'{"device":\n', b'{"status": "ok"}\n'):
        found, counts = run_answers(first + b"".join(rows), "numbers alone")
        assert counts.bad == 1
        assert [a["device"] for a in found[1:]] == ["a", "b"]
    with pytest.warns(DataWarning, match="No key"):
        run_answers(b'{"device":\n{"far": 1, "x": 2}\n', "numbers alone")


def test_with_fewer_keys_on_resuming_those_that_go_give_their_last_answer(tmp_path):
    state = tmp_path / "s"
    rows = {key: b'{"device": "%s", "far": 1, "x": 2}\n' % key.encode() for key in "ab"}
    out = DyingOutput(0)
    with pytest.raises(Killed):
        run_answers(
            rows["a"] + rows["b"] + b"[]\n", "numbers alone", out=out, state=state, save_every=1, only_last=True
        )
    data = rows["a"] + rows["b"] + rows["a"] * 2
    found, _ = run_answers(data, "numbers alone", state=state, only_last=True, max_keys=1)
    assert [a["device"] for a in found] == ["a", "b", "a"]


def test_only_last_over_several_key_columns_survives_its_file(tmp_path):
    state, frame = tmp_path / "s", sensors()

    def go(data: bytes, out):
        run = run_of("number")
        lines = RowLines(io.BytesIO(data), run.preprocessing, key=["device", "colour"])
        Answers(run, lines, out, state=state, save_every=1, only_last=True).all()
        return told(out)

    expected = {(a["device"], a["colour"]) for a in frame.select("device", "colour").to_dicts()}
    with pytest.raises(Killed):
        go(csv(frame[:40]) + b"d0\n", DyingOutput(0))
    found = go(csv(frame), io.BytesIO())
    assert len(found) == len(expected)
    assert {(a["device"], a["colour"]) for a in found} == expected


def test_key_columns_with_names_that_answers_have_themselves():
    data = (
        b'{"line": "b", "error": 7, "prediction": 1, "far": 1, "x": 2}\n'
        + b'{"line": "b", "error": 7, "prediction": 1}\n'
    )
    run = run_of("numbers alone")
    out = io.BytesIO()
    Answers(run, RowLines(io.BytesIO(data), run.preprocessing, key=["line", "error", "prediction"]), out).all()
    good, bad = told(out)
    assert good == {"key.line": "b", "key.error": 7, "key.prediction": 1, "prediction": good["prediction"]}
    assert good["prediction"] in ("up", "down")
    assert (bad["line"], bad["key.line"]) == (2, "b")
    assert "there is no column" in bad["error"]


def test_a_full_disk_under_the_answers_is_a_sentence(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"The answers could not be written .No space left on device"):
        run_answers(csv(), out=Full())


def test_an_answer_that_could_not_be_written_is_given_again(tmp_path):
    class Filling(io.BytesIO):
        def write(self, data):
            if self.tell() > 600:
                raise OSError(28, "No space left on device")
            return super().write(data)

    out, state = Filling(), tmp_path / "s"
    with pytest.raises(DiskError):
        run_answers(csv(), out=out, state=state, save_every=3)
    first = told(out)
    again, counts = run_answers(csv(), state=state)
    whole, _ = run_answers(csv())
    assert 0 < counts.skipped <= len(first)
    assert first == whole[: len(first)]
    assert again == whole[counts.skipped :]


def test_the_last_answer_of_a_key_that_goes_is_no_bad_row_where_it_can_not_be_written():
    class FullOnce(io.BytesIO):
        failed = False

        def write(self, data):
            if not self.failed:
                self.failed = True
                raise OSError(28, "No space left on device")
            return super().write(data)

    rows = b'{"device": "a", "far": 1, "x": 2}\n{"device": "b", "far": 1, "x": 2}\n'
    out = FullOnce()
    with pytest.raises(DiskError, match="The answers could not be written"):
        run_answers(rows, "numbers alone", out=out, only_last=True, max_keys=1)
    assert out.getvalue() == b""


def test_a_state_file_that_can_not_be_written_is_told_before_the_first_answer(tmp_path):
    out = io.BytesIO()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="could not be written"):
        run_answers(csv(), out=out, state=tmp_path / "file" / "s")
    assert out.getvalue() == b""


def test_a_stop_while_it_reads_past_old_rows_leaves_the_file_as_it_was(tmp_path):
    state = tmp_path / "s"
    run_answers(csv(sensors()[:40]), state=state)
    kept = state.read_bytes()

    class Interrupting(io.BytesIO):
        def __next__(self):
            if self.tell() > 1000:
                signal.raise_signal(signal.SIGINT)
            return super().__next__()

    run = run_of("number")
    lines = RowLines(Interrupting(csv()), run.preprocessing, group=("device",))
    counts = Answers(run, lines, io.BytesIO(), state=state).all()
    assert counts.stopped
    assert state.read_bytes() == kept
    assert run_answers(csv(), state=state)[1].skipped == 40


def test_a_signal_that_the_process_was_started_to_ignore_does_not_stop_it():
    class Interrupting(io.BytesIO):
        def write(self, data):
            signal.raise_signal(signal.SIGINT)
            return super().write(data)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, counts = run_answers(csv(), out=Interrupting())
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (counts.rows, counts.stopped) == (sensors().height, False)


def test_a_second_interrupt_ends_a_write_that_stands_still(tmp_path):
    class Stuck(io.BytesIO):
        def write(self, data):
            signal.raise_signal(signal.SIGINT)
            assert not self.closed
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one was kept")

    with pytest.raises(KeyboardInterrupt):
        run_answers(csv(), out=Stuck(), state=tmp_path / "s")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run_answers(csv(), state=tmp_path / "s")[1].skipped == 0


def test_a_first_row_without_the_runs_group_is_warned_of_and_with_half_of_it_refused():
    with pytest.warns(DataWarning, match="No key: the first row has no column 'device', so all rows are one sequence"):
        run_answers(b'{"far": 1, "x": 2}\n', "numbers alone")
    lines = RowLines(
        io.BytesIO(b'{"far": 1, "x": 2, "a": 3}\n'), run_of("numbers alone").preprocessing, group=("a", "b")
    )
    with pytest.raises(DataError, match="the first row has the group column 'a' and no 'b'"):
        list(lines)
