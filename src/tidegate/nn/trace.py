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

    def __init__(self, output: Any, h_n: Tensor, layers: dict[str, Gates]) -> None:
        self.output = output
        """What `forward` returns first."""
        self.h_n = h_n
        """And second."""
        self._layers = layers

    @staticmethod
    def of(output: Any, h_n: Tensor, layers: list[tuple[Tensor, Tensor]], wrap: Callable[[Tensor], Any]) -> GateTrace:
        """From what a back end's `trace` found; wrap: from time first to the layout of the output."""
        named = {}
        for k, (states, gates) in enumerate(layers):
            D, H = gates.size(0), gates.size(-1)
            for d in range(D):
                reset, update, candidate, recurrent = (wrap(gates[d, ..., i, :]) for i in range(4))
                hidden = wrap(states[..., d * H : (d + 1) * H])
                named[f"l{k}" + "_reverse" * d] = Gates(reset, update, candidate, recurrent, hidden)
        return GateTrace(output, h_n, named)

    def __getitem__(self, name: str) -> Gates:
        try:
            return self._layers[name]
        except KeyError:
            raise KeyError(f"No layer {name!r} in this trace; there are {', '.join(self._layers)}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def _all(self, field: str) -> dict[str, Any]:
        return {name: getattr(gates, field) for name, gates in self._layers.items()}

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
        lines = [f"  {name}: {getattr(gates.hidden, 'shape', 'packed')}" for name, gates in self._layers.items()]
        return "\n".join(["GateTrace(reset, update, candidate, recurrent, hidden of", *lines, ")"])
