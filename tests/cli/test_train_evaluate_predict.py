"""The command line as a person uses it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
import yaml

from tests.helpers.tables import signal_table
from tidegate.cli import COMMANDS, main
from tidegate.data.tables import read_table, write_table
from tidegate.trained.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("ctrl_c")

QUICK = ["--hidden-size", "8", "--epochs", "2", "--no-baselines", "--device", "cpu"]
ROLES = ["--target", "label", "--group", "device", "--time", "t"]


def tidegate(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_goes_all_the_way_to_predictions(tmp_path, capsys, suffix):
    table, folder, out = tmp_path / f"t{suffix}", tmp_path / "run", tmp_path / f"p{suffix}"
    write_table(signal_table(), table)
    assert main(["train", str(table), *ROLES, "--out", str(folder), *QUICK]) == 0
    shown = capsys.readouterr().err
    assert "epoch 1/2  loss" in shown
    assert "epoch 2/2  loss" in shown
    assert "majority class" in shown
    assert main(["evaluate", str(folder), str(table)]) == 0
    assert "On the test rows of t" in capsys.readouterr().out
    assert main(["predict", str(folder), str(table), "-o", str(out), "--probabilities"]) == 0
    frame = read_table(out).frame
    assert frame.columns == [*signal_table().columns, "prediction", "p_down", "p_up"]
    assert frame.height == signal_table().height
    assert ((frame["p_up"] > 0.5) == (frame["prediction"] == "up")).all()


def test_a_table_whose_categories_training_never_saw_is_warned_of(tmp_path, capsys):
    table, other, folder = tmp_path / "t.csv", tmp_path / "other.csv", tmp_path / "run"
    write_table(signal_table(), table)
    colours = pl.col("colour").replace({"red": "rot", "green": "grün", "blue": "blau"})
    write_table(signal_table().with_columns(colours), other)
    assert main(["train", str(table), *ROLES, "--out", str(folder), *QUICK]) == 0
    for command in (["evaluate", str(folder)], ["predict", str(folder), "-o", str(tmp_path / "p.csv")]):
        assert main([*command, str(table)]) == 0
        assert "Warning" not in capsys.readouterr().err
        assert main([*command, str(other)]) == 0
        shown = capsys.readouterr().err
        assert "Warning: other.csv, line 2, column 'colour'" in shown
        assert "100% of all values, never occurred in training" in shown
        assert ".py" not in shown


def test_predictions_never_replace_the_table_they_are_made_from(tmp_path, capsys):
    table, folder = tmp_path / "t.csv", tmp_path / "run"
    write_table(signal_table(), table)
    before = table.read_bytes()
    assert main(["train", str(table), *ROLES, "--out", str(folder), *QUICK]) == 0
    assert main(["predict", str(folder), str(table), "-o", str(table)]) == 2
    assert "is the table itself" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_evaluate_prints_json_on_request(tmp_path, capsys):
    table, folder = tmp_path / "t.csv", tmp_path / "run"
    write_table(signal_table(), table)
    main(["train", str(table), *ROLES, "--out", str(folder), *QUICK, "--quiet"])
    assert capsys.readouterr() == ("", "")
    assert main(["evaluate", str(folder), str(table), "--json", "--rows", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["count"] == signal_table().height


def test_every_setting_is_an_option_with_its_help_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in TrainSettings.model_fields:
        assert "--" + name.replace("_", "-") in shown
    assert "(default: 128)" in shown
    assert "(default: 0.7,0.15,0.15)" in shown


def test_the_command_line_and_a_yaml_file_mean_the_same_and_the_command_line_wins(tmp_path):
    table = tmp_path / "t.csv"
    write_table(signal_table(), table)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"table: {table}\ntarget: label\ngroup: device\ntime: t\nhidden_size: 8\nepochs: 2\nbaselines: false\nlr: 0.5\n"
    )
    assert main(["train", "--config", str(config), "--lr", "0.01", "--out", str(tmp_path / "a"), "--quiet"]) == 0
    assert main(["train", str(table), *ROLES, *QUICK, "--lr", "0.01", "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert yaml.safe_load((tmp_path / "a/config.yaml").read_text())["lr"] == 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.csv", "--target", "y"], "Error: No such file: nothing.csv."),
        (["train", "--target", "y"], "Error: No table"),
        (["train", "{table}"], "name the column to predict"),
        (["train", "{table}", "--target", "lable"], "Did you mean 'label'?"),
        (["train", "{table}", *ROLES, "--cell", "grru"], "cell='grru': expected one of"),
        (["train", "{table}", *ROLES, "--config", "no.yaml"], "No such settings file"),
        (["train", "{table}", *ROLES, "--out", "{folder}"], "is not a run; nothing in it is touched"),
        (["evaluate", "{folder}", "{table}"], "is not a run"),
        (["predict", "{folder}", "{table}", "-o", "x.xlsx"], "can't write '.xlsx'"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "{table}", "--epochs", "few"], "'--epochs'"),
    ],
)
def test_a_users_mistake_ends_with_status_2_one_sentence_and_no_files(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    table = tmp_path / "t.csv"
    write_table(signal_table(), table)
    before = sorted(tmp_path.rglob("*"))
    assert main([a.format(table=table, folder=tmp_path) for a in arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.long
def test_debug_shows_the_traceback(tmp_path):
    done = tidegate("train", "nothing.csv", "--target", "y", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert "DataError" in done.stderr


@pytest.mark.long
def test_ctrl_c_saves_and_says_how_to_go_on_and_resume_finishes(tmp_path):
    table, folder = tmp_path / "t.parquet", tmp_path / "run"
    write_table(signal_table(groups=200), table)
    long = ["--hidden-size", "8", "--no-baselines", "--batch-size", "1", "--device", "cpu", "--epochs", "4"]
    running = subprocess.Popen(
        [sys.executable, "-m", "tidegate", "train", str(table), *ROLES, "--out", str(folder), *long],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for line in running.stderr:
        if line.startswith("Training"):
            break
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    rest = running.stderr.read()
    assert running.wait(60) == 130
    assert f"Go on with: tidegate train --resume --out {folder}" in rest
    assert "Traceback" not in rest
    done = tidegate("train", "--resume", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert len(pl.read_csv(folder / "metrics.csv")) == 4


def test_help_and_version_load_neither_torch_nor_polars():
    code = (
        "import json, sys; from tidegate.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    status = main(arguments)\n"
        "    print('>', arguments, status, [m for m in ('torch', 'polars', 'matplotlib', 'torchmetrics') if m in sys.modules])"
    )
    every = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(every)], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line[:1] == ">"] == [f"> {a} 0 []" for a in every]


def test_importing_tidegate_loads_neither_torch_nor_anything_heavy():
    code = "import sys, tidegate; print([m for m in ('torch', 'numpy', 'polars', 'pydantic', 'typer', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_names_the_parts_and_the_back_end(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("torch", "polars", "CPU", "backend='auto' runs 'native'"):
        assert word in shown


@pytest.fixture
def few_sentences(monkeypatch):
    """The demo's real sentences, fewer of them: the tour itself is what is tested here."""
    from tidegate import datasets

    real = datasets.read("snips")
    few = pl.concat(
        [real.filter(pl.col("split") == s).head(n) for s, n in (("train", 600), ("valid", 60), ("test", 60))]
    )

    def write(name, folder):
        folder.mkdir(parents=True)
        few.write_parquet(folder / "snips.parquet")
        return [folder / "snips.parquet"]

    monkeypatch.setattr(datasets, "write", write)


@pytest.mark.long
def test_the_demo_tours_training_scoring_and_a_typed_sentence(tmp_path, capsys, few_sentences, monkeypatch):
    assert main(["demo", "book a table for two", "--out", str(tmp_path / "demo"), "--epochs", "1"]) == 0
    shown = capsys.readouterr()
    for word in ("1. The data", "2. Train", "3. Use it", "4. What to try next", "book", "table"):
        assert word in shown.out
    assert "same head, no recurrence" in shown.err
    assert (tmp_path / "demo/run/report.html").exists()
    monkeypatch.chdir(tmp_path)
    for pattern, written in (
        (r"(inspect .*?)  +what the gates do", "gates.html"),
        (r"(export .*?)  +the model as", "snips.h"),
    ):
        (line,) = re.findall(rf"^   \S*tidegate {pattern}", shown.out, re.MULTILINE)
        assert main(line.split()) == 0
        assert (tmp_path / written).exists()


def test_the_demo_labels_what_is_typed_until_the_input_ends(tmp_path, capsys, few_sentences, monkeypatch):
    typed = iter(["will it snow in oslo"])

    def answer(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "oslo" in shown
    assert "What to try next" in shown
