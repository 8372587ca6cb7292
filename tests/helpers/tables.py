"""Small tables that any test may train on."""

from __future__ import annotations

import numpy as np
import polars as pl


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


# The smallest training that is one: seconds matter, figures don't.
QUICK = {"hidden_size": 8, "epochs": 2, "baselines": False, "progress": False, "device": "cpu"}
