"""Whose a running trial is, and whether that process is gone.

A study that is killed leaves its trial as running for ever: Optuna knows heartbeats for databases alone. So each trial has in it
who runs it, and every minute when that one was last seen (docs/decisions/057).
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidegate.files import runs
from tidegate.training.lock import boot

BEAT = 60.0
"""Seconds between two signs of life."""
SILENT = 900.0
"""Seconds without one after which a trial on another machine, or in another container, is taken for dead. Clocks of machines differ."""


def me() -> dict[str, Any]:
    """This process, so that others can tell whether it is still there."""
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "boot": boot(),
        "processes": _processes(),
        "began": _began(os.getpid()),
    }


def gone(owner: Mapping[str, Any] | None, seen: float, now: float) -> bool:
    """Whether the process of a running trial is gone. seen, now: seconds since 1970, on two clocks that may differ a little.

    Where its process can be asked, that says it; elsewhere what counts is how long it has been silent.
    """
    if owner and _here(owner):
        process = owner.get("process")
        return not (isinstance(process, int) and runs(process) and owner.get("began") == _began(process))
    return now - seen > SILENT


def _here(owner: Mapping[str, Any]) -> bool:
    """Whether its number means the same process here: the same machine since its last start, and the same container."""
    if os.name != "posix":
        return False
    if owner.get("boot") is None:  # no Linux
        return boot() is None and owner.get("host") == platform.node()
    return owner.get("boot") == boot() and owner.get("processes") == _processes()


def _processes() -> str | None:
    """What names this container's numbers of processes."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _began(process: int) -> int | None:
    """When a process began, in ticks since the machine did: a number may come again, with this it doesn't. None: it has ended and
    only its parent hasn't asked yet, or this is no Linux.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else int(after_name[19])
    return None
