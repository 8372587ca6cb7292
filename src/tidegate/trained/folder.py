"""The folder of a run: what is in it, and how it is read. `training.journal` writes it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tidegate.documents import Damaged, from_json, from_yaml
from tidegate.errors import RunError
from tidegate.trained.comparison import Evaluation

CONFIG, MODEL, PREPROCESSING, RESULTS = "config.yaml", "model.safetensors", "preprocessing.json", "results.json"
METRICS = "metrics.csv"
MOST_NAMED = 12  # runs in a message
NO_MEMORY = "no_memory"  # the folder of the baseline without a recurrence, within the run


def read_config(folder: Path) -> dict[str, Any]:
    """The settings as given, `table` where it was a file, and `resolved`. Raises RunError: no run, or a damaged one."""
    path = folder / CONFIG
    if not folder.exists():
        raise RunError(f"There is no run folder {folder}.")
    if folder.is_file():
        raise RunError(f"{folder} is not a run: it is a file, and a run is a folder.")
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no {CONFIG}.{_runs_in(folder)}")
    try:
        values = from_yaml(path.read_bytes())
    except Damaged as error:
        raise RunError(f"{path} is damaged ({error}).") from error
    if not (isinstance(values, dict) and all(isinstance(name, str) for name in values)):
        raise RunError(f"{path} was not written by Tidegate.")
    if not isinstance(values.get("resolved"), dict) or not isinstance(values.get("table", ""), str):
        raise RunError(f"{path} was not written by Tidegate.")
    return values


def _runs_in(folder: Path) -> str:
    """For a message: the runs that lie in a folder which is none."""
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}"))
    if not inside:
        return ""
    more = f" and {len(inside) - MOST_NAMED} more" if len(inside) > MOST_NAMED else ""
    one = len(inside) == 1
    return f" It holds {'the run' if one else 'runs'}: {', '.join(inside[:MOST_NAMED])}{more}. Name {'that' if one else 'one of them'}."


def read_preprocessing(folder: Path) -> tuple[str, str]:
    """The text of the file and its name. Raises RunError where it is not there."""
    path = folder / PREPROCESSING
    if not path.is_file():
        raise RunError(f"{path} is missing: the run is not complete.")
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged ({error}).") from error


def read_results(folder: Path) -> Evaluation | None:
    """The figures written at the end of training; None before it."""
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        return Evaluation.from_dict(from_json(path.read_bytes()))
    except (Damaged, TypeError) as error:
        raise RunError(f"{path} is damaged or was written by a later version of Tidegate ({error}).") from error


def read_history(folder: Path) -> list[dict[str, float]]:
    """A dict an epoch; none where nothing was written yet."""
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except (
        ValueError,
        TypeError,
        csv.Error,
    ) as error:  # a cell that is no number, too many or too few of them, not UTF-8
        raise RunError(f"{path} is damaged ({error}).") from error
