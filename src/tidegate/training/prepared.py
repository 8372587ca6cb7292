"""Where the rows of a training lie: in memory, or, where a table is too large for that, arranged on disk as a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.fitting import fit_preprocessing
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import Sequences
from tidegate.data.several import is_store, is_there
from tidegate.data.store.folder import Store, check_inputs, check_settings, is_made_of, open_store, read_manifest
from tidegate.data.store.prepare import IN_MEMORY, estimated_size
from tidegate.data.store.prepare import prepare as prepare_store
from tidegate.data.tables import Table, read_table
from tidegate.default_memory import memory_of_process, told
from tidegate.errors import RunError, SettingsError
from tidegate.model.tasks import TASKS
from tidegate.trained.evaluation import MOST_KEPT, can_be_tallied
from tidegate.trained.rows import Rows, batch_source
from tidegate.trained.settings import PrepareSettings, TrainSettings
from tidegate.training.progress import Silent, make
from tidegate.workers import workers_here


@dataclass(frozen=True)
class Prepared:
    """A table whose columns are fitted and whose rows are encoded. store: where they lie on disk; None: in memory."""

    table: Table
    preprocessing: Preprocessing
    data: Sequences
    store: Store | None = None

    @property
    def source(self) -> str | None:
        """What a run names as its table."""
        return None if self.table.path is None else str(self.table.path.resolve())

    def drawn(self, rows: Rows, steps: tuple[int, int] | None) -> tuple[Table, Rows]:
        """The table and the rows of which a report draws the predictions. steps: first:end; None: all of them."""
        stored = self.store is not None and self.preprocessing.per == "step"
        if steps is None and not stored:
            return self.table, rows
        first, end = steps or (0, len(self.data.part))
        data = self.data.between(first, end)
        source = batch_source(data, self.preprocessing, rows.source.device)
        what = rows.what
        if steps is not None:
            what += f", the first {end - first if rows.part is None else data.count(rows.part):,} of them"
        table = self.table
        if stored:
            data.rows = np.arange(end - first)
            table = Table(self._groups_of(data, first), table.name)
        return table, Rows(data, source, rows.part, what)

    def _groups_of(self, data: Sequences, first: int) -> pl.DataFrame:
        """The group columns of the steps of `data`, which begin with the step `first` of all."""
        assert self.store is not None
        s = int(np.searchsorted(self.data.offsets, first, side="right")) - 1
        names = self.store.names(s, s + len(data))
        owner = np.repeat(np.arange(len(data)), data.lengths)
        return pl.DataFrame({c.name: c.alias("").gather(owner) for c in names.get_columns()})


class OfStore(Prepared):
    """A store that was named in place of a table."""

    @property
    def source(self) -> str:
        assert self.store is not None
        return str(self.store.folder.resolve())


def prepared(source: Any, settings: TrainSettings, *, folder: Path | None, progress: Silent) -> Prepared:
    """The rows of a table, fitted and encoded. folder: of the run, beside which a store is made where the table needs one.

    Raises DataError and SettingsError, also where a store doesn't fit the table or the settings.
    """
    if is_store(source):
        store = open_store(Path(source))
        check_settings(store.folder, store.manifest, settings, settings.seed)
        check_inputs(store.folder, store.manifest)
        _tell_use(store, progress)
        return _of_store(store, OfStore)
    why = too_large(source, settings)
    if not why:
        table = read_table(source, **settings.reading)
        return Prepared(table, *fit_preprocessing(table, settings, settings.seed))
    place = _place(settings, folder)
    if is_store(place) and (settings.store is not None or is_made_of(place, source, settings, settings.seed)):
        manifest = read_manifest(place)
        check_settings(place, manifest, settings, settings.seed)
        check_inputs(place, manifest, source=source)
        store = open_store(place)
        _tell_use(store, progress)
    else:
        _check_free(place)
        memory = memory_for(settings)
        assert memory is not None
        store = prepare_store(
            source,
            place,
            settings,
            seed=settings.seed,
            memory=memory,
            watch=progress,
            why=why + " It is arranged in {folder}, about {size} on disk.",
        )
    return _of_store(store, Prepared)


def _tell_use(store: Store, progress: Silent) -> None:
    progress.note(f"Trained from {store.folder}, a store of {store.manifest.rows:,} rows.")


def _of_store(store: Store, kind: type[Prepared]) -> Prepared:
    pre, data = store.preprocessing, store.data
    if len(data.part) > MOST_KEPT and pre.per == "step" and not can_be_tallied(pre):
        what = "B-, I- and O classes" if pre.target.task == "class" else TASKS[pre.target.task].about(0)
        raise SettingsError(
            f"{store.folder} has {len(data.part):,} rows, and {what} of more than {MOST_KEPT:,} can be scored only with the table in memory. Allow "
            "more memory (memory, --memory), or predict one label at a time, as a class."
        )
    return kind(store.table, pre, data, store)


def memory_for(settings: TrainSettings | PrepareSettings) -> int | None:
    """The bytes that the settings allow this process; None: there is no limit that is known. By default the workers of a machine share
    what it has.
    """
    return memory_of_process(settings.memory, workers_here())


def too_large(source: Any, settings: TrainSettings) -> str:
    """A sentence on a table in files that doesn't fit the memory; "" for one that does, or is there already."""
    memory = memory_for(settings)
    if not isinstance(source, str | Path) or not is_there(source) or memory is None:
        return ""
    size = estimated_size(source, settings.reading)
    if IN_MEMORY * size <= memory:
        return ""
    return (
        f"The table takes about {told(size)}, and its training in memory about {told(IN_MEMORY * size)}, more than the {told(memory)} "
        "allowed."
    )


