"""What lies between a short call of `tidegate.GRU` and its kernels: microseconds a call, on the short road and on the long one.

Three are called in turns, in one run, so that a busy machine slows all alike: the layer; the same layer made to forget the object of
C++ that gathers a short call's arguments (docs/decisions/050); and, with gradients, an `autograd.Function` that computes nothing, with
as many inputs, saved tensors and results: what PyTorch itself takes. The outputs and gradients of both roads are compared bit for bit
first. The ratios are medians of those of all turns. Writes benchmarks/results/short_calls.csv.

    PYTHONPATH=src python benchmarks/short_calls.py [--turns 1000]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import machine, markdown, save

import tidegate
from tidegate.nn.kept import Kept

# B, T, I, H, options. The last is too long for the short road: nothing but the question whether it is short.
SHAPES = [
    (5, 7, 10, 20, {}),
    (5, 7, 10, 20, {"batch_first": True}),
    (5, 7, 10, 20, {"num_layers": 2, "bidirectional": True}),
    (1, 1, 40, 64, {}),
    (1, 100, 40, 64, {}),
    (32, 50, 32, 64, {}),
]


class Never:
    """Stands where a layer keeps its `QuickLayer`, and finds every call too long."""

    def is_of(self, *_):
        return True

    def __call__(self, *_):
        return None


class Forgetful(Kept):
    def get(self, key, default=None):
        return NEVER if key[0] == "layer" else super().get(key, default)


NEVER = Never()


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, T, B, H, *weights):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, x.new_empty(5 * T * B * H))
        ctx.weights = weights
        return x.new_empty(T, B, H), x.new_empty(1, B, H)

    @staticmethod
    def backward(ctx, d_output, d_h_n):
        _ = ctx.saved_tensors
        return *(None,) * 4, *map(torch.empty_like, ctx.weights)


def pair(I, H, options):
    layers = [tidegate.GRU(I, H, **options) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1]._kept = Forgetful()
    return layers


def forward(layer, x):
    with torch.inference_mode():
        return layer(x)[0]


def both(layer, x):
    layer.zero_grad(set_to_none=True)
    output = layer(x)[0]
    output.sum().backward()
    return output


def check(short, long, x):
    for _ in range(2):  # the first call is a long one in any case
        assert torch.equal(both(short, x), both(long, x))
        for a, b in zip(short.parameters(), long.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        assert torch.equal(forward(short, x), forward(long, x))


def times_us(runs, turns):
    times = [[] for _ in runs]
    for i in range(turns):
        for k in range(len(runs)):
            at = (i + k) % len(runs)
            runs[at]()
            start = time.perf_counter_ns()
            for _ in range(3):
                runs[at]()
            times[at].append((time.perf_counter_ns() - start) / 3000)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=1000, help="turns of each, of three calls, at the smallest shape")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for B, T, I, H, options in SHAPES:
        short, long = pair(I, H, options)
        x = torch.randn((B, T, I) if options.get("batch_first") else (T, B, I))
        check(short, long, x)
        said = "".join(f", {name}={value}" for name, value in options.items())
        turns = max(30, args.turns * 700 // max(700, B * T * H))
        for name, run in (("forward", forward), ("forward and backward", both)):
            runs = [lambda run=run, layer=layer, x=x: run(layer, x) for layer in (short, long)]
            if run is both and not options:
                weights = [*short.parameters()]

                def nothing(short=short, x=x, sizes=(T, B, H), weights=weights):
                    short.zero_grad(set_to_none=True)
                    Nothing.apply(x, *sizes, *weights)[0].sum().backward()

                runs.append(nothing)
            times = times_us(runs, turns)
            rows.append(
                {
                    "case": f"{name}, B {B}, T {T}, I {I}, H {H}{said}",
                    "short us": round(statistics.median(times[0]), 1),
                    "long us": round(statistics.median(times[1]), 1),
                    "ratio": round(statistics.median(a / b for a, b in zip(*times[:2], strict=True)), 3),
                    "nothing us": round(statistics.median(times[2]), 1) if len(times) > 2 else "",
                }
            )
    save("short_calls", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
