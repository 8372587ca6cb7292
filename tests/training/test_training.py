"""A run: it learns, repeats, stops and goes on, and says what it is worth."""

from __future__ import annotations

import math
import subprocess
import sys
import threading

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, DieAfter, StopAfter, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import RunError, SettingsError
from tidegate.files import DiskError
from tidegate.model.tasks import TASKS
from tidegate.ops.gru import native
from tidegate.training import Interrupted, TrainingFailed, TrainSettings, load, train
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


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn", "none"])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_every_cell_trains_and_predicts(tmp_path, signals, cell, per):
    frame = signals.with_columns(label=pl.col("label").last().over("device")) if per == "sequence" else signals
    r = train(frame, out=tmp_path / "run", cell=cell, per=per, num_layers=2, **(QUICK | ROLES))
    assert r.model.spec.cell == cell
    assert r.predict(frame)["prediction"].is_in(["up", "down"]).all()


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"target": "label"}, "accuracy"),
        ({"target": "label", "horizon": 1}, "accuracy"),
        ({"target": "x", "horizon": 1}, "rmse"),
        ({"target": "x", "horizon": 3, "season": 4}, "rmse"),
        ({"target": "x"}, "rmse"),
        ({"target": ["x", "w"], "horizon": 2}, "rmse"),
        ({"target": ["a", "b"]}, "micro_f1"),
        ({"target": ["a", "b"], "per": "sequence"}, "micro_f1"),
        ({"target": "a", "task": "labels"}, "micro_f1"),
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
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    assert {"forward_once", "backward", "pack", "forward"} <= seen  # trained; then, without gradients, evaluated
    for use in (run.evaluate, run.predict):
        seen.clear()
        use(signals)
        assert "forward" in seen


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path, signals):
    a = train(signals, out=tmp_path / "a", **(QUICK | ROLES))
    torch.manual_seed(99)  # the caller's own random state is not what a run depends on
    b = train(signals, out=tmp_path / "b", **(QUICK | ROLES))
    other = train(signals, out=tmp_path / "c", seed=1, **(QUICK | ROLES))
    assert same_weights(a, b)
    assert not same_weights(a, other)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_training_leaves_the_global_random_state_alone(tmp_path, signals):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batches", [1, 3, 4, 6, 9])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, signals, batches):
    assert threading.current_thread() is threading.main_thread()
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4, "baselines": True}
    whole = train(path, out=tmp_path / "whole", **settings)
    steps = len(whole.history) * math.ceil(whole.resolved["parts"]["train"]["sequences"] / 4)
    assert steps > 9
    with pytest.raises(Interrupted, match=r"Go on with: tidegate train --resume --out"):
        train(path, out=tmp_path / "cut", **(settings | {"progress": StopAfter(batches)}))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    assert same_weights(whole, resumed)
    drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]  # noqa: E731
    assert drop(resumed.history) == drop(whole.history)
    assert resumed.results.to_dict()["model"] == whole.results.to_dict()["model"]
    with pytest.raises(RunError, match="is finished; there is nothing to resume"):
        train(out=tmp_path / "cut", resume=True, progress=False)


@pytest.mark.parametrize("batches", [2, 7, 10])
def test_a_killed_run_goes_on_from_its_last_epoch_to_the_same_bits(tmp_path, signals, batches):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4}
    whole = train(path, out=tmp_path / "whole", **settings)
    with pytest.raises(ZeroDivisionError):
        train(path, out=tmp_path / "cut", **(settings | {"progress": DieAfter(batches)}))
    assert same_weights(whole, train(out=tmp_path / "cut", resume=True, progress=False))


