"""A measuring process: `python -m tidegate.bench.worker` takes a job on standard input and prints JSON lines.

One process for each number of threads, since several peers fix theirs once and for all; so the processors are chosen
here before anything else is imported. `tidegate.bench.launch` starts it and describes the lines.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

Say = Callable[[dict[str, Any]], None]


def confine(threads: int) -> None:
    """Bind this process to as many processors, and tell every peer's pool of threads; ahead of their imports."""
    from tidegate.bench.machine import processors

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors()[:threads])
    # NPROC is XLA's.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), str(threads))
    os.environ |= {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # It is the processor that is measured, also where there is a GPU.
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
    }


def work(job: dict[str, Any], say: Say) -> None:
    import torch

    from tidegate import backends
    from tidegate.bench.measure import measure, peak_gflops
    from tidegate.bench.peers import PEERS, Peer
    from tidegate.bench.shapes import Cell, Shape
    from tidegate.ops.gru import native

    threads = job["threads"]
    torch.set_num_threads(threads)
    peers: dict[str, Peer | Exception] = {}
    for name in job["peers"]:
        try:
            peers[name] = PEERS[name](threads)
        except Exception as error:
            peers[name] = error
    peak, why_not = peak_gflops(threads)
    isa = native.isa() if native.missing() is None else ""
    say({"backend": str(backends.explain().chosen), "isa": isa, "peak_gflops": peak, "no_peak": why_not})

    cells = [Cell(kind, Shape(*sizes)) for kind, *sizes in job["cells"]]
    # A turn costs its pause and block, and a long call's time; what a slow peer needs is as good a guess as any.
    weights = [0.2 + cell.shape.multiply_adds(cell.kind) / 5e9 for cell in cells]
    for i, cell in enumerate(cells):

        def progress(share: float, i: int = i, cell: Cell = cell) -> None:
            say({"cell": str(cell), "done": (sum(weights[:i]) + share * weights[i]) / sum(weights)})

        for row in measure(cell, peers, threads, job["rounds"], peak, progress):
            say({"row": asdict(row)})


def _own_output() -> TextIO:
    """Standard output for our lines alone: whatever else prints, a peer's C++ too, goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def main() -> None:
    job, output = json.load(sys.stdin), _own_output()
    confine(job["threads"])
    work(job, lambda line: print(json.dumps(line), file=output, flush=True))


if __name__ == "__main__":
    main()