def needs_memory(source: Any, settings: TrainSettings, what: str) -> None:
    """Raises SettingsError where a training that needs its table in memory gets one that is too large for it, or a store."""
    if is_store(source):
        raise SettingsError(
            f"{what} needs the table in memory, and {source} is a store. Name the table that it was made of."
        )
    if why := too_large(source, settings):
        raise SettingsError(
            f"{why} With {what} a table can't be arranged on disk yet: allow more memory (memory, --memory)."
        )


def _place(settings: TrainSettings, folder: Path | None) -> Path:
    if settings.store is not None:
        return Path(settings.store)
    if folder is None:
        raise SettingsError(
            "The table doesn't fit the memory allowed and there is no run folder (out=False) beside which it could be arranged. Name a place "
            "for it (store), or allow more memory (memory)."
        )
    return folder.with_name(f"{folder.name}.store")


def _check_free(place: Path) -> None:
    if place.exists() and not is_store(place) and (not place.is_dir() or any(place.iterdir())):
        raise RunError(
            f"{place} exists and is not a store; nothing in it is touched. Name another folder for the store."
        )


def prepare(
    table: str | Path,
    store: str | Path,
    target: str | list[str] | None = None,
    *,
    overwrite: bool = False,
    progress: bool | Silent = True,
    **settings: Any,
) -> Path:
    """What `tidegate.prepare` does, which see."""
    watch, place = make(progress), Path(store)
    settings |= {} if target is None else {"target": target}
    chosen: PrepareSettings = PrepareSettings.make(**settings)
    if not isinstance(table, str | Path):
        raise SettingsError("prepare arranges a table in files. One that is in memory needs no store: train on it.")
    memory = memory_for(chosen)
    if memory is None:
        raise SettingsError(
            "How much memory this machine has isn't known. Say how much may be taken: memory='2GB' (--memory 2GB)."
        )
    _check_free(place)
    if is_store(place) and not overwrite:
        if not is_made_of(place, table, chosen, chosen.seed):
            manifest = read_manifest(place)
            check_settings(place, manifest, chosen, chosen.seed)
            check_inputs(place, manifest, source=table)
        open_store(place)
        watch.note(f"{place} is there already, made of these files under these settings. Nothing was done.")
        return place
    made = prepare_store(table, place, chosen, seed=chosen.seed, memory=memory, watch=watch)
    for note in made.manifest.notes:
        watch.note(note)
    size = sum(path.stat().st_size for path in place.iterdir())
    watch.note(
        f"{place}: {made.manifest.rows:,} rows in {len(made.data):,} sequences, {told(size)}. Train on it: tidegate train {place}"
    )
    return place
