"""The page about a study: STUDY.html and STUDY.md, with pictures. No network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidegate.documents import cut
from tidegate.errors import RunError
from tidegate.files import write_text
from tidegate.pages import render
from tidegate.trained.comparison import nice
from tidegate.tuning.pictures import pictures
from tidegate.tuning.record import FAILED, HERE_OR_THERE, PRUNED, Trial, Tuned, options_of
from tidegate.tuning.space import text_of

MOST_ROWS = 20  # of the table of the best trials
MOST_NAMED = 5  # trials that could not be trained, with why


def write_report(tuned: Tuned, folder: str | Path | None = None) -> Path:
    """Write STUDY.html and STUDY.md, named after the file of the study, into a folder (None: beside the study); the page in HTML.

    Raises RunError where there is no file to stand beside; DiskError.
    """
    name = Path(tuned.study).name if tuned.study and "://" not in tuned.study else "tune"
    if folder is None:
        if not tuned.study or "://" in tuned.study:
            raise RunError(
                "The study is in no file beside which a report could stand. Name a folder for it: report (-o DIR)."
            )
        folder = Path(tuned.study).parent
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; the report needs a folder.")
    drawn = pictures(tuned)
    files = [f"{name}.pictures/{title.lower()}.svg" for title, _ in drawn]
    for file, (_, svg) in zip(files, drawn, strict=True):
        write_text(folder / file, svg + "\n")
    values = _values(tuned, drawn) | {"files": files}
    for suffix in ("md", "html"):
        write_text(folder / f"{name}.{suffix}", render("tidegate.report", f"study.{suffix}", values))
    return folder / f"{name}.html"


def _values(tuned: Tuned, drawn: Sequence[tuple[str, str]]) -> dict[str, Any]:
    about = tuned.definition
    head, rows = tuned.table(MOST_ROWS)
    target = ", ".join(about.settings["target"])
    fixed = {
        name: text_of(value) if not isinstance(value, list | dict) else " ".join(options_of({name: value})[1:])
        for name, value in about.settings.items()
        if name not in about.space and name not in HERE_OR_THERE and value not in (None, [])
    }
    best = tuned.best
    return {
        "title": f"{about.table}: a search over settings to predict {target}",
        "study": tuned.study or "in memory",
        "verdict": tuned.verdict(),
        "counted": tuned.counted,
        "chosen_by": nice(about.chosen_by),
        "validates": f"{about.validates:,} {about.unit}",
        "head": head,
        "rows": rows,
        "best": None if best is None else str(best.number),
        "more": max(0, len(tuned.ranked) - len(rows)),
        "pictures": drawn,
        "space": [(name, text, text_of(about.defaults.get(name))) for name, text in about.space.items()],
        "command": None if best is None else tuned.command(),
        "defaults": None if tuned.defaults is None or tuned.defaults is best else tuned.command(tuned.defaults),
        "stopped": [(str(t.number), cut(t.why)) for t in _stopped(tuned)[:MOST_NAMED]],
        "stopped_more": max(0, len(_stopped(tuned)) - MOST_NAMED),
        "fixed": fixed,
        "versions": f"Tidegate {about.tidegate}, Optuna {about.optuna}",
    }


def _stopped(tuned: Tuned) -> list[Trial]:
    return [t for t in tuned.trials if t.state in (PRUNED, FAILED) and t.why]
