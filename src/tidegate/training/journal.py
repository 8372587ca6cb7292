"""Everything that a training writes, and only here: the folder of a run, its checkpoints, its best weights, its history.

`Journal` keeps nothing, for a training in memory; `FolderJournal` writes the files of `trained.folder`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tidegate.data.several import name_for_runs
from tidegate.data.tables import stem_of
from tidegate.errors import RunError
from tidegate.files import remove, temporaries_in, write_text
from tidegate.model import SequenceModel
from tidegate.report import write_report
from tidegate.report.report import PAGES as REPORTS
from tidegate.trained import Trained
from tidegate.trained.folder import BEFORE, CONFIG, METRICS, MODEL, NO_MEMORY, PREPROCESSING, REPEATS, RESULTS
from tidegate.trained.weights import load_model, save_model, weights_of
from tidegate.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tidegate.training.lock import LOCK, FolderLock

CHECKPOINTS, LAST = "checkpoints", "last.safetensors"
SETTINGS = (CONFIG, REPEATS)  # by one of them a folder is known as a run, or as several
FIRST = "first.safetensors"  # of a baseline that went on from another run's: what it began with
History = list[dict[str, float]]


class Journal:
    """What the loop tells while it trains. This one writes nothing."""

    folder: Path | None = None
    kept = ""
    """What is said after a failure of the best epoch so far."""

    def begin(self, trained: Trained) -> None:
        """Settings, preprocessing and what was resolved are known; nothing is trained yet. Raises RunError, DiskError."""

    def part(self, name: str) -> Journal:
        """The journal of another model that is trained with this one, to compare with."""
        return self

    def last(self) -> tuple[Checkpoint, str] | None:
        """Where an earlier training stopped, and the name of that; None where there was none."""
        return None

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Where training stands now."""

    def best(self) -> Mapping[str, Any] | None:
        """The weights of the best epoch that an earlier training kept."""
        return None

    def keep_best(self, model: SequenceModel) -> None:
        """The model has the best weights so far."""

    def keep_first(self, model: SequenceModel) -> None:
        """The weights of another run with which this training begins."""

    def keep_history(self, history: History) -> None:
        """The figures of all epochs so far."""

    def interrupted(self) -> str:
        """What is said after Ctrl-C."""
        return "Interrupted. The training was in memory alone (out=False), so nothing of it is left."

    def left(self) -> str:
        """What is said where a worker was lost."""
        return "Nothing of the training is left, as it was in memory alone (out=False)."

    def finish(self, trained: Trained) -> None:
        """Training is over; results and resolved are whole."""

    def close(self) -> None:
        """Nothing more will be written, whether training ended well or not."""


