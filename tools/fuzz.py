"""Feeds every reader of Tidegate with odd and damaged inputs, and reports what comes of it.

    python tools/fuzz.py                        # each target for 20 seconds: what make fuzz does
    python tools/fuzz.py csv run --inputs 5000  # some targets, for a number of inputs each
    python tools/fuzz.py csv --seed 123         # one input again, with its traceback; --write PATH keeps it
    python tools/fuzz.py --save                 # adds the figures to benchmarks/results/fuzz.csv, for docs/reliability.md, and
                                                # begins after the seeds that are there

A seed is an input: the same target and seed give the same bytes. Inputs are read in a child process that may take at most
`MEMORY` bytes beyond what it has when it begins, and is started anew after the seed that ended it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
RESULTS = ROOT / "benchmarks/results/fuzz.csv"
FAILURES = ROOT / "build/fuzz/failures.jsonl"
SAVING, STOP = threading.Lock(), threading.Event()
MEMORY = 2 << 30
PATIENCE = 180  # seconds without a word after which a child is ended that doesn't hear its own alarm


def child(name: str, first: int, last: int, seconds: float) -> None:
    """Read the inputs of the seeds first..last, for some seconds; a line of JSON for each, for each failure, and at the end."""
    errors = errors_of(name)
    errors.parent.mkdir(parents=True, exist_ok=True)
    os.dup2(
        os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2
    )  # what polars says of its panics, and as its last words
    from tests.fuzz.harness import input_of, place_of, read
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    read(target, input_of(target, 0))  # all that is loaded once
    begun = _pages("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (begun + MEMORY, begun + MEMORY))
    end = time.perf_counter() + seconds
    seed = first
    while seed < last and time.perf_counter() < end:
        tell({"seed": seed})
        try:
            outcome = read(target, input_of(target, seed))
            tell({"came": "taken" if outcome == "taken" else "refused"})
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of polars is no Exception; each is told, and the next input is read
            tell({"failed": place_of(error), "error": f"{type(error).__name__}: {error}"[:300], "at": seed})
        seed += 1
    tell({"next": seed, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})


def tell(values: dict[str, Any]) -> None:
    os.write(1, (json.dumps(values) + "\n").encode())


def _pages(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(name)


class Fuzz:
    """One target in child processes."""

    def __init__(self, name: str):
        self.name = name
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, str, int]] = {}
        self.peak = 0

    def run(self, first: int, last: int, seconds: float) -> int:
        """The seeds first..last, for some seconds, in as many processes as it takes; the seed to go on with."""
        end = time.perf_counter() + seconds
        while first < last and time.perf_counter() < end and not STOP.is_set():
            first = self._process(first, last, end - time.perf_counter())
        return first

    def _process(self, first: int, last: int, seconds: float) -> int:
        """Returns the seed to go on with."""
        command = [sys.executable, __file__, self.name, "--child", str(first), str(last), str(seconds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONHASHSEED": "0"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            seed, rest, why = first - 1, b"", ""
            while True:
                if not select.select([process.stdout], [], [], PATIENCE)[0]:
                    why = f"no answer in {PATIENCE} s, and none to the alarm"
                    process.kill()
                    break
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    break
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    values = json.loads(line)
                    seed = values.get("seed", seed)
                    if "came" in values:
                        self.counts[values["came"]] += 1
                    if "failed" in values:
                        self._note(values["failed"], values["at"], values["error"])
                    if "next" in values:
                        self.peak = max(self.peak, values["peak_mb"])
                        return int(values["next"])
        if process.returncode == -signal.SIGINT:  # Ctrl-C, which all get
            STOP.set()
        if STOP.is_set():
            return max(seed, first)
        if seed < first:
            raise SystemExit(f"{self.name}: the process ended before its first input. {why}")
        self.counts["ended"] += 1
        self._note(f"the process ended, status {process.returncode}", seed, why or _last_words(self.name))
        return seed + 1

    def _note(self, kind: str, seed: int, error: str) -> None:
        self.counts["failed"] += not kind.startswith("the process ended")
        at, text, count = self.failures.get(kind, (seed, error, 0))
        self.failures[kind] = (at, text, count + 1)
        if not count:
            print(f"  {self.name} --seed {at}: {kind}: {text}".replace("\n", " "), flush=True)
        FAILURES.parent.mkdir(parents=True, exist_ok=True)
        with FAILURES.open("a") as file:
            file.write(json.dumps({"target": self.name, "seed": seed, "kind": kind, "error": error}) + "\n")


def errors_of(name: str) -> Path:
    return ROOT / f"build/fuzz/{name}.txt"


def _last_words(name: str) -> str:
    """What the process said before it ended: of memory that it couldn't have, perhaps."""
    errors = errors_of(name)
    lines = errors.read_text(errors="replace").strip().splitlines() if errors.exists() else []
    return next((line for line in reversed(lines) if "memory allocation" in line), lines[-1] if lines else "no word")[
        :300
    ]


