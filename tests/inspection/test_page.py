"""The page as a file: whole, small, silent towards the network, and never taken in by a name. (What it does in a browser
is tested in tests/browser.)
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from importlib import resources

import numpy as np
import pytest
import torch

from tests.helpers.inspection_runs import KINDS
from tidegate.errors import SettingsError
from tidegate.gates.gates import Gates
from tidegate.gates.statistics import Counter
from tidegate.inspection import Inspection, picture, write_page
from tidegate.inspection.inspection import Layer
from tidegate.inspection.lean import Lean
from tidegate.inspection.sequence import InputColumn

HOSTILE = "</script><script>alert(1)</script><!--"


def data_of(html: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def shorts(field: dict) -> np.ndarray:
    """[H, P] as the page's script reads it."""
    whole = np.frombuffer(base64.b64decode(field["values"]), dtype="<i2").reshape(len(field["scale"]), -1)
    return whole * np.array(field["scale"])[:, None]


def floats(field: dict, units: int) -> np.ndarray:
    """The same where a field has no scale."""
    assert field["scale"] is None
    return np.frombuffer(base64.b64decode(field["values"]), dtype="<f4").reshape(units, -1)


def made_up(T: int, H: int, names=("l0",), drawn: int | None = None) -> Inspection:
    """An inspection of random numbers, of any size."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for name in names:
        parts = [3 * torch.randn(T, 3 * H, generator=generator) for _ in range(2)]
        r, z = (torch.sigmoid(sum(p[:, k * H : (k + 1) * H] for p in parts)) for k in range(2))
        recurrent = parts[1][:, 2 * H :]
        n = torch.tanh(parts[0][:, 2 * H :] + r * recurrent)
        h, before = torch.zeros(T, H), torch.zeros(T, H)
        for t in range(T):
            before[t] = h[t - 1] if t else 0
            h[t] = (1 - z[t]) * n[t] + z[t] * before[t]
        gates = Gates(r, z, n, recurrent, h)
        counter = Counter()
        counter.add(Gates(*(v[:, None] for v in gates)))
        layers.append(Layer(name, gates, *parts, before, counter.result()))
    steps = np.arange(T) if drawn is None else np.unique(np.linspace(0, T, drawn, endpoint=False).astype(int))
    lean = Lean(np.random.default_rng(0).random((len(steps), len(steps))), np.ones((len(steps), 1)), None)
    column = InputColumn("x", "number", np.random.default_rng(1).standard_normal(T), None, (0,))
    return Inspection("runs/x", f"1 layer of {H} units", "x.csv", "step", ("y",), 0, "a", 1, T, 1, T, np.arange(T), None, [column], [], layers, steps, lean, "")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_asks_nothing_of_the_network_and_runs_its_own_script_alone(trained, kind):
    run, table = trained(kind)
    html = run.inspect(table).html()
    assert not re.findall(
        r"""(?:src|href|action|srcset)\s*=|url\((?!#)|@import|https?:(?!//www\.w3\.org/2000/svg)""", html
    )
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert (
        policy
        == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert html.count("<script") == 2
    assert "fetch(" not in html
    assert "XMLHttpRequest" not in html
    assert "innerHTML" not in html


def test_names_of_columns_classes_sequences_and_runs_stay_text(trained):
    run, table = trained("words")
    found = run.inspect(table)
    bad = dataclasses.replace(
        found,
        run=HOSTILE,
        table=HOSTILE,
        sequence=HOSTILE,
        target=(HOSTILE,),
        columns=[dataclasses.replace(c, name=HOSTILE, values=[HOSTILE] * found.length) for c in found.columns],
        outputs=[
            dataclasses.replace(o, name=HOSTILE, values=[HOSTILE] * found.length, top=[[(HOSTILE, 1.0)]] * found.length)
            for o in found.outputs
        ],
    )
    html = bad.html()
    assert html.count("<script") == 2
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert "<!--" not in html
    view = data_of(html)["views"][0]
    assert view["columns"][0]["values"][0] == HOSTILE
    assert view["outputs"][0]["top"][0][0][0] == HOSTILE


@pytest.mark.parametrize("steps", [None, "2:4"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_in_the_page_are_those_of_the_gates(trained, kind, steps):
    run, table = trained(kind)
    found = run.inspect(table, steps=steps)
    (view,) = data_of(found.html())["views"]
    assert view["steps"] == list(range(found.first, found.last + 1))
    for layer, drawn in zip(found.layers, view["layers"], strict=True):
        H = layer.statistics.units
        f = {name: shorts(field).T for name, field in drawn["fields"].items()}
        for name, values in f.items():
            assert np.isfinite(values).all(), name
        z, r = (1 / (1 + np.exp(-f[name])) for name in ("sum_z", "sum_r"))
        np.testing.assert_allclose(z, layer.gates.update, atol=1e-4)
        np.testing.assert_allclose(r, layer.gates.reset, atol=1e-4)
        np.testing.assert_allclose(np.tanh(f["input_n"] + r * f["state_n"]), layer.gates.candidate, atol=2e-4)
        np.testing.assert_allclose(f["h"], layer.gates.hidden, atol=2e-5)
        np.testing.assert_allclose(f["input_z"], layer.input_part[:, H : 2 * H], atol=3e-4)
        edge = layer.before[-1 if layer.name.endswith("_reverse") else 0]
        np.testing.assert_allclose(drawn["edge"], edge, rtol=1e-5)
        assert drawn["order"] == layer.statistics.order.tolist()
        assert drawn["statistics"]["kind"] == layer.statistics.kinds()
        memory = [None if np.isinf(v) else v for v in layer.statistics.memory_length_steps]
        assert drawn["statistics"]["memory_length_steps"] == memory
        assert [text for text, _ in drawn["sentences"]] == [text for text, _ in found.sentences[layer.name]]
    rows = np.frombuffer(base64.b64decode(view["lean"]["rows"]), np.uint8).reshape(found.lean.steps.shape)
    np.testing.assert_allclose(rows / 255, found.lean.steps / found.lean.steps.max(axis=1, keepdims=True), atol=0.002)


@pytest.mark.parametrize("names", [("l0",), ("l0", "l0_reverse")])
def test_a_page_of_200_steps_and_128_units_is_under_two_megabytes(names):
    assert len(made_up(200, 128, names).html().encode()) < 2_000_000


def test_a_wild_input_takes_nothing_from_the_numbers_of_the_other_steps():
    found = made_up(30, 4)
    layer = found.layers[0]
    for part in (layer.input_part, layer.gates.recurrent):
        part[7] *= 10_000  # a sentinel such as 9999 in a column of about unit spread
    (drawn,) = data_of(found.html())["views"][0]["layers"]
    f = {
        name: (floats(field, 4) if field["scale"] is None else shorts(field)).T
        for name, field in drawn["fields"].items()
    }
    assert drawn["fields"]["sum_z"]["scale"] is None
    assert drawn["fields"]["h"]["scale"] is not None
    others = np.arange(30) != 7
    z, r = (1 / (1 + np.exp(-np.clip(f[name], -50, 50))) for name in ("sum_z", "sum_r"))
    np.testing.assert_allclose(z[others], layer.gates.update[others], atol=1e-6)
    n = np.tanh(f["input_n"] + r * f["state_n"])
    np.testing.assert_allclose(n[others], layer.gates.candidate[others], atol=2e-6)


def test_a_long_sequence_is_thinned_out_and_says_so():
    found = made_up(5_000, 4, drawn=50)
    html = found.html()
    assert "50 of these 5,000 steps are drawn" in html
    (view,) = data_of(html)["views"]
    assert view["steps"] == [1 + 100 * k for k in range(50)]
    (layer,) = view["layers"]
    drawn = found.layers[0].before.numpy()[found.drawn]
    np.testing.assert_allclose(shorts(layer["fields"]["before"]).T, drawn, atol=1e-4)
    (column,) = view["columns"]
    values = found.columns[0].values
    np.testing.assert_allclose(column["low"], values.reshape(50, 100).min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(column["high"], values.reshape(50, 100).max(axis=1), rtol=1e-5)


def test_a_run_draws_at_most_400_steps_but_counts_and_keeps_all(trained, monkeypatch):
    run, table = trained("one sequence")
    monkeypatch.setattr("tidegate.inspection.look.MOST_COLUMNS", 30)
    found = run.inspect(table)
    assert found.drawn.tolist() == np.linspace(0, 89, 30).round().tolist()
    assert found.drawn[-1] == 89  # the last step can always be looked at
    assert found.lean.steps.shape == (30, 30)
    assert found.layers[0].statistics.steps == 90
    assert found.to_frame()["step"].n_unique() == 90
    assert len(found.outputs[0].values) == 90
    (view,) = data_of(found.html())["views"]
    assert view["outputs"][0]["truth"] == [found.outputs[0].truth[k] for k in found.drawn]
    assert view["times"] == [found.times[k] for k in found.drawn]


def test_what_is_missing_is_null_and_not_a_number_without_a_name(trained):
    run, table = trained("a forecast")
    hole = table.filter(table["flow"].is_null()).row(0, named=True)
    html = run.inspect(table, f"{hole['site']}, {hole['meter']}").html()
    assert "NaN" not in re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1]
    flow = next(c for c in data_of(html)["views"][0]["columns"] if c["name"] == "flow")
    assert None in flow["values"]


def test_two_runs_share_a_page_if_they_read_the_same_steps(trained, tmp_path):
    run, table = trained("classes")
    other, _ = trained("two layers both ways")
    path = tmp_path / "both.html"
    write_page(path, [run.inspect(table), other.inspect(table)])
    views = data_of(path.read_text(encoding="utf-8"))["views"]
    assert [len(view["layers"]) for view in views] == [1, 4]
    with pytest.raises(SettingsError, match="not the same rows of the table"):
        write_page(tmp_path / "no.html", [run.inspect(table, steps=(1, 5)), other.inspect(table, "d1", steps=(1, 5))])
    with pytest.raises(SettingsError, match="can't be set side by side"):
        write_page(tmp_path / "no.html", [run.inspect(table), other.inspect(table, steps=(1, 2))])
    assert not (tmp_path / "no.html").exists()


# How people see a colour (linear RGB) to whom one kind of cone is missing: Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    v = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("name", "ink"), [("TINTS", "#1d2327"), ("SHADES", "#e3e7ea")])
def test_the_colours_of_classes_are_told_apart_with_every_kind_of_colour_vision_and_letters_on_them_are_read(name, ink):
    script = (resources.files("tidegate.inspection") / "templates" / "gates.js").read_text(encoding="utf-8")
    colours = re.findall(r"#\w{6}", re.search(rf"{name} = \[(.*?)\]", script)[1])
    assert len(colours) == 8
    if name == "TINTS":
        assert tuple(colours) == picture.TINTS
    for kind, seen in VISION.items():
        labs = [lab(np.array(seen) @ linear(colour)) for colour in colours]
        apart = min(np.linalg.norm(one - other) for one, other in itertools.combinations(labs, 2))
        assert apart > (20 if kind == "all cones" else 11), kind  # a difference of 2.3 is just seen
    bright = [0.05 + np.array([0.2126, 0.7152, 0.0722]) @ linear(colour) for colour in (ink, *colours)]
    assert all(max(b, bright[0]) / min(b, bright[0]) > 4.5 for b in bright[1:])