def test_resume_refuses_other_settings_another_table_and_a_folder_that_is_no_run(tmp_path, signals):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "run", **(QUICK | ROLES | {"progress": StopAfter(1)}))
    with pytest.raises(SettingsError, match="hidden_size can't change on resume"):
        train(out=tmp_path / "run", resume=True, hidden_size=9)
    write_table(signals.head(50), path)
    with pytest.raises(RunError, match=r"t\.parquet has changed since"):
        train(out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(RunError, match="There is no run folder"):
        train(out=tmp_path / "none", resume=True)
    with pytest.raises(SettingsError, match="resume needs the run folder"):
        train(resume=True)


def test_evaluation_and_prediction_do_not_depend_on_the_batch_size(tmp_path, signals):
    for name, settings in {"one": {}, "both": {"bidirectional": True}}.items():
        r = train(signals, out=tmp_path / name, **(QUICK | ROLES | settings))
        reference = r.predict(signals, probabilities=True, batch_size=1)
        for size in (2, 7, None):
            other = r.predict(signals, probabilities=True, batch_size=size)
            assert np.allclose(other["p_up"], reference["p_up"], rtol=0, atol=2e-7)
            assert r.evaluate(signals, batch_size=size).model.summary == r.evaluate(signals, batch_size=1).model.summary


def test_neither_other_sequences_nor_padding_reach_a_prediction(tmp_path, signals):
    frame = signals.with_columns(label=pl.col("label").last().over("device"))
    for k, settings in enumerate(
        (
            {"per": "step"},
            {"per": "sequence"},
            {"bidirectional": True},
            {"per": "sequence", "pooling": "mean", "bidirectional": False},
            {"per": "sequence", "pooling": "mean"},
            {"per": "sequence", "pooling": "last"},
        )
    ):
        r = train(frame, out=tmp_path / str(k), **(QUICK | ROLES | settings))
        whole = r.predict(frame, probabilities=True)
        shortest = frame.group_by("device").len().sort("len", "device")["device"][0]
        alone = r.predict(frame.filter(pl.col("device") == shortest), probabilities=True)
        together = whole.filter(pl.col("device") == shortest)
        assert np.allclose(alone["p_up"], together["p_up"], rtol=0, atol=2e-7)


def test_a_long_sequence_is_evaluated_whole_with_its_state_carried(tmp_path, signals, monkeypatch):
    frame = signal_table(groups=6, least=60, most=90)
    r = train(frame, out=tmp_path / "run", window=16, **(QUICK | ROLES))
    from tidegate.trained import evaluation

    whole = r.predict(frame, probabilities=True)
    monkeypatch.setattr(evaluation, "CHUNK", 13)
    assert np.allclose(r.predict(frame, probabilities=True)["p_up"], whole["p_up"], rtol=0, atol=2e-7)


def test_predictions_come_back_beside_their_rows_in_any_order(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    keyed = {(d, t): p for d, t, p in r.predict(signals).select("device", "t", "prediction").rows()}
    shuffled = signals.drop("label").sample(fraction=1.0, shuffle=True, seed=1)
    predicted = r.predict(shuffled)
    assert predicted.drop("prediction").equals(shuffled)
    assert [keyed[d, t] for d, t in predicted.select("device", "t").rows()] == predicted["prediction"].to_list()


def test_list_columns_get_a_list_a_row_and_empty_ones_an_empty_list(tmp_path):
    frame = pl.DataFrame({"w": [["a", "b"], ["b"], [], ["a"]] * 5, "y": [["p", "q"], ["q"], [], ["p"]] * 5})
    r = train(frame, target="y", out=tmp_path / "run", **QUICK)
    predicted = r.predict(frame.drop("y"), probabilities=True)
    assert predicted["prediction"].list.len().to_list() == frame["w"].list.len().to_list()
    assert predicted["p_p"].list.len().to_list() == frame["w"].list.len().to_list()


def test_forecasts_carry_the_steps_ahead_in_their_names(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES | {"target": "x", "horizon": 3}))
    assert r.predict(signals).columns[-3:] == ["prediction_1", "prediction_2", "prediction_3"]


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


def test_rules_of_thumb_stay_within_their_sequence():
    from tidegate.data.fitting import fit_preprocessing
    from tidegate.data.settings import DataSettings
    from tidegate.data.tables import read_table
    from tidegate.trained.evaluation import rules_of_thumb
    from tidegate.trained.rows import batch_source

    frame = pl.DataFrame({"g": [1] * 5 + [2] * 3, "x": [1.0, 2, 3, 4, 5, 10, 20, 30]})
    pre, data = fit_preprocessing(
        read_table(frame), DataSettings.make(target="x", group="g", horizon=2, split=(1.0, 0.0, 0.0)), 0
    )
    guesses = rules_of_thumb(pre, batch_source(data, pre, torch.device("cpu")), season=3)
    values = {name: v[..., 0].round(4).tolist() for name, v in guesses.items()}
    assert values["last value"] == [[v, v] for v in (1, 2, 3, 4, 5, 10, 20, 30)]
    # One season before the value to predict; the last value where that lies before the sequence.
    assert values["last season (3 rows)"] == [[1, 1], [2, 1], [1, 2], [2, 3], [3, 4], [10, 10], [20, 10], [10, 20]]
    assert values["training mean"] == [[9.375, 9.375]] * 8


def test_a_run_folder_holds_what_the_design_names_and_no_pickle(tmp_path, signals):
    path = tmp_path / "t.csv"
    write_table(signals, path)
    r = train(path, out=tmp_path / "run", **(QUICK | ROLES | {"baselines": True}))
    names = {p.name for p in r.folder.iterdir()}
    assert {
        "config.yaml",
        "model.safetensors",
        "preprocessing.json",
        "metrics.csv",
        "report.html",
        "report.md",
        "checkpoints",
    } <= names
    for file in r.folder.rglob("*"):
        if file.is_file():
            assert file.suffix in {".yaml", ".safetensors", ".json", ".csv", ".html", ".md", ".svg"}
            assert not file.name.endswith(".tmp")
    config = yaml.safe_load((r.folder / "config.yaml").read_text())
    assert set(TrainSettings.model_fields) <= set(config)
    assert config["resolved"]["finished"] is True
    html = (r.folder / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    assert "<svg" in html
    assert "majority class" in html
    markdown = (r.folder / "report.md").read_text()
    for text in ("majority class", "same head, no recurrence", "![Loss](loss.svg)", "| hidden_size | 8 |"):
        assert text in markdown


def test_a_runs_own_configuration_repeats_it(tmp_path, signals):
    path = tmp_path / "t.csv"
    write_table(signals, path)
    first = train(path, out=tmp_path / "a", **(QUICK | ROLES))
    again = train(config=tmp_path / "a/config.yaml", out=tmp_path / "b", progress=False)
    assert same_weights(first, again)


def test_a_loaded_run_predicts_as_the_trained_one(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    assert load(tmp_path / "run").predict(signals, probabilities=True).equals(r.predict(signals, probabilities=True))


def test_evaluate_scores_the_test_rows_of_the_training_table_and_all_of_another(tmp_path, signals):
    path, other = tmp_path / "t.csv", tmp_path / "u.csv"
    write_table(signals, path)
    write_table(signal_table(seed=9), other)
    r = train(path, out=tmp_path / "run", **(QUICK | ROLES))
    assert r.evaluate(path).model.summary == r.results.model.summary
    assert r.evaluate(path).model.count == r.resolved["parts"]["test"]["rows"]
    assert r.evaluate(other).model.count == signal_table(seed=9).height
    assert r.evaluate(path, rows="all").model.count == signals.height
    with pytest.raises(SettingsError, match="is not the table of the training"):
        r.evaluate(other, rows="test")


def test_an_existing_folder_is_never_overwritten_unasked(tmp_path, signals):
    train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    before = (tmp_path / "run/model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"already holds a run.*resume.*overwrite"):
        train(signals, out=tmp_path / "run", seed=3, **(QUICK | ROLES))
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    train(signals, out=tmp_path / "run", seed=3, overwrite=True, **(QUICK | ROLES))
    assert (tmp_path / "run/model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    with pytest.raises(RunError, match="is not a run; nothing in it is touched"):
        train(signals, out=tmp_path / "mine", overwrite=True, **(QUICK | ROLES))
    assert (tmp_path / "mine/thesis.txt").read_text() == "dear"


def test_without_a_name_runs_are_numbered(tmp_path, signals, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(signals, tmp_path / "t.csv")
    assert [str(train("t.csv", **(QUICK | ROLES)).folder) for _ in range(2)] == ["runs/t", "runs/t-2"]


def test_a_damaged_or_foreign_run_is_refused(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    model = r.folder / "model.safetensors"
    good = model.read_bytes()
    model.write_bytes(good[: len(good) // 2])
    with pytest.raises(RunError, match="was cut off"):
        load(r.folder)
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, model)
    with pytest.raises(RunError, match="was not written by Tidegate"):
        load(r.folder)
    model.unlink()
    with pytest.raises(RunError, match="is missing"):
        load(r.folder)
    model.write_bytes(good)
    (r.folder / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="damaged"):
        load(r.folder)
    with pytest.raises(RunError, match="There is no run folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is not a run"):
        load(tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path):
    # RLIMIT_FSIZE makes every write beyond the limit fail as a full disk does: the kernel says "File too large".
    write_table(signal_table(), tmp_path / "t.csv")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import torch; from tidegate.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1));"
        f"sys.exit(main(['train', r'{tmp_path}/t.csv', '--target', 'label', '--group', 'device', '--time', 't',"
        f"'--out', r'{tmp_path}/run' + sys.argv[1], '--epochs', '1', '--quiet']))"
    )
    for limit in ("100", "6000"):
        done = subprocess.run([sys.executable, "-c", code, limit], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "run100").exists()
    assert not (tmp_path / "run6000/model.safetensors").exists()


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    from tidegate.files import replacing

    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        1 / 0  # noqa: B018
    with pytest.raises(DiskError, match="could not be written"), replacing(tmp_path / "f" / "g"):
        pass
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path, signals, monkeypatch):
    task = TASKS["class"]
    real = task.loss_sum
    monkeypatch.setattr(task, "loss_sum", lambda *a: (real(*a)[0] * float("nan"), real(*a)[1]), raising=True)
    with pytest.raises(TrainingFailed, match="Try a smaller learning rate"):
        train(signals, out=tmp_path / "run", **(QUICK | ROLES))


def test_word_dropout_hides_rare_words_and_only_in_training(tmp_path):
    frame = pl.DataFrame({"w": [["often", "rare" + str(i)] for i in range(40)], "y": [["p", "q"]] * 40})
    r = train(frame, target="y", out=tmp_path / "run", split=(1.0, 0.0, 0.0), word_dropout=1.0, **QUICK)
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


ODD_NAMES = ["*", "^x$", "__row", "row", "count", "time", "group 0", "prediction_", "", "0", "^.*$", "value"]


@pytest.mark.parametrize("shift", range(len(ODD_NAMES)))
def test_a_column_may_have_any_name(tmp_path, signals, shift):
    names = dict(zip(["device", "t", "x", "colour", "label"], [*ODD_NAMES, *ODD_NAMES][shift:], strict=False))
    plain = train(signals, out=tmp_path / "plain", **(QUICK | ROLES))
    frame = pl.DataFrame({new: signals[old] for old, new in names.items()})
    odd = train(frame, out=tmp_path / "odd", **(QUICK | {role: names[name] for role, name in ROLES.items()}))
    assert same_weights(plain, odd)
    wanted, got = plain.predict(signals), odd.predict(frame)
    assert got.columns == [*names.values(), "prediction"]
    assert got["prediction"].equals(wanted["prediction"])
    assert odd.evaluate(frame).model.summary == plain.evaluate(signals).model.summary


@pytest.mark.parametrize(("word", "tag"), [("*", "^.*$"), ("__row", "0"), ("row", "value"), ("count", "*")])
def test_a_list_column_may_have_any_name(tmp_path, word, tag):
    frame = pl.DataFrame({word: [["a", "b", "a"], [], ["b"]] * 8, tag: [["p", "q", "p"], [], ["q"]] * 8})
    r = train(frame, target=tag, out=tmp_path / "run", **QUICK)
    predicted = r.predict(frame)
    assert predicted["prediction"].list.len().to_list() == [3, 0, 1] * 8
    write_table(predicted, tmp_path / "p.csv")
    cells = (tmp_path / "p.csv").read_text().splitlines()
    assert cells[0] == f"{word},{tag},prediction"
    assert cells[1].startswith("a b a,p q p,")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_learns_stops_and_goes_on(tmp_path, signals):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4, "device": "cuda"}
    whole = train(path, out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "cut", **(settings | {"progress": StopAfter(6)}))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    for (_, a), (_, b) in zip(whole.results.table(), resumed.results.table(), strict=True):
        assert a.summary == pytest.approx(b.summary, abs=0.05)
    assert load(tmp_path / "whole").predict(signals)["prediction"].is_in(["up", "down"]).all()
