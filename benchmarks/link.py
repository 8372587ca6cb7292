"""What two workers exchange in a step, and how long that takes on a link: two hosts in network namespaces, joined by a cable (veth).

    sudo python benchmarks/link.py [--exchanges 200]

The gradients have the size that those of the model have; they are made up, and nothing is computed between two exchanges. Bytes and
packets are those that the network card of a host counted, headers and all. The link runs as fast as it can, which is this machine's
memory, and then at 1 Gbit/s and 100 Mbit/s (tc, a token bucket). Beside that stands what a training step of one process on one
thread takes. Linux, root and iproute2. Writes benchmarks/results/link.csv, from which figures.py makes the table of docs/scale.md.
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

from common import machine, markdown, save
from epoch import MAKE

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.hosts import NAMES, missing, two_hosts  # noqa: E402

CASES = {
    "SNIPS, bidirectional, H 128, batch 32": ("snips", {}),
    "10 sensors, T 7, H 20, batch 6": ("sensors", {"batch_size": 6}),
}
LINKS = {"as fast as it can": None, "1 Gbit/s": 1000, "100 Mbit/s": 100}

# Microseconds of a step of one process, the values in a step's gradient, and all parameters.
STEP = (
    MAKE
    + r"""
from tidegate.workers import Alone

name, more, steps = json.loads(sys.argv[2])
sizes = []
def total(self, shards, partial, before=Alone.total):
    found = before(self, shards, partial)
    sizes.append(found.gradients.numel())
    return found
Alone.total = total
loop, batches, by = make(name, shards=2, **more)
batches = (batches * (1 + steps // len(batches)))[:steps]
loop.state = State(chosen_by=by)
loop.epoch(batches, threading.Event())
loop, _, by = make(name, **more)
times = []
for half in (batches, batches):
    loop.state = State(chosen_by=by)
    began = time.perf_counter()
    loop.epoch(half, threading.Event())
    times.append(1e6 * (time.perf_counter() - began) / steps)
print(json.dumps([times[-1], sum(sizes) / len(sizes), sum(p.numel() for p in loop.model.parameters())]), file=out)
"""
)

# Bytes and packets that a host sends in an exchange, and the microseconds of each.
EXCHANGE = r"""
import json, sys, time
from pathlib import Path
import numpy as np, torch
from tidegate import workers

torch.set_num_threads(1)
values, count = json.loads(sys.argv[1])
cards = Path("/sys/class/net/eth0/statistics")
def sent():
    return [int((cards / name).read_text()) for name in ("tx_bytes", "tx_packets")]
gradients = torch.randn(values)
with workers.joined() as group:
    def exchange():
        group.total(2, lambda first, last: workers.Partial(gradients, np.zeros(2)))
    for _ in range(20):
        exchange()
    group.meet()
    before, times = sent(), []
    for _ in range(count):
        began = time.perf_counter()
        exchange()
        times.append(1e6 * (time.perf_counter() - began))
    after = sent()
    if group.leads:
        print(json.dumps([[(b - a) / count for a, b in zip(before, after)], times]), flush=True)
"""


def step(case: str, steps: int = 60) -> list[float]:
    name, more = CASES[case]
    command = [sys.executable, "-c", STEP, "1", json.dumps([name, more, steps])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: list[float] = json.loads(done.stdout)
    return answer


def exchanged(values: int, count: int, mbit: int | None) -> tuple[list[float], list[float]]:
    """Bytes and packets that a host sends in an exchange, and microseconds."""
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": NAMES[0],
        "MASTER_PORT": "29400",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    with two_hosts() as hosts:
        if mbit is not None:
            hosts.limit(mbit)
        command = [sys.executable, "-c", EXCHANGE, json.dumps([values, count])]
        processes = [
            subprocess.Popen(
                hosts.command(host, command),
                env=os.environ | common | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(NAMES)
        ]
        answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("A worker failed; see above.")
    sent, times = json.loads(answers[0])
    return sent, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=200)
    given = parser.parse_args()
    if why := missing():
        sys.exit(f"Not here: {why}.")
    rows: list[dict[str, Any]] = []
    for case in CASES:
        us_step, values, parameters = step(case)
        for link, mbit in LINKS.items():
            print(f"{case}: {link}", file=sys.stderr, flush=True)
            sent, times = exchanged(round(values), given.exchanges, mbit)
            rows.append(
                {
                    "case": case,
                    "parameters": int(parameters),
                    "values exchanged": round(values),
                    "us a step of one process": round(us_step),
                    "link": link,
                    "bytes sent": round(sent[0]),
                    "packets sent": round(sent[1], 1),
                    "us an exchange": round(statistics.median(times)),
                    "its quartiles": " ".join(f"{q:.0f}" for q in statistics.quantiles(times, n=4)[::2]),
                }
            )
    save("link", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
