"""The machine that was measured on, in one line; and its processors."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def machine(threads: str = "") -> str:
    """One line: processor, threads (torch's number, if none is given), vector units, versions; our commit in a checkout."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    threads = threads or str(torch.get_num_threads())
    parts = [
        name,
        f"{threads} thread{'' if threads == '1' else 's'}",
        torch.backends.cpu.get_cpu_capability(),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        revision(),
    ]
    return ", ".join(part for part in parts if part)


def revision() -> str:
    """`commit 1a2b3c4`; empty for an installed package, even one that lies inside another project's repository."""
    here = Path(__file__)
    for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "--short", "HEAD"]):
        try:
            done = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):  # no git; not a checkout, or not one of Tidegate
            return ""
    return f"commit {done.stdout.strip()}"


def processors() -> list[int]:
    """The processors that this process may run on, one of every core first: two halves of a core are not two cores."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    cores = [_core(cpu) for cpu in allowed]
    seen_before = [cores[:i].count(core) for i, core in enumerate(cores)]
    return [cpu for _, cpu in sorted(zip(seen_before, allowed, strict=True))]


def cores() -> int:
    """How many cores `processors()` lie on."""
    return len({_core(cpu) for cpu in processors()})


def _core(cpu: int) -> str:
    try:
        return Path(_SIBLINGS.format(cpu)).read_text(encoding="ascii")
    except OSError:
        return str(cpu)
