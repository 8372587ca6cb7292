"""Line charts as SVG text: no script, no network, light and dark by the reader's own preference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby

from tidegate.trained.comparison import number

MOST_DOTS = 40  # a line of more points is drawn without dots
LABEL_HEIGHT = 13
# Lines differ in colour and in dashes, and carry their names: none of these is needed to tell them apart. Colours have at
# least 4.5 : 1 of contrast to a white page, and to a black one in the dark scheme.
LIGHT = ("#0b7285", "#c2410c", "#5f6770", "#6741d9")
DARK = ("#3bc9db", "#ff922b", "#ced4da", "#b197fc")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
SAMPLE = 20  # width of the bit of line beside its name
STYLE = "".join(
    [
        "<style>.lc .a{stroke:#888;stroke-opacity:.35}.lc .t{fill:#666;font-size:11px}.lc .h{fill:#333;font-size:13px;font-weight:600}",
        ".lc .c{fill:none;stroke:currentColor;stroke-width:2}.lc .e{stroke:currentColor;stroke-opacity:.6}",
        ".lc .b{fill:currentColor;fill-opacity:.11}.lc .d{fill:currentColor}.lc .o{fill-opacity:0}.lc .k{fill:currentColor;font-size:11.5px}",
        *(f".lc .l{k}{{color:{c}}}" for k, c in enumerate(LIGHT)),
        "@media (prefers-color-scheme:dark){.lc .h{fill:#ddd}.lc .t{fill:#aaa}",
        *(f".lc .l{k}{{color:{c}}}" for k, c in enumerate(DARK)),
        "}</style>",
    ]
)

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    mark: float | None = None,
    *,
    x_name: str = "epoch",
    log: bool = False,
    floor: float = 1e-12,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    size: tuple[int, int] = (460, 250),
    pointed: bool = True,
) -> str:
    """Curves as one SVG element, each with its name at its right end. "" where there is no finite point.

    lines: (x, y) points by name; NaN leaves a gap, and an infinite y is drawn as ∞ on the upper edge.
    mark: an epoch to point at (the best one).   x_name: what x counts.
    log: a logarithmic scale of y, that goes no lower than `floor`; a line that leaves it ends on the lower edge.
    bands: (x, low, high) around the line of that name.   pointed: whether each point says its numbers under the pointer.
    """
    width, height = size
    names = list(lines)
    left, right = 56, round(18 + SAMPLE + 6.6 * max((len(n) for n in names), default=0))
    top, bottom = 30 if mark is None else 38, 34
    shown = [p for line in lines.values() for p in line if math.isfinite(p[1]) and (p[1] > 0 or not log)]
    if not shown:
        return ""
    edges = [v for band in (bands or {}).values() for _, *ends in band for v in ends]
    values = [y for _, y in shown] + [v for v in edges if math.isfinite(v) and (v > 0 or not log)]
    x0 = min(p[0] for line in lines.values() for p in line)
    x1 = max(p[0] for line in lines.values() for p in line)
    ticks = decades(min(values), max(values), floor) if log else nice_ticks(min(values), max(values))
    y0, y1 = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return left + ((x - x0) / (x1 - x0) if x1 > x0 else 0.5) * (width - left - right)

    def up(y: float) -> float:
        share = math.log(max(y, y0) / y0) / math.log(y1 / y0) if log else (y - y0) / (y1 - y0)
        return height - bottom - min(max(share, 0.0), 1.0) * (height - top - bottom)

    out = [
        f'<svg class="lc" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">',
        STYLE,
        f'<text class="h" x="{left}" y="16">{escape(title)}</text>',
    ]
    labelled = ticks[:: -(-len(ticks) // 8)] if log else ticks
    for tick in labelled:
        y = up(tick)
        out.append(f'<line class="a" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="t" text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{in_short(tick)}</text>')
    whole = all(float(x).is_integer() for line in lines.values() for x, _ in line)
    out += _x_axis(across, x0, x1, mark, x_name, height - bottom + 16, whole=whole)
    if mark is not None:
        px = across(mark)
        out.append(
            f'<line class="a" stroke-dasharray="3 3" x1="{px:.1f}" x2="{px:.1f}" y1="{top}" y2="{height - bottom}"/>'
        )
        out.append(f'<text class="t" text-anchor="middle" x="{px:.1f}" y="{top - 3}">best</text>')
    for name, band in (bands or {}).items():
        there = [(x, a, b) for x, a, b in band if math.isfinite(a) and math.isfinite(b) and (b > y0 or not log)]
        edge = [(across(x), up(b)) for x, _, b in there] + [(across(x), up(a)) for x, a, _ in reversed(there)]
        out.append(f'<polygon class="b l{names.index(name) % len(LIGHT)}" points="{_points(edge)}"/>')
    ends: list[tuple[float, float, int]] = []
    for k, (name, line) in enumerate(lines.items()):
        drawn, places = _drawn(line, y0 if log else None), []
        dash = DASHES[(k + k // len(LIGHT)) % len(DASHES)]
        for piece in drawn:
            places = [(across(x), up(y)) for x, y in piece]
            out.append(f'<polyline class="c l{k % len(LIGHT)}"{_dashed(dash)} points="{_points(places)}"/>')
        kind, radius = ("d", 1.8) if len(line) <= MOST_DOTS else ("d o", 4)
        for x, y in line if pointed else ():
            told = f"<title>{escape(name)}, {escape(x_name)} {x:g}: {'∞' if y == math.inf else number(y)}</title>"
            if y == math.inf:
                out.append(
                    f'<text class="k l{k % len(LIGHT)}" text-anchor="middle" x="{across(x):.1f}" y="{top + 4}">∞{told}</text>'
                )
            elif math.isfinite(y) and (y >= y0 or not log):
                out.append(
                    f'<circle class="l{k % len(LIGHT)} {kind}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="{radius}">{told}</circle>'
                )
        finite = [p for p in line if not math.isnan(p[1])]
        if finite:
            border = float(
                top if finite[-1][1] == math.inf else height - bottom
            )  # ∞ is above all, what isn't drawn below
            last = places[-1] if places and math.isfinite(finite[-1][1]) else (across(finite[-1][0]), border)
            ends.append((last[1], last[0], k))
    edge_x = width - right
    for (y, x, k), label in _apart(ends, top, height - bottom):
        colour, dash = f"l{k % len(LIGHT)}", DASHES[(k + k // len(LIGHT)) % len(DASHES)]
        if edge_x - x > 8 or abs(label - y) > 1:  # led to its name
            out.append(
                f'<line class="e {colour}" stroke-dasharray="1 3" x1="{x:.1f}" x2="{edge_x + 4}" y1="{y:.1f}" y2="{label:.1f}"/>'
            )
        out.append(
            f'<line class="c {colour}"{_dashed(dash)} x1="{edge_x + 6}" x2="{edge_x + 6 + SAMPLE}" y1="{label:.1f}" y2="{label:.1f}"/>'
        )
        out.append(f'<text class="k {colour}" x="{edge_x + 10 + SAMPLE}" y="{label + 4:.1f}">{escape(names[k])}</text>')
    return "\n".join([*out, "</svg>"])


def _dashed(pattern: str) -> str:
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _x_axis(
    across: Callable[[float], float], x0: float, x1: float, mark: float | None, x_name: str, y: int, *, whole: bool
) -> list[str]:
    """Labels of the first and the last x, of the mark, and of round numbers where there is room; whole: of whole ones alone."""
    out: list[str] = []
    taken: list[float] = []
    wanted = dict.fromkeys([x0, x1, *([] if mark is None else [mark])])
    wanted |= dict.fromkeys(x for x in nice_ticks(x0, x1) if x0 < x < x1 and (float(x).is_integer() or not whole))
    for x in wanted:
        px = across(x)
        room = 34 + (7 * len(x_name) if taken and px - taken[0] < 34 + 7 * len(x_name) else 0)
        if any(abs(px - other) < room for other in taken):
            continue
        taken.append(px)
        anchor = "start" if x == x0 else "end" if x == x1 else "middle"
        out.append(
            f'<text class="t" text-anchor="{anchor}" x="{px:.1f}" y="{y}">{escape(x_name) + " " if x == x0 else ""}{x:g}</text>'
        )
    return out


def _drawn(line: Points, floor: float | None) -> list[list[tuple[float, float]]]:
    """The pieces of a line between its gaps; below the floor it ends, with one last point on it."""
    pieces: list[list[tuple[float, float]]] = []
    for there, points in groupby(line, key=lambda p: math.isfinite(p[1])):
        if not there:
            continue
        piece = list(points)
        if floor is not None:
            below = next((i for i, (_, y) in enumerate(piece) if y < floor), None)
            if below is not None:
                if below == 0:
                    continue
                piece = [*piece[:below], (piece[below][0], floor)]
                pieces.append(piece)
                break
        pieces.append(piece)
    return pieces


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _apart(
    ends: list[tuple[float, float, int]], top: float, bottom: float
) -> list[tuple[tuple[float, float, int], float]]:
    """Where each line's name goes: at its end, or as near as its neighbours' names allow."""
    ends = sorted(ends, key=lambda end: (end[0], -end[1]))  # of two that leave at the edge, the later one goes first
    at = [y for y, *_ in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + LABEL_HEIGHT)
    over = max(0.0, at[-1] - bottom) if at else 0.0
    if over:
        at[-1] -= over
        for i in range(len(at) - 2, -1, -1):
            at[i] = min(at[i], at[i + 1] - LABEL_HEIGHT)
    return list(zip(ends, at, strict=True))


def in_short(value: float) -> str:
    """A label of the y axis: 0.25, 1, or 10⁻⁵ for what would need many zeros.

    >>> [in_short(v) for v in (0.001, 1e-5, 100.0, 1e6)]
    ['0.001', '10⁻⁵', '100', '10⁶']
    """
    if value and not 1e-3 <= abs(value) < 1e5 and float(f"1e{round(math.log10(abs(value)))}") == value:
        return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:g}"


def decades(low: float, high: float, floor: float = 0.0) -> list[float]:
    """Powers of ten that span low to high, none of them below floor.

    >>> decades(0.002, 3)
    [0.001, 0.01, 0.1, 1.0, 10.0]
    """
    last = math.ceil(math.log10(high) - 1e-9)
    first = math.floor(math.log10(max(low, floor)) + 1e-9)
    return [float(f"1e{k}") for k in range(min(first, last - 1), last + 1)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span low to high.

    >>> nice_ticks(0.12, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / count
    exponent = math.floor(math.log10(raw))
    power = 10.0**exponent
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 2 - exponent) for k in range(first, last + 1)]
