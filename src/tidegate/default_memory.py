"""How much memory a table may take where nobody says: a share of what the machine, or the control group of the process, has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tidegate.default_threads import ROOT, control_groups, first_words

SHARE = 0.8  # the rest is for whatever else runs, and for the system's own
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def bytes_of(size: str | int) -> int:
    """What a size such as 2GB, 512 MiB or a number of bytes says. Raises ValueError.

    >>> bytes_of("1.5GB"), bytes_of("512 MiB"), bytes_of(1000)
    (1500000000, 536870912, 1000)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?i?)b?", str(size).strip().lower())
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise ValueError("expected a size such as 2GB, 512MB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def told(size: float) -> str:
    """A number of bytes for a message.

    >>> told(3_600_000_000), told(128_000), told(12)
    ('3.6 GB', '128 kB', '12 bytes')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if unit == 10**9 else f"{size / unit:.0f} {name}"
    return f"{size:.0f} bytes"


def memory_of_machine(root: Path | None = None) -> int | None:
    """The bytes of memory that this process can have: those of the machine, or fewer where its control group, or one around that, has
    a limit. None: not known here. root: where /proc and /sys are; None: where they always are.
    """
    root = root or ROOT
    found = [size for size in (_total(root), *_limits(root)) if size]
    return min(found, default=None)


def default_memory(root: Path | None = None) -> int | None:
    """SHARE of that."""
    whole = memory_of_machine(root)
    return None if whole is None else int(SHARE * whole)


def memory_of_process(asked: str | None, processes: int) -> int | None:
    """The bytes that this process may take: those that were asked for, or by default an equal share for each of the processes of this
    machine that work together. None: there is no limit that is known. Raises ValueError.
    """
    if asked is not None:
        return bytes_of(asked)
    whole = default_memory()
    return None if whole is None else whole // processes


def _total(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _limits(root: Path) -> list[int]:
    limits = []
    for kind, folder in control_groups(root, "memory"):
        name = "memory.max" if kind == "cgroup2" else "memory.limit_in_bytes"
        (words,) = first_words(root / folder.relative_to("/") / name, 1)
        if words.isdigit():  # else max; without a limit version 1 says a number that no machine has
            limits.append(int(words))
    return limits
