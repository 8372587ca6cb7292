"""A study in Optuna's storage, which processes and machines share: opened, kept from being mixed up, and freed of dead trials."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import TrialState

from tidegate.documents import check, cut
from tidegate.errors import RunError, SettingsError, TidegateError
from tidegate.files import DiskError
from tidegate.processes import me
from tidegate.tuning.optuna_parts import Lock, Sampler, draw, pruner
from tidegate.tuning.owner import BEAT, gone
from tidegate.tuning.place import Place
from tidegate.tuning.record import FAILED, FINISHED, PRUNED, RUNNING, Definition, Trial
from tidegate.tuning.space import Space, Value
from tidegate.tuning.trial import seed_of

ABOUT = "tidegate"  # the attribute of a study that says what it is of
PATIENCE = 5.0  # seconds until whoever made the study has said what it is of
STATES = {
    TrialState.COMPLETE: FINISHED,
    TrialState.PRUNED: PRUNED,
    TrialState.FAIL: FAILED,
    TrialState.RUNNING: RUNNING,
    TrialState.WAITING: RUNNING,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna prints a line a trial; we have our own."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class Lost(Exception):
    """Somebody else has ended this trial: it was silent for too long."""


@contextlib.contextmanager
def _sentences(place: Place) -> Iterator[None]:
    """What goes wrong with the storage becomes a sentence."""
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise Lost from None
    except (TidegateError, Lost):
        raise
    except OSError as error:
        raise DiskError(
            f"{place} could not be written or read ({error.strerror or error}). What was written is kept."
        ) from error
    except ImportError as error:
        raise SettingsError(f"{place} can't be opened: {cut(str(error))}") from error
    except Exception as error:
        why = f"{type(error).__name__}: {cut(str(error))}".rstrip(": .")
        if where := place.damage():
            raise RunError(f"{place} is damaged, {where} ({why}). Restore it, or begin another study.") from error
        more = (
            "" if place.path is None else f" It may be damaged, or of another version than Optuna {optuna.__version__}."
        )
        raise RunError(f"{place} can't be used ({why}).{more}") from error


class Study:
    """Where trials are asked for and told. All of Optuna's calls are here."""

    def __init__(self, place: Place) -> None:
        """Opens the place; a file must be there, or `create` makes it. Raises RunError, DiskError, SettingsError."""
        self.place = place
        self._study: Any = None
        there = place.check()
        self._storage: Any = self._open() if there else None

    def _open(self) -> Any:
        place = self.place
        with _sentences(place):
            if place.path is not None:
                place.path.parent.mkdir(parents=True, exist_ok=True)
                backend = optuna.storages.journal.JournalFileBackend(str(place.path), lock_obj=Lock(place.path))
                return optuna.storages.JournalStorage(backend)
            if place.url is None:
                return optuna.storages.InMemoryStorage()
            try:
                return optuna.storages.RDBStorage(place.url)
            except (optuna.exceptions.StorageInternalError, ImportError):
                raise
            except Exception:  # two processes that begin at once may make the same tables
                time.sleep(1)
                return optuna.storages.RDBStorage(place.url)

    def definition(self) -> Definition | None:
        """What the study is of; None where there is none yet. Raises RunError where another program made it."""
        if self._storage is None:
            return None
        until = time.monotonic() + PATIENCE
        while True:
            with _sentences(self.place):
                names = optuna.study.get_all_study_names(self._storage)
                if self.place.name not in names:
                    if names and self.place.path is not None:
                        raise RunError(
                            f"{self.place} holds a study of another program ({cut(', '.join(names))}). Choose another file."
                        )
                    return None
                study = optuna.load_study(study_name=self.place.name, storage=self._storage)
                about = study.user_attrs.get(ABOUT)
                if about is not None:
                    return Definition.from_dict(about, str(self.place))
                if study.get_trials(deepcopy=False):
                    raise RunError(
                        f"{self.place} was made by another program than Tidegate. Choose another name or file."
                    )
            if time.monotonic() > until:
                return None  # who made it was killed before it could say
            time.sleep(PATIENCE / 50)

    def create(self, definition: Definition) -> Definition:
        """Make the study; where another process was faster, what that one says it is of."""
        if self._storage is None:
            self._storage = self._open()
        with _sentences(self.place):
            try:
                study = optuna.create_study(
                    storage=self._storage,
                    study_name=self.place.name,
                    direction="maximize" if definition.more_is_better else "minimize",
                )
            except optuna.exceptions.DuplicatedStudyError:
                study = None
        if study is None:
            theirs = self.definition()
            if theirs is not None:
                return theirs
            study = optuna.load_study(study_name=self.place.name, storage=self._storage)
        with _sentences(self.place):
            study.set_user_attr(ABOUT, definition.to_dict())
        return definition

    def begin(self, definition: Definition, space: Space) -> None:
        """From here on trials are asked for."""
        self.seed, self.space, self._about = int(definition.settings["seed"]), space, definition
        self.sampler = Sampler(self.seed, self._defaults)
        with _sentences(self.place):
            self._study = optuna.load_study(
                study_name=self.place.name, storage=self._storage, sampler=self.sampler, pruner=pruner()
            )

    def _all(self) -> list[Any]:
        with _sentences(self.place):
            study = self._study or optuna.load_study(study_name=self.place.name, storage=self._storage)
            return list(study.get_trials(deepcopy=False))

    def trials(self) -> list[Trial]:
        """All trials, as they stand; but for those that were never needed (see `ask`)."""
        there = self._all()
        with _sentences(self.place):
            return [record(t) for t in there if not t.user_attrs.get("not_needed")]

    def bury(self) -> list[int]:
        """Tell the trials whose process is gone as failed; their numbers."""
        dead = []
        for trial in self._all():
            if trial.state != TrialState.RUNNING:
                continue
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            if gone(trial.user_attrs.get("owner"), trial.user_attrs.get("seen", began), time.time()):
                self.tell(trial.number, None, TrialState.FAIL)
                dead.append(trial.number)
        return dead

    def tell(self, number: int, figure: float | None, state: Any) -> Any:
        """End a trial; how it has ended, as somebody else may have been faster."""
        with _sentences(self.place):
            return self._study.tell(number, figure, state=state, skip_if_finished=True).state

    def wanted(self, trials: int) -> bool:
        """Whether fewer than so many trials have ended well or are running."""
        return _needed(self._all()) < trials

    def ask(self, trials: int) -> Asked | None:
        """A new trial; None where others began the last ones in the same moment.

        Every process counts the trials before its own, which all see alike. So of several that ask at once for the last one, the first gets it.
        """
        with _sentences(self.place):
            trial = self._study.ask()
        asked = Asked(self, trial)
        if _needed([t for t in self._all() if t.number < trial.number]) >= trials:
            with _sentences(self.place):
                trial.set_user_attr("not_needed", True)
            asked.end("failed")
            return None
        return asked

    def _defaults(self, number: int) -> Mapping[str, Value] | None:
        """What the trial of that number has in place of drawn values: the defaults, where no trial before it has or had them."""
        earlier = [t for t in self._all() if t.number < number and t.state != TrialState.FAIL]
        there = any(t.number == 0 or t.user_attrs.get("defaults") for t in earlier)
        return None if there else self._about.defaults


