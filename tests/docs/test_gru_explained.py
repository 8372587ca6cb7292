"""The tutorial's Python runs, its numbers are right, and its diagram is the one that the command prints."""

import doctest
import math
import re

import pytest
import torch
from typer.testing import CliRunner

import tidegate
from tests.helpers.pages import ROOT, blocks
from tidegate.cli.diagram import app

ARTICLE = ROOT / "docs" / "gru-explained.md"


@pytest.fixture(scope="module")
def text() -> str:
    return ARTICLE.read_text(encoding="utf-8")


def test_the_python_in_the_article_runs_and_prints_what_it_says(text):
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    names: dict = {}
    found = blocks(text, "python")
    assert len(found) == 4
    for number, block in enumerate(found, 1):
        test = parser.get_doctest(block, names, f"block {number}", str(ARTICLE), 0)
        assert test.examples
        runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.failures == 0
    assert runner.tries > 15


def test_the_diagram_in_the_article_is_what_the_command_prints(text):
    (diagram,) = blocks(text, "mermaid")
    assert diagram == CliRunner().invoke(app, [], catch_exceptions=False).output


def test_the_step_by_hand_is_the_table_above_it_put_through_a_cell(text):
    rows = re.findall(r"^\| ([rzn]) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["r", "z", "n"]
    w_ih, w_hh, b_ih, b_hh = (torch.tensor([float(row[k]) for row in rows]) for k in range(1, 5))
    cell = tidegate.GRUCell(1, 1)
    with torch.no_grad():
        cell.weight_ih.copy_(w_ih[:, None])
        cell.weight_hh.copy_(w_hh[:, None])
        cell.bias_ih.copy_(b_ih)
        cell.bias_hh.copy_(b_hh)
        new = cell(torch.tensor([[1.0]]), torch.tensor([[0.5]])).item()
    said = {name: float(value) for name, value in re.findall(r"^    ([rzn]|h') +=.*= (\d\.\d+)$", text, re.MULTILINE)}
    r = 1 / (1 + math.exp(-(w_ih[0] + w_hh[0] * 0.5 + b_ih[0] + b_hh[0])))
    z = 1 / (1 + math.exp(-(w_ih[1] + w_hh[1] * 0.5 + b_ih[1] + b_hh[1])))
    n = math.tanh(w_ih[2] + b_ih[2] + r * (w_hh[2] * 0.5 + b_hh[2]))
    assert said == pytest.approx({"r": r, "z": z, "n": n, "h'": new}, abs=5e-5)


def test_the_article_s_parameter_table_counts_torch_s_parameters(text):
    (row,) = re.findall(r"^\| parameters, 10 inputs and 20 units, torch \| (.*) \|$", text, re.MULTILINE)
    counted = [
        sum(p.numel() for p in layer(10, 20).parameters()) for layer in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM)
    ]
    assert [int(cell.replace(",", "")) for cell in row.split(" | ")] == counted
    assert [c / counted[0] for c in counted] == [1, 3, 4]


def test_the_article_has_at_most_200_lines(text):
    assert 100 < len(text.splitlines()) <= 200
