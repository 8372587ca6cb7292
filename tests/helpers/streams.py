"""Streams of the small runs, and rows for them."""

from __future__ import annotations

import polars as pl

from tests.helpers.runs import CASES, run_of

FORWARDS = [name for name in CASES if "both ways" not in name]


def added(run, frame: pl.DataFrame) -> pl.DataFrame:
    """What predict adds, with a row an item of the lists; of a target a sequence only the last row of each counts."""
    found = run.predict(frame, probabilities=run.preprocessing.target.task != "number")
    columns = [c for c in found.columns if c.startswith(("prediction", "p_"))]
    found = found.select(columns)
    return found.explode(columns) if run.preprocessing.lists else found


def rows_and_keys(run, frame: pl.DataFrame) -> tuple[list[dict], list]:
    if run.preprocessing.lists:
        pairs = [({"words": w}, k) for k, words in enumerate(frame["words"]) for w in words]
        return [row for row, _ in pairs], [key for _, key in pairs]
    return frame.rows(named=True), frame["device"].to_list()


def last_of_each(keys: list) -> list[int]:
    return sorted({key: k for k, key in enumerate(keys)}.values())


def new_stream(name: str, **options):
    run = run_of(name)
    return run.stream(probabilities=run.preprocessing.target.task != "number", **options)


# ------------------------------------------------------------------------------------------------ bad rows


GOOD = {"x": 0.5, "far": 1e6, "level": 2, "on": True, "kind": "ä", "colour": "red"}
