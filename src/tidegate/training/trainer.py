"""From a table to a trained model: `fit` in memory, `train` with a run folder, and on from where it was interrupted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from tidegate.data.preprocessing import Target
from tidegate.data.sequences import PART_NAMES, TEST, TRAIN, VALID
from tidegate.data.several import is_store
from tidegate.data.store.folder import read_manifest
from tidegate.errors import DataError, Interrupted, RunError, SettingsError, WorkerLost
from tidegate.model.cells import CELLS
from tidegate.ops.gru import native
from tidegate.trained import Resolved, Trained
from tidegate.trained.evaluation import check_choice, score_rows
from tidegate.trained.folder import BEFORE, CONFIG, NO_MEMORY
from tidegate.trained.metrics import MOST_NAMED
from tidegate.trained.predicted import predicted
from tidegate.trained.rows import Rows, batch_source
from tidegate.trained.settings import CompleteSettings, RepeatSettings, TrainSettings, read_settings_file
from tidegate.trained.thresholds import check_thresholds, with_thresholds, without_thresholds
from tidegate.trained.trained import read_settings, unfinished
from tidegate.training.journal import FolderJournal, FollowingJournal, Journal, choose
from tidegate.training.lock import FolderLock
from tidegate.training.loop import Loop
from tidegate.training.more import check_alone, check_changes, check_finished, complete_of, told
from tidegate.training.origin import Origin, begin, check_folder, freeze, inherit, open_origin, path_of
from tidegate.training.prepared import Prepared, needs_memory, prepared
from tidegate.training.progress import Silent, make
from tidegate.training.resolve import (
    build,
    check_carry,
    check_precision,
    class_weights,
    complete,
    find_device,
    model_spec,
    ready,
    resolve,
)
from tidegate.workers import here

BEGUN = "begun"  # what workers note once the folder of the run is theirs


def train(
    table: Any = None,
    target: str | list[str] | None = None,
    *,
    out: str | Path | Literal[False] | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | Silent = True,
    **settings: Any,
) -> Trained:
    """What `tidegate.train` does, which see."""
    shown = make(progress) if here().leads else Silent()
    settings |= {} if target is None else {"target": target}
    if here().restarted and not resume:
        resume = _begun_before(out, overwrite)
        overwrite = overwrite and not resume
    if resume:
        return _resume(table, out, config, overwrite, settings, shown)
    source, out, values = asked_for(table, out, config, settings)
    if is_store(source):
        manifest = read_manifest(Path(source))
        values = manifest.settings | {"split_seed": manifest.seed} | values
    values = {k: v for k, v in values.items() if k not in RepeatSettings.model_fields}
    begun = values.get("from_run")
    origin = open_origin(begun) if begun is not None else None
    chosen = TrainSettings.make(**(values | ({} if origin is None else {"from_run": path_of(origin)})))
    if "shards" not in values and here().size > 1:
        chosen = chosen.model_copy(update={"shards": here().size})
    if source is None:
        more = "" if origin is None else f" (More epochs on the table of {origin.name}: resume, --resume.)"
        raise SettingsError(f"No table: name a CSV, Parquet, JSON lines or Arrow file, or a folder of them.{more}")
    check_out(out, overwrite)
    if out is False:
        return fit(source, chosen, progress=shown, origin=origin)
    if not here().leads:
        return fit(source, chosen, journal=FollowingJournal(None, out), progress=shown, origin=origin)
    if origin is not None and out is not None:
        check_folder(Path(out), origin)
    folder = choose(out, source, overwrite)
    journal = FolderJournal(folder, overwrite=overwrite, numbered=source if out is None else None)
    return fit(source, chosen, journal=journal, progress=shown, origin=origin)


def asked_for(table: Any, out: Any, config: Any, settings: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The table, where to write, and all other settings: as they are given, else as the YAML file `config` has them."""
    values = read_settings_file(config) if config else {}
    source, folder = values.pop("table", None), values.pop("out", None)
    return table if table is not None else source, out if out is not None else folder, values | settings


def check_out(out: Any, overwrite: bool) -> None:
    """Raises SettingsError for an `out` that says no folder, or none beside `overwrite`."""
    if out is True:
        raise SettingsError("out=True: expected the run folder, None for one named after the table, or False for none.")
    if out is False and overwrite:
        raise SettingsError("overwrite replaces a run folder, and out=False writes none. Leave one of them out.")


