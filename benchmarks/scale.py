"""A table that is larger than the memory allowed: arranged on disk, trained from there, predicted by the piece; beside a smaller one
in memory.

    python benchmarks/scale.py [--rows 5M] [--memory 1.5GB] [--threads 1] [--folder DIR] [--order sorted|shuffled] [--what train|predict]

Makes N rows x 10 columns of Parquet in pieces, in sequences of 200 rows: id, t, six numbers (one with gaps), a category and a class to
predict. Then, each in a process of its own: `prepare`, an epoch of training from the store, and, of at most 5 million rows, an epoch in
memory; and predictions into a folder, by the piece, and of at most 5 million rows in memory into a file.

Of each: the seconds, the rows a second, and the peak of the process: all of its memory, and the anonymous share of it, which the
system can't take back (the rest is pages of files). Adds to benchmarks/results/scale.csv.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import RESULTS, machine, markdown, save

LENGTH = 200  # rows of a sequence
PIECE = 1_000_000  # rows that are made at once
FILE = 10_000_000  # rows of a file
IN_MEMORY = 5_000_000  # rows of the table that the store is compared with
SETTINGS = {"target": "label", "group": "id", "time": "t"}
QUICK = {"epochs": 1, "baselines": False, "hidden_size": 32, "batch_size": 32, "window": 100}
WORK = """
import json, sys, threading, time, warnings
from pathlib import Path
import torch, tidegate
given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
warnings.simplefilter("ignore")

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

peak = 0
over = threading.Event()
def watch():
    global peak
    while not over.wait(0.01):
        peak = max(peak, kilobytes("RssAnon"))
thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
history = None
try:
    if given["what"] == "prepare":
        tidegate.prepare(given["table"], given["store"], memory=given["memory"], **given["settings"])
    elif given["what"] == "predict":
        run = tidegate.load(given["run"])
        began = time.perf_counter()
        run.predict_to(given["table"], given["out"], memory=given["memory"])
    else:
        run = tidegate.train(given["table"], out=given["out"], overwrite=True, threads=given["threads"], **given["settings"])
        history = run.history[0]["seconds"]
finally:
    over.set()
    thread.join()
print(json.dumps({"seconds": time.perf_counter() - began, "epoch": history, "anonymous": peak, "peak": kilobytes("VmHWM")}))
"""


def make(folder: Path, rows: int, order: str) -> None:
    """Parquet files of the table, a piece at a time."""
    folder.mkdir()
    made = 0
    kinds = np.array(["idle", "busy", "broken", "off"])
    while made < rows:
        count = min(FILE, rows - made)
        pieces = [folder / f"piece-{k:03d}.parquet" for k in range(-(-count // PIECE))]
        for k, path in enumerate(pieces):
            n = min(PIECE, count - k * PIECE)
            rng = np.random.default_rng([made, k])
            step = np.arange(made + k * PIECE, made + k * PIECE + n)
            x = rng.standard_normal((6, n)).astype(np.float32).astype(np.float64)
            columns: dict[str, Any] = {"id": step // LENGTH, "t": step % LENGTH}
            columns |= {f"x{j}": x[j] for j in range(6)}
            columns["state"] = kinds[rng.integers(0, 4, n)]
            columns["label"] = np.where(np.convolve(x[0], np.ones(8), "same") > 0, "up", "down")
            frame = pl.DataFrame(columns).with_columns(x5=pl.when(pl.col("x5") > -1.5).then(pl.col("x5")))
            (frame.sample(fraction=1, shuffle=True, seed=k) if order == "shuffled" else frame).write_parquet(path)
        pl.scan_parquet(pieces).sink_parquet(folder / f"part-{made // FILE:03d}.parquet")
        for path in pieces:
            path.unlink()
        made += count


def work(**given: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", WORK, json.dumps(given)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def row(what: str, rows: int, done: dict[str, Any], limit: str) -> dict[str, Any]:
    seconds = done["epoch"] or done["seconds"]
    return {
        "what": what,
        "rows": f"{rows:,}",
        "memory allowed": limit,
        "seconds": f"{seconds:.0f}",
        "thousand rows/s": f"{rows / seconds / 1000:.0f}",
        "peak MB": round(done["peak"] / 1000),
        "anonymous MB": round(done["anonymous"] / 1000),
    }


def trained(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    every = {"threads": asked.threads, "store": str(folder / "store"), "memory": asked.memory}
    found = []
    done = work(what="prepare", table=str(folder / "table"), settings=SETTINGS, **every)
    found.append(row(f"prepare, {asked.order} rows", asked.rows, done, asked.memory))
    stored = sum(path.stat().st_size for path in (folder / "store").iterdir())
    print(f"the store: {stored / 1e9:.2f} GB", file=sys.stderr)
    done = work(what="train", table=every["store"], out=str(folder / "run"), settings=QUICK, **every)
    found.append(row("an epoch from the store", asked.rows, done, asked.memory))
    done = work(what="train", table=str(folder / "small"), out=str(folder / "run"), settings=SETTINGS | QUICK, **every)
    found.append(row("an epoch in memory", min(IN_MEMORY, asked.rows), done, ""))
    shutil.rmtree(folder / "store")
    return found


def predicted(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    some, run = folder / "some", str(folder / "of-some")
    make(some, min(PIECE // 5, asked.rows), "sorted")
    work(what="train", table=str(some), out=run, settings=SETTINGS | QUICK, threads=asked.threads)
    every = {"what": "predict", "threads": asked.threads, "run": run}
    done = work(table=str(folder / "table"), out=f"{folder / 'predicted'}/", memory=asked.memory, **every)
    found = [row(f"predict by the piece, {asked.order} rows", asked.rows, done, asked.memory)]
    done = work(table=str(folder / "small"), out=str(folder / "predicted.parquet"), memory=None, **every)
    return [*found, row("predict in memory", min(IN_MEMORY, asked.rows), done, "")]


def number(text: str) -> int:
    return int(float(text.rstrip("MmKk")) * {"m": 1_000_000, "k": 1_000}.get(text[-1].lower(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=number, default=5_000_000)
    parser.add_argument("--memory", default="1.5GB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--order", choices=["sorted", "shuffled"], default="sorted")
    parser.add_argument(
        "--folder", type=Path, help="where the table and the store are made (default: a temporary folder)"
    )
    parser.add_argument("--what", choices=["train", "predict"], help="that alone (default: both)")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results/scale.csv as it is")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = Path(temporary)
        make(folder / "table", asked.rows, asked.order)
        size = sum(path.stat().st_size for path in (folder / "table").iterdir())
        print(f"{asked.rows:,} rows, {size / 1e9:.2f} GB of Parquet", file=sys.stderr)
        small = folder / "small"
        make(small, min(IN_MEMORY, asked.rows), asked.order)
        found = []
        if asked.what in (None, "train"):
            found += trained(folder, asked)
        if asked.what in (None, "predict"):
            found += predicted(folder, asked)
    if not asked.no_save:
        path = RESULTS / "scale.csv"
        before = (
            list(pl.read_csv(path, comment_prefix="#", infer_schema=False).iter_rows(named=True))
            if path.exists()
            else []
        )
        save("scale", [*before, *found])
    print(f"{machine()}\n\n{markdown(found)}")


if __name__ == "__main__":
    main()
