"""What Optuna lets us put in: how values are drawn, and how the journal file is locked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileOpenLock

from tidegate.tuning.place import mend
from tidegate.tuning.space import Choice, Range, Value

AT_RANDOM = 10  # trials that are drawn at random before the drawing follows what was good; Optuna's own default
COMPARED_WITH = 5  # finished trials before one is pruned
WARM_UP = 3  # parts in which no trial is pruned: early on, a large learning rate looks better than it will


class Sampler(optuna.samplers.BaseSampler):
    """Optuna's TPE, begun anew for each trial with a seed of that trial: what is drawn depends on the trials before it alone, not on
    which process draws or how often it was restarted.

    defaults: what the trial of that number is given in place of drawn values, where it is the one with the defaults.
    """

    def __init__(self, seed: int, defaults: Callable[[int], Mapping[str, Value] | None]) -> None:
        self.seed, self.defaults = seed, defaults
        self._number = -1

    def _of(self, number: int) -> optuna.samplers.TPESampler:
        if number != self._number:
            self._number, self._fixed = number, self.defaults(number)
            own = int(np.random.SeedSequence([self.seed, 6, number]).generate_state(1)[0])
            with warnings.catch_warnings():  # constant_liar was experimental up to Optuna 4
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # The liar: a trial that another process runs counts as a bad one, so that no two try the same.
                self._tpe = optuna.samplers.TPESampler(n_startup_trials=AT_RANDOM, seed=own, constant_liar=True)
        return self._tpe

    def fixed(self, number: int) -> Mapping[str, Value] | None:
        """What that trial is given in place of drawn values."""
        self._of(number)
        return self._fixed

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        tpe = self._of(trial.number)
        return {} if self._fixed is not None else tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        tpe = self._of(trial.number)
        return {} if self._fixed is not None else tpe.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        tpe = self._of(trial.number)
        if self._fixed is not None:
            return self._fixed[param_name]
        return tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
        """Nothing: a trial of another process is told as failed by this one, too."""


def draw(trial: Any, name: str, parameter: Range | Choice) -> Value:
    """A value of the parameter, by the sampler of the trial's study."""
    value: Value
    if isinstance(parameter, Choice):
        value = trial.suggest_categorical(name, parameter.values)
        return value
    if parameter.whole:
        value = int(trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log))
        return value
    return parameter.rounded(trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log))


def pruner() -> optuna.pruners.MedianPruner:
    """Stops a trial whose best figure so far is worse than the median of the others after the same part of their training."""
    return optuna.pruners.MedianPruner(
        n_startup_trials=COMPARED_WITH, n_warmup_steps=WARM_UP, n_min_trials=COMPARED_WITH
    )


class Lock(JournalFileOpenLock):
    """Optuna's lock file, which works on network disks, too, and is taken over 30 s after its process was killed. Who gets it first
    mends what that process left half-written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        super().acquire()
        try:
            mend(self._path)
        except BaseException:
            self.release()
            raise
        return True
