"""docs/scale.md tells the truth: its figures were measured, its commands and its Python run as written."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate
from tests.helpers import hosts
from tests.helpers.pages import ROOT, between, blocks, read
from tests.helpers.runs import sensors
from tests.helpers.tables import signal_table
from tidegate.cli import main
from tidegate.data.tables import read_table
from tidegate.trained.evaluation import MOST_DRAWN, MOST_KEPT

PAGE = "docs/scale.md"


def section(heading: str) -> str:
    return re.split(r"^## ", read(PAGE).split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def commands() -> list[str]:
    text = section("Several files") + section("More rows than memory")
    return re.findall(r"^    (tidegate [^\n]+)$", text, re.MULTILINE)


def test_the_figures_are_those_that_were_measured():
    assert between(read(PAGE), "scale") == runpy.run_path(str(ROOT / "benchmarks/figures.py"))["scale"]()


def test_the_numbers_of_rows_are_those_of_the_code():
    assert read(PAGE).count(f"{MOST_KEPT:,}") == 2
    assert read(PAGE).count(f"{MOST_DRAWN:,}") == 1


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the tables that the page speaks of."""
    frame = signal_table(groups=20)
    for folder, rows in (("data", frame), ("new/2026", frame[:60]), ("new/2027", frame[60:])):
        (tmp_path / folder).mkdir(parents=True)
        rows[:40].write_parquet(tmp_path / folder / "part-01.parquet")
        rows[40:].write_parquet(tmp_path / folder / "part-02.parquet")
    monkeypatch.chdir(tmp_path)


@pytest.mark.long
def test_the_commands_of_the_page_run_as_written(there):
    assert len(commands()) == 7
    for command in commands():
        assert main(shlex.split(command)[1:]) == 0, command
    assert {path.name for path in Path("runs").iterdir()} == {"data", "data-2", "large", "a", "b"}
    assert Path("data.store/store.json").is_file()


@pytest.mark.long
def test_the_python_of_the_page_runs_as_written(there):
    found = blocks(section("Several files"), "python") + blocks(section("More rows than memory"), "python")
    assert len(found) == 2
    for code in found:
        exec("import tidegate\n" + code, {})


@pytest.mark.long
def test_the_commands_with_workers_run_as_written(tmp_path):
    sensors().write_csv(tmp_path / "sensors.csv")
    lines = re.findall(r"^    ((?:tidegate|torchrun) [^\n]+)$", section("More processes"), re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["tidegate", "torchrun", "tidegate", "tidegate"]
    programs = {"tidegate": ["-m", "tidegate"], "torchrun": ["-m", "torch.distributed.run"]}
    for line in lines:
        program, *arguments = shlex.split(line)
        again = ["--overwrite"] if program == "torchrun" else []  # into the folder of the command before it
        command = [sys.executable, *programs[program], *arguments, *again]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        finished = "--resume" in line and "is finished" in done.stderr  # nobody interrupted it
        assert done.returncode == 0 or finished, done.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sensors", "s4"}


@pytest.mark.long
def test_the_commands_and_the_python_that_predict_run_as_written(there, monkeypatch):
    shutil.copytree("data", "in")
    assert (
        main(["train", "data", "--target", "label", "--group", "device", "--time", "t", "--epochs", "1", "--quiet"])
        == 0
    )
    whole = tidegate.load("runs/data").predict("in")
    lines = re.findall(r"^    (tidegate [^\n]+)$", section("Predict at scale"), re.MULTILINE)
    assert len(lines) == 5
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "8")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    for line in lines:
        parts = line.rpartition("/")[2] if "--part" in line else ""
        if not list(Path().glob(f"out/*-of-{parts}-*" if parts else "out/predictions-0*")):
            shutil.rmtree("out", ignore_errors=True)
        command = line.replace("tidegate", f"{sys.executable} -m tidegate", 1)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        if parts != "8":
            rows = read_table("out").frame
            assert rows.equals(whole) == ("1/2" not in line)
    assert len(list(Path("out").glob("*-of-8-*"))) == 2
    shutil.rmtree("out")
    (code,) = (code for code in blocks(section("Predict at scale"), "python") if "predict_to" in code)
    exec("import tidegate\n" + code, {})
    assert read_table("out").frame.equals(whole)


@pytest.mark.long
@pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing()))
def test_the_command_for_two_machines_runs_as_written_on_two_hosts(tmp_path):
    sensors().write_csv(tmp_path / "sensors.csv")
    (command,) = re.findall(r"^    (torchrun (?:[^\n]*\\\n)*[^\n]+)$", section("Two machines"), re.MULTILINE)
    torchrun = tmp_path / "bin/torchrun"
    torchrun.parent.mkdir()
    torchrun.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    environment = os.environ | {"PATH": f"{torchrun.parent}{os.pathsep}{os.environ['PATH']}"}
    with hosts.two_hosts() as both:
        typed = [
            subprocess.Popen(
                both.command(name, ["bash", "-c", command]),
                cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
            )
            for name in hosts.NAMES
        ]  # fmt: skip
        said = [one.communicate(timeout=300)[1] for one in typed]
        sent = [both.sent(name) for name in hosts.NAMES]
    assert [one.returncode for one in typed] == [0, 0], said
    assert sum(words.count("Whole time") for words in said) == 1
    assert min(sent) > 1_000_000  # all that they exchanged went over the cable
    alone = [
        "train",
        "sensors.csv",
        "--target",
        "label",
        "--group",
        "device",
        "--time",
        "t",
        "--shards",
        "4",
        "--out",
        "one",
    ]
    done = subprocess.run([sys.executable, "-m", "tidegate", *alone], cwd=tmp_path, check=False)
    assert done.returncode == 0
    for name in ("model.safetensors", "no_memory/model.safetensors", "results.json"):
        assert (tmp_path / "runs/two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
