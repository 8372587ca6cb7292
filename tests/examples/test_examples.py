"""The examples run as a beginner would run them."""

import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "examples" / "01_first_gru.py"


def said_by(script: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert "Warning" not in run.stderr
    return run.stdout


def losses_of(script: Path) -> list[float]:
    said = said_by(script)
    lines = [re.fullmatch(r"epoch +(\d+)  loss (\d+\.\d+)", line) for line in said.splitlines()]
    assert all(lines), said
    assert [int(line[1]) for line in lines] == list(range(1, len(lines) + 1))
    return [float(line[2]) for line in lines]


@pytest.mark.long
def test_the_first_example_prints_100_losses_and_they_fall_by_half():
    losses = losses_of(FIRST)
    assert len(losses) == 100
    assert 0.6 < losses[0] < 0.9  # about log 2: it begins by guessing
    assert losses[-1] < losses[0] / 2
    assert all(after < before for before, after in pairwise(losses))


def test_the_first_example_has_thirty_lines_of_code_at_most_and_no_line_too_wide_to_read():
    text = FIRST.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstring = range(tree.body[0].lineno, tree.body[0].end_lineno + 1)
    code = [
        line
        for number, line in enumerate(text.splitlines(), 1)
        if number not in docstring and line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 30
    assert max(map(len, text.splitlines())) <= 110


def test_the_labels_of_the_first_example_need_memory():
    # With the loop cut off, the file gives its data; of equal signs of the present number, labels of both kinds.
    text = FIRST.read_text(encoding="utf-8").split("model = StepClassifier()")[0]
    names: dict = {}
    exec(compile(text, FIRST, "exec"), names)
    x, labels = names["x"], names["labels"]
    assert tuple(x.shape) == (5, 7, 10)
    assert tuple(labels.shape) == (5, 7)
    sign = x[:, :, 0] > 0
    assert set(labels[sign].tolist()) == set(labels[~sign].tolist()) == {0, 1}
    assert names["StepClassifier"]()(x)[0].shape == (5, 7, 2)
    assert names["StepClassifier"]()(x)[1].shape == (1, 5, 20)


@pytest.mark.long
def test_the_second_example_learns_who_speaks_and_finds_the_same_bits_in_every_form():
    said = said_by(ROOT / "examples" / "02_variable_lengths.py")
    (score,) = re.findall(r"^(0\.\d+) of 370 utterances", said, re.MULTILINE)
    assert float(score) > 0.9
    assert said.endswith("padded, nested, packed or alone: every output has the same bits\n")


@pytest.mark.long
def test_the_third_example_needs_its_resets_and_finds_the_same_bits_in_pieces():
    said = said_by(ROOT / "examples" / "03_resets.py")
    ((without, with_resets),) = re.findall(r"without resets (0\.\d+) .* with resets (0\.\d+|1\.0+)", said)
    assert float(with_resets) > 0.97
    assert float(without) < 0.9
    assert said.count("the same bits") == 2


@pytest.mark.long
def test_the_fourth_example_loses_no_row_in_a_crash_and_answers_as_predict_does():
    said = said_by(ROOT / "examples" / "04_stream.py")
    assert "row by row, with a crash on the way: every answer is that of run.predict" in said
    assert "datatest: 2,665 rows, its state is 128 bytes" in said
    (right,) = re.findall(r"^(0\.\d+) of the answers are right", said, re.MULTILINE)
    assert float(right) > 0.8
