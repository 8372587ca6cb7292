"""report.md and report.html of several runs of one training: the mean and the spread of every figure, and a row a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidegate.files import write_text
from tidegate.pages import render
from tidegate.report.charts import line_chart
from tidegate.report.report import file_name
from tidegate.trained import Trained
from tidegate.trained.comparison import nice
from tidegate.trained.repeats import ENSEMBLE, REFIT, Plan, Repeats

PAGES = {"report.md": "repeats.md", "report.html": "repeats.html"}
MOST_LINES = 8  # of a chart: more can't be told apart


def curves(repeats: Repeats, members: Mapping[str, Trained]) -> list[tuple[str, str]]:
    """(title, SVG) of the figure that chose the epochs, a line a run; nothing where there was none, or are too many runs."""
    if repeats.chosen_by is None or len(members) > MOST_LINES:
        return []
    lines = {
        name: [(row["epoch"], row[f"valid_{repeats.chosen_by}"]) for row in member.history]
        for name, member in members.items()
    }
    title = f"Validation {nice(repeats.chosen_by)}"
    return [(title, line_chart(title, lines))]


def write_repeats_report(folder: Path, plan: Plan, repeats: Repeats, members: Mapping[str, Trained]) -> None:
    """Write report.md and report.html into the folder of the runs, and the curves as .svg files."""
    pictures = curves(repeats, members)
    for title, svg in pictures:
        write_text(folder / f"{file_name(title)}.svg", svg + "\n")
    one = repeats.members[0]
    tables = [(f"On {one.evaluation.what}", *repeats.summary())]
    if (
        repeats.of_folds and repeats.tested
    ):  # (test rows of a class that a fold's training rows don't have are not scored)
        assert one.test is not None
        tables.append((f"On {one.test.what}", *repeats.summary(test=True)))
    run_head, run_rows = repeats.runs()
    target = ", ".join(next(iter(members.values())).preprocessing.target.names)
    commands = [f"tidegate predict {folder} NEW_TABLE -o predictions.csv", f"tidegate evaluate {folder} NEW_TABLE"]
    if repeats.kept == ENSEMBLE:  # what takes one model
        commands.append(f"tidegate inspect {folder / one.name} NEW_TABLE")
    commands.append(f"tidegate train --config {folder / 'repeats.yaml'} --out OTHER_RUNS")
    values: dict[str, Any] = {
        "title": f"{repeats.table}: predicting {target}, {len(repeats.members)} {'folds' if repeats.of_folds else 'runs'}",
        "folder": str(folder),
        "what": repeats.title,
        "verdict": repeats.verdict(),
        "notes": repeats.notes(),
        "tables": tables,
        "run_head": run_head,
        "run_rows": run_rows,
        "kept": repeats.kept,
        "again": repeats.kept if repeats.kept == REFIT else "",
        "curves": pictures,
        "files": [file_name(title) for title, _ in pictures],
        "commands": commands,
        "settings": plan.settings.model_dump(mode="json") | plan.repeats.model_dump(mode="json"),
    }
    for name, template in PAGES.items():
        write_text(folder / name, render("tidegate.report", template, values))
