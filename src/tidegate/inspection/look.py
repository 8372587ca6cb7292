"""A look at a run on one sequence of a table: read, traced, counted, and put together as an `Inspection`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tidegate.data.batches import Batch, BatchSource
from tidegate.data.groups import sequence_names
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import Sequences
from tidegate.data.tables import Table
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.gates.gates import Equations, Gates, Parts
from tidegate.gates.statistics import Counter
from tidegate.inspection.inspection import Inspection, Layer
from tidegate.inspection.lean import WHOLE, Stretch, lean
from tidegate.inspection.sequence import GOLDEN, InputColumn, columns_of, find, stretch
from tidegate.model import ModelSpec, SequenceModel
from tidegate.model.cells import CELLS, gated
from tidegate.model.tasks import TASKS
from tidegate.trained.evaluation import truth_of
from tidegate.trained.rows import batch_source, warn_of

if TYPE_CHECKING:
    from tidegate.trained import Trained

MOST_STATES = 60_000_000  # states of a sequence that are looked at: with their gates and parts some 4 GB
MOST_COLUMNS = 400  # steps drawn at most
MOST_CELLS = 120_000  # and cells (steps times units, of all layers), so that a browser holds and draws them with ease
FEWEST_COLUMNS = 50  # steps drawn, however many units there are
_VALUES_AT_ONCE = 12_000_000  # states in memory while counting
_FEWEST_STEPS = 1_024  # of a chunk, however wide the layers are: waits end at its border


def inspect_run(
    run: Trained,
    table: Any,
    *,
    sequence: Any = None,
    steps: Any = None,
    most_counted: int | None = 20_000,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Inspection:
    """What `Run.inspect` does; the arguments and their defaults are described there."""
    model, pre, spec = run.model, run.preprocessing, run.model.spec
    if not CELLS[spec.cell].gates:
        raise SettingsError(
            f"{run.name} has the cell {spec.cell!r}, which has no update and reset gate to look at. Inspect a run "
            f"trained with {' or '.join(f'--cell {name}' for name in gated())}."
        )
    if most_counted is not None and most_counted < 1:
        raise SettingsError(f"most_counted={most_counted}: expected at least 1 step, or None for all.")
    read = run.read(table)
    data, with_target, why_not = _sequences(pre, read, run.settings.across_gaps)
    if why_not is not None:
        warnings.warn(f"No true values are shown: {why_not}", DataWarning, stacklevel=3)
    warn_of(data.notes)
    if not len(data) or not len(data.rows):
        raise DataError(f"{read.name} has no sequence with a step in it.")
    source = batch_source(data, pre, run.device)
    names = sequence_names(read, pre, data)
    chosen = find(sequence, names, read, pre)
    begin, end = int(data.offsets[chosen]), int(data.offsets[chosen + 1])
    first, last = stretch(steps, end - begin)
    with model.evaluating(), torch.no_grad():
        trace = _trace(model, source, chosen, first, last)
        counters, counted = _count(model, source, chosen, most_counted, on_progress)
    layers = [
        Layer(name, gates, *parts, counters[name].result(), trace.equations)
        for name, (gates, parts) in trace.layers.items()
    ]
    drawn = _drawn(last - first, sum(layer.statistics.units for layer in layers))
    columns, times = _inputs(pre, read, data, spec, chosen, first, last)
    at = drawn + (first - trace.begin)
    truth = truth_of(pre, source, None) if with_target else None
    if truth is not None:
        truth = truth[chosen : chosen + 1] if pre.per == "sequence" else truth[begin + first : begin + last]
    return Inspection(
        run=run.name,
        described=_sizes(spec),
        table=read.name,
        per=pre.per,
        target=pre.target.names,
        horizon=pre.horizon,
        sequence=names[chosen],
        sequences=len(data),
        length=end - begin,
        first=first + 1,
        last=last,
        rows=data.rows[begin:end][first:last],
        times=times,
        columns=columns,
        outputs=TASKS[pre.target.task].outputs(trace.scores, truth, pre.target.with_unseen(data.unseen)),
        layers=layers,
        drawn=drawn,
        lean=lean(model, pre.target.task, trace.stretch, at, at, [c.features for c in columns], end=last - trace.begin),
        counted=counted,
    )


def _sequences(pre: Preprocessing, table: Table, across_gaps: bool) -> tuple[Sequences, bool, DataError | None]:
    """A table's sequences, whether with targets, and what is wrong with the targets that are there."""
    with_target = all(name in table.frame.columns for name in pre.target.names)
    try:
        return pre.apply(table, with_target=with_target, across_gaps=across_gaps), with_target, None
    except DataError as error:
        if not with_target:
            raise
        # (raises again where the target is not what is wrong)
        return pre.apply(table, with_target=False), False, error


