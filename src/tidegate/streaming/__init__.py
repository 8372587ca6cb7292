"""A run over streams: one row in, one prediction out.

| file | what it does |
| --- | --- |
| `rows.py` | encodes one row as `Preprocessing.apply` encodes a table |
| `stream.py` | `Stream`: the states of many keys, `push`, `push_many`, saving and restoring |
| `answers.py` | the loop of `tidegate stream`: lines in, answers out, a state file that loses no row |
"""

from __future__ import annotations

from tidegate.streaming.stream import Stream, StreamState

__all__ = ["Stream", "StreamState"]
