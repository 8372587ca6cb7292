"""`run.inspect` on runs whose recurrence isn't torch's: gates, parts, equations, diagrams and the page's numbers."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tidegate.data.tables import read_table
from tidegate.gates.diagram import sequence_diagram
from tidegate.inspection import write_page

OPTIONS = {
    "before": {"reset": "before"},
    "norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.25},
    "first state": {"learn_initial_state": True},
    "dropout": {"recurrent_dropout": 0.3},
    "all": {
        "reset": "before",
        "layer_norm": True,
        "zoneout": 0.25,
        "learn_initial_state": True,
        "recurrent_dropout": 0.3,
        "init": "orthogonal",
        "update_bias": (2.0, 20.0),
        "checkpoint_every": 2,
    },
}


@pytest.fixture(scope="module")
def optioned():
    """optioned(name): a run in memory with these options, all its weights large enough to be seen, and its table."""
    made = {}

    def get(name: str):
        if name not in made:
            table = signal_table(8, most=12)
            more = {"num_layers": 2, "bidirectional": True, "hidden_size": 6}
            roles = {"target": "label", "group": "device", "time": "t"}
            run = tidegate.train(table, out=False, **{**QUICK, **more, **roles, **OPTIONS[name]})
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for weight in run.model.core.parameters():
                    weight.add_(0.6 * torch.randn(weight.shape, generator=generator))
            made[name] = run, table
        return made[name]

    return get


def data_of(found, tmp_path) -> dict:
    write_page(tmp_path / "page.html", [found])
    text = (tmp_path / "page.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def decoded(field, units: int) -> np.ndarray:
    """A field of the page's data as [steps, units]."""
    raw = base64.b64decode(field["values"])
    if field["scale"] is None:
        return np.frombuffer(raw, "<f4").reshape(units, -1).T
    return (np.frombuffer(raw, "<i2").reshape(units, -1) * np.array(field["scale"])[:, None]).T


def sigma(v):
    return 1 / (1 + np.exp(-v))


@pytest.mark.parametrize("name", OPTIONS)
def test_gates_and_states_follow_from_the_parts_of_every_layer(optioned, name):
    run, table = optioned(name)
    found = run.inspect(table, "d3")
    assert len(found.layers) == 4
    for layer in found.layers:
        x, h, g, form = layer.inputs(), layer.states(), layer.gates, layer.equations
        r, z = torch.sigmoid(x["r"] + h["r"]), torch.sigmoid(x["z"] + h["z"])
        n = torch.tanh(x["n"] + (h["n"] if form.reset == "before" else r * h["n"]))
        new = form.zoneout * layer.before + (1 - form.zoneout) * ((1 - z) * n + z * layer.before)
        for ours, theirs in ((r, g.reset), (z, g.update), (n, g.candidate), (h["n"], g.recurrent), (new, g.hidden)):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        back = layer.name.endswith("_reverse")
        inner, outer = (layer.before[:-1], g.hidden[1:]) if back else (layer.before[1:], g.hidden[:-1])
        assert torch.equal(inner, outer)
        first = run.model.core.initial_state()[[one.name for one in found.layers].index(layer.name)]
        assert torch.equal(layer.before[-1 if back else 0], first)
        assert bool(first.any()) == run.model.spec.core.learn_initial_state


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stretch_and_a_diagram_have_the_numbers_of_the_whole(optioned, name):
    run, table = optioned(name)
    whole, part = run.inspect(table, "d3"), run.inspect(table, "d3", steps=(3, 5))
    for a, b in zip(part.layers, whole.layers, strict=True):
        for ours, theirs in ((a.input_part, b.input_part), (a.state_part, b.state_part), (a.before, b.before)):
            torch.testing.assert_close(ours, theirs[2:5])
    form = whole.layers[0].equations
    for layer in whole.layers:
        values = whole.step_values(4, layer.name, 2)
        text = sequence_diagram(3, 6, reset=form.reset, values=values, layer_norm=form.layer_norm, zoneout=form.zoneout)
        for letter, gate in (("Z", "update"), ("R", "reset"), ("C", "candidate"), ("H", "hidden")):
            value = float(getattr(layer.gates, gate)[3, 2])
            shown = re.search(rf"Note over {letter}: .*= (\S+)$", text, re.MULTILINE)[1].replace("−", "-")
            assert float(shown) == pytest.approx(value, abs=0.0006)


def test_the_diagram_writes_down_the_equations_of_the_options():
    text = sequence_diagram(3, 5, reset="before", layer_norm=True, zoneout=0.25)
    assert "r = σ(LN(W_ir x) + b_ir + LN(W_hr h) + b_hr)" in text
    assert "n = tanh(LN(W_in x) + b_in + LN(W_hn (r·h)) + b_hn)" in text
    assert "h' = p·h + (1 - p)·((1 - z)·n + z·h)" in text
    assert "p = 0.25 is zoneout" in text
    assert "LN is layer norm" in text
    assert "r·(LN(W_hn h) + b_hn)" in sequence_diagram(3, 5, layer_norm=True)
    assert "LN" not in sequence_diagram(3, 5, zoneout=0.25)
    assert "zoneout" not in sequence_diagram(3, 5, layer_norm=True)


