"""What the benchmarks share: the machine line, tables, and where the raw numbers go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidegate.bench.machine import machine
from tidegate.bench.report import csv_text, markdown
from tidegate.files import write_text

__all__ = ["RESULTS", "machine", "markdown", "save"]
RESULTS = Path(__file__).parent / "results"


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """benchmarks/results/NAME.csv, with the machine in its first line."""
    write_text(RESULTS / f"{name}.csv", csv_text(machine(), rows))
