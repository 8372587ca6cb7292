"""Batches: every step once, nothing read from padding, horizons that stop at borders."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.data import batches
from tidegate.data.batches import BatchSource
from tidegate.data.sequences import MISSING_CLASS, TEST, TRAIN, UNSEEN_CLASS, Sequences


def sequences(lengths, part=None, width=2) -> Sequences:
    steps = sum(lengths)
    numbers = np.arange(steps * width, dtype=np.float32).reshape(steps, width)
    return Sequences(
        numbers=numbers,
        codes=np.zeros((steps, 0), dtype=np.int64),
        y=np.arange(steps, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        part=np.full(steps, TRAIN, dtype=np.uint8) if part is None else np.array(part, dtype=np.uint8),
        rows=np.arange(steps),
    )


lengths_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda n: sum(n) > 0)


@given(lengths_strategy, st.one_of(st.none(), st.integers(1, 20)), st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_training_step_exactly_once(lengths, window, batch_size, seed):
    source = BatchSource(sequences(lengths), per_sequence=False, horizon=0)
    seen = []
    for arguments in source.training_batches(TRAIN, batch_size, window, np.random.default_rng(seed)):
        batch = source.training_batch(arguments)
        assert batch.numbers.shape[1] <= batch_size
        if window is not None:
            assert batch.numbers.shape[0] <= window
        steps = batch.steps[batch.inside]
        assert (batch.y[..., 0][batch.inside] == steps).all()
        assert (batch.y[..., 0][~batch.inside] == MISSING_CLASS).all()
        seen += steps.tolist()
    assert sorted(seen) == list(range(sum(lengths)))


@given(lengths_strategy, st.integers(1, 5), st.one_of(st.none(), st.integers(1, 9)), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_evaluation_visits_every_step_once_in_any_batches_and_chunks(lengths, batch_size, chunk, horizon):
    data = sequences(lengths)
    source = BatchSource(data, per_sequence=False, horizon=horizon)
    seen, expected = [], source.all_targets(None)
    for chunks in source.whole_sequences(None, batch_size, chunk):
        for batch in chunks:
            seen += batch.steps[batch.inside].tolist()
            assert torch.equal(batch.y[batch.inside], expected[batch.steps[batch.inside]])
    assert sorted(seen) == list(range(sum(lengths)))


def test_a_horizon_takes_the_next_values_and_stops_at_the_end_of_the_sequence():
    source = BatchSource(sequences([4, 2]), per_sequence=False, horizon=2)
    blank = MISSING_CLASS
    assert source.all_targets(None).tolist() == [[1, 2], [2, 3], [3, blank], [blank, blank], [5, blank], [blank, blank]]


def test_a_horizon_never_looks_into_another_part():
    data = sequences([6], part=[TRAIN, TRAIN, TRAIN, TEST, TEST, TEST])
    source = BatchSource(data, per_sequence=False, horizon=1)
    blank = MISSING_CLASS
    assert source.all_targets(TRAIN)[:, 0].tolist() == [1, 2, blank, blank, blank, blank]
    assert source.all_targets(TEST)[:, 0].tolist() == [blank, blank, blank, 4, 5, blank]
    (arguments,) = source.training_batches(TRAIN, 4, None, np.random.default_rng(0))
    assert source.training_batch(arguments).y[:, 0, 0].tolist() == [1, 2, blank]


lanes_of = {
    "window": st.integers(1, 20),
    "lanes": st.integers(1, 7),
    "horizon": st.integers(0, 3),
    "seed": st.integers(0, 5),
}


@given(lengths_strategy, st.booleans(), st.booleans(), st.fixed_dictionaries(lanes_of))
@settings(max_examples=100, deadline=None)
def test_lanes_hold_every_training_step_once_and_each_row_goes_on_where_it_stood(lengths, parted, torn, of):
    rng, data = np.random.default_rng(of["seed"]), sequences(lengths)
    data.part[1:] = np.where(parted & (rng.random(sum(lengths) - 1) < 0.1), TEST, TRAIN)
    data.stretch = np.cumsum(rng.random(sum(lengths)) < 0.2) if torn else None
    source = BatchSource(data, per_sequence=False, horizon=of["horizon"])
    expected, stretches = source.all_targets(TRAIN), {int(a): int(b) for a, b in data.segments(TRAIN)}
    for end in stretches.values():  # (training looks across no row of another part)
        for back in range(1, min(of["horizon"], end) + 1):
            expected[end - back, back - 1 :] = MISSING_CLASS
    seen, stood, rows = [], [], of["lanes"]
    for arguments in source.training_lanes(TRAIN, of["lanes"], of["window"], np.random.default_rng(of["seed"])):
        starts, lengths_, limits, _, fresh = (a.tolist() for a in arguments)
        assert len(starts) <= rows
        rows = len(starts)
        for row, start in enumerate(starts):
            assert 1 <= lengths_[row] <= of["window"]
            if fresh[row]:
                assert limits[row] == stretches[start]
                assert not stood or stood[row][0] == stood[row][1]  # the one before was over
            else:
                assert stood[row] == (start, limits[row])
        stood = [(start + length, limit) for start, length, limit in zip(starts, lengths_, limits, strict=True)]
        batch = source.training_batch(arguments)
        assert torch.equal(batch.y[batch.inside], expected[batch.steps[batch.inside]])
        seen += batch.steps[batch.inside].tolist()
    assert sorted(seen) == np.flatnonzero(data.part == TRAIN).tolist()


@given(lengths_strategy, st.integers(1, 9), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_lane_is_much_longer_than_the_others(lengths, window, lanes, seed):
    source = BatchSource(sequences(lengths), per_sequence=False, horizon=0)
    rows = [a[0].size(0) for a in source.training_lanes(TRAIN, lanes, window, np.random.default_rng(seed))]
    largest = max(1 + -(-n // window) for n in lengths)
    assert len(rows) <= max(largest, sum(rows) / min(lanes, rows[0]) + largest)  # (Graham 1966: of any greedy order)
    assert rows[0] == min(lanes, sum(n > 0 for n in lengths))
    equal = BatchSource(sequences([10] * 2 * lanes), per_sequence=False, horizon=0)
    assert {a[0].size(0) for a in equal.training_lanes(TRAIN, lanes, 20, np.random.default_rng(seed))} == {lanes}
    halves = BatchSource(sequences([20] * lanes + [10] * 2 * lanes), per_sequence=False, horizon=0)
    ten = [a[0].size(0) for a in halves.training_lanes(TRAIN, lanes, 1, np.random.default_rng(seed))]
    assert ten == [lanes] * 40  # the longest first: no lane waits for another one


def test_lanes_depend_on_the_generator_alone_and_have_another_order_and_other_cuts_each_epoch():
    source = BatchSource(sequences([100] * 5), per_sequence=False, horizon=0)

    def drawn(seed: int) -> list[list]:
        batches = source.training_lanes(TRAIN, 2, 10, np.random.default_rng(seed))
        return [[a.tolist() for a in arguments] for arguments in batches]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert len({tuple(first[0][0] // 100 for first in (drawn(s)[0],)) for s in range(8)}) > 1
    assert len({drawn(s)[0][1][0] for s in range(8)}) > 1
    whole = BatchSource(sequences([10] * 5), per_sequence=False, horizon=0)
    epochs = [whole.training_lanes(TRAIN, 2, 10, np.random.default_rng(s)) for s in range(8)]
    assert len({frozenset(int(a[0][0]) for a in epoch) for epoch in epochs}) > 1  # other sequences share a lane


def test_windows_begin_elsewhere_each_epoch():
    source = BatchSource(sequences([100]), per_sequence=False, horizon=0)
    first = {
        tuple(sorted(int(a[0][0]) for a in source.training_batches(TRAIN, 1, 10, np.random.default_rng(s))))
        for s in range(5)
    }
    assert len(first) > 1


def test_segments_are_cut_at_parts_and_sequences():
    data = sequences([3, 0, 2, 4], part=[0, 0, 1, 0, 0, 0, 0, 1, 0])
    assert data.segments(0).tolist() == [[0, 2], [3, 5], [5, 7], [8, 9]]
    assert data.segments(1).tolist() == [[2, 3], [7, 8]]
    assert data.containing(1).tolist() == [0, 3]


def per_sequence(lengths) -> BatchSource:
    data = sequences(lengths)
    data.y = np.zeros(len(lengths), dtype=np.int64)
    return BatchSource(data, per_sequence=True, horizon=0)


def epoch(source: BatchSource, batch_size: int) -> list[list[int]]:
    """The lengths in each batch of an epoch."""
    drawn = source.training_batches(TRAIN, batch_size, None, np.random.default_rng(0))
    return [lengths.tolist() for _, lengths, _, _ in drawn]


def test_one_long_sequence_does_not_make_its_batch_as_long(monkeypatch):
    monkeypatch.setattr(batches, "MOST_PADDING", 1_000)
    found = epoch(per_sequence([10] * 90 + [2_000, 9_000]), 32)
    assert sorted(n for batch in found for n in batch) == [10] * 90 + [2_000, 9_000]
    for batch in found:
        padding = max(batch) * len(batch) - sum(batch)
        assert padding <= max(1_000, sum(batch))
    assert all(max(batch) == 10 or min(batch) > 10 for batch in found)


def test_batches_of_like_lengths_are_never_divided(monkeypatch):
    lengths = np.random.default_rng(1).integers(500, 900, 100).tolist()
    before = epoch(per_sequence(lengths), 32)
    assert sorted(map(len, before)) == [4, 32, 32, 32]
    monkeypatch.setattr(batches, "MOST_PADDING", 0)
    assert epoch(per_sequence(lengths), 32) == before


def test_a_part_whose_classes_training_never_saw_has_nothing_to_score():
    data = sequences([3, 3], part=[TRAIN] * 3 + [TEST] * 3)
    data.y[3:] = [UNSEEN_CLASS, MISSING_CLASS, UNSEEN_CLASS - 2]
    source = BatchSource(data, per_sequence=False, horizon=0)
    assert source.has_targets(TRAIN)
    assert not source.has_targets(TEST)
