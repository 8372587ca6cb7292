"""docs/ship.md and the pages under it tell the truth: their figures were measured, their commands run as written."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.pages import ROOT, between, read
from tests.helpers.runs import sensors
from tests.helpers.ship import commands, working_directory
from tests.helpers.tables import QUICK
from tidegate.cli import main
from tidegate.export import TARGETS
from tidegate.training import load, train

# mark -> its page and the function of benchmarks/figures.py that makes the table
TABLES = {
    "table": ("docs/ship.md", "ship"),
    "stream": ("docs/stream.md", "stream_speed"),
    "memory": ("docs/stream.md", "stream_memory"),
    "c_step": ("docs/c.md", "c_step"),
}


@pytest.mark.parametrize("mark", TABLES)
def test_the_figures_are_those_that_were_measured(mark):
    page, name = TABLES[mark]
    assert between(read(page), mark) == runpy.run_path(str(ROOT / "benchmarks/figures.py"))[name]()


def test_the_page_has_five_commands_one_for_streams_and_one_for_each_target():
    found = commands()
    assert len(found) == 5
    assert found[0].startswith("tidegate stream ")
    assert [re.search(r"--to (\w+)", line)[1] for line in found[1:]] == list(TARGETS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return working_directory(tmp_path_factory.mktemp("ship"))


@pytest.mark.long
@pytest.mark.parametrize("command", [c for c in commands() if "onnx" not in c and "keras" not in c])
def test_the_commands_of_the_page_run_as_written(folder, command):
    program = command.replace("tidegate", f"{sys.executable} -m tidegate", 1)
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "stream" in command:
        expected = load(folder / "runs/sensors").predict(folder / "sensors.csv")["prediction"].to_list()
        assert re.findall(r'"prediction": "(\w+)"', done.stdout) == expected
        assert (folder / "sensors.state").exists()
    else:
        written = re.search(r"-o (\S+)", command)[1]
        assert done.stdout.startswith(f"{written}: ")
        assert (folder / written).stat().st_size > 1000


def test_an_export_says_what_is_wrong_with_what_it_was_asked_for(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments, message in [
        (["--to", "tflite"], "to='tflite': expected one of onnx, keras, pt2, c."),
        (["--to", "kears"], "Did you mean 'keras'?"),
        (["--to", "pt2", "-o", "model.onnx"], "model.onnx: a file for 'pt2' has a name that ends in .pt2."),
        (["--to", "pt2", "--int8"], "int8: the target 'pt2' has none."),
        (["--to", "c", "--codes"], "codes: the target 'c' has int8, table."),
    ]:
        assert main(["export", "runs/sensors", *arguments]) == 2
        assert message in capsys.readouterr().err
    (folder / "folder.h").mkdir()
    assert main(["export", "runs/sensors", "--to", "c", "-o", "folder.h"]) == 2
    assert "folder.h is a folder. Name a file." in capsys.readouterr().err
    assert not (folder / "sensors.onnx").exists()


def test_only_the_gru_is_exported(tmp_path):
    from tidegate.errors import SettingsError

    run = train(sensors(), out=tmp_path / "r", target="label", features=["x"], group="device", cell="lstm", **QUICK)
    with pytest.raises(SettingsError, match=r"'lstm'; what is exported are GRUs. Train one with cell='gru'"):
        run.export("pt2", tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_every_room_and_every_benchmark_has_its_line():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {p.name for p in (ROOT / "src/tidegate").iterdir() if (p / "__init__.py").exists()}
    assert rooms - set(re.findall(r"^\| `src/tidegate/(\w+)/`", contributing, re.MULTILINE)) == set()
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    scripts = {p.name for p in (ROOT / "benchmarks").glob("*.py")} - {"common.py", "figures.py"}
    assert scripts - set(re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE)) == set()
