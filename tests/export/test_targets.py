"""What the table of targets promises: little to load, and the same words wherever targets are listed."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from tests.helpers.processes import without
from tidegate.cli.export import app
from tidegate.export import TARGETS


def test_the_table_of_targets_loads_neither_torch_nor_polars() -> None:
    done = without({"torch", "polars", "numpy"}, "import tidegate.export as e; print(*e.TARGETS, 'Parts' in dir(e))")
    assert (done.returncode, done.stdout.split()) == (0, [*TARGETS, "True"]), done.stderr
    assert "torch is blocked" in without({"torch"}, "import torch").stderr


def test_so_does_the_commands_help() -> None:
    code = "from tidegate.cli import main; sys.exit(main(['export', '--help']))"
    done = without({"torch", "polars", "numpy"}, code)
    assert done.returncode == 0, done.stderr
    assert "--to" in done.stdout


def test_the_help_names_every_target_its_suffix_and_for_whom_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    said = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert f"[{'|'.join(TARGETS)}]" in said
    for name, target in TARGETS.items():
        assert f"{name}: {target.line}." in said
        assert target.suffix in said
        assert importlib.util.find_spec(f"tidegate.export.{name}") is not None
