"""`Inspection`: all there is to see of a run on one sequence, found once, shown as a page, a picture or numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import linear

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS
from tidegate.data.tables import Table
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.files import write_text
from tidegate.gates.diagram import StepValues, shortened
from tidegate.gates.gates import Gates
from tidegate.gates.sentences import described
from tidegate.gates.statistics import Counter, UnitStatistics
from tidegate.gates.trace import gates_frame
from tidegate.inspection.lean import WHOLE, Lean, lean
from tidegate.inspection.sequence import InputColumn, columns_of, find, sequence_names, stretch
from tidegate.model import ModelSpec, SequenceModel
from tidegate.model.cells import CELLS
from tidegate.model.tasks import in_units
from tidegate.trained.evaluation import truth_of
from tidegate.trained.rows import batch_source, warn_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tidegate.trained import Trained

MOST_STATES = 60_000_000  # states of a sequence that are looked at: with their gates and parts some 4 GB
MOST_COLUMNS = 400  # steps drawn at most
MOST_CELLS = 120_000  # and cells (steps times units, of all layers), so that a browser holds and draws them with ease
FEWEST_COLUMNS = 50  # steps drawn, however many units there are
TOP = 3  # classes told at every step
GOLDEN = (5**0.5 - 1) / 2
_VALUES_AT_ONCE = 12_000_000  # states in memory while counting
_FEWEST_STEPS = 1_024  # of a chunk, however wide the layers are: waits end at its border


@dataclass(frozen=True)
class Output:
    """One predicted column at every step shown (or once, with per="sequence").

    kind: "class" (values are classes), "label" (0 or 1) or "number" (in the table's units; [P, K] with K steps ahead).
    truth: None in the list where the table has none; None: the table has no such column.
    top: for classes, of each prediction the most probable ones as (class, probability). probability: of a label's 1.
    classes: all that can be predicted. Of classes several steps ahead the first one is told.
    """

    name: str
    kind: str
    values: list[Any]
    truth: list[Any] | None
    top: list[list[tuple[Any, float]]] | None = None
    probability: list[float] | None = None
    classes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One layer in one direction: its gates [T, H] over the steps shown, what goes into them, and its units' statistics.

    input_part [T, 3H]: W_i x_t + b_i, stacked r, z, n; state_part [T, 3H]: W_h h_(t-1) + b_h; before [T, H]: h_(t-1).
    """

    name: str
    gates: Gates
    input_part: Tensor
    state_part: Tensor
    before: Tensor
    statistics: UnitStatistics

    @property
    def title(self) -> str:
        number, _, direction = self.name[1:].partition("_")
        return f"layer {int(number) + 1}, {'backward' if direction else 'forward'} in time"


@dataclass(frozen=True)
class Inspection:
    """What a run's gates did on one sequence of a table. `Run.inspect` makes it.

    sequence: its name; sequences: how many the table has; first, last: the steps shown, counted from 1; length: all steps;
    rows: of the table, one a step shown. columns, outputs, layers: see these. drawn: which of the steps shown are drawn on the page (an index each); lean: what
    the predictions at these steps lean on (`per="sequence"`: the one prediction). counted: sequences and steps that the
    units' statistics were counted over, in words.
    """

    run: str
    described: str
    table: str
    per: str
    target: tuple[str, ...]
    horizon: int
    sequence: str
    sequences: int
    length: int
    first: int
    last: int
    rows: np.ndarray
    times: list[str] | None
    columns: list[InputColumn]
    outputs: list[Output]
    layers: list[Layer]
    drawn: np.ndarray
    lean: Lean
    counted: str

    @property
    def steps(self) -> int:
        """How many steps are shown."""
        return self.last - self.first + 1

    @property
    def sentences(self) -> dict[str, list[tuple[str, str]]]:
        """For each layer and direction, sentences on what its units do, each with its definitions."""
        return {layer.name: described(layer.statistics, self.counted) for layer in self.layers}

    def __repr__(self) -> str:
        lines = [f"Inspection of {self.run} on {self.sequence!r} of {self.table}, {self.steps:,} steps"]
        for layer in self.layers:
            lines += [f"  {layer.title}:", *(f"    {text}" for text, _ in self.sentences[layer.name])]
        return "\n".join(lines)

    def to_frame(self) -> pl.DataFrame:
        """A row for each layer, step and unit: update, reset, candidate and hidden. Steps count from 1, units from 0."""
        frames = [gates_frame(layer.name, layer.gates) for layer in self.layers]
        return pl.concat(frames).with_columns(pl.col("step") + (self.first - 1))

    def units_frame(self) -> pl.DataFrame:
        """A row for each layer and unit: memory length, saturation, range, kind."""
        return pl.concat(
            [
                pl.DataFrame({"layer": [layer.name] * layer.statistics.units} | layer.statistics.columns())
                for layer in self.layers
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """All numbers but the gates themselves (for those see `to_frame`), as what JSON knows; infinite and missing ones are None."""
        return jsonable(
            {
                "run": self.run,
                "table": self.table,
                "target": self.target,
                "per": self.per,
                "horizon": self.horizon,
                "sequence": self.sequence,
                "length": self.length,
                "steps": [self.first, self.last],
                "times": self.times,
                "counted": self.counted,
                "inputs": [{"name": c.name, "kind": c.kind, "values": list(c.values)} for c in self.columns],
                "outputs": [
                    {"name": o.name, "kind": o.kind, "predicted": o.values, "truth": o.truth, "top": o.top,
                     "probability": o.probability}
                    for o in self.outputs
                ],
                "lean": {
                    "of_steps": None if self.per == "sequence" else self.drawn + self.first,
                    "on_steps_from": self.drawn + self.first,
                    "reach": self.lean.reach,
                    "of_outputs": self.leaning_outputs(),
                    "steps": self.lean.steps,
                    "columns": {c.name: self.lean.columns[:, k] for k, c in enumerate(self.columns)},
                },
                "layers": [
                    {
                        "name": layer.name,
                        "sentences": [text for text, _ in self.sentences[layer.name]],
                        "units": pl.DataFrame(layer.statistics.columns()).to_dicts(),
                    }
                    for layer in self.layers
                ],
            }
        )  # fmt: skip

    def step_values(self, step: int, layer: str = "l0", unit: int | None = None) -> StepValues:
        """The numbers of one unit at one step, for `gates.diagram.sequence_diagram(..., values=...)`.

        step: counted from 1; unit: from 0, None: the one that remembers longest. Raises SettingsError for one that isn't there.
        """
        found = next((one for one in self.layers if one.name == layer), None)
        if found is None:
            raise SettingsError(f"layer {layer!r}: the run has {', '.join(one.name for one in self.layers)}.")
        H = found.statistics.units
        u = int(found.statistics.order[0]) if unit is None else unit
        if not 0 <= u < H:
            raise SettingsError(f"unit {u}: {layer} has {H} units, 0 to {H - 1}.")
        if not self.first <= step <= self.last:
            raise SettingsError(f"step {step}: steps {self.first:,} to {self.last:,} are here.")
        t = step - self.first
        parts = {f"input_{g}": float(found.input_part[t, k * H + u]) for k, g in enumerate("rzn")}
        parts |= {f"state_{g}": float(found.state_part[t, k * H + u]) for k, g in enumerate("rz")}
        words = next((c for c in self.columns if c.kind == "words"), None)
        what = words.values[t] if words is not None else self.times[t] if self.times else None
        said = f" ({shortened(str(what))})" if what is not None else ""
        where = f"unit {u} of {found.title}, at step {step} of {self.length}{said} of {shortened(self.sequence)}"
        state_n, h = float(found.gates.recurrent[t, u]), float(found.before[t, u])
        return StepValues(where, **parts, state_n=state_n, h=h, backward=found.name.endswith("_reverse"))

    def leaning_outputs(self) -> list[str]:
        """Which output the lean of each prediction is of: the largest in size, where there are several."""
        ahead = max(self.horizon, 1)
        names = [f"{o.name}{f', {k + 1} ahead' if ahead > 1 else ''}" for k in range(ahead) for o in self.outputs]
        return [names[k] for k in self.lean.outputs] if self.lean.outputs is not None else []

    def plot(self) -> Figure:
        """Inputs, predictions and the heat maps of the gates of all layers and directions as a matplotlib figure."""
        from tidegate.gates.pictures import heat_maps
        from tidegate.inspection.picture import tracks

        words = next((c for c in self.columns if c.kind == "words"), None)
        labels = None if words is None else ["" if v is None else str(v) for v in words.values]
        return heat_maps(
            {layer.name: layer.gates for layer in self.layers},
            {layer.name: layer.statistics.order for layer in self.layers},
            {layer.name: layer.title for layer in self.layers},
            labels,
            tracks(self),
            self.first,
        )

    def html(self) -> str:
        """The page: one self-contained HTML text."""
        from tidegate.inspection.page import page

        return page([self])

    def write_html(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        write_text(Path(path), self.html())

    def _repr_html_(self) -> str:
        """The page itself, inside a notebook, in a frame that can do nothing to it."""
        from html import escape

        return f'<iframe sandbox="allow-scripts" srcdoc="{escape(self.html())}" style="width: 100%; height: 60rem; border: 0" title="gates"></iframe>'


def inspect_run(
    run: Trained,
    table: Any,
    *,
    sequence: Any = None,
    steps: Any = None,
    most_counted: int | None = 20_000,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Inspection:
    """What `Run.inspect` does; the arguments and their defaults are told there."""
    model, pre = run.model, run.preprocessing
    if not CELLS[model.spec.cell].gates:
        raise SettingsError(
            f"{run.name} has the cell {model.spec.cell!r}, which has no update and reset gate to look at. Inspect a run "
            "trained with --cell gru."
        )
    if most_counted is not None and most_counted < 1:
        raise SettingsError(f"most_counted={most_counted}: expected at least 1 step, or None for all.")
    read = run.read(table)
    with_target = all(name in read.frame.columns for name in pre.target.names)
    try:
        data = pre.apply(read, with_target=with_target)
    except DataError as error:
        if not with_target:
            raise
        data = pre.apply(read, with_target=False)  # raises again where the target is not what is wrong
        warnings.warn(f"No true values are shown: {error}", DataWarning, stacklevel=3)
        with_target = False
    warn_of(data.notes)
    if not len(data) or not len(data.rows):
        raise DataError(f"{read.name} has no sequence with a step in it.")
    source = batch_source(data, pre, run.device)
    names = sequence_names(read, pre, data)
    chosen = find(sequence, names, read, pre)
    begin, end = int(data.offsets[chosen]), int(data.offsets[chosen + 1])
    first, last = stretch(steps, end - begin)
    with model.evaluating(), torch.no_grad():
        seen = _trace(model, source, chosen, first, last)
        counters, counted = _count(model, source, chosen, most_counted, on_progress)
    layers = [Layer(name, *parts, counters[name].result()) for name, parts in seen.layers.items()]
    units = sum(layer.statistics.units for layer in layers)
    count = min(last - first, MOST_COLUMNS, max(FEWEST_COLUMNS, MOST_CELLS // units))
    drawn = np.unique(np.linspace(0, last - first - 1, count).round().astype(np.int64))
    rows = data.rows[begin:end]
    own = Table(read.frame[np.unique(rows)], read.name, read.path)
    columns, times = columns_of(own, pre, model.spec.embedding_dims, data.codes[begin:end])
    columns = [
        InputColumn(
            c.name, c.kind, c.values[first:last], None if c.unknown is None else c.unknown[first:last], c.features
        )
        for c in columns
    ]
    shown_from = first - seen.begin
    leans = lean(
        model,
        pre.target.task,
        seen.encoded,
        seen.gates,
        seen.edges,
        drawn + shown_from,
        drawn + shown_from,
        [c.features for c in columns],
        last - seen.begin,
    )
    truth = truth_of(pre, source, None) if with_target else None
    if truth is not None:
        truth = truth[chosen : chosen + 1] if pre.per == "sequence" else truth[begin + first : begin + last]
    return Inspection(
        run=run.name,
        described=_sizes(model.spec),
        table=read.name,
        per=pre.per,
        target=pre.target.names,
        horizon=pre.horizon,
        sequence=names[chosen],
        sequences=len(data),
        length=end - begin,
        first=first + 1,
        last=last,
        rows=rows[first:last],
        times=None if times is None else times[first:last],
        columns=columns,
        outputs=_outputs(seen.scores, truth, pre),
        layers=layers,
        drawn=drawn,
        lean=leans,
        counted=counted,
    )


def _sizes(spec: ModelSpec) -> str:
    layers, units = (
        f"{n:,} {noun}{'s' * (n != 1)}" for n, noun in ((spec.num_layers, "layer"), (spec.hidden_size, "unit"))
    )
    return f"{layers} of {units}{', both directions' * spec.bidirectional}"


class _Seen(NamedTuple):
    """A stretch of a sequence as the model read it, with what came before as far as a prediction looks back.

    begin: its first step within the sequence; encoded [T, 1, E]; gates: by name, each field [T, H]; edges [layers * D, H]: the
    states that come into it from outside. layers: of the steps to be shown alone: gates, input part, state part and the state
    before; scores: of these steps, or of the sequence.
    """

    begin: int
    encoded: Tensor
    gates: dict[str, Gates]
    edges: Tensor
    layers: dict[str, tuple[Gates, Tensor, Tensor, Tensor]]
    scores: Tensor


def _trace(model: SequenceModel, source: BatchSource, sequence: int, first: int, last: int) -> _Seen:
    """Run the model over a sequence and keep the steps first:last, and before them what `lean` needs."""
    core: Any = model.core
    D = 2 if core.bidirectional else 1
    start, end = (int(v) for v in source.data.offsets[sequence : sequence + 2])
    whole = core.bidirectional or model.spec.per == "sequence"
    begin, stop = (0, end - start) if whole else (max(0, first - WHOLE), last)
    size = (stop - begin) * core.num_layers * D * core.hidden_size
    if size > MOST_STATES:
        most = MOST_STATES // (core.num_layers * D * core.hidden_size)
        way = "Take a shorter sequence: this run reads each from end to end." if whole else f"Show a stretch of at most {most - WHOLE:,} steps (--steps A:B)."  # fmt: skip
        raise SettingsError(
            f"The gates of {stop - begin:,} steps don't fit into memory; {most:,} do in this run. {way}"
        )
    state = None
    if begin:  # the steps before are run through, and only their last state is kept
        before = _steps(source, start, start + begin)
        _, state = model(before.numbers, before.codes, before.lengths)
    batch = _steps(source, start + begin, start + stop)
    traced = model.trace(batch.numbers, batch.codes, batch.lengths, state)
    h_0 = core.initial_state(1) if state is None else state
    cut = slice(first - begin, last - begin)
    gates, edges, layers = {}, [], {}
    x = traced.encoded[:, 0]
    for k in range(core.num_layers):
        for d in range(D):
            name = f"l{k}" + "_reverse" * d
            found = Gates(*(v[:, 0] for v in traced.gates[name]))
            edge = h_0[k * D + d].to(found.hidden.dtype)
            before_h = torch.cat([found.hidden[1:], edge] if d else [edge, found.hidden[:-1]])[cut]
            w_ih, w_hh, b_ih, b_hh = (getattr(core, f"{kind}_{name}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # fmt: skip
            parts = (linear(x[cut], w_ih, b_ih), linear(before_h, w_hh, b_hh), before_h)
            gates[name] = Gates(*(v.cpu() for v in found))
            edges.append(edge[0].cpu())
            given, kept, old = (v.cpu() for v in parts)
            layers[name] = (Gates(*(v[cut].contiguous() for v in gates[name])), given, kept, old)
        x = torch.cat([traced.gates[f"l{k}" + "_reverse" * d].hidden[:, 0] for d in range(D)], dim=-1)
    scores = traced.scores if model.spec.per == "sequence" else traced.scores[cut, 0]  # [T, K, W]
    return _Seen(begin, traced.encoded, gates, torch.stack(edges), layers, scores.cpu())


def _steps(source: BatchSource, start: int, end: int):
    return source.cut(torch.tensor([start]), torch.tensor([end - start]), torch.tensor([end]), sequences=torch.zeros(1, dtype=torch.int64))  # fmt: skip


def _count(
    model: SequenceModel, source: BatchSource, sequence: int, most: int | None, on_progress: Callable[[float], None]
) -> tuple[dict[str, Counter], str]:
    """The units' counters over whole sequences of the table, the shown one among them, and what was counted in words."""
    core: Any = model.core
    lengths = source.data.lengths
    everything = np.flatnonzero(lengths > 0)
    chosen = everything
    if most is not None and int(lengths.sum()) > most:
        # All over the table, evenly (a walk by the golden ratio), so that one in the order of time or of classes is seen
        # from end to end; the one shown first.
        walk = np.argsort((np.arange(len(everything)) * GOLDEN) % 1.0)
        order = np.append(sequence, everything[walk][everything[walk] != sequence])
        chosen = np.sort(order[: 1 + int(np.searchsorted(np.cumsum(lengths[order]), most))])
    directions = ("", "_reverse") if core.bidirectional else ("",)
    counters = {f"l{k}{end}": Counter(bool(end), core.zoneout) for k in range(core.num_layers) for end in directions}
    at_once = max(_FEWEST_STEPS, _VALUES_AT_ONCE // (len(counters) * core.hidden_size))
    chunk = None if core.bidirectional else at_once
    done, total = 0, int(lengths[chosen].sum())
    for chunks in source.whole_sequences(None, None, chunk, only=chosen, most_steps=at_once):
        state = None
        for batch in chunks:
            here = batch.inside.sum(dim=0).cpu()
            trace = core.trace(model.encode(batch.numbers, batch.codes), state, lengths=here)
            for name, counter in counters.items():
                counter.add(trace[name], here, continued=state is not None)
            state = trace.h_n
            done += int(here.sum())
            on_progress(done / total)
    rest = f" of {len(everything):,}" if len(chosen) < len(everything) else ""
    return (
        counters,
        f"{total:,} step{'s' * (total != 1)} of {len(chosen):,}{rest} sequence{'s' * (len(everything) != 1)}",
    )


def _outputs(scores: Tensor, truth: np.ndarray | None, pre: Preprocessing) -> list[Output]:
    """scores [P, K, W]; truth [P, K] or [P, K, W], as `truth_of` has it."""
    target = pre.target
    if target.task == "class":
        proba = torch.softmax(scores.double(), dim=-1)
        top = proba[:, 0].topk(min(TOP, proba.size(-1)), dim=-1)
        classes = target.classes
        values = [classes[c] for c in scores[:, 0].argmax(dim=-1).tolist()]
        best = [
            [(classes[c], p) for c, p in zip(cs, ps, strict=True)]
            for cs, ps in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        true = None
        if truth is not None:
            true = [None if c == MISSING_CLASS else classes[c] for c in truth[:, 0].tolist()]
        return [Output(target.names[0], "class", values, true, best, classes=classes)]
    out = []
    for w, name in enumerate(target.names):
        true = None
        if target.task == "labels":
            p = torch.sigmoid(scores[:, 0, w].double()).tolist()
            if truth is not None:
                true = [None if np.isnan(v) else int(v) for v in truth[:, 0, w]]
            out.append(Output(name, "label", [int(v > 0.5) for v in p], true, None, p, (0, 1)))
        else:
            numbers = in_units(scores.double().numpy(), target)[..., w].tolist()
            out.append(Output(name, "number", numbers, None if truth is None else truth[..., w].tolist()))
    return out


def jsonable(value: Any) -> Any:
    """Arrays, tuples and numpy numbers as what JSON knows; NaN and infinity as None."""
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
