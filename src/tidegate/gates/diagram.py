"""Mermaid diagrams: one step of a GRU, and the way of a row through a whole model. Text only, no torch.

Mermaid is drawn by GitHub, GitLab and many editors where it stands in a fenced block marked `mermaid`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Column", "ModelShape", "StepValues", "flow_diagram", "sequence_diagram"]

_POOLING = {
    "last": "last step",
    "mean": "mean over the steps",
    "max": "maximum over the steps",
    "last+max+mean": "last step, maximum and mean over the steps",
}
_LONGEST_NAME = 60
_MOST_COLUMNS = 12  # a picture with more boxes than this in a row can't be read


@dataclass(frozen=True)
class Column:
    """A column of the table: what it is called, what it is ("number", "category", ...), and in how many values."""

    name: str
    kind: str
    width: int


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model: feature encoder -> recurrent core -> head.

    cell: "none" where there is no core. title: the cell's name; None: the cell in capitals. layer_parameters: how many a direction of
    each layer has; empty: as in `torch.nn.GRU`.
    """

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    cell: str = "gru"
    per: Literal["step", "sequence"] = "step"
    pooling: Literal["last", "mean", "max", "last+max+mean"] = "mean"  # with per="sequence"
    horizon: int = 0  # values predicted ahead, in one go
    residual: bool = False  # a forecast that is added to the last known value
    title: str | None = None
    layer_parameters: tuple[int, ...] = ()

    @property
    def input_size(self) -> int:
        return sum(column.width for column in self.inputs)


@dataclass(frozen=True)
class StepValues:
    """The numbers of one unit at one step of a real sequence.

    where: the step and the unit in words. input_r, input_z, input_n: W_i x + b_i; state_r, state_z: W_h h + b_h; state_n: what
    r multiplies, W_hn h + b_hn (with reset="before": W_hn (r·h) + b_hn, which stands as it is); h: the old state. What the cell
    doesn't have (a minGRU no reset gate and no state's parts) is 0 and not shown.
    """

    where: str
    input_r: float = 0.0
    state_r: float = 0.0
    input_z: float = 0.0
    state_z: float = 0.0
    input_n: float = 0.0
    state_n: float = 0.0
    h: float = 0.0
    backward: bool = False  # a direction that reads from the last step to the first


def sequence_diagram(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    reset: Literal["after", "before"] | None = "after",
    values: StepValues | None = None,
    *,
    layer_norm: bool = False,
    zoneout: float = 0.0,
) -> str:
    """A Mermaid sequence diagram of one GRU step: who sends what to whom, and what each makes of it.

    x is the input of the step, h the old state, h' the new one. W x is a matrix product, a dot multiplies
    value by value, σ is the logistic function. z = 1 keeps the old state.

    reset: where the reset gate falls; None: there is none, the step is that of a minGRU. layer_norm, zoneout: as in
    `tidegate.GRU`. values: the numbers of one unit, which then stand beside each equation.

    >>> print(sequence_diagram(10, 20).splitlines()[1].strip())
    participant X as Input x (10)
    """
    x, h, units = f"Input x ({input_size})", f"Hidden state h ({hidden_size})", f"({hidden_size})"
    lines = ["sequenceDiagram", f"    participant X as {x}", f"    participant Z as Update gate z {units}"]
    if reset is not None:
        lines.append(f"    participant R as Reset gate r {units}")
    lines += [f"    participant C as Candidate n {units}", f"    participant H as {h}"]
    said = _said(values, reset, zoneout) if values is not None else {}
    if values is not None:
        lines.append(f"    Note over X,H: {escape(values.where)}")

    def message(sender: str, receiver: str, text: str) -> None:
        number = said.get(f"{sender}{receiver}")
        lines.append(f"    {sender}->>{receiver}: {text}{f' → {number}' if number else ''}")

    def note(over: str, text: str) -> None:
        number = said.get(over)
        lines.append(f"    Note over {over}: {text}{f'<br/>{number}' if number else ''}")

    def of_x(gate: str) -> str:
        return f"{_product(f'W_i{gate} x', layer_norm)} + b_i{gate}"

    def of_h(gate: str, state: str = "h") -> str:
        return f"{_product(f'W_h{gate} {state}', layer_norm)} + b_h{gate}"

    message("X", "Z", "x")
    if reset is None:  # no gate reads the state
        note("Z", "z = σ(W_z x + b_z)")
        message("X", "C", "x")
        note("C", "n = g(W_h x + b_h), g(v) = v + 1/2 where v ≥ 0, else σ(v)")
    else:
        message("H", "Z", "h")
        note("Z", f"z = σ({of_x('z')} + {of_h('z')})")
        message("X", "R", "x")
        message("H", "R", "h")
        note("R", f"r = σ({of_x('r')} + {of_h('r')})")
        message("X", "C", "x")
        message("R", "C", f"r·({of_h('n')})" if reset == "after" else "r·h")
        inner = f"r·({of_h('n')})" if reset == "after" else of_h("n", "(r·h)")
        note("C", f"n = tanh({of_x('n')} + {inner})")
    message("C", "H", "n")
    message("Z", "H", "z")
    new = "p·h + (1 - p)·((1 - z)·n + z·h)" if zoneout else "(1 - z)·n + z·h"
    note("H", f"h' = {new}" + ("" if values is not None else "<br/>z = 1 keeps the old state"))
    if layer_norm:
        lines.append("    Note over X,H: LN is layer norm, of r and z together, times a gain")
    if zoneout:
        lines.append(f"    Note over X,H: p = {zoneout:g} is zoneout, which keeps that much of h in any case")
    following = "the step before it, which this direction reads next" if values and values.backward else "the next one"
    lines.append(f"    Note over X,H: h' is the output of this step and the h of {following}")
    if values is not None:  # of one layer and direction, which `where` names
        return "\n".join(lines) + "\n"
    if num_layers > 1:
        lines.append(
            f"    Note over X,H: this is layer 1 of {num_layers}. The input of each further layer is the output below it"
        )
    if bidirectional:
        lines.append("    Note over X,H: a second set of weights reads the sequence from its last step to its first")
    return "\n".join(lines) + "\n"


