"""Folds held against scikit-learn's, and the t-test behind a verdict against SciPy's."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit

from tidegate.data.fitting import fit_preprocessing
from tidegate.data.folds import deal
from tidegate.data.sequences import TRAIN, VALID
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.trained.spread import margin, student_quantile

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("rows", [24, 25, 49, 100])
@pytest.mark.parametrize("count", [2, 5])
def test_folds_forward_in_time_are_those_of_time_series_split(rows, count):
    frame = pl.DataFrame(
        {"x": np.random.default_rng(0).standard_normal(rows), "y": [0, 1] * (rows // 2) + [1] * (rows % 2)}
    )
    for k, (train, valid) in enumerate(TimeSeriesSplit(count).split(np.arange(rows)), 1):
        settings = DataSettings.make(target="y", split=(1, 0, 0), fold=f"{k}/{count}")
        part = fit_preprocessing(read_table(frame), settings, 0)[1].part
        assert np.flatnonzero(part == TRAIN).tolist() == train.tolist()
        assert np.flatnonzero(part == VALID).tolist() == valid.tolist()


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("sequences", [7, 20, 33])
def test_folds_of_whole_sequences_have_the_sizes_of_k_fold(sequences, count):
    theirs = sorted(len(valid) for _, valid in KFold(count).split(np.arange(sequences)))
    assert sorted(np.bincount(deal(sequences, count, None, 0)).tolist()) == theirs


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_shared_out_as_by_stratified_k_fold(seed):
    rng = np.random.default_rng(seed)
    classes = np.sort(rng.choice(4, 60, p=[0.5, 0.3, 0.15, 0.05]))
    ours = deal(60, 3, classes, seed)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=seed).split(np.zeros(60), classes))
    for c in np.unique(classes):
        theirs = sorted(int((classes[valid] == c).sum()) for _, valid in folds)
        assert sorted(np.bincount(ours[classes == c], minlength=3).tolist()) == theirs


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 29, 30, 99])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.9995])
def test_quantiles_of_student_are_scipy_s(freedom, p):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_interval_of_paired_differences_is_scipy_s(n):
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal(n), rng.standard_normal(n) + 0.3
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean = (a - b).mean()
    assert (mean - margin(list(a - b), 0.0), mean + margin(list(a - b), 0.0)) == pytest.approx(
        tuple(interval), rel=1e-9
    )
    # The correction replaces the 1/n of the variance of the mean by 1/n + ratio.
    corrected = stats.t.ppf(0.975, n - 1) * np.sqrt((1 / n + 0.25) * (a - b).var(ddof=1))
    assert margin(list(a - b), 0.25) == pytest.approx(corrected, rel=1e-9)
