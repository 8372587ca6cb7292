"""Which epoch is kept: by a figure without units, by the loss of labels, or by the one that is named."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import polars as pl
import pytest
import yaml

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import StopAfter, same_weights
from tidegate.cli import main
from tidegate.data.tables import write_table
from tidegate.errors import SettingsError
from tidegate.training import Interrupted, load, loop, train
from tidegate.training.checkpoint import load_checkpoint, save_checkpoint
from tidegate.training.loop import tolerance

STEADY = QUICK | {"group": "device", "time": "t", "epochs": 8, "patience": 0, "schedule": "constant", "lr": 0.03}


def table() -> pl.DataFrame:
    """a can be learnt and b is noise; so are the labels p and q, and the third class of `kind` is rare."""
    frame = signal_table(groups=40, seed=2)
    rng = np.random.default_rng(0)
    n = frame.height
    return frame.with_columns(
        a=pl.col("x").cum_sum().over("device"),
        b=pl.Series(rng.standard_normal(n)),
        p=(pl.col("x").cum_sum().over("device") > 0).cast(pl.Int64),
        q=pl.Series((rng.random(n) < 0.2).astype(int)),
        kind=pl.when(pl.Series(rng.random(n) < 0.1)).then(pl.lit("rare")).otherwise(pl.col("label")),
    )


def best(history: list[dict[str, float]], name: str, sign: int) -> int:
    ranks = [(sign * row[f"valid_{name}"], -row["valid_loss"]) for row in history]
    return ranks.index(max(ranks)) + 1


def test_the_unit_of_a_target_does_not_choose_the_epoch():
    runs = [
        train(table().with_columns(pl.col("b") * size), target=["a", "b"], out=False, **STEADY)
        for size in (1.0, 1e-6, 1e6)
    ]
    first, *others = runs
    by_unit = [best(run.history, "rmse", -1) for run in runs]
    assert len(set(by_unit)) > 1  # what chose before: the target in the larger unit
    for run in runs:
        assert run.resolved.chosen_by == run.results.metric == "scaled_mae"
        assert run.resolved.best_epoch == best(run.history, "scaled_mae", -1) == first.resolved.best_epoch
    for run in others:
        own = {row["class"]: row["r2"] for row in run.results.model.rows}
        assert own == pytest.approx({row["class"]: row["r2"] for row in first.results.model.rows}, rel=1e-3)


def test_the_scaled_error_is_that_of_each_target_by_its_own_spread():
    frame = table().with_columns(pl.when(pl.col("t") > 2).then(pl.col("b") * 50))  # some are missing
    run = train(frame, target=["a", "b"], horizon=2, out=False, **(STEADY | {"epochs": 1}))
    stds = dict(zip(run.preprocessing.target.names, run.preprocessing.target.stds, strict=True))
    scores = run.results.model
    assert scores.summary["scaled_rmse"] == pytest.approx(np.mean([r["rmse"] / stds[r["class"]] for r in scores.rows]))
    assert scores.summary["scaled_mae"] == pytest.approx(np.mean([r["mae"] / stds[r["class"]] for r in scores.rows]))


def test_one_target_is_chosen_by_its_rmse():
    run = train(table(), target="a", out=False, **STEADY)
    assert run.resolved.chosen_by == "rmse"
    assert run.resolved.best_epoch == best(run.history, "rmse", -1)
    assert "valid_scaled_rmse" not in run.history[0]


def test_a_target_that_never_varies_in_training_is_refused_by_name():
    with pytest.raises(tidegate.errors.DataError, match="the target 'b' is 0 in every training row"):
        train(table().with_columns(b=pl.lit(0.0)), target=["a", "b"], out=False, **STEADY)


def test_labels_are_chosen_by_the_loss_and_judged_by_their_probabilities(tmp_path):
    run = train(table(), target=["p", "q"], out=tmp_path / "run", **(STEADY | {"baselines": True}))
    assert run.resolved.chosen_by == "loss"
    losses = [row["valid_loss"] for row in run.history]
    assert run.resolved.best_epoch == losses.index(min(losses)) + 1
    figures = ["nll", "micro_f1", "macro_f1", "exact_match", "auroc", "auprc"]
    assert list(run.results.model.summary) == figures
    with (tmp_path / "run/metrics.csv").open() as file:
        head = next(csv.reader(file))
    assert [f"valid_{name}" for name in figures] == [name for name in head if name[6:] in figures]
    for row in run.history:
        assert row["valid_nll"] == pytest.approx(2 * row["valid_loss"], rel=1e-5)  # two labels, none of them missing
    assert all(math.isfinite(s.summary[name]) for _, s in run.results.table() for name in figures)
    thumb = run.results.baselines["majority of each label"]
    assert thumb.summary["auroc"] == 0.5
    report = (tmp_path / "run/report.md").read_text()
    assert "AUROC" in report
    assert "Best epoch by loss." in report
    assert "NLL" in str(run.results)


def test_the_rule_of_thumb_for_labels_has_the_nll_of_the_training_means():
    number = pl.col("device").str.slice(1).cast(pl.Int64)
    part = pl.when(number < 20).then(pl.lit("train")).when(number < 25).then(pl.lit("valid")).otherwise(pl.lit("test"))
    frame = table().with_columns(split=part)
    run = train(frame, target=["p", "q"], split="split", out=False, **(STEADY | {"epochs": 1}))
    nll = 0.0
    for name in ("p", "q"):
        share = frame.filter(split="train")[name].mean()
        there = frame.filter(split="test")[name].mean()
        nll -= there * math.log(share) + (1 - there) * math.log(1 - share)
    assert run.results.baselines["majority of each label"].summary["nll"] == pytest.approx(nll)


def test_classes_have_an_nll_beside_the_majoritys():
    run = train(table(), target="kind", out=False, **(STEADY | {"epochs": 2, "baselines": True, "horizon": 1}))
    summaries = {name: scores.summary for name, scores in run.results.table()}
    assert summaries["gru"]["nll"] == pytest.approx(run.results.loss, rel=1e-5)
    counts = np.array(run.preprocessing.target.counts)
    there = {row["class"]: row["count"] for row in run.results.model.rows}
    shares = dict(zip(run.preprocessing.target.classes, counts / counts.sum(), strict=True))
    expected = -sum(n * math.log(shares[c]) for c, n in there.items()) / sum(there.values())
    assert summaries["majority class"]["nll"] == pytest.approx(expected)
    assert "nll" in summaries["same head, no recurrence"]
    assert "nll" not in summaries["last value"]  # it has no probabilities


@pytest.mark.parametrize("task", [{"target": "kind"}, {"target": ["p", "q"]}, {"target": ["p", "q"], "horizon": 2}])
def test_figures_of_probabilities_do_not_depend_on_the_batch_size(task):
    run = train(table(), out=False, **(STEADY | {"epochs": 1} | task))
    one, three, all_ = (run.evaluate(table(), batch_size=size).model.summary for size in (1, 3, None))
    assert one == three == all_


NAMED = [
    ({"target": "kind"}, "loss", "loss", -1),
    ({"target": "kind"}, "macro_f1", "macro_f1", 1),
    ({"target": ["p", "q"]}, "micro_f1", "micro_f1", 1),
    ({"target": ["p", "q"]}, "exact_match", "exact_match", 1),
    ({"target": ["p", "q"]}, "auroc", "auroc", 1),
    ({"target": ["p", "q"]}, "auprc", "auprc", 1),
    ({"target": "a"}, "mae", "mae", -1),
    ({"target": "a"}, "r2", "r2", 1),
    ({"target": ["a", "b"]}, "rmse", "scaled_rmse", -1),
    ({"target": ["a", "b"]}, "mae", "scaled_mae", -1),
    ({"target": ["a", "b"]}, "loss", "loss", -1),
]


@pytest.mark.parametrize(("task", "choose_by", "name", "sign"), NAMED)
def test_the_figure_that_is_named_chooses_the_epoch(task, choose_by, name, sign):
    run = train(table(), out=False, choose_by=choose_by, **(STEADY | task))
    assert run.resolved.chosen_by == name
    assert run.resolved.best_epoch == best(run.history, name, sign)
    if name != "loss":
        assert run.results.metric == name
        assert run.results.more_is_better == (sign > 0)


@pytest.mark.parametrize(("choose_by", "message"), [("auroc", "0 in some validation rows"), ("auprc", "1 in others")])
def test_a_figure_that_the_validation_rows_do_not_have_is_refused_before_anything_is_written(
    tmp_path, choose_by, message
):
    frame = signal_table().with_columns(
        split=pl.when(pl.col("device").is_in(["d0", "d1"])).then(pl.lit("valid")).otherwise(pl.lit("train")),
        p=(pl.col("x") > 0).cast(pl.Int64),
    )
    frame = frame.with_columns(p=pl.when(pl.col("split") == "valid").then(0).otherwise(pl.col("p")))
    settings = QUICK | {"target": "p", "task": "labels", "group": "device", "time": "t", "split": "split"}
    with pytest.raises(SettingsError, match=message):
        train(frame, out=tmp_path / "run", choose_by=choose_by, **settings)
    assert not (tmp_path / "run").exists()
    assert train(frame, out=False, **settings).resolved.chosen_by == "loss"  # the default asks for nothing of it


def test_r2_of_validation_rows_that_do_not_vary_is_refused():
    frame = signal_table().with_columns(
        split=pl.when(pl.col("device").is_in(["d0", "d1"])).then(pl.lit("valid")).otherwise(pl.lit("train")),
    )
    frame = frame.with_columns(y=pl.when(pl.col("split") == "valid").then(2.0).otherwise(pl.col("x")))
    settings = QUICK | {"target": "y", "group": "device", "time": "t", "split": "split"}
    with pytest.raises(SettingsError, match="choose_by='r2' needs two different values"):
        train(frame, out=False, choose_by="r2", **settings)


def test_the_command_line_and_yaml_name_the_figure_and_the_report_says_it(tmp_path, capsys):
    path = tmp_path / "t.csv"
    write_table(table(), path)
    common = ["--target", "kind", "--group", "device", "--time", "t", "--hidden-size", "8", "--epochs", "2", "--quiet"]
    arguments = ["train", str(path), *common, "--no-baselines", "--choose-by", "macro_f1"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    for name in ("report.md", "report.html"):
        assert "Best epoch by macro F1" in (tmp_path / "a" / name).read_text()
    config = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    assert (config["choose_by"], config["resolved"]["chosen_by"]) == ("macro_f1", "macro_f1")
    assert main(["train", "--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert load(tmp_path / "b").evaluate(path).metric == "macro_f1"
    arguments[-1] = "auroc"
    assert main([*arguments, "--out", str(tmp_path / "c")]) == 2
    assert "Choose by accuracy, macro_f1, loss, nll" in capsys.readouterr().err
    arguments[-1] = "f2"
    assert main([*arguments, "--out", str(tmp_path / "c")]) == 2
    assert "choose_by='f2': expected one of 'auto', 'loss'" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def interrupted(folder, path, batches: int, **settings):
    with pytest.raises(Interrupted):
        train(path, out=folder, **(STEADY | settings | {"progress": StopAfter(batches)}))


def test_a_resumed_run_goes_on_by_the_same_figure_and_takes_no_other(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(table(), path)
    settings = {"target": ["p", "q"], "choose_by": "auprc"}
    whole = train(path, out=tmp_path / "whole", **(STEADY | settings))
    interrupted(tmp_path / "cut", path, 20, **settings)
    with pytest.raises(SettingsError, match="choose_by can't change on resume"):
        train(out=tmp_path / "cut", resume=True, choose_by="loss", progress=False)
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    assert same_weights(whole, resumed)
    assert resumed.resolved.chosen_by == "auprc"


@pytest.mark.parametrize(
    ("target", "name", "sign", "since"),
    [(["p", "q"], "micro_f1", 1, ("nll", "auroc", "auprc")), (["a", "b"], "rmse", -1, ("scaled_rmse", "scaled_mae"))],
)
def test_a_training_of_an_earlier_version_goes_on_by_the_figure_it_began_with(tmp_path, target, name, sign, since):
    path, folder = tmp_path / "t.parquet", tmp_path / "run"
    write_table(table().with_columns(pl.col("b") * 1000), path)
    interrupted(folder, path, 20, target=target)
    # As earlier versions left it: no name of the figure, the rank by the old one, and fewer figures.
    last = load_checkpoint(folder / "checkpoints/last.safetensors")
    assert 0 < last.state["epoch"] < STEADY["epochs"]
    del last.state["chosen_by"]
    history = last.state["history"]
    last.state["best_epoch"] = best(history, name, sign)
    row = history[last.state["best_epoch"] - 1]
    last.state["best"] = [sign * row[f"valid_{name}"], -row["valid_loss"]]
    for row in history:
        for figure in since:
            del row[f"valid_{figure}"]
    save_checkpoint(last, folder / "checkpoints/last.safetensors")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["choose_by"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = train(out=folder, resume=True, progress=False)
    assert run.resolved.chosen_by == name
    assert run.resolved.best_epoch == best(run.history, name, sign)
    assert len(run.history) == STEADY["epochs"]
    again = load(folder).history
    assert math.isnan(again[0][f"valid_{since[0]}"])
    assert math.isfinite(again[-1][f"valid_{since[0]}"])


SEQUENCES = {"target": "whole", "per": "sequence", "bidirectional": False, "seed": 2, "epochs": 12}


def sequences() -> pl.DataFrame:
    return table().with_columns(whole=pl.col("label").last().over("device"))


def hits(run) -> list[int]:
    """Of each epoch the validation sequences that are predicted right."""
    return [round(row["valid_accuracy"] * run.resolved.parts["valid"]["sequences"]) for row in run.history]


def test_of_the_epochs_that_few_validation_sequences_cant_tell_apart_the_latest_is_kept():
    run = train(sequences(), out=False, **(STEADY | SEQUENCES))
    right, count = hits(run), run.resolved.parts["valid"]["sequences"]
    most = max(right)
    error = (most / count * (1 - most / count) / count) ** 0.5
    assert run.resolved.tolerance == pytest.approx(max(error, 1 / count), abs=1e-4)
    as_good = [k for k, n in enumerate(right, 1) if most - n <= max(1, int(error * count))]
    assert run.resolved.best_epoch == as_good[-1] != best(run.history, "accuracy", 1)
    assert as_good[-1] < len(run.history)  # not merely the last one


@pytest.mark.parametrize("many", [False, True], ids=["named", "many sequences"])
def test_the_best_epoch_alone_is_kept_where_accuracy_is_named_or_the_sequences_are_many(monkeypatch, many):
    if many:
        monkeypatch.setattr(loop, "FEW_SEQUENCES", 6)
    settings = {} if many else {"choose_by": "accuracy"}
    run = train(sequences(), out=False, **(STEADY | SEQUENCES | settings))
    assert run.resolved.parts["valid"]["sequences"] == 6
    assert run.resolved.tolerance is None
    assert run.resolved.best_epoch == best(run.history, "accuracy", 1) < len(run.history)


@pytest.mark.parametrize(
    ("right", "count", "others", "worse"),
    [(7, 7, [7, 6], [5]), (6, 7, [5], [4]), (50, 100, [45], [44]), (998, 1000, [997], [996])],
)
def test_one_standard_error_and_at_least_one_sequence_is_no_difference(right, count, others, worse):
    least = right / count - tolerance(right / count, count)
    assert all(n / count >= least for n in others)
    assert all(n / count < least for n in worse)


def test_the_report_says_that_the_latest_of_equal_epochs_was_kept(tmp_path):
    run = train(sequences(), out=tmp_path / "run", **(STEADY | SEQUENCES | {"epochs": 1}))
    for page in ("report.md", "report.html"):
        text = (tmp_path / "run" / page).read_text()
        assert f"accuracy on the validation rows is within {run.resolved.tolerance:.3f} of the best" in text


def test_a_training_that_an_earlier_version_began_keeps_its_best_epoch_alone(tmp_path):
    path, folder = tmp_path / "t.parquet", tmp_path / "run"
    write_table(sequences(), path)
    interrupted(folder, path, 10, **SEQUENCES)
    last = load_checkpoint(folder / "checkpoints/last.safetensors")
    assert last.state["latest"]
    for name in ("latest", "tolerance"):
        del last.state[name]
    last.state["best_epoch"] = best(last.state["history"], "accuracy", 1)
    save_checkpoint(last, folder / "checkpoints/last.safetensors")
    run = train(out=folder, resume=True, progress=False)
    assert run.resolved.tolerance is None
    assert run.resolved.best_epoch == best(run.history, "accuracy", 1)


def test_a_resumed_run_keeps_the_same_one_of_equal_epochs(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(sequences(), path)
    whole = train(path, out=False, **(STEADY | SEQUENCES))
    interrupted(tmp_path / "cut", path, 10, **SEQUENCES)
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    assert resumed.resolved.best_epoch == whole.resolved.best_epoch
    assert resumed.resolved.tolerance == whole.resolved.tolerance
    assert same_weights(whole, resumed)


def test_a_rare_class_that_is_never_right_is_told_in_print_and_report(tmp_path, capsys):
    path, folder = tmp_path / "t.csv", tmp_path / "run"
    write_table(table(), path)
    train(path, target="kind", out=folder, **(STEADY | {"epochs": 2, "progress": True}))
    sentence = "Never predicted right (recall 0), though the scored rows hold it: 'rare'."
    assert sentence in capsys.readouterr().err
    assert sentence in (folder / "report.md").read_text()
    assert sentence.replace("'", "&#39;") in (folder / "report.html").read_text()
    assert main(["evaluate", str(folder), str(path)]) == 0
    assert sentence in capsys.readouterr().out


def test_a_figure_that_is_not_there_is_null_in_json(tmp_path, capsys):
    path, other, folder = tmp_path / "t.csv", tmp_path / "zeros.csv", tmp_path / "run"
    write_table(table(), path)
    write_table(table().with_columns(p=pl.lit(0), q=pl.lit(0)), other)
    train(path, target=["p", "q"], out=folder, **(STEADY | {"epochs": 1}))
    assert main(["evaluate", str(folder), str(other), "--json"]) == 0
    shown = capsys.readouterr().out
    summary = json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["model"]["summary"]
    assert (summary["auroc"], summary["auprc"]) == (None, None)
    assert summary["nll"] > 0


def test_the_curve_of_the_figure_that_chose_stands_in_the_report(tmp_path):
    train(table(), target="a", out=tmp_path / "run", choose_by="r2", **(STEADY | {"epochs": 2}))
    (name,) = re.findall(r"!\[Validation R²\]\((\w+\.svg)\)", (tmp_path / "run/report.md").read_text())
    assert name.isascii()
    assert (tmp_path / "run" / name).is_file()


def test_each_target_is_printed_in_its_own_unit(capsys):
    run = train(table().with_columns(pl.col("b") * 1000), target=["a", "b"], out=False, **(STEADY | {"epochs": 1}))
    lines = str(run.results).splitlines()
    at = lines.index("Each target in its own unit:")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["target", "a", "b"]


def test_without_validation_rows_the_report_claims_no_choice(tmp_path):
    run = train(table(), target="kind", out=tmp_path / "run", **(STEADY | {"epochs": 1, "split": (0.8, 0.0, 0.2)}))
    assert run.resolved.chosen_by is None
    text = (tmp_path / "run/report.md").read_text()
    assert "the last one, as no validation row has a target." in text
    assert "Best epoch by" not in text
