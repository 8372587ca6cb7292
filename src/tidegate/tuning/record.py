"""What came of a search, as data: what a study is of, its trials, and which of them is the best. Knows no Optuna."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tidegate.data.texts import listed
from tidegate.documents import Damaged, check, shown
from tidegate.errors import RunError, SettingsError
from tidegate.trained.comparison import nice, number
from tidegate.trained.figures import KNOWN
from tidegate.trained.settings import TrainSettings, with_earlier_defaults
from tidegate.training.loop import tolerance
from tidegate.tuning.space import Value, parse, text_of

FORMAT = 1
HERE_OR_THERE = {"device", "threads"}  # settings in which the processes of a study may differ
MOST_ROWS = 12  # of a printed table
FINISHED, PRUNED, FAILED, RUNNING = "finished", "pruned", "failed", "running"


@dataclass(frozen=True)
class Definition:
    """What a study is of. Who goes on with it must mean the same.

    table, table_sha256, source: the table's name, digest and path, None where it is in memory. settings: all settings that no trial
    varies, as JSON. space: what is searched, as text. defaults: the values that the settings in the space have where nobody
    searches. chosen_by: the figure of the validation rows by which trials are compared. validates, unit: how many rows or
    sequences that figure is of. tidegate, optuna: the versions that began it.
    """

    table: str
    table_sha256: str
    source: str | None
    settings: dict[str, Any]
    space: dict[str, str]
    defaults: dict[str, Any]
    chosen_by: str
    validates: int
    unit: str
    tidegate: str
    optuna: str
    format: int = FORMAT

    @property
    def more_is_better(self) -> bool:
        return KNOWN[self.chosen_by].more_is_better

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # tuples become lists, as they are read again

    @staticmethod
    def from_dict(values: Any, where: str) -> Definition:
        """What `to_dict` gave. Raises RunError: of a later version, or damaged."""
        found = values.get("format") if isinstance(values, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise RunError(
                f"{where} is of a later version of Tidegate ({shown(values.get('tidegate'))}). Update this one."
            )
        try:
            if not isinstance(values, dict):
                raise Damaged("it doesn't say what it is of")
            check(Definition, values)
            about = Definition(**values)
            if about.chosen_by not in KNOWN:
                raise Damaged(f"the figure {shown(about.chosen_by)}")
            for name, text in about.space.items():
                parse(name, text)
                if name not in about.defaults:
                    raise Damaged(f"no default of {name}")
            settings = TrainSettings.make(
                **with_earlier_defaults(about.settings)
            )  # of an earlier version, it may lack some
            return replace(about, settings=settings.model_dump(mode="json"))
        except (Damaged, SettingsError, TypeError) as error:
            raise RunError(f"{where} is damaged ({error}).") from None

    def differs(self, asked: Definition) -> list[str]:
        """How what is asked for differs from this study, in words."""
        out = []
        if self.table_sha256 != asked.table_sha256:
            same = "it has changed" if self.table == asked.table else f"it is of {self.table}, not of {asked.table}"
            out.append(f"the table ({same})")
        for name in sorted({*self.settings, *asked.settings} - {*self.space, *asked.space} - HERE_OR_THERE):
            theirs, ours = self.settings.get(name), asked.settings.get(name)
            if theirs != ours:
                out.append(f"{name} ({_shown(theirs)} there, {_shown(ours)} here)")
        for name in sorted({*self.space, *asked.space}):
            there, here = self.space.get(name), asked.space.get(name)
            if there != here:
                fixed = "not searched"
                out.append(f"the search over {name} ({there or fixed} there, {here or fixed} here)")
        return out


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else shown(value)


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    number: from 0 on. state: "finished"; "pruned": stopped, as others were better so far, or as it could not go on (`why`); "failed":
    interrupted, or its process is gone; "running". figure: of the validation rows, of the epoch that it would keep. loss: of
    that epoch. settings: the values that it tried. seed: of its training. defaults: whether it is the one with the defaults.
    """

    number: int
    state: str
    figure: float | None = None
    loss: float | None = None
    settings: Mapping[str, Value] | None = None
    seed: int = 0
    defaults: bool = False
    epochs: int | None = None
    seconds: float | None = None
    why: str = ""

    def rank(self, more_is_better: bool) -> tuple[float, float, int]:
        """More is better. Of equal figures the loss decides, as between epochs; of equal ones the first trial wins."""
        figure = math.nan if self.figure is None else self.figure
        worth = -math.inf if math.isnan(figure) else figure if more_is_better else -figure
        loss = self.loss if self.loss is not None and not math.isnan(self.loss) else math.inf
        return worth, -loss, -self.number


