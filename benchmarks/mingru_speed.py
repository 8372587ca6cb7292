"""A training step of `tidegate.MinGRU` beside one of `tidegate.GRU`, and the scan over time beside the sum of logarithms of
the paper: times, and in float32 their errors against float64.

All are called in turn in one run, so that a busy machine slows all alike; the median of each and its ratio to the GRU's are
printed. Before anything is timed, the scan and the paper's form are compared with the recurrence in float64. Writes
benchmarks/results/mingru_speed.csv and mingru_error.csv.

    python benchmarks/mingru_speed.py [--rounds 40] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import machine, markdown, save
from torch.nn.functional import logsigmoid

import tidegate
from tidegate.ops import mingru

B, I, H = 32, 64, 128
STEPS = (100, 1000)
CHUNKS = (1, 16, 64, 256)  # of the paper's form; after each the state is handed on


def of_logarithms(k, v, h_0, chunk):
    """h [T, B, H] by exp(a + logcumsumexp(log write - a)), a = cumsum(log z), chunk by chunk; k, v [T, B, H], h_0 [B, H]."""
    found, h = [], h_0
    for k_c, v_c in zip(k.split(chunk), v.split(chunk), strict=True):
        a = logsigmoid(k_c).cumsum(0)
        log_write = logsigmoid(-k_c) + torch.where(v_c >= 0, (v_c.relu() + 0.5).log(), logsigmoid(v_c))
        found.append((a + torch.logcumsumexp(log_write - a, 0)).exp() + h * a.exp())
        h = found[-1][-1]
    return torch.cat(found)


def gates(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sigmoid(k), torch.sigmoid(-k) * torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def recurrence(k, v, h):
    return torch.stack([h := keep * h + write for keep, write in zip(*gates(k, v), strict=True)])


def errors() -> list[dict[str, object]]:
    """The largest relative error, in units of float32's rounding, 6e-8."""
    rows = []
    for T in (1, 7, 100, 1000, 10000):
        for update in (-20, -5, 0, 5, 9, 15):
            torch.manual_seed(0)
            k, v, h_0 = update + torch.randn(T, 1, 64), torch.randn(T, 1, 64), torch.rand(1, 64)
            exact = recurrence(k.double(), v.double(), h_0.double())

            def error(h, exact=exact):
                return round(((h - exact).abs() / exact).max().item() * 2**24, 1)

            rows.append(
                {
                    "T": T,
                    "z about": f"{torch.sigmoid(torch.tensor(float(update))).item():.2g}",
                    "step by step": error(recurrence(k, v, h_0)),
                    "scan": error(mingru.states(*gates(k, v), h_0)),
                }
                | {f"logarithms, chunks of {c}": error(of_logarithms(k, v, h_0, c)) for c in CHUNKS}
            )
    return rows


def check(T):
    k, v, h_0 = (torch.randn(shape, dtype=torch.float64) for shape in ((T, B, H), (T, B, H), (B, H)))
    exact = recurrence(k, v, h_0)
    for h in (mingru.states(*gates(k, v), h_0), of_logarithms(k, v, h_0, 16)):
        assert (h - exact).abs().max() < 1e-9, "not the same numbers: nothing here is worth timing"
    layer, x = tidegate.MinGRU(I, H), torch.randn(T, B, I)
    with torch.no_grad():
        in_order = layer(x)[0]
    assert (layer(x)[0] - in_order).abs().max() < 1e-5, "training and evaluation differ: nothing here is worth timing"


def measure(threads: int, rounds: int) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    rows = []
    for T in STEPS:
        check(T)
        x, d_output = torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
        layers = {"GRU, native": tidegate.GRU(I, H, backend="native"), "MinGRU": tidegate.MinGRU(I, H)}
        min_layer = layers["MinGRU"]

        def paper(x, layer=min_layer):
            k, v = torch.nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).chunk(2, -1)
            return of_logarithms(k, v, x.new_zeros(B, H), 16)

        def training(run, layer, x=x, d_output=d_output):
            return lambda: torch.autograd.grad(run(x), [x, *layer.parameters()], d_output)

        runs = {f"{name}, training": training(lambda x, f=layer: f(x)[0], layer) for name, layer in layers.items()}
        runs["MinGRU by logarithms, chunks of 16, training"] = training(paper, min_layer)
        runs |= {f"{name}, forward alone": torch.no_grad()(lambda f=f, x=x: f(x)) for name, f in layers.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(rounds + 3):  # the first three warm up
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if i >= 3:
                    times[name].append((time.perf_counter() - start) * 1000)
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, ms in medians.items():
            of = medians[f"GRU, native, {name.rsplit(', ', 1)[1]}"]
            rows.append(
                {"threads": threads, "T": T, "call": name, "ms": round(ms, 2), "of the GRU's": round(ms / of, 2)}
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    wrong = errors()
    save("mingru_error", wrong)
    rows = [row for threads in args.threads for row in measure(threads, args.rounds)]
    save("mingru_speed", rows)
    print(f"{machine()}\n\nB {B}, I {I}, H {H}, float32\n\n{markdown(rows)}\n\n{markdown(wrong)}")


if __name__ == "__main__":
    main()
