"""`Inspection`: all there is to see of a run on one sequence, found once, shown as a page, a picture or numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from torch import Tensor

from tidegate.errors import SettingsError
from tidegate.files import write_text
from tidegate.gates.diagram import StepValues, shortened
from tidegate.gates.gates import Equations, Gates
from tidegate.gates.sentences import described
from tidegate.gates.statistics import UnitStatistics
from tidegate.gates.trace import gates_frame
from tidegate.inspection.lean import Lean
from tidegate.inspection.sequence import InputColumn
from tidegate.model.tasks import Output
from tidegate.pages import jsonable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Layer:
    """One layer in one direction: its gates [T, H] over the steps shown, what goes into them, and its units' statistics.

    input_part, state_part, before: what the gates are made of, as `equations` says; see `gates.gates.Parts`.
    """

    name: str
    gates: Gates
    input_part: Tensor
    state_part: Tensor | None
    before: Tensor
    statistics: UnitStatistics
    equations: Equations = Equations()  # noqa: RUF009 (frozen)

    @property
    def title(self) -> str:
        number, _, direction = self.name[1:].partition("_")
        return f"layer {int(number) + 1}, {'backward' if direction else 'forward'} in time"

    def inputs(self) -> dict[str, Tensor]:
        """The input's part of each gate, [T, H], by its letter."""
        return self._by_gate(self.input_part)

    def states(self) -> dict[str, Tensor]:
        """The state's part of each gate that reads the state, [T, H], by its letter."""
        return {} if self.state_part is None else self._by_gate(self.state_part)

    def _by_gate(self, stacked: Tensor) -> dict[str, Tensor]:
        gates = self.equations.gates
        return dict(zip(gates, stacked.chunk(len(gates), dim=1), strict=True))


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
    def ahead(self) -> int:
        """How many values are predicted at once, 1 without a horizon."""
        return max(self.horizon, 1)

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
        """A row for each layer, step and unit: update, reset (where there is one), candidate and hidden. Steps count from 1, units from 0."""
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
        parts = {f"input_{gate}": float(part[t, u]) for gate, part in found.inputs().items()}
        states = {f"state_{gate}": float(part[t, u]) for gate, part in found.states().items()}
        if found.gates.recurrent is not None:
            states["state_n"] = float(found.gates.recurrent[t, u])
        words = next((c for c in self.columns if c.kind == "words"), None)
        what = words.values[t] if words is not None else self.times[t] if self.times else None
        said = f" ({shortened(str(what))})" if what is not None else ""
        where = f"unit {u} of {found.title}, at step {step} of {self.length}{said} of {shortened(self.sequence)}"
        backward = found.name.endswith("_reverse")
        return StepValues(where, **parts, **states, h=float(found.before[t, u]), backward=backward)

    def leaning_outputs(self) -> list[str]:
        """Which output the lean of each prediction is of: the largest in size, where there are several."""
        several = self.ahead > 1
        names = [f"{o.name}{f', {k + 1} ahead' if several else ''}" for k in range(self.ahead) for o in self.outputs]
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
