"""`tidegate stream` as a process: answers come at once, signals and closed pipes lose nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from tests.helpers.runs import folder_of, run_of, sensors
from tidegate.cli import main

pytestmark = pytest.mark.usefixtures("ctrl_c")

LINES = sensors().write_csv().encode().splitlines(keepends=True)


@contextmanager
def stream(*arguments, name: str = "number"):
    process = subprocess.Popen(
        [sys.executable, "-m", "tidegate", "stream", str(folder_of(name)), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()


def send(process, *lines: bytes) -> None:
    process.stdin.write(b"".join(lines))
    process.stdin.flush()


def expected() -> list[float]:
    return run_of("number").predict(sensors())["prediction"].to_list()


@pytest.mark.long
def test_each_answer_comes_before_the_next_row_is_sent():
    with stream() as process:
        send(process, LINES[0])
        for line, prediction in zip(LINES[1:20], expected(), strict=False):
            send(process, line)
            assert json.loads(process.stdout.readline())["prediction"] == prediction
        process.stdin.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b"19 rows; 2 keys.\n"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_goes_on_where_it_was(tmp_path, number):
    state = tmp_path / "s"
    with stream("--state", state, "--save-every", 4) as process:
        send(process, *LINES[:11])
        first = [json.loads(process.stdout.readline())["prediction"] for _ in range(10)]
        process.send_signal(number)
        status = process.wait(20)
        told = process.stderr.read().decode()
    kept = 8 if number == signal.SIGKILL else 10
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 130
        assert told == f"Stopped: 10 rows; 1 key. {state} holds the states.\n"
    with stream("--state", state) as process:
        out, err = process.communicate(b"".join(LINES))
    rest = [json.loads(line)["prediction"] for line in out.splitlines()]
    assert first == expected()[:10]
    assert rest == expected()[kept:]
    assert f"after the {kept} that {state} had taken in" in err.decode()


@pytest.mark.long
def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    with stream("--state", tmp_path / "s", "--save-every", 2) as process:
        send(process, *LINES[:4])
        for _ in range(3):
            process.stdout.readline()
        process.stdout.close()
        send(process, *LINES[4:9])
        assert process.wait(20) == 141
        assert process.stderr.read() == b""
    with stream("--state", tmp_path / "s") as process:
        out, _ = process.communicate(b"".join(LINES))
    assert [json.loads(line)["prediction"] for line in out.splitlines()] == expected()[2:]


def test_bad_rows_and_wrong_options_end_with_their_status(capsysbinary, monkeypatch):
    def run(data: bytes, *arguments: str) -> tuple[int, list[dict], str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        status = main(["stream", str(folder_of("number")), *arguments])
        out, err = capsysbinary.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err.decode()

    status, (first, second), err = run(LINES[0] + b"d0\n" + LINES[1])
    assert (status, first["line"], second["prediction"]) == (0, 2, expected()[0])
    assert err == "2 rows, 1 of them bad; 1 key.\n"
    for arguments, data, message in [
        (["--strict"], LINES[0] + b"d0\n", "Error: line 2: 1 field, but the header names"),
        (["--new-rows"], b"", "--new-rows says how to go on from --state FILE"),
        (["--key", "user"], LINES[0], "the header has no column 'user'"),
        (["--probabilities"], b"", "probabilities are for classes and labels"),
    ]:
        status, out, err = run(data, *arguments)
        assert (status, out) == (2, [])
        assert message in err
    status, out, err = run(b"".join(LINES[:6]), "--key", "kind", "--key", "on")
    assert [(a["kind"], a["on"]) for a in out] == sensors()[:5].select("kind", "on").rows()
    assert run(b"") == (0, [], "0 rows.\n")


def test_limits_probabilities_and_the_runs_way_of_reading_reach_the_stream(capsysbinary, monkeypatch, tmp_path):
    def answers(folder, data: bytes, *arguments: str) -> list[dict]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["stream", str(folder), *arguments]) == 0
        return [json.loads(line) for line in capsysbinary.readouterr()[0].splitlines()]

    folder, rows = folder_of("class"), LINES[:4]
    plain = answers(folder, b"".join(rows))
    assert answers(folder, b"".join(rows), "--probabilities")[0].keys() == {"device", "prediction", "p_down", "p_up"}
    other = b"other," + rows[1].split(b",", 1)[1]
    mixed = b"".join([rows[0], rows[1], other, rows[1]])
    first, again = (
        a[-1]
        for a in (
            answers(folder, mixed, "--probabilities", "--max-keys", "1"),
            answers(folder, mixed, "--probabilities"),
        )
    )
    assert first["p_up"] != again["p_up"]
    assert answers(folder, mixed, "--probabilities", "--max-keys", "1")[0] == first
    resting = answers(folder, b"".join([rows[0], rows[1], rows[1]]), "--probabilities", "--ttl", "1e-9")
    assert resting[0] == resting[1]
    assert plain[0]["device"] == "d0"
    table = tmp_path / "t.csv"
    table.write_bytes(b"g;x;y\n" + b"".join(f"é;{k},5;{'ab'[k % 2]}\n".encode("latin-1") for k in range(40)))
    run = tmp_path / "run"
    options = ["--encoding", "latin-1", "--decimal-comma", "--hidden-size", "4", "--epochs", "1", "--no-baselines"]
    assert main(["train", str(table), "--target", "y", "--group", "g", "--out", str(run), *options]) == 0
    capsysbinary.readouterr()
    assert answers(run, b"g;x\n\xe9;1,5\n")[0]["g"] == "é"
