"""Processes on this machine, as others name them: which one it is, and whether it is still there."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidegate.files import runs

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # Linux; one for all containers of a machine


def me() -> dict[str, Any]:
    """This process, so that others can tell whether it is still there."""
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "boot": boot(),
        "processes": _processes(),
        "began": _began(os.getpid()),
    }


def boot() -> str | None:
    """What names this machine since it was last started."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return None


def can_be_asked(about: Mapping[str, Any]) -> bool:
    """Whether its number means the same process here: the same machine since its last start, and the same container."""
    if os.name != "posix":
        return False
    if about.get("boot") is None:  # no Linux
        return boot() is None and about.get("host") == platform.node()
    return about.get("boot") == boot() and about.get("processes") == _processes()


def is_there(about: Mapping[str, Any]) -> bool:
    """Whether a process that can be asked still runs."""
    process = about.get("process")
    return isinstance(process, int) and runs(process) and about.get("began") == _began(process)


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
