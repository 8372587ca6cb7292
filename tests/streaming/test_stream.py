"""A run row by row: what `predict` gives, to the bit."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.runs import ROLES, run_of, sensors, table_of
from tests.helpers.streams import FORWARDS, GOOD, added, last_of_each, new_stream, rows_and_keys
from tests.helpers.tables import QUICK
from tidegate.errors import SettingsError
from tidegate.ops.gru import native
from tidegate.streaming import StreamState
from tidegate.training import train


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", FORWARDS)
def test_rows_one_by_one_get_the_bits_that_predict_gives_them(name):
    run, frame = run_of(name), table_of(name)
    rows, keys = rows_and_keys(run, frame)
    expected = added(run, frame).to_dicts()
    stream = new_stream(name)
    found = [stream.push(row, key) for row, key in zip(rows, keys, strict=True)]
    which = last_of_each(keys) if run.preprocessing.per == "sequence" else range(len(keys))
    assert [found[k] for k in which] == [expected[k] for k in which]
    assert stream.keys() == list(dict.fromkeys(keys))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORWARDS)
def test_many_rows_at_once_get_the_same_bits_and_leave_the_same_states(name):
    run, frame = run_of(name), table_of(name)
    rows, keys = rows_and_keys(run, frame)
    one, many = new_stream(name), new_stream(name)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()  # keys mixed, several rows of a key in a call
    found = []
    for first in range(0, len(order), 50):
        some = order[first : first + 50]
        found += many.push_many([rows[k] for k in some], [keys[k] for k in some])
    assert found == [one.push(rows[k], keys[k]) for k in order]
    for key in one:
        a, b = one.state(key), many.state(key)
        assert a.rows == b.rows
        assert a.parts.keys() == b.parts.keys()
        assert all(np.array_equal(a.parts[part], b.parts[part]) for part in a.parts)


@pytest.mark.parametrize("name", ["sequence mean", "sequence last+max+mean"])
def test_a_pooled_long_sequence_has_the_bits_that_predict_gives_it(name):
    run = run_of(name)
    frame = pl.concat([sensors()] * 2).with_columns(device=pl.lit("d"), t=pl.int_range(pl.len()))
    stream = run.stream(probabilities=True)
    answers = [stream.push(row) for row in frame.rows(named=True)]
    for length in (1, 63, 64, 65, 200, frame.height):
        expected = run.predict(frame[:length], probabilities=True)
        assert answers[length - 1] == expected.select("prediction", "p_down", "p_up").row(-1, named=True)


@pytest.mark.parametrize("cell", ["lstm", "rnn", "none"])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_other_cells_stream_too(tmp_path, cell, per):
    frame = sensors()
    target = "whole" if per == "sequence" else "y"
    run = train(frame, out=tmp_path / "r", target=target, per=per, bidirectional=False, pooling="mean", cell=cell, num_layers=2, **(QUICK | ROLES))  # fmt: skip
    stream, again = run.stream(), run.stream()
    keys = frame["device"].to_list()
    found = [stream.push(row, key) for row, key in zip(frame.rows(named=True), keys, strict=True)]
    for a, b in zip(again.push_many(frame.rows(named=True), keys), found, strict=True):
        assert a["prediction"] == (pytest.approx(b["prediction"], rel=1e-5) if per == "step" else b["prediction"])
    expected = run.predict(frame)["prediction"].to_list()
    which = last_of_each(keys) if per == "sequence" else range(len(keys))
    if per == "step":
        assert [found[k]["prediction"] for k in which] == pytest.approx([expected[k] for k in which], rel=1e-5)
    else:
        assert [found[k]["prediction"] for k in which] == [expected[k] for k in which]
    stream.put(StreamState.from_bytes(stream.state("d3").to_bytes()), "copy")
    assert stream.push(frame.row(0, named=True), "copy") == stream.push(frame.row(0, named=True), "d3")


def test_the_layer_steps_in_the_native_back_end(monkeypatch):
    stream, row = new_stream("class"), sensors().row(0, named=True)
    for _ in range(3):
        stream.push(row)
    calls = []
    quick = native.quick_step
    monkeypatch.setattr(native, "quick_step", lambda *a: calls.append(quick(*a)) or calls[-1])
    stream.push(row)
    assert len(calls) == 1
    assert calls[0] is not None


def test_without_the_kernels_a_stream_gives_the_same_to_rounding(monkeypatch):
    rows = sensors().rows(named=True)[:40]
    stream = new_stream("number")
    expected = [stream.push(row)["prediction"] for row in rows]
    monkeypatch.setattr(native.kernels, "_MISSING", "not here")
    other = new_stream("number")
    found = [other.push(row)["prediction"] for row in rows]
    assert found == pytest.approx(expected, abs=2e-4)
    assert found != expected


def test_a_run_that_reads_both_ways_says_that_it_can_not_stream():
    with pytest.raises(SettingsError, match=r"reads each sequence in both directions.* Train with bidirectional=False"):
        run_of("both ways").stream()


def test_another_default_dtype_changes_nothing():
    expected = new_stream("sequence mean").push(GOOD)
    torch.set_default_dtype(torch.float64)
    try:
        assert new_stream("sequence mean").push(GOOD) == expected
        assert new_stream("sequence mean").push_many([GOOD], ["a"]) == [expected]
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_stream_leaves_gradients_as_they_were():
    stream = new_stream("number")
    stream.push(GOOD)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        stream.push(GOOD)
        assert not torch.is_grad_enabled()
