"""Two workers of one thread each beside one process of two threads, and what slices cost: updates of `tidegate train`.

    python benchmarks/workers.py [--rounds 5] [--updates 60]

In every round each has a turn in fresh processes: some updates warm up, then so many are timed, whole, with all that workers
exchange. A ratio is the median over the rounds of a turn over that of one process of two threads beside it. Of workers also what
each writes for the others in an update, in bytes, and how long the exchange takes, the wait for the slower worker included. Nothing
else should run. Writes benchmarks/results/workers.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from common import machine, markdown, save
from epoch import MAKE

SRC = Path(__file__).resolve().parents[1] / "src"
CASES = {
    "SNIPS, bidirectional, H 128, batch 32": ("snips", {}),
    "SNIPS, bidirectional, H 128, batch 8": ("snips", {"batch_size": 8}),
    "half-cheetah, H 128, batch 4": ("cheetah", {}),
    "10 sensors, T 7, H 20, batch 6": ("sensors", {"batch_size": 6}),
}
KINDS = {  # workers, threads each, slices
    "1 process, 2 threads": (1, 2, 1),
    "1 process, 1 thread": (1, 1, 1),
    "1 process, 2 threads, 2 slices": (1, 2, 2),
    "1 process, 2 threads, 4 slices": (1, 2, 4),
    "2 workers, 1 thread": (2, 1, 2),
}

WORKER = (
    MAKE
    + r"""
import contextlib
from tidegate import shared_memory, workers

name, more, shards, updates = json.loads(sys.argv[2])
with workers.joined() as group:
    sent = [0, 0.0]
    if group.size > 1:
        exchange = shared_memory.Neighbours.exchange
        def counted(self, values, *more):
            began = time.perf_counter()
            found = exchange(self, values, *more)
            sent[0] += values.nbytes
            sent[1] += time.perf_counter() - began
            return found
        shared_memory.Neighbours.exchange = counted
    loop, batches, by = make(name, shards=shards, **more)
    batches = (batches * (1 + 2 * updates // len(batches)))[: 2 * updates]
    with loop.threads or contextlib.nullcontext():
        for half in (batches[:updates], batches[updates:]):
            loop.state = State(chosen_by=by)
            sent[:] = [0, 0.0]
            began = time.perf_counter()
            loop.epoch(half, threading.Event())
            taken = time.perf_counter() - began
    answer = [1e6 * taken / updates, sent[0] / updates, 1e6 * sent[1] / updates, sum(p.numel() for p in loop.model.parameters())]
    if group.leads:
        print(json.dumps(answer), file=out, flush=True)
"""
)


def turn(case: str, kind: str, updates: int) -> list[float]:
    """Microseconds of an update, bytes sent in it, microseconds in the exchange, the model's parameters."""
    name, more = CASES[case]
    count, threads, shards = KINDS[kind]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(SRC),
    }
    question = json.dumps([name, more, shards, updates])
    command = [sys.executable, "-c", WORKER, str(threads), question]
    processes = [
        subprocess.Popen(command, env=os.environ | common | {"RANK": str(k)}, stdout=subprocess.PIPE, text=True)
        for k in range(count)
    ]
    answers = [p.communicate()[0] for p in processes]
    if any(p.returncode for p in processes):
        sys.exit(f"{kind} failed; see above.")
    found: list[float] = json.loads(answers[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=60)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        turns: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for k in range(given.rounds):
            print(f"{case}: round {k + 1} of {given.rounds}", file=sys.stderr, flush=True)
            for kind in KINDS:
                turns[kind].append(turn(case, kind, given.updates))
        first = [answer[0] for answer in turns["1 process, 2 threads"]]
        for kind, answers in turns.items():
            us, sent, exchange, parameters = (statistics.median(column) for column in zip(*answers, strict=True))
            rows.append(
                {
                    "case": case,
                    "kind": kind,
                    "us an update": round(us),
                    "over 2 threads": round(
                        statistics.median(a[0] / b for a, b in zip(answers, first, strict=True)), 2
                    ),
                    "parameters": int(parameters),
                    "bytes written an update": round(sent),
                    "us exchanging": round(exchange),
                }
            )
    save("workers", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
