"""A cell is measured: every peer is checked, then those that passed are timed in turns."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import Any

from tidegate.bench import case
from tidegate.bench.peers import Peer, Runner
from tidegate.bench.shapes import Cell

BLOCK_S = 0.04
"""How long a peer's calls of a turn go on: at least one call, two where one is shorter."""

PAUSE_S = 0.02
"""Before every turn. The threads of some peers spin for milliseconds after a call, waiting for the next one, and
would slow whoever comes then."""


@dataclass(frozen=True)
class Row:
    """A peer in a cell: a row of the raw numbers."""

    kind: str
    threads: int
    B: int
    T: int
    I: int
    H: int
    layers: int
    peer: str
    version: str
    status: str
    """ok; wrong: it failed the gate and was not timed; failed: `reason` says why."""
    median_us: float | None = None
    quartile_1_us: float | None = None
    quartile_3_us: float | None = None
    calls: int = 0
    rounds: int = 0
    error: float | None = None
    """The largest difference to float64 of any tensor, relative to its largest value."""
    multiply_adds: int = 0
    share_of_peak: float | None = None
    """Of what this machine's cores reach in registers alone; only for Tidegate."""
    reason: str = ""


def in_turns(
    runners: Mapping[str, Runner], rounds: int, before_turn: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[int]], dict[str, Exception]]:
    """Nanoseconds of every timed call of each runner, and what those raised that failed on the way.

    In every round each has a turn: a pause, one or two calls that are not timed, then calls that are timed one by one.
    The order moves on by one from round to round, so that nobody always follows the same neighbour.
    """
    names = list(runners)
    times: dict[str, list[int]] = {name: [] for name in names}
    failed: dict[str, Exception] = {}
    for i in range(rounds):
        for k in range(len(names)):
            name = names[(i + k) % len(names)]
            if name in failed:
                continue
            before_turn()
            sleep(PAUSE_S)
            try:
                times[name] += _block(runners[name])
            except Exception as error:
                failed[name] = error
    return times, failed


def _block(runner: Runner) -> list[int]:
    call, block_ns = runner.call, int(BLOCK_S * 1e9)
    times: list[int] = []
    with runner.around():
        began = perf_counter_ns()
        call()
        if perf_counter_ns() - began < block_ns:
            call()
        ended = perf_counter_ns()
        end = ended + block_ns
        while not times or ended < end:
            began = perf_counter_ns()
            call()
            ended = perf_counter_ns()
            times.append(ended - began)
    return times


def measure(
    cell: Cell,
    peers: Mapping[str, Peer | Exception],
    threads: int,
    rounds: int,
    peak_gflops: float | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Row]:
    """The rows of a cell, in the order of `peers`; an Exception stands for a peer that could not be made.

    `progress` hears which share of the cell is done, always ahead of a pause and never during a timed call.
    """
    given = case.make(cell)
    able = {name: peer for name, peer in peers.items() if isinstance(peer, Exception) or cell.kind in peer.kinds()}
    right = case.truth(given)
    runners: dict[str, Runner] = {}
    facts: dict[str, dict[str, Any]] = {}
    turns, done = len(able) * (rounds + 1), 0

    def another() -> None:
        nonlocal done
        progress(done / turns)
        done += 1

    for name, peer in able.items():
        another()
        try:
            if isinstance(peer, Exception):
                raise peer
            runner = getattr(peer, cell.kind)(given)
            with runner.around():
                for _ in range(case.GATE_STEPS if cell.kind == "step" else 1):
                    result = runner.call()
            error, passed = case.check(runner.read(result), right)
        except Exception as failure:
            facts[name] = {"status": "failed", "reason": _sentence(failure)}
        else:
            if passed:
                facts[name] = {"status": "ok", "error": error}
                runners[name] = runner
            else:  # NaN is not JSON
                facts[name] = {"status": "wrong", "reason": f"error {error:.1g}"}
                facts[name]["error"] = None if math.isnan(error) else error
    gc.collect()  # compiling leaves much behind; better now than in someone's turn

    times, failed = in_turns(runners, rounds, another)
    multiply_adds = cell.shape.multiply_adds(cell.kind)
    for name in runners:
        if name in failed:
            facts[name] |= {"status": "failed", "reason": _sentence(failed[name])}
            continue
        us = [ns / 1000 for ns in times[name]]
        low, median, high = statistics.quantiles(us, n=4, method="inclusive") if len(us) > 1 else us * 3
        facts[name] |= {"median_us": median, "quartile_1_us": low, "quartile_3_us": high, "calls": len(us)}
        if name == "tidegate" and peak_gflops:
            facts[name]["share_of_peak"] = 2 * multiply_adds / (median * 1000) / peak_gflops
    s = cell.shape
    return [
        Row(
            cell.kind, threads, s.B, s.T, s.I, s.H, s.layers, name,
            version="" if isinstance(peer, Exception) else peer.version(),
            rounds=rounds, multiply_adds=multiply_adds,
            **facts[name],
        )
        for name, peer in able.items()
    ]  # fmt: skip


def _sentence(error: Exception) -> str:
    """The first line of what was raised: these programs add pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def peak_gflops(threads: int) -> tuple[float | None, str]:
    """What `threads` cores reach in multiply-adds on registers, in GFLOP/s; or None and the reason."""
    from tidegate.ops.gru import native

    why = native.missing()
    if why is not None:
        return None, why
    # The best of five: another program's share of the time is not the machine's.
    return max(native.peak_gflops(threads, 0.1) for _ in range(5)), ""
