"""A model's figures beside those of the baselines, and the sentences about them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from tidegate.documents import Damaged, check
from tidegate.trained.figures import KNOWN
from tidegate.trained.metrics import MOST_NAMED, Scores

NICE = {name: figure.title for name, figure in KNOWN.items()} | {"f1": "F1"}
IN_UNITS = {"rmse", "mse", "mae"}  # of several targets their means mix the units
BEFORE = "before the first epoch"
MOST_PRINTED = 20  # targets with a line of their own


@dataclass
class Evaluation:
    """A model's figures beside those of the baselines, on the same rows.

    model, baselines: name -> Scores; metric: the figure that counts most; what: which rows were scored. before: of a run that went
    on from another one, what it began with. notes: sentences on how to take the figures.
    """

    name: str
    what: str
    metric: str
    more_is_better: bool
    model: Scores
    loss: float
    baselines: dict[str, Scores] = field(default_factory=dict)
    before: Scores | None = None
    notes: list[str] = field(default_factory=list)

    def table(self) -> list[tuple[str, Scores]]:
        before = [] if self.before is None else [(BEFORE, self.before)]
        return [(self.name, self.model), *before, *self.baselines.items()]

    def __str__(self) -> str:
        return text_table(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `before` and `notes` where there are any, as earlier versions know neither."""
        return {k: v for k, v in asdict(self).items() if k not in {"before", "notes"} or v}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Evaluation:
        """What `to_dict` gave. Raises Damaged; TypeError for a field that isn't known."""
        check(Evaluation, values)
        values = dict(values)
        for scores in (values["model"], *values.get("baselines", {}).values()):
            rows = scores.get("rows", [])
            for row in rows:
                if not {"class", "count"} <= {*row} == {*rows[0]} or not all(
                    isinstance(v, int | float) for k, v in row.items() if k != "class"
                ):
                    raise Damaged("a row of figures that are no numbers")
        values["model"] = Scores(**values["model"])
        values["baselines"] = {k: Scores(**v) for k, v in values.get("baselines", {}).items()}
        if values.get("before") is not None:
            values["before"] = Scores(**values["before"])
        return Evaluation(**values)


def nice(name: str) -> str:
    return NICE.get(name, name)


def number(value: float) -> str:
    """Four digits that mean something: 0.9134, 2.5, 1.2e-05, ∞, or a dash for what is not there."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def shown(evaluation: Evaluation) -> list[str]:
    """The figures that a table has a column for."""
    summary = evaluation.model.summary
    return [f for f in summary if not (f in IN_UNITS and "scaled_rmse" in summary)]


def comparison(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of the model against the baselines."""
    figures = shown(evaluation)
    head = ["", *(nice(f) for f in figures)]
    rows = [[name, *(number(s.summary.get(f, math.nan)) for f in figures)] for name, s in evaluation.table()]
    return head, rows


def text_table(evaluation: Evaluation) -> str:
    head, rows = comparison(evaluation)
    lines = [f"On {evaluation.what} ({evaluation.model.count:,} scored):", *aligned(head, rows)]
    if "scaled_rmse" in evaluation.model.summary:
        head, rows = per_class(evaluation)
        lines += ["Each target in its own unit:", *aligned(head, rows[:MOST_PRINTED])] if rows else []
        lines += [f"... and {len(rows) - MOST_PRINTED:,} more targets."] if len(rows) > MOST_PRINTED else []
    return "\n".join([*lines, verdict(evaluation), *remarks(evaluation)])


def aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table as lines of text."""
    widths = [max(len(r[k]) for r in [head, *rows]) for k in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in [head, *rows]
    ]


class _Contest(NamedTuple):
    """One figure of the model, and the best that a baseline has. lead: above 0 where the model's is better."""

    figure: str
    ours: float
    theirs: float
    name: str
    lead: float

    @property
    def against(self) -> str:
        return f"{nice(self.figure)} {number(self.ours)} ({self.name}: {number(self.theirs)})"


def _contests(evaluation: Evaluation) -> list[_Contest]:
    """All figures that can be compared, the one that counts most first."""
    summary = evaluation.model.summary
    found = []
    for figure in compared(evaluation):
        sign = 1 if figure in KNOWN and KNOWN[figure].more_is_better else -1
        ours = summary.get(figure, math.nan)
        theirs = {n: s.summary.get(figure, math.nan) for n, s in evaluation.baselines.items()}
        theirs = {n: v for n, v in theirs.items() if not math.isnan(v)}
        if math.isnan(ours) or not theirs:
            continue
        name = max(theirs, key=lambda n: sign * theirs[n])
        lead = 0.0 if ours == theirs[name] else sign * (ours - theirs[name])
        found.append(_Contest(figure, ours, theirs[name], name, lead))
    return found


