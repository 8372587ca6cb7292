"""What training, evaluation and prediction take of memory where classes are many, a sequence is long or a table is a CSV file.

    python benchmarks/memory.py [CASE ...]

Each command runs in a process of its own (peak memory can't be taken back), on one thread. Megabytes are what the process grew by
between the imports and its peak; of tables, also over their size in memory. Writes benchmarks/results/memory.csv.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import machine, markdown, save

MEASURE = """
import json, sys, warnings
from pathlib import Path
import torch, tidegate
from tidegate.data.tables import read_table, write_table
torch.set_num_threads(1)
warnings.simplefilter("ignore")

def do(what, table, run, out, settings):
    if what == "train":
        tidegate.train(table, out=run, overwrite=True, progress=False, **settings)
    elif what == "evaluate":
        tidegate.load(run).evaluate(table, rows="all")
    elif what == "predict":
        write_table(tidegate.load(run).predict(table, **settings), Path(out))
    else:
        read_table(table)

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

given = json.loads(sys.argv[1])
do(**given["small"])  # what is loaded and kept by the first call is no matter of the table's size
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = kilobytes("VmRSS")
do(**given["whole"])
print((kilobytes("VmHWM") - before) * 1024)
"""


def many_classes(classes: int = 8_000) -> pl.DataFrame:
    """The next of 8,000 words: 1,000 sequences of 40 steps, and every word occurs."""
    rng = np.random.default_rng(0)
    words = rng.permutation(np.arange(1_000 * 40) % classes)
    return pl.DataFrame({"id": np.repeat(np.arange(1_000), 40), "word": [f"w{k}" for k in words]})


def long_text() -> pl.DataFrame:
    """A class a step, one of 8,000: 400 sequences of 40 steps and one of 16,000."""
    rng = np.random.default_rng(0)
    lengths = np.array([40] * 400 + [16_000])
    steps = int(lengths.sum())
    kinds = [f"k{k}" for k in rng.permutation(np.arange(steps) % 8_000)]
    words = [f"w{k}" for k in rng.integers(0, 500, steps)]
    return pl.DataFrame({"id": np.repeat(np.arange(401), lengths), "word": words, "kind": kinds})


def many_labels() -> pl.DataFrame:
    """300 labels a step: 200 sequences of 100 steps."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"id": np.arange(20_000) // 100}
    columns |= {f"x{k}": rng.standard_normal(20_000) for k in range(4)}
    return pl.DataFrame(columns | {f"l{k}": rng.integers(0, 2, 20_000).astype(np.int8) for k in range(300)})


def one_long(long: int = 20_000) -> pl.DataFrame:
    """A class a sequence: 1,500 of 10 steps and a long one."""
    rng = np.random.default_rng(0)
    lengths = np.array([10] * 1_500 + [long])
    columns: dict[str, Any] = {"id": np.repeat(np.arange(1_501), lengths)}
    columns |= {f"x{k}": rng.standard_normal(int(lengths.sum())) for k in range(10)}
    return pl.DataFrame(columns | {"kind": np.repeat([f"k{k % 3}" for k in range(1_501)], lengths)})


def very_long() -> pl.DataFrame:
    return one_long(200_000)


def sensors(rows: int = 500_000) -> pl.DataFrame:
    """Ten columns of numbers and one of words, 2,500 sequences of 200 rows."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"id": np.arange(rows) // 200, "t": np.arange(rows)}
    columns |= {f"x{k}": rng.standard_normal(rows).round(6) for k in range(10)}
    columns["state"] = np.array(["idle", "busy", "broken"])[rng.integers(0, 3, rows)]
    return pl.DataFrame(columns | {"y": rng.integers(0, 3, rows)})


def grown(what: str, table: Path, run: Path, out: Path, **settings: Any) -> int:
    """Bytes that a process takes for a command, beyond what the same takes for a table's first rows."""
    whole = {"what": what, "table": str(table), "run": str(run), "out": str(out), "settings": settings}
    small = whole | {"table": str(first_rows(table)), "out": str(out.with_name(f"small_{out.name}"))}
    small |= {"run": str(run) + "_small"} if what == "train" else {}
    given = json.dumps({"whole": whole, "small": small})
    done = subprocess.run([sys.executable, "-c", MEASURE, given], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.split()[-1])


def first_rows(table: Path) -> Path:
    path = table.with_name(f"small_{table.name}")
    if table.suffix == ".gz":
        lines = gzip.decompress(table.read_bytes()).split(b"\n", 401)[:401]
        path.write_bytes(gzip.compress(b"\n".join(lines)))
    elif table.suffix == ".csv":
        path.write_bytes(b"\n".join(table.read_bytes().split(b"\n", 401)[:401]))
    else:
        pl.read_parquet(table, n_rows=400).write_parquet(path)
    return path


QUICK = {"epochs": 1, "baselines": False}
MODELS: dict[str, tuple[Callable[[], pl.DataFrame], dict[str, Any]]] = {
    "8,000 classes": (many_classes, {"target": "word", "features": ["word"], "group": "id", "horizon": 1}),
    "8,000 classes, both directions, one long sequence": (
        long_text,
        {"target": "kind", "features": ["word"], "group": "id", "bidirectional": True},
    ),
    "300 labels": (many_labels, {"target": [f"l{k}" for k in range(300)], "features": "x*", "group": "id"}),
    "one sequence of 20,000 steps": (one_long, {"target": "kind", "group": "id", "per": "sequence"}),
    "one sequence of 200,000 steps, one direction": (
        very_long,
        {"target": "kind", "group": "id", "per": "sequence", "bidirectional": False, "hidden_size": 64},
    ),
}


def main() -> None:
    wanted = sys.argv[1:]
    rows: list[dict[str, Any]] = []

    def add(case: str, command: str, taken: int, size: int | None = None) -> None:
        row = {"case": case, "command": command, "MB": round(taken / 2**20)}
        rows.append(row | {"over the table's": "" if size is None else f"{taken / size:.2f}"})
        print(rows[-1], file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table, run, out = folder / "table.parquet", folder / "run", folder / "out.parquet"
        for case, (make, settings) in MODELS.items():
            if wanted and case not in wanted:
                continue
            make().write_parquet(table)
            for command in ("train", "evaluate", "predict"):
                add(case, command, grown(command, table, run, out, **(settings | QUICK if command == "train" else {})))
        if not wanted or "tables" in wanted:
            frame = sensors()
            size = int(frame.estimated_size())
            frame.write_parquet(table)
            csv, packed = folder / "table.csv", folder / "table.csv.gz"
            frame.write_csv(csv)
            packed.write_bytes(gzip.compress(csv.read_bytes(), 1))
            grown("train", table, run, table, target="y", group="id", time="t", hidden_size=16, **QUICK)
            for path in (table, csv, packed):
                kind = path.name.partition(".")[2]
                for command in ("read", "evaluate", "predict"):
                    end = folder / f"out.{kind.removesuffix('.gz')}"
                    add(f"a table of {size / 1e6:.0f} MB as {kind}", command, grown(command, path, run, end), size)
    if not wanted:
        save("memory", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