class FolderJournal(Journal):
    """Writes a run's folder, which is locked from `begin` to `close`: nobody else trains into it.

    overwrite: replace a run that is there; resume: go on with it. numbered: the name is one of our choosing, so that another is as
    good where somebody else was faster; the table it is named after.
    """

    folder: Path
    kept = "; the best epoch so far is kept"

    def __init__(self, folder: Path, *, overwrite: bool = False, resume: bool = False, numbered: Any = None):
        self.folder, self.overwrite, self.resume, self.numbered = folder, overwrite, resume, numbered
        self._lock = FolderLock(folder)

    @property
    def _last(self) -> Path:
        return self.folder / CHECKPOINTS / LAST

    def begin(self, trained: Trained) -> None:
        with self.claiming():
            trained.folder = self.folder
            write_config(self.folder, trained)
            write_text(self.folder / PREPROCESSING, trained.preprocessing.to_json())

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """Lock the folder, and empty it but where it is resumed; the block writes the first files. If that fails, all is undone."""
        with contextlib.ExitStack() as undo:
            if self.resume:
                undo.callback(self._lock.release)
                self._lock.take()
            else:
                self._claim(undo)
            _remove_leftovers(self.folder)
            yield
            undo.pop_all()  # from here on there is something to resume

    def _claim(self, undo: contextlib.ExitStack) -> None:
        """Make the folder ours, and empty; `undo` removes what was begun until its callbacks are popped."""
        made: list[Path] = []

        def remove_folders() -> None:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()

        undo.callback(remove_folders)
        while True:
            made[:] = [p for p in [self.folder, *self.folder.parents] if not p.exists()]
            try:
                self.folder.mkdir(parents=True, exist_ok=self.numbered is None)
                break
            except FileExistsError as error:
                if self.numbered is None:
                    raise RunError(f"{self.folder} is a file; a run needs a folder.") from error
                self.folder = choose(None, self.numbered, False)  # somebody took that name a moment ago
                self._lock = FolderLock(self.folder)
            except OSError as error:
                raise RunError(f"{self.folder} can't be made ({error.strerror}).") from error
        undo.callback(self._lock.release)
        self._lock.take()
        _check_content(self.folder, self.overwrite)  # again: somebody may have trained here since `choose`
        _empty(self.folder)
        for name in (
            CONFIG,
            PREPROCESSING,
            REPEATS,
        ):  # nothing half-written stays when the first files can't be written
            undo.callback(remove, self.folder / name)

    def close(self) -> None:
        self._lock.release()

    def part(self, name: str) -> FolderJournal:
        return FolderJournal(self.folder / name)

    def last(self) -> tuple[Checkpoint, str] | None:
        return (load_checkpoint(self._last), str(self._last)) if self._last.exists() else None

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(checkpoint, self._last)

    def best(self) -> Mapping[str, Any] | None:
        path = self.folder / MODEL
        return weights_of(load_model(path)) if path.exists() else None

    def keep_best(self, model: SequenceModel) -> None:
        save_model(model, self.folder / MODEL)

    def keep_first(self, model: SequenceModel) -> None:
        save_model(model, self.folder / CHECKPOINTS / FIRST)

    def keep_history(self, history: History) -> None:
        out = io.StringIO()
        names = dict.fromkeys(name for row in history for name in row)  # an earlier version's epochs have fewer figures
        writer = csv.DictWriter(out, list(names), restval="nan", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.folder / METRICS, out.getvalue())

    def interrupted(self) -> str:
        return f"Interrupted; all is saved in {self.folder / CHECKPOINTS}. Go on with: tidegate train --resume --out {self.folder}"

    def left(self) -> str:
        return _go_on_with(self.folder)

    def finish(self, trained: Trained) -> None:
        assert trained.results is not None
        results = json.dumps(trained.results.to_dict(), indent=1, default=plain)
        write_text(self.folder / RESULTS, results + "\n")
        write_text(self.folder / PREPROCESSING, trained.preprocessing.to_json())
        bare = trained.no_memory
        if bare is not None and bare.preprocessing != trained.preprocessing:
            write_text(self.folder / NO_MEMORY / PREPROCESSING, bare.preprocessing.to_json())
        write_report(trained)
        write_config(self.folder, trained)  # last: it says that the run is finished, and then nothing goes on with it


class FollowingJournal(Journal):
    """Of a worker that doesn't lead: it writes nothing. folder: of a run that goes on, which it reads; out: where the one that leads
    writes, False: nowhere.
    """

    def __init__(self, folder: Path | None, out: Any):
        self._read, self._out = None if folder is None else FolderJournal(folder), out

    def part(self, name: str) -> FollowingJournal:
        return FollowingJournal(None if self._read is None else self._read.folder / name, self._out)

    def left(self) -> str:
        return super().left() if self._out is False else _go_on_with(self._out or "its folder")

    def last(self) -> tuple[Checkpoint, str] | None:
        return None if self._read is None else self._read.last()

    def best(self) -> Mapping[str, Any] | None:
        return None if self._read is None else self._read.best()