def again(name: str, seed: int, path: str | None) -> int:
    """One input, outside of a child process: what is read, and what comes of it."""
    from tests.fuzz.harness import input_of, read
    from tests.fuzz.targets import TARGETS

    given = input_of(TARGETS[name], seed)
    print(f"{given.name}: {len(given.data):,} bytes; {json.dumps(given.options)}\n{given.data[:2000]!r}")
    if path:
        Path(path).write_bytes(given.data)
    print(read(TARGETS[name], given))  # or a traceback, which is what was asked for
    return 0


def fuzz(names: list[str], inputs: int | None, seconds: float, begin: int | None, save: bool, jobs: int) -> int:
    def one(name: str) -> int:
        first = begin if begin is not None else next_seed(name) if save else 0
        run, began = Fuzz(name), time.perf_counter()
        seed = run.run(first, first + inputs, 1e9) if inputs else run.run(first, sys.maxsize, seconds)
        counts, spent = run.counts, time.perf_counter() - began
        print(
            f"{name}: {seed - first:,} inputs in {spent:.0f} s: {counts['taken']:,} taken, {counts['refused']:,} refused with a sentence, "
            f"{counts['failed']:,} failed, {counts['ended']:,} ended the process; at most {run.peak:,} MB",
            flush=True,
        )
        if save and not STOP.is_set():  # (as it was asked for, whole)
            with SAVING:
                _save(name, first, seed - first, run, spent)
        return counts["failed"] + counts["ended"]

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return int(sum(pool.map(one, names)) > 0)
        except KeyboardInterrupt:  # the children get it, too
            STOP.set()
            pool.shutdown(cancel_futures=True)
            return 130


def next_seed(name: str) -> int:
    """The first seed of a target behind all that are on record."""
    if not RESULTS.exists():
        return 0
    rows = csv.DictReader(line for line in RESULTS.read_text().splitlines() if not line.startswith("#"))
    return max((int(row["first_seed"]) + int(row["inputs"]) for row in rows if row["target"] == name), default=0)


def _save(name: str, first: int, inputs: int, run: Fuzz, spent: float) -> None:
    from tests.fuzz.targets import TARGETS
    from tidegate.bench.machine import machine

    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    counts = {what: run.counts[what] for what in ("taken", "refused", "failed", "ended")}
    row = {
        "target": name,
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "commit": told.stdout.strip(),
        "first_seed": first,
        "inputs": inputs,
        **counts,
        "seconds": round(spent),
        "peak_mb": run.peak,
        "reads": TARGETS[name].about,
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            file.write(f"# {machine()}\n")
            writer.writeheader()
        writer.writerow(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="which readers; none: all that are installed")
    parser.add_argument("--inputs", type=int, help="how many for each target")
    parser.add_argument("--seconds", type=float, default=20, help="how long for each target, without --inputs")
    parser.add_argument(
        "--first", type=int, metavar="SEED", help="the first seed (0, or with --save the one after those on record)"
    )
    parser.add_argument("--seed", type=int, help="read the input of one seed, and say what comes of it")
    parser.add_argument("--write", metavar="PATH", help="with --seed: write the bytes of the input to a file")
    parser.add_argument(
        "--save", action="store_true", help=f"add a line for each target to {RESULTS.relative_to(ROOT)}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="so many targets side by side")
    parser.add_argument("--child", nargs=3, type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        first, last, seconds = given.child
        child(given.targets[0], int(first), int(last), seconds)
        return 0
    from tests.fuzz.targets import TARGETS, has

    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Targets: {', '.join(TARGETS)}.")
    names = given.targets or [name for name, target in TARGETS.items() if all(map(has, target.needs))]
    if given.seed is not None:
        return max(again(name, given.seed, given.write) for name in names)
    return fuzz(names, given.inputs, given.seconds, given.first, given.save, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
