"""The run that a command is given: unfinished, swapped with the table, or a folder of runs; and Ctrl-C before anything began."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter
from tidegate.cli import main
from tidegate.data.tables import write_table
from tidegate.errors import Interrupted
from tidegate.trained import Resolved
from tidegate.training import train

pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table, a finished run of it, and one that was interrupted after its second epoch."""
    folder = tmp_path_factory.mktemp("place")
    write_table(signal_table(), folder / "t.csv")
    settings = QUICK | ROLES | {"batch_size": 4}
    done = train(folder / "t.csv", out=folder / "runs/done", **settings)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    batches = -(-done.resolved["parts"]["train"]["sequences"] // 4)
    with pytest.raises(Interrupted):
        train(
            folder / "t.csv",
            out=folder / "runs/cut",
            **(settings | {"epochs": 5, "progress": StopAfter(2 * batches + 1)}),
        )
    signal.signal(signal.SIGINT, before)
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate {} t.csv",
        "predict {} t.csv -o p.csv",
        "inspect {} t.csv",
        "export {} --to c -o m.h",
    ],
)
def test_a_run_that_is_not_finished_is_used_with_a_note(here, capsys, arguments):
    assert main(arguments.format("runs/done").split()) == 0
    assert "Note:" not in capsys.readouterr().err
    assert main(arguments.format("runs/cut").split()) == 0
    shown = capsys.readouterr()
    note = "Note: runs/cut is not finished: it has the best weights of 2 of at most 5 epochs. Go on with: tidegate train --resume --out runs/cut\n"
    assert note in shown.err
    assert "Note:" not in shown.out
    assert main(["train", "--resume", "--out", "runs/cut", "--quiet"]) == 0
    assert main(arguments.format("runs/cut").split()) == 0
    assert "Note:" not in capsys.readouterr().err


def test_a_run_without_a_whole_epoch_says_how_to_get_one(here, capsys):
    Path("runs/cut/model.safetensors").unlink()
    assert main(["evaluate", "runs/cut", "t.csv"]) == 2
    assert (
        "hasn't come to the end of an epoch yet; go on with: tidegate train --resume --out runs/cut"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", ["predict {} {} -o p.csv", "evaluate {} {}", "inspect {} {}"])
def test_run_and_table_in_the_wrong_order_are_recognised(here, capsys, command):
    assert main(command.format("t.csv", "runs/done").split()) == 2
    shown = capsys.readouterr().err
    assert shown == "Error: runs/done is the run and t.csv the table: name the run first, runs/done t.csv.\n"


def test_a_folder_of_runs_is_answered_with_their_names(here, capsys):
    assert main(["predict", "runs", "t.csv", "-o", "p.csv"]) == 2
    assert capsys.readouterr().err == (
        "Error: runs is not a run: it has no config.yaml. It holds runs: runs/cut, runs/done. Name one of them.\n"
    )


BREAK = """
import sys
at = sys.argv.pop(1)
class Break:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Break())
"""
AS_A_MODULE = 'import runpy; runpy.run_module("tidegate", run_name="__main__", alter_sys=True)'
AS_A_PROGRAM = "from tidegate.cli import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("program", "module"),
    [
        (AS_A_MODULE, "tidegate.cli"),
        (AS_A_PROGRAM, "typer"),
        (AS_A_PROGRAM, "pydantic"),
        (AS_A_PROGRAM, "tidegate.cli.train"),
        (AS_A_PROGRAM, "torch"),
        (AS_A_PROGRAM, "polars"),
    ],
)
def test_ctrl_c_while_python_still_loads_ends_without_a_traceback(tmp_path, program, module):
    done = subprocess.run(
        [sys.executable, "-c", BREAK + program, module, "train", "t.csv", "--target", "y"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (130, "Interrupted.\n", "")


@pytest.mark.parametrize(
    ("platform", "there", "shown"),
    [
        ("linux", {"xdg-open"}, "xdg-open "),
        ("linux", set(), ""),
        ("darwin", {"open"}, "open "),
        ("win32", set(), "start "),
    ],
)
def test_the_demo_names_the_program_that_opens_a_page_here(monkeypatch, platform, there, shown):
    from tidegate.cli import demo

    monkeypatch.setattr(demo.sys, "platform", platform)
    monkeypatch.setattr(demo.shutil, "which", lambda name: name if name in there else None)
    assert demo._opener() == shown


def test_counts_of_one_are_in_the_singular():
    resolved = Resolved(numbers=["x"], categories={"colour": 1, "kind": 2}, classes=2)
    assert "Reads 1 number, colour (1 known value), kind (2 known values); predicts" in resolved.lines()[1]
