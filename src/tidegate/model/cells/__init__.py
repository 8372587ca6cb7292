"""The table of cells: what stands between the encoder and the head of a model.

To add one: a file here with a class that has the members of `Cell`, and a row in `CELLS`. Settings, training, streams and
inspection read this table. The table itself loads no torch, so that `tidegate train --help` can show it; `Row.load` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tidegate.model.spec import ModelSpec

State = Any
"""Where a core stands: a tensor [layers·D, B, H], a tuple of such, or None where nothing is carried on."""


class Cell(Protocol):
    """What a model, a stream and an inspection ask of a kind of core."""

    def make(self, spec: ModelSpec) -> nn.Module | None:
        """The core, reading [T, B, E] and a state; None: the head reads the inputs themselves."""

    def fresh(self, core: Any, spec: ModelSpec) -> State:
        """The state of one sequence that begins, B = 1."""

    def step(self, core: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x [B, E], a state -> y [B, H], the new state, a value of its own."""

    def unrolled(self, core: Any, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step of a core of one layer in one direction by its equations: x [B, E] and the parts of the state [B, H] -> the
        parts after it. Whatever is made of a part is made of the very tensor that is returned, so that all of it can be derived
        by that."""


class Row(NamedTuple):
    """title: in words. about: for help texts. options: those of `CoreOptions` that it knows. state: the names of its state's
    parts. gates: whether `trace` shows its gates. bf16: whether our kernels can multiply in bfloat16. any_threads: whether, by our kernels, the bits of a training are the same on any
    number of threads of a CPU."""

    title: str
    about: str
    module: str
    options: frozenset[str] = frozenset()
    state: tuple[str, ...] = ("h",)
    gates: bool = False
    any_threads: bool = False
    bf16: bool = False

    def load(self) -> Cell:
        """Its functions. Loads torch."""
        cell: Cell = importlib.import_module(f"tidegate.model.cells.{self.module}").cell
        return cell


_GRU_OPTIONS = frozenset(
    {
        "reset",
        "layer_norm",
        "recurrent_dropout",
        "zoneout",
        "learn_initial_state",
        "init",
        "update_bias",
        "checkpoint_every",
    }
)

CELLS = {
    "gru": Row("GRU", "the gated recurrent unit", "gru", _GRU_OPTIONS, gates=True, any_threads=True, bf16=True),
    "mingru": Row(
        "minGRU",
        "a GRU whose gates read the input alone, trained on all steps at once",
        "mingru",
        frozenset({"learn_initial_state", "update_bias"}),
        gates=True,
        any_threads=True,
    ),
    "lstm": Row("LSTM", "torch.nn.LSTM, to compare with", "lstm", state=("h", "c")),
    "rnn": Row("plain RNN", "torch.nn.RNN, to compare with", "rnn"),
    "none": Row(
        "no recurrence", "the same head on the inputs, the no-memory baseline", "none", state=(), any_threads=True
    ),
}


def gated() -> list[str]:
    """The cells whose gates can be seen."""
    return [name for name, row in CELLS.items() if row.gates]


def parts_of(state: State) -> tuple[Tensor, ...]:
    """The parts of a state, in the order of `Row.state`."""
    return () if state is None else state if isinstance(state, tuple) else (state,)


def state_of(parts: tuple[Tensor, ...]) -> State:
    """The state that has these parts."""
    return None if not parts else parts if len(parts) > 1 else parts[0]
