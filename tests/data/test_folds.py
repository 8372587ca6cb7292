"""Cross-validation: which rows train and which validate in each fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tables import signal_table
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.folds import deal
from tidegate.data.sequences import NOWHERE, TEST, TRAIN, VALID, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.errors import DataError, SettingsError

GROUPS = {"target": "label", "group": "device", "time": "t"}


def encoded(frame: pl.DataFrame, seed: int = 0, **settings: Any) -> Sequences:
    return fit_preprocessing(read_table(frame), DataSettings.make(**settings), seed)[1]


def one_series(rows: int) -> pl.DataFrame:
    return pl.DataFrame({"x": np.sin(np.arange(rows) / 3), "label": ["a", "b"] * (rows // 2) + ["a"] * (rows % 2)})


def per_sequence(classes: list[str | None], rows: int = 3) -> pl.DataFrame:
    names = [f"s{k}" for k in range(len(classes))]
    return pl.DataFrame(
        {
            "s": np.repeat(names, rows),
            "x": np.random.default_rng(0).standard_normal(rows * len(classes)),
            "kind": pl.Series(classes, dtype=pl.String).gather(np.repeat(np.arange(len(classes)), rows)),
        }
    )


@pytest.mark.parametrize("split", [(0.7, 0.15, 0.15), (0.8, 0.2, 0.0), "split"])
@pytest.mark.parametrize("count", [2, 5])
def test_every_sequence_that_is_not_test_validates_in_one_fold_and_trains_in_the_others(split, count):
    frame = signal_table(20)
    part = pl.when(pl.col("device").is_in(["d1", "d7"])).then(pl.lit("test"))
    frame = frame.with_columns(
        split=part.when(pl.col("device") == "d3").then(pl.lit("valid")).otherwise(pl.lit("train"))
    )
    settings = GROUPS | {"split": split, "exclude": ["split"] if split != "split" else []}
    whole = encoded(frame, **settings)
    folds = [encoded(frame, fold=f"{k}/{count}", **settings) for k in range(1, count + 1)]
    parts = np.stack([fold.part for fold in folds])
    test = whole.part == TEST
    assert (parts[:, test] == TEST).all()
    assert set(np.unique(parts[:, ~test])) == {TRAIN, VALID}
    assert ((parts[:, ~test] == VALID).sum(axis=0) == 1).all()
    sizes = [len(fold.containing(VALID)) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        assert not set(fold.containing(VALID)) & set(fold.containing(TRAIN))
    every = encoded(frame, fold=f"0/{count}", **settings).part
    assert (every == np.where(test, TEST, TRAIN)).all()


def test_folds_are_drawn_by_the_seed_and_by_split_seed_where_it_is_named():
    frame = signal_table(20)
    one, again, other = (encoded(frame, seed, fold="1/3", **GROUPS).part for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()
    assert (encoded(frame, 7, fold="1/3", split_seed=1, **GROUPS).part == other).all()
    assert (encoded(frame, 7, split_seed=1, **GROUPS).part == encoded(frame, 1, **GROUPS).part).all()


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 9), st.integers(0, 5))
def test_each_class_and_all_together_are_dealt_out_evenly(classes, count, seed):
    codes = np.array(classes)
    fold = deal(len(codes), count, codes, seed)
    for of in [np.ones(len(codes), dtype=bool), *(codes == c for c in set(classes))]:
        sizes = np.bincount(fold[of], minlength=count)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("per", ["sequence", "step"])
def test_sequences_of_one_class_are_shared_out_by_class_and_the_note_says_so(per):
    frame = per_sequence(["rare"] * 5 + [None] * 3 + ["common"] * 32)
    for k in range(1, 6):
        data = encoded(frame, target="kind", group="s", per=per, fold=f"{k}/5", split=(1, 0, 0))
        valid = frame["kind"].to_numpy()[data.rows[data.part == VALID]].tolist()
        assert valid.count("rare") == 3  # one sequence of three rows
        assert "of each class alike" in " ".join(data.notes)


def test_where_a_target_changes_within_a_sequence_or_is_a_number_folds_are_not_by_class():
    assert "of each class alike" not in " ".join(encoded(signal_table(20), fold="1/5", **GROUPS).notes)
    frame = per_sequence(["a"] * 20).with_columns(y=pl.col("x").first().over("s")).drop("kind")
    data = encoded(frame, target="y", group="s", per="sequence", fold="1/5")
    assert "of each class alike" not in " ".join(data.notes)


@pytest.mark.parametrize("rows", [40, 43])
def test_one_long_sequence_validates_forward_in_time(rows):
    frame, count = one_series(rows), 4
    whole = encoded(frame, target="label")
    free = int((whole.part != TEST).sum())
    size = free // (count + 1)
    for k in range(1, count + 1):
        part = encoded(frame, target="label", fold=f"{k}/{count}").part
        valid = np.flatnonzero(part == VALID)
        assert len(valid) == size
        assert valid[-1] == free - (count - k) * size - 1
        assert (np.flatnonzero(part == TRAIN) == np.arange(valid[0])).all()
        assert ((part == TEST) == (whole.part == TEST)).all()
        assert set(part[valid[-1] + 1 :]) <= {NOWHERE, TEST}
    assert ((encoded(frame, target="label", fold="0/4").part == TRAIN) == (whole.part != TEST)).all()


@pytest.mark.parametrize("split", [(0.7, 0.15, 0.15), (1, 0, 0)])
def test_split_by_time_cuts_each_sequence_in_every_fold(split):
    frame = signal_table(20, least=12)
    data = encoded(frame, fold="1/3", split_by="time", split=split, **GROUPS)
    for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        assert data.part[start] == TRAIN
        assert VALID in data.part[start:end]


def test_preprocessing_is_fitted_on_the_training_rows_of_the_fold_alone():
    frame = signal_table(20)
    for k in (1, 2):
        settings = DataSettings.make(fold=f"{k}/2", **GROUPS)
        pre, data = fit_preprocessing(read_table(frame), settings, 0)
        train = frame["x"].to_numpy()[data.rows[data.part == TRAIN]]
        assert pre.numbers[0].mean == pytest.approx(train.mean(), rel=1e-12)


def test_too_many_folds_are_refused_with_what_to_do():
    with pytest.raises(
        SettingsError,
        match=r"9 folds need at least 9 sequences that are not test; there are 8. Use fewer, or split_by='time'",
    ):
        encoded(signal_table(10), fold="1/9", **GROUPS)
    with pytest.raises(DataError, match=r"too few rows \(3 are not test\) for 5 folds. Use fewer"):
        encoded(one_series(4), target="label", fold="1/5")


@pytest.mark.parametrize("fold", ["2", "6/5", "1/1", "a/b", "-1/5", 3])
def test_a_fold_that_is_none_is_refused(fold):
    with pytest.raises(SettingsError, match="expected which of how many folds, such as 2/5"):
        DataSettings.make(fold=fold)
    assert DataSettings.make(fold=" 2 / 5").fold == "2/5"


@pytest.mark.parametrize("fold", [None, "2/2"])
def test_a_sequence_with_one_target_is_in_one_part_alone_however_few_there_are(fold):
    frame = per_sequence(["a"] * 4).with_columns(y=pl.col("x").first().over("s")).drop("kind")
    data = encoded(frame, target="y", group="s", per="sequence", fold=fold)
    counted = [s for part in (TRAIN, VALID, TEST) for s in data.containing(part)]
    assert sorted(counted) == [0, 1, 2, 3]


def test_what_would_put_a_target_into_two_parts_is_refused():
    frame = per_sequence(["a", "b"] * 4).with_columns(t=pl.int_range(24))
    settings = {"target": "kind", "group": "s", "per": "sequence", "time": "t"}
    with pytest.raises(SettingsError, match="split_by='time' cuts each sequence, and per='sequence' has one target"):
        encoded(frame, split_by="time", **settings)
    with pytest.raises(SettingsError, match="split_by='date' has one border for all"):
        encoded(frame, split_by="date", fold="1/2", **settings)
