"""What several runs of one training come to: the mean and the spread of every figure, and the folder that holds them.

runs/NAME/repeats.yaml     the settings, which runs there are, which of them is kept
runs/NAME/results.json     the figures of all of them, `Repeats`
runs/NAME/report.html      and report.md
runs/NAME/seed-1/ ...      each an ordinary run
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tidegate.errors import RunError, SettingsError
from tidegate.trained.comparison import Evaluation, aligned, compared, nice, number, shown
from tidegate.trained.figures import KNOWN
from tidegate.trained.folder import REPEATS, RESULTS
from tidegate.trained.settings import RepeatSettings, TrainSettings
from tidegate.trained.spread import SURE, Spread, margin, spread
from tidegate.trained.trained import Trained, open_folder

VERSION = 1  # of repeats.yaml and of results.json beside it
ENSEMBLE, REFIT = "ensemble", "refit"
Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Member:
    """One of several runs.

    name: its folder within theirs. best_epoch: whose weights it has. chosen: the figure of the validation rows that chose it, and
    with it the run; None where there was none. train, scored: rows (or sequences) that it trained on, and that its figures are on.
    evaluation: the figures that are repeated: on the test rows, of folds on the validation rows; test: of folds on the test rows.
    """

    name: str
    seed: int
    fold: str | None
    best_epoch: int | None
    chosen: float | None
    train: int
    scored: int
    evaluation: Evaluation
    test: Evaluation | None = None


class Contest(NamedTuple):
    """One figure of the model and of the best baseline by it. lead: the mean of the differences by run, above 0 where the model's
    is better; margin: half of its 95 % interval.
    """

    figure: str
    ours: Spread
    theirs: Spread
    name: str
    lead: float
    margin: float

    @property
    def told_apart(self) -> bool:
        return abs(self.lead) > self.margin

    @property
    def against(self) -> str:
        return f"{nice(self.figure)} {told(self.ours)} ({self.name}: {told(self.theirs)})"


@dataclass(frozen=True)
class Repeats:
    """The figures of several runs of one training, and which of them is kept.

    str(repeats) is the report as text; `to_dict()` gives all numbers. table: its name. keep: "best", "ensemble" or "refit"; kept: the
    name of the run that is kept, or "ensemble". chosen_by: the figure of the validation rows that chose epochs and runs. drawn:
    whether each run drew other rows to train on. own: the figures of the ensemble or of the run that was trained anew, where there are
    rows that none of it was trained on. epochs: of the run that was trained anew.
    """

    table: str
    members: Sequence[Member]
    keep: str
    kept: str
    chosen_by: str | None = None
    drawn: bool = False
    own: Evaluation | None = None
    epochs: int | None = None
    version: int = field(default=VERSION, repr=False)

    @property
    def of_folds(self) -> bool:
        return self.members[0].fold is not None

    @property
    def tested(self) -> bool:
        """Whether folds have figures on test rows, too."""
        return all(m.test is not None for m in self.members)

    @property
    def ratio(self) -> float:
        """Scored rows over training rows, the mean over the runs, where these draw them anew; else 0. See `spread.margin`."""
        if not self.drawn:
            return 0.0
        return math.fsum(m.scored / m.train for m in self.members) / len(self.members)

    def spread(self, figure: str, baseline: str | None = None, *, test: bool = False) -> Spread:
        """The mean and the standard deviation (n - 1) of a figure over the runs: the model's, or that of a baseline."""
        return spread(self._values(figure, baseline, test))

    def _values(self, figure: str, baseline: str | None, test: bool) -> list[float]:
        out = []
        for member in self.members:
            evaluation = member.test if test else member.evaluation
            assert evaluation is not None
            scores = evaluation.model if baseline is None else evaluation.baselines.get(baseline)
            out.append(math.nan if scores is None else scores.summary.get(figure, math.nan))
        return out

    def contests(self) -> list[Contest]:
        """The model beside the best baseline, by every figure that a verdict looks at; the one that counts most first."""
        one = self.members[0].evaluation
        found = []
        for figure in compared(one):
            sign = 1 if figure in KNOWN and KNOWN[figure].more_is_better else -1
            ours = self._values(figure, None, False)
            theirs = {name: self._values(figure, name, False) for name in one.baselines}
            theirs = {name: v for name, v in theirs.items() if not math.isnan(spread(v).mean)}
            if math.isnan(spread(ours).mean) or not theirs:
                continue
            name = max(theirs, key=lambda n: sign * spread(theirs[n]).mean)
            leads = [sign * (a - b) if a != b else 0.0 for a, b in zip(ours, theirs[name], strict=True)]
            half = margin(leads, self.ratio)
            found.append(Contest(figure, spread(ours), spread(theirs[name]), name, spread(leads).mean, half))
        return found

    def verdict(self) -> str:
        """Does the model beat the best baseline by more than the runs differ among themselves? "" where there is no baseline."""
        contests = self.contests()
        if not contests:
            return ""
        first = contests[0]
        what = f"{nice(first.figure)} {told(first.ours)} against {told(first.theirs)}"
        by = f"{first.lead:.3g}, {SURE:.0%} interval {first.lead - first.margin:.3g} to {first.lead + first.margin:.3g}"
        if not first.told_apart:
            text = f"Not told apart from {first.name!r}: {what}; the model's lead is {by}."
        elif first.lead > 0:
            text = f"Better than the best baseline, {first.name!r}: {what}; the lead is {by}."
        else:
            text = f"Worse than {first.name!r}: {what}; the model's lead is {by}."
        sides = {
            "ahead": [c for c in contests[1:] if c.told_apart and c.lead > 0],
            "behind": [c for c in contests[1:] if c.told_apart and c.lead < 0],
            "not told apart": [c for c in contests[1:] if not c.told_apart],
        }
        mixed = len([side for side in sides.values() if side]) > 1 or not sides["ahead" if first.lead > 0 else "behind"]
        if len(contests) > 1 and (mixed or not first.told_apart):
            parts = [f"{side} by {', '.join(c.against for c in some)}" for side, some in sides.items() if some]
            text += f" By other figures: {'; '.join(parts)}."
        r2 = self.spread("r2")
        return f"Worse than the mean of the scored rows: R² {told(r2)}. {text}" if r2.mean < 0 else text

    def notes(self) -> list[str]:
        """What the figures mean, and what is kept; a sentence each."""
        count = len(self.members)
        out = [f"± is the sample standard deviation over the {count} runs (n - 1)."]
        rule = "A lead counts where its 95% interval leaves out 0: "
        if not self.drawn:
            out.append(
                f"{rule}a paired t-test by run. All runs have the same rows, so it speaks of the seed alone, not of other rows."
            )
        else:
            out.append(
                f"{rule}the corrected resampled t-test by run (Nadeau and Bengio 2003), as the runs share training rows; scored rows over "
                f"training rows: {self.ratio:.3g}."
            )
        if self.of_folds:
            out.append(
                "The validation rows of a fold also chose its epoch, which favours the model and the head without a recurrence a little"
                + ("; the test rows did not." if self.tested else ".")
            )
        elif self.drawn:
            out.append(
                "Each run drew a split of its own by its seed: ± holds that, too, and the validation scores are of different rows. With "
                "split_seed (--split-seed) all have the same."
            )
        if self.members[0].evaluation.what.startswith("the valid rows"):
            out.append("There are no test rows: these figures are of the validation rows, which also chose the epochs.")
        return [*out, self._what_is_kept()]

    def _what_is_kept(self) -> str:
        if self.keep == "ensemble":
            text = f"Kept: the ensemble, which predicts the mean of the {len(self.members)} runs."
            if self.own is None:
                text += " It has no figures of its own, as every row trained one of them."
            return text
        if self.keep == "refit":
            text = f"Kept: {self.kept}, trained on the rows of all folds for {self.epochs} epochs, the median of the folds' best ones."
            if self.own is None:
                text += " No row is left to score it; the figures of the folds say what to expect of it."
            return text
        chosen = next(m.chosen for m in self.members if m.name == self.kept)
        assert chosen is not None
        return f"Kept: {self.kept}, the best by the validation {nice(self.chosen_by or '')} ({number(chosen)})."

    def summary(self, *, test: bool = False) -> Table:
        """Head and rows: mean ± standard deviation of the model and of each baseline; last the ensemble or the run that was trained
        anew, where it was scored on the same rows.
        """
        one = self.members[0].test if test else self.members[0].evaluation
        assert one is not None
        figures = shown(one)
        rows = [
            [one.name if name is None else name, *(told(self.spread(f, name, test=test)) for f in figures)]
            for name in (None, *one.baselines)
        ]
        if self.own is not None and self.own.what == one.what:
            name = self.own.name if self.keep == "ensemble" else f"{self.own.name}, {self.kept}"
            rows.append([name, *(number(self.own.model.summary.get(f, math.nan)) for f in figures)])
        return ["", *(nice(f) for f in figures)], rows

    def runs(self) -> Table:
        """Head and rows: a run each, its best epoch, what chose it, and the model's figures."""
        figures = shown(self.members[0].evaluation)
        chosen = [f"validation {nice(self.chosen_by)}"] if self.chosen_by and not self.of_folds else []
        also = [f"test {nice(f)}" for f in figures[:1]] if self.of_folds and self.tested else []
        rows = []
        for m in self.members:
            mine = m.evaluation.model.summary
            row = [m.name, number(m.best_epoch or 0)]
            row += [number(math.nan if m.chosen is None else m.chosen)] if chosen else []
            row += [number(mine.get(f, math.nan)) for f in figures]
            row += [number(m.test.model.summary.get(f, math.nan)) for f in figures[:1]] if also and m.test else []
            rows.append(row)
        return ["run", "best epoch", *chosen, *(nice(f) for f in figures), *also], rows

    @property
    def title(self) -> str:
        kind = "folds" if self.of_folds else "runs with other seeds"
        what = self.members[0].evaluation.what
        return f"{len(self.members)} {kind}, each on {'its ' + what[4:] if self.drawn else what}"

    def __str__(self) -> str:
        lines = [f"{self.title}:", *aligned(*self.summary())]
        if self.of_folds and self.tested:
            test = self.members[0].test
            assert test is not None
            lines += [f"\nOn {test.what}:", *aligned(*self.summary(test=True))]
        return "\n".join(
            [*lines, "\nEach run:", *aligned(*self.runs()), "", *filter(None, [self.verdict()]), *self.notes()]
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Repeats:
        values = dict(values)

        def scores(one: Any) -> Evaluation | None:
            return None if one is None else Evaluation.from_dict(one)

        values["own"] = scores(values.get("own"))
        values["members"] = [
            Member(**(m | {"evaluation": scores(m["evaluation"]), "test": scores(m.get("test"))}))
            for m in values["members"]
        ]
        return Repeats(**values)


def told(value: Spread) -> str:
    """0.9134 ± 0.0123"""
    return f"{number(value.mean)} ± {number(value.sd)}" if value.n > 1 else number(value.mean)


# ------------------------------------------------------------------------------------------------ the folder


@dataclass(frozen=True)
class Plan:
    """What repeats.yaml says. source: the table's path; members: the names of the runs, as far as they are known. version: of the
    file. tidegate: the version that wrote it. threads: of each training. kept: what is kept; "" until all is done.
    """

    settings: TrainSettings
    repeats: RepeatSettings
    source: str | None
    table_sha256: str | None = None
    members: Sequence[str] = ()
    kept: str = ""
    tidegate: str = ""
    version: int = VERSION

    @property
    def finished(self) -> bool:
        return bool(self.kept)

    def resolved(self) -> dict[str, Any]:
        """What stands under `resolved`."""
        names = ("version", "tidegate", "table_sha256", "members", "kept")
        return {name: getattr(self, name) for name in names}


def holds_repeats(folder: str | Path) -> bool:
    """Whether a folder holds several runs of one training."""
    return (Path(folder) / REPEATS).is_file()


def read_plan(folder: Path) -> Plan:
    """What the folder's repeats.yaml says. Raises RunError: damaged, foreign or of a later version."""
    path = folder / REPEATS
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({str(error).splitlines()[0]}).") from error
    resolved = values.pop("resolved", None) if isinstance(values, dict) else None
    if not isinstance(resolved, dict):
        raise RunError(f"{path} was not written by Tidegate.")
    version = resolved.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise RunError(
            f"{path} was written by a later version of Tidegate ({resolved.get('tidegate', '?')}; its files have version {version}, and "
            f"up to {VERSION} can be read here). Update this one."
        )
    own = {name: values.pop(name) for name in RepeatSettings.model_fields if name in values}
    source = values.pop("table", None)
    values.pop("out", None)
    try:
        return Plan(TrainSettings.make(**values), RepeatSettings.make(**own), source, **resolved)
    except (SettingsError, TypeError) as error:
        raise RunError(
            f"{path}: {error} Tidegate {resolved.get('tidegate', '?')} wrote it. Where that is a later version, update this one."
        ) from error


def read_repeats(folder: Path) -> Repeats:
    """The figures. Raises RunError where the file is missing or damaged."""
    path = folder / RESULTS
    if not path.is_file():
        raise RunError(f"{path} is missing: the runs in {folder} are not complete.")
    try:
        return Repeats.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged or was written by a later version of Tidegate ({error}).") from error


def open_repeats(folder: Path) -> tuple[Repeats, list[Trained]]:
    """The figures of all runs, and the run that is kept, or all where that is the ensemble.

    Raises RunError where not all are trained yet (it names those that are), or what is there can't be read.
    """
    plan = read_plan(folder)
    if not plan.finished:
        done = [str(folder / name) for name in plan.members if (folder / name / RESULTS).is_file()]
        there = f" Trained so far, and runs of their own: {', '.join(done)}." if done else ""
        raise RunError(
            f"{folder} is not finished: {len(done)} of {len(plan.members)} runs are trained. Go on with: "
            f"tidegate train --resume --out {folder}{'.' * bool(there)}{there}"
        )
    names = plan.members if plan.kept == ENSEMBLE else [plan.kept]
    return read_repeats(folder), [open_folder(folder / name) for name in names]