def _resume(table: Any, out: Any, config: Any, overwrite: bool, settings: dict[str, Any], shown: Silent) -> Trained:
    if out is None and isinstance(table, str | Path) and not Path(table).is_file():
        table, out = None, table  # the run is named first, as in other commands
    if out is None or out is False:
        raise SettingsError("resume needs the run folder: name it with out (--out), or in place of the table.")
    if overwrite or config:
        raise SettingsError(
            "resume goes on with the settings of the run; it can't be combined with overwrite or config."
        )
    folder = Path(out)
    if here().leads:
        FolderLock(folder).check()  # before the table is read, which may take its time
    chosen, resolved, stored = read_settings(folder)
    source = table if table is not None else stored
    asked = TrainSettings.make(**(chosen.model_dump() | settings))
    check_changes(chosen, asked, resolved)
    check_alone(folder, asked, resolved)
    fixed = _fixes_threads(chosen, resolved)
    if fixed and asked.threads != chosen.threads:
        _check_threads(asked, resolved)
    if source is None:
        raise SettingsError(f"{folder} was trained on a table in memory: pass the same table again to resume.")
    if resolved.finished:
        check_finished(folder, asked, resolved)
    origin = Origin.of_begun(folder, chosen, resolved) if resolved.origin is not None else None
    if origin is not None:
        read: Any = origin.read(source, chosen)
    else:
        with _one_after_the_first(folder):
            read = prepared(source, asked, folder=folder, progress=shown)
    digest = read.table.sha256 if isinstance(read, Prepared) else read.sha256
    if resolved.table_sha256 and digest != resolved.table_sha256:
        name = read.table.name if isinstance(read, Prepared) else read.name
        raise RunError(f"{name} has changed since {folder} began, so the run can't go on exactly. Start a new run.")
    before, now = complete_of(chosen, resolved), complete_of(asked, resolved)
    if before != now:
        shown.note(told(folder, resolved, before, now))
    with threads_at_most(threads_of(resolved, shown) if fixed and not asked.threads else None):
        journal = FolderJournal(folder, resume=True) if here().leads else FollowingJournal(folder, folder)
        return fit(read, asked, journal=journal, progress=shown, origin=origin)


def _begun_before(out: Any, overwrite: bool) -> bool:
    """Whether workers that torchrun starts anew have something to go on with. overwrite: what is there may be the run to replace."""
    if out is None or out is False:
        raise SettingsError(
            "The workers were started anew, and can't tell which run they are to go on with. Name its folder with out (--out)."
        )
    there: bool = here().told((Path(out) / CONFIG).is_file())[0]
    return there and (here().noted(BEGUN) or not overwrite)


def _fixes_threads(settings: TrainSettings, resolved: Resolved) -> bool:
    """Whether other threads would make other weights: on a CPU, PyTorch cuts some sums into as many parts as there are threads,
    and those round otherwise.
    """
    ours = CELLS[settings.cell].any_threads and native.missing() is None
    return resolved.device == "cpu" and not ours


def _check_threads(asked: TrainSettings, resolved: Resolved) -> None:
    """Raises SettingsError for another number than the run began with."""
    if asked.threads != resolved.threads:
        why = f"with cell={asked.cell}" if native.missing() is None else "without the C++ kernels"
        raise SettingsError(
            f"threads can't change on resume of a run {why}: it began with {resolved.threads}, and on a CPU another number rounds some "
            f"sums otherwise, so that it would not be one training to the last bit. Say threads={resolved.threads} (--threads), leave "
            "it out, or start a new run."
        )


def threads_of(resolved: Resolved, shown: Silent) -> int | None:
    """With how many threads a run goes on that left them to torch: as it began, where this machine has as many."""
    if resolved.threads == torch.get_num_threads():
        return None
    if resolved.threads <= (os.cpu_count() or 1):
        return resolved.threads
    shown.note(
        f"Note: the run began with {resolved.threads} threads, more than this machine has, and goes on with {torch.get_num_threads()}: its "
        "last bits may be others than those of one training."
    )
    return None


