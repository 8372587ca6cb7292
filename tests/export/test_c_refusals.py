"""What no C header can hold is refused, and files that are there stay."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.helpers.compiling import need
from tests.helpers.runs import WORDS, folder_of, run_of, sentences
from tests.helpers.tables import QUICK
from tidegate.errors import DataError, SettingsError
from tidegate.files import DiskError
from tidegate.nn import GRU
from tidegate.training import load, train


def test_a_table_without_8_bit_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"int8=True \(--int8\)"):
        run_of("class").export("c", tmp_path / "m.h", table="signals.csv")


def test_nothing_is_written_where_the_named_table_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run_of("class").export("c", tmp_path / "m.h", int8=True, table=str(tmp_path / "none.csv"))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    run = run_of("class")
    with torch.no_grad():
        run.model.head.weight[0, 0] = float("nan")
    with pytest.raises(SettingsError, match="NaN or infinity"):
        run.export("c", tmp_path / "m.h")
    assert list(tmp_path.iterdir()) == []


def test_a_zero_character_is_refused_by_the_name_of_its_column(tmp_path: Path) -> None:
    frame = sentences().with_columns(words=pl.col("words").list.eval(pl.element() + "\0"))
    run = train(frame, out=tmp_path / "run", **QUICK | {"epochs": 1} | WORDS["words"])
    with pytest.raises(SettingsError, match=r"column 'words': .* zero character"):
        run.export("c", tmp_path / "out" / "m.h")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ['a"b.h', "a\\b.h", "a\nb.h"])
def test_a_file_name_that_no_include_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="can't include"):
        run_of("one number").export("c", tmp_path / name)


def test_a_folder_in_the_place_of_the_self_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m_test.c").mkdir()
    with pytest.raises(SettingsError, match=r"m_test\.c is a folder"):
        run_of("one number").export("c", tmp_path / "m.h")
    assert not (tmp_path / "m.h").exists()


def test_a_file_that_has_the_self_tests_name_and_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m_test.c").write_text("int main(void) { return 0; } /* mine */")
    with pytest.raises(SettingsError, match=r"m_test\.c is there and was not written by an export.* Name another"):
        run_of("one number").export("c", tmp_path / "m.h")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "m_test.c": "int main(void) { return 0; } /* mine */"
    }
    (tmp_path / "m_test.c").unlink()
    for name in ("one number", "labels"):
        run_of(name).export("c", tmp_path / "m.h")
    assert run_of("labels").fingerprint in (tmp_path / "m_test.c").read_text(encoding="utf-8")


def test_a_full_disk_leaves_both_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of("one number").export("c", tmp_path / "m.h")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"m.h", "m_test.c"}
    write_text = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if "m.h" in path.name:
            write_text(path, text[:100], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskError, match="the disk is full"):
        run_of("labels").export("c", tmp_path / "m.h")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.long
def test_where_no_temporary_file_can_be_written_the_size_is_unknown(tmp_path: Path) -> None:
    need("cc", "gcc")
    run_of("number")  # made before the limit
    command = f"ulimit -f 8; exec {shlex.quote(sys.executable)} -m tidegate export {folder_of('number')} --to c -o m.h"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "m.h could not be written: the disk is full" in done.stderr
    assert "should not happen" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (load(folder_of("class")).export("c", tmp_path / d / "m.h") for d in "ab")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.beside[0].read_bytes() == second.beside[0].read_bytes()


def test_a_core_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    run = load(folder_of("numbers alone"))
    core = run.model.core
    run.model.core = GRU(core.input_size, core.hidden_size, bias=False)
    others = "to='onnx', to='keras' and to='pt2' compute it"
    with pytest.raises(
        SettingsError, match=rf"the core of .*: what is written in C has no bias=False. {others}; or train"
    ):
        run.export("c", tmp_path / "m.h")
    assert list(tmp_path.iterdir()) == []
