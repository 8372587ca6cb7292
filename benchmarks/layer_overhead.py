"""What `tidegate.GRU` costs on top of `torch.nn.GRU` when both run ATen's kernel: microseconds a call.

The two are called in turn, in one run, with the same weights, so that a busy machine slows both alike; the
median of each and their ratio are printed. Before anything is timed, the outputs are compared bit for bit. Writes
benchmarks/results/layer_overhead.csv.

    PYTHONPATH=src python benchmarks/layer_overhead.py [--calls 2000] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import machine, markdown, save

import tidegate

# B, T, I, H, options: the single step is where overhead shows most.
SHAPES = [
    (1, 1, 40, 64, {}),
    (1, 1, 40, 64, {"batch_first": True}),
    (5, 7, 10, 20, {}),
    (5, 7, 10, 20, {"num_layers": 2, "bidirectional": True}),
    (32, 50, 32, 64, {"batch_first": True}),
]


def forward(layer, x):
    with torch.inference_mode():
        layer(x)


def forward_backward(layer, x):
    layer.zero_grad(set_to_none=True)
    layer(x)[0].sum().backward()


def medians_us(ours, theirs, run, x, calls):
    times = {id(ours): [], id(theirs): []}
    for i in range(calls + calls // 10):
        for layer in (ours, theirs) if i % 2 else (theirs, ours):
            start = time.perf_counter_ns()
            run(layer, x)
            stop = time.perf_counter_ns()
            if i >= calls // 10:  # the first tenth warms up
                times[id(layer)].append((stop - start) / 1000)
    return statistics.median(times[id(ours)]), statistics.median(times[id(theirs)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000, help="calls of each at the smallest shape")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for B, T, I, H, options in SHAPES:
        ours = tidegate.GRU(I, H, **options, backend="torch")
        theirs = torch.nn.GRU(I, H, **options)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn((B, T, I) if options.get("batch_first") else (T, B, I))
        assert torch.equal(ours(x)[0], theirs(x)[0]), "not the same numbers: nothing here is worth timing"
        calls = max(100, args.calls // T)
        said = "".join(f", {name}={value}" for name, value in options.items())
        for name, run in (("forward", forward), ("forward and backward", forward_backward)):
            a, b = medians_us(ours, theirs, run, x, calls)
            rows.append(
                {
                    "case": f"{name}, B {B}, T {T}, I {I}, H {H}{said}",
                    "tidegate us": round(a, 1),
                    "torch us": round(b, 1),
                    "ratio": round(a / b, 3),
                }
            )
    save("layer_overhead", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
