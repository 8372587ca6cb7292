"""Splits by time over several sequences: one date for all, a column that cuts each, and a note where the test looks back."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest

from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import TEST, TRAIN, VALID, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.errors import DataError, SettingsError

START = dt.datetime(2025, 1, 1)
ROLES = {"target": "item", "group": "session", "time": "t", "horizon": 1}


def sessions(count: int = 60) -> pl.DataFrame:
    """Sessions of six rows, spread over a year."""
    days = np.random.default_rng(0).integers(0, 365, count)
    rows = [
        (s, START + dt.timedelta(days=int(day), minutes=k), f"item{k % 3}")
        for s, day in enumerate(days)
        for k in range(6)
    ]
    return pl.DataFrame(rows, schema=["session", "t", "item"], orient="row")


def panel() -> pl.DataFrame:
    """Four shops over the same twenty days, the first twelve to train on."""
    split = ["train"] * 12 + ["valid"] * 3 + ["test"] * 5
    rows = [(g, START.date() + dt.timedelta(days=k), float(k % 5), split[k]) for g in "abcd" for k in range(20)]
    return pl.DataFrame(rows, schema=["shop", "t", "y", "split"], orient="row")


SHOPS = {"target": "y", "group": "shop", "time": "t", "horizon": 1}


def prepare(frame: pl.DataFrame, **settings) -> tuple[Sequences, np.ndarray]:
    data = fit_preprocessing(read_table(frame), DataSettings.make(**settings), 0)[1]
    return data, frame["t"].to_numpy()[data.rows]


def test_one_date_for_all_sequences_lies_between_the_parts():
    data, t = prepare(sessions(), split_by="date", **ROLES)
    assert t[data.part == TRAIN].max() < t[data.part == VALID].min()
    assert t[data.part == VALID].max() < t[data.part == TEST].min()
    for part, share in ((TRAIN, 0.7), (VALID, 0.15), (TEST, 0.15)):
        assert abs((data.part == part).mean() - share) < 0.03
    border, later = (str(t[data.part == p].min())[:10] for p in (VALID, TEST))
    (note,) = [n for n in data.notes if n.startswith("Split")]
    assert note.startswith(f"Split: rows before {border} 00:")
    assert f"those before {later} 00:" in note
    assert not any("older" in n for n in data.notes)


def test_a_panel_is_cut_between_two_days_for_all():
    data, t = prepare(panel(), split_by="date", split=(0.6, 0.15, 0.25), **SHOPS)
    days = np.unique(t)
    expected = np.repeat([TRAIN, VALID, TEST], [12, 3, 5])
    assert all((data.part[t == day] == part).all() for day, part in zip(days, expected, strict=True))


def test_rows_of_the_same_time_are_in_one_part():
    weeks = sessions().with_columns(t=pl.col("session") // 20 * 7 + pl.int_range(pl.len()).over("session"))
    data, t = prepare(weeks, split_by="date", **ROLES)
    for time in np.unique(t):
        assert len(np.unique(data.part[t == time])) == 1


def test_one_value_a_sequence_keeps_each_sequence_in_the_part_where_it_ends():
    frame = panel().with_columns(
        item=pl.col("shop"), t=pl.col("t") + (pl.col("shop").rank("dense") - 1) * dt.timedelta(days=4)
    )
    data, _ = prepare(
        frame,
        target="item",
        per="sequence",
        group="shop",
        time="t",
        features="y",
        split_by="date",
        split="0.5,0.25,0.25",
    )
    assert [set(data.part[a:b]) for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)] == [
        {TRAIN},
        {TRAIN},
        {VALID},
        {TEST},
    ]
    assert "Split: sequences that end before 2025-01-28 train" in data.notes[0]


def test_a_split_by_date_needs_a_time_and_several_of_them():
    with pytest.raises(SettingsError, match=r"split_by='date' needs the column of the times.*--time"):
        prepare(panel(), split_by="date", target="y", group="shop")
    two = panel().filter(pl.col("t") < dt.date(2025, 1, 3))
    with pytest.raises(DataError, match="a split by date into 3 parts needs as many different times, and there are 2"):
        prepare(two, split_by="date", **SHOPS)


def test_a_note_says_where_test_rows_are_older_than_training_rows():
    data, t = prepare(sessions(), **ROLES)
    older = (t[data.part == TEST] < t[data.part == TRAIN].max()).mean()
    (note,) = [n for n in data.notes if "older" in n]
    assert note.startswith(f"{older:.0%} of the test rows are older than the newest training row (")
    assert "--split-by date" in note


def test_times_that_each_sequence_counts_from_its_beginning_say_nothing_of_older_rows():
    frame = sessions().with_columns(t=pl.int_range(pl.len()).over("session"))
    assert not any("older" in n for n in prepare(frame, **ROLES)[0].notes)
    years = frame.with_columns(t=pl.col("t") + 1990)
    assert any("older than the newest training row (1995)" in n for n in prepare(years, **ROLES)[0].notes)


def test_a_split_column_may_cut_each_group_by_time():
    frame = panel()
    data, _ = prepare(frame, split="split", **SHOPS)
    words = {TRAIN: "train", VALID: "valid", TEST: "test"}
    assert [words[p] for p in data.part] == frame["split"].gather(data.rows).to_list()
    assert "Split: as column 'split' says, which cuts 4 of 4 sequences by time." in data.notes
    assert not any("older" in n for n in data.notes)


def test_where_a_column_cuts_by_time_the_last_training_rows_of_each_sequence_validate():
    frame = pl.concat([panel().with_columns(shop=pl.col("shop") + str(k)) for k in range(3)])
    frame = frame.with_columns(pl.col("split").replace("valid", "train"))
    data, t = prepare(frame, split="split", **SHOPS)
    test = frame["split"].gather(data.rows) == "test"
    assert (data.part == TEST).tolist() == test.to_list()
    assert set(t[data.part == VALID]) == set(np.unique(t)[13:15])
    by_date, t = prepare(frame, split="split", split_by="date", **SHOPS)
    assert (by_date.part == data.part).all()


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        (SHOPS, "At 2025-01-16 it goes back to an earlier part"),
        ({"target": "y", "group": "shop", "horizon": 1}, r"name the column of the times \(time, --time\)"),
    ],
)
def test_parts_of_a_group_that_do_not_follow_each_other_are_named_with_their_place(settings, way):
    frame = panel().with_columns(
        split=pl.when(pl.int_range(pl.len()) == 34).then(pl.lit("test")).otherwise("split"),
    )
    frame = frame.with_columns(split=pl.when(pl.int_range(pl.len()) == 35).then(pl.lit("valid")).otherwise("split"))
    with pytest.raises(DataError, match=rf"column 'split': the group shop='.' is in two splits .*{way}") as error:
        prepare(frame, split="split", **settings)
    assert ("row 36" in str(error.value)) == ("time" in settings)


def test_one_value_a_sequence_keeps_a_group_in_one_part():
    frame = panel().with_columns(item=pl.col("shop"))
    with pytest.raises(DataError, match=r"in two splits .* or its rows would leak"):
        prepare(frame, split="split", target="item", per="sequence", group="shop", time="t", features="y")
