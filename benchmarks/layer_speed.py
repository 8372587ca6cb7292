"""The layer beside every peer that is installed: the whole grid of `tidegate bench`, on 1 thread and on every core.

    python benchmarks/layer_speed.py

Writes benchmarks/results/layer_speed.csv. benchmarks/README.md says how to get the peers; `tidegate bench` itself
measures a part of the grid, or other shapes.
"""

from __future__ import annotations

import sys

from common import RESULTS

from tidegate.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--markdown", "--csv", str(RESULTS / "layer_speed.csv")]))
