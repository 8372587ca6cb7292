"""How good the defaults are: `tidegate train` on the five data sets that come with the package, several seeds.

    python benchmarks/reach.py [--seeds 3] [--only snips,mnist1d] [--threads 2] [--precision bf16]

Every figure is on the published test rows; the settings are the package's defaults, the same for all five. Beside
them stand the baselines that every report has, MNIST-1D's published recipe run here, and the published figures.
Writes benchmarks/results/reach.csv, or with --precision bf16 reach_bf16.csv, without the published recipe.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import machine, markdown, save
from torch import nn

import tidegate
from tidegate import datasets

PUBLISHED = {
    "snips": "slot F1 .873 to .888 (LSTM type; Goo et al. 2018, another split)",
    "japanese_vowels": "none known",
    "mnist1d": "GRU .91, CNN .94, people .96 (arXiv:2011.14439)",
    "occupancy": "CT-GRU .914, LSTM .932 (arXiv:2006.04439)",
    "cheetah": "MSE: LSTM 2.500, CT-GRU 3.014, LTC 2.308 (arXiv:2006.04439)",
}
METRIC = {"snips": "span_f1", "cheetah": "mse"}


def train(name: str, seed: int, folder: Path, precision: str) -> dict[str, float]:
    """One run with the defaults; the figure of the model and of each baseline."""
    began = time.perf_counter()
    table = datasets.write(name, folder / "data")[0]
    run = tidegate.train(
        table,
        out=folder / f"{name}-{seed}",
        seed=seed,
        progress=False,
        precision=precision,
        **datasets.describe(name).train,
    )
    results = run.results
    assert results is not None
    metric = METRIC.get(name, "accuracy")
    figures = {label: scores.summary[metric] for label, scores in results.table()}
    seconds = time.perf_counter() - began
    print(
        f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()) + f" ({seconds:.0f} s)",
        flush=True,
    )
    return figures | {"seconds": seconds}


def published_mnist1d_recipe(seed: int) -> float:
    """Greydanus' GRU: bidirectional, 6 hidden units, all 40 outputs into one linear layer; Adam 1e-2, batch 100, 6,000 steps."""
    frame = datasets.read("mnist1d")
    torch.manual_seed(seed)
    x = {s: torch.tensor(frame.filter(split=s)["signal"].to_list()).unsqueeze(-1) for s in ("train", "test")}
    y = {s: torch.tensor(frame.filter(split=s)["digit"].to_list()) for s in ("train", "test")}
    gru, head = tidegate.GRU(1, 6, batch_first=True, bidirectional=True), nn.Linear(480, 10)
    parameters = [*gru.parameters(), *head.parameters()]
    assert sum(p.numel() for p in parameters) == 5134
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for step in range(6000):
        if step % 40 == 0:
            order = torch.randperm(4000)
        batch = order[step % 40 * 100 :][:100]
        loss = nn.functional.cross_entropy(head(gru(x["train"][batch])[0].flatten(1)), y["train"][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((head(gru(x["test"])[0].flatten(1)).argmax(1) == y["test"]).float().mean())


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(datasets.names()))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only.split(","):
            runs = [train(name, seed, Path(temporary), options.precision) for seed in range(options.seeds)]
            raw += [
                {"data": name, "seed": s, "what": k, "value": v} for s, run in enumerate(runs) for k, v in run.items()
            ]
            others = [k for k in runs[0] if k not in {"gru", "seconds"}]
            rows.append(
                {
                    "data": name,
                    "figure": METRIC.get(name, "accuracy"),
                    "GRU, defaults": spread([r["gru"] for r in runs]),
                    "baselines": "; ".join(f"{k} {spread([r[k] for r in runs])}" for k in others),
                    "published": PUBLISHED[name],
                    "seconds a run": round(statistics.median(r["seconds"] for r in runs)),
                }
            )
            if name == "mnist1d" and options.precision == "float32":
                recipe = [published_mnist1d_recipe(seed) for seed in range(options.seeds)]
                raw += [{"data": name, "seed": s, "what": "published recipe", "value": v} for s, v in enumerate(recipe)]
                rows[-1]["baselines"] += f"; the published recipe run here {spread(recipe)}"
    if set(options.only.split(",")) == set(datasets.names()):
        save("reach" if options.precision == "float32" else f"reach_{options.precision}", raw)
    print(f"\n{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
