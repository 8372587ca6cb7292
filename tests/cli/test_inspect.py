"""`tidegate inspect` and `tidegate diagram --values` as a person uses them."""

from __future__ import annotations

import json

import polars as pl
import pytest

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tidegate.cli import main
from tidegate.data.tables import write_table


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table and runs on it."""
    folder = tmp_path_factory.mktemp("inspect")
    table = folder / "signals.csv"
    write_table(signal_table(), table)
    roles = {"target": "label", "group": "device", "time": "t"}
    tidegate.train(table, out=folder / "gru", **roles, **QUICK)
    tidegate.train(table, out=folder / "small", **roles, **{**QUICK, "hidden_size": 5})
    tidegate.train(table, out=folder / "none", cell="none", **roles, **QUICK)
    return folder


@pytest.fixture
def go(place, monkeypatch, tmp_path, capsys):
    """go(arguments): run in an empty folder; the status, what was printed, and the files that are there then."""
    monkeypatch.chdir(tmp_path)

    def run(line: str):
        status = main([str(place / a) if a in ("gru", "small", "none", "signals.csv") else a for a in line.split()])
        said = capsys.readouterr()
        return status, said.out, said.err, sorted(p.name for p in tmp_path.iterdir())

    return run


def test_a_page_is_written_and_what_was_seen_is_told(go):
    status, out, err, files = go("inspect gru signals.csv")
    assert (status, err, files) == (0, "", ["gates.html"])
    assert "layer 1, forward in time:\n    8 units: " in out
    assert out.endswith("gates.html: open it in a browser.\n")


def test_the_picture_and_the_numbers_are_written_beside_it(go, tmp_path):
    line = "inspect gru signals.csv --sequence d3 -o a/page.html --png a/p.png --json n.json --parquet g.parquet"
    status, out, _, files = go(line)
    assert (status, files) == (0, ["a", "g.parquet", "n.json"])
    assert "Also written: a/p.png, n.json, g.parquet." in out
    assert (tmp_path / "a/p.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["sequence"] == "d3"
    length = signal_table().filter(device="d3").height
    assert pl.read_parquet(tmp_path / "g.parquet").height == 8 * length == 8 * numbers["length"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["p.png", "page.html"]


def test_two_runs_are_set_side_by_side(go, tmp_path):
    status, out, _, files = go("inspect --compare gru small signals.csv --steps 2:4")
    assert (status, files) == (0, ["gates.html"])
    assert out.index("8 units") < out.index("5 units")
    assert (tmp_path / "gates.html").read_text().count('<section class="view"') == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("inspect gru signals.csv --sequence d77", "no sequence 'd77'. The nearest are 'd7', 'd17', 'd"),
        ("inspect gru signals.csv --steps 5:3", "steps='5:3'"),
        ("inspect gru nothing.csv", "No such file"),
        ("inspect nothing signals.csv", "There is no run folder"),
        ("inspect none signals.csv", "has no update and reset gate"),
        ("inspect --compare none gru signals.csv", "has no update and reset gate"),
        ("inspect gru signals.csv -o page.png", "--png"),
        ("inspect gru signals.csv --png page.pdf", "ends in .png"),
        ("inspect gru signals.csv --parquet page.csv", "ends in .parquet"),
        ("inspect gru signals.csv --count-steps many", "expected a number of steps, or all"),
        ("inspect gru signals.csv --count-steps 0", "expected a number of steps, or all"),
        (f"inspect gru signals.csv -o {'x' * 300}.html", "File name too long. Choose another name."),
        ("inspect --compare gru small signals.csv --json a.json", "--compare there are two"),
        ("inspect gru signals.csv --gradients --sequence d1", "don't go together"),
        ("diagram gru --values 99", "the sequence has the steps 1 to"),
        ("diagram gru --values 1 --unit 8", "l0 has 8 units"),
        ("diagram gru --values 1 --layer l3", "the run has l0"),
        ("diagram gru --values 1 --kind flow", "leave --kind flow out"),
        ("diagram --values 1", "name the run folder"),
        ("inspect gru signals.csv --gradients --count-steps 9", "don't go together"),
        ("diagram gru --layer l0", "Add it, or leave them out"),
        ("diagram gru --values 1 --reset before", "the sizes come from the run"),
        ("diagram gru --sequence d1", "Add it, or leave them out"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_and_nothing_is_written(go, line, told):
    status, out, err, files = go(line)
    assert (status, out, files) == (2, "", [])
    assert told in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_the_table_itself_is_never_written_over(go, tmp_path):
    table = tmp_path / "t.html"
    table.write_text("not a table, but there")
    status, _, err, _ = go("inspect gru t.html -o t.html")
    assert status == 2
    assert "t.html is the table itself" in err
    assert table.read_text() == "not a table, but there"


def test_all_of_the_table_can_be_counted(go):
    _, out, _, _ = go("inspect gru signals.csv --count-steps all")
    assert f"counted over {signal_table().height} steps of 24 sequences" in out
    _, out, _, _ = go("inspect gru signals.csv --count-steps 20")
    assert " of 24 sequences" in out
    assert f"counted over {signal_table().height} steps" not in out


def test_a_diagram_holds_the_numbers_of_a_step(go, place):
    status, out, _, _ = go("diagram gru --values 3 --sequence d5 --unit 2")
    assert status == 0
    found = tidegate.load(place / "gru").inspect(place / "signals.csv", "d5")
    layer = found.layers[0]
    assert "Note over X,H: unit 2 of layer 1, forward in time, at step 3 of " in out
    for name in ("update", "reset", "candidate", "hidden"):
        value = f"{getattr(layer.gates, name)[2, 2]:.3f}".replace("-", "−")
        assert f"= {value}\n" in out, name
    with_table, _, _, _ = go("diagram gru --values 3 --sequence d5 --unit 2 --table signals.csv -o s.md")
    assert with_table == 0
