"""How long `tidegate inspect` takes, and how large its page is, by the size of the sequence and of the layer.

Each case is a sequence of six random numbers a step and a GRU with its first weights (training changes no time here), looked
at three times; the median counts. Writes benchmarks/results/inspect_speed.csv.

    python benchmarks/inspect_speed.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import machine, markdown, save

import tidegate

# steps, units, layers, both directions; aim in seconds and in megabytes of page
CASES = [
    (200, 128, 1, False, 3.0, 2.0),
    (200, 128, 1, True, 3.0, 2.0),
    (2_000, 256, 2, True, None, None),
    (10_000, 128, 1, False, None, None),
    (10_000, 512, 1, False, 30.0, None),
]
ROUNDS = 3


def table_of(steps: int) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    numbers = {f"x{k}": draw.standard_normal(steps).cumsum() for k in range(6)}
    return pl.DataFrame({**numbers, "y": draw.choice(["a", "b", "c"], steps)})


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for steps, units, layers, both, aim_s, aim_mb in CASES:
            table, out = table_of(steps), Path(folder) / f"{steps}-{units}-{layers}-{both}"
            few = table[: min(steps, 100)]  # enough to make a run of this size
            sizes: dict[str, Any] = {"hidden_size": units, "num_layers": layers, "bidirectional": both}
            run = tidegate.train(few, target="y", epochs=1, baselines=False, progress=False, out=out, **sizes)
            page = Path(folder) / "gates.html"
            seconds = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                run.inspect(table).write_html(page)
                seconds.append(time.perf_counter() - began)
            rows.append(
                {
                    "steps": steps,
                    "units": units,
                    "layers": layers,
                    "both directions": both,
                    "seconds": round(statistics.median(seconds), 3),
                    "aim s": aim_s or "",
                    "page MB": round(os.path.getsize(page) / 1e6, 2),
                    "aim MB": aim_mb or "",
                }
            )
    print(machine())
    print(markdown(rows))
    save("inspect_speed", rows)


if __name__ == "__main__":
    main()
