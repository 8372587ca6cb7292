"""The folder of a run: where it lies, what is in it, and how it is begun without leaving half of one behind."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tidegate.errors import RunError
from tidegate.files import write_text

CONFIG, MODEL, PREPROCESSING, RESULTS = "config.yaml", "model.safetensors", "preprocessing.json", "results.json"
NO_MEMORY = "no_memory"  # the folder of the baseline without a recurrence, within the run


def choose(out: str | Path | None, source: Any, overwrite: bool) -> Path:
    """Where a new run goes. Raises RunError where something is there that may not be replaced."""
    if out is None:
        stem = Path(source).stem if isinstance(source, str | Path) else "run"
        folder, number = Path("runs") / stem, 2
        while folder.exists():
            folder, number = Path("runs") / f"{stem}-{number}", number + 1
        return folder
    folder = Path(out)
    if folder.is_file():
        raise RunError(f"{folder} is a file; a run needs a folder.")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / CONFIG).exists():
            raise RunError(f"{folder} exists and is not a run; nothing in it is touched. Choose another folder.")
        if not overwrite:
            raise RunError(
                f"{folder} already holds a run. Choose another folder, go on with it (resume), or replace it (overwrite)."
            )
    return folder


def begin(folder: Path, overwrite: bool, undo: contextlib.ExitStack) -> None:
    """Make the folder, replacing a run that may be; `undo` removes what was begun until its callbacks are popped."""
    if overwrite and (folder / CONFIG).exists():
        shutil.rmtree(folder)
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made ({error.strerror}).") from error

    def remove() -> None:  # nothing half-written stays when the first files can't be written
        for name in (CONFIG, PREPROCESSING):
            (folder / name).unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()

    undo.callback(remove)


def write_config(folder: Path, config: dict[str, Any], resolved: dict[str, Any]) -> None:
    """The settings as given, from which the run can be repeated, and what was worked out from them."""
    head = "# This run's settings: `tidegate train --config THIS_FILE --out NEW` repeats it.\n"
    told = "# What the run worked out for itself (not read again).\n"
    text = head + yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    text += told + yaml.safe_dump({"resolved": plain(resolved)}, sort_keys=False, allow_unicode=True)
    write_text(folder / CONFIG, text)


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_config` wrote, `resolved` included. Raises RunError: no run, or a damaged one."""
    path = folder / CONFIG
    if not folder.exists():
        raise RunError(f"There is no run folder {folder}.")
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no {CONFIG}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({str(error).splitlines()[0]}).") from error
    if not isinstance(values, dict) or "resolved" not in values:
        raise RunError(f"{path} was not written by Tidegate.")
    return values


def plain(value: Any) -> Any:
    """Tuples and numpy numbers as what YAML and JSON know."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