def fit(
    table: Any,
    settings: TrainSettings,
    *,
    journal: Journal | None = None,
    progress: bool | Silent = False,
    origin: Trained | Origin | None = None,
    score: bool = True,
) -> Trained:
    """Train a model on a table, and score it beside its baselines.

    table: as `tidegate.train` takes it, or `Prepared`. settings: all of them, as one object. journal: what is written on the way, and from
    where an interrupted training goes on; None: nothing is written, and what comes back lives in memory. origin: the run to go on
    from; None: the one that the settings name, where they do. score: whether the test rows are scored at the end; without it nothing
    looks at them, there are no `results` and nothing is finished: for a search over settings, in memory.

    Returns the model with the weights of the best epoch and all that belongs to it. Raises DataError and SettingsError before
    anything is written; Interrupted after Ctrl-C; TrainingFailed where the loss is no longer a number.
    """
    began = time.perf_counter()
    shown, journal = make(progress), journal or Journal()
    if origin is None and settings.from_run is not None:
        origin = open_origin(settings.from_run)
    if isinstance(origin, Trained):
        settings = inherit(settings, origin)
        if not origin.resolved.finished:
            shown.note(unfinished(origin))
        origin = Origin.of(origin)
    if origin is None:
        if not isinstance(table, Prepared):
            with _one_after_the_first(journal.folder) as folder:
                table = prepared(table, settings, folder=folder, progress=shown)
        rows_of = table
        pre, data = rows_of.preprocessing, rows_of.data
        spec = model_spec(settings, pre, data)
    else:
        needs_memory(table, settings, "from_run (--from)")
        read = origin.read(table, settings)
        origin, pre, data = origin.rows(read, settings)
        pre = without_thresholds(pre)
        rows_of = Prepared(read, pre, data)
        spec = origin.spec(settings, pre, origin.model)
    table = rows_of.table
    check_carry(settings, spec)
    _check_workers(f"{table.name} with {int(data.lengths.sum()):,} rows", table.sha256, settings)
    device = find_device(settings.device)
    check_precision(settings.precision, device)
    full = complete(settings, data)
    if full.shards > full.batch_size:
        raise SettingsError(
            f"shards={full.shards} can't cut a batch of {full.batch_size} sequences (batch_size). Take fewer."
        )
    batches = batch_source(data, pre, device)
    if not batches.has_targets(TRAIN):
        raise DataError(
            f"{table.name}: no training row has a target to learn from: horizon={settings.horizon} reaches beyond every "
            "stretch of training rows. Use a smaller horizon or longer stretches."
        )
    check_choice(pre, batches, settings.choose_by)
    class_weights(settings, pre.target)  # raises where they don't fit the target
    check_thresholds(pre, batches, settings.label_thresholds)
    if not batches.has_targets(VALID):
        why = "a class that training saw" if data.unseen else "a target to score"
        data.notes.append(f"No validation row has {why}: the weights of the last epoch are kept.")
    if data.unseen and data.count(TEST) and not batches.has_targets(TEST):
        data.notes.append("No test row has a class that training saw: other rows are scored.")
    with threads_at_most(settings.threads), _enough_memory(full), contextlib.closing(journal):
        model = (
            build(spec, pre, full, device) if origin is None else ready(begin(spec, origin.model), pre, full, device)
        )
        data.notes += freeze(model, settings.freeze, full.epochs)
        if origin is not None and origin.begun:
            data.notes[:] = origin.notes  # what was told when it began
        trained = Trained(
            settings=settings,
            resolved=resolve(
                table, pre, data, settings=full, model=model, origin=None if origin is None else origin.about
            ),
            preprocessing=pre,
            model=model,
            source=rows_of.source,
            folder=journal.folder,
            before=None if origin is None else begin(spec, origin.model).eval(),
        )
        journal.begin(trained)
        if here().leads:
            here().note(BEGUN)
        if trained.before is not None:
            assert origin is not None
            journal.part(BEFORE).keep_best(trained.before)
            if origin.no_memory is not None:
                journal.part(NO_MEMORY).keep_first(origin.no_memory)
        for line in trained.resolved.lines():
            shown.note(line)
        part = next(p for p in (TEST, VALID, TRAIN) if batches.has_targets(p))
        name = {v: k for k, v in PART_NAMES.items()}[part]
        with _can_go_on(journal):
            loop = Loop(model, pre, batches, full, journal=journal, progress=shown, begun=origin is not None)
            state = loop.run(f"Training {spec.cell}:")
            trained._history = state.history
            if settings.label_thresholds != "half":
                trained.preprocessing = with_thresholds(model, pre, batches)
                shown.note(_thresholds(trained.preprocessing.target))
            if settings.baselines and settings.cell != "none":
                trained._no_memory = _without_recurrence(
                    trained, full, data, batches, journal=journal, shown=shown, origin=origin
                )
        trained.resolved = trained.resolved.with_(
            finished=True,
            best_epoch=state.best_epoch,
            chosen_by=state.chosen_by if loop.validated else None,
            tolerance=round(state.tolerance, 4) if state.latest and state.best_epoch else None,
            epochs_run=state.epoch,
            seconds=round(sum(r["seconds"] for r in state.history), 1),
        )
        if not score:
            return trained
        rows = Rows(data, batches, part, f"the {name} rows of {table.name}")
        with _can_go_on(journal):
            evaluation, guesses = score_rows(trained, rows)
        table, rows = rows_of.drawn(rows, guesses.steps)
        trained._results, trained._predicted = evaluation, predicted(trained.preprocessing, table, rows, guesses)
        journal.finish(trained)
        report = f" Report: {journal.folder / 'report.html'}" if journal.folder else ""
        shown.note(f"\n{evaluation}\n\nWhole time {time.perf_counter() - began:.0f} s.{report}")
    return trained


