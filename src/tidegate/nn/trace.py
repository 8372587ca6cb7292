"""`GateTrace`: what the gates of a layer did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Gates(NamedTuple):
    """One layer in one direction. Each field has the layout of the layer's output, with H features."""

    reset: Any
    """r_t in (0, 1): how much of the old state the candidate sees."""
    update: Any
    """z_t in (0, 1): **1 keeps the old state**, 0 replaces it. Before zoneout, which may keep more."""
    candidate: Any
    """n_t in (-1, 1): what the state moves towards."""
    recurrent: Any
    """The state's part of the candidate before the tanh: W_hn h + b_hn, which r_t scales; with reset="before"
    W_hn (r ⊙ h) + b_hn. With layer norm, normalised."""
    hidden: Any
    """h_t: the state after the step."""


class GateTrace(Mapping[str, Gates]):
    """The gates of every layer and direction, by name: "l0", "l0_reverse", "l1" ..., as the weights are called.

    `trace["l0"].update` and `trace.update["l0"]` are the same tensor. All of them are part of the autograd graph, so that
    a loss may be put on them. Past a sequence's end all are 0.
    """

    def __init__(
        self, output: Any, h_n: Tensor, layers: list[tuple[Tensor, Tensor]], wrap: Callable[[Tensor], Any]
    ) -> None:
        """layers: what a back end's `trace` found, of each its states and gates; wrap: from time first to the layout of
        the output. Gates are cut out when they are first asked for.
        """
        self.output = output
        """What `forward` returns first."""
        self.h_n = h_n
        """And second."""
        self._layers, self._wrap = layers, wrap
        self._found: dict[str, Gates] = {}
        D = layers[0][1].size(0)
        self._places = {f"l{k}" + "_reverse" * d: (k, d) for k in range(len(layers)) for d in range(D)}

    def __getitem__(self, name: str) -> Gates:
        if name not in self._found:
            if name not in self._places:
                raise KeyError(f"No layer {name!r} in this trace; there are {', '.join(self._places)}.")
            k, d = self._places[name]
            states, gates = self._layers[k]
            H = gates.size(-1)
            reset, update, candidate, recurrent = (self._wrap(gates[d, ..., i, :]) for i in range(4))
            hidden = self._wrap(states[..., d * H : (d + 1) * H])
            self._found[name] = Gates(reset, update, candidate, recurrent, hidden)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _all(self, field: str) -> dict[str, Any]:
        return {name: getattr(gates, field) for name, gates in self.items()}

    @property
    def reset(self) -> dict[str, Any]:
        return self._all("reset")

    @property
    def update(self) -> dict[str, Any]:
        return self._all("update")

    @property
    def candidate(self) -> dict[str, Any]:
        return self._all("candidate")

    @property
    def recurrent(self) -> dict[str, Any]:
        return self._all("recurrent")

    @property
    def hidden(self) -> dict[str, Any]:
        return self._all("hidden")

    def __repr__(self) -> str:
        lines = [f"  {name}: {getattr(gates.hidden, 'shape', 'packed')}" for name, gates in self.items()]
        return "\n".join(["GateTrace(reset, update, candidate, recurrent, hidden of", *lines, ")"])
