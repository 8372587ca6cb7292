"""What --log-gates adds to an epoch of training, on three of the data sets that come with the package.

    python benchmarks/log_gates_cost.py

The same epochs are trained with and without, in turns (which goes first alternates too); batches, weights and seeds are
equal. The figure is the median over epochs of how much longer the one took than its neighbour; the aim is at most 5 %.
Writes benchmarks/results/log_gates_cost.csv.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from common import machine, markdown, save

from tidegate import datasets
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import TRAIN
from tidegate.data.tables import read_table
from tidegate.trained.rows import batch_source
from tidegate.trained.settings import TrainSettings
from tidegate.training.gate_log import GateLog
from tidegate.training.journal import FolderJournal
from tidegate.training.loop import Loop
from tidegate.training.progress import Silent
from tidegate.training.resolve import build, complete, model_spec

CASES = {"snips": 5, "occupancy": 40, "japanese_vowels": 40}  # epochs: the small ones are over in a tenth of a second
SIDES = ("without", "with")


def compare(name: str, epochs: int) -> dict:
    settings = TrainSettings.make(**datasets.describe(name).train)
    pre, data = fit_preprocessing(read_table(datasets.read(name)), settings, settings.seed)
    full, spec, cpu = complete(settings, data), model_spec(settings, pre, data), torch.device("cpu")
    source = batch_source(data, pre, cpu)
    models = {side: build(spec, pre, full, cpu) for side in SIDES}
    log = GateLog(source, full.seed)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    counting: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            side: Loop(model, pre, source, full, journal=FolderJournal(Path(folder) / side), progress=Silent())
            for side, model in models.items()
        }
        loops["with"].gate_log = log
        for epoch in range(epochs + 1):
            for side in SIDES if epoch % 2 else SIDES[::-1]:
                loop = loops[side]
                batches = loop.batches()
                torch.manual_seed(epoch)
                began = time.perf_counter()
                loop.epoch(batches, threading.Event())
                loop.close_epoch()
                if epoch:  # the first one warms up
                    times[side].append(time.perf_counter() - began)
            began = time.perf_counter()
            log.row(models["with"])
            counting.append(time.perf_counter() - began)
    for a, b in zip(*(m.parameters() for m in models.values()), strict=True):
        assert torch.equal(a, b)
    more = statistics.median(b / a for a, b in zip(times["without"], times["with"], strict=True)) - 1
    without = statistics.median(times["without"])
    return {
        "case": name,
        "training steps": int((data.part == TRAIN).sum()),
        "steps counted": sum(int(lengths.sum()) for _, _, lengths in log.batches),
        "epochs": epochs,
        "epoch without, ms": round(without * 1e3, 1),
        "counting alone, ms": round(statistics.median(counting) * 1e3, 1),
        "counting alone, share": round(statistics.median(counting) / without, 4),
        "longer with": round(more, 4),
    }


def main() -> None:
    rows = [compare(name, epochs) for name, epochs in CASES.items()]
    save("log_gates_cost", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
