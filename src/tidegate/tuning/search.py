"""`tune`: what is searched, one trial after the other until there are enough, and the report."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate import __version__
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import MISSING_CLASS, TRAIN, VALID, Sequences
from tidegate.data.tables import Table, read_table
from tidegate.documents import shown
from tidegate.errors import DataError, Interrupted, RunError, SettingsError, package_missing
from tidegate.trained.evaluation import check_choice
from tidegate.trained.metrics import chooser
from tidegate.trained.rows import batch_source
from tidegate.trained.settings import RepeatSettings, TrainSettings, read_settings_file
from tidegate.training.progress import Silent, make
from tidegate.training.resolve import check_precision, class_weights, complete, find_device, model_spec
from tidegate.tuning import trial as one_trial
from tidegate.tuning.place import Place, masked
from tidegate.tuning.progress import Bar, line
from tidegate.tuning.record import FAILED, FINISHED, Definition, Trial, Tuned
from tidegate.tuning.report import write_report
from tidegate.tuning.space import Facts, Space, check_space, default_space, defaults_of, parse, read_search
from tidegate.tuning.trial import OutOfTime

if TYPE_CHECKING:
    from tidegate.tuning.study import Asked, Study

TRIALS = 30
OWN = ("trials", "study", "study_name", "time_limit", "search")  # what a YAML file may say beside settings
# A trial begins anew, and is one run.
NOT_HERE = {"from_run", "freeze", *RepeatSettings.model_fields}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def tune(
    table: Any = None,
    target: str | list[str] | None = None,
    *,
    study: str | Path | None = None,
    trials: int | None = None,
    time_limit: str | float | None = None,
    search: Any = None,
    study_name: str | None = None,
    config: str | Path | None = None,
    report: str | Path | None = None,
    progress: bool | Silent = True,
    **settings: Any,
) -> Tuned:
    """Search for settings: train many models in memory, and compare them by their validation rows. The test rows are not looked at.

    table, target, **settings: as for `tidegate.train`; what is given here is fixed, and no trial varies it. config: a YAML file with
        the same names, and `search`, `trials`, `study`, `time_limit`.
    study: the file in which the trials are kept, or the URL of a database that Optuna knows ("sqlite:///tune.db",
        "postgresql://..."). If it is there, the search goes on; then table and settings may be left out. Several processes and
        machines may work on one study at the same time. None: the study is in memory, and ends with the call.
    trials: how many there are to be in the study in all, those of other processes and of earlier calls included; 30 by default.
    time_limit: "2h", "90m", "1h30m" or seconds, after which this process ends its search.
    search: what is searched in place of the default space: "hidden_size=32..256", "lr=0.001..0.02:log", "reset=after,before", a list
        of such, or a mapping of names to ranges or lists; "default" among them keeps the default space beside. See docs/tune.md.
    study_name: of the study in a database.
    report: the folder of the report; None: beside the file of the study.

    Returns all trials so far, the best of them, and the settings and the command line that train it again. Raises SettingsError,
    DataError or RunError before anything is trained; Interrupted after Ctrl-C (the same call goes on); PackageMissingError without Optuna.
    """
    check_optuna()
    from tidegate.tuning.study import Study, quiet

    shown_ = make(progress)
    settings |= {} if target is None else {"target": target}
    asked = _Asked.of(
        table, settings, config, dict(zip(OWN, (trials, study, study_name, time_limit, search), strict=True))
    )
    place = Place.of(asked.study, asked.study_name)
    with quiet():
        kept = Study(place)
        before = kept.definition()
        if asked.table is None:
            asked = asked.of_study(before, place)
        read, chosen, space, definition = _define(asked, shown_)
        if before is None:
            before = kept.create(definition)
        _check_same(before, definition, place)
        if before.tidegate != __version__:
            shown_.note(f"Note: {place} was begun with Tidegate {before.tidegate}, and this is {__version__}.")
        kept.begin(before, space)
        searching = _Search(kept, before, read, chosen, asked, shown_)
        searching.run()
        tuned = Tuned(
            before, kept.trials(), None if place.path is None and place.url is None else masked(place.argument)
        )
    page = ""
    if report is not None or place.path is not None:
        page = f"\n\nReport: {write_report(tuned, report)}"
    shown_.note(f"\n{tuned}{page}")
    return tuned


def open_study(study: str | Path, study_name: str | None = None) -> Tuned:
    """A study as it stands, also while others work on it. Nothing is trained.

    Raises RunError where there is none, or another program's; PackageMissingError without Optuna.
    """
    check_optuna()
    from tidegate.tuning.study import Study, quiet

    place = Place.of(study, study_name)
    with quiet():
        kept = Study(place)
        definition = kept.definition()
        if definition is None:
            raise RunError(
                f"{_nothing(place)} Begin one: tidegate tune TABLE --target COLUMN --study {masked(place.argument)}"
            )
        return Tuned(definition, kept.trials(), masked(place.argument))


def check_optuna() -> None:
    """Raises PackageMissingError where it isn't installed."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise package_missing("tidegate tune", ["optuna"], "tune") from error


