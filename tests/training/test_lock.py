"""Two trainings into one folder keep each other out, and what a killed one left is in nobody's way."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tidegate
from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES, DieAfter, StopAfter, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import Interrupted, RunError
from tidegate.training import trainer
from tidegate.training.lock import LOCK, FolderLock
from tidegate.training.progress import Silent

pytestmark = [
    pytest.mark.usefixtures("ctrl_c"),
    pytest.mark.skipif(os.name != "posix", reason="trainings are kept apart in POSIX's way"),
]
SETTINGS: dict[str, Any] = QUICK | ROLES
HOLD = """
import sys
from pathlib import Path
from tidegate.training.lock import FolderLock
FolderLock(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def interrupted(signals: Any, folder: Path) -> Path:
    """A run that can go on."""
    table = folder.parent / "t.parquet"
    write_table(signals, table)
    with pytest.raises(Interrupted):
        tidegate.train(table, out=folder, **(SETTINGS | {"progress": StopAfter(1)}))
    return table


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOCK}


def test_a_second_training_into_a_folder_is_told_who_has_it_and_touches_nothing(tmp_path, signals):
    run = tmp_path / "run"
    table = interrupted(signals, run)
    before = files(run)
    with held_by_another_process(run) as holder:
        who = rf"run is in use by another training \(process {holder.pid} on .*, since 20\d\d-.*\)\. Wait for it, stop it, or"
        for options in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(RunError, match=who):
                tidegate.train(
                    None if "resume" in options else table,
                    out=run,
                    **options,
                    **({} if "resume" in options else SETTINGS),
                )
    assert files(run) == before


def test_a_new_folder_is_locked_until_its_training_ends(tmp_path, signals):
    class Second(Silent):
        message = ""

        def epoch(self, text: str) -> None:
            with pytest.raises(RunError) as caught:
                tidegate.train(signals, out=tmp_path / "run", overwrite=True, **SETTINGS)
            self.message = str(caught.value)

    second = Second()
    tidegate.train(signals, out=tmp_path / "run", **(SETTINGS | {"progress": second}))
    assert f"is in use by another training (process {os.getpid()} on" in second.message
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("ends", [StopAfter, DieAfter])
def test_a_training_that_ends_early_leaves_no_lock(tmp_path, signals, ends):
    with pytest.raises((Interrupted, ZeroDivisionError)):
        tidegate.train(signals, out=tmp_path / "run", **(SETTINGS | {"progress": ends(1)}))
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_saved_run_is_not_written_into_a_folder_that_is_in_use(tmp_path, signals):
    run = tidegate.train(signals, out=False, **SETTINGS)
    with held_by_another_process(tmp_path / "run"), pytest.raises(RunError, match="in use by another training"):
        run.save(tmp_path / "run")
    run.save(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, signals):
    run = tmp_path / "run"
    with held_by_another_process(run):
        pass
    assert (run / LOCK).exists()
    tidegate.train(signals, out=run, **SETTINGS)
    assert not (run / LOCK).exists()


@pytest.mark.parametrize(
    "owner",
    [
        {"host": platform.node(), "boot": "before the machine was started again", "process": os.getpid()},
        {"host": platform.node(), "process": 1},
        "",
        "[1",
        "[1]",
    ],
)
def test_so_is_one_from_before_a_restart_and_one_that_is_not_whole(tmp_path, signals, owner):
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text(owner if isinstance(owner, str) else json.dumps(owner))
    tidegate.train(signals, out=run, **SETTINGS)


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="Linux tells containers' machine")
def test_so_is_that_of_another_container_on_this_machine(tmp_path, signals):
    run = tmp_path / "run"
    run.mkdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (run / LOCK).write_text(json.dumps({"host": "a1b2c3", "boot": boot, "process": 7}))
    tidegate.train(signals, out=run, **SETTINGS)


def test_the_lock_of_another_machine_is_told_and_left(tmp_path, signals):
    run = tmp_path / "run"
    table = interrupted(signals, run)
    owner = {"host": "gpu3", "boot": "another", "process": 77, "since": "2026-11-30 10:02"}
    (run / LOCK).write_text(json.dumps(owner))
    message = r"in use by a training on another machine \(process 77 on gpu3, since 2026-11-30 10:02\)\. If that one was killed, remove .*run/\.lock and"
    with pytest.raises(RunError, match=message):
        tidegate.train(out=run, resume=True)
    with pytest.raises(RunError, match=message):
        tidegate.train(table, out=run, overwrite=True, **SETTINGS)
    assert json.loads((run / LOCK).read_text()) == owner


