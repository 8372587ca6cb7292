"""`tidegate bench` as a person uses it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

from tidegate.bench import launch
from tidegate.bench.measure import Row
from tidegate.bench.peers import PEERS
from tidegate.cli import main

pytestmark = pytest.mark.usefixtures("idle")
TINY = ["bench", "--shape", "2,3,4,5", "--threads", "1", "--rounds", "1"]
ABOUT = {"backend": "native", "isa": "avx2", "peak_gflops": 50.0, "no_peak": ""}


def row(peer: str, median_us: float | None, **more) -> dict:
    fields = {"kind": "forward", "threads": 1, "B": 2, "T": 3, "I": 4, "H": 5, "layers": 1, "peer": peer}
    return fields | {"version": peer, "status": "ok", "median_us": median_us} | more


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 3.0, 3.0), raising=False)


@pytest.fixture
def events(monkeypatch):
    """What the measuring process says, put in by the test; an exception among it is raised. Also what was asked of it."""
    said, asked = [], []

    def run(*job):
        asked.append(job)
        for event in said:
            if isinstance(event, BaseException):
                raise event
            yield event

    monkeypatch.setattr(launch, "run", run)
    said.append(ABOUT)
    return said, asked


@pytest.mark.long
def test_a_run_prints_the_tables_tells_of_each_cell_and_writes_the_raw_rows(tmp_path, capsys):
    out = tmp_path / "new" / "bench.csv"
    assert main([*TINY, "--kind", "forward", "--kind", "step", "--peers", "torch,torch-cell", "--csv", str(out)]) == 0
    shown = capsys.readouterr()
    assert "forward, 1 thread: microseconds a call" in shown.out
    assert "single step, 1 thread: microseconds a call" in shown.out
    assert "forward+backward" not in shown.out
    assert "1 thread: tidegate runs '" in shown.out
    assert "2 3 4 5 1 " in shown.out
    assert shown.err.splitlines() == [
        "1 thread: forward, B 2, T 3, I 4, H 5",
        "1 thread: single step, B 2, T 1, I 4, H 5",
    ]
    first, *rest = out.read_text().splitlines()
    assert first.startswith("# ")
    assert ", 1 thread, " in first
    assert shown.out.splitlines()[0] == first.removeprefix("# ")
    assert [(r["kind"], r["peer"], r["status"]) for r in csv.DictReader(rest)] == [
        ("forward", "tidegate", "ok"),
        ("forward", "torch", "ok"),
        ("step", "tidegate", "ok"),
        ("step", "torch", "ok"),
        ("step", "torch-cell", "ok"),
    ]
    assert shown.out.splitlines()[-1] == f"Wrote {out}"


def test_peers_that_are_not_installed_are_listed_with_what_brings_them(events, capsys, monkeypatch):
    for name in ("onnxruntime", "keras", "keras-xla"):
        monkeypatch.setattr(PEERS[name], "missing", lambda: ["it"])
    for name in ("openvino", "jax"):
        monkeypatch.setattr(PEERS[name], "missing", list)
        monkeypatch.setattr(PEERS[name], "version", lambda: "1")
    assert main(TINY) == 0
    shown = capsys.readouterr().out
    assert "Not installed: onnxruntime. To compare with it: pip install onnxruntime onnx\n" in shown
    assert "Not installed: keras, keras-xla. To compare with it: pip install keras tensorflow\n" in shown
    assert "Not installed: jax" not in shown
    (asked,) = events[1]
    assert list(asked[1]) == ["tidegate", "torch", "torch-cell", "openvino", "jax"]


def test_markdown_and_losing_cells_are_shown(events, capsys):
    said, _ = events
    said += [{"row": row("tidegate", 30.0, share_of_peak=0.5)}, {"row": row("torch", 20.0)}]
    assert main([*TINY, "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| 2 3 4 5 1 | 30.0 | 20.0 | 1.50 slower | 50% |" in shown
    assert "- forward, 1 thread, B 2, T 3, I 4, H 5: tidegate is slower than torch" in shown
    assert "1 thread: tidegate runs 'native' (avx2); the peak is 50 GFLOP/s (multiply-adds in registers)" in shown


def test_a_busy_machine_is_warned_of(events, capsys, monkeypatch):
    assert main(TINY) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (2.34, 0.0, 0.0), raising=False)
    assert main(TINY) == 0
    assert capsys.readouterr().err == "The load is 2.3: if other programs are at work, these times will mislead.\n"


def test_without_the_kernel_the_missing_share_of_the_peak_is_explained(events, capsys):
    said, _ = events
    said[0] = {"backend": "torch", "isa": "", "peak_gflops": None, "no_peak": "it was not built"}
    said.append({"row": row("tidegate", 30.0)})
    assert main(TINY) == 0
    assert "tidegate runs 'torch'; no share of the peak is shown, as it was not built" in capsys.readouterr().out


def test_every_number_of_threads_has_a_process_of_its_own(events, monkeypatch):
    from tidegate.bench import machine

    monkeypatch.setattr(machine, "processors", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine, "cores", lambda: 4)
    assert main(["bench", "--quick"]) == 0
    assert [(threads, rounds) for _, _, threads, rounds in events[1]] == [(1, 3), (4, 3)]
    events[1].clear()
    assert main(["bench", "--threads", "3,2", "--kind", "step"]) == 0
    assert [(threads, rounds) for _, _, threads, rounds in events[1]] == [(3, 7), (2, 7)]
    assert all(cell.kind == "step" for cells, *_ in events[1] for cell in cells)


def test_numbers_of_our_own_that_are_wrong_end_with_status_1(events, capsys):
    said, _ = events
    said.append({"row": row("tidegate", None, status="wrong", reason="error 0.5")})
    assert main(TINY) == 1
    shown = capsys.readouterr()
    assert "wrong: error 0.5" in shown.out
    assert "no figure in 1 of its cells" in shown.err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [(launch.BenchError("It died."), 1, "Error: It died."), (KeyboardInterrupt(), 130, "Interrupted")],
)
def test_what_was_measured_before_the_end_is_shown_and_no_file_is_written(
    events, tmp_path, capsys, error, status, sentence
):
    said, _ = events
    said += [{"row": row("tidegate", 30.0)}, error]
    assert main([*TINY, "--csv", str(tmp_path / "b.csv")]) == status
    shown = capsys.readouterr()
    assert "30.0" in shown.out
    assert sentence in shown.err
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "5,7"], "--shape 5,7: expected B,T,I,H,layers"),
        (["--threads", "0"], "--threads 0: expected whole numbers from 1 on"),
        (["--threads", "two"], "--threads two: expected whole numbers"),
        (["--threads", "100000"], "--threads 100000: this process may run on"),
        (["--kind", "training"], "--kind training: expected one of forward, train, step. Did you mean 'train'?"),
        (["--peers", "onnx"], "--peers: unknown peer 'onnx'; known are tidegate, torch"),
        (["--peers", "kears"], "Did you mean 'keras'?"),
        (["--peers", "jax"], "--peers: jax is not installed. Install it with: pip install jax"),
        (["--rounds", "0"], "'--rounds'"),
        (["--csv", "."], "--csv .: this is a folder"),
    ],
)
def test_a_mistake_is_answered_with_the_argument_before_anything_is_measured(
    events, capsys, monkeypatch, arguments, message
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(PEERS["jax"], "missing", lambda: ["jax"])
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert events[1] == []


def test_importing_the_command_and_the_package_loads_neither_torch_nor_numpy():
    code = (
        "import sys, tidegate.cli.bench, tidegate.bench, tidegate.bench.worker, tidegate.bench.shapes;"
        "print([m for m in ('torch', 'numpy', 'rich.progress') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_of_the_contents_page_is_there():
    import tidegate.bench

    assert all(getattr(tidegate.bench, name) is not None for name in tidegate.bench.__all__)
    assert tidegate.bench.Row is Row
