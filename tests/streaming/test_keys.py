"""A stream keeps a state for each key: apart from the others, as long as it is told to."""

from __future__ import annotations

import gc
import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.runs import sensors
from tests.helpers.streams import GOOD, new_stream
from tidegate.errors import SettingsError, ShapeError
from tidegate.streaming import StreamState


def test_keys_do_not_see_each_other_and_begin_anew_when_reset():
    stream, row = new_stream("number"), sensors().row(0, named=True)
    first = stream.push(row, "a")
    second = stream.push(row, "a")
    assert second != first
    assert stream.push(row, "b") == first
    assert stream.push(row, ("a", 1)) == first
    stream.reset("a")
    assert "a" not in stream
    assert stream.push(row, "a") == first
    stream.reset("never there")
    assert len(stream) == 3
    stream.clear()
    assert (len(stream), stream.push(row, "b")) == (0, first)


@pytest.mark.parametrize("name", ["number", "sequence mean", "sequence max", "labels"])
def test_a_state_is_a_value_that_can_be_kept_moved_and_put_back(name):
    rows = sensors().rows(named=True)[:30]
    stream, other = new_stream(name), new_stream(name)
    for row in rows[:10]:
        stream.push(row, "a")
    kept = stream.state("a")
    data = kept.to_bytes()
    after = [stream.push(row, "a") for row in rows[10:]]
    assert kept.rows == 10
    assert kept.to_bytes() == data  # later rows don't change it
    moved = StreamState.from_bytes(data)
    other.put(moved, "elsewhere")
    assert [other.push(row, "elsewhere") for row in rows[10:]] == after
    assert moved.to_bytes() == data
    other.put(moved, "elsewhere")
    assert other.push(rows[10], "elsewhere") == after[0]
    for part in [*moved.parts.values(), *other.state("elsewhere").parts.values()]:
        part[:] = 0.5  # whoever writes on a value writes on a copy
    assert other.push(rows[11], "elsewhere") == after[1]
    assert stream.state("never there") is None


def test_beyond_max_keys_the_one_not_heard_of_for_longest_goes():
    gone = []
    stream = new_stream("number", max_keys=2, on_forget=gone.append)
    row = sensors().row(0, named=True)
    first = stream.push(row, "a")
    stream.push(row, "b")
    stream.push(row, "a")
    stream.push(row, "c")
    assert (gone, stream.keys()) == (["b"], ["a", "c"])
    assert stream.push(row, "b") == first
    assert gone == ["b", "a"]
    assert [a == first for a in stream.push_many([row] * 4, ["d", "e", "f", "d"])] == [True, True, True, True]
    assert len(stream) == 2
    stream.put(stream.state("d"), "g")
    assert len(stream) == 2


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=1, max_size=5),
    most=st.sampled_from([None, 1, 2, 3]),
    ttl=st.sampled_from([None, 2.5]),
)
def test_push_many_is_push_one_after_the_other_whatever_goes_on_the_way(calls, most, ttl):
    rows = sensors().rows(named=True)
    clock, gone = [0.0], ([], [])
    one, many = (
        new_stream("one number", max_keys=most, ttl=ttl, clock=lambda: clock[0], on_forget=told.append) for told in gone
    )
    for k, keys in enumerate(calls):
        clock[0] += 1
        some = rows[k * 6 : k * 6 + len(keys)]
        assert many.push_many(some, keys) == [one.push(row, key) for row, key in zip(some, keys, strict=True)]
        assert many.keys() == one.keys()
    assert gone[0] == gone[1]


def test_whoever_is_told_of_a_key_that_goes_may_ask_the_stream():
    seen = []
    stream = new_stream("number", max_keys=1, on_forget=lambda key: seen.append((key, key in stream, stream.keys())))
    row = sensors().row(0, named=True)
    stream.push(row, "a")
    stream.push(row, "b")
    stream.push_many([row], ["c"])
    stream.put(stream.state("c"), "d")
    assert seen == [("a", False, ["b"]), ("b", False, ["c"]), ("c", False, ["d"])]


def test_a_stream_is_true_and_iterates_over_its_keys():
    stream = new_stream("number")
    assert stream
    assert len(stream) == 0
    stream.push(sensors().row(0, named=True), "a")
    assert list(stream) == ["a"]