def _drawn(steps: int, units: int) -> np.ndarray:
    """Which of so many steps are drawn."""
    count = min(steps, MOST_COLUMNS, max(FEWEST_COLUMNS, MOST_CELLS // units))
    return np.unique(np.linspace(0, steps - 1, count).round().astype(np.int64))


def _inputs(
    pre: Preprocessing, table: Table, data: Sequences, spec: ModelSpec, *where: int
) -> tuple[list[InputColumn], list[str] | None]:
    """The inputs and the times of the steps shown; where: the sequence, the first step, and one past the last."""
    sequence, first, last = where
    begin, end = (int(v) for v in data.offsets[sequence : sequence + 2])
    own = Table(table.frame[np.unique(data.rows[begin:end])], table.name, table.path)
    columns, times = columns_of(own, pre, spec.embedding_dims, data.codes[begin:end])
    shown = [
        replace(c, values=c.values[first:last], unknown=None if c.unknown is None else c.unknown[first:last])
        for c in columns
    ]
    return shown, None if times is None else times[first:last]


def _sizes(spec: ModelSpec) -> str:
    """The sizes of a model's core, and which options change its recurrence, in words."""
    layers, units = (
        f"{n:,} {noun}{'s' * (n != 1)}" for n, noun in ((spec.num_layers, "layer"), (spec.hidden_size, "unit"))
    )
    core = spec.core
    options = [
        "both directions" * spec.bidirectional,
        "reset before the product" * (core.reset == "before"),
        "layer norm" * core.layer_norm,
        f"zoneout {core.zoneout:g}" if core.zoneout else "",
        "a learned initial state" * core.learn_initial_state,
    ]
    return ", ".join([f"{layers} of {units}", *filter(None, options)])


class _Trace(NamedTuple):
    """A stretch of a sequence as the model read it, with what came before as far as a prediction looks back.

    begin: its first step within the sequence; stretch: all of it; layers: of the steps to be shown alone, gates and their parts;
    scores: of these steps, or of the sequence.
    """

    begin: int
    stretch: Stretch
    layers: dict[str, tuple[Gates, Parts]]
    equations: Equations
    scores: Tensor


def _trace(model: SequenceModel, source: BatchSource, sequence: int, first: int, last: int) -> _Trace:
    """Run the model over a sequence and keep the steps first:last, and before them what `lean` needs."""
    spec = model.spec
    start, end = (int(v) for v in source.data.offsets[sequence : sequence + 2])
    whole = spec.bidirectional or spec.per == "sequence"
    begin, stop = (0, end - start) if whole else (max(0, first - WHOLE), last)
    width = spec.states * spec.hidden_size
    if (stop - begin) * width > MOST_STATES:
        most = MOST_STATES // width
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
    h_0 = CELLS[spec.cell].load().fresh(model.core, spec) if state is None else state
    cut = slice(first - begin, last - begin)
    gates = {name: found.map(lambda v: v[:, 0].cpu()) for name, found in traced.gates.items()}
    layers = {
        name: (found.map(lambda v: v[cut].contiguous()), traced.gates.parts(name, 0, cut))
        for name, found in gates.items()
    }
    scores = traced.scores if spec.per == "sequence" else traced.scores[cut, 0]  # [T, K, W]
    edges = h_0[:, 0].to(traced.gates.h_n.dtype).cpu()
    return _Trace(begin, Stretch(traced.encoded, gates, edges), layers, traced.gates.equations, scores.cpu())


def _steps(source: BatchSource, start: int, end: int) -> Batch:
    return source.cut(torch.tensor([start]), torch.tensor([end - start]), torch.tensor([end]), sequences=torch.zeros(1, dtype=torch.int64))  # fmt: skip


def _count(
    model: SequenceModel, source: BatchSource, sequence: int, most: int | None, on_progress: Callable[[float], None]
) -> tuple[dict[str, Counter], str]:
    """The units' counters over whole sequences of the table, the shown one among them, and what was counted in words."""
    core: Any = model.core
    spec, lengths = model.spec, source.data.lengths
    everything = np.flatnonzero(lengths > 0)
    chosen = everything
    if most is not None and int(lengths.sum()) > most:
        # All over the table, evenly (a walk by the golden ratio), so that one in the order of time or of classes is seen
        # from end to end; the one shown first.
        walk = np.argsort((np.arange(len(everything)) * GOLDEN) % 1.0)
        order = np.append(sequence, everything[walk][everything[walk] != sequence])
        chosen = np.sort(order[: 1 + int(np.searchsorted(np.cumsum(lengths[order]), most))])
    counters: dict[str, Counter] = {}
    at_once = max(_FEWEST_STEPS, _VALUES_AT_ONCE // (spec.states * spec.hidden_size))
    chunk = None if spec.bidirectional else at_once
    done, total = 0, int(lengths[chosen].sum())
    for chunks in source.whole_sequences(None, None, chunk, only=chosen, most_steps=at_once):
        state = None
        for batch in chunks:
            here = batch.inside.sum(dim=0).cpu()
            trace = core.trace(model.encode(batch.numbers, batch.codes), state, lengths=here)
            for name, gates in trace.items():
                counter = counters.setdefault(name, Counter(name.endswith("_reverse"), trace.equations.zoneout))
                counter.add(gates, here, continued=state is not None)
            state = trace.h_n
            done += int(here.sum())
            on_progress(done / total)
    rest = f" of {len(everything):,}" if len(chosen) < len(everything) else ""
    return (
        counters,
        f"{total:,} step{'s' * (total != 1)} of {len(chosen):,}{rest} sequence{'s' * (len(everything) != 1)}",
    )
