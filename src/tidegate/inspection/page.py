"""The page: one self-contained HTML file. What is drawn is thinned out to fit a screen; what is counted is not."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate import __version__
from tidegate.errors import SettingsError
from tidegate.files import write_text
from tidegate.gates import sentences
from tidegate.inspection.sequence import InputColumn
from tidegate.model.tasks import Output
from tidegate.pages import jsonable, render

if TYPE_CHECKING:  # these lead here
    from tidegate.inspection.inspection import Inspection, Layer

DEFINITIONS = {
    "memory": sentences.MEMORY,
    "update": sentences.UPDATE,
    "reset": sentences.RESET,
    "candidate": sentences.CANDIDATE,
    "hidden": sentences.STATE,
    "saturated": sentences.SHUT_OPEN,
    "lean": "How much the prediction would change if the input changed a little: the length of the gradient of its score by what the model "
    "reads at each step, relative to the largest. The score is the best class's lead over the second best, or else the output that is largest in "
    "size. Shares of columns: the same by column, over all steps. (Madsen, Distill 2019.)",
}
LARGE = 16.0  # sums up to here leave gates right to 0.0002 as 16-bit numbers
_DIGITS = 6  # of the numbers of a table: more can't be told apart on a screen


def write_page(path: str | Path, views: Sequence[Inspection]) -> None:
    """Write one page with several runs side by side, on the same sequence and with one cursor.

    Raises SettingsError: they don't show the same steps, so that no cursor can point at both.
    """
    first, *others = views
    for other in others:
        if other.table != first.table or not np.array_equal(other.rows, first.rows):
            raise SettingsError(
                f"{first.run} shows {first.sequence!r}, {first.length:,} steps, and {other.run} {other.sequence!r}, {other.length:,} steps: not the "
                "same rows of the table. They were trained with another group, time or text column, so they can't be set side by side."
            )
    write_text(Path(path), page(views))


def page(views: Sequence[Inspection]) -> str:
    """The page of one run, or of several beside each other, which then share the cursor."""
    files = resources.files("tidegate.inspection") / "templates"
    script = (files / "gates.js").read_text(encoding="utf-8")
    reach = [view.lean.reach for view in views if view.lean.reach is not None]
    looked = f" Looked at here: the {max(reach):,} steps before (or around) a prediction." if reach else ""
    definitions = DEFINITIONS | {"lean": DEFINITIONS["lean"] + looked}
    if any(layer.equations.zoneout for view in views for layer in view.layers):
        definitions["memory"] += sentences.ZONEOUT
    data = {"definitions": definitions, "views": [_view(view) for view in views]}
    # Inside a script element only "<" could end the text; JSON may write it as an escape.
    text = json.dumps(jsonable(data), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    values = {
        "views": views,
        "version": __version__,
        "style": (files / "gates.css").read_text(encoding="utf-8"),
        "script": script,
        # Only the very script below runs, whatever a table's cells may hold.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": text,
    }
    return render("tidegate.inspection", "gates.html", values)


def _view(view: Inspection) -> dict[str, Any]:
    drawn = view.drawn
    return {
        "run": view.run,
        "described": view.described,
        "table": view.table,
        "sequence": view.sequence,
        "per": view.per,
        "horizon": view.horizon,
        "length": view.length,
        "shown": view.steps,
        "steps": drawn + view.first,
        "times": None if view.times is None else [view.times[k] for k in drawn],
        "columns": [_column(column, drawn, view.steps) for column in view.columns],
        "outputs": [
            {
                "name": output.name,
                "kind": output.kind,
                "values": _rounded(_at(output.values, drawn, view)),
                "truth": _rounded(_at(output.truth, drawn, view)),
                "top": [[[name, round(p, 4)] for name, p in best] for best in _at(output.top, drawn, view)]
                if output.top
                else None,
                "probability": _rounded(_at(output.probability, drawn, view)),
                "ends": _ends(output),
            }
            for output in view.outputs
        ],
        "lean": {
            "rows": _bytes(view.lean.steps),
            "columns": _shares(view.lean.columns),
            "reach": view.lean.reach,
            "outputs": view.leaning_outputs() if len(view.outputs) * view.ahead > 1 else [],
        },
        "layers": [_layer(layer, drawn, view) for layer in view.layers],
    }


def _at(values: Any, drawn: np.ndarray, view: Inspection) -> Any:
    """The values of the steps drawn; the one of a sequence as it is."""
    return values if values is None or view.per == "sequence" else [values[k] for k in drawn]


def _column(column: InputColumn, drawn: np.ndarray, steps: int) -> dict[str, Any]:
    out: dict[str, Any] = {"name": column.name, "kind": column.kind}
    if column.kind == "number":
        values = column.values
        out["values"] = _rounded(values[drawn].tolist())
        if len(drawn) < steps:  # the ends of what lies between two steps that are drawn: no peak is lost
            filled = np.where(np.isnan(values), np.inf, values)
            low = np.minimum.reduceat(filled, drawn)
            high = -np.minimum.reduceat(np.where(np.isnan(values), np.inf, -values), drawn)
            out["low"], out["high"] = _rounded(low.tolist()), _rounded(high.tolist())
        return out
    out["values"] = [column.values[k] for k in drawn]
    assert column.unknown is not None
    out["unknown"] = np.flatnonzero(column.unknown[drawn])
    return out


def _layer(layer: Layer, drawn: np.ndarray, view: Inspection) -> dict[str, Any]:
    H = layer.gates.update.shape[1]
    inputs, states = layer.inputs(), layer.states()
    fields: dict[str, Any] = {}
    for gate in "rz":
        if gate in inputs:
            fields[f"input_{gate}"] = inputs[gate]
        if gate in states:
            fields[f"sum_{gate}"] = inputs[gate] + states[gate]
    fields["input_n"] = inputs["n"]
    if layer.gates.recurrent is not None:
        fields["state_n"] = layer.gates.recurrent
    fields["h"] = layer.gates.hidden
    reverse = layer.name.endswith("_reverse")
    out: dict[str, Any] = {
        "name": layer.name,
        "title": layer.title,
        "reverse": reverse,
        "units": H,
        "order": layer.statistics.order,
        "edge": _rounded(layer.before[-1 if reverse else 0].tolist()),
        "longest": layer.statistics.longest,
        "long": layer.statistics.long,
        "statistics": {
            name: _rounded(values.tolist()) if name != "kind" else values
            for name, values in layer.statistics.columns().items()
            if name != "unit"
        },
        "sentences": view.sentences[layer.name],
    }
    if layer.equations.changed():  # the script knows those of torch
        out["equations"] = layer.equations.changed()
    if len(drawn) < view.steps:  # the step before one that is drawn is not drawn itself
        fields["before"] = layer.before
    out["fields"] = {name: _numbers(values.numpy()[drawn]) for name, values in fields.items()}
    return out


def _ends(output: Output) -> list[float] | None:
    """The smallest and the largest number predicted or true, one step ahead, at all steps shown, drawn or not."""
    if output.kind != "number":
        return None
    both = np.array([v[0] for v in [*output.values, *(output.truth or [])]], dtype=float)
    return _rounded([float(np.nanmin(both)), float(np.nanmax(both))])


def _numbers(values: np.ndarray) -> dict[str, Any]:
    """[P, H], unit by unit: as 16-bit whole numbers, each unit with the size of its own step, so that at most 1/65,534 of its
    largest value is lost. Where that could be seen (a wild input makes sums in the hundreds), as float32, with no scale.
    """
    size = np.abs(values).max(axis=0)
    if size.max(initial=0.0) > LARGE:
        return {"scale": None, "values": _base64(values.T.astype("<f4"))}
    scale = np.where(size > 0, size, 1.0) / 32767
    whole = np.round(values / scale).astype("<i2")
    return {"scale": [float(f"{s:.7g}") for s in scale], "values": _base64(whole.T)}


def _bytes(values: np.ndarray) -> str:
    """Rows as bytes, each relative to its largest."""
    top = values.max(axis=1, keepdims=True, initial=0.0)
    return _base64(np.round(255 * values / np.where(top > 0, top, 1.0)).astype(np.uint8))


def _shares(values: np.ndarray) -> list[list[float]]:
    total = values.sum(axis=1, keepdims=True)
    return [[round(v, 3) for v in row] for row in (values / np.where(total > 0, total, 1.0)).tolist()]


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [_rounded(v) for v in values]
    return float(f"{values:.{_DIGITS}g}") if isinstance(values, float) else values
