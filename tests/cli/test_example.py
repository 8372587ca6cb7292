"""`tidegate example list` and `tidegate example write`."""

import re
import subprocess
import sys

import polars as pl
import pytest
from typer.testing import CliRunner

from tidegate import datasets
from tidegate.cli.example import app
from tidegate.errors import DataError


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_in_a_pipe_is_one_aligned_line_a_data_set_under_a_header():
    header, *lines = run("list").splitlines()
    assert [line.split()[0] for line in lines] == datasets.names()
    for title in ("rows", "task", "licence"):
        assert all(line[header.index(title) - 1] == " " != line[header.index(title)] for line in lines)
    for line, name in zip(lines, datasets.names(), strict=True):
        d = datasets.describe(name)
        assert line.split()[1] == f"{d.rows:,}"
        assert d.task in line
        assert d.licence in line
    assert not set("│─┃\x1b") & set(header + "".join(lines))


def test_list_on_a_terminal_is_a_framed_table(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    shown = run("list")
    assert "│" in shown
    assert all(name in shown for name in datasets.names())


def test_write_says_what_it_wrote_and_what_to_type_next(tmp_path):
    folder = tmp_path / "with blank"
    shown = run("write", "occupancy", folder)
    table = folder / "occupancy.parquet"
    assert f"{table}  {table.stat().st_size:,} bytes" in shown
    assert "CC-BY-4.0" in shown
    assert shown.splitlines()[-1] == (
        f"Next: tidegate train '{table}' --target Occupancy --group recording --time date --split split"
    )
    assert pl.read_parquet(table).height == 20_560


def test_write_of_an_unknown_name_names_the_nearest_and_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'occupancy'"):
        CliRunner().invoke(app, ["write", "ocupancy", str(tmp_path)], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_command_loads_neither_torch_nor_polars():
    script = "import sys, tidegate.cli.example; print([m for m in ('torch', 'polars', 'numpy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_the_help_names_both_commands():
    shown = run("--help")
    assert re.search(r"\blist +Show the data sets", shown)
    assert re.search(r"\bwrite +Write a data set into a folder", shown)
