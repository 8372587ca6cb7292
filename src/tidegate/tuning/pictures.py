"""The pictures of a search as SVG text, in the style of the other reports: the trials one after the other, and each parameter's values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from tidegate.report.charts import STYLE, in_short, nice_ticks
from tidegate.trained.comparison import nice, number
from tidegate.tuning.record import FINISHED, PRUNED, Trial, Tuned
from tidegate.tuning.space import Choice, Range, Value, parse, text_of

WIDE, SMALL = (720, 300), (236, 190)
WORST = 3.0  # as far below the median as the best is above it, times this: trials that are worse are drawn on the edge
# Beside the colours of the line charts: a trial, the best one, the defaults, one that was pruned.
MARKS = (
    "<style>.tn .f{fill:currentColor}.tn .p{fill:none;stroke:currentColor;stroke-opacity:.55}"
    ".tn .b{fill:none;stroke:currentColor;stroke-width:2}</style>"
)


def pictures(tuned: Tuned) -> list[tuple[str, str]]:
    """(title, SVG): the trials in order, then how the figure went with each parameter. Nothing where no trial is finished."""
    trials = _drawn(tuned)
    if tuned.best is None:
        return []
    scale = _Scale(tuned, trials)
    names = list(tuned.definition.space)
    return [
        ("Trials", _in_order(tuned, trials, scale)),
        *((name, _of_parameter(tuned, trials, scale, name)) for name in names),
    ]


def _drawn(tuned: Tuned) -> list[Trial]:
    return [
        t for t in tuned.trials if t.state in (FINISHED, PRUNED) and t.figure is not None and math.isfinite(t.figure)
    ]


class _Scale:
    """The axis of the figure, the same in all pictures."""

    def __init__(self, tuned: Tuned, trials: Sequence[Trial]) -> None:
        best = tuned.best
        assert best is not None
        assert best.figure is not None
        sign = 1 if tuned.definition.more_is_better else -1
        finished = sorted(sign * t.figure for t in trials if t.state == FINISHED and t.figure is not None)
        middle, top = statistics.median(finished), sign * best.figure
        # The defaults and nine of ten finished trials are seen where they are.
        seen = [
            finished[len(finished) // 10],
            *(sign * t.figure for t in trials if t.defaults and t.figure is not None),
        ]
        edge = min([middle - WORST * (top - middle), *seen])
        worst = max(edge, min(sign * t.figure for t in trials if t.figure is not None))
        self.ticks = nice_ticks(min(sign * worst, sign * top), max(sign * worst, sign * top), 4)

    def up(self, figure: float, top: float, bottom: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        share = (min(max(figure, first), last) - first) / (last - first)
        return bottom - share * (bottom - top)

    def lines(self, left: float, right: float, top: float, bottom: float) -> list[str]:
        out = []
        for tick in self.ticks:
            y = self.up(tick, top, bottom)
            out.append(f'<line class="a" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(f'<text class="t" text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{in_short(tick)}</text>')
        return out


def _svg(title: str, size: tuple[int, int], inside: Sequence[str]) -> str:
    head = (
        f'<svg class="lc tn" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">'
    )
    return "\n".join([head, STYLE, MARKS, *inside, "</svg>"])


def _mark(trial: Trial, x: float, y: float, told: str, best: Trial | None) -> list[str]:
    """A trial: a dot where it is finished, a small ring where it was pruned; around the best one a ring, around the defaults a square."""
    pruned = trial.state == PRUNED
    colour, kind, radius = ("l2", "p", 2.5) if pruned else ("l0", "f", 3.2)
    out = [
        f'<circle class="{colour} {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(told)}</title></circle>'
    ]
    if best is not None and trial.number == best.number:
        out.append(f'<circle class="l1 b" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    if trial.defaults:
        out.append(f'<rect class="l3 b" x="{x - 5.5:.1f}" y="{y - 5.5:.1f}" width="11" height="11"/>')
    return out


def _told(tuned: Tuned, trial: Trial) -> str:
    values = ", ".join(f"{name} {text_of(value)}" for name, value in (trial.settings or {}).items())
    figure = number(trial.figure if trial.figure is not None else math.nan)
    return f"trial {trial.number}, {trial.state}: {nice(tuned.definition.chosen_by)} {figure}; {values}"


def _in_order(tuned: Tuned, trials: Sequence[Trial], scale: _Scale) -> str:
    width, height = WIDE
    left, right, top, bottom = 56, width - 16, 34, height - 34
    last = max(t.number for t in trials)

    def across(n: float) -> float:
        return left + 10 + n / max(1, last) * (right - left - 20)

    title = f"Validation {nice(tuned.definition.chosen_by)} of the trials"
    out = [f'<text class="h" x="{left}" y="16">{escape(title)}</text>', *scale.lines(left, right, top, bottom)]
    for tick in nice_ticks(0, max(1, last)):
        if tick <= last and float(tick).is_integer():
            out.append(
                f'<text class="t" text-anchor="middle" x="{across(tick):.1f}" y="{bottom + 16}">{"trial " if tick == 0 else ""}{tick:g}</text>'
            )
    best: Trial | None = None
    steps: list[tuple[float, float]] = []
    for trial in sorted(tuned.of(FINISHED), key=lambda t: t.number):
        if trial.figure is None:
            continue
        more = tuned.definition.more_is_better
        if best is None or trial.rank(more)[:2] > best.rank(more)[:2]:
            if steps:
                steps.append((across(trial.number), steps[-1][1]))
            best = trial
            steps.append((across(trial.number), scale.up(trial.figure, top, bottom)))
    steps.append((across(last), steps[-1][1]))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in steps)
    out.append(f'<polyline class="c l1" points="{points}"/>')
    for trial in trials:
        assert trial.figure is not None
        out += _mark(trial, across(trial.number), scale.up(trial.figure, top, bottom), _told(tuned, trial), tuned.best)
    return _svg(title, WIDE, out)


def _of_parameter(tuned: Tuned, trials: Sequence[Trial], scale: _Scale, name: str) -> str:
    width, height = SMALL
    left, right, top, bottom = 50, width - 12, 30, height - 26
    parameter = parse(name, tuned.definition.space[name])
    tried = [(t, (t.settings or {}).get(name)) for t in trials]
    if isinstance(parameter, Range):
        numbers = [value for _, value in tried if isinstance(value, int | float)]
        across, axis = _along(parameter, numbers, left, right)
        tried = [(t, value) for t, value in tried if isinstance(value, int | float)]
    else:
        across, axis = _among(parameter, [value for _, value in tried], left, right)
    out = [f'<text class="h" x="{left}" y="15">{escape(name)}</text>', *scale.lines(left, right, top, bottom)]
    for text, x, anchor in axis:
        out.append(f'<text class="t" text-anchor="{anchor}" x="{x:.1f}" y="{bottom + 16}">{escape(text)}</text>')
    spread = 0 if isinstance(parameter, Range) else min(12.0, 60 / len(parameter.values))
    for k, (trial, value) in enumerate(tried):
        assert trial.figure is not None
        beside = spread * (k * 5 % 11 - 5) / 5  # so that trials with the same value don't hide each other
        out += _mark(
            trial, across(value) + beside, scale.up(trial.figure, top, bottom), _told(tuned, trial), tuned.best
        )
    return _svg(f"{name} and the validation {nice(tuned.definition.chosen_by)}", SMALL, out)


Axis = tuple[Callable[[Any], float], list[tuple[str, float, str]]]
"""Where a value stands, and the labels: text, place, anchor."""


def _along(parameter: Range, values: Sequence[float], left: float, right: float) -> Axis:
    """The axis of a range; of the defaults, too, where they lie outside of it."""
    low, high = min([parameter.low, *values]), max([parameter.high, *values])
    log = parameter.log and low > 0

    def across(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return left + 8 + share * (right - left - 16)

    labels = [(f"{low:g}", left + 2, "start"), (f"{high:g}", right - 2, "end")]
    return across, [*labels, ("log", (left + right) / 2, "middle")] if log else labels


def _among(parameter: Choice, values: Sequence[Value], left: float, right: float) -> Axis:
    """The axis of a list: a column a value."""
    texts = list(dict.fromkeys(text_of(value) for value in (*parameter.values, *values)))
    place = {text: left + (k + 0.5) / len(texts) * (right - left) for k, text in enumerate(texts)}
    return lambda value: place[text_of(value)], [(_short(t, len(texts)), x, "middle") for t, x in place.items()]


def _short(text: str, values: int) -> str:
    """A value below its column, as much of it as there is room for."""
    most = max(4, 28 // values)
    return text if len(text) <= most else text[: most - 1] + "…"