def _product(text: str, layer_norm: bool) -> str:
    return f"LN({text})" if layer_norm else text


def _said(v: StepValues, reset: str | None, zoneout: float) -> dict[str, str]:
    """For each message and note the number, or the equation with its numbers."""
    z = _sigma(v.input_z + v.state_z)
    if reset is None:
        n = v.input_n + 0.5 if v.input_n >= 0 else _sigma(v.input_n)
        own = {
            "XZ": f"W_z x + b_z = {_number(v.input_z)}",
            "Z": f"= σ({_number(v.input_z)}) = {_number(z)}",
            "XC": f"W_h x + b_h = {_number(v.input_n)}",
            "C": f"= g({_number(v.input_n)}) = {_number(n)}",
        }
    else:
        n, own = _with_reset(v, reset, z)
    keep = z + zoneout * (1 - z)
    mixed = f"{_number(1 - z)}·{_bracket(n)} + {_number(z)}·{_bracket(v.h)}"
    if zoneout:
        mixed = f"{_number(zoneout)}·{_bracket(v.h)} + {_number(1 - zoneout)}·({mixed})"
    return own | {
        "CH": _number(n),
        "ZH": f"{_number(z)}, keeps {keep:.0%}",
        "H": f"= {mixed} = {_number((1 - keep) * n + keep * v.h)}",
    }


def _with_reset(v: StepValues, reset: str, z: float) -> tuple[float, dict[str, str]]:
    """The candidate, and what is sent and made on the way to it."""
    r = _sigma(v.input_r + v.state_r)
    passed = r * v.state_n if reset == "after" else v.state_n
    n = math.tanh(v.input_n + passed)
    return n, {
        "XZ": f"W_iz x + b_iz = {_number(v.input_z)}",
        "HZ": f"W_hz h + b_hz = {_number(v.state_z)}",
        "Z": f"= σ({_number(v.input_z)} {_signed(v.state_z)}) = {_number(z)}",
        "XR": f"W_ir x + b_ir = {_number(v.input_r)}",
        "HR": f"W_hr h + b_hr = {_number(v.state_r)}",
        "R": f"= σ({_number(v.input_r)} {_signed(v.state_r)}) = {_number(r)}",
        "XC": f"W_in x + b_in = {_number(v.input_n)}",
        "RC": f"{_number(r)}·{_bracket(v.state_n)} = {_number(passed)}" if reset == "after" else f"{_number(r)}·h",
        "C": f"= tanh({_number(v.input_n)} {_signed(passed)}) = {_number(n)}",
    }


