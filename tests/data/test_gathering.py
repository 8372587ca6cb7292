"""What is fitted on a column doesn't depend on the pieces in which its rows come."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tidegate.data import gathering
from tidegate.data.gathering import Counts, Moments


def moments(values: np.ndarray, cuts: list[int]) -> Moments:
    found = Moments()
    for piece in np.split(values, cuts):
        found.add(piece)
    return found


@pytest.mark.parametrize("count", [1, 2, 1_000, 2**20])
def test_up_to_a_block_mean_and_spread_are_numpys_to_the_bit(count):
    values = np.random.default_rng(count).standard_normal(count) * 3 + 1e3
    found = moments(values, sorted({*np.random.default_rng(0).integers(0, count, 5).tolist()}))
    mean, std = found.mean_std()
    assert mean == float(values.mean())
    assert std == (float(values.std()) if count > 1 else 0.0)
    assert found.count == count


def test_over_several_blocks_the_bits_dont_depend_on_the_pieces_and_the_values_are_right(monkeypatch):
    monkeypatch.setattr(gathering, "SUMMED", 100)
    values = np.random.default_rng(1).standard_normal(1_234) * 7 + 1e6
    whole = moments(values, []).mean_std()
    for cuts in ([1], [99, 100, 101], [500], list(range(1, 1_234))):
        assert moments(values, cuts).mean_std() == whole
    assert whole[0] == pytest.approx(values.mean(), rel=1e-13)
    assert whole[1] == pytest.approx(values.std(), rel=1e-9)


def test_a_piece_that_changes_later_changes_nothing():
    values = np.arange(4.0)
    found = Moments()
    found.add(values)
    values[:] = 100
    assert found.mean_std()[0] == 1.5


def test_constant_and_endless_numbers_are_told_apart(monkeypatch):
    monkeypatch.setattr(gathering, "SUMMED", 3)
    assert moments(np.full(10, 0.1), [4]).mean_std() == (pytest.approx(0.1), 0.0)
    assert not np.isfinite(moments(np.array([1e308, -1e308] * 4), [3]).mean_std()[1])


def test_counts_of_pieces_are_added_up(monkeypatch):
    monkeypatch.setattr(gathering, "MERGED", 2)
    counts = Counts()
    for piece in (["a", "b", None], ["b", "c", "c"], [], ["b"]):
        counts.add(pl.Series(piece, dtype=pl.String))
    assert sorted(counts.frame().rows()) == [("a", 1), ("b", 3), ("c", 2)]
