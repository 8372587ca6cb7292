"""A million rows of ten numeric columns in Parquet become sequences: seconds and memory.

    python benchmarks/table_to_sequences.py

Each case runs in a process of its own (peak memory can't be taken back). Memory is what the process grew by at its
peak, over the table's size in memory. The aim: at most 2 s and 3 times. Writes benchmarks/results/table_to_sequences.csv.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from common import machine, markdown, save

ROWS, RUNS = 1_000_000, 5
MEASURE = """
import json, sys, time
import torch, polars
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
def peak():  # not ru_maxrss: it starts at what the parent process had
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
before, began = peak(), time.perf_counter()
table = read_table(sys.argv[1])
pre, data = fit_preprocessing(table, DataSettings.make(target="y", group="id", time="t"), 0)
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "memory": (peak() - before) / table.frame.estimated_size(), "sequences": len(data)}))
"""


def main() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({f"x{k}": rng.standard_normal(ROWS) for k in range(10)}).with_columns(
        id=pl.int_range(ROWS) // 200, t=pl.int_range(ROWS), y=pl.Series(rng.integers(0, 3, ROWS))
    )
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for title, table in {"in order": frame, "shuffled": frame[rng.permutation(ROWS)]}.items():
            path = Path(temporary) / f"{title}.parquet"
            table.write_parquet(path)
            done = [
                json.loads(
                    subprocess.run(
                        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
                    ).stdout
                )
                for _ in range(RUNS)
            ]
            rows.append(
                {
                    "rows": title,
                    "sequences": done[0]["sequences"],
                    "seconds (median)": round(statistics.median(d["seconds"] for d in done), 2),
                    "slowest": round(max(d["seconds"] for d in done), 2),
                    "memory over the table's": round(statistics.median(d["memory"] for d in done), 2),
                }
            )
    save("table_to_sequences", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