def _needed(trials: list[Any]) -> int:
    return sum(t.state != TrialState.FAIL for t in trials)


class Asked:
    """A trial that this process runs. A sign of life is written every minute until it has ended."""

    def __init__(self, study: Study, trial: Any) -> None:
        self._study, self._trial, self.number = study, trial, int(trial.number)
        self._told: set[int] = set()
        self._ended = threading.Event()
        self._beat: threading.Thread | None = None

    @property
    def place(self) -> Place:
        return self._study.place

    def begin(self) -> Trial:
        """Draw its values, and write down whose it is."""
        defaults = self._study.sampler.fixed(self.number)
        values = {name: self._draw(name, parameter, defaults) for name, parameter in self._study.space.items()}
        seed = self._study.seed if defaults is not None else seed_of(self._study.seed, self.number)
        self._set(owner=me(), seen=time.time(), settings=values, seed=seed, defaults=defaults is not None)
        self._beat = threading.Thread(target=self._keep_alive, name="tidegate-study", daemon=True)
        self._beat.start()
        return Trial(self.number, RUNNING, settings=values, seed=seed, defaults=defaults is not None)

    def _draw(self, name: str, parameter: Any, defaults: Mapping[str, Value] | None) -> Value:
        if defaults is not None and defaults[name] not in parameter:
            return defaults[name]  # outside of what is searched: Optuna need not learn of it
        with _sentences(self.place):
            return draw(self._trial, name, parameter)

    def _keep_alive(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(
                DiskError, RunError, Lost
            ):  # the next one may work, and the end is told by another thread
                self._set(seen=time.time())

    def report(self, part: int, figure: float) -> bool:
        """After a part of its training: the best figure so far. Whether it isn't worth going on."""
        if part in self._told or not math.isfinite(figure):
            return False
        self._told.add(part)
        with _sentences(self.place):
            self._trial.report(figure, part)
            return bool(self._trial.should_prune())

    def end(self, state: str, figure: float | None = None, **about: Any) -> None:
        """It is "finished" with a figure, "pruned" or "failed". Raises Lost where others have ended it."""
        self.stop()
        self._set(**about)
        kind = next(optunas for optunas, ours in STATES.items() if ours == state)
        with _sentences(self.place):
            told = self._study.tell(self.number, figure if state == FINISHED else None, kind)
        if told != kind:
            raise Lost

    def stop(self) -> None:
        """No more signs of life."""
        self._ended.set()
        if self._beat is not None:
            self._beat.join()

    def _set(self, **values: Any) -> None:
        with _sentences(self.place):
            for name, value in values.items():
                self._trial.set_user_attr(name, value)


def record(trial: Any) -> Trial:
    """A trial of Optuna's as ours. Raises Damaged where it has what no trial has."""
    attrs = trial.user_attrs
    figure = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    names = ("loss", "settings", "seed", "defaults", "epochs", "seconds", "why")
    made = Trial(
        number=trial.number,
        state=STATES[trial.state],
        figure=figure if figure is not None and math.isfinite(figure) else None,
        **{name: attrs[name] for name in names if name in attrs},
    )
    check(Trial, asdict(made))
    return made
