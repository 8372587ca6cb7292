"""What a change costs: two checkouts measured in turns, and the ratio of each figure.

    git worktree add --detach ../before OLD_COMMIT      # and build it, so that its own _native*.so lies in src/tidegate
    python benchmarks/before_after.py ../before [--rounds 21] [--only layer]

A process of each checkout lives from beginning to end. They take turns of some 40 ms, one case after the other, so that what
else the machine does slows both alike; which goes first alternates. A turn's figure is its median call; the ratio is the
median over the rounds of this checkout's turn over the other's beside it. Cases: the grid of `tidegate bench` on 1 thread
(layer), rows of a stream (stream), a whole `tidegate.train` of two epochs (train), fresh processes that import or print their
help (start). Both need the compiled kernels in src/tidegate. Writes benchmarks/results/before_after.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import Worker, machine, markdown, save

HERE = Path(__file__).resolve().parents[1]

# Runs in either checkout, so it uses what both have. It answers a case's name with the median nanoseconds of a turn.
WORKER = r"""
import json, subprocess, sys, tempfile, time
import numpy as np, polars as pl, torch
import tidegate
from tidegate.bench import case
from tidegate.bench.measure import _block
from tidegate.bench.peers import PEERS, Runner
from tidegate.bench.shapes import cells

torch.set_num_threads(1)
only, out = sys.argv[1], sys.stdout
sys.stdout = sys.stderr
runners = {}
if only in ("all", "layer"):
    for cell in cells():
        make = lambda cell=cell: getattr(PEERS["tidegate"](1), cell.kind)(case.make(cell))
        runners[f"layer: {cell}"] = make
draw = np.random.default_rng(0)
numbers = {f"s{k}": draw.standard_normal(2000) for k in range(6)}
table = pl.DataFrame({"device": np.arange(2000) // 20, **numbers, "label": draw.choice(["low", "high"], 2000)})
def train():
    with tempfile.TemporaryDirectory() as folder:
        return tidegate.train(table, target="label", group="device", hidden_size=64, epochs=2, baselines=False,
                              progress=False, out=folder + "/run")
if only in ("all", "stream"):
    run, row = train(), {f"s{k}": 0.1 * k for k in range(6)}
    rows, keys = [row] * 64, [f"device {k}" for k in range(64)]
    plain, keyed, likely, many = run.stream(), run.stream(), run.stream(probabilities=True), run.stream()
    calls = {"push(row)": lambda: plain.push(row), "push(row, key)": lambda: keyed.push(row, "device 7"),
             "push with probabilities": lambda: likely.push(row), "push_many of 64 keys": lambda: many.push_many(rows, keys)}
    for name, call in calls.items():
        runners[f"stream: {name}"] = lambda call=call: Runner(call, lambda found: {})
if only in ("all", "train"):
    runners["train: 100 sequences of 20 steps, 2 epochs"] = lambda: Runner(train, lambda found: {})
def process(*arguments):
    return lambda: Runner(lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True), lambda found: {})
if only in ("all", "start"):
    runners["start: tidegate --help"] = process("-m", "tidegate", "--help")
    runners["start: tidegate train --help"] = process("-m", "tidegate", "train", "--help")
    runners["start: import tidegate; tidegate.GRU"] = process("-c", "import tidegate; tidegate.GRU")
print(json.dumps(list(runners)), file=out, flush=True)
made = {}
for line in sys.stdin:
    name = json.loads(line)
    if name not in made:
        made = {name: runners[name]()}
    times = sorted(_block(made[name]))
    print(times[len(times) // 2], file=out, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="all", choices=["all", "layer", "stream", "train", "start"])
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "after": HERE}
    for tree in trees.values():
        if not list((tree / "src/tidegate").glob("_native*")):
            sys.exit(f"{tree / 'src/tidegate'} has no compiled kernels (_native*.so).")
    workers = {side: Worker(tree / "src", WORKER, given.only, cwd=tree) for side, tree in trees.items()}
    names = [worker.hear() for worker in workers.values()][1]
    rows: list[dict[str, Any]] = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        turns: dict[str, list[float]] = {side: [] for side in workers}
        for k in range(given.rounds + 1):
            for side in list(workers)[:: 1 if k % 2 else -1]:
                value = float(workers[side].ask(name)) / 1000
                if k:  # the first round warms up
                    turns[side].append(value)
        ratios = sorted(b / a for a, b in zip(turns["before"], turns["after"], strict=True))
        rows.append(
            {
                "case": name,
                "before us": round(statistics.median(turns["before"]), 2),
                "after us": round(statistics.median(turns["after"]), 2),
                "ratio": round(statistics.median(ratios), 3),
                "quartiles": f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}",
                "ratio of the fastest": round(min(turns["after"]) / min(turns["before"]), 3),
            }
        )
    save("before_after" if given.only == "all" else f"before_after_{given.only}", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
