"""A trained run evaluates and predicts: every row for itself, whatever stands beside it and whatever it is called."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import SettingsError
from tidegate.training import train


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
            {"per": "sequence", "pooling": "last+max+mean"},
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


@pytest.mark.parametrize(
    "settings",
    [{}, {"horizon": 3}, {"bidirectional": True}, {"per": "sequence"}],
    ids=["step", "ahead", "both", "sequence"],
)
def test_many_scores_are_never_in_memory_at_once_and_predictions_stay_to_the_bit(
    tmp_path, signals, monkeypatch, settings
):
    from tidegate.model.model import SequenceModel
    from tidegate.trained import evaluation

    frame = signals.with_columns(pl.col("label").last().over("device")) if "per" in settings else signals
    r = train(frame, out=tmp_path / "run", **(QUICK | ROLES | settings))
    whole = r.predict(frame, probabilities=True)
    sizes: list[int] = []
    score = SequenceModel.score

    def spied(self, *arguments):
        scores = score(self, *arguments)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(SequenceModel, "score", spied)
    monkeypatch.setattr(evaluation, "SCORES_AT_ONCE", 100)
    assert r.predict(frame, probabilities=True).equals(whole)
    assert max(sizes) <= 100
    sizes.clear()
    r.evaluate(frame)
    assert max(sizes) <= 100


@pytest.fixture
def sizes(monkeypatch) -> dict[str, list[tuple[int, int]]]:
    """The steps and sequences of every call of the recurrence, and how many scores of how many outputs each call of the head gave."""
    from tidegate.model.model import SequenceModel

    found: dict[str, list[tuple[int, int]]] = {"recurrence": [], "scores": []}
    recur, score = SequenceModel.recur, SequenceModel.score

    def spied_recur(self, numbers, *more):
        found["recurrence"].append(tuple(numbers.shape[:2]))
        return recur(self, numbers, *more)

    def spied_score(self, *arguments):
        scores = score(self, *arguments)
        found["scores"].append((scores.numel(), scores.size(-1)))
        return scores

    monkeypatch.setattr(SequenceModel, "recur", spied_recur)
    monkeypatch.setattr(SequenceModel, "score", spied_score)
    return found


def test_the_scores_of_a_long_sequence_in_both_directions_are_cut_and_its_recurrence_is_not(monkeypatch, sizes):
    frame = signal_table(groups=4, least=60, most=90)
    run = train(frame, out=False, bidirectional=True, **(QUICK | ROLES))
    whole, longest = run.predict(frame, probabilities=True), frame.group_by("device").len()["len"].max()
    monkeypatch.setattr("tidegate.trained.evaluation.SCORES_AT_ONCE", 100)
    for calls in sizes.values():
        calls.clear()
    assert run.predict(frame, probabilities=True).equals(whole)
    assert max(steps for steps, _ in sizes["recurrence"]) == longest
    assert max(scores for scores, _ in sizes["scores"]) <= 100
    assert sum(scores for scores, _ in sizes["scores"]) >= 2 * frame.height


def long_and_short(per: str) -> pl.DataFrame:
    """20 sequences of 10 steps and one of 1,000."""
    rng = np.random.default_rng(3)
    lengths = np.array([10] * 12 + [1_000] + [10] * 8)
    owner = np.repeat(np.arange(21), lengths)
    kind = owner % 2 if per == "sequence" else rng.integers(0, 2, len(owner))
    return pl.DataFrame({"id": owner, "x": rng.standard_normal(len(owner)), "kind": [f"k{k}" for k in kind]})


@pytest.mark.parametrize(
    ("per", "pooling"),
    [("step", "last"), ("sequence", "last"), ("sequence", "mean"), ("sequence", "max"), ("sequence", "last+max+mean")],
)
@pytest.mark.parametrize("cell", ["gru", "none"])
def test_a_long_sequence_comes_in_chunks_without_the_short_ones_and_predictions_stay_to_the_bit(
    monkeypatch, sizes, per, pooling, cell
):
    frame = long_and_short(per)
    how = {"target": "kind", "features": "x", "group": "id", "per": per, "pooling": pooling, "cell": cell}
    run = train(frame, out=False, bidirectional=False, **(QUICK | how))
    whole, figures = run.predict(frame, probabilities=True), run.evaluate(frame, rows="all")
    monkeypatch.setattr("tidegate.trained.evaluation.CHUNK", 64)
    monkeypatch.setattr("tidegate.data.batches.MOST_PADDING", 500)
    sizes["recurrence"].clear()
    assert run.predict(frame, probabilities=True).equals(whole)
    assert sizes["recurrence"] == [(64, 1)] * 15 + [(40, 1), (10, 20)]
    again = run.evaluate(frame, rows="all")
    assert again.model == figures.model
    assert again.loss == pytest.approx(figures.loss)


def test_a_short_sequence_that_ends_before_a_long_one_keeps_its_prediction(monkeypatch):
    """In one batch, as its padding is little: the chunks that come after its end change nothing."""
    frame = long_and_short("sequence").filter((pl.col("id") >= 11) & (pl.int_range(pl.len()).over("id") < 30))
    how = {"target": "kind", "features": "x", "group": "id", "per": "sequence", "bidirectional": False}
    for pooling in ("last", "mean", "max", "last+max+mean"):
        run = train(frame, out=False, pooling=pooling, **(QUICK | how))
        whole = run.predict(frame, probabilities=True)
        with monkeypatch.context() as patched:
            patched.setattr("tidegate.trained.evaluation.CHUNK", 8)
            assert run.predict(frame, probabilities=True).equals(whole)


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


ODD_NAMES = ["*", "^x$", "__row", "row", "count", "time", "group 0", "prediction_", "", "0", "^.*$", "value"]


@pytest.mark.one_in(5)
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