def _nothing(place: Place) -> str:
    return f"There is no study {place.name!r} in {masked(place.argument)}." if place.url else f"No such study: {place}."


def seconds_of(limit: Any) -> float | None:
    """A time as text or seconds.

    >>> [seconds_of(t) for t in (None, "2h", "1h30m", "45s", 90)]
    [None, 7200.0, 5400.0, 45.0, 90.0]

    Raises SettingsError.
    """
    if limit is None:
        return None
    if isinstance(limit, int | float) and not isinstance(limit, bool):
        seconds = float(limit)
    else:
        found = _DURATION.fullmatch(str(limit).strip().lower().replace(" ", ""))
        parts = found.groups() if found and isinstance(limit, str) else ()
        seconds = sum(
            float(part) * unit for part, unit in zip(parts, (86_400, 3_600, 60, 1), strict=bool(parts)) if part
        )
    if not 0 < seconds < math.inf:
        raise SettingsError(f"time_limit={shown(limit)}: expected a time above 0, such as 2h, 90m, 1h30m or 45s.")
    return seconds


# ------------------------------------------------------------------------------------------------ what is asked for


@dataclass
class _Asked:
    """A call of `tune`, read. settings: those that are fixed. space: None: the default one; else what was named."""

    table: Any
    settings: dict[str, Any]
    space: Space
    with_default: bool
    trials: int
    seconds: float | None
    study: Any
    study_name: Any

    @staticmethod
    def of(table: Any, settings: Mapping[str, Any], config: Any, own: Mapping[str, Any]) -> _Asked:
        """Arguments, and where they are silent the YAML file. Raises SettingsError."""
        values = read_settings_file(config, more=OWN) if config else {}
        source, said = values.pop("table", None), {name: values.pop(name, None) for name in (*OWN, "out")}
        _check_one_run(values | dict(settings))
        values, settings = ({k: v for k, v in both.items() if k not in NOT_HERE} for both in (values, settings))
        took = {name: own[name] if own[name] is not None else said[name] for name in OWN}
        space, default = read_search(took["search"])
        if own["search"] is not None:  # the command line wins over the file
            values = {name: value for name, value in values.items() if name not in space}
        if twice := [name for name in space if name in values or name in settings]:
            raise SettingsError(f"{twice[0]} is both given and searched. Leave one of them out.")
        trials = TRIALS if took["trials"] is None else took["trials"]
        if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
            raise SettingsError(f"trials={shown(trials)}: expected a whole number of at least 1.")
        return _Asked(
            table=table if table is not None else source,
            settings=values | dict(settings),
            space=space,
            with_default=default or not space,
            trials=trials,
            seconds=seconds_of(took["time_limit"]),
            study=took["study"],
            study_name=took["study_name"],
        )

    def of_study(self, before: Definition | None, place: Place) -> _Asked:
        """Where no table is named: what the study itself says."""
        if before is None:
            if place.path is None and place.url is None:
                raise SettingsError("No table: name a CSV, Parquet, JSON lines or Arrow file.")
            raise SettingsError(
                f"No table, and {_nothing(place)[0].lower()}{_nothing(place)[1:]} Name a table to begin one."
            )
        if before.source is None:
            raise SettingsError(f"{place} is of a table in memory: pass the same table again.")
        theirs = {name: value for name, value in before.settings.items() if name not in before.space}
        space = self.space or {
            name: parse(name, text) for name, text in before.space.items() if name not in self.settings
        }
        return _Asked(
            table=before.source,
            settings=theirs | self.settings,
            space=space,
            with_default=bool(self.space) and self.with_default,
            trials=self.trials,
            seconds=self.seconds,
            study=self.study,
            study_name=self.study_name,
        )