@contextlib.contextmanager
def _can_go_on(journal: Journal) -> Iterator[None]:
    """Who is interrupted, or loses another worker, hears how to go on."""
    try:
        yield
    except Interrupted:
        raise Interrupted(journal.interrupted()) from None
    except WorkerLost as error:
        raise WorkerLost(f"{error} {journal.left()}") from error


@contextlib.contextmanager
def _one_after_the_first(folder: Path | None) -> Iterator[Path | None]:
    """The folder of the run, as the first worker has it. What the block writes beside it the first one writes, and the others find."""
    workers = here()
    name = workers.told(None if folder is None else str(folder))[0]
    if not workers.leads:
        workers.meet()
    yield None if name is None else Path(name)
    if workers.leads:
        workers.meet()


def _check_workers(table: str, digest: str | None, settings: TrainSettings) -> None:
    """Raises SettingsError where the slices of a batch can't be dealt out, or the workers don't train the same."""
    count, shards = here().size, settings.shards
    if shards % count:
        able = ", ".join(str(n) for n in range(1, shards + 1) if shards % n == 0)
        raise SettingsError(
            f"shards={shards} can't be dealt out evenly to {count} workers. Take as many as divide it ({able}), or begin a new run with "
            f"shards={count} or {2 * count}."
        )
    here().meet()  # a table is read faster here than there
    here().same("table", f"{table} (SHA-256 {digest[:12]})" if digest else table)
    own = settings.model_dump(mode="json", exclude={"threads", "device"})
    everybody = here().told(own)
    for name in own:
        if any(other[name] != everybody[0][name] for other in everybody):
            here().same(f"setting {name}", own[name])


def _without_recurrence(
    trained: Trained,
    settings: CompleteSettings,
    data: Any,
    batches: Any,
    *,
    journal: Journal,
    shown: Silent,
    origin: Origin | None,
) -> Trained | None:
    """The baseline: the same head on the inputs themselves, trained alike: from that of the earlier run, where there is one."""
    pre, device = trained.preprocessing, trained.device
    bare = settings.with_cell("none")
    earlier = None if origin is None else origin.no_memory
    if origin is not None and earlier is not None:
        model = ready(begin(origin.spec(bare, pre, earlier), earlier), pre, bare, device)
        freeze(model, settings.freeze, epochs=0)
        if not any(p.requires_grad for p in model.parameters()):
            bare = bare.model_copy(update={"epochs": 0})
    elif not settings.epochs:
        return None  # nothing would be learned
    else:
        model = build(model_spec(bare, pre, data), pre, bare, device)
    own = journal.part(NO_MEMORY)
    state = Loop(model, pre, batches, bare, journal=own, progress=shown, begun=earlier is not None).run(
        "Training the same head without a recurrence:"
    )
    return Trained(
        settings=trained.settings.with_cell("none"),
        resolved=trained.resolved,
        preprocessing=pre if settings.label_thresholds == "half" else with_thresholds(model, pre, batches),
        model=model,
        source=trained.source,
        folder=own.folder,
        history=state.history,
    )


def _thresholds(target: Target) -> str:
    found = [f"{name} {t:.3g}" for name, t in zip(target.names, target.thresholds, strict=True)]
    more = f" and {len(found) - MOST_NAMED} more, in the report" if len(found) > MOST_NAMED else ""
    return f"Thresholds by the F1 on the validation rows: {', '.join(found[:MOST_NAMED])}{more}."


@contextlib.contextmanager
def _enough_memory(settings: CompleteSettings) -> Iterator[None]:
    """What doesn't fit into memory becomes a sentence that says which settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError, known by its text alone.
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not full:
            raise
        sizes = ", ".join(
            f"{name}={getattr(settings, name)}" for name in ("hidden_size", "num_layers", "batch_size", "window")
        )
        raise SettingsError(f"The memory doesn't suffice for {sizes}. Start again with smaller ones.") from error


@contextlib.contextmanager
def threads_at_most(count: int | None) -> Iterator[None]:
    """torch's threads on the CPU, for as long as the block runs; None: as many as there are."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
