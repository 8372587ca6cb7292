"""Several trainings that differ in their seed or in the rows that validate: one after the other, each an ordinary run."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from tidegate import __version__
from tidegate.data.extending import divide
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import PART_NAMES, VALID
from tidegate.data.tables import Table, read_table
from tidegate.errors import DataError, Interrupted, RunError, SettingsError
from tidegate.files import write_text
from tidegate.report import write_report
from tidegate.report.repeats import write_repeats_report
from tidegate.report.report import PAGES
from tidegate.trained import Trained, ensemble
from tidegate.trained.comparison import Evaluation
from tidegate.trained.evaluation import evaluate_rows
from tidegate.trained.folder import CONFIG, REPEATS, RESULTS
from tidegate.trained.repeats import ENSEMBLE, REFIT, Member, Plan, Repeats, holds_repeats, read_plan
from tidegate.trained.rows import Rows, batch_source
from tidegate.trained.settings import RepeatSettings, TrainSettings, read_settings_file
from tidegate.trained.trained import open_folder, read_settings
from tidegate.training import trainer
from tidegate.training.journal import FolderJournal, check_free, choose, plain
from tidegate.training.journal import save as save_one
from tidegate.training.lock import FolderLock
from tidegate.training.loop import rank_of
from tidegate.training.prepared import needs_memory
from tidegate.training.progress import Silent, make
from tidegate.workers import here

VALIDATION = "validation"


@dataclass(frozen=True)
class Several:
    """What comes of it: the figures of all runs, and the run that is kept, or all where that is the ensemble. folder: None: in memory."""

    repeats: Repeats
    kept: list[Trained]
    folder: Path | None


def wanted(table: Any, out: Any, config: str | Path | None, resume: bool, settings: Mapping[str, Any]) -> bool:
    """Whether a call of `train` asks for several runs."""
    values = read_settings_file(config) if config and not resume else {}
    asked = RepeatSettings.make(
        **{k: v for k, v in (values | dict(settings)).items() if k in RepeatSettings.model_fields}
    )
    if not resume:
        return bool(asked)
    table, out = _run_first(table, out)
    several = isinstance(out, str | Path) and holds_repeats(out)
    if asked and not several and out:
        raise SettingsError(f"{out} doesn't hold several runs, so it can't go on with seeds or folds. Leave them out.")
    return several


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
) -> Several:
    """What `tidegate.train` does with seeds or folds, which see."""
    if here().size > 1:
        raise SettingsError(
            "seeds and folds are several runs, which don't share workers. Train them by one process, or each seed and fold (seed, fold) "
            "as a run of its own on workers."
        )
    shown = make(progress)
    settings |= {} if target is None else {"target": target}
    if resume:
        table, out = _run_first(table, out)
        return _resume(table, Path(out or ""), config, overwrite, settings, shown)
    source, out, both = trainer.asked_for(table, out, config, settings)
    repeats = RepeatSettings.make(**{k: v for k, v in both.items() if k in RepeatSettings.model_fields})
    if repeats.seeds and "seed" in settings:
        raise SettingsError("seed is of one run and seeds are of several: name one of them.")
    chosen = TrainSettings.make(**{k: v for k, v in both.items() if k not in RepeatSettings.model_fields})
    if chosen.from_run is not None:
        raise SettingsError(
            "from_run begins with the weights of one run; the runs of seeds and folds begin anew. Name one of them."
        )
    if repeats.folds and chosen.fold is not None:
        raise SettingsError("fold trains one fold alone and folds trains them all: name one of them.")
    if source is None:
        raise SettingsError("No table: name a CSV, Parquet, JSON lines or Arrow file, or a folder of them.")
    trainer.check_out(out, overwrite)
    needs_memory(source, chosen, "seeds and folds")
    folder = None if out is False else choose(out, source, overwrite)
    read = read_table(source, **chosen.reading)
    drawn = _check(read, chosen, repeats)
    path = str(read.path.resolve()) if read.path else None
    plan = Plan(chosen, repeats, path, read.sha256, tuple(_members(chosen, repeats)), tidegate=__version__)
    if folder is None:
        return _Training(plan, read, drawn, None, shown).run()
    journal = RepeatsJournal(folder, overwrite=overwrite, numbered=source if out is None else None)
    with contextlib.closing(journal):
        journal.begin_repeats(plan)
        return _Training(plan, read, drawn, journal, shown).run()


def _run_first(table: Any, out: Any) -> tuple[Any, Any]:
    """The table and the folder on resume, where the folder of the runs may stand in place of the table."""
    return (None, table) if out is None and isinstance(table, str | Path) and holds_repeats(table) else (table, out)


def _resume(table: Any, folder: Path, config: Any, overwrite: bool, settings: dict[str, Any], shown: Silent) -> Several:
    if overwrite or config:
        raise SettingsError(
            "resume goes on with the settings of the runs; it can't be combined with overwrite or config."
        )
    FolderLock(folder).check()  # before the table is read, which may take its time
    plan = read_plan(folder)
    own = {k: v for k, v in settings.items() if k in RepeatSettings.model_fields}
    asked: list[tuple[Any, Any, dict[str, Any]]] = [
        (RepeatSettings, plan.repeats, own),
        (TrainSettings, plan.settings, {k: v for k, v in settings.items() if k not in own}),
    ]
    for kind, before, given in asked:
        now = kind.make(**(before.model_dump() | given))
        for name in kind.model_fields:
            if getattr(now, name) != getattr(before, name):
                raise SettingsError(
                    f"{name} can't change on resume (the runs began with {getattr(before, name)!r}). Leave it out, or start new ones."
                )
    source = table if table is not None else plan.source
    if source is None:
        raise SettingsError(f"{folder} was trained on a table in memory: pass the same table again to resume.")
    if plan.finished:
        raise RunError(
            f"{folder} is finished; there is nothing to resume. For new runs choose another folder or overwrite it."
        )
    read = read_table(source, **plan.settings.reading)
    if plan.table_sha256 and read.sha256 != plan.table_sha256:
        raise RunError(
            f"{read.name} has changed since {folder} began, so the runs can't go on exactly. Start new ones."
        )
    journal = RepeatsJournal(folder, resume=True)
    with contextlib.closing(journal), _threads_of_the_first(plan, folder, shown):
        journal.begin_repeats(plan)
        return _Training(plan, read, _check(read, plan.settings, plan.repeats), journal, shown).run()


@contextlib.contextmanager
def _threads_of_the_first(plan: Plan, folder: Path, shown: Silent) -> Iterator[None]:
    """As many threads as the first run had, so that those that come now round as they would have then."""
    first, count = folder / plan.members[0], None
    if plan.settings.threads is None and (first / CONFIG).is_file():
        count = trainer.threads_of(read_settings(first)[1], shown)
    with trainer.threads_at_most(count):
        yield


def _members(settings: TrainSettings, repeats: RepeatSettings) -> dict[str, TrainSettings]:
    """The settings of each run, by its name: those of a run that is trained alone."""
    if repeats.folds:
        count = repeats.folds
        return {f"fold-{k}": settings.model_copy(update={"fold": f"{k}/{count}"}) for k in range(1, count + 1)}
    return {f"seed-{seed}": settings.model_copy(update={"seed": seed}) for seed in repeats.seeds}


def _check(table: Table, settings: TrainSettings, repeats: RepeatSettings) -> bool:
    """Make sure of every run before the first one is trained, which may take hours; whether they have different rows.

    Raises DataError and SettingsError in the words of a single run.
    """
    if repeats.kept == REFIT and settings.label_thresholds != "half":
        raise SettingsError(
            "label_thresholds are chosen on validation rows, and the run that folds keep has none (keep='refit'). Say keep='best' or "
            "'ensemble' (--keep), or leave label_thresholds out."
        )
    parts: list[np.ndarray] = []
    for name, one in _members(settings, repeats).items():
        try:
            pre, data = fit_preprocessing(table, one, one.seed)
        except (DataError, SettingsError) as error:
            raise type(error)(f"{error} (In {name}.)") from error
        if not batch_source(data, pre, "cpu").has_targets(VALID):
            if repeats.folds:
                raise DataError(
                    f"{table.name}: no row that validates in {name} has a target to score. Use fewer folds."
                )
            if repeats.kept == "best":
                raise SettingsError(
                    f"{table.name}: no validation row has a target in {name}, so there is nothing to choose the best run by. Name rows to "
                    "validate on (split), or keep='ensemble' (--keep ensemble)."
                )
        parts.append(data.part)
    drawn = any((part != parts[0]).any() for part in parts)
    if drawn and repeats.seeds and repeats.kept == ENSEMBLE:
        raise SettingsError(
            "Each seed draws a split of its own, so the test rows of one run have trained another, and no row could judge the "
            "ensemble. Give all runs the same rows: split_seed=0 (--split-seed 0), or a split column."
        )
    return drawn


class RepeatsJournal(FolderJournal):
    """Writes the folder of several runs, which is locked from `begin_repeats` to `close`; each run has a journal of its own below it."""

    def begin_repeats(self, plan: Plan) -> None:
        with self.claiming():
            self.keep_plan(plan)

    def keep_plan(self, plan: Plan) -> None:
        values = {"table": plan.source} if plan.source else {}
        values |= plan.settings.model_dump(mode="json") | plan.repeats.model_dump(mode="json")
        head = "# The settings of these runs: `tidegate train --config THIS_FILE --out NEW` repeats them.\n"
        told = "# What came of them (not read again).\n"
        text = head + yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True)
        text += told + yaml.safe_dump({"resolved": plain(plan.resolved())}, sort_keys=False, allow_unicode=True)
        write_text(self.folder / REPEATS, text)

    def finish_repeats(self, plan: Plan, repeats: Repeats, members: Mapping[str, Trained]) -> None:
        write_text(self.folder / RESULTS, json.dumps(repeats.to_dict(), indent=1, default=plain) + "\n")
        write_repeats_report(self.folder, plan, repeats, members)
        self.keep_plan(replace(plan, kept=repeats.kept))  # last: by it the runs are known as finished


class _Training:
    """The runs of one call of `train`."""

    def __init__(self, plan: Plan, table: Table, drawn: bool, journal: RepeatsJournal | None, shown: Silent) -> None:
        self.plan, self.table, self.drawn, self.journal, self.shown = plan, table, drawn, journal, shown
        self.folder = journal.folder if journal else None

    def run(self) -> Several:
        plan, repeats = self.plan, self.plan.repeats
        wanted = _members(plan.settings, repeats)
        total = len(wanted) + (repeats.kept == REFIT)
        trained = {
            name: self._one(name, settings, f"Run {k} of {total}: {name}")
            for k, (name, settings) in enumerate(wanted.items(), 1)
        }
        members = [self._member(name, one) for name, one in trained.items()]
        result = Repeats(
            table=self.table.name,
            members=members,
            keep=repeats.kept,
            kept=repeats.kept,
            chosen_by=next(iter(trained.values())).resolved.chosen_by,
            drawn=self.drawn,
        )
        kept = list(trained.values())
        if repeats.kept == ENSEMBLE:
            result = replace(result, own=self._of_ensemble(kept))
        elif repeats.kept == REFIT:
            epochs = math.ceil(statistics.median(m.best_epoch or 1 for m in members))
            update = {"fold": f"0/{repeats.folds}", "epochs": epochs, "patience": 0}
            title = f"Run {total} of {total}: the rows of all folds, {epochs} epochs"
            again = self._one(REFIT, plan.settings.model_copy(update=update), title)
            own = again.results if again.results and _part_of(again.results) == "test" else None
            result, kept = replace(result, own=own, epochs=epochs), [again]
        else:
            best = max(trained, key=lambda name: _rank(trained[name]))
            result, kept = replace(result, kept=best), [trained[best]]
        report = ""
        if self.journal:
            self.journal.finish_repeats(plan, result, trained)
            report = f" Report: {self.journal.folder / 'report.html'}"
        self.shown.note(f"\n{result}\n{report}".rstrip())
        return Several(result, kept, self.folder)

    def _one(self, name: str, settings: TrainSettings, title: str) -> Trained:
        """Train a run, go on with it, or open it where it is finished."""
        folder = self.folder / name if self.folder else None
        if folder is None:
            self.shown.note(f"\n{title}")
            return trainer.fit(self.table, settings, progress=self.shown)
        begun = (folder / CONFIG).is_file()
        if begun and read_settings(folder)[1].finished and (folder / RESULTS).is_file():
            self.shown.note(f"\n{title} is finished.")
            opened = open_folder(folder)
            if not all((folder / page).is_file() for page in PAGES):  # they come last, and a kill may have been faster
                write_report(opened)
            return opened
        self.shown.note(f"\n{title}")
        try:
            if begun:
                return trainer.train(self.table, out=folder, resume=True, progress=self.shown)
            return trainer.fit(
                self.table, settings, journal=FolderJournal(check_free(folder, False)), progress=self.shown
            )
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(
                f"Interrupted in {name}; all is saved in {self.folder}. Go on with: tidegate train --resume --out {self.folder}"
            ) from None

    def _rows(self, trained: Trained, part: int, what: str) -> Rows:
        data = divide(self.table, trained.preprocessing, trained.settings, trained.settings.seed)
        source = batch_source(data, trained.preprocessing, trained.device)
        return Rows(data, source, part, f"the {what} rows of {self.table.name}")

    def _member(self, name: str, trained: Trained) -> Member:
        results = trained.results
        assert results is not None
        fold, test = trained.settings.fold if self.plan.repeats.folds else None, None
        parts, unit = trained.resolved.parts, "sequences" if trained.preprocessing.per == "sequence" else "rows"
        scored = _part_of(results)
        if fold is not None:
            test, scored = (results if scored == "test" else None), "valid"
            results = evaluate_rows(trained, self._rows(trained, VALID, VALIDATION))
        best = trained.resolved.best_epoch
        by = trained.resolved.chosen_by
        chosen = None if by is None else next(r[f"valid_{by}"] for r in trained.history if r["epoch"] == best)
        return Member(
            name=name,
            seed=trained.settings.seed,
            fold=fold,
            best_epoch=best,
            chosen=chosen,
            train=parts["train"][unit],
            scored=parts[scored][unit],
            evaluation=results,
            test=test,
        )

    def _of_ensemble(self, members: list[Trained]) -> Evaluation | None:
        """The figures of the ensemble on the rows that its members were scored on; of folds on the test rows, as all others trained
        some of them. None where there are none."""
        first = members[0]
        results = first.results
        assert results is not None
        part = _part_of(results)
        if first.settings.fold is not None and self.plan.repeats.folds and part != "test":
            return None
        return ensemble.evaluate_rows(members, self.table, self._rows(first, PART_NAMES[part], part))


def _part_of(results: Evaluation) -> str:
    """Which part of the table the figures at the end of a training are on."""
    return next(part for part in PART_NAMES if results.what.startswith(f"the {part} rows"))


def _rank(trained: Trained) -> list[float]:
    """How good a run is, by the row of its best epoch, as epochs are compared. Never by test rows."""
    by, best = trained.resolved.chosen_by, trained.resolved.best_epoch
    assert by is not None
    return rank_of(by, next(row for row in trained.history if row["epoch"] == best))


def save(repeats: Repeats, members: Sequence[Trained], folder: Path, *, overwrite: bool = False) -> None:
    """Write an ensemble that is in memory as the folder that training would have written, but for its checkpoints.

    Raises RunError where something is there that may not be replaced; DiskError.
    """
    check_free(folder, overwrite)
    first = members[0]
    asked = {"seeds": [m.seed for m in repeats.members]} if not repeats.of_folds else {"folds": len(repeats.members)}
    settings = first.settings.model_copy(update={"fold": None} if repeats.of_folds else {})
    names = tuple(m.name for m in repeats.members)
    own = RepeatSettings.make(**asked, keep=repeats.keep)
    plan = Plan(settings, own, first.source, first.resolved.table_sha256, names, tidegate=__version__)
    journal = RepeatsJournal(folder, overwrite=overwrite)
    with contextlib.closing(journal):
        journal.begin_repeats(plan)
        for name, member in zip(names, members, strict=True):
            save_one(member, folder / name)
        journal.finish_repeats(plan, repeats, dict(zip(names, members, strict=True)))
