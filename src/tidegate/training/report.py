"""report.md and report.html of a run: what it reached, beside what a rule of thumb reaches. No network, no scripts."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from tidegate.files import write_text
from tidegate.training.comparison import comparison, nice, number, per_class, verdict
from tidegate.training.folder import NO_MEMORY
from tidegate.training.loop import read_history
from tidegate.training.resolve import describe
from tidegate.training.run import Run

MOST_ROWS = 60  # of a per-class table


def line_chart(title: str, lines: dict[str, list[tuple[float, float]]], mark: float | None = None) -> str:
    """Curves over epochs as one SVG element; colours follow the page's light or dark scheme.

    mark: an epoch to point at (the best one).
    """
    width, height, left, right, top, bottom = 460, 250, 52, 12, 28, 34
    points = [p for line in lines.values() for p in line if math.isfinite(p[1])]
    if not points:
        return ""
    x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
    ticks = nice_ticks(min(p[1] for p in points), max(p[1] for p in points))
    y0, y1 = ticks[0], ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        return left + across * (width - left - right), height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

    out = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">',
        "<style>.a{stroke:#888;stroke-opacity:.35}.t{fill:#777;font-size:11px}.h{fill:#333;font-size:13px;font-weight:600}@media (prefers-color-scheme:dark){.h{fill:#ddd}}"
        ".l0{stroke:#0b7285;fill:#0b7285}.l1{stroke:#e8590c;fill:#e8590c}.l2{stroke:#868e96;fill:#868e96}.c{fill:none;stroke-width:2}"
        ".k{stroke:none;font-size:11px}</style>",
        f'<text class="h" x="{left}" y="16">{escape(title)}</text>',
    ]
    for tick in ticks:
        _, y = at(x0, tick)
        out.append(f'<line class="a" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="t" text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{tick:g}</text>')
    for x in sorted({x0, x1, *([mark] if mark else [])}):
        px, _ = at(x, y0)
        anchor = "start" if x == x0 else "end" if x == x1 else "middle"
        out.append(
            f'<text class="t" text-anchor="{anchor}" x="{px:.1f}" y="{height - bottom + 16}">{"epoch " if x == x0 else ""}{x:g}</text>'
        )
    if mark is not None:
        px, _ = at(mark, y0)
        out.append(
            f'<line class="a" stroke-dasharray="3 3" x1="{px:.1f}" x2="{px:.1f}" y1="{top}" y2="{height - bottom}"/>'
        )
        out.append(f'<text class="t" text-anchor="end" x="{px - 4:.1f}" y="{height - bottom - 5}">best</text>')
    for k, (name, line) in enumerate(lines.items()):
        finite = [(x, y) for x, y in line if math.isfinite(y)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in finite)
        out.append(f'<polyline class="c l{k % 3}" points="{path}"/>')
        for x, y in finite:
            px, py = at(x, y)
            out.append(
                f'<circle class="l{k % 3}" cx="{px:.1f}" cy="{py:.1f}" r="1.8"><title>{escape(name)}, epoch {x:g}: {number(y)}</title></circle>'
            )
        key = width - right - sum(18 + 6.2 * len(n) for n in list(lines)[k:])
        out.append(f'<text class="k l{k % 3}" x="{key:.0f}" y="16">● {escape(name)}</text>')
    return "\n".join([*out, "</svg>"])


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span low to high.

    >>> nice_ticks(0.12, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def curves(run: Run) -> list[tuple[str, str]]:
    """(title, SVG) of the loss and of the figure that chose the best epoch."""
    history = run.history
    results = run.results
    assert results is not None
    mark = run.resolved.get("best_epoch")
    lines = {"training": [(r["epoch"], r["train_loss"]) for r in history]}
    if "valid_loss" in history[0]:
        lines["validation"] = [(r["epoch"], r["valid_loss"]) for r in history]
    out = [("Loss", line_chart("Loss", lines, mark))]
    key = f"valid_{results.metric}"
    if key in history[0]:
        lines = {run.settings.cell: [(r["epoch"], r[key]) for r in history]}
        bare = run.folder / NO_MEMORY / "metrics.csv"
        if bare.exists():
            lines["no recurrence"] = [(r["epoch"], r[key]) for r in read_history(bare)]
        title = f"Validation {nice(results.metric)}"
        out.append((title, line_chart(title, lines, mark)))
    return out


def write_report(run: Run) -> None:
    """Write report.md and report.html into the run's folder, and the curves as .svg files."""
    results = run.results
    assert results is not None
    pictures = curves(run)
    for title, svg in pictures:
        write_text(run.folder / f"{title.lower().replace(' ', '_')}.svg", svg + "\n")
    head, rows = comparison(results)
    per_head, per_rows = per_class(results)
    environment = Environment(
        loader=PackageLoader("tidegate.training", "templates"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    target = ", ".join(run.preprocessing.target.names)
    values: dict[str, Any] = {
        "title": f"{run.resolved['table_name']}: predicting {target}",
        "run": run.folder.name,
        "folder": str(run.folder),
        "table": run.source or "TABLE",
        "verdict": verdict(results),
        "what": results.what,
        "count": f"{results.model.count:,}",
        "head": head,
        "rows": rows,
        "per_head": per_head,
        "per_rows": per_rows[:MOST_ROWS],
        "per_more": max(0, len(per_rows) - MOST_ROWS),
        "curves": pictures,
        "described": describe(run.resolved),
        "resolved": {k: v for k, v in run.resolved.items() if k not in {"notes", "parts"}},
        "settings": run.settings.model_dump(mode="json"),
        "best_epoch": run.resolved.get("best_epoch"),
        "epochs_run": run.resolved.get("epochs_run"),
    }
    for name in ("report.md", "report.html"):
        write_text(run.folder / name, environment.get_template(f"{name}.j2").render(values))
