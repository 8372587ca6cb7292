"""Training under autocast to bfloat16: the layer beside itself in float32 and `torch.nn.GRU`, in both types.

    python benchmarks/bfloat16.py [--isa NAME]

Forward and backward with the gradients of x and all weights. All four take turns; a figure is the median of the turns, a ratio
how many times as long another one takes as the layer in bfloat16. The errors are those of the output and of all gradients
against float64, as a part of their size. Writes benchmarks/results/bfloat16.csv.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import machine, markdown, save
from torch import Tensor, nn

import tidegate
from tidegate.ops.gru import native

SHAPES = (
    (64, 128, 128, 256, 1),
    (16, 256, 256, 512, 2),
    (8, 200, 512, 1024, 1),
    (32, 100, 64, 128, 1),
)  # B, T, I, H, layers
SECONDS = 12.0


def run(layer: nn.Module, x: Tensor, narrow: bool) -> list[Tensor]:
    for p in (x, *layer.parameters()):
        p.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        output = layer(x)[0]
    output.backward(torch.ones_like(output))
    return [output.detach(), *(p.grad for p in (x, *layer.parameters()) if p.grad is not None)]


def error(values: list[Tensor], exact: list[Tensor]) -> float:
    pairs = zip(values, exact, strict=True)
    return statistics.mean(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


def compare(threads: int, B: int, T: int, I: int, H: int, layers: int) -> dict[str, str]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours, theirs = tidegate.GRU(I, H, layers, batch_first=True), nn.GRU(I, H, layers, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, T, I, requires_grad=True)
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "bf16": lambda: run(ours, x, True),
        "float32": lambda: run(ours, x, False),
        "nn.GRU, bf16": lambda: run(theirs, x, True),
        "nn.GRU": lambda: run(theirs, x, False),
    }
    few = nn.GRU(I, H, layers, batch_first=True)
    few.load_state_dict(ours.state_dict())
    some = x[:2, :32].detach().requires_grad_()
    exact = run(few.double(), some.detach().double().requires_grad_(), False)
    errors = [error(run(layer, some, True), exact) for layer in (ours, theirs)]
    took: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    began, turn = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS or turn < 5:
        for name in list(ways) if turn % 2 else reversed(ways):
            start = time.perf_counter()
            ways[name]()
            took[name].append(time.perf_counter() - start)
        turn += 1
    median = {name: statistics.median(values) for name, values in took.items()}
    row = {
        "threads": str(threads),
        "B T I H layers": f"{B} {T} {I} {H} {layers}",
        "bf16 ms": f"{median['bf16'] * 1e3:.1f}",
    }
    row |= {name: f"{median[name] / median['bf16']:.2f} x" for name in list(ways)[1:]}
    return row | {"error": f"{errors[0]:.4f}", "error of nn.GRU, bf16": f"{errors[1]:.4f}", "turns": str(turn)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--isa", choices=native.isas(), help="another instruction set than the best; nothing is written"
    )
    given = parser.parse_args()
    if given.isa:
        native.set_isa(given.isa)
    rows = [compare(threads, *shape) for threads in (1, 2) for shape in SHAPES]
    if not given.isa:
        save("bfloat16", [row | {"instruction set": native.isa()} for row in rows])
    print(machine(), native.isa(), markdown(rows), sep="\n\n")