def test_on_a_disk_without_locks_the_process_that_is_named_decides(tmp_path, monkeypatch):
    import fcntl

    def none(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with held_by_another_process(tmp_path / "run"), pytest.raises(RunError, match="in use by another training"):
        FolderLock(tmp_path / "run").take()
    lock = FolderLock(tmp_path / "run")
    lock.take()
    assert json.loads(lock.path.read_text())["process"] == os.getpid()
    lock.release()


def test_whoever_only_looks_keeps_nobody_out(tmp_path):
    lock = FolderLock(tmp_path)
    lock.check()
    assert os.listdir(tmp_path) == []
    lock.take()
    with pytest.raises(RunError):
        FolderLock(tmp_path).check()
    lock.release()
    lock.release()
    FolderLock(tmp_path).check()


def test_two_may_look_at_once_at_a_lock_that_nobody_holds(tmp_path):
    import fcntl

    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        FolderLock(tmp_path).check()
        with pytest.raises(RunError):
            FolderLock(tmp_path).take()
    FolderLock(tmp_path).take()


def test_of_two_that_choose_a_name_at_once_the_second_takes_the_next_number(tmp_path, signals, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(signals, tmp_path / "t.csv")
    find_device, seconds = trainer.find_device, []

    def find(name: str):
        if not seconds:  # between the choice of the name and the making of the folder
            seconds.append(None)
            seconds[0] = tidegate.train("t.csv", **SETTINGS)
        return find_device(name)

    monkeypatch.setattr(trainer, "find_device", find)
    first = tidegate.train("t.csv", **SETTINGS)
    assert [str(run.folder) for run in (seconds[0], first)] == ["runs/t", "runs/t-2"]
    assert same_weights(first, tidegate.load("runs/t-2"))


def test_a_run_that_came_there_meanwhile_stays(tmp_path, signals, monkeypatch):
    find_device, others = trainer.find_device, []

    def find(name: str):
        if not others:
            others.append(None)
            tidegate.train(signals, out=tmp_path / "run", **SETTINGS)
            others[0] = files(tmp_path / "run")
        return find_device(name)

    monkeypatch.setattr(trainer, "find_device", find)
    with pytest.raises(RunError, match="already holds a run"):
        tidegate.train(signals, out=tmp_path / "run", **(SETTINGS | {"seed": 5}))
    assert files(tmp_path / "run") == others[0]
    assert not (tmp_path / "run" / LOCK).exists()


def test_what_a_killed_training_left_half_written_goes_at_the_next_start(tmp_path, signals):
    run = tmp_path / "run"
    table = interrupted(signals, run)
    left = [
        ".model.safetensors.123-0123abcd.tmp",
        f".config.yaml.{os.getpid()}-0123abcd.tmp",
        "checkpoints/.last.safetensors.123.tmp",
        "no_memory/.metrics.csv.1-0123abcd.tmp",
        ".loss.svg.123-0123abcd.tmp",
    ]
    stay = [".thesis.txt.123-0123abcd.tmp", ".gates.html.123-0123abcd.tmp"]
    for name in (*left, *stay):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("half")
    tidegate.train(table, out=run, resume=True, progress=False)
    assert [name for name in left if (run / name).exists()] == []
    assert [name for name in stay if not (run / name).exists()] == []


def test_a_folder_with_nothing_but_leftovers_is_free(tmp_path, signals):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.123-0123abcd.tmp").write_text("half")
    with held_by_another_process(run):
        pass
    tidegate.train(signals, out=run, **SETTINGS)
    assert not list(run.glob(".*"))


def test_a_run_whose_removal_was_cut_off_can_still_be_overwritten(tmp_path, signals, monkeypatch):
    from tidegate.training import journal

    run = tmp_path / "run"
    tidegate.train(signals, out=run, **SETTINGS)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(journal.shutil, "rmtree", killed)
        tidegate.train(signals, out=run, overwrite=True, **SETTINGS)
    tidegate.train(signals, out=run, overwrite=True, **SETTINGS)
