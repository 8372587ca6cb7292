"""Weights of the classes in the training loss: what may be said, what it comes to, and that it works."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.cli import main
from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS
from tidegate.data.tables import write_table
from tidegate.errors import SettingsError
from tidegate.model.tasks import TASKS
from tidegate.training import Interrupted, TrainSettings, train
from tidegate.training.resolve import class_weights

THREE = Target(("y",), "class", ("a", "b", "c"), counts=(60, 30, 10))


def weights(given, target=THREE):
    return class_weights(TrainSettings.make(target="y", class_weights=given), target)


def rare() -> pl.DataFrame:
    """A tenth of the rows are hits, and `blurred` says of each how likely it is."""
    frame = signal_table(groups=60, seed=1)
    noise = pl.Series(np.random.default_rng(0).standard_normal(frame.height))
    label = pl.when(pl.col("x") > 1.3).then(pl.lit("hit")).otherwise(pl.lit("no"))
    return frame.with_columns(label=label, blurred=pl.col("x") + noise)


def test_balanced_weights_are_those_of_equal_sums_and_of_mean_one():
    assert weights("balanced") == pytest.approx([100 / (3 * n) for n in (60, 30, 10)])


@pytest.mark.parametrize(
    "given", [{"c": 5.0}, {"c": 5, "a": 1, "b": 1}, {"a": 0.2, "b": 0.2}, "c=5", "a=1, b=1, c=5.0"]
)
def test_weights_by_name_count_by_their_ratios(given):
    assert weights(given) == pytest.approx([1 / 1.4, 1 / 1.4, 5 / 1.4])


def test_names_of_classes_may_be_numbers_yes_or_no_and_hold_signs():
    assert weights({1: 3}, Target(("y",), "class", (0, 1), counts=(1, 1))) == pytest.approx([0.5, 1.5])
    assert weights("1=3", Target(("y",), "class", (0, 1), counts=(1, 1))) == pytest.approx([0.5, 1.5])
    assert weights({True: 3}, Target(("y",), "class", (False, True), counts=(1, 1))) == pytest.approx([0.5, 1.5])
    assert weights("x=1=3", Target(("y",), "class", ("", "x=1"), counts=(1, 1))) == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", r"class_weights='balance': expected balanced, or a weight for each class such as yes=5,no=1\."),
        ("a=0", r"the weight of 'a' is '0', expected a number above 0"),
        ("a=much", "the weight of 'a' is 'much'"),
        ({"a": -1}, "the weight of 'a' is -1"),
        ({"a": float("inf")}, "the weight of 'a' is inf"),
        ({"a": float("nan")}, "the weight of 'a' is nan"),
        ({"a": None}, "the weight of 'a' is None"),
        (5, "expected balanced"),
        ("a=1,b", "the weight of '' is 'b'"),
        ({"d": 2}, r"class_weights names 'd', which is no class of 'y'; its classes are 'a', 'b', 'c'\."),
    ],
)
def test_a_weight_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        weights(given)


def test_of_many_classes_five_are_named_and_the_nearest():
    many = Target(("y",), "class", tuple(f"kind{k}" for k in range(9)), counts=(1,) * 9)
    with pytest.raises(
        SettingsError, match=r"'kind0', 'kind1', 'kind2', 'kind3', 'kind4', \.\.\.\. Did you mean 'kind"
    ):
        weights({"kind": 2}, many)


@pytest.mark.parametrize("target", ["x", ["p", "q"]])
def test_numbers_and_labels_have_no_class_weights(tmp_path, target):
    frame = signal_table().with_columns(p=pl.lit(0), q=(pl.col("x") > 0).cast(pl.Int64))
    frame = frame.with_columns(p=pl.col("q"))
    settings = QUICK | {"target": target, "group": "device", "time": "t", "class_weights": "balanced"}
    with pytest.raises(SettingsError, match="class_weights are for a target that is one of several classes"):
        train(frame, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_the_loss_is_weighted_by_the_true_class_and_divided_by_the_number_of_targets():
    torch.manual_seed(0)
    scores, y = torch.randn(7, 1, 3), torch.tensor([[0], [1], [2], [2], [MISSING_CLASS], [0], [1]])
    w = torch.tensor([0.5, 2.0, 3.0])
    loss, count = TASKS["class"].loss_sum(scores, y, w)
    each = -scores[:, 0].log_softmax(-1)
    expected = sum(w[t] * each[k, t] for k, t in enumerate(y[:, 0].tolist()) if t != MISSING_CLASS)
    assert float(loss) == pytest.approx(float(expected))
    assert int(count) == 6


def test_a_rare_class_is_found_more_often_and_the_scores_stay_unweighted():
    settings = QUICK | ROLES | {"epochs": 12, "lr": 0.02, "features": ["blurred"], "choose_by": "macro_f1"}
    plain, heavy = (train(rare(), out=False, class_weights=given, **settings) for given in (None, "balanced"))
    recall = [{r["class"]: r["recall"] for r in run.evaluate(rare(), rows="all").model.rows} for run in (plain, heavy)]
    assert recall[1]["hit"] > recall[0]["hit"] + 0.2
    assert recall[1]["no"] < recall[0]["no"]
    # Weights distort the probabilities, and the validation loss, which has none, shows it.
    assert heavy.history[-1]["valid_loss"] > plain.history[-1]["valid_loss"]


def test_weights_that_are_all_alike_change_no_bit():
    settings = QUICK | ROLES
    assert same_weights(
        train(signal_table(), out=False, **settings),
        train(signal_table(), out=False, class_weights={"up": 1.0, "down": 1.0}, **settings),
    )


def test_the_command_line_yaml_and_resume_keep_the_weights(tmp_path):
    path = tmp_path / "t.csv"
    write_table(rare(), path)
    common = ["--target", "label", "--group", "device", "--time", "t", "--hidden-size", "8", "--epochs", "2", "--quiet"]
    arguments = ["train", str(path), *common, "--no-baselines", "--device", "cpu", "--class-weights", "hit=5,no=1"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert yaml.safe_load((tmp_path / "a/config.yaml").read_text())["class_weights"] == {"hit": 5.0, "no": 1.0}
    assert main(["train", "--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b"), "--quiet"]) == 0
    first = (tmp_path / "a/model.safetensors").read_bytes()
    assert (tmp_path / "b/model.safetensors").read_bytes() == first
    settings = QUICK | ROLES | {"class_weights": "hit=5,no=1"}
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "c", **(settings | {"progress": StopAfter(3)}))
    with pytest.raises(SettingsError, match="class_weights can't change on resume"):
        train(out=tmp_path / "c", resume=True, class_weights="balanced")
    train(out=tmp_path / "c", resume=True, progress=False)
    assert (tmp_path / "c/model.safetensors").read_bytes() == first
