"""What each thing that `torch.nn.GRU` doesn't have costs: the layer with it beside the plain layer, forward and backward.

All layers are called in turn in one run, so that a busy machine slows all alike; the median of each and its ratio to the
plain call's are printed. Before anything is timed, each is held against the reference. Writes
benchmarks/results/extras_cost.csv.

    python benchmarks/extras_cost.py [--rounds 60] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, markdown, save

import tidegate

B, T, I, H = 32, 100, 64, 128
# What may be at most, of a plain call's time.
AIMS = {
    "lengths, all T": 1.3,
    "lengths, T/2 on average": 1 / 1.6,
    "resets": 1.3,
    "zoneout": 1.3,
    "recurrent dropout": 1.3,
    'reset="before"': 1.3,
    "layer norm": 1.8,
    "trace, forward alone": 1.5,
}


def cases():
    """By name: a layer's options, and those of a call."""
    draw = torch.Generator().manual_seed(0)
    halves = torch.linspace(1, T - 1, B).round().long()[torch.randperm(B, generator=draw)]
    return {
        "plain": ({}, {}),
        "lengths, all T": ({}, {"lengths": torch.full((B,), T)}),
        "lengths, T/2 on average": ({}, {"lengths": halves}),
        "resets": ({}, {"resets": torch.rand(B, T, generator=draw) < 0.05}),
        "zoneout": ({"zoneout": 0.1}, {}),
        "recurrent dropout": ({"recurrent_dropout": 0.2}, {}),
        'reset="before"': ({"reset": "before"}, {}),
        "layer norm": ({"layer_norm": True}, {}),
        "gates computed again (checkpoint_every)": ({"checkpoint_every": 10}, {}),
        "all of these but lengths": (
            {"zoneout": 0.1, "recurrent_dropout": 0.2, "reset": "before", "layer_norm": True},
            {"resets": torch.rand(B, T, generator=draw) < 0.05},
        ),
    }


def check(options, call, x):
    found = []
    for backend in ("native", "reference"):
        torch.manual_seed(1)
        layer = tidegate.GRU(I, H, backend=backend, **options)
        found.append(layer(x, **call)[0])
    assert (found[0] - found[1]).abs().max() < 1e-4, "not the same numbers: nothing here is worth timing"


def measure(threads: int, rounds: int) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    x, d_output = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
    runs: dict[str, Callable[[], Any]] = {}
    for name, (options, call) in cases().items():
        check(options, call, x)
        layer = tidegate.GRU(I, H, backend="native", **options)

        def train(layer=layer, call=call):
            torch.autograd.grad(layer(x, **call)[0], [x, *layer.parameters()], d_output)

        runs[name] = train
    plain = tidegate.GRU(I, H, backend="native")
    runs["plain, forward alone"] = torch.no_grad()(lambda: plain(x))
    runs["trace, forward alone"] = torch.no_grad()(lambda: plain.trace(x))

    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 5):  # the first five warm up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 5:
                times[name].append((time.perf_counter() - start) * 1000)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, ms in medians.items():
        against = medians["plain, forward alone"] if "forward alone" in name else medians["plain"]
        aim = AIMS.get(name)
        rows.append(
            {
                "threads": threads,
                "call": name,
                "ms": round(ms, 2),
                "of the plain call": round(ms / against, 2),
                "aim": "" if aim is None else round(aim, 3),
                "": "" if aim is None or ms / against <= aim else "missed",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    rows = [row for threads in args.threads for row in measure(threads, args.rounds)]
    save("extras_cost", rows)
    print(f"{machine()}\n\nB {B}, T {T}, I {I}, H {H}, float32\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