def _sigma(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v > -700 else 0.0


def _number(v: float) -> str:
    return f"{v:.3f}".replace("-0.000", "0.000").replace("-", "−")


def _signed(v: float) -> str:
    return f"− {_number(-v)}" if v < 0 else f"+ {_number(v)}"


def _bracket(v: float) -> str:
    return f"({_number(v)})" if v < 0 else _number(v)


def flow_diagram(shape: ModelShape) -> str:
    """A Mermaid flowchart of a whole model: columns, features, recurrent layers, summary, head, prediction."""
    lines = ["flowchart TD"]

    def node(name: str, *label: str, ends: tuple[str, str] = ('["', '"]')) -> str:
        lines.append(f"    {name}{ends[0]}{'<br/>'.join(label)}{ends[1]}")
        return name

    def arrow(origin: str, target: str) -> None:
        lines.append(f"    {origin} --> {target}")

    shown = _few(shape.inputs)
    lines.append('    subgraph row["the columns of one step"]')
    columns = [node(f"x{i}", *_column(c)) for i, c in enumerate(shown)]
    lines.append("    end")
    width = shape.input_size
    features = node("features", "features of the step", _count(width, "value"))
    for column in columns:
        arrow(column, features)

    below = features
    if shape.cell != "none":
        directions = ("forward", "backward") if shape.bidirectional else ("forward",)
        for layer in range(1, shape.num_layers + 1):
            parameters = 3 * shape.hidden_size * (width + shape.hidden_size + 2)  # r, z, n, with torch's two biases
            if shape.layer_parameters:
                parameters = shape.layer_parameters[layer - 1]
            joined = []
            for direction in directions:
                # Its own state goes back into it, but an arrow from a box to itself is drawn over the boxes below.
                title = f"{shape.title or shape.cell.upper()} layer {layer}"
                reads = "from first step to last" if direction == "forward" else "from last step to first"
                sizes = f"{width} → {shape.hidden_size} hidden units"
                joined.append(node(f"layer{layer}{direction}", title, reads, sizes, f"{parameters:,} parameters"))
                arrow(below, joined[-1])
            if len(joined) == 2:
                width = 2 * shape.hidden_size
                below = node(f"joined{layer}", "both directions", _count(width, "value"))
                for name in joined:
                    arrow(name, below)
            else:
                width, below = shape.hidden_size, joined[0]
    if shape.per == "sequence":
        summary = node("summary", _POOLING[shape.pooling], "one a sequence")
        width *= len(shape.pooling.split("+"))
        arrow(below, summary)
        below = summary
    scores = max(shape.horizon, 1) * sum(column.width for column in shape.outputs)
    added = ["plus the value now"] if shape.residual else []
    head = node("head", "linear head", f"{width} → {scores}", f"{(width + 1) * scores:,} parameters", *added)
    arrow(below, head)
    for i, output in enumerate(_few(shape.outputs)):
        when = [f"the next {shape.horizon} steps" if shape.horizon > 1 else "the next step"] if shape.horizon else []
        arrow(head, node(f"y{i}", *_column(output), *when, ends=('(["', '"])')))
    return "\n".join(lines) + "\n"


def _few(columns: Sequence[Column]) -> list[Column]:
    """The columns themselves, or the first ones and one that stands for the rest."""
    if len(columns) <= _MOST_COLUMNS:
        return list(columns)
    rest = columns[_MOST_COLUMNS - 1 :]
    return [*columns[: _MOST_COLUMNS - 1], Column(f"{len(rest)} more columns", "", sum(c.width for c in rest))]


def shortened(name: str) -> str:
    """A name, which loses its middle if it has more than 60 letters, or its box would dwarf the others."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else f"{name[:40]}…{name[-(_LONGEST_NAME - 41) :]}"


def _column(column: Column) -> tuple[str, str]:
    kind = f"{escape(column.kind)}, " if column.kind else ""
    return escape(shortened(column.name)), kind + _count(column.width, "value")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def escape(text: str) -> str:
    """A column's name, harmless inside a quoted Mermaid label: all but letters, digits, blank and _ - . , as codes.

    Mermaid writes a character as #NUMBER; where HTML has &#NUMBER;. Even a colon is coded, since Mermaid looks
    for "style...:...#...;" anywhere in the text. Two dollars would begin a formula, coded or not: an invisible
    space goes between them. A line break becomes a space.

    >>> escape('load [%]; "A"#1')
    'load #91;#37;#93;#59; #34;A#34;#35;1'
    """
    plain = re.sub(r"\$(?=\$)", "$\u200b", " ".join(text.split()))
    return "".join(c if c.isalnum() or c in " _-.," else f"#{ord(c)};" for c in plain) or "(no name)"
