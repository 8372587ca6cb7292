"""The GRU layer, timed on this machine beside other people's: what `tidegate bench` runs.

Nothing heavy is imported here: a measuring process must choose its processors before torch is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["BenchError", "Cell", "Row", "Shape", "cells", "machine", "report", "run"]

if TYPE_CHECKING:
    from tidegate.bench import machine, report
    from tidegate.bench.launch import BenchError, run
    from tidegate.bench.measure import Row
    from tidegate.bench.shapes import Cell, Shape, cells

__getattr__, __dir__ = names_of(
    __name__,
    {
        "Shape": "tidegate.bench.shapes",
        "Cell": "tidegate.bench.shapes",
        "cells": "tidegate.bench.shapes",
        "Row": "tidegate.bench.measure",
        "run": "tidegate.bench.launch",
        "BenchError": "tidegate.bench.launch",
        "machine": None,
        "report": None,
    },
)
