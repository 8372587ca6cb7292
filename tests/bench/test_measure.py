"""Turns, and what becomes of a peer that is wrong or fails. The clock here is a number that the calls move."""

from __future__ import annotations

import statistics
from contextlib import contextmanager

import numpy as np
import pytest

from tidegate.bench import case, measure
from tidegate.bench.peers import PEERS, Peer, Runner, Torch
from tidegate.bench.shapes import Cell, Shape

CELL = Cell("forward", Shape(B=2, T=3, I=4, H=5))


class Clock:
    """Records who is called and how long is slept; time passes in nothing else."""

    def __init__(self, monkeypatch) -> None:
        self.ns = 0
        self.log: list[str] = []
        monkeypatch.setattr(measure, "perf_counter_ns", lambda: self.ns)
        monkeypatch.setattr(measure, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)
        self.log.append("pause" if seconds == measure.PAUSE_S else f"sleep {seconds}")

    def runner(self, name: str, *milliseconds: float) -> Runner:
        """Its calls take these times in turn; the last one from then on."""
        rest = list(milliseconds)

        def call() -> None:
            self.log.append(name)
            self.ns += int((rest.pop(0) if len(rest) > 1 else rest[0]) * 1e6)

        return Runner(call, lambda result: {})


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_every_peer_has_a_turn_in_every_round_after_a_pause_and_the_order_moves_on(clock):
    measure.in_turns({name: clock.runner(name, 50) for name in "abc"}, rounds=4)
    turns = "".join("|" if entry == "pause" else entry for entry in clock.log)
    # 50 ms is longer than a block: one call to warm up, one that is timed
    assert turns == "|aa|bb|cc" + "|bb|cc|aa" + "|cc|aa|bb" + "|aa|bb|cc"


def test_calls_that_warm_up_are_not_timed(clock):
    times, _ = measure.in_turns({"a": clock.runner("a", 900, 30)}, rounds=1)
    assert times == {"a": [30_000_000] * 2}


def test_a_block_goes_on_for_its_time(clock):
    times, _ = measure.in_turns({"short": clock.runner("short", 1), "middle": clock.runner("middle", 39)}, rounds=2)
    block_ms = measure.BLOCK_S * 1000
    assert len(times["short"]) == 2 * block_ms
    assert len(times["middle"]) == 2 * 2
    # two calls warm up where they are short
    assert clock.log.count("short") == 2 * (block_ms + 2)


def test_a_context_is_entered_around_the_block_and_not_around_each_call(clock):
    entered = []

    @contextmanager
    def around():
        entered.append(len(clock.log))
        yield

    runner = clock.runner("a", 1)
    measure.in_turns({"a": Runner(runner.call, runner.read, around)}, rounds=3)
    assert len(entered) == 3


def test_who_fails_on_the_way_has_no_more_turns_and_the_others_go_on(clock):
    calls = []

    def call() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        clock.ns += 50_000_000

    times, failed = measure.in_turns({"a": Runner(call, lambda r: {}), "b": clock.runner("b", 50)}, rounds=4)
    assert len(calls) == 3
    assert str(failed["a"]) == "out of memory"
    assert len(times["b"]) == 4


class Wrong(Torch):
    """Off by a little more than the gate allows."""

    def forward(self, given):
        runner = super().forward(given)
        return Runner(
            runner.call,
            lambda output: {"output": output.numpy() + 1.5 * case.BOUNDS["output"]},
            runner.around,
        )


class Nan(Torch):
    def forward(self, given):
        runner = super().forward(given)
        return Runner(runner.call, lambda output: {"output": output.numpy() * np.nan}, runner.around)


class Failing(Peer):
    packages = ("torch",)

    def forward(self, given):
        raise RuntimeError("no kernel for this\nand a page about it")


