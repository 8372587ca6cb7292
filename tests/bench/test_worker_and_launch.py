"""A measuring process, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tidegate.bench import launch
from tidegate.bench.machine import processors
from tidegate.bench.measure import Row
from tidegate.bench.shapes import Cell, Shape

SHAPE = Shape(B=2, T=3, I=4, H=5)
CELLS = [Cell("forward", SHAPE), Cell("step", Shape(B=2, T=1, I=4, H=5))]


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.fixture
def started(monkeypatch):
    """Every process that `launch` starts."""
    found = []
    real = subprocess.Popen

    def popen(*arguments, **options):
        found.append(real(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    return found


@pytest.mark.long
def test_a_process_says_what_runs_then_a_row_for_each_peer_and_cell(started):
    about, *rest = launch.run(CELLS, ["tidegate", "torch", "torch-cell"], threads=1, rounds=1)
    assert set(about) == {"backend", "isa", "peak_gflops", "no_peak"}
    rows = [Row(**said["row"]) for said in rest if "row" in said]
    assert [(row.kind, row.peer) for row in rows] == [
        ("forward", "tidegate"), ("forward", "torch"), ("step", "tidegate"), ("step", "torch"), ("step", "torch-cell"),
    ]  # fmt: skip
    assert all(row.status == "ok" and row.median_us > 0 and row.threads == 1 for row in rows)
    steps = [said for said in rest if "cell" in said]
    assert list(dict.fromkeys(said["cell"] for said in steps)) == [str(cell) for cell in CELLS]
    done = [said["done"] for said in steps]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] < 1
    assert started[0].returncode == 0


def test_a_process_that_dies_is_told_of_with_its_last_words(started):
    with pytest.raises(launch.BenchError, match=r"for 0 threads ended with status 1 at: starting.*Error.*--peers"):
        list(launch.run(CELLS, ["torch"], threads=0, rounds=1))


@pytest.mark.long
def test_a_process_ends_when_nobody_listens_any_more(started):
    events = launch.run([Cell("forward", Shape(64, 500, 512, 512))], ["torch"], threads=1, rounds=1000)
    next(events)
    assert started[0].poll() is None
    events.close()
    assert started[0].returncode == (1 if os.name == "nt" else -signal.SIGKILL)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux binds a process to processors")
def test_a_process_is_confined_before_torch_is_loaded():
    code = (
        "import os, sys; from tidegate.bench.worker import confine; confine(1);"
        "print([m for m in ('torch', 'numpy') if m in sys.modules]);"
        "import torch; print(sorted(os.sched_getaffinity(0)), torch.get_num_threads())"
    )
    assert python(code).stdout.splitlines() == ["[]", f"[{processors()[0]}] 1"]


def test_what_a_peer_prints_is_not_among_the_lines():
    code = (
        "import os; from tidegate.bench.worker import _own_output; own = _own_output();"
        "print('noise', flush=True); os.system('echo louder'); print('{\"done\": 1}', file=own, flush=True)"
    )
    done = python(code)
    assert json.loads(done.stdout) == {"done": 1}
    assert done.stderr.split() == ["noise", "louder"]