def compared(evaluation: Evaluation) -> list[str]:
    """The figures that a verdict looks at, the one that counts most first."""
    several = "scaled_rmse" in evaluation.model.summary
    names = [n for n in shown(evaluation) if n in KNOWN and KNOWN[n].compared]
    # Of one target R² says what the RMSE says.
    return list(dict.fromkeys([evaluation.metric, *names, *(["r2"] if several else [])]))


def verdict(evaluation: Evaluation) -> str:
    """What nobody can be fooled by: does the model beat the best baseline, by every figure or by some of them?

    "" where no baseline has a figure to compare.
    """
    contests = _contests(evaluation)
    if not contests:
        return ""
    first = contests[0]
    ahead = [c for c in contests if c.lead > 0]
    others = [c for c in contests if c.lead <= 0]
    r2 = evaluation.model.summary.get("r2", math.nan)
    mean = " (mean over the targets)" if "scaled_rmse" in evaluation.model.summary else ""
    below = f"Worse than the mean of the scored rows: R² {number(r2)}{mean}." if r2 < 0 else ""
    metric, ours, theirs = nice(first.figure), number(first.ours), number(first.theirs)
    if not ahead:
        text = (
            f"No better than {first.name!r}: {metric} {ours} against {theirs}. This model is not worth its trouble yet."
        )
    elif first.lead <= 0 or any(c.lead < 0 for c in others):
        gains, rest = (", ".join(c.against for c in some) for some in (ahead, others))
        text = f"The figures disagree. Ahead of the best baseline by {gains}; not ahead by {rest}."
    elif below:
        text = f"The baselines are worse still: {metric} {ours}; the next best, {first.name}: {theirs}."
    else:
        text = f"Better than every baseline: {metric} {ours}; the next best, {first.name}: {theirs}."
    return f"{below} {text}".strip()


def remarks(evaluation: Evaluation) -> list[str]:
    """What came of going on from another run, what a mean over classes or targets hides, and how to take the figures, a sentence each."""
    out = [*_gain(evaluation), *evaluation.notes]
    scores = evaluation.model
    if scores.missed:
        it = "it" if scores.missed_count == 1 else "them"
        names = _some([repr(name) for name in scores.missed], scores.missed_count)
        out.append(f"Never predicted right (recall 0), though the scored rows hold {it}: {names}.")
    poor = [r for r in scores.rows if r.get("r2", 0) < 0] if len(scores.rows) > 1 else []
    if poor:
        names = _some([f"{r['class']!r} (R² {number(r['r2'])})" for r in poor[:MOST_NAMED]], len(poor))
        out.append(f"Predicted worse than by the mean of the scored rows: {names}.")
    return out


def _gain(evaluation: Evaluation) -> list[str]:
    """Whether going on from another run helped, in a sentence."""
    if evaluation.before is None:
        return []
    moved = []
    for figure in (evaluation.metric, "nll"):
        ours, theirs = (s.summary.get(figure, math.nan) for s in (evaluation.model, evaluation.before))
        if ours != theirs and not math.isnan(ours - theirs):
            moved.append((figure, ours, theirs))
    metric = nice(evaluation.metric)
    if not moved:
        return [
            f"The training changed nothing: {metric} {number(evaluation.model.summary[evaluation.metric])}, as {BEFORE}."
        ]
    figure, ours, theirs = moved[0]
    more = KNOWN[figure].more_is_better if figure in KNOWN else evaluation.more_is_better
    helped = "helped" if (ours > theirs) == more else "did not help"
    same = "" if figure == evaluation.metric else f" ({metric} is what it was)"
    return [f"The training {helped}: {nice(figure)} {number(ours)}, {BEFORE} {number(theirs)}{same}."]


def _some(names: list[str], count: int) -> str:
    more = count - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def per_class(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of classes, labels or targets, the most frequent first."""
    rows = evaluation.model.rows
    if len(rows) < 2:
        return [], []
    keys = list(rows[0])
    ordered = sorted(rows, key=lambda r: -r["count"])
    first = "target" if "rmse" in keys else nice(keys[0])
    return [first, *(nice(k) for k in keys[1:])], [
        [str(r["class"]), *(number(r[k]) for k in keys[1:])] for r in ordered
    ]
