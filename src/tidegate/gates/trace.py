"""`GateTrace`: what the gates of a layer did."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from tidegate.errors import SettingsError
from tidegate.gates.gates import Gates
from tidegate.gates.statistics import Counter, UnitStatistics

if TYPE_CHECKING:
    import polars
    from matplotlib.figure import Figure


class Saturation(NamedTuple):
    """The share of steps, for each unit [H], at which a gate is below 0.1 (shut) or above 0.9 (open)."""

    update_near_0: Tensor
    """The unit writes its candidate and forgets."""
    update_near_1: Tensor
    """The unit keeps what it has."""
    reset_near_0: Tensor | None
    """The candidate doesn't see the old state. None: there is no reset gate."""
    reset_near_1: Tensor | None
    """The candidate sees all of it."""


class GateTrace(Mapping[str, Gates]):
    """The gates of every layer and direction, by name: "l0", "l0_reverse", "l1" ..., as the weights are called.

    `trace["l0"].update` and `trace.update["l0"]` are the same tensor. All of them are part of the autograd graph, so that
    a loss may be put on them. Past a sequence's end all are 0.
    """

    def __init__(
        self,
        output: Any,
        h_n: Tensor,
        layers: list[tuple[Tensor, Tensor]],
        wrap: Callable[[Tensor], Any],
        *,
        fields: Sequence[str] = ("reset", "update", "candidate", "recurrent"),
        batch_first: bool = False,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        zoneout: float = 0.0,
    ) -> None:
        """layers: what a back end's `trace` found, of each its states and gates [D, ..., fields, H]; wrap: from time first to
        the layout of the output, which batch_first and lengths [B] describe. Gates are cut out when they are first asked
        for.
        """
        self.output = output
        """What `forward` returns first."""
        self.h_n = h_n
        """And second."""
        self._layers, self._wrap, self._fields = layers, wrap, tuple(fields)
        self._batch_first, self._lengths, self._resets, self._zoneout = batch_first, lengths, resets, zoneout
        self._found: dict[str, Gates] = {}
        self._counted: dict[str, UnitStatistics] = {}
        D = layers[0][1].size(0)
        self._places = {f"l{k}" + "_reverse" * d: (k, d) for k in range(len(layers)) for d in range(D)}

    def __getitem__(self, name: str) -> Gates:
        if name not in self._found:
            if name not in self._places:
                raise KeyError(f"No layer {name!r} in this trace; there are {', '.join(self._places)}.")
            k, d = self._places[name]
            states, gates = self._layers[k]
            H = gates.size(-1)
            parts = dict.fromkeys(Gates._fields) | {
                field: self._wrap(gates[d, ..., i, :]) for i, field in enumerate(self._fields)
            }
            self._found[name] = Gates(**parts | {"hidden": self._wrap(states[..., d * H : (d + 1) * H])})
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _all(self, field: str) -> dict[str, Any]:
        """Empty where the layer has no such gate."""
        found = {name: getattr(gates, field) for name, gates in self.items()}
        return {name: v for name, v in found.items() if v is not None}

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

    # --- what was seen ----------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, UnitStatistics]:
        """Of every layer and direction, what its units did over all steps and sequences of the trace (padding not
        counted): memory length, saturation, range. Computed once.

        Raises ValueError where the trace has no step.
        """
        if not self._counted:
            for name in self:
                gates, lengths = self._by_time(name)
                counter = Counter(name.endswith("_reverse"), self._zoneout)
                resets = None if self._resets is None else self._resets.detach()
                if resets is not None:
                    resets = resets.unsqueeze(1) if resets.dim() == 1 else resets.T
                    resets = resets[: gates.update.size(0)]  # a packed batch may be shorter than its resets
                counter.add(gates, lengths, resets)
                self._counted[name] = counter.result()
        return self._counted

    def memory_length_steps(self) -> dict[str, Tensor]:
        """How long each unit remembers: after how many steps half of what it holds is forgotten, [H] for each layer.

        What is in the state after step t is scaled by z_{t+1} z_{t+2} ... z_{t+k} k steps later; the length is the first
        k at which that is at most 1/2, as a median over all t. 1: half is gone a step later. inf: most often the
        sequence ended first. See `UnitStatistics` for how those are counted.

        >>> import torch, tidegate
        >>> layer = tidegate.GRU(3, 2)
        >>> with torch.no_grad():
        ...     for weight in layer.parameters():
        ...         _ = weight.zero_()
        ...     layer.bias_ih_l0[2:4] = torch.tensor([0.0, 4.6])          # z = 0.5 and z = 0.99
        >>> layer.trace(torch.zeros(200, 1, 3)).memory_length_steps()["l0"].tolist()
        [1.0, 70.0]
        """
        return {name: torch.from_numpy(s.memory_length_steps) for name, s in self.statistics().items()}

    def saturation(self) -> dict[str, Saturation]:
        """For each layer the share of steps, unit by unit, at which its gates are nearly shut (below 0.1) or open (above
        0.9), after Karpathy, Johnson and Li 2015 (arXiv:1506.02078).
        """
        out = {}
        for name, s in self.statistics().items():
            shares = {field: torch.from_numpy(share) for field, share in s.shares.items()}
            out[name] = Saturation(
                shares["update_near_0"], shares["update_near_1"], shares.get("reset_near_0"), shares.get("reset_near_1")
            )
        return out

    def sequence(self, index: int = 0) -> dict[str, Gates]:
        """The gates of one sequence of the batch, every field [T, H] with T its own length, detached, on the CPU and, of half
        types, as float32.
        """
        out = {}
        for name in self:
            gates, lengths = self._by_time(name)
            if not -len(lengths) <= index < len(lengths):
                raise SettingsError(
                    f"sequence {index}: the trace has {len(lengths)} sequences, 0 to {len(lengths) - 1}."
                )
            out[name] = gates.map(partial(_one_sequence, index=index, length=int(lengths[index])))
        return out

    def to_frame(self) -> polars.DataFrame:
        """A row for each layer, sequence, step and unit, with `update`, `reset` (if there is one), `candidate` and `hidden`.

        Steps count from 1, as rows do and as h_1 is the first state; sequences and units are indices, from 0. Padding is
        left out. Needs polars (`pip install 'tidegate[train]'`).
        """
        pl = _need("polars", "to_frame()")
        sequences = [self.sequence(s) for s in range(len(self._by_time(next(iter(self)))[1]))]
        empty = {name: self._by_time(name)[0].map(lambda v: torch.zeros(0, v.size(-1))) for name in self}
        number = pl.lit(0, pl.Int32).alias("sequence")
        frames = [
            gates_frame(name, gates).insert_column(1, number) for name, gates in empty.items()
        ]  # of no sequence at all
        for name in self:
            for s, gates in enumerate(sequences):
                frames.append(gates_frame(name, gates[name]).insert_column(1, pl.lit(s, pl.Int32).alias("sequence")))
        return pl.concat(frames)

    def plot(self, sequence: int = 0, layer: str | None = None) -> Figure:
        """Heat maps of update gate, reset gate (if there is one), candidate and state over the steps of one sequence, the units that remember
        longest on top. A matplotlib figure: `trace.plot().savefig("gates.png")`.

        sequence: which one of the batch. layer: "l0", "l0_reverse" ...; None: all of them side by side.
        Raises SettingsError for one that isn't there. Needs matplotlib (`pip install 'tidegate[train]'`).
        """
        _need("matplotlib", "plot()")
        from tidegate.gates.pictures import heat_maps

        gates = self.sequence(sequence)
        if layer is not None and layer not in gates:
            raise SettingsError(f"layer={layer!r}: this trace has {', '.join(gates)}.")
        shown = list(gates) if layer is None else [layer]
        statistics = self.statistics()
        return heat_maps({name: gates[name] for name in shown}, {name: statistics[name].order for name in shown})

    def _by_time(self, name: str) -> tuple[Gates, Tensor]:
        """The gates as [T, B, H] and the sequences' lengths [B], whatever layout they are in."""
        gates = self[name]
        first = gates.update
        if isinstance(first, PackedSequence):
            return gates.map(lambda v: pad_packed_sequence(v)[0]), pad_packed_sequence(first)[1]
        if first.is_nested:
            lengths = torch.tensor([len(piece) for piece in first.unbind()])
            return gates.map(lambda v: pad_sequence(list(v.unbind()))), lengths
        if first.dim() == 2:
            gates = gates.map(lambda v: v.unsqueeze(1))
        elif self._batch_first:
            gates = gates.map(lambda v: v.transpose(0, 1))
        T, B = gates.update.shape[:2]
        return gates, torch.full((B,), T) if self._lengths is None else self._lengths.cpu()

    def __repr__(self) -> str:
        lines = [f"  {name}: {getattr(gates.hidden, 'shape', 'packed')}" for name, gates in self.items()]
        return "\n".join([f"GateTrace({', '.join(self._fields)}, hidden of", *lines, ")"])

    def _repr_html_(self) -> str:
        """What a notebook shows: a sentence a layer on what its units do, and the heat maps of the first sequence."""
        from tidegate.gates.sentences import described

        try:
            counted = self.statistics()
        except ValueError:
            return f"<pre>{self!r}\n\nThere is no step in it.</pre>"
        parts = [f"<p><b>{name}</b>: {' '.join(text for text, _ in described(s))}</p>" for name, s in counted.items()]
        try:
            from tidegate.gates.pictures import png
        except ModuleNotFoundError:
            return "".join(parts)  # the base package does without matplotlib
        return "".join(parts) + f'<img style="max-width: 100%" alt="gates over the steps" src="{png(self.plot())}">'


def _one_sequence(v: Tensor, index: int, length: int) -> Tensor:
    v = v[:length, index].detach().cpu()
    return v.float() if v.dtype in (torch.float16, torch.bfloat16) else v


def gates_frame(name: str, gates: Gates) -> polars.DataFrame:
    """A row a step and unit of one sequence: gates of [T, H]."""
    pl = _need("polars", "to_frame()")
    T, H = gates.update.shape
    return pl.DataFrame(
        {
            "layer": pl.repeat(name, T * H, eager=True),
            "step": torch.arange(1, T + 1, dtype=torch.int32).repeat_interleave(H).numpy(),
            "unit": torch.arange(H, dtype=torch.int32).repeat(T).numpy(),
            **{
                field: values.contiguous().view(-1).numpy()
                for field in ("update", "reset", "candidate", "hidden")
                if (values := getattr(gates, field)) is not None
            },
        }
    )


def _need(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{what} needs {module}, which is not installed: pip install 'tidegate[train]'", name=error.name
        ) from error