def _check_one_run(values: Mapping[str, Any]) -> None:
    """Raises SettingsError for what a trial can't have. (A run's own config.yaml names all settings, those with their defaults, too.)"""
    for name in NOT_HERE & {*values}:
        usual = (TrainSettings.model_fields | RepeatSettings.model_fields)[name].default
        if values[name] not in (None, [], usual):
            raise SettingsError(
                f"{name} is for tidegate train: a trial of a search begins anew, and is a single run. Leave it out, and give it to the "
                "training of the best trial."
            )


def _define(asked: _Asked, shown_: Silent) -> tuple[Table, TrainSettings, Space, Definition]:
    """Read the table and see to it that every trial can be trained. Raises DataError, SettingsError."""
    import optuna

    chosen = TrainSettings.make(**asked.settings)
    check_space(asked.space, asked.settings)
    read = read_table(asked.table, **chosen.reading)
    if chosen.split_seed is None:  # all trials have the same rows, whatever their seeds
        split = chosen.model_copy(update={"split_seed": chosen.seed})
    else:
        split = chosen
    pre, data = fit_preprocessing(read, split, split.seed)
    batches = batch_source(data, pre, "cpu")
    for part, what in ((TRAIN, "training"), (VALID, "validation")):
        if not batches.has_targets(part):
            raise DataError(
                f"{read.name}: no {what} row has a target, and trials are {'trained on' if part == TRAIN else 'compared by'} these. Name "
                "them by a split: fractions (--split 0.7,0.15,0.15), or a column."
            )
    check_choice(pre, batches, chosen.choose_by)
    class_weights(chosen, pre.target)
    check_precision(chosen.precision, find_device(chosen.device))
    full, spec = complete(chosen, data), model_spec(chosen, pre, data)
    facts = Facts(
        resolved={
            **{name: getattr(full, name) for name in ("batch_size", "window", "epochs", "patience")},
            "bidirectional": spec.bidirectional,
            "residual": spec.residual is not None,
        },
        longest=_longest(data),
        sequences=pre.per == "sequence",
    )
    space = default_space(chosen, {*asked.settings, *asked.space}, facts) if asked.with_default else {}
    space = {name: both[name] for name in TrainSettings.model_fields if name in (both := space | asked.space)}
    if not space:
        raise SettingsError(
            "Nothing is left to search: all of it is given. Leave some options out, or name what to search (--search)."
        )
    _check_with_data(space, chosen, pre, data)
    by = chooser(pre.target, pre.horizon, chosen.choose_by)
    targets = batches.all_targets(VALID)
    validates = int((targets != MISSING_CLASS).sum()) if pre.target.task == "class" else int((data.part == VALID).sum())
    unit = "sequences" if pre.per == "sequence" else "rows"
    definition = Definition(
        table=read.name,
        table_sha256=read.sha256 or _digest(read),
        source=str(read.path.resolve()) if read.path else None,
        settings=chosen.model_dump(mode="json"),
        space={name: str(parameter) for name, parameter in space.items()},
        defaults=defaults_of(space, chosen, facts),
        chosen_by=by,
        validates=validates,
        unit=unit,
        tidegate=__version__,
        optuna=optuna.__version__,
    )
    for note in data.notes:
        shown_.note(note)
    return read, split, space, definition


def _longest(data: Sequences) -> int:
    segments = data.segments(TRAIN)
    return int((segments[:, 1] - segments[:, 0]).max())


def _check_with_data(space: Space, chosen: TrainSettings, pre: Any, data: Sequences) -> None:
    """Raises SettingsError where this table allows no such value."""
    for name, parameter in space.items():
        for value in parameter.ends:
            try:
                settings = TrainSettings.make(**(chosen.model_dump() | {name: value}))
                complete(settings, data)
                model_spec(settings, pre, data)
                class_weights(settings, pre.target)
            except SettingsError as error:
                raise SettingsError(f"search: {name}={parameter}: {error}") from None


