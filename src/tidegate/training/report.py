"""report.md and report.html of a run: what it reached, beside what a rule of thumb reaches. No network, no scripts."""

from __future__ import annotations

from typing import Any

from tidegate.files import write_text
from tidegate.pages import render
from tidegate.training.charts import line_chart
from tidegate.training.comparison import comparison, nice, per_class, verdict
from tidegate.training.folder import NO_MEMORY
from tidegate.training.gate_log import DEFINITIONS, gate_curves, places
from tidegate.training.loop import read_history
from tidegate.training.resolve import describe
from tidegate.training.run import Run

MOST_ROWS = 60  # of a per-class table


def curves(run: Run) -> list[tuple[str, str]]:
    """(title, SVG) of the loss, of the figure that chose the best epoch, and of the gates where they were logged."""
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
    return out + gate_curves(history, mark)


def write_report(run: Run) -> None:
    """Write report.md and report.html into the run's folder, and the curves as .svg files."""
    results = run.results
    assert results is not None
    pictures = curves(run)
    for title, svg in pictures:
        write_text(run.folder / f"{title.lower().replace(' ', '_')}.svg", svg + "\n")
    head, rows = comparison(results)
    per_head, per_rows = per_class(results)
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
        "definitions": DEFINITIONS if places(run.history) else [],
        "described": describe(run.resolved),
        "resolved": {k: v for k, v in run.resolved.items() if k not in {"notes", "parts"}},
        "settings": run.settings.model_dump(mode="json"),
        "best_epoch": run.resolved.get("best_epoch"),
        "epochs_run": run.resolved.get("epochs_run"),
    }
    for name in ("report.md", "report.html"):
        write_text(run.folder / name, render("tidegate.training", name, values))
