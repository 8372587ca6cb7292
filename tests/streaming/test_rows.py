"""Rows are read as `predict` reads them; a bad one is told and changes no state."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from tests.helpers.runs import ROLES, run_of, sensors
from tests.helpers.streams import GOOD, added, new_stream
from tests.helpers.tables import QUICK
from tidegate.errors import DataError, SettingsError
from tidegate.training import train

BAD = [
    ({"far": "x"}, "The row, column 'far': 'x' is not a number. Mend it, or give none"),
    ({"far": [1.0]}, r"The row, column 'far': \[1.0\] is not a number"),
    ({"far": math.nan}, "The row, column 'far': nan is not a finite number. Give a missing value as none"),
    ({"far": math.inf}, "column 'far': inf is not a finite number"),
    ({"far": 10**400}, "column 'far': 1000.* is not a number"),
    ({"far": 10**5000}, "column 'far': a value of type int is not a number"),
    ({"far": 1e300}, "column 'far': 1e[+]300 is too far from the training rows"),
    ({"colour": ["red"]}, "column 'colour': .* is neither text nor a number"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_value_is_told_with_its_column_and_changes_no_state(change, message):
    stream = new_stream("number")
    stream.push(GOOD, "a")
    before = stream.state("a").to_bytes()
    with pytest.raises(DataError, match=message):
        stream.push(GOOD | change, "a")
    with pytest.raises(DataError, match=message.replace("The row", "Row 2")):
        stream.push_many([GOOD, GOOD | change], ["a", "b"])
    with pytest.raises(DataError):
        stream.push(GOOD | change, "new")
    assert stream.keys() == ["a"]
    assert stream.state("a").to_bytes() == before


def test_an_absent_column_is_told_with_the_nearest_one_that_is_there():
    stream = new_stream("number")
    row = {("farr" if name == "far" else name): value for name, value in GOOD.items()}
    with pytest.raises(
        DataError, match=r"The row: there is no column 'far'. Did you mean 'farr'\? Where its value is missing"
    ):
        stream.push(row)
    del row["colour"], row["farr"]
    with pytest.raises(DataError, match=r"there is no column 'far'\. Where"):
        stream.push(row)
    with pytest.raises(DataError, match="there is no column 'colour'"):
        stream.push({name: value for name, value in GOOD.items() if name != "colour"})


def test_a_row_may_be_a_list_of_values_in_order():
    stream, other = new_stream("number"), new_stream("number")
    values = [GOOD[name] for name in stream.columns]
    assert stream.push(values) == other.push(GOOD)
    assert stream.push(tuple(values)) == other.push(GOOD)
    numbers = new_stream("numbers alone")
    assert numbers.push(np.array([1e6, 0.5])) == new_stream("numbers alone").push({"far": 1e6, "x": 0.5})
    with pytest.raises(DataError, match="The row: 5 values, expected 6: 'x', 'far'"):
        stream.push(values[:-1])
    with pytest.raises(DataError, match="The row: a value of type str; expected a dict"):
        stream.push("0.5,1,2")
    with pytest.raises(DataError, match="The row: a value of type float"):
        stream.push(0.5)


def test_values_are_read_as_predict_reads_them():
    frame = pl.DataFrame(
        {
            "device": ["a"] * 4,
            "t": range(4),
            "x": [None, 1.0, 2.0, None],
            "far": [1e6, 999_950.0, 1_000_070.0, 1e6],
            "level": [1, None, -2, 3],
            "on": [True, False, None, True],
            "kind": ["ä", None, "never seen", '"d"'],
            "colour": ["red", "violet", "", "blue"],
        }
    )
    for name in ("number", "class", "whole-number classes"):
        expected = added(run_of(name), frame).to_dicts()
        stream = new_stream(name)
        assert [stream.push(row) for row in frame.rows(named=True)] == expected
    floats = new_stream("number")
    same = new_stream("number").push(GOOD)
    assert floats.push(GOOD | {"far": np.float32(1e6), "level": np.int64(2), "on": 1, "x": np.float64(0.5)}) == same


def test_whole_number_categories_are_read_from_numbers_and_text():
    first = new_stream("yes/no").push({"x": 0.5, "level": 2})
    for value in (2.0, "2", np.int32(2), np.float64(2)):
        assert new_stream("yes/no").push({"x": 0.5, "level": value}) == first
    unknown = new_stream("yes/no").push({"x": 0.5, "level": None})
    assert unknown != first
    for value in (2.5, 77, "two", True):
        assert new_stream("yes/no").push({"x": 0.5, "level": value}) == unknown


def test_yes_and_no_are_categories_too(tmp_path):
    frame = sensors()
    settings = QUICK | ROLES | {"target": "label", "features": ["on"], "categories": "on"}
    run = train(frame, out=tmp_path / "r", **settings)
    stream = run.stream(probabilities=True)
    rows, keys = frame.rows(named=True), frame["device"].to_list()
    assert [stream.push(row, key) for row, key in zip(rows, keys, strict=True)] == added(run, frame).to_dicts()
    assert stream.push({"on": True}, 1) != stream.push({"on": False}, 2)


def test_words_are_compared_in_lower_case_and_come_one_a_row():
    stream = new_stream("words")
    assert stream.push({"words": "PLAY"}, 1) == stream.push({"words": "play"}, 2)
    # The run was trained on lists, whose items are words as they are, however they look.
    for word in ("foo-bar", "two words", "3.5", "U.K."):
        assert stream.push({"words": word}, word) == stream.push({"words": "never seen"}, ("other", word))


def test_of_sentences_a_row_is_one_word(tmp_path):
    frame = pl.DataFrame({"text": ["play a song", "don't stop", "U.K. now"] * 9, "mood": ["good", "bad", "so"] * 9})
    run = train(frame, out=tmp_path / "r", target="mood", text="text", per="sequence", bidirectional=False, **QUICK)
    stream = run.stream()
    for word in ("play", "don't", "unheard", "İ"):
        stream.push({"text": word})
    for several in ("play a song", "U.K.", "foo-bar"):
        with pytest.raises(DataError, match=r"holds several words. A stream reads one word a row"):
            stream.push({"text": several})


def test_nan_is_a_missing_value_where_the_run_was_trained_so(tmp_path):
    frame = sensors()
    settings = QUICK | ROLES | {"target": "label", "features": ["x"], "non_finite": "missing"}
    run = train(frame, out=tmp_path / "r", **settings)
    row = {"x": math.nan}
    assert run.stream(probabilities=True).push(row) == run.stream(probabilities=True).push({"x": None})
    assert run.stream(probabilities=True).push({"x": -math.inf}) == run.stream(probabilities=True).push({"x": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_keys": 0}, "max_keys=0: expected a whole number of at least 1"),
        ({"ttl": 0}, "ttl=0: expected seconds, more than 0"),
        ({"ttl": math.nan}, "ttl=nan"),
        ({"ttl": "5"}, "ttl='5'"),
        ({"max_keys": True}, "max_keys=True"),
        ({"probabilities": True}, "probabilities are for classes and labels"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        run_of("number").stream(**options)
