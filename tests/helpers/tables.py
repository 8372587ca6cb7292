"""Small tables that any test may train on."""

from __future__ import annotations

import numpy as np
import polars as pl

from tidegate.run import Run


def signal_table(groups: int = 24, seed: int = 0, least: int = 5, most: int = 15) -> pl.DataFrame:
    """Sequences of different lengths whose class at a step is whether the running sum of x is positive."""
    rng = np.random.default_rng(seed)
    frames = []
    for g in range(groups):
        n = int(rng.integers(least, most + 1))
        x = rng.standard_normal(n)
        frames.append(
            pl.DataFrame(
                {
                    "device": [f"d{g}"] * n,
                    "t": np.arange(n),
                    "x": x,
                    "colour": rng.choice(["red", "green", "blue"], n),
                    "label": np.where(np.cumsum(x) > 0, "up", "down"),
                }
            )
        )
    return pl.concat(frames)


def two_labels() -> pl.DataFrame:
    """`up` is as often 1 as 0, `rare` is 1 in few rows and seldom more probable than 1/2, `never` in training rows alone."""
    frame = signal_table(groups=40, seed=3)
    rng = np.random.default_rng(0)
    rare = (frame["x"].to_numpy() + rng.standard_normal(frame.height) > 1.8).astype(int)
    return frame.with_columns(
        up=(pl.col("label") == "up").cast(pl.Int8), rare=pl.Series(rare), never=(pl.col("device") == "d0").cast(pl.Int8)
    ).drop("label")


def assert_decided_by(run: Run, scores: np.ndarray, predicted: np.ndarray) -> None:
    """Labels are decided by the run's own thresholds, which here are others than one half."""
    cuts = np.array(run.preprocessing.target.cuts, np.float32)
    assert (predicted == (scores > cuts)).all()
    assert (predicted != (scores > 0)).any()


# The smallest training that is one: seconds matter, figures don't.
QUICK = {"hidden_size": 8, "epochs": 2, "baselines": False, "progress": False, "device": "cpu"}