class CantStep(Peer):
    packages = ("torch",)

    def step(self, given):
        raise AssertionError("asked for a kind that it can't do")


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_S", 0.001)
    peers = {
        "tidegate": PEERS["tidegate"](1),
        "torch": Torch(1),
        "wrong": Wrong(1),
        "nan": Nan(1),
        "failing": Failing(1),
        "absent": ImportError("its library does not load"),
    }
    found = measure.measure(CELL, peers, threads=1, rounds=2, peak_gflops=50.0)
    return {row.peer: row for row in found}


def test_right_peers_are_timed_and_their_error_is_recorded(rows):
    for name in ("tidegate", "torch"):
        row = rows[name]
        assert row.status == "ok"
        assert 0 < row.error < 1e-5
        assert row.calls >= 2
        assert 0 < row.quartile_1_us <= row.median_us <= row.quartile_3_us
        assert (row.kind, row.B, row.T, row.I, row.H, row.layers, row.threads) == ("forward", 2, 3, 4, 5, 1, 1)
    assert rows["torch"].version.startswith("torch ")


def test_wrong_peers_are_not_timed_and_say_how_wrong(rows):
    assert (rows["wrong"].status, rows["wrong"].median_us, rows["wrong"].calls) == ("wrong", None, 0)
    assert rows["wrong"].error > case.BOUNDS["output"]
    assert rows["wrong"].reason == f"error {rows['wrong'].error:.1g}"
    assert (rows["nan"].status, rows["nan"].error, rows["nan"].reason) == ("wrong", None, "error nan")


def test_failing_peers_say_why_in_a_line(rows):
    assert (rows["failing"].status, rows["failing"].reason) == ("failed", "RuntimeError: no kernel for this")
    assert (rows["absent"].status, rows["absent"].reason) == ("failed", "ImportError: its library does not load")


def test_the_share_of_the_peak_is_two_operations_a_multiply_add_over_the_time_and_only_ours(rows):
    row = rows["tidegate"]
    operations = 2 * row.T * row.B * 3 * row.H * (row.I + row.H)
    assert row.share_of_peak == pytest.approx(operations / (row.median_us * 1e-6) / 50e9)
    assert rows["torch"].share_of_peak is None


def test_a_peer_without_a_kind_is_not_in_its_cells():
    assert measure.measure(CELL, {"cant": CantStep(1)}, threads=1, rounds=1) == []


def test_the_median_is_over_all_calls_of_all_rounds(monkeypatch):
    ns = [1000, 2000, 9000, 4000]
    monkeypatch.setattr(measure, "in_turns", lambda runners, *_: (dict.fromkeys(runners, ns), {}))
    (row,) = measure.measure(CELL, {"torch": Torch(1)}, threads=1, rounds=1)
    assert (row.median_us, row.calls) == (statistics.median(ns) / 1000, 4)


def test_a_peer_that_fails_while_it_is_timed_has_no_time(monkeypatch):
    failed = {"torch": MemoryError()}
    monkeypatch.setattr(measure, "in_turns", lambda runners, *_: ({"torch": [1]}, failed))
    (row,) = measure.measure(CELL, {"torch": Torch(1)}, threads=1, rounds=1)
    assert (row.status, row.median_us, row.reason) == ("failed", None, "MemoryError")


def test_progress_is_told_ahead_of_pauses_alone_and_grows(monkeypatch):
    heard = []
    monkeypatch.setattr(measure, "BLOCK_S", 0.001)
    monkeypatch.setattr(measure, "sleep", lambda seconds: heard.append("pause"))
    measure.measure(CELL, {"torch": Torch(1)}, threads=1, rounds=2, progress=heard.append)
    assert heard == [0.0, 1 / 3, "pause", 2 / 3, "pause"]


def test_the_peak_is_measured_or_the_reason_is_said(monkeypatch):
    from tidegate.ops.gru import native

    if native.missing() is None:
        peak, why = measure.peak_gflops(1)
        assert peak > 0.1
        assert why == ""
    monkeypatch.setattr(native, "missing", lambda: "it was not built")
    assert measure.peak_gflops(1) == (None, "it was not built")
