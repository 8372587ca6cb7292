"""The layer on a machine that others use too: forward+backward on 1 and 2 threads beside 0, 1 and 2 busy processes; and 40 updates of
`tidegate train` on SNIPS.

    python benchmarks/busy.py [--rounds 9] [--seconds 0.4] [--before ../before] [--no-torch] [--save]

Ours and `torch.nn.GRU` have a process each for every number of threads, which lives from beginning to end; one of them works at a
time, for --seconds. The busy processes count in Python, pinned to no core; they are stopped where fewer are wanted. In every
round each has a turn beside each number of busy processes, and the ratio is to one thread of ours beside none in the same round;
medians over the rounds are printed. CPU seconds are those of the process that was measured: what waiting threads burn is in
them. --before: another checkout, with its own _native*.so in src/tidegate, measured too. Nothing else should run; how many other
threads ran on average is printed. On more than two cores, take two: taskset -c 0,1 python benchmarks/busy.py

--save writes benchmarks/results/busy.csv.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Worker, machine, markdown, save
from epoch import MAKE

SHAPES = ["32 100 64 128", "8 200 512 1024", "SNIPS"]  # B T I H
BUSY = [0, 1, 2]
SRC = Path(__file__).resolve().parents[1] / "src"

WORKER = (
    MAKE
    + r"""
import contextlib, tidegate

def layer(shape):
    B, T, I, H = (int(n) for n in shape.split())
    layer, x, d = getattr(tidegate if sys.argv[2] == "tidegate" else torch.nn, "GRU")(I, H), torch.randn(T, B, I), torch.randn(T, B, H)
    def call():
        layer.zero_grad()
        layer(x)[0].backward(d)
    return call

def training():
    loop, batches, by = make("snips")
    threads = getattr(loop, "threads", None) or contextlib.nullcontext()
    def call():
        loop.state = State(chosen_by=by)
        with threads:
            loop.epoch(batches[:40], threading.Event())
    return call

calls = {}
for line in sys.stdin:
    shape, seconds = json.loads(line)
    if shape not in calls:
        calls[shape] = training() if shape == "SNIPS" else layer(shape)
    call, n = calls[shape], 0
    start, cpu = time.perf_counter(), time.process_time()
    while n < 2 or time.perf_counter() - start < seconds:
        call()
        n += 1
    print(json.dumps([(time.perf_counter() - start) / n, (time.process_time() - cpu) / n]), file=out, flush=True)
"""
)


class Program(Worker):
    """One that is measured, in a process of its own."""

    def __init__(self, name: str, kind: str, threads: int, src: Path) -> None:
        self.name, self.threads = name, threads
        super().__init__(src, WORKER, str(threads), kind, threads=threads)

    def measure(self, shape: str, seconds: float) -> tuple[float, float]:
        """Wall and CPU seconds of a call."""
        wall, cpu = self.ask([shape, seconds])
        return wall, cpu


def others() -> int:
    """Threads that run or want to, but for this one."""
    return int(Path("/proc/loadavg").read_text(encoding="utf-8").split()[3].split("/")[0]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="'B T I H'")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process stays behind
    programs: list[Program] = []
    hogs: list[subprocess.Popen[bytes]] = []
    seen: list[int] = []
    try:
        for threads in (1, 2):
            programs.append(Program("tidegate", "tidegate", threads, SRC))
            if args.before:
                programs.append(Program("tidegate, before", "tidegate", threads, args.before / "src"))
            if not args.no_torch:
                programs.append(Program("torch.nn.GRU", "torch", threads, SRC))
        for _ in range(max(BUSY)):
            hogs.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            hogs[-1].send_signal(signal.SIGSTOP)
        rows = []
        for shape in args.shapes:
            able = [p for p in programs if shape != "SNIPS" or p.name != "torch.nn.GRU"]
            rows += measure(shape, able, hogs, args.rounds, args.seconds, seen)
    finally:
        processes: list[subprocess.Popen[Any]] = [*hogs, *(p.process for p in programs)]
        for process in processes:
            process.kill()
            process.wait()
    print(f"{machine()}\n{args.rounds} rounds; other threads that ran: {statistics.mean(seen):.1f}\n\n{markdown(rows)}")
    if args.save:
        save("busy", rows)


def measure(
    shape: str,
    programs: list[Program],
    hogs: list[subprocess.Popen[bytes]],
    rounds: int,
    seconds: float,
    seen: list[int],
) -> list[dict[str, object]]:
    found: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for program in programs:
        program.measure(shape, 0.1)
    for turn in range(rounds):
        alone = 0.0
        for busy in BUSY:
            for hog in hogs[:busy]:
                hog.send_signal(signal.SIGCONT)
            time.sleep(0.05)
            for place, program in enumerate(programs):
                seen.append(max(0, others() - busy))
                wall, cpu = program.measure(shape, seconds)
                alone = alone or wall  # the first: one thread of ours, beside none
                found.setdefault((place, busy), []).append((wall, cpu, wall / alone))
            for hog in hogs:
                hog.send_signal(signal.SIGSTOP)
        print(f"{shape}: round {turn + 1} of {rounds}", file=sys.stderr)
    rows = []
    for (place, busy), all_of_them in found.items():
        wall, cpu, ratio = (statistics.median(column) for column in zip(*all_of_them, strict=True))
        rows.append(
            {
                "B T I H": shape,
                "program": programs[place].name,
                "threads": programs[place].threads,
                "busy processes": busy,
                "wall ms": round(wall * 1e3, 2),
                "CPU ms": round(cpu * 1e3, 2),
                "over one thread of ours, quiet": round(ratio, 2),
            }
        )
    return rows


if __name__ == "__main__":
    main()
