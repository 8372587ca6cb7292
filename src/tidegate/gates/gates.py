"""`Gates`: the gates of one layer in one direction; `Parts`: what they are made of; `Equations`: how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple


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


@dataclass(frozen=True)
class Equations:
    """How a layer makes its gates and its state of their parts, as far as layers differ. The defaults are those of `torch.nn.GRU`.

    reset: where the reset gate falls, after or before the product with the state; None: there is no reset gate, and no gate
        reads the state (minGRU).
    layer_norm: products are normalised and scaled before the biases are added.
    zoneout: p, the part of its state that a unit keeps in any case: h_t = p h_(t-1) + (1 - p) (the h_t without it).
    candidate: what becomes of the candidate's sum: tanh, or g(v) = v + 1/2 for v >= 0 and σ(v) for v < 0.
    """

    reset: Literal["after", "before"] | None = "after"
    layer_norm: bool = False
    zoneout: float = 0.0
    candidate: Literal["tanh", "g"] = "tanh"

    @property
    def gates(self) -> str:
        """The gates in the order in which weights and `Parts` stack them: r (reset), z (update), n (candidate)."""
        return "zn" if self.reset is None else "rzn"

    def changed(self) -> dict[str, Any]:
        """Those that differ from their defaults, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


class Parts(NamedTuple):
    """What the gates of one layer in one direction are made of, before the squashing: stacked as `Equations.gates` says.

        r = σ(input_r + state_r)
        z = σ(input_z + state_z)
        n = tanh(input_n + r ⊙ state_n), or, with reset="before", tanh(input_n + state_n)
        h_t = (1 - z) ⊙ n + z ⊙ before

    With layer norm the parts are normalised and scaled; biases are in them.
    """

    input: Any
    """What x_t says, [T, 3H]; of a minGRU [T, 2H]."""
    state: Any
    """What h_(t-1) says, [T, 3H]; with reset="before" the candidate's is of r ⊙ h_(t-1). None: no gate reads the state."""
    before: Any
    """h_(t-1), the state before the step, [T, H]; backwards in time that of the step after it."""
