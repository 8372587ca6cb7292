"""What a change costs: the same benchmarks in two checkouts, in turns, and the ratio of each figure.

    git worktree add --detach ../before OLD_COMMIT      # and build it there, so that its own _native*.so lies in src/tidegate
    python benchmarks/before_after.py ../before [--rounds 5] [layer_speed train_step stream_speed start_up]

Each round runs a script once in either checkout; which goes first alternates. A figure is the median over the rounds, its
ratio this checkout's over the other's; at the end the largest ratios are listed. Both need the compiled kernels in
src/tidegate, so that nothing else of the two differs. Writes benchmarks/results/before_after.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import machine, markdown, save

HERE = Path(__file__).resolve().parents[1]
# What is run, and of its CSV file what names a row and what is measured.
SCRIPTS: dict[str, tuple[list[str], tuple[str, ...], tuple[str, ...]]] = {
    "layer_speed": (
        ["-m", "tidegate", "bench", "--peers", "tidegate", "--rounds", "3", "--csv", "{csv}"],
        ("kind", "threads", "B", "T", "I", "H", "layers"),
        ("median_us",),
    ),
    "train_step": (["benchmarks/train_step.py"], ("case",), ("tidegate us a step",)),
    "stream_speed": (["benchmarks/stream_speed.py"], ("what",), ("median us",)),
    "start_up": (["benchmarks/start_up.py"], ("what",), ("seconds (median)",)),
}


def figures(script: str, tree: Path) -> dict[tuple[str, ...], float]:
    command, keys, values = SCRIPTS[script]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "figures.csv" if "{csv}" in command else tree / f"benchmarks/results/{script}.csv"
        done = subprocess.run(
            [sys.executable, *(part.format(csv=written) for part in command)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{script} in {tree} failed:\n{done.stderr}")
        lines = [line for line in written.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {
        (script, ", ".join(row[k] for k in keys), value): float(row[value])
        for row in csv.DictReader(lines)
        for value in values
        if "over" not in row.get("what", "") and row[value]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=", ".join(SCRIPTS))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "after": HERE}
    for tree in trees.values():
        if not list((tree / "src/tidegate").glob("_native*")):
            sys.exit(f"{tree / 'src/tidegate'} has no compiled kernels (_native*.so).")
    times: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: {"before": [], "after": []})
    for script in given.scripts or SCRIPTS:
        for k in range(given.rounds):
            for side in ("before", "after") if k % 2 else ("after", "before"):
                for name, value in figures(script, trees[side]).items():
                    times[name][side].append(value)
            print(f"{script}: round {k + 1} of {given.rounds}", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = []
    for (script, what, value), both in times.items():
        before, after = (statistics.median(both[side]) for side in ("before", "after"))
        pairs = [b / a for a, b in zip(both["before"], both["after"], strict=True)]
        rows.append(
            {
                "script": script,
                "what": what,
                "figure": value,
                "before": round(before, 4),
                "after": round(after, 4),
                "ratio": round(after / before, 3),
                "ratio of the minima": round(min(both["after"]) / min(both["before"]), 3),
                "ratios of the rounds": f"{min(pairs):.3f} to {max(pairs):.3f}",
            }
        )
    save("before_after", rows)
    print(f"{machine()}\n\n{markdown(rows)}\n\nThe largest ratios:")
    for row in sorted(rows, key=lambda row: -row["ratio"])[:5]:
        print(f"{row['ratio']:.3f}  {row['script']}: {row['what']}")


if __name__ == "__main__":
    main()
