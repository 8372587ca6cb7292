"""Several files that are all written, or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tidegate.files import DiskError, replacing, replacing_all


def state(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() if p.is_file() else "a folder" for p in folder.iterdir()}


def put(paths: list[Path]) -> None:
    with replacing_all(paths) as temporaries:
        for k, temporary in enumerate(temporaries):
            temporary.write_text(f"new {k}")


def test_several_files_take_their_places_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    put([tmp_path / "a", tmp_path / "in" / "b"])
    assert state(tmp_path) == {"a": "new 0", "in": "a folder"}
    assert state(tmp_path / "in") == {"b": "new 1"}


@pytest.mark.parametrize("before", [{"a": "old"}, {}, {"a": "old", "b": "old too"}])
def test_where_the_last_one_cant_take_its_place_all_are_as_they_were(tmp_path: Path, before: dict[str, str]) -> None:
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "c").mkdir()
    with pytest.raises(DiskError, match=r"a and .*b and .*c could not be written \(Is a directory\)"):
        put([tmp_path / name for name in "abc"])
    assert state(tmp_path) == before | {"c": "a folder"}


@pytest.mark.parametrize("failing", [0, 1])
def test_so_they_are_where_a_rename_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    (tmp_path / "a").write_text("old")
    replace, calls = Path.replace, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing + 1:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put([tmp_path / "a", tmp_path / "b"])
    assert state(tmp_path) == {"a": "old"}


def test_a_full_disk_leaves_all_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="the disk is full"):
        put([tmp_path / "a", tmp_path / "b"])
    assert state(tmp_path) == {"a": "old"}


def test_threads_that_write_the_same_file_dont_take_each_others(tmp_path: Path) -> None:
    both, wrong = threading.Barrier(2), []

    def write(text: str) -> None:
        try:
            with replacing_all([tmp_path / "a", tmp_path / "b"]) as temporaries:
                for temporary in temporaries:
                    both.wait(10)
                    temporary.write_text(text)
                both.wait(10)
                assert [temporary.read_text() for temporary in temporaries] == [text, text]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(state(tmp_path)) == {"a", "b"}
    assert state(tmp_path)["a"] in ("one", "two")


@pytest.mark.skipif(os.name != "posix", reason="who runs is asked in POSIX's way")
def test_what_killed_processes_left_of_the_same_file_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [f".a.{gone.pid}.tmp", f".a.{gone.pid}-0123abcd.tmp"]
    stay = [
        f".a.{os.getpid()}.tmp",
        ".a.1-0123abcd.tmp",
        f".b.{gone.pid}.tmp",
        f".a.{gone.pid}-0123abcd.old",
        ".a.x.tmp",
    ]
    for name in (*left, *stay):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (1, 1))
    fresh = f".a.{gone.pid}-89abcdef.tmp"  # of another machine, perhaps
    (tmp_path / fresh).write_text("half")
    put([tmp_path / "a"])
    assert set(state(tmp_path)) == {"a", *stay, fresh}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_has_the_permissions_that_the_umask_gives_whoever_wrote_it(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        for name in ("new", "again", "again"):
            with replacing(tmp_path / name) as temporary:
                temporary.touch(0o600)  # as safetensors does
                temporary.chmod(0o600)
        put([tmp_path / "a", tmp_path / "b"])
    finally:
        os.umask(before)
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in tmp_path.iterdir()} == dict.fromkeys(
        ["new", "again", "a", "b"], oct(mode)
    )
