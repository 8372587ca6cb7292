"""What `--carry-state` gives and costs: a memory that is longer than a window, and sets on which it doesn't help.

    python benchmarks/carry_state.py [--seeds 3] [--only held,occupancy]

held and asked later are made here: 90 sequences of 2,000 steps, with a mark, +1 or -1, every 300 to 1,000 steps among zeros,
and noise beside it. The class of a step is the sign of the last mark. In `asked later` a step has a class only from 300 steps
after its mark on, so that no window has both. Occupancy and half-cheetah come with the package. A layer of 32 units for the
first two, else the defaults, on one thread. Beside windows that are shuffled and windows whose state is carried on: training on
whole sequences, the same head without a recurrence, and the majority class or the last value. Seconds are CPU time, which busy
neighbours change little: of a whole training, its validation and scoring included, over its epochs.
Writes benchmarks/results/carry_state.csv when it ran over all sets.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import polars as pl
import torch
from common import machine, markdown, save

import tidegate
from tidegate import datasets

STEPS, MARKS, LATER = 2_000, (300, 1_000), 300
GROUPS = {"train": 60, "valid": 15, "test": 15}
WINDOWS = (32, 128)
INDEPENDENT, CARRIED, WHOLE = "independent windows", "state carried", "whole sequences"
MADE = ("held", "asked later")
BARE, RULES = "same head, no recurrence", ("majority class", "last value")
SETS = (*MADE, "occupancy", "cheetah")


def marks(later: int) -> pl.DataFrame:
    """later: how many steps after a mark its class begins to be asked for."""
    rng, frames = np.random.default_rng(0), []
    for split, count in GROUPS.items():
        for k in range(count):
            at = np.cumsum(np.append(0, rng.integers(*MARKS, STEPS // MARKS[0])))
            steps = np.arange(STEPS)
            which = np.searchsorted(at, steps, side="right") - 1
            sign = rng.choice([-1.0, 1.0], len(at))[which]
            asked = steps - at[which] >= later
            frames.append(
                pl.DataFrame(
                    {
                        "sequence": [f"{split} {k}"] * STEPS,
                        "step": steps,
                        "mark": np.where(steps == at[which], sign, 0.0),
                        "noise": rng.standard_normal(STEPS),
                        "class": [("up" if s > 0 else "down") if a else None for s, a in zip(sign, asked, strict=True)],
                        "split": [split] * STEPS,
                    }
                )
            )
    return pl.concat(frames)


def table_of(name: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    if name not in MADE:
        return datasets.read(name), dict(datasets.describe(name).train)
    roles = {"target": "class", "group": "sequence", "time": "step", "split": "split", "hidden_size": 32}
    return marks(0 if name == "held" else LATER), roles


def train(name: str, seed: int) -> list[dict[str, Any]]:
    frame, told = table_of(name)
    metric = "mse" if name == "cheetah" else "accuracy"
    told |= {"seed": seed, "out": False, "progress": False, "threads": 1}
    rows = []
    for window in WINDOWS:
        for how, settings in ((INDEPENDENT, {"window": window}), (CARRIED, {"window": window, "carry_state": True})):
            rows += one(name, frame, how, metric, told | settings)
    if name in MADE:
        rows += one(name, frame, WHOLE, metric, told | {"window": STEPS})
    return rows + one(name, frame, BARE, metric, told | {"window": 128, "cell": "none"})


def one(name: str, frame: pl.DataFrame, how: str, metric: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for the run, and, beside the one without a recurrence, for the rule of thumb."""
    began = time.process_time()
    run = tidegate.train(frame, baselines=False, **told)
    assert run.results is not None
    assert run.resolved.epochs_run
    seconds = (time.process_time() - began) / run.resolved.epochs_run
    same = {"data": name, "seed": told["seed"]}
    rows = [
        same
        | {
            "what": how,
            "window": run.resolved.window,
            "rows of a batch": run.resolved.lanes or run.resolved.batch_size,
            "value": run.results.model.summary[metric],
            "epochs": run.resolved.epochs_run,
            "CPU seconds an epoch": round(seconds, 3),
        }
    ]
    if how == BARE:
        naive = {label: scores.summary[metric] for label, scores in run.results.table() if label in RULES}
        rows += [dict.fromkeys(rows[0], "") | same | {"what": k, "value": v} for k, v in naive.items()]
    for row in rows:
        print(*row.values(), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.only.split(",")
    rows = [row for name in names for seed in range(options.seeds) for row in train(name, seed)]
    if set(names) == set(SETS):
        save("carry_state", rows)
    print(f"\n{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
