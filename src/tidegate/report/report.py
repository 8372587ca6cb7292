"""report.md and report.html of a run: what it reached, beside what a rule of thumb reaches. No network, no scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tidegate.files import write_text
from tidegate.model.cells import gated
from tidegate.pages import render
from tidegate.report.charts import line_chart
from tidegate.report.gate_curves import DEFINITIONS, gate_curves, places
from tidegate.report.predictions import most_confused
from tidegate.report.predictions import pictures as pictures_of
from tidegate.trained import Trained
from tidegate.trained.comparison import comparison, nice, per_class, remarks, verdict

PAGES = ("report.md", "report.html")
MOST_ROWS = 60  # of a per-class table


def curves(run: Trained) -> list[tuple[str, str]]:
    """(title, SVG) of the loss, of the figure that chose the best epoch, and of the gates where they were logged."""
    history = run.history
    results = run.results
    assert results is not None
    mark = run.resolved.best_epoch
    lines = {"training": [(r["epoch"], r["train_loss"]) for r in history]}
    if "valid_loss" in history[0]:
        lines["validation"] = [(r["epoch"], r["valid_loss"]) for r in history]
    out = [("Loss", line_chart("Loss", lines, mark))]
    key = f"valid_{results.metric}"
    if key in history[0]:
        lines = {run.settings.cell: [(r["epoch"], r[key]) for r in history]}
        if run.no_memory is not None and run.no_memory.history:
            lines["no recurrence"] = [(r["epoch"], r[key]) for r in run.no_memory.history]
        title = f"Validation {nice(results.metric)}"
        out.append((title, line_chart(title, lines, mark)))
    return out + gate_curves(history, mark)


def write_report(run: Trained) -> None:
    """Write report.md and report.html into the run's folder, and the curves as .svg files."""
    results, folder = run.results, run.folder
    assert results is not None
    assert folder is not None
    pictures = curves(run)
    for title, svg in pictures:
        write_text(folder / f"{file_name(title)}.svg", svg + "\n")
    seen, target_ = run.predicted, run.preprocessing.target
    predictions = [] if seen is None else pictures_of(seen, target_, results.model, results.name)
    for picture in predictions:
        write_text(folder / f"{picture.file}.svg", picture.svg + "\n")
    head, rows = comparison(results)
    per_head, per_rows = per_class(results)
    target = ", ".join(run.preprocessing.target.names)
    values: dict[str, Any] = {
        "title": f"{run.resolved.table_name}: predicting {target}",
        "folder": str(folder),
        "table": run.source or "TABLE",
        "verdict": verdict(results),
        "remarks": remarks(results),
        "what": results.what,
        "count": f"{results.model.count:,}",
        "head": head,
        "rows": rows,
        "per_head": per_head,
        "per_rows": per_rows[:MOST_ROWS],
        "per_more": max(0, len(per_rows) - MOST_ROWS),
        "predictions": predictions,
        "pairs": None if seen is None else most_confused(seen.confusion),
        "curves": pictures,
        "files": [file_name(title) for title, _ in pictures],
        "definitions": DEFINITIONS if places(run.history) else [],
        "described": run.resolved.lines(),
        "next": next_steps(run),
        "resolved": in_lines({k: v for k, v in run.resolved.to_dict().items() if k not in {"notes", "parts"}}),
        "settings": in_lines(run.settings.model_dump(mode="json")),
        "best_epoch": run.resolved.best_epoch,
        "epochs_run": run.resolved.epochs_run,
        "chosen": _chosen(run),
    }
    for name in PAGES:
        write_text(folder / name, render("tidegate.report", name, values))


def in_lines(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """A line each for what lies inside others, "origin.run"; lists and truth as one writes them."""
    lines: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines |= in_lines(value, f"{before}{name}.")
        elif isinstance(value, (list, tuple, Mapping)):
            lines[before + name] = ", ".join(map(str, value))
        elif isinstance(value, bool):
            lines[before + name] = "yes" if value else "no"
        else:
            lines[before + name] = "" if value is None else str(value)
    return lines


def next_steps(run: Trained) -> list[str]:
    """The commands for which there is a run, those that this one can take."""
    settings, pre = run.settings, run.preprocessing
    run_, table = shlex.quote(str(run.folder)), shlex.quote(run.source) if run.source else "TABLE"
    out = [
        f"tidegate predict {run_} NEW_TABLE -o predictions.csv",
        f"tidegate evaluate {run_} NEW_TABLE",
    ]
    if settings.cell in gated():
        out.append(f"tidegate inspect {run_} {table} -o gates.html")
    if not run.model.spec.bidirectional:
        key = f" --key {shlex.quote(pre.group[0])}" if len(pre.group) == 1 else ""
        out.append(f"tidegate stream {run_}{key} < NEW_ROWS.csv")
    if settings.cell == "gru":
        out.append(f"tidegate export {run_} --to onnx -o model.onnx")
    return [*out, f"tidegate train --config {run_}/config.yaml --out ANOTHER_RUN"]


def file_name(title: str) -> str:
    """Of a curve with that title, without its suffix."""
    return title.lower().replace(" ", "_").replace("²", "2")


def _chosen(run: Trained) -> str:
    """How the best epoch was chosen, in words."""
    by = run.resolved.chosen_by
    if "valid_loss" not in run.history[0]:
        return "the last one, as no validation row has a target"
    words = "the best one on the validation rows"
    if run.resolved.best_epoch == 0:
        words = "those of the run it went on from"
        words += ", as no epoch was better on the validation rows" if run.resolved.epochs_run else ""
    if by is None:  # of an earlier version
        return words
    if run.resolved.tolerance is not None:
        return (
            f"the latest one whose {nice(by)} on the validation rows is within {run.resolved.tolerance:.3f} of the best epoch's: one "
            "standard error, at least one sequence. So few rows can't tell these epochs apart"
        )
    words += f". Best epoch by {nice(by)}"
    if by.startswith("scaled_"):
        words += ": each target in standard deviations (SD) of its training rows, the mean over the targets"
    return words
