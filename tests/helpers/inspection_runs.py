"""Runs of every kind, each trained for a moment, and the tables they read."""

from __future__ import annotations

import numpy as np
import polars as pl

import tidegate
from tests.helpers.tables import QUICK, signal_table

WORDS = [
    ["play", "a", "song", "by", "nina"],
    ["turn", "it", "off"],
    ["play", "something"],
    ["wake", "me", "at", "seven", "please"],
] * 6  # fmt: skip


def numbers(groups: int = 10, least: int = 6, most: int = 14) -> pl.DataFrame:
    """Sequences with two numbers to forecast, one of them with holes, and two 0/1 labels."""
    rng = np.random.default_rng(3)
    frames = []
    for g in range(groups):
        n = int(rng.integers(least, most + 1))
        level = np.cumsum(rng.standard_normal(n))
        holes = [None if rng.random() < 0.2 else float(v) for v in level + 1]
        frames.append(
            pl.DataFrame(
                {
                    "site": [f"s{g % 3}"] * n,
                    "meter": [g] * n,
                    "t": np.arange(n)[::-1],  # rows lie backwards in time
                    "level": level,
                    "flow": holes,
                    "hot": (level > 0).astype(int),
                    "wet": (level < 1).astype(int),
                }
            )
        )
    return pl.concat(frames)


def words() -> pl.DataFrame:
    return pl.DataFrame(
        {"words": WORDS, "slots": [["B" if w in ("song", "seven") else "O" for w in ws] for ws in WORDS]}
    )


def train(kind: str, out) -> tuple[tidegate.Run, pl.DataFrame]:
    signals = signal_table(most=12)
    common = {**QUICK, "out": out}
    roles = {"group": "device", "time": "t"}
    if kind == "classes":
        return tidegate.train(signals, target="label", **roles, **common), signals
    if kind == "words":
        return tidegate.train(words(), target="slots", features="words", **common), words()
    if kind == "two layers both ways":
        more = {"num_layers": 2, "bidirectional": True}
        return tidegate.train(signals, target="label", **roles, **more, **common), signals
    if kind == "a class a sequence":
        whole = signals.with_columns(pl.col("label").last().over("device"))
        return tidegate.train(whole, target="label", per="sequence", **roles, **common), whole
    if kind == "a forecast":
        table = numbers()
        roles = {"group": ["site", "meter"], "time": "t"}
        return tidegate.train(
            table, target=["level", "flow"], features=["level", "flow"], horizon=3, residual=True, **roles, **common
        ), table
    if kind == "labels":
        return tidegate.train(
            numbers(), target=["hot", "wet"], group="meter", time="t", features="level", **common
        ), numbers()
    if kind == "classes ahead":
        return tidegate.train(signals, target="label", horizon=2, **roles, **common), signals
    if kind == "one sequence":
        table = signal_table(1, least=90, most=90).drop("device")
        return tidegate.train(table, target="label", time="t", **common), table
    raise ValueError(kind)


KINDS = [
    "classes",
    "words",
    "two layers both ways",
    "a class a sequence",
    "a forecast",
    "labels",
    "classes ahead",
    "one sequence",
]
