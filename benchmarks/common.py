"""What the benchmarks share: the machine line, tables, and where the raw numbers go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tidegate.bench.machine import machine
from tidegate.bench.report import csv_text, markdown
from tidegate.files import write_text

__all__ = ["RESULTS", "Worker", "machine", "markdown", "save"]
RESULTS = Path(__file__).parent / "results"


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """benchmarks/results/NAME.csv, with the machine in its first line."""
    write_text(RESULTS / f"{name}.csv", csv_text(machine(), rows))


class Worker:
    """A Python with the package of this folder, which runs a script that answers each line of its input, JSON, by one of its output."""

    def __init__(self, src: Path, script: str, *arguments: str, threads: int | None = None, cwd: Path | None = None):
        own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        others = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []  # where the peers may be
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(src), *others])} | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("A checkout's process ended; see above.")
        return json.loads(line)

    def ask(self, question: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self.hear()
