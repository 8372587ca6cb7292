"""`Gates`: the gates of one layer in one direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Gates(NamedTuple):
    """One layer in one direction. Each field has the layout of the layer's output, with H features; what the layer
    doesn't have (a minGRU has no reset gate) is None."""

    reset: Any
    """r_t in (0, 1): how much of the old state the candidate sees."""
    update: Any
    """z_t in (0, 1): **1 keeps the old state**, 0 replaces it. Before zoneout, which may keep more."""
    candidate: Any
    """n_t: what the state moves towards; in (-1, 1), of a minGRU above 0."""
    recurrent: Any
    """The state's part of the candidate before the tanh: W_hn h + b_hn, which r_t scales; with reset="before"
    W_hn (r ⊙ h) + b_hn. With layer norm, normalised."""
    hidden: Any
    """h_t: the state after the step."""

    def map(self, function: Callable[[Any], Any]) -> Gates:
        """The same fields, `function` of each that is there."""
        return Gates(*(None if v is None else function(v) for v in self))
