"""How far back gradients reach in a GRU whose recurrence has options: that very cell is measured."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.tables import read_table
from tidegate.inspection.gradients import Unrolled, make_plan, measure_gradients, relative_gradients
from tidegate.model.tasks import TASKS
from tidegate.trained.rows import batch_source
from tidegate.training import TrainSettings, train
from tidegate.training.resolve import build, complete, model_spec

OPTIONS = [
    {"reset": "before"},
    {"layer_norm": True},
    {"zoneout": 0.25},
    {"learn_initial_state": True},
    {"recurrent_dropout": 0.3},
    {
        "reset": "before",
        "layer_norm": True,
        "zoneout": 0.25,
        "learn_initial_state": True,
        "recurrent_dropout": 0.3,
        "checkpoint_every": 2,
        "init": "orthogonal",
    },
]


def prepared(**settings):
    """A new model whose weights are large enough for every gate to matter, its source and its plan."""
    chosen = TrainSettings.make(**(ROLES | {"hidden_size": 5} | settings))
    pre, data = fit_preprocessing(read_table(signal_table()), chosen, chosen.seed)
    source = batch_source(data, pre, torch.device("cpu"))
    model = build(model_spec(chosen, pre, data), pre, complete(chosen, data), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.6)
    return model, pre, source, make_plan(model.spec, source, None, "the rows")


def one_sequence(model, source, piece):
    """The model in float64, and what its core reads of a piece, [T, 1, I]."""
    steps = slice(piece.start, piece.end)
    double = copy.deepcopy(model).double().eval()
    return double, double.encode(source.numbers[steps, None].double(), source.codes[steps, None]).detach()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("layers", "both"), [(1, False), (3, True)])
def test_the_unrolled_pass_is_the_core(options, layers, both):
    model, _, source, plan = prepared(num_layers=layers, bidirectional=both, **options)
    core, H = Unrolled(model), model.spec.hidden_size
    for piece in plan[:2]:
        double, encoded = one_sequence(model, source, piece)
        with torch.no_grad():
            output, _ = double.core(encoded)
            _, (h,), backward = core.read(encoded, torch.tensor([piece.length]))
        torch.testing.assert_close(h, output[..., :H], rtol=0, atol=1e-12)
        if both:
            torch.testing.assert_close(backward, output[..., H:], rtol=0, atol=1e-12)
        first = double.core.initial_state(1)[-2 if both else -1].detach()
        torch.testing.assert_close(core.first[0], first)
        assert bool(first.any()) == model.spec.core.learn_initial_state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_the_layer_begun_anew_at_every_step(options):
    model, pre, source, plan = prepared(**options)
    ratios = relative_gradients(model, pre, source, None, plan)["h"]
    for i in (0, 11):
        (t,) = plan[i].at
        double, encoded = one_sequence(model, source, plan[i])
        y = source.all_targets(None)[plan[i].start + t]
        sizes = []
        for k in range(t + 1):
            h = double.core(encoded[: t - k + 1])[1].detach().requires_grad_()
            end = double.core(encoded[t - k + 1 : t + 1], h)[0][-1] if k else h[0]
            loss = TASKS[pre.target.task].loss_sum(double.head(end)[:, None], y[None])[0]
            sizes.append(float(torch.autograd.grad(loss, h)[0].norm()))
        np.testing.assert_allclose(ratios[i, : t + 1], np.array(sizes) / sizes[0], rtol=1e-9, atol=1e-14)


def test_a_run_in_memory_is_measured_beside_cells_trained_in_memory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = signal_table()
    run = train(table, out=False, **(QUICK | ROLES | OPTIONS[-1]))
    flow = measure_gradients(run, table, progress=False)
    assert [*flow.cells] == ["gru", "lstm", "rnn"]
    assert [one.folder for one in flow.cells.values()] == [None, None, None]
    assert flow.run == "the run in memory"
    assert [*tmp_path.iterdir()] == []
    again = measure_gradients(run, table, progress=False)
    assert again.to_dict() == flow.to_dict()
    assert "as a GRU, an LSTM and a plain RNN" in flow.html()


def test_the_siblings_of_a_run_with_options_are_trained_without_what_they_do_not_know(tmp_path):
    table = signal_table()
    run = train(table, out=tmp_path / "run", **(QUICK | ROLES | OPTIONS[-1]))
    plain = train(table, out=False, **(QUICK | ROLES | {"cell": "lstm"}))
    flow = measure_gradients(run, table, progress=False)
    assert flow.cells["lstm"].score == plain.results.model.summary[flow.metric]