def save(trained: Trained, folder: Path, *, overwrite: bool = False) -> None:
    """Write a run that is in memory as the folder that training would have written, but for its checkpoints.

    Raises RunError where something is there that may not be replaced, or the run isn't finished; DiskError.
    """
    if trained.results is None:
        raise RunError(f"{trained.name} is not finished, so there is nothing whole to save.")
    check_free(folder, overwrite)
    journal = FolderJournal(folder, overwrite=overwrite)
    no_memory, begun_with = (
        trained.no_memory,
        trained.before,
    )  # read while the old folder, if there is one, is still its own
    before = trained.folder
    try:
        journal.begin(trained)
        for part, own in ((trained, journal), (no_memory, journal.part(NO_MEMORY))):
            if part is not None:
                own.keep_best(part.model)
                own.keep_history(part.history)
        if begun_with is not None:
            journal.part(BEFORE).keep_best(begun_with)
        journal.finish(trained)
    except BaseException:
        trained.folder = before
        raise
    finally:
        journal.close()
    if no_memory is not None:
        no_memory.folder = folder / NO_MEMORY


def _go_on_with(folder: Any) -> str:
    return f"All until the last checkpoint is saved. Go on, with as many workers as you like: tidegate train --resume {folder}"


def choose(out: str | Path | None, source: Any, overwrite: bool) -> Path:
    """Where a new run goes. Raises RunError where something is there that may not be replaced."""
    if out is None:
        stem = name_for_runs(source) or (stem_of(Path(source)) if isinstance(source, str | Path) else "run")
        folder, number = Path("runs") / stem, 2
        while folder.exists():
            folder, number = Path("runs") / f"{stem}-{number}", number + 1
        return folder
    return check_free(Path(out), overwrite)


def check_free(folder: Path, overwrite: bool) -> Path:
    """The folder, where a run may be written to it. Raises RunError."""
    if folder.is_file():
        raise RunError(f"{folder} is a file; a run needs a folder.")
    if folder.exists():
        FolderLock(folder).check()
        _check_content(folder, overwrite)
    return folder


def _check_content(folder: Path, overwrite: bool) -> None:
    if not _content(folder):
        return
    if not any((folder / name).exists() for name in SETTINGS):
        raise RunError(f"{folder} exists and is not a run; nothing in it is touched. Choose another folder.")
    if not overwrite:
        raise RunError(
            f"{folder} already holds a run. Choose another folder, go on with it (resume), or replace it (overwrite)."
        )


def _content(folder: Path) -> list[Path]:
    """All that is in the folder, but for its lock and what a killed training left half-written."""
    half = set(_leftovers(folder))
    return [path for path in folder.iterdir() if path.name != LOCK and path not in half]


def _empty(folder: Path) -> None:
    """Remove the run in the folder, its settings last: cut off halfway, it can still be told from what is none of ours."""
    try:
        for lock in folder.rglob(LOCK):  # another cell of `inspect --gradients`, which is a run of its own
            if lock.parent != folder:
                FolderLock(lock.parent).check()
        for path in sorted(_content(folder), key=lambda path: path.name in SETTINGS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise RunError(f"{folder} can't be replaced ({error.filename}: {error.strerror}).") from error


def _leftovers(folder: Path) -> list[Path]:
    """The files of a training that were being written when its process was killed."""
    return [
        path
        for path, name, _ in temporaries_in(folder)
        if Path(name).suffix == ".svg"
        or name in {*SETTINGS, MODEL, PREPROCESSING, RESULTS, METRICS, *REPORTS, LAST, FIRST}
    ]


def _remove_leftovers(folder: Path) -> None:
    """Where the folder is locked, whoever wrote these is gone."""
    for run in (folder, folder / NO_MEMORY):
        for place in (run, run / CHECKPOINTS, run / BEFORE):
            for path in _leftovers(place):
                remove(path)


def write_config(folder: Path, trained: Trained) -> None:
    """The settings as given, from which the run can be repeated, and what was worked out from them."""
    config = {"table": trained.source} if trained.source else {}
    config |= trained.settings.model_dump(mode="json")
    head = "# This run's settings: `tidegate train --config THIS_FILE --out NEW` repeats it.\n"
    told = "# What the run worked out for itself (not read again).\n"
    text = head + yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    text += told + yaml.safe_dump({"resolved": plain(trained.resolved.to_dict())}, sort_keys=False, allow_unicode=True)
    write_text(folder / CONFIG, text)


def plain(value: Any) -> Any:
    """Tuples and numpy numbers as what YAML and JSON know."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
