"""Small runs of every kind, with weights that saturate gates here and there, and what each must give on a batch."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from tests.helpers.tables import QUICK, signal_table
from tidegate.run import Run
from tidegate.trained.folder import MODEL
from tidegate.trained.weights import save_model
from tidegate.training import load, train

ROLES: dict[str, Any] = {"group": "device", "time": "t"}


def sensors(seed: int = 0) -> pl.DataFrame:
    """Sequences of 1 to 15 rows: x (some missing, so with a mask), far (large values), level (whole numbers), a category
    (some of it seen in no training row), a boolean, and targets of every kind."""
    frame = signal_table(groups=24, seed=seed, least=1)
    rng = np.random.default_rng(seed + 1)
    n = frame.height
    x = frame["x"].to_list()
    for k in rng.choice(n, n // 8, replace=False):
        x[k] = None
    frame = frame.with_columns(
        x=pl.Series(x, dtype=pl.Float64),
        far=pl.Series(1_000_000 + 50 * rng.standard_normal(n)),
        level=pl.Series(rng.integers(-3, 4, n)),
        on=pl.Series(rng.random(n) < 0.4),
        kind=pl.Series(rng.choice(["ä", "B b", "c,", '"d"', "\\", "ü🙂"], n)),
        y=pl.Series(np.cumsum(rng.standard_normal(n)) * 3 + 40),
        y2=pl.Series(rng.standard_normal(n) * 0.01 - 7),
        alarm=pl.Series(rng.integers(0, 2, n)),
        door=pl.Series(rng.integers(0, 2, n)),
        number=pl.Series(rng.integers(3, 6, n)),
        colour=pl.when(pl.col("device") == "d22").then(pl.lit("violet")).otherwise("colour"),  # in no training row
        split=pl.Series(["train" if d not in {"d20", "d21", "d22", "d23"} else "valid" for d in frame["device"]]),
    )
    per_group = frame.group_by("device", maintain_order=True).agg(whole=pl.col("label").last())
    return frame.join(per_group, on="device", how="left", maintain_order="left")


def sentences(*, rare: bool = False) -> pl.DataFrame:
    """A sentence and its labels a row, lists of one length. rare: each begins with a word that no other one has."""
    rng = np.random.default_rng(5)
    words = ["play", "Song", "by", "nina", "Größe", "7", "the", "Über"]
    rows = []
    for _ in range(60):
        some = [f"{'Rare' if len(rows) % 2 else 'seldöm'}{len(rows)}."] if rare else []
        some += [str(w) for w in rng.choice(words, int(rng.integers(1, 9)))]
        rows.append({"words": some, "tags": ["O" if w in {"by", "the"} else "B-x" for w in some]})
    return pl.DataFrame(rows)


FEATURES = ["x", "far", "level", "on", "kind", "colour"]
SENSORS: dict[str, dict[str, Any]] = {
    "class": {"target": "label", "features": FEATURES},
    "numbers alone": {"target": "label", "features": ["far", "x"]},
    "one number": {"target": "label", "features": ["far"], "hidden_size": 1},
    "categories alone": {"target": "number", "features": ["kind", "colour"]},
    "whole-number classes": {"target": "number", "features": FEATURES, "num_layers": 2},
    "yes/no": {"target": "on", "features": ["x", "level"], "categories": ["level"], "hidden_size": 9},
    "labels": {"target": ["alarm", "door"], "features": FEATURES, "num_layers": 3},
    "number": {"target": "y", "features": FEATURES, "hidden_size": 33},
    "two numbers": {"target": ["y", "y2"], "features": FEATURES},
    "forecast": {"target": "y", "features": ["y", "x"], "horizon": 3, "residual": True},
    "forecast of two": {"target": ["y2", "y"], "features": ["x", "y", "y2"], "horizon": 2, "residual": True},
    "class ahead": {"target": "label", "features": ["x", "label"], "horizon": 2},
    "both ways": {"target": "label", "features": FEATURES, "bidirectional": True, "num_layers": 2},
    "sequence max": {"target": "whole", "per": "sequence", "pooling": "max", "bidirectional": False},
    "sequence mean": {"target": "whole", "per": "sequence", "pooling": "mean", "bidirectional": False},
    "sequence last": {"target": "whole", "per": "sequence", "pooling": "last", "bidirectional": False, "num_layers": 2},
    "sequence last+max+mean": {
        "target": "whole",
        "per": "sequence",
        "pooling": "last+max+mean",
        "bidirectional": False,
        "num_layers": 2,
    },
    "sequence max both ways": {"target": "whole", "per": "sequence", "pooling": "max"},
    "sequence mean both ways": {"target": "whole", "per": "sequence", "pooling": "mean"},
    "sequence last+max+mean both ways": {
        "target": "whole",
        "per": "sequence",
        "pooling": "last+max+mean",
        "num_layers": 2,
    },
    "sequence last both ways": {"target": "whole", "per": "sequence", "pooling": "last", "num_layers": 2},
}
# Options of the core. Those of training alone are among them, as they must change nothing.
SENSORS |= {
    "reset before": {"target": "label", "features": FEATURES, "reset": "before", "num_layers": 2},
    "reset before both ways": {"target": "whole", "per": "sequence", "reset": "before", "recurrent_dropout": 0.2},
    "layer norm": {"target": ["alarm", "door"], "features": FEATURES, "layer_norm": True, "num_layers": 2},
    "zoneout": {"target": "y", "features": FEATURES, "zoneout": 0.3, "init": "orthogonal", "update_bias": 3.0},
    "learned start": {"target": "label", "features": FEATURES, "learn_initial_state": True, "num_layers": 2},
    "learned start both ways": {"target": "whole", "per": "sequence", "pooling": "mean", "learn_initial_state": True},
    "every option": {
        "target": "y", "features": ["y", "x", "kind"], "horizon": 2, "reset": "before", "layer_norm": True, "zoneout": 0.2,
        "learn_initial_state": True, "hidden_size": 9,
    },
    "every option both ways": {
        "target": "whole", "per": "sequence", "layer_norm": True, "zoneout": 0.2, "learn_initial_state": True, "num_layers": 2,
        "checkpoint_every": 4,
    },
}  # fmt: skip
WORDS: dict[str, dict[str, Any]] = {
    "words": {"target": "tags", "features": ["words"], "bidirectional": False},
    "words both ways": {"target": "tags", "features": ["words"]},
    "words and their features": {"target": "tags", "features": ["words"], "bidirectional": False},
}
CASES = [*SENSORS, *WORDS]
SCANS = ["layer norm", "zoneout", "every option", "every option both ways"]  # what no GRU of another program can be
RESETS_BEFORE = ["reset before", "reset before both ways"]
CASES_OF = {
    "onnx": CASES,
    "c": CASES,
    "keras": [name for name in CASES if name not in SCANS],
    "pt2": [name for name in CASES if name not in SCANS + RESETS_BEFORE],
}
ONE, THREE, MANY = [0], [5, 1, 2], list(range(24))  # sequences of a case's table


@functools.cache
def folder_of(name: str) -> Path:
    """The folder of the run of that name, made once."""
    made = Path(tempfile.mkdtemp(prefix="tidegate-export-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    folder = made / name.replace(" ", "-").replace("/", "-")
    frame = table_of(name)
    if name in WORDS:
        settings = QUICK | {"epochs": 1} | WORDS[name]
    else:
        settings = QUICK | ROLES | {"epochs": 1, "split": "split"} | SENSORS[name]
        if settings.get("per") == "sequence":
            settings.setdefault("features", FEATURES)
    run = train(frame, out=folder, **settings)
    # Hardly trained, all gates are near 1/2 and much that is wrong would go unnoticed.
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    save_model(run.model, folder / MODEL)
    return folder


def table_of(name: str) -> pl.DataFrame:
    return sentences(rare="features" in name) if name in WORDS else sensors()


def run_of(name: str) -> Run:
    return load(folder_of(name))


@dataclass
class Batch:
    """Inputs as `tidegate.export` describes them, and what they must give. What is beyond a length means nothing."""

    numbers: np.ndarray  # float64 [B, T, F], NaN where missing
    tokens: np.ndarray  # str objects [B, T, C]; "" where missing
    codes: np.ndarray  # int64 [B, T, C]
    lengths: np.ndarray  # int64 [B]
    h_0: np.ndarray  # float32 [layers * D, B, H]
    scores: np.ndarray
    probabilities: np.ndarray | None
    prediction: np.ndarray  # class numbers, 0/1, or numbers in the table's units
    h_n: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """[B, T], which steps there are."""
        return np.arange(self.numbers.shape[1]) < self.lengths[:, None]


def batch_of(run: Run, frame: pl.DataFrame, sequences: list[int] | None = None, h_0: np.ndarray | None = None) -> Batch:
    """The sequences of a table (all, or those named by their number) as one padded batch, and the model's own figures."""
    pre, spec = run.preprocessing, run.model.spec
    from tidegate.data.preprocessing import token_values
    from tidegate.data.tables import Table

    table = Table(frame, "table")
    arranged = pre.arrange(table, with_target=False)
    data = pre.apply(table, with_target=False)
    chosen = list(range(len(data))) if sequences is None else sequences
    lengths = data.lengths[chosen].astype(np.int64)
    B, T = len(chosen), int(lengths.max())
    raw = [arranged.column(c.name).cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in pre.numbers]
    texts = [token_values(arranged.column(c.name), c.kind).fill_null("").to_list() for c in pre.tokens]
    numbers = np.zeros((B, T, len(raw)))
    encoded = np.zeros((B, T, pre.number_width), dtype=np.float32)
    tokens = np.full((B, T, len(texts)), "", dtype=object)
    codes = np.zeros((B, T, len(texts)), dtype=np.int64)
    for b, s in enumerate(chosen):
        steps = slice(int(data.offsets[s]), int(data.offsets[s + 1]))
        n = lengths[b]
        encoded[b, :n], codes[b, :n] = data.numbers[steps], data.codes[steps]
        for k, column in enumerate(raw):
            numbers[b, :n, k] = column[steps]
        for k, text in enumerate(texts):
            tokens[b, :n, k] = text[steps]
    if h_0 is None:
        h_0 = run.model.core.initial_state(B).detach().numpy().copy()
    state = torch.from_numpy(h_0)
    with torch.no_grad():
        scores, h_n = run.model(
            torch.from_numpy(encoded).transpose(0, 1),
            torch.from_numpy(codes).transpose(0, 1),
            torch.from_numpy(lengths),
            state,
        )
        if not spec.bidirectional:  # the model's h_n has read the padding too
            h_n = torch.cat(
                [
                    run.model(
                        torch.from_numpy(encoded[b : b + 1, :n]).transpose(0, 1),
                        torch.from_numpy(codes[b : b + 1, :n]).transpose(0, 1),
                        torch.tensor([n]),
                        state[:, b : b + 1],
                    )[1]
                    for b, n in enumerate(lengths.tolist())
                ],
                dim=1,
            )
    scores = scores.transpose(0, 1) if pre.per == "step" else scores
    task = pre.target.task
    probabilities = {"class": torch.softmax(scores, -1), "labels": torch.sigmoid(scores)}.get(task)
    if task == "class":
        prediction = scores.argmax(-1).numpy()
    elif task == "labels":
        prediction = (scores > 0).numpy().astype(np.int64)
    else:
        prediction = scores.double().numpy() * np.array(pre.target.stds) + np.array(pre.target.means)
    return Batch(
        numbers,
        tokens,
        codes,
        lengths,
        h_0,
        scores.numpy(),
        None if probabilities is None else probabilities.numpy(),
        prediction,
        h_n.numpy(),
    )


def inputs(batch: Batch, *names: str) -> dict[str, np.ndarray]:
    """What a program takes, by name: none for columns that the run hasn't."""
    every = {name: getattr(batch, name) for name in names}
    return {name: value for name, value in every.items() if value.shape[-1]}


def assert_same(found: dict[str, np.ndarray], batch: Batch, run: Run, atol: float) -> None:
    """What a program gave, classes as their numbers. Numbers in the table's units may be `atol` standard deviations away."""
    inside = batch.inside if run.preprocessing.per == "step" else slice(None)
    assert (found.get("probabilities") is None) == (batch.probabilities is None)
    for name in ("scores", "probabilities", "prediction"):
        right = getattr(batch, name)
        if right is not None:
            assert found[name].shape == right.shape, name
            numbers = name == "prediction" and run.preprocessing.target.task == "number"
            unit = np.array(run.preprocessing.target.stds) if numbers else 1
            np.testing.assert_allclose(
                found[name][inside] / unit, right[inside] / unit, rtol=0, atol=atol, err_msg=name
            )
    np.testing.assert_allclose(found["h_n"], batch.h_n, rtol=0, atol=atol, err_msg="h_n")
