"""What the table of targets promises: little to load, and the same words wherever targets are listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidegate.cli.export import app
from tidegate.export import TARGETS

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def without(blocked: set[str], code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python where these packages can't be imported."""
    command = [sys.executable, "-c", BLOCK.format(blocked=blocked) + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
        assert Path(sys.modules["tidegate.export"].__file__ or "").with_name(f"{name}.py").is_file()
