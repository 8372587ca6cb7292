"""What `tidegate train` adds to a training step: its loop over the same steps written by hand in PyTorch.

    python benchmarks/train_step.py

Both sides run the same torch modules, batches, clipping and fused Adam, one epoch in turns; the batches of the
loop written by hand lie ready in memory. The ratio is of medians over epochs; the aim is at most 1.25.
Writes benchmarks/results/train_step.csv.
"""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np
import polars as pl
import torch
from common import machine, markdown, save
from torch import nn

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

EPOCHS = 9


class Bare(nn.Module):
    """What a person writes: embedding, GRU, linear head."""

    def __init__(self, spec):
        super().__init__()
        self.embedding = nn.Embedding(spec.vocabularies[0], spec.embedding_dims[0]) if spec.vocabularies else None
        width = spec.embedding_dims[0] if spec.vocabularies else spec.number_width
        self.drop = nn.Dropout(spec.dropout)
        self.gru = nn.GRU(width, spec.hidden_size, bidirectional=spec.bidirectional)
        self.head = nn.Linear(spec.hidden_size * (2 if spec.bidirectional else 1), spec.outputs)

    def forward(self, x, lengths):
        if self.embedding is not None:
            x = self.drop(self.embedding(x))
        if self.gru.bidirectional:
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, _ = nn.utils.rnn.pad_packed_sequence(self.gru(x)[0])
        else:
            output, _ = self.gru(x)
        return self.head(self.drop(output))


def bare_epoch(model, optimizer, batches) -> float:
    began = time.perf_counter()
    for x, y, lengths in batches:
        loss = nn.functional.cross_entropy(model(x, lengths).flatten(0, 1), y.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return time.perf_counter() - began


def compare(title: str, frame: pl.DataFrame, **settings) -> dict:
    chosen = TrainSettings.make(word_dropout=0.0, **settings)
    pre, data = fit_preprocessing(
        read_table(frame), DataSettings.make(**{k: v for k, v in settings.items() if k in DataSettings.model_fields}), 0
    )
    full, spec = complete(chosen, data), model_spec(chosen, pre, data)
    source = batch_source(data, pre, torch.device("cpu"))
    ours, bare = build(spec, pre, full, torch.device("cpu")), Bare(spec)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in bare.parameters())
    loop = Loop(ours, pre, source, full, journal=Journal(), progress=Silent())
    arguments = loop.batches()
    ready = [source.training_batch(a) for a in arguments]
    batches = [
        (b.codes[..., 0] if spec.vocabularies else b.numbers, b.y[..., 0], b.lengths) for b in ready if b.y is not None
    ]

    adam = torch.optim.Adam(bare.parameters(), lr=full.lr, fused=True)
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for epoch in range(EPOCHS + 1):
        loop.state = State()  # the same epoch again
        began = time.perf_counter()
        loop.epoch(arguments, threading.Event())
        mine = time.perf_counter() - began
        theirs = bare_epoch(bare, adam, batches)
        if epoch:  # the first one warms up
            times["ours"].append(mine / len(batches))
            times["bare"].append(theirs / len(batches))
    ours_us, bare_us = (statistics.median(times[k]) * 1e6 for k in ("ours", "bare"))
    return {
        "case": title,
        "batches": len(batches),
        "tidegate us a step": round(ours_us),
        "bare loop us a step": round(bare_us),
        "ratio": round(ours_us / bare_us, 3),
    }


def main() -> None:
    rng = np.random.default_rng(0)

    def sensors(groups: int, steps: int) -> pl.DataFrame:
        n = groups * steps
        columns = {f"x{k}": rng.standard_normal(n) for k in range(10)}
        return pl.DataFrame({"g": np.repeat(np.arange(groups), steps), **columns, "y": rng.choice(["a", "b"], n)})

    snips = datasets.read("snips").head(3000)
    rows = [
        compare("SNIPS words, bidirectional, H 128, batch 32", snips, target="slots", features="words", split="split"),
        compare(
            "10 sensors, T 50, H 64, batch 32",
            sensors(1000, 50),
            target="y",
            group="g",
            hidden_size=64,
            split=(1.0, 0.0, 0.0),
        ),
        compare(
            "10 sensors, T 7, H 20, batch 5",
            sensors(500, 7),
            target="y",
            group="g",
            hidden_size=20,
            batch_size=5,
            split=(1.0, 0.0, 0.0),
        ),
    ]
    save("train_step", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
