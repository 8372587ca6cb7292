"""A run over streams: one row in, one prediction out.

| file | what it does |
| --- | --- |
| `places.py` | where each key stands, and which of them go |
| `times.py` | when a row happened, and whether it is late |
| `state.py` | `StreamState`, and the file of all states |
| `stream.py` | `Stream`: `push`, `push_many`, saving and restoring |
| `answers.py` | the loop of `tidegate stream`: lines in, answers out, a state file that loses no row |
"""

from __future__ import annotations

from tidegate.streaming.state import StreamState
from tidegate.streaming.stream import Stream

__all__ = ["Stream", "StreamState"]
