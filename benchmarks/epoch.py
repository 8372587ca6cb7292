"""An epoch of `tidegate train`, here and in another checkout, in turns.

    git worktree add --detach ../before OLD_COMMIT      # and build it, so that its own _native*.so lies in src/tidegate
    python benchmarks/epoch.py ../before [--rounds 15] [--threads 1]

A process of each checkout lives from beginning to end, and they take turns of some batches of the same epoch (of the small sets:
all of them), so that what else the machine does slows both alike; which goes first alternates. A turn's figure is CPU time. The
ratio is the median over the rounds of this checkout's turn over the other's beside it. `with validation` adds what the end of an
epoch takes, measured in the same way. Both need the compiled kernels in src/tidegate. Writes benchmarks/results/epoch.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import Worker, machine, markdown, save

HERE = Path(__file__).resolve().parents[1]
CASES = {  # batches of a turn
    "SNIPS: words, bidirectional, H 128, batch 32": ("snips", 40),
    "half-cheetah: 17 numbers, T 128, H 128": ("cheetah", None),
    "10 sensors, T 7, H 20, batch 5": ("sensors", None),
}

# Runs in either checkout, so it uses what both have.
MAKE = r"""
import json, sys, threading, time
import numpy as np, polars as pl, torch
from tidegate import datasets
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.trained.rows import batch_source
from tidegate.trained.settings import TrainSettings
from tidegate.training.journal import Journal
from tidegate.training.loop import Loop, State
from tidegate.training.progress import Silent
from tidegate.training.resolve import build, complete, model_spec

torch.set_num_threads(int(sys.argv[1]))
out, sys.stdout = sys.stdout, sys.stderr


def table(name):
    if name != "sensors":
        return datasets.read(name), dict(datasets.describe(name).train)
    draw, n = np.random.default_rng(0), 600 * 7
    numbers = {f"x{k}": draw.standard_normal(n) for k in range(10)}
    frame = pl.DataFrame({"g": np.repeat(np.arange(600), 7), **numbers, "y": draw.choice(["a", "b"], n)})
    return frame, {"target": "y", "group": "g", "hidden_size": 20, "batch_size": 5}


def make(name, **more):
    frame, told = table(name)
    told |= more
    chosen, cpu = TrainSettings.make(**told), torch.device("cpu")
    reading = {k: v for k, v in told.items() if k in DataSettings.model_fields}
    pre, data = fit_preprocessing(read_table(frame), DataSettings.make(**reading), 0)
    full, spec = complete(chosen, data), model_spec(chosen, pre, data)
    model = build(spec, pre, full, cpu)
    loop = Loop(model, pre, batch_source(data, pre, cpu), full, journal=Journal(), progress=Silent())
    return loop, loop.batches(), loop.state.chosen_by
"""

# It answers [case, batches of a turn] with the CPU microseconds of a batch, of a validation, and how many batches an epoch has.
WORKER = (
    MAKE
    + r"""
loops = {}
print(json.dumps("ready"), file=out, flush=True)
for line in sys.stdin:
    name, count = json.loads(line)
    if name not in loops:
        loops[name] = make(name)
    loop, batches, by = loops[name]
    some = batches[:count]
    loop.state = State(chosen_by=by)
    began = time.process_time()
    loop.epoch(some, threading.Event())
    trained = time.process_time()
    loop._judge({"epoch": 1})
    validated = time.process_time()
    answer = [1e6 * (trained - began) / len(some), 1e6 * (validated - trained), len(batches)]
    print(json.dumps(answer), file=out, flush=True)
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "after": HERE}
    for tree in trees.values():
        if not list((tree / "src/tidegate").glob("_native*")):
            sys.exit(f"{tree / 'src/tidegate'} has no compiled kernels (_native*.so).")
    workers = {
        side: Worker(tree / "src", WORKER, str(given.threads), threads=given.threads) for side, tree in trees.items()
    }
    for worker in workers.values():
        worker.hear()  # it is ready
    rows: list[dict[str, Any]] = []
    for title, (name, count) in CASES.items():
        print(title, file=sys.stderr, flush=True)
        turns: dict[str, list[list[float]]] = {side: [] for side in workers}
        for k in range(given.rounds + 1):
            for side in list(workers)[:: 1 if k % 2 else -1]:
                answer = workers[side].ask([name, count])
                if k:  # the first round warms up
                    turns[side].append(answer)
        training = {side: [batch for batch, _, _ in turns[side]] for side in turns}
        whole = {side: [batch * batches + end for batch, end, batches in turns[side]] for side in turns}

        def ratio(of: dict[str, list[float]]) -> float:
            return round(statistics.median(b / a for a, b in zip(of["before"], of["after"], strict=True)), 3)

        rows.append(
            {
                "case": title,
                "threads": given.threads,
                "before us a batch": round(statistics.median(training["before"])),
                "after us a batch": round(statistics.median(training["after"])),
                "ratio": ratio(training),
                "ratio of the fastest": round(min(training["after"]) / min(training["before"]), 3),
                "ratio with validation": ratio(whole),
            }
        )
    save("epoch", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