def _digest(table: Table) -> str:
    """Of a table in memory: the same columns and values give the same."""
    out = io.BytesIO()
    table.frame.rechunk().write_ipc(out)
    return hashlib.sha256(out.getvalue()).hexdigest()


def _check_same(before: Definition, asked: Definition, place: Place) -> None:
    differences = before.differs(asked)
    if differences:
        raise RunError(
            f"{place} is another search: it differs in {'; '.join(differences)}. Begin another study for this one, or go on with that "
            f"one: tidegate tune --study {shlex.quote(masked(place.argument))}"
        )


# ------------------------------------------------------------------------------------------------ trial after trial


class _Search:
    """The trials of one process."""

    def __init__(
        self, study: Study, about: Definition, table: Table, settings: TrainSettings, asked: _Asked, shown_: Silent
    ) -> None:
        self.study, self.about, self.table, self.settings = study, about, table, settings
        self.trials, self.shown = asked.trials, shown_
        self.until = None if asked.seconds is None else time.monotonic() + asked.seconds
        self.bar = Bar(shown_)

    def run(self) -> None:
        """Until there are enough trials, or the time is over. Raises Interrupted."""
        about = self.about
        self.shown.note(
            f"{about.table}: up to {self.trials} trials, compared by their validation {about.chosen_by} ({about.validates:,} {about.unit})."
        )
        self.shown.note(f"Searches {', '.join(f'{name} {text}' for name, text in about.space.items())}.")
        current: Asked | None = None
        try:
            self._bury()
            self.bar.begin(self.trials, self._done())
            while self.study.wanted(self.trials) and not self._late():
                current = self.study.ask(self.trials)
                if current is None:
                    break
                self._one(current)
                current = None
                self._bury()
        except OutOfTime:
            pass
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(self._interrupted(current)) from None
        finally:
            self.bar.end()
        if self._late():
            self.shown.note("The time is over.")

    def _late(self) -> bool:
        return self.until is not None and time.monotonic() > self.until

    def _done(self) -> int:
        return sum(trial.state not in (FAILED, "running") for trial in self.study.trials())

    def _bury(self) -> None:
        for number in self.study.bury():
            self.shown.note(f"trial {number}  its process is gone: it counts as failed")

    def _one(self, asked: Asked) -> None:
        """Run a trial and tell how it ended, whatever happens."""
        from tidegate.tuning.study import Lost

        try:
            trial = asked.begin()
            values = dict(trial.settings or {}) | {"seed": trial.seed}
            settings = TrainSettings.make(**(self.settings.model_dump() | values))
            done = self._done()

            def step(share: float, loss: float) -> None:
                self.bar.show(f"trial {trial.number}: loss {loss:.4f}", done + share)
                self.shown.step(loss)

            state, figure, about = one_trial.run(
                self.table, settings, report=asked.report, may_stop=not trial.defaults, step=step, until=self.until
            )
            asked.end(state, figure, **about)
        except Lost:
            asked.stop()
            self.shown.note(
                f"trial {asked.number}  was taken for dead by another process, as there was no sign of life for long; it counts as failed"
            )
        except BaseException as error:
            why = {OutOfTime: "the time was over", Interrupted: "interrupted", KeyboardInterrupt: "interrupted"}
            with contextlib.suppress(Lost, Exception):
                asked.end(FAILED, why=why.get(type(error), f"{type(error).__name__}: {error}"))
            asked.stop()
            raise
        else:
            self._told(asked.number)

    def _told(self, number: int) -> None:
        tuned = Tuned(self.about, self.study.trials())
        trial = next(trial for trial in tuned.trials if trial.number == number)
        best: Trial | None = tuned.best if trial.state == FINISHED else None
        self.shown.note(line(trial, self.about, best))

    def _interrupted(self, current: Asked | None) -> str:
        place = self.study.place
        lost = "" if current is None else f" in trial {current.number}, which counts as failed"
        if place.path is None and place.url is None:
            return f"Interrupted{lost}. The study was in memory alone; name a file (study) to keep the trials."
        table = "" if self.about.source else " TABLE ..."
        name = "" if place.url is None or place.name == Place.name else f" --study-name {shlex.quote(place.name)}"
        again = f"tidegate tune{table} --study {shlex.quote(masked(place.argument))}{name} --trials {self.trials}"
        return f"Interrupted{lost}; the others are kept in {place}. Go on with: {again}"
