"""Whose a running trial is, and whether that process is gone.

A study that is killed leaves its trial as running for ever: Optuna knows heartbeats for databases alone. So each trial has in it
who runs it, and every minute when that one was last seen (docs/decisions/057).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate.processes import can_be_asked, is_there

BEAT = 60.0
"""Seconds between two signs of life."""
SILENT = 900.0
"""Seconds without one after which a trial on another machine, or in another container, is taken for dead. Clocks of machines differ."""


def gone(owner: Mapping[str, Any] | None, seen: float, now: float) -> bool:
    """Whether the process of a running trial is gone. seen, now: seconds since 1970, on two clocks that may differ a little.

    Where its process can be asked, that says it; elsewhere what counts is how long it has been silent.
    """
    if owner and can_be_asked(owner):
        return not is_there(owner)
    return now - seen > SILENT
