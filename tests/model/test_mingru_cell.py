"""cell="mingru" from the table to the page: trained, predicted, streamed, inspected, saved, resumed; what it can't is told."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import polars as pl
import pytest
import torch

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.errors import SettingsError
from tidegate.inspection import measure_gradients, write_page
from tidegate.model import CoreOptions
from tidegate.model.cells import CELLS
from tidegate.training import Interrupted

pytestmark = pytest.mark.usefixtures("ctrl_c")

SUFFIXES = {"onnx": "onnx", "keras": "keras", "pt2": "pt2", "c": "h"}
MINGRU = {**QUICK, **ROLES, "cell": "mingru"}


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return signal_table(12, most=12)


@pytest.fixture(scope="module")
def run(table) -> tidegate.Run:
    options = {"num_layers": 2, "learn_initial_state": True, "update_bias": (2.0, 9.0)}
    run = tidegate.train(table, out=False, **MINGRU, **options)
    with torch.no_grad():
        run.model.core.initial_h.normal_()
    return run


def rows_of(table, device):
    return table.filter(device=device).sort("t")


def test_it_trains_and_predicts(run, table):
    assert run.model.spec.cell == "mingru"
    assert isinstance(run.model.core, tidegate.MinGRU)
    assert run.predict(table)["prediction"].is_in(["up", "down"]).all()
    assert run.evaluate(table).model.count > 0
    learned = tidegate.train(table, out=False, **MINGRU, seed=1)
    assert learned.history[-1]["train_loss"] < learned.history[0]["train_loss"]


def test_its_options_reach_the_layer(run):
    spec = run.model.spec
    core = CELLS["mingru"].load().make(dataclasses.replace(spec, core=CoreOptions(update_bias=5.0)))
    assert (core.update_bias, core.learn_initial_state) == (5.0, False)
    torch.testing.assert_close(torch.sigmoid(core.bias_ih_l1[:8]), torch.full((8,), 0.8))
    assert run.model.core.update_bias == (2.0, 9.0)
    assert run.model.core.learn_initial_state


@pytest.mark.parametrize("more", [{}, {"per": "sequence", "pooling": "mean", "bidirectional": False}])
def test_a_stream_answers_what_predict_says_to_the_bit(table, more):
    whole = table.with_columns(pl.col("label").last().over("device")) if more else table
    run = tidegate.train(whole, out=False, **MINGRU, **more, num_layers=2, learn_initial_state=True)
    predicted = run.predict(whole, probabilities=True)
    stream = run.stream(probabilities=True)
    for device in ("d0", "d5"):
        expected, answers = rows_of(predicted, device), []
        for row in rows_of(table, device).to_dicts():
            answers.append(stream.push(row, device))
        for name in stream.predicted:
            own, theirs = [answer[name] for answer in answers], expected[name].to_list()
            assert own[-1:] == theirs[-1:] if more else own == theirs
    many = run.stream(probabilities=True)
    rows = rows_of(table, "d0").to_dicts()
    assert many.push_many(rows, ["a"] * len(rows))[-1] == many.push_many(rows, ["b"] * len(rows))[-1]


def test_a_saved_run_is_the_same_when_it_is_opened(run, table, tmp_path):
    before = run.predict(table, probabilities=True)
    copy = tidegate.train(table, out=tmp_path / "run", **MINGRU, learn_initial_state=True)
    opened = tidegate.load(tmp_path / "run")
    assert opened.predict(table, probabilities=True).equals(copy.predict(table, probabilities=True))
    assert opened.model.spec == copy.model.spec
    assert before.height == table.height


def test_an_interrupted_training_goes_on_to_the_same_weights(table, tmp_path):
    table.write_parquet(tmp_path / "t.parquet")
    settings = MINGRU | {"epochs": 3, "batch_size": 4, "update_bias": 5.0}
    straight = tidegate.train(tmp_path / "t.parquet", out=False, **settings)
    with pytest.raises(Interrupted):
        tidegate.train(tmp_path / "t.parquet", out=tmp_path / "run", **(settings | {"progress": StopAfter(4)}))
    resumed = tidegate.train(out=tmp_path / "run", resume=True, progress=False)
    assert same_weights(straight, resumed)


@pytest.mark.parametrize("both", [False, True])
def test_the_look_shows_what_there_is_and_no_reset_gate(table, tmp_path, both):
    run = tidegate.train(table, out=False, **MINGRU, num_layers=2, bidirectional=both, learn_initial_state=True)
    with torch.no_grad():
        for weight in run.model.core.parameters():
            weight.mul_(3).add_(0.1)
    found = run.inspect(table, "d3")
    assert len(found.layers) == 2 * (1 + both)
    for layer in found.layers:
        x, g = layer.inputs(), layer.gates
        assert (g.reset, g.recurrent, layer.state_part, [*x]) == (None, None, None, ["z", "n"])
        n = torch.where(x["n"] >= 0, x["n"] + 0.5, torch.sigmoid(x["n"]))
        torch.testing.assert_close(torch.sigmoid(x["z"]), g.update)
        torch.testing.assert_close(n, g.candidate)
        torch.testing.assert_close((1 - g.update) * n + g.update * layer.before, g.hidden)
        assert "reset" not in " ".join(text for text, _ in found.sentences[layer.name])
        assert not any("reset" in name for name in layer.statistics.columns())
    assert found.to_frame().columns == ["layer", "step", "unit", "update", "candidate", "hidden"]
    assert "reset" not in json.dumps(found.to_dict())
    labels = [a.get_ylabel().split("\n")[0] for a in found.plot().axes]  # in the left column
    assert [label for label in labels if label in ("update gate z", "reset gate r", "candidate n", "state h")] == [
        "update gate z",
        "candidate n",
        "state h",
    ]
    write_page(tmp_path / "page.html", [found])
    text = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    for raw in data["views"][0]["layers"]:
        assert [*raw["fields"]] == ["input_z", "input_n", "h"]
        assert raw["equations"] == {"reset": None, "candidate": "g"}
    values = found.step_values(4, "l1", 2)
    assert values.input_z == found.layers[-1 - both].inputs()["z"][3, 2].item()


def test_a_gru_and_a_mingru_share_a_page(run, table, tmp_path):
    gru = tidegate.train(table, out=False, **QUICK, **ROLES)
    write_page(tmp_path / "page.html", [gru.inspect(table), run.inspect(table)])
    assert (tmp_path / "page.html").read_text().count('<section class="view"') == 2


def test_the_diagram_has_the_numbers_of_a_step(run, table, tmp_path):
    from typer.testing import CliRunner

    from tidegate.cli.diagram import app

    options = {"learn_initial_state": True}
    tidegate.train(table, out=tmp_path / "run", **MINGRU, **options)
    table.write_csv(tmp_path / "t.csv")
    words = [str(tmp_path / "run"), "--values", "3", "--table", str(tmp_path / "t.csv"), "--unit", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    layer = tidegate.load(tmp_path / "run").inspect(table).layers[0]
    for letter, gate in (("Z", "update"), ("C", "candidate"), ("H", "hidden")):
        value = float(getattr(layer.gates, gate)[2, 1])
        shown = re.search(rf"Note over {letter}: .*= (\S+)$", result.output, re.MULTILINE)[1].replace("−", "-")
        assert float(shown) == pytest.approx(value, abs=0.0006)
    assert "participant R" not in result.output


def test_logged_gates_and_the_report_leave_the_reset_gate_out(table, tmp_path):
    run = tidegate.train(table, out=tmp_path / "run", log_gates=True, **MINGRU)
    assert "l0_update_mean" in run.history[0]
    assert not any("reset" in name for name in run.history[0])
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Mean gates" in report
    assert "reset r" not in report


def test_gradients_are_measured_beside_an_lstm_and_a_plain_rnn(run, table):
    flow = measure_gradients(run, table, progress=False)
    assert [*flow.cells] == ["mingru", "lstm", "rnn"]
    text = str(flow)
    assert "the minGRU's" in text
    assert "GRU's" not in text.replace("minGRU's", "")
    assert "as a minGRU, an LSTM and a plain RNN" in flow.html()
    # Of one layer dh_t/dh_(t-1) is z_t and nothing else.
    one = tidegate.train(table, out=False, **MINGRU)
    with torch.no_grad():
        weight, bias = one.model.core.all_weights[0]
        weight[:8] = 0
        bias[:8] = float(np.log(4))  # z is 0.8 at every step
    h = measure_gradients(one, table, progress=False).cells["mingru"].h
    np.testing.assert_allclose(h.median[:5], 0.8 ** np.arange(5), rtol=1e-5)


@pytest.mark.parametrize("target", SUFFIXES)
def test_an_export_says_what_would_do(run, target, tmp_path):
    with pytest.raises(SettingsError, match=r"is 'mingru'; what is exported are GRUs.*--cell gru.*predict.*stream"):
        run.export(target, tmp_path / f"model.{SUFFIXES[target]}")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("option", [{"reset": "before"}, {"zoneout": 0.1}, {"layer_norm": True}])
def test_an_option_that_it_does_not_know_is_told(table, option):
    (name,) = option
    with pytest.raises(SettingsError, match=f"{name}=.* needs cell='gru': 'mingru' has no such option"):
        tidegate.train(table, out=False, **MINGRU, **option)
