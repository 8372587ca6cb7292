"""A loop over single steps in training, as GRU-D, graph networks and reinforcement learning have it: our cell beside nn's.

    python benchmarks/cell_loop.py

48 steps of one cell, then backward through all of them. Both cells have the same weights and take turns; a figure is the
median of 41 turns, a ratio nn's time over ours. Writes benchmarks/results/cell_loop.csv.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import machine, markdown, save
from torch import nn

import tidegate

STEPS, TURNS, WARM_UP = 48, 41, 5
SHAPES = ((32, 38, 32), (32, 134, 128), (32, 128, 256), (1, 40, 64))  # B, I, H


def compare(threads: int, B: int, I: int, H: int) -> dict[str, str]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    theirs, ours = nn.GRUCell(I, H), tidegate.GRUCell(I, H)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, I)
    took: dict[nn.Module, list[tuple[float, float]]] = {theirs: [], ours: []}
    for turn in range(TURNS + WARM_UP):
        for cell in (theirs, ours) if turn % 2 else (ours, theirs):
            began = time.perf_counter()
            h = torch.zeros(B, H)
            for _ in range(STEPS):
                h = cell(x, h)
            loss = h.pow(2).sum()
            between = time.perf_counter()
            loss.backward()
            took[cell].append((between - began, time.perf_counter() - between))
            cell.zero_grad()
    row = {"threads": str(threads), "B I H": f"{B} {I} {H}"}
    for k, what in enumerate(("forward", "backward")):
        nn_s, our_s = (statistics.median(pair[k] for pair in took[cell][WARM_UP:]) for cell in (theirs, ours))
        row |= {f"{what} us a step": f"{our_s / STEPS * 1e6:.1f}", f"{what}, nn.GRUCell": f"{nn_s / our_s:.2f} x"}
    return row


if __name__ == "__main__":
    rows = [compare(threads, *shape) for threads in (1, 2) for shape in SHAPES]
    save("cell_loop", rows)
    print(machine(), markdown(rows), sep="\n\n")
