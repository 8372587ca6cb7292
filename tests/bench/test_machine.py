"""The machine line, the commit in it, and which processors are taken."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tidegate.bench import machine


def git(*words: str, cwd: Path) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    return subprocess.run(
        ["git", *settings, *words], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def copy(tmp_path):
    """machine.py in a folder of another project's repository, which has a commit but does not hold that file."""
    git("init", "-q", cwd=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "theirs", cwd=tmp_path)
    (tmp_path / "site-packages").mkdir()
    return Path(shutil.copy(machine.__file__, tmp_path / "site-packages"))


def test_the_commit_is_that_of_the_repository_that_holds_the_package(copy):
    revision = runpy.run_path(str(copy))["revision"]
    assert revision() == ""  # the other project's commit says nothing about us
    git("add", copy.name, cwd=copy.parent)
    git("commit", "-q", "-m", "ours", cwd=copy.parent)
    assert revision() == "commit " + git("rev-parse", "--short", "HEAD", cwd=copy.parent)


def test_the_line_names_processor_threads_and_versions(monkeypatch):
    monkeypatch.setattr(machine, "revision", lambda: "")
    line = machine.machine("1 and 2")
    assert ", 1 and 2 threads, " in line
    assert ", Python 3." in line
    assert not line.endswith((",", " "))
    assert ", 1 thread, " in machine.machine("1")
    monkeypatch.setattr(machine, "revision", lambda: "commit 1a2b3c4")
    assert machine.machine().endswith(", commit 1a2b3c4")


def test_two_halves_of_a_core_are_taken_after_one_of_every_core(monkeypatch, tmp_path):
    for cpu, siblings in {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 7: "6-7"}.items():
        (tmp_path / str(cpu)).write_text(siblings)
    monkeypatch.setattr(machine, "_SIBLINGS", str(tmp_path / "{}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 7}, raising=False)
    assert machine.processors() == [0, 2, 7, 1, 3]
    assert machine.cores() == 3


def test_without_a_word_from_the_system_every_processor_is_a_core(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_SIBLINGS", str(tmp_path / "none{}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5}, raising=False)
    assert (machine.processors(), machine.cores()) == ([2, 5], 2)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert (machine.processors(), machine.cores()) == ([0, 1, 2], 3)
