"""What a row of a stream costs, beside a bare step of the layer and ONNX Runtime's; and that memory stays flat.

    python benchmarks/stream_speed.py              # microseconds a row, in turns, one thread
    python benchmarks/stream_speed.py --rows 1000000   # also so many rows through `tidegate stream`: rows a second, memory

A row is a dict of six numbers, the run a GRU with 64 units; the step is the same layer's on six inputs. Writes
benchmarks/results/stream_speed.csv, or with --rows stream_memory.csv.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from common import machine, markdown, save

import tidegate
from tidegate.bench import case
from tidegate.bench.measure import in_turns
from tidegate.bench.peers import PEERS, Runner
from tidegate.bench.shapes import Cell, Shape

ROUNDS = 15
UNITS, NUMBERS, TOGETHER = 64, 6, 64


def run_of(folder: Path) -> tidegate.Run:
    draw = np.random.default_rng(0)
    numbers = {f"s{k}": draw.standard_normal(400) for k in range(NUMBERS)}
    table = pl.DataFrame({"device": np.arange(400) // 20, **numbers, "label": draw.choice(["low", "high"], 400)})
    settings: dict[str, Any] = {"hidden_size": UNITS, "epochs": 1, "baselines": False, "progress": False}
    return tidegate.train(table, target="label", group="device", out=folder, **settings)


def speed(folder: Path) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    run = run_of(folder / "run")
    draw = np.random.default_rng(1)
    rows = [{f"s{k}": float(v) for k, v in enumerate(values)} for values in draw.standard_normal((TOGETHER, NUMBERS))]
    row, keys = rows[0], [f"device {k}" for k in range(TOGETHER)]
    plain, keyed, limited, many = run.stream(), run.stream(), run.stream(max_keys=1000, ttl=3600), run.stream()
    probable = run.stream(probabilities=True)
    given = case.make(Cell("step", Shape(1, 1, NUMBERS, UNITS, 1)))

    def nothing(found: Any) -> dict[str, Any]:  # the numbers are checked by tests
        return {}

    runners = {
        "stream.push(row)": Runner(lambda: plain.push(row), nothing),
        "stream.push(row, key)": Runner(lambda: keyed.push(row, "device 7"), nothing),
        "... with max_keys and ttl": Runner(lambda: limited.push(row, "device 7"), nothing),
        "... with probabilities": Runner(lambda: probable.push(row, "device 7"), nothing),
        f"stream.push_many of {TOGETHER} keys, a row": Runner(lambda: many.push_many(rows, keys), nothing),
    }
    for name, title in (("tidegate", "layer.step"), ("onnxruntime", "ONNX Runtime, session.run of the step")):
        if not PEERS[name].missing():
            runners[title] = PEERS[name](1).step(given)  # type: ignore[attr-defined]
        else:
            print(f"{name} is not installed: pip install 'tidegate[bench]'", file=sys.stderr)
    times, failed = in_turns(runners, ROUNDS)
    for error in failed.values():
        raise error
    found = []
    for what, ns in times.items():
        each = TOGETHER if "push_many" in what else 1
        low, median, high = (v / 1000 / each for v in statistics.quantiles(ns, n=4, method="inclusive"))
        aim = "25 us" if what == "stream.push(row)" else ""
        found.append(
            {"what": what, "median us": round(median, 2), "quartiles us": f"{low:.2f} to {high:.2f}", "aim": aim}
        )
    by_name: dict[Any, Any] = {row["what"]: row["median us"] for row in found}
    theirs = by_name.get("ONNX Runtime, session.run of the step")
    if theirs:
        ratio = round(theirs / by_name["layer.step"], 2)
        found.append(
            {
                "what": "ONNX Runtime's step over layer.step, times",
                "median us": ratio,
                "quartiles us": "",
                "aim": "1.5 x",
            }
        )
    return found


# The child looks at its own memory and clock at every ten thousandth row.
PROGRAM = """
import json, sys, time
from tidegate.cli import main
import tidegate.streaming.answers as answers
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
take, seen = answers.Progress.take, []
def counted(self, line):
    take(self, line)
    if self.rows % 10_000 == 0:
        seen.append((resident(), time.perf_counter()))
answers.Progress.take = counted
status = main(sys.argv[1:])
print(json.dumps(seen), file=sys.stderr)
sys.exit(status)
"""


def memory(folder: Path, rows: int) -> list[dict[str, Any]]:
    run_of(folder / "run")
    draw = np.random.default_rng(2)
    numbers = {f"s{k}": draw.standard_normal(rows) for k in range(NUMBERS)}
    pl.DataFrame({"device": draw.integers(0, rows // 10, rows), **numbers}).write_csv(folder / "rows.csv")
    found = []
    for title, options in (
        ("1,000 keys at most", ["--max-keys", "1000"]),
        ("1,000 keys at most, states kept", ["--max-keys", "1000", "--state", str(folder / "states")]),
    ):
        with (folder / "rows.csv").open("rb") as given:
            arguments = [sys.executable, "-c", PROGRAM, "stream", str(folder / "run"), *options]
            done = subprocess.run(arguments, stdin=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        seen = json.loads(done.stderr.decode().splitlines()[-1])
        megabytes = [round(size / 1e6, 1) for size, _ in seen]
        seconds = seen[-1][1] - seen[0][1]
        found.append(
            {
                "rows": f"{rows:,}",
                "how": title,
                "rows a second": f"{(rows - 10_000) / seconds:,.0f}",
                "MB after 10,000 rows": megabytes[0],
                "MB at the end": megabytes[-1],
                "most MB": max(megabytes),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=0)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        found = memory(Path(folder), rows) if rows else speed(Path(folder))
    print(machine())
    print(markdown(found))
    save("stream_memory" if rows else "stream_speed", found)


if __name__ == "__main__":
    main()
