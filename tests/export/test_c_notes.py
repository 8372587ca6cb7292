"""What is said of a C header: its bytes, and what 8-bit weights cost."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.helpers.compiling import Library
from tests.helpers.runs import run_of
from tests.helpers.tables import QUICK, signal_table
from tidegate.errors import DataError
from tidegate.export import take_apart
from tidegate.export.c import notes, weights
from tidegate.run import Run
from tidegate.training import load, train

SIZES = {
    "too many weights": "size not measured (so many weights take a compiler long)",
    "slow": "size unknown (cc failed here: TimeoutExpired)",
    "no -A": "size unknown (the program size here has no -A)",
    "no .text": "size unknown (size -A names no .text here)",
}


@pytest.mark.parametrize("what", SIZES)
def test_where_the_code_cant_be_measured_the_note_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        assert options["timeout"] <= 30
        if what == "slow":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if "-A" not in command:
            return real(command, **options)
        if what == "no -A":
            raise subprocess.CalledProcessError(64, command)
        return subprocess.CompletedProcess(command, 0, "section size\n__TEXT 5\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    if what == "too many weights":
        monkeypatch.setattr(notes, "MEASURED", 1000)
    assert f"Code: {SIZES[what]}. " in str(run_of("one number").export("c", tmp_path / "m.h"))


def test_the_notes_give_the_bytes_of_code_weights_and_state(tmp_path: Path) -> None:
    run = run_of("sequence mean")
    exported = run.export("c", tmp_path / "m.h")
    weights = 4 * sum(p.numel() for p in run.model.parameters())
    note = re.fullmatch(
        r"Code: ([\d,]+) bytes \(cc -Os, \S+\)\. Weights: ([\d,]+) bytes\. State: ([\d,]+) bytes\.", exported.notes[0]
    )
    assert note is not None, exported.notes
    assert 500 < int(note[1].replace(",", "")) < 5000
    assert int(note[2].replace(",", "")) == weights
    assert int(note[3].replace(",", "")) == Library(tmp_path, {"m": run}).state_size("m")


def test_8_bit_weights_take_a_byte_each_and_their_scales(tmp_path: Path) -> None:
    run = run_of("sequence last")
    note = run.export("c", tmp_path / "m.h", int8=True).notes[0]
    matrices = [p for p in run.model.parameters() if p.dim() == 2]
    biases = [p for p in run.model.parameters() if p.dim() == 1]
    count = sum(p.numel() + 4 * len(p) for p in matrices) + sum(4 * p.numel() for p in biases)
    assert f"Weights: {count:,} bytes" in note


def test_without_a_compiler_the_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes.shutil, "which", lambda program: None)
    assert "Code: size unknown (no cc" in run_of("one number").export("c", tmp_path / "m.h").notes[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on a CSV file, with test rows."""
    folder = tmp_path_factory.mktemp("trained")
    signal_table(groups=30).write_csv(folder / "signals.csv")
    train(folder / "signals.csv", out=folder / "run", target="label", group="device", time="t", **QUICK)
    return folder


def figure_of(run: Run, table: Any) -> float:
    return run.evaluate(table).model.summary["accuracy"]


def test_8_bit_weights_say_what_they_cost_on_the_test_rows(trained: Path, tmp_path: Path) -> None:
    run = load(trained / "run")
    before = copy.deepcopy(run.model.state_dict())
    note = run.export("c", tmp_path / "m.h", int8=True).notes[1]
    exact = figure_of(run, trained / "signals.csv")
    assert all(torch.equal(before[k], v) for k, v in run.model.state_dict().items())
    run.model = weights.Weights(take_apart(run), int8=True).model
    less = figure_of(run, trained / "signals.csv")
    assert note == (
        f"Accuracy on the test rows of signals.csv: {exact:.4g} as 32-bit, {less:.4g} as 8-bit ({less - exact:+.2g})."
    )


def test_the_cost_of_8_bit_weights_shows_in_the_note(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse: Callable[..., Any] = lambda rows: (torch.zeros(rows.shape, dtype=torch.int8), torch.zeros(len(rows)))  # noqa: E731
    monkeypatch.setattr(weights, "quantise", coarse)
    note = load(trained / "run").export("c", tmp_path / "m.h", int8=True).notes[1]
    before, after = map(float, re.findall(r"(\d\.\d+) as", note))
    assert after < before - 0.1


def test_a_named_table_is_scored_instead(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    signal_table(groups=8, seed=5).write_csv(other)
    run = load(trained / "run")
    note = run.export("c", tmp_path / "m.h", int8=True, table=str(other)).notes[1]
    assert note.startswith(f"Accuracy on all rows of other.csv: {figure_of(run, other):.4g} as 32-bit")


def test_where_there_are_no_test_rows_all_are_scored(tmp_path: Path) -> None:
    halves = signal_table(groups=12).with_columns(
        split=pl.when(pl.col("device") < "d5").then(pl.lit("train")).otherwise(pl.lit("valid"))
    )
    halves.write_csv(tmp_path / "halves.csv")
    roles = {"target": "label", "group": "device", "time": "t", "split": "split"}
    run = train(tmp_path / "halves.csv", out=tmp_path / "run", **QUICK, **roles)
    note = run.export("c", tmp_path / "m.h", int8=True).notes[1]
    assert note.startswith("Accuracy on all rows of halves.csv: ")


def test_a_named_table_without_the_target_is_refused(trained: Path, tmp_path: Path) -> None:
    signal_table(groups=3).drop("label").write_csv(tmp_path / "bare.csv")
    with pytest.raises(DataError, match="label"):
        load(trained / "run").export("c", tmp_path / "m.h", int8=True, table=str(tmp_path / "bare.csv"))
    assert not (tmp_path / "m.h").exists()


@pytest.mark.long
def test_without_its_table_the_note_says_how_to_name_one(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    run = load(tmp_path / "moved" / "run")
    run.source = str(tmp_path / "moved" / "signals.csv")
    signal_table(groups=3).write_csv(run.source)
    assert "has changed since the training. Name the table with table= (--table)" in str(
        run.export("c", tmp_path / "m.h", int8=True)
    )
    Path(run.source).write_bytes(b"\xff\xfe\x00")  # and no table at all: what was asked for is written all the same
    assert "is unknown: " in str(run.export("c", tmp_path / "m.h", int8=True))
    Path(run.source).unlink()
    assert "is not there any more. Name the table with table= (--table)" in str(
        run.export("c", tmp_path / "m.h", int8=True)
    )
    run.source = None
    assert "a table in memory. Name the table with table= (--table)" in str(
        run.export("c", tmp_path / "m.h", int8=True)
    )
