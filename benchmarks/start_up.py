"""How long one waits before anything happens: `tidegate --help`, and `import tidegate` over `import torch`.

    python benchmarks/start_up.py

The aim: under 0.3 s, and at most 0.05 s. Writes benchmarks/results/start_up.csv.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import machine, markdown, save

RUNS = 11
CASES = {
    "tidegate --help": ["-m", "tidegate", "--help"],
    "tidegate train --help": ["-m", "tidegate", "train", "--help"],
    "python -c pass": ["-c", "pass"],
}
IMPORT = "import time, torch; t = time.perf_counter(); import tidegate{}; print(time.perf_counter() - t)"


def whole(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - began


def inside(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    rows = []
    for title, arguments in CASES.items():
        times = [whole(arguments) for _ in range(RUNS + 1)][1:]
        rows.append(
            {"what": title, "seconds (median)": round(statistics.median(times), 3), "slowest": round(max(times), 3)}
        )
    for title, code in {
        "import tidegate, after import torch": IMPORT.format(""),
        "import tidegate and take tidegate.GRU, after import torch": IMPORT.format("; tidegate.GRU"),
    }.items():
        times = [inside(code) for _ in range(RUNS + 1)][1:]
        rows.append(
            {"what": title, "seconds (median)": round(statistics.median(times), 4), "slowest": round(max(times), 4)}
        )
    save("start_up", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
