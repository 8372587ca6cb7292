"""A training learns, keeps its best epoch, and says what it is worth."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES
from tidegate.data.tables import write_table
from tidegate.ops.gru import native
from tidegate.training import TrainingFailed, TrainSettings, train
from tidegate.training.resolve import build, complete


def test_a_gru_learns_what_a_head_without_memory_cannot(tmp_path):
    frame = signal_table(groups=120)
    result = train(
        frame, out=tmp_path / "run", **(QUICK | ROLES | {"epochs": 25, "hidden_size": 16, "baselines": True})
    ).results
    accuracy = {name: scores.summary["accuracy"] for name, scores in result.table()}
    assert accuracy["gru"] > 0.9
    assert accuracy["gru"] > accuracy["same head, no recurrence"] + 0.1
    assert accuracy["same head, no recurrence"] > accuracy["majority class"]
    assert "Better than every baseline" in str(result)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn", "none"])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_every_cell_trains_and_predicts(tmp_path, signals, cell, per):
    frame = signals.with_columns(label=pl.col("label").last().over("device")) if per == "sequence" else signals
    r = train(frame, out=tmp_path / "run", cell=cell, per=per, num_layers=2, **(QUICK | ROLES))
    assert r.model.spec.cell == cell
    assert r.predict(frame)["prediction"].is_in(["up", "down"]).all()


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"target": "label"}, "accuracy"),
        ({"target": "label", "horizon": 1}, "accuracy"),
        ({"target": "x", "horizon": 1}, "rmse"),
        ({"target": "x", "horizon": 3, "season": 4}, "rmse"),
        ({"target": "x"}, "rmse"),
        ({"target": ["x", "w"], "horizon": 2}, "scaled_mae"),
        ({"target": ["a", "b"]}, "nll"),
        ({"target": ["a", "b"], "per": "sequence"}, "nll"),
        ({"target": "a", "task": "labels"}, "nll"),
        ({"target": "tag"}, "span_f1"),
        ({"target": "tag", "horizon": 1}, "span_f1"),
        ({"target": "tag", "horizon": 2}, "accuracy"),
        ({"target": "price"}, "rmse"),
        ({"target": "price", "task": "class"}, "accuracy"),
        ({"target": "w_last", "per": "sequence"}, "rmse"),
        ({"target": "label", "bidirectional": True, "pooling": "last"}, "accuracy"),
        ({"target": "label", "schedule": "plateau"}, "accuracy"),
        ({"target": "label", "schedule": "constant", "weight_decay": 0.01, "noise": 0.1}, "accuracy"),
        ({"target": "label", "window": 4}, "accuracy"),
    ],
)
def test_every_kind_of_target_trains_and_is_set_beside_baselines(tmp_path, signals, settings, metric):
    frame = signals.with_columns(
        w=pl.col("x") * 2 + 1,
        w_last=pl.col("x").last().over("device"),
        a=(pl.col("x").sum().over("device") > 0).cast(pl.Int64),
        tag=pl.when(pl.col("x") > 0).then(pl.lit("B-up")).otherwise(pl.lit("O")),
        price=(pl.col("x") > 0).cast(pl.Int64).cast(pl.Decimal(10, 2)),
        b=(pl.col("device").str.len_chars() > 2).cast(pl.Int64),
    )
    r = train(frame, out=tmp_path / "run", **(QUICK | {"group": "device", "time": "t"} | settings))
    result = r.results
    assert result.metric == metric
    assert all(math.isfinite(s.summary[metric]) for _, s in result.table())
    if settings.get("horizon"):
        assert "last value" in result.baselines
    if settings.get("season"):
        assert "last season (4 rows)" in result.baselines
    predicted = r.predict(frame)
    assert predicted.height == frame.height
    assert predicted.columns[: len(frame.columns)] == frame.columns


def test_training_evaluation_and_prediction_run_the_native_kernels(tmp_path, signals, monkeypatch):
    seen = set()

    class Spy:
        def __getattr__(self, name):
            seen.add(name)
            return getattr(cpp, name)

    cpp = native.kernels.cpp
    monkeypatch.setattr(native.kernels, "cpp", Spy())
    train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    assert {"forward_once", "backward", "pack", "forward"} <= seen  # trained; then, without gradients, evaluated
    for use in ("evaluate", "predict"):
        run = tidegate.load(tmp_path / "run")  # (a layer's later calls don't pass here)
        seen.clear()
        getattr(run, use)(signals)
        assert "forward" in seen


def test_a_forecast_starts_from_the_last_value(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", residual=True, **(QUICK | ROLES | {"target": "x", "horizon": 2}))
    with torch.no_grad():
        r.model.head.weight.zero_()
        r.model.head.bias.zero_()
    predicted = r.predict(signals)
    assert np.allclose(predicted["prediction_1"], signals["x"], atol=1e-6)
    assert np.allclose(predicted["prediction_2"], signals["x"], atol=1e-6)


def test_the_last_value_is_the_start_only_where_it_beats_the_mean(tmp_path, signals):
    # x is noise, so that the mean is the better guess; its running sum drifts, so that the last value is.
    drifting = signals.with_columns(pl.col("x").cum_sum().over("device") + pl.int_range(pl.len()).over("device"))
    settings = QUICK | ROLES | {"target": "x", "horizon": 1}
    assert not train(signals, out=tmp_path / "a", **settings).resolved["residual"]
    assert train(drifting, out=tmp_path / "b", **settings).resolved["residual"]


def test_what_is_left_open_is_filled_in_by_the_number_of_sequences(tmp_path, signals):
    from tidegate.data.fitting import fit_preprocessing
    from tidegate.data.settings import DataSettings
    from tidegate.data.tables import read_table

    def completed(groups, **settings):
        frame = signal_table(groups=groups)
        data = fit_preprocessing(read_table(frame), DataSettings.make(**ROLES), 0)[1]
        return complete(TrainSettings.make(**ROLES, **settings), data)

    few, many = completed(20), completed(2000)
    assert (few.batch_size, few.epochs, few.patience) == (4, 150, 75)
    assert (many.batch_size, many.epochs, many.patience) == (32, 45, 22)
    given = completed(20, batch_size=3, epochs=7, patience=0)
    assert (given.batch_size, given.epochs, given.patience) == (3, 7, 0)


def test_the_best_epoch_is_kept_and_patience_ends_a_run(tmp_path, signals):
    r = train(
        signals,
        out=tmp_path / "run",
        **(QUICK | ROLES | {"epochs": 60, "patience": 3, "lr": 0.05, "schedule": "constant"}),
    )
    scores = [(row["valid_accuracy"], -row["valid_loss"]) for row in r.history]
    assert r.resolved["best_epoch"] == scores.index(max(scores)) + 1
    assert len(r.history) == r.resolved["best_epoch"] + 3 < 60
    from tidegate.training.checkpoint import load_checkpoint

    assert load_checkpoint(r.folder / "checkpoints/last.safetensors").state["best"][0] == max(scores)[0]


def test_the_validation_figures_of_an_epoch_are_those_of_its_weights(tmp_path, signals):
    path = tmp_path / "t.csv"
    write_table(signals, path)
    r = train(path, out=tmp_path / "run", **(QUICK | ROLES))
    best = r.history[r.resolved["best_epoch"] - 1]
    valid = r.evaluate(path, rows="valid")
    assert valid.loss == pytest.approx(best["valid_loss"], rel=1e-5)
    assert valid.model.summary["accuracy"] == best["valid_accuracy"]


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path, signals, monkeypatch):
    monkeypatch.setattr("tidegate.ops.update.loss", lambda *a, **more: math.nan)
    with pytest.raises(TrainingFailed, match="Try a smaller learning rate"):
        train(signals, out=tmp_path / "run", **(QUICK | ROLES))


def test_the_bias_of_a_label_begins_at_the_log_odds_of_its_share(tmp_path):
    frame = pl.DataFrame({"x": [0.1, 0.2, 0.3, 0.4], "half": [0, 1, 0, 1], "quarter": [0, 0, 0, 1], "never": [0] * 4})
    r = train(
        frame, target=["half", "quarter", "never"], horizon=2, out=tmp_path / "run", split=(1.0, 0.0, 0.0), **QUICK
    )
    model = build(r.model.spec, r.preprocessing, r.settings, torch.device("cpu"))
    begins = [0.0, math.log(0.25 / 0.75), math.log(1e-4 / (1 - 1e-4))]
    torch.testing.assert_close(model.head.bias.detach(), torch.tensor(begins * 2))


def test_word_dropout_hides_rare_words_and_only_in_training(tmp_path):
    frame = pl.DataFrame({"w": [["often", "rare" + str(i)] for i in range(40)], "y": [["p", "q"]] * 40})
    own = QUICK | {"word_features": "none", "word_dropout": 1.0}
    r = train(frame, target="y", out=tmp_path / "run", split=(1.0, 0.0, 0.0), **own)
    model = build(r.model.spec, r.preprocessing, r.settings, torch.device("cpu"))
    rates = model._unknown_rate[0]
    assert rates[0] == 0.5
    assert rates[1] == pytest.approx(1 / 41)
    assert (rates[2:] == 0.5).all()
    codes = torch.full((1, 1000, 1), 5)
    with torch.no_grad():
        model.eval()
        plain = model.encode(torch.empty(1, 1000, 0), codes)
        assert (plain == plain[0, 0]).all()
        model.drop.p = 0.0
        model.train()
        changed = (model.encode(torch.empty(1, 1000, 0), codes) != plain).any(dim=-1).float().mean()
    assert 0.4 < changed < 0.6


def test_early_stopping_and_scores_need_no_validation_rows(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES | {"split": (1.0, 0.0, 0.0)}))
    assert r.resolved["best_epoch"] == 2
    assert "train rows" in r.results.what


def test_validation_rows_without_a_target_choose_nothing_and_are_told_of(tmp_path, signals):
    last = signals["device"].unique(maintain_order=True)[-1]
    frame = signals.with_columns(
        s=pl.when(pl.col("device") == last).then(pl.lit("valid")).otherwise(pl.lit("train")),
        label=pl.when(pl.col("device") != last).then(pl.col("label")),
    )
    r = train(frame, out=tmp_path / "run", **(QUICK | ROLES | {"split": "s"}))
    assert r.resolved["best_epoch"] == 2
    assert "valid_accuracy" not in r.history[0]
    assert "No validation row has a target" in r.resolved["notes"][-1]


def test_only_the_outputs_of_a_recurrence_are_dropped_before_the_head(tmp_path, signals):
    """Without a recurrence the head reads the numbers themselves: dropping them would cripple the baseline."""
    run = train(signals, out=tmp_path / "run", cell="none", features=["x"], **(QUICK | ROLES | {"dropout": 0.9}))
    numbers, codes = torch.ones(50, 1, 1), torch.empty(50, 1, 0, dtype=torch.int64)
    bare = run.model.train()(numbers, codes, torch.tensor([50]))[0]
    assert (bare == bare[0]).all()
    run = train(signals, out=tmp_path / "gru", features=["x"], **(QUICK | ROLES | {"dropout": 0.9}))
    late = run.model.train()(numbers, codes, torch.tensor([50]))[0][
        -10:
    ]  # the state has settled: what differs is dropout
    assert late.std() > 1e-3