@dataclass(frozen=True)
class Tuned:
    """A search: what it is of, and its trials so far. `tidegate.tune` and `tidegate.tuning.open_study` return one.

    study: the file or database; None: it was in memory.
    """

    definition: Definition
    trials: Sequence[Trial]
    study: str | None = None

    def of(self, state: str) -> list[Trial]:
        """The trials in that state: "finished", "pruned", "failed" or "running"."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def ranked(self) -> list[Trial]:
        """The finished trials, the best first."""
        return sorted(self.of(FINISHED), key=lambda t: t.rank(self.definition.more_is_better), reverse=True)

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best validation figure; None where none is finished."""
        return next(iter(self.ranked), None)

    @property
    def defaults(self) -> Trial | None:
        """The finished trial with the defaults; None where it isn't."""
        return next((trial for trial in self.of(FINISHED) if trial.defaults), None)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the best trial, for `tidegate.train(table, **tuned.settings)`: that training repeats the trial. Raises RunError
        where no trial is finished."""
        if self.best is None:
            raise RunError(
                f"{self.study or 'The study'} has no finished trial yet. Go on with it: more trials, or more time."
            )
        return self.settings_of(self.best)

    def settings_of(self, trial: Trial) -> dict[str, Any]:
        """All settings of a trial that differ from the defaults of `tidegate.train`."""
        seeds = {"seed": trial.seed} | ({} if trial.seed == self._seed else {"split_seed": self._split_seed})
        values = self.definition.settings | dict(trial.settings or {}) | seeds
        usual = TrainSettings.make().model_dump(mode="json")
        return {name: values[name] for name in TrainSettings.model_fields if values[name] != usual[name]}

    @property
    def _seed(self) -> int:
        return int(self.definition.settings["seed"])

    @property
    def _split_seed(self) -> int:
        given = self.definition.settings["split_seed"]
        return self._seed if given is None else int(given)

    def command(self, trial: Trial | None = None) -> str:
        """The line to type that trains a trial again, with its report and test figures; None: the best one."""
        settings = self.settings if trial is None else self.settings_of(trial)
        return shlex.join(["tidegate", "train", self._table(), *options_of(settings)])

    def _table(self) -> str:
        """The path of the table as one types it here."""
        if self.definition.source is None:
            return "TABLE"
        source, here = Path(self.definition.source), Path.cwd()
        return str(source.relative_to(here) if source.is_relative_to(here) else source)

    # -------------------------------------------------------------------------------------------- in words

    def verdict(self) -> list[str]:
        """What to make of it, in sentences."""
        about, best, first = self.definition, self.best, self.defaults
        figure = f"validation {nice(about.chosen_by)}"
        if best is None or best.figure is None:
            return ["No trial is finished yet."]
        if first is None or first.figure is None:
            return [
                f"The best is trial {best.number}, {figure} {number(best.figure)}. The trial with the defaults isn't finished, so "
                "whether that is better than not searching can't be said.",
                self._chosen(),
            ]
        if best is first:
            others = len(self.trials) - len(self.of(RUNNING)) - len(self.of(FAILED)) - 1
            return [
                f"No trial was better than the defaults ({figure} {number(first.figure)}; {_count(others, 'other')}). Keep them."
            ]
        ended = self.of(FINISHED)
        better = [t for t in ended if t.rank(about.more_is_better)[:2] > first.rank(about.more_is_better)[:2]]
        gain = abs(best.figure - first.figure)
        sentences = [
            f"The best is trial {best.number}, {figure} {number(best.figure)}; the defaults (trial {first.number}) have "
            f"{number(first.figure)}, {number(gain)} {'less' if about.more_is_better else 'more'}. {len(better)} of "
            f"{_count(len(ended), 'finished trial')} {'was' if len(better) == 1 else 'were'} better than the defaults."
        ]
        return [*sentences, *self._noise(best.figure, first.figure), self._chosen()]

    def _noise(self, best: float, first: float) -> list[str]:
        """How much of the lead may be luck."""
        about = self.definition
        if about.chosen_by == "accuracy" and about.unit == "sequences" and about.validates:
            error = tolerance(first, about.validates)
            if best - first <= error:
                return [
                    f"That is within the noise: on {_count(about.validates, 'sequence')} an accuracy has a standard error of {number(error)}. "
                    "The defaults may be as good."
                ]
            return [f"On {_count(about.validates, 'sequence')} an accuracy has a standard error of {number(error)}."]
        figures = [t.figure for t in self.ranked[:5] if t.figure is not None]
        if len(figures) < 3:
            return []
        spread = max(figures) - min(figures)
        if abs(best - first) <= spread:
            return [
                f"That is no more than the best {len(figures)} trials differ among themselves ({number(spread)}), so much of it may be luck."
            ]
        return [f"The best {len(figures)} trials differ by {number(spread)} among themselves."]

    def _chosen(self) -> str:
        tried = len(self.of(FINISHED)) + len(self.of(PRUNED))
        return (
            f"The validation rows chose it among {tried}, so this figure is better than new rows will give. The test rows were not looked "
            "at: train it with the command below, train the defaults, and compare their test figures. With --seeds 1,2,3 and "
            f"--split-seed {self._split_seed} both have a spread."
        )

    def table(self, most: int = MOST_ROWS) -> tuple[list[str], list[list[str]]]:
        """The best trials as a head and rows of text; the one with the defaults is among them."""
        about = self.definition
        names = [name for name in TrainSettings.model_fields if name in about.space]
        rows = self.ranked[:most]
        if (first := self.defaults) is not None and first not in rows:
            rows[-1:] = [first]
        loss = [] if about.chosen_by == "loss" else ["loss"]  # it decides between equal figures
        head = ["trial", nice(about.chosen_by), *loss, *names, "epochs", "seconds"]
        return head, [
            [
                f"{t.number}{' (defaults)' if t.defaults else ''}",
                number(t.figure if t.figure is not None else math.nan),
                *(number(math.nan if t.loss is None else t.loss) for _ in loss),
                *(text_of((t.settings or {}).get(name)) for name in names),
                "" if t.epochs is None else str(t.epochs),
                "" if t.seconds is None else f"{t.seconds:.0f}",
            ]
            for t in rows
        ]

    @property
    def counted(self) -> str:
        """How many trials there are, by what became of them."""
        stopped = [t for t in self.of(PRUNED) if t.why]
        parts = [
            f"{len(self.of(FINISHED))} finished",
            f"{len(self.of(PRUNED)) - len(stopped)} pruned",
            *([f"{len(stopped)} that could not be trained"] if stopped else []),
            *([f"{len(self.of(FAILED))} failed or interrupted"] if self.of(FAILED) else []),
            *([f"{len(self.of(RUNNING))} running elsewhere"] if self.of(RUNNING) else []),
        ]
        return f"{_count(len(self.trials), 'trial')}: {listed(parts)}"

    def __str__(self) -> str:
        head, rows = self.table()
        lines = [f"{self.counted}.", ""]
        if rows:
            widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
            for row in [head, *rows]:
                lines.append(
                    "  ".join(
                        cell.ljust(w) if k == 0 else cell.rjust(w)
                        for k, (cell, w) in enumerate(zip(row, widths, strict=True))
                    )
                )
            lines.append("")
        lines += self.verdict()
        if self.best is not None:
            lines += ["", f"    {self.command()}"]
        return "\n".join(lines)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line.

    >>> options_of({"target": ["label"], "lr": 0.01, "layer_norm": True, "split": [0.8, 0.1, 0.1]})
    ['--target', 'label', '--lr', '0.01', '--layer-norm', '--split', '0.8,0.1,0.1']
    """
    words: list[str] = []
    for name, value in settings.items():
        about = TrainSettings.model_fields[name].json_schema_extra
        assert isinstance(about, dict)
        flag = "--" + (str(about["option"]) or name.replace("_", "-"))
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, Mapping):
            words += [flag, ",".join(f"{key}={weight}" for key, weight in value.items())]
        elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            words += [word for one in value for word in (flag, one)]
        elif isinstance(value, list | tuple):
            words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, str(value)]
    return words
