"""Starts the measuring processes, one after the other, and hands on what they say."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable
from typing import Any

from tidegate.bench.shapes import Cell
from tidegate.errors import TidegateError


class BenchError(TidegateError):
    """The measuring did not come to its end, or what it measured is wrong."""


def run(cells: Iterable[Cell], peers: Iterable[str], threads: int, rounds: int) -> Generator[dict[str, Any]]:
    """Measure in a process of its own. Yields, as they come, dictionaries with one of these sets of keys:

        backend, isa, peak_gflops, no_peak    once, at first: what "auto" chose; the peak, or why there is none
        cell, done                            what is at work; the share of this process's work that is done, 0 to 1
        row                                   the fields of a `measure.Row`

    Raises BenchError where the process dies. It is ended when the iterator is closed.
    """
    job = {
        "threads": threads,
        "rounds": rounds,
        "peers": list(peers),
        "cells": [[c.kind, c.shape.B, c.shape.T, c.shape.I, c.shape.H, c.shape.layers] for c in cells],
    }
    at = "starting"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidegate.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8",
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # its status will tell
                json.dump(job, stdin)
            with process.stdout as lines:
                for line in lines:
                    said = json.loads(line)
                    at = said.get("cell", at)
                    yield said
            if process.wait() != 0:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
                raise BenchError(
                    f"The measuring process for {threads} threads ended with status {process.returncode} at: {at}. "
                    f"Its last words: {last}. Where a peer is to blame, leave it out with --peers."
                )
        finally:
            process.kill()
            process.wait()