def test_the_diagram_of_a_layer_without_a_reset_gate_leaves_it_out():
    text = sequence_diagram(3, 5, reset=None)
    assert "participant R" not in text
    assert "R->>" not in text
    assert "H->>Z" not in text
    assert "z = σ(W_z x + b_z)" in text
    assert "n = g(W_h x + b_h)" in text


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_holds_what_its_script_needs_for_these_equations(optioned, name, tmp_path):
    run, table = optioned(name)
    found = run.inspect(table, "d3")
    data = data_of(found, tmp_path)
    for raw, layer in zip(data["views"][0]["layers"], found.layers, strict=True):
        form = {"reset": "after", "layer_norm": False, "zoneout": 0} | raw.get("equations", {})
        f = {field: decoded(values, raw["units"]) for field, values in raw["fields"].items()}
        r, z = sigma(f["sum_r"]), sigma(f["sum_z"])
        n = np.tanh(f["input_n"] + (r * f["state_n"] if form["reset"] == "after" else f["state_n"]))
        for ours, theirs in ((r, layer.gates.reset), (z, layer.gates.update), (n, layer.gates.candidate)):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=5e-4)
        keep = z + form["zoneout"] * (1 - z)
        np.testing.assert_allclose((1 - keep) * n + keep * layer.before.numpy(), f["h"], atol=2e-3)
        core = run.model.spec.core
        assert (form["reset"], form["layer_norm"], form["zoneout"]) == (core.reset, core.layer_norm, core.zoneout)
    plain = name in ("first state", "dropout")
    assert ("equations" in data["views"][0]["layers"][0]) != plain


def test_the_options_are_named_where_the_run_is(optioned):
    run, table = optioned("all")
    said = run.inspect(table).described
    for words in (
        "both directions",
        "reset before the product",
        "layer norm",
        "zoneout 0.25",
        "a learned initial state",
    ):
        assert words in said


def test_memory_under_zoneout_is_counted_and_defined_with_it(optioned, tmp_path):
    run, table = optioned("zoneout")
    found = run.inspect(table)
    assert all("p + (1 - p) z" in definition for _, definition in found.sentences["l0"][:2])
    assert "p + (1 - p) z" in data_of(found, tmp_path)["definitions"]["memory"]
    run, table = optioned("norm")
    found = run.inspect(table)
    assert not any("p + (1 - p) z" in definition for _, definition in found.sentences["l0"])
    assert "p + (1 - p) z" not in data_of(found, tmp_path)["definitions"]["memory"]


@pytest.mark.parametrize("name", ["all", "before"])
def test_what_a_prediction_leans_on_is_its_own_gradient(optioned, name):
    run, table = optioned(name)
    found = run.inspect(table, "d3")
    own = run.preprocessing.apply(read_table(table.filter(device="d3")), with_target=False)
    numbers, codes = torch.from_numpy(own.numbers)[:, None], torch.from_numpy(own.codes)[:, None]
    encoded = run.model.encode(numbers, codes).detach().requires_grad_()
    scores = run.model.scores(encoded, torch.tensor([len(encoded)]))
    for step in (0, 2, found.length - 1):
        best, second = scores[step, 0, 0].sort(descending=True).values[:2]
        (slope,) = torch.autograd.grad(best - second, encoded, retain_graph=True)
        np.testing.assert_allclose(found.lean.steps[step], slope[:, 0].norm(dim=1).numpy(), rtol=1e-3, atol=1e-5)


def test_the_look_leaves_dropout_and_zoneout_out_and_the_model_as_it_was(optioned):
    run, table = optioned("all")
    run.model.train()
    first, second = run.inspect(table, "d3"), run.inspect(table, "d3")
    assert run.model.training
    run.model.eval()
    for a, b in zip(first.layers, second.layers, strict=True):
        assert torch.equal(a.gates.hidden, b.gates.hidden)
        assert torch.equal(a.input_part, b.input_part)


def test_the_command_draws_the_step_of_a_run_with_its_options(optioned, tmp_path):
    from typer.testing import CliRunner

    from tidegate.cli import main  # noqa: F401 (the commands are there)
    from tidegate.cli.diagram import app

    run, table = optioned("all")
    run.save(tmp_path / "run")
    table.write_csv(tmp_path / "t.csv")
    result = CliRunner().invoke(app, [str(tmp_path / "run"), "--values", "3", "--table", str(tmp_path / "t.csv")])
    assert result.exit_code == 0, result.output
    assert "LN(W_hn (r·h))" in result.output
    assert "zoneout" in result.output
