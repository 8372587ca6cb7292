"""Gaps in time: what is one, what is said of it, and that no target lies across one unless that is asked for."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
import yaml

from tests.helpers.tables import QUICK
from tidegate.data.batches import BatchSource
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.training import load, train

START = dt.datetime(2020, 1, 1)  # a Wednesday
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
ROLES = {"target": "y", "time": "t", "horizon": 1}


def table(times, **more) -> pl.DataFrame:
    return pl.DataFrame({"t": times, "y": np.random.default_rng(0).standard_normal(len(times)), **more})


def hours(which) -> list[dt.datetime]:
    return [START + int(k) * HOUR for k in which]


def prepare(frame: pl.DataFrame, **settings) -> Sequences:
    return fit_preprocessing(read_table(frame), DataSettings.make(**(ROLES | settings)), 0)[1]


def told(data: Sequences) -> list[str]:
    return [note for note in data.notes if "gap" in note or "spaced" in note]


def targets(data: Sequences, horizon: int) -> np.ndarray:
    """[N, horizon] whether a step has the target so many steps ahead."""
    y = BatchSource(data, per_sequence=False, horizon=horizon).all_targets(None)
    return (~y.isnan()[..., 0]).numpy()


THREE_PIECES = np.r_[0:60, 300:360, 900:980]


def test_a_note_says_how_many_gaps_there_are_and_where_the_longest_is():
    (note,) = told(prepare(table(hours(THREE_PIECES))))
    assert note.startswith(
        "Column 't': rows are 1 h apart, but there are 2 gaps; the longest lasts 22.5 days, from 2020-01-15 23:00:00 to "
        "2020-02-07 12:00:00 (the table, row 121). No target lies across a gap: those of 2 rows are left out."
    )
    assert note.endswith("say across_gaps=True (--across-gaps).")


def test_several_sequences_are_counted_and_the_one_with_the_longest_gap_is_named():
    pieces = {"a": range(40), "b": np.r_[0:20, 30:50], "c": np.r_[0:9, 10:30, 40:50]}
    rows = [(name, t) for name, which in pieces.items() for t in hours(which)]
    (note,) = told(prepare(table([t for _, t in rows], g=[g for g, _ in rows]), group="g"))
    assert "there are 3 gaps in 2 of 3 sequences; the longest is in g='b' and lasts 11 h" in note


@pytest.mark.parametrize("horizon", [1, 3])
def test_no_target_lies_across_a_gap(horizon):
    data = prepare(table(hours(THREE_PIECES)), horizon=horizon)
    known = targets(data, horizon)
    for step, ahead in np.ndindex(*known.shape):
        end = step + ahead + 1
        right = end < 200 and THREE_PIECES[end] - THREE_PIECES[step] == ahead + 1
        assert known[step, ahead] == right, (step, ahead)
    rows = 200 - known.all(axis=1).sum() - horizon  # the last rows of the table have none in any case
    assert f"those of {rows} rows are left out" in told(data)[0]


def test_targets_across_gaps_are_there_when_they_are_asked_for():
    data = prepare(table(hours(THREE_PIECES)), across_gaps=True)
    assert targets(data, 1)[:-1].all()
    assert "as if they followed at once (across_gaps)" in told(data)[0]


def test_without_a_horizon_gaps_are_told_of_and_change_nothing():
    data = prepare(table(hours(THREE_PIECES), x=np.arange(200.0)), horizon=0)
    assert "The rows around a gap are read as if they followed each other." in told(data)[0]
    assert targets(data, 1)[:-1].all()


MONTHS = [dt.date(2000 + m // 12, m % 12 + 1, 1) for m in range(60)]
DAYS = [START.date() + k * DAY for k in range(120)]
RNG = np.random.default_rng(3)
EVEN = {
    "hours": hours(range(200)),
    "months of 28 to 31 days": MONTHS,
    "working days": [d for d in DAYS if d.weekday() < 5],
    "two weeks of working days": [d for d in DAYS[:14] if d.weekday() < 5],
    "opening hours": [t for t in hours(range(24 * 60)) if 9 <= t.hour < 18 and t.weekday() < 6],
    "a clock that is late by a fifth": [START + 10 * k * HOUR for k in np.cumsum(RNG.lognormal(0, 0.2, 300)).tolist()],
    "numbers": list(range(100)),
    "numbers with rounding": [k * 0.1 for k in range(100)],
}
WITH_A_GAP = {
    "months of 28 to 31 days": (MONTHS[:20] + MONTHS[21:], "about 31 days apart, but there is 1 gap; it lasts 61 days"),
    "working days": (
        [d for k, d in enumerate(DAYS) if d.weekday() < 5 and not 20 < k < 34],
        "1 day apart, but there is 1 gap",
    ),
    "opening hours": (
        [t for t in hours(range(24 * 31)) if 9 <= t.hour < 18 and t.day != 17],
        "1 h apart, but there is 1 gap; it lasts 40 h, from 2020-01-16 17:00:00 to 2020-01-18 09:00:00",
    ),
    "a clock that is late by a tenth": (
        [START + (k + 999 * (n > 50)) * HOUR for n, k in enumerate(np.cumsum(RNG.lognormal(0, 0.1, 99)).tolist())],
        "there is 1 gap",
    ),
    "numbers": ([*range(50), *range(52, 100)], "rows are 1 apart, but there is 1 gap; it lasts 3, from 49 to 52"),
    "one hour in ten is missing": (hours(k for k in range(300) if k % 10 != 4), "but there are 30 gaps"),
    "time zones": (
        [t.replace(tzinfo=dt.timezone.utc) for t in hours(THREE_PIECES)],
        "rows are 1 h apart, but there are 2 gaps",
    ),
}


@pytest.mark.parametrize("times", EVEN.values(), ids=EVEN)
def test_even_times_have_no_gap(times):
    assert told(prepare(table(times))) == []


@pytest.mark.parametrize(("times", "note"), WITH_A_GAP.values(), ids=WITH_A_GAP)
def test_missing_rows_are_a_gap(times, note):
    data = prepare(table(times))
    assert note in told(data)[0]
    assert len(np.unique(data.stretch)) > 1


def test_each_sequence_has_a_usual_step_of_its_own():
    rows = [("fast", t) for t in hours(range(100))] + [("slow", START + k * DAY) for k in range(40) if k not in (7, 8)]
    (note,) = told(prepare(table([t for _, t in rows], g=[g for g, _ in rows]), group="g"))
    assert "rows are evenly spaced, but there is 1 gap in 1 of 2 sequences; it is in g='slow' and lasts 3 days" in note


def test_of_uneven_times_a_forecast_of_numbers_says_that_a_row_is_a_step():
    times = [START + k * HOUR for k in np.cumsum(RNG.exponential(3, 200)).tolist()]
    (note,) = told(prepare(table(times)))
    assert note.startswith("The times in 't' are not evenly spaced, and each row counts as one step")
    assert targets(prepare(table(times)), 1)[:-1].all()
    assert told(prepare(table(times, x=np.arange(200.0)), horizon=0)) == []


def test_a_later_table_is_scored_as_the_training_was(tmp_path):
    frame = table(hours(THREE_PIECES))
    by_step = train(frame, out=tmp_path / "a", **ROLES, **QUICK)
    across = train(frame, out=tmp_path / "b", across_gaps=True, **ROLES, **QUICK)
    assert load(tmp_path / "b").settings.across_gaps
    with pytest.warns(UserWarning, match=r"2 gaps.*No target lies across a gap \(2 rows\)"):
        scores = by_step.evaluate(frame.clone(), rows="all")
    assert scores.model.count == 197
    assert across.evaluate(frame.clone(), rows="all").model.count == 199
    assert by_step.predict(frame)["prediction"].null_count() == 0


def test_a_run_from_before_the_setting_scores_across_gaps_as_it_was_trained(tmp_path):
    folder = tmp_path / "run"
    train(table(hours(THREE_PIECES)), out=folder, **ROLES, **QUICK)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config.pop("across_gaps") is False
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert load(folder).settings.across_gaps
    again = train(table(hours(THREE_PIECES)), out=False, config=folder / "config.yaml", progress=False)
    assert again.settings.across_gaps
