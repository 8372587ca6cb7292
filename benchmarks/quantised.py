"""A layer with weights in 8 bits and in bfloat16 beside the same one in float32, and PyTorch's own 8 bits.

    python benchmarks/quantised.py [--rounds 25] [--seconds 0.1] [--threads 1 2]

Forward calls and `layer.step` without gradients, on one thread; PyTorch's is `torch.ao.quantization.quantize_dynamic` of a
`torch.nn.GRU` with the same weights, called with T = 1 for a step. In every round each has a turn of --seconds; a turn's figure is
its median call, and a ratio is the median over the rounds of one turn over float32's beside it. Errors are root mean squares
against float64, as a part of the exact output's own. `load`: the average number of threads that wanted to run on the machine; nothing else
should. On two threads all others must be still: beside a busy process PyTorch's takes a hundred times as long. Writes
benchmarks/results/quantised.csv.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import machine, markdown, save

import tidegate
from tidegate import convert

FORWARD = ["64 128 128 256", "8 200 512 1024"]  # B T I H
STEP = ["1 1 256 256", "1 1 512 512"]
DYNAMIC = "torch int8"


def calls_of(shape: str, step: bool) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """The call of each by name, and its error."""
    B, T, I, H = map(int, shape.split())
    torch.manual_seed(0)
    layer = tidegate.GRU(I, H)
    theirs = convert.to_torch(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is something newer; that has no GRU
        from torch.ao.quantization import quantize_dynamic

        dynamic = quantize_dynamic(torch.nn.Sequential(theirs), {torch.nn.GRU})[0]
    layers: dict[str, Any] = {
        "float32": layer,
        "int8": tidegate.quantize(layer, "int8"),
        "bf16": tidegate.quantize(layer, "bf16"),
    }
    x = torch.randn(T, B, I)
    exact = copy.deepcopy(theirs).double()(x.double())[0]
    outputs = {name: one(x)[0] for name, one in {**layers, DYNAMIC: dynamic}.items()}
    errors = {name: float((y.double() - exact).norm() / exact.norm()) for name, y in outputs.items()}
    every = {**layers, DYNAMIC: dynamic}
    if not step:
        return {name: partial(one, x) for name, one in every.items()}, errors
    h = torch.rand(1, B, H) - 0.5
    return {
        name: partial(dynamic, x, h) if one is dynamic else partial(one.step, x[0], h) for name, one in every.items()
    }, errors


def turn(call: Callable[[], Any], seconds: float) -> float:
    """The median microseconds of a call, over so many seconds and at least two calls."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        for shape in [*FORWARD, *STEP]:
            step = shape in STEP
            if step and threads > 1:
                continue  # so small a call takes one
            calls, errors = calls_of(shape, step)
            turns: dict[str, list[float]] = {name: [] for name in calls}
            for k in range(given.rounds + 1):
                for name in list(calls)[:: 1 if k % 2 else -1]:
                    figure = turn(calls[name], given.seconds)
                    if k:  # the first round warms up
                        turns[name].append(figure)
            for name, own in turns.items():
                ratios = [f / mine for f, mine in zip(turns["float32"], own, strict=True)]
                low, _, high = statistics.quantiles(ratios, n=4)
                rows.append(
                    {
                        "call": "step" if step else "forward",
                        "B T I H": shape,
                        "threads": threads,
                        "weights": name,
                        "us": round(statistics.median(own), 1),
                        "times as fast as float32": round(statistics.median(ratios), 2),
                        "quartiles": f"{low:.2f} to {high:.2f}",
                        "error": f"{errors[name]:.2g}",
                        "load": round(os.getloadavg()[0], 1),
                    }
                )
    save("quantised", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
