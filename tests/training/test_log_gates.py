"""log_gates: the gates are counted after every epoch, and nothing else changes."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import TRAIN, VALID
from tidegate.data.tables import read_table, write_table
from tidegate.errors import SettingsError
from tidegate.report.gate_curves import gate_curves
from tidegate.trained.folder import read_history
from tidegate.trained.rows import batch_source
from tidegate.training import Interrupted, TrainSettings, load, train
from tidegate.training.gate_log import MOST_STEPS, SHARE, GateLog, _of_similar_length
from tidegate.training.journal import FolderJournal
from tidegate.training.resolve import build, complete, model_spec

pytestmark = pytest.mark.usefixtures("ctrl_c")

FIELDS = [
    "update_mean",
    "update_near_0",
    "update_near_1",
    "reset_mean",
    "reset_near_0",
    "reset_near_1",
    "memory_length_steps",
]


def prepared(frame: pl.DataFrame, **settings):
    """The source and a new model for a table."""
    chosen = TrainSettings.make(**(ROLES | {"hidden_size": 8} | settings))
    pre, data = fit_preprocessing(read_table(frame), chosen, chosen.seed)
    source = batch_source(data, pre, torch.device("cpu"))
    model = build(model_spec(chosen, pre, data), pre, complete(chosen, data), torch.device("cpu"))
    return source, model


def test_training_gives_the_same_bits_with_the_gates_logged_and_without(tmp_path, signals):
    settings = QUICK | ROLES | {"epochs": 3, "baselines": True, "dropout": 0.4, "num_layers": 2, "bidirectional": True}
    without = train(signals, out=tmp_path / "without", **settings)
    logged = train(signals, out=tmp_path / "with", log_gates=True, **settings)
    assert same_weights(without, logged)
    own = {f"{place}_{field}" for place in ("l0", "l0_reverse", "l1", "l1_reverse") for field in FIELDS}
    assert set(logged.history[0]) - set(without.history[0]) == own
    plain = [{k: v for k, v in row.items() if k not in own and k != "seconds"} for row in logged.history]
    assert plain == [{k: v for k, v in row.items() if k != "seconds"} for row in without.history]
    bare = read_history(tmp_path / "with/no_memory")  # has no gates to log
    assert not set(bare[0]) & own


def test_columns_stay_as_they_were_for_those_who_do_not_ask(tmp_path, signals):
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    head = (run.folder / "metrics.csv").read_text().splitlines()[0]
    assert head == "epoch,lr,train_loss,valid_loss,valid_accuracy,valid_macro_f1,seconds"
    assert "Mean gates" not in (run.folder / "report.html").read_text()


def test_what_is_logged_is_what_the_trace_of_the_same_weights_counts(tmp_path):
    frame = signal_table(groups=60)
    run = train(frame, out=tmp_path / "run", log_gates=True, **(QUICK | ROLES | {"epochs": 1}))
    pre, data = fit_preprocessing(read_table(frame), run.settings, run.settings.seed)
    log = GateLog(batch_source(data, pre, torch.device("cpu")), run.settings.seed)
    ((numbers, codes, lengths),) = log.batches
    with torch.no_grad():
        counted = run.model.core.trace(run.model.encode(numbers, codes), lengths=lengths).statistics()["l0"]
    row = run.history[0]
    assert counted.sequences > 2
    for field in FIELDS[:-1]:
        assert row[f"l0_{field}"] == pytest.approx(getattr(counted, field).mean(), rel=1e-9)
    assert row["l0_memory_length_steps"] == np.median(counted.memory_length_steps)


def test_the_sample_is_the_same_every_time_and_of_validation_sequences_alone():
    source, _ = prepared(signal_table(groups=400))
    steps = [torch.cat([lengths for *_, lengths in GateLog(source, 0).batches]) for _ in range(2)]
    assert torch.equal(*steps)
    first = torch.cat([n.transpose(0, 1).flatten(0, 1) for n, *_ in GateLog(source, 0).batches])
    valid = source.numbers[source.data.part == VALID]
    train_ = source.numbers[source.data.part == TRAIN]
    inside = [any(torch.equal(row, other) for other in valid) for row in first[:40]]
    assert all(inside)
    assert not any(any(torch.equal(row, other) for other in train_) for row in first[:40])
    other = GateLog(source, 1).batches[0][0]
    assert not (
        other.shape == GateLog(source, 0).batches[0][0].shape and torch.equal(other, GateLog(source, 0).batches[0][0])
    )


def test_without_a_validation_part_training_sequences_are_counted():
    source, model = prepared(signal_table(groups=30), split=(1.0, 0.0, 0.0))
    assert GateLog(source, 0).row(model)["l0_update_mean"] > 0


def test_a_long_table_gives_a_bounded_sample_and_a_long_sequence_is_cut_to_it():
    n = 60_000
    long = pl.DataFrame({"x": np.random.default_rng(0).standard_normal(n), "label": ["a", "b"] * (n // 2)})
    source, _ = prepared(long, group=(), time=None)
    ((numbers, _, lengths),) = GateLog(source, 0).batches
    trained = int((source.data.part == TRAIN).sum())
    assert lengths.tolist() == [int(SHARE * trained)] == [len(numbers)]
    source, _ = prepared(signal_table(groups=600, least=5, most=2000))
    counted = sum(int(lengths.sum()) for *_, lengths in GateLog(source, 0).batches)
    assert MOST_STEPS / 2 <= counted <= MOST_STEPS


def test_batches_of_the_sample_are_at_least_a_quarter_full():
    pieces = [(0, 1000), (0, 400), *[(7, 12)] * 100, (0, 2)]
    batches = _of_similar_length(pieces)
    assert [piece for batch in batches for piece in batch] == pieces
    for batch in batches:
        lengths = [end - start for start, end in batch]
        assert max(lengths) * len(lengths) <= 4 * sum(lengths)
    assert len(batches) == 2


def test_a_memory_longer_than_every_sequence_survives_the_file_both_ways(tmp_path, signals):
    source, model = prepared(signals)
    with torch.no_grad():
        model.core.bias_ih_l0[8:16] = 50.0  # z = 1: nothing is ever forgotten
    row = GateLog(source, 0).row(model)
    assert row["l0_memory_length_steps"] == math.inf
    history = [{"epoch": 1.0, **row}, {"epoch": 2.0, **row, "l0_memory_length_steps": 3.0}]
    FolderJournal(tmp_path).keep_history(history)
    assert read_history(tmp_path) == history
    assert pl.read_csv(tmp_path / "metrics.csv")["l0_memory_length_steps"].to_list() == [math.inf, 3.0]
    (_, svg) = gate_curves(history)[-1]
    assert svg.count(">∞<") == 1


def test_counting_leaves_the_model_and_the_random_state_as_they_were(signals):
    source, model = prepared(signals)
    model.train()
    before = torch.get_rng_state()
    GateLog(source, 0).row(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("cell", ["lstm", "rnn", "none"])
def test_a_cell_without_gates_of_this_kind_is_refused_before_anything_is_written(tmp_path, signals, cell):
    with pytest.raises(
        SettingsError, match=f"log_gates=True needs cell='gru' or cell='mingru': '{cell}' has no update and reset gate"
    ):
        train(signals, out=tmp_path / "run", cell=cell, log_gates=True, **(QUICK | ROLES))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("batches", [3, 8])
def test_an_interrupted_run_goes_on_logging_the_same_figures(tmp_path, signals, batches):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4, "log_gates": True}
    whole = train(path, out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "cut", **(settings | {"progress": StopAfter(batches)}))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]  # noqa: E731
    assert drop(resumed.history) == drop(whole.history)
    assert same_weights(whole, resumed)
    assert "l0_update_mean" in load(tmp_path / "cut").history[-1]