def test_a_key_that_rested_for_longer_than_ttl_begins_anew():
    now, gone = [100.0], []
    stream = new_stream("number", ttl=10, clock=lambda: now[0], on_forget=gone.append)
    row = sensors().row(0, named=True)
    first = stream.push(row, "a")
    now[0] = 105
    stream.push(row, "b")
    now[0] = 110
    assert stream.push(row, "a") != first
    assert gone == []
    now[0] = 119
    stream.push(row, "c")
    assert (gone, stream.keys()) == (["b"], ["a", "c"])
    now[0] = 130
    assert stream.push(row, "a") == first
    assert gone == ["b", "a", "c"]


@pytest.mark.long
def test_memory_stays_flat_over_many_rows_of_ever_new_keys():
    stream, row = new_stream("number", max_keys=50), sensors().row(0, named=True)

    def some(first: int) -> None:
        for k in range(2000):
            stream.push(row, f"key {first + k}")
            stream.push(row, "always")
        stream.push_many([row] * 100, list(range(first, first + 100)))

    def ours() -> int:  # bytes; of Tidegate's own lines, since other threads and libraries' caches grow when they like
        gc.collect()
        lines = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/tidegate/*")])
        return sum(trace.size for trace in lines.traces)

    tracemalloc.start()
    for k in range(4):  # until free lists are filled
        some(k * 10_000)
    before = ours()
    for k in range(4, 8):
        some(k * 10_000)
    grown = ours() - before
    tracemalloc.stop()
    assert grown < 10_000  # of 16,400 rows: a pointer kept of each would be 131,200
    assert len(stream) == 50


def test_a_lone_survivor_of_a_batch_does_not_keep_the_batch_in_memory():
    stream, row = new_stream("number"), sensors().row(0, named=True)
    stream.push_many([row] * 64, list(range(64)))
    state = stream._places.find(0).state
    assert state.untyped_storage().nbytes() == state.numel() * 4


def test_threads_may_push_at_the_same_time():
    rows = sensors().rows(named=True)[:50]
    one = new_stream("number")
    expected = [one.push(row) for row in rows]
    stream = new_stream("number")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda key: [stream.push(row, key) for row in rows], range(8)))
    assert found == [expected] * 8


def test_a_number_of_numpys_is_a_key_like_pythons(tmp_path):
    stream = new_stream("number")
    first = stream.push(GOOD, np.int64(3))
    assert stream.push(GOOD, 3) != first
    stream.push(GOOD, ("a", np.float32(0.5)))
    stream.save(tmp_path / "s")
    assert stream.keys() == [3, ("a", 0.5)]
    assert [type(key) for key in stream] == [int, tuple]


def test_a_clock_that_is_set_back_stands_still_until_it_is_right_again():
    now = [100.0]
    stream = new_stream("number", ttl=10, clock=lambda: now[0])
    for key, at in (("a", 100), ("b", 50), ("c", 105), ("a", 109)):
        now[0] = at
        stream.push(GOOD, key)
    assert stream.keys() == ["b", "c", "a"]  # b was heard of at 100
    now[0] = 111
    stream.push(GOOD, "d")
    assert stream.keys() == ["c", "a", "d"]


def test_states_are_equal_where_they_hold_the_same():
    stream = new_stream("number")
    stream.push_many([GOOD, GOOD, GOOD], ["a", "b", "b"])
    again = StreamState.from_bytes(stream.state("a").to_bytes())
    assert again == stream.state("a")
    assert hash(again) == hash(stream.state("a"))
    assert again != stream.state("b")
    assert again != "a"


def test_a_key_that_could_not_be_saved_is_refused():
    stream = new_stream("number")
    for key in ([1], {"a": 1}, object(), (1, None), math.nan, "\ud800", ("a", "\udfff")):
        with pytest.raises(SettingsError, match="a key is text, a finite number, a tuple of these, or None"):
            stream.push(GOOD, key)
        with pytest.raises(SettingsError, match=r"Row 2: key=.*; a key is text"):
            stream.push_many([GOOD, GOOD], ["a", key])
    with pytest.raises(ShapeError, match="push_many: 2 rows and 1 keys"):
        stream.push_many([GOOD, GOOD], ["a"])
    assert len(stream) == 0
    assert stream.push_many([], []) == []
