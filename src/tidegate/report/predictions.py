"""Pictures of the predictions: over time, by step ahead, against the truth, and which classes are taken for which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from tidegate.data.preprocessing import Target
from tidegate.report.charts import STYLE, in_short, line_chart, nice_ticks
from tidegate.trained.comparison import nice, number
from tidegate.trained.metrics import Scores
from tidegate.trained.predicted import MOST_TARGETS, STRETCH, Confusion, Predicted, Stretch

MOST_DOTTED = 60  # steps of a stretch whose points say their numbers
MOST_LABELS = 25  # drawn, the most frequent
LONGEST = 18  # letters of a class that is written out
# Cells of one hue, from the page's own colour to full, so that they grow stronger in light and in dark; what is right has a
# frame, what is much has its number in the other ink. Nothing is told by colour alone.
_CELLS = (
    "<style>.pp{color:#0b7285}.pp text{fill:#333;font-size:11px}.pp .h{font-size:13px;font-weight:600}.pp .s{fill:#666}"
    ".pp .q{fill:currentColor}.pp .f{fill:none;stroke:#888;stroke-opacity:.35}.pp .r{fill:none;stroke:#333;stroke-width:1.6}"
    ".pp .m{fill:#fff}.pp .o{fill:#fff;stroke:#c2410c;stroke-width:2}.pp .p{fill:none;stroke:currentColor;stroke-linecap:round;stroke-opacity:.45}"
    "@media (prefers-color-scheme:dark){.pp{color:#3bc9db}.pp text{fill:#ddd}.pp .s{fill:#aaa}.pp .r{stroke:#ddd}.pp .m{fill:#000}"
    ".pp .o{fill:#111;stroke:#ff922b}}</style>"
)


class Picture(NamedTuple):
    """file: its name without .svg. caption: what is drawn, and by which rule it was chosen."""

    file: str
    title: str
    svg: str
    caption: str

    @property
    def width(self) -> int:
        """In pixels, with letters of the size of the page's small print."""
        box = re.search(r'viewBox="0 0 (\d+)', self.svg)
        assert box is not None
        return int(box[1])


class Pairs(NamedTuple):
    """A table of the classes that are taken for each other most often."""

    head: list[str]
    rows: list[list[str]]
    caption: str


def pictures(seen: Predicted, target: Target, scores: Scores, cell: str) -> list[Picture]:
    """All that can be drawn of a run's predictions; cell: how the model is called beside the baselines."""
    out = [picture for stretch in seen.stretches for picture in _over_time(stretch, target, seen.of_stretches)]
    if seen.by_step_ahead:
        name = nice(seen.figure)
        unit = f", in the units of {target.names[0]}" if seen.figure == "rmse" else ""
        lines = {
            n: [(k + 1.0, v) for k, v in enumerate(values)] for n, values in seen.by_step_ahead.items()
        }  # fmt: skip
        title = f"{_capital(name)} by step ahead"
        svg = line_chart(title, lines, x_name="steps ahead", size=(640, 270))
        better = "lower is better" if target.task == "number" else "higher is better"
        text = f"{_capital(name)} of the predictions one, two ... steps ahead{unit} ({better}): {cell} beside the baselines."
        out += [Picture("by_step_ahead", title, svg, text)] if svg else []
    for k, (name, points) in enumerate(seen.points.items()):
        title = f"{name}: predicted against true"
        ahead = ", one step ahead" if seen.by_step_ahead else ""
        sample = (
            f"{len(points):,} of {seen.of_points:,} values, evenly chosen"
            if len(points) < seen.of_points
            else f"All {len(points):,} values"
        )
        text = f"{sample}{ahead}. On the dashed line a prediction is right; below it, too low."
        out.append(Picture(f"against_truth_{k + 1}", title, scatter(title, points), text))
    if seen.confusion is not None and seen.confusion.counts is not None:
        ahead = " One step ahead." if seen.by_step_ahead else ""
        text = (
            "Rows are true classes, columns what was predicted. A cell has its count, and is shaded by its share of the row; what is right has a "
            f"frame.{ahead}"
        )
        out.append(Picture("confusion_matrix", "Confusion matrix", confusion_matrix(seen.confusion), text))
    if target.task == "labels":
        out += _labels(seen, scores)
    return out


def most_confused(confusion: Confusion | None) -> Pairs | None:
    """The wrong pairs that are most frequent, where there are too many classes for a matrix."""
    if confusion is None or confusion.counts is not None or not confusion.pairs:
        return None
    rows = [
        [str(true), str(guess), f"{count:,}", f"{100 * count / there:.0f} %"] for true, guess, count, there in confusion.pairs
    ]  # fmt: skip
    more = f" The {len(rows)} most frequent of {confusion.wrong:,} wrong pairs." if confusion.wrong > len(rows) else ""
    return Pairs(
        ["true", "predicted as", "count", "of the true class"], rows, f"What is taken for what most often.{more}"
    )


def _over_time(stretch: Stretch, target: Target, of: int) -> list[Picture]:
    out = []
    for w, name in enumerate(target.names[:MOST_TARGETS]):
        lines = {"true": _line(stretch.steps, stretch.truth[:, w])}
        for ahead, values in stretch.predicted.items():
            called = f"{ahead} step{'s' * (ahead != 1)} ahead" if len(stretch.predicted) > 1 else "predicted"
            lines[called] = _line(stretch.steps, values[:, w])
        which = {"median": ": a stretch of median error", "worst": ": the stretch of the largest error", "only": ""}[
            stretch.which
        ]
        title = f"{name} over time{which}"
        svg = line_chart(title, lines, x_name="step", size=(760, 260), pointed=len(stretch.steps) <= MOST_DOTTED)
        if svg:
            text = _caption(stretch, target, of)
            out.append(Picture(f"over_time_{stretch.which}_{w + 1}", title, svg, text))
    return out


def _caption(stretch: Stretch, target: Target, of: int) -> str:
    rule = {
        "median": f"Of {of:,} stretches of up to {STRETCH} scored steps, the one whose error is the median",
        "worst": f"Of {of:,} stretches, the one of the largest error",
        "only": "All that is scored",
    }[stretch.which]
    times = ", {} {} to {}".format(*stretch.times) if stretch.times else ""
    one = len(target.names) == 1
    error = (
        f"{number(stretch.rmse * target.stds[0])}"
        if one
        else f"{number(stretch.rmse)} standard deviations of the training rows"
    )
    ahead = " over all steps ahead" if max(stretch.predicted) > 1 else ""
    unit = f" In the units of the table; RMSE {error}{ahead}."
    return f"{rule}: {stretch.sequence}, steps {int(stretch.steps[0]):,} to {int(stretch.steps[-1]):,}{times}.{unit}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _line(steps: Any, values: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(steps, values, strict=True)]


def _labels(seen: Predicted, scores: Scores) -> list[Picture]:
    rows = sorted(scores.rows, key=lambda r: -r["count"])
    out = []
    if rows:
        title = "Precision and recall by label"
        of = f" The {MOST_LABELS} most frequent of {len(rows):,}." if len(rows) > MOST_LABELS else ""
        text = f"Precision: the share of predicted ones that are right. Recall: the share of true ones that are predicted.{of}"
        out.append(Picture("labels", title, label_dots(title, rows[:MOST_LABELS]), text))
    if len(seen.calibration) > 1:
        title = "Share of ones by predicted probability"
        lines = {"observed": [(p, share) for p, share, _ in seen.calibration], "as predicted": [(0.0, 0.0), (1.0, 1.0)]}
        count = sum(n for *_, n in seen.calibration)
        text = f"{count:,} probabilities of all labels in tenths. Above the other line, ones are more frequent than predicted; below it, rarer."
        out.append(
            Picture(
                "calibration", title, line_chart(title, lines, x_name="predicted probability", size=(520, 270)), text
            )
        )
    return out


def _open(title: str, width: float, height: float, heading_x: float) -> list[str]:
    return [
        f'<svg class="pp" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">',
        _CELLS,
        f'<text class="h" x="{heading_x:.0f}" y="16">{escape(title)}</text>',
    ]


def shortened(text: str, most: int = LONGEST) -> str:
    """A name without its middle, as names often begin alike.

    >>> shortened("B-restriction_on_entry"), shortened("up")
    ('B-restric…on_entry', 'up')
    """
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def _wide(text: str) -> float:
    """About how broad a text of 11 pixels is; letters of East Asia are twice as broad."""
    return sum(11.5 if letter > "\u2e80" else 6.4 for letter in text)


def confusion_matrix(confusion: Confusion) -> str:
    """Rows are truths, columns predictions; each cell has its count, and is shaded by its share of the row."""
    counts = confusion.counts
    assert counts is not None
    truths, guesses = ([shortened(str(c)) for c in some] for some in (confusion.truths, confusion.guesses))
    cell = 58 if len(truths) <= 6 else 44 if len(truths) <= 12 else 34
    left = 34 + max(map(_wide, truths))
    slanted = any(_wide(name) > cell - 4 for name in guesses)
    top = 44 + (0.72 * max(map(_wide, guesses)) if slanted else 12)
    right = 0.72 * _wide(guesses[-1]) if slanted and guesses else 4
    width = max(left + cell * len(guesses) + right + 4, 240)
    height = top + cell * len(truths) + 8
    out = _open("Confusion matrix", width, height, 4)
    middle = left + cell * len(guesses) / 2
    out.append(f'<text class="s" text-anchor="middle" x="{middle:.0f}" y="36">predicted</text>')
    y_middle = top + cell * len(truths) / 2
    out.append(f'<text class="s" text-anchor="middle" transform="translate(13 {y_middle:.0f}) rotate(-90)">true</text>')
    for k, (name, full) in enumerate(zip(guesses, confusion.guesses, strict=True)):
        x, y = left + cell * (k + 0.5), top - 7
        turn, anchor = (f' transform="rotate(-45 {x:.0f} {y:.0f})"', "start") if slanted else ("", "middle")
        out.append(
            f'<text text-anchor="{anchor}" x="{x:.0f}" y="{y:.0f}"{turn}><title>{escape(str(full))}</title>{escape(name)}</text>'
        )
    for i, (name, full) in enumerate(zip(truths, confusion.truths, strict=True)):
        y, there = top + cell * i, int(counts[i].sum())
        out.append(
            f'<text text-anchor="end" x="{left - 7:.0f}" y="{y + cell / 2 + 4:.0f}"><title>{escape(str(full))}</title>{escape(name)}</text>'
        )
        for k, guess in enumerate(confusion.guesses):
            count, x = int(counts[i, k]), left + cell * k
            share = count / there if there else 0.0
            told = f"true {full}, predicted {guess}: {count:,} of {there:,} ({100 * share:.0f} %)"
            box = f'x="{x:.0f}" y="{y:.0f}" width="{cell}" height="{cell}"'
            shade = f'<rect class="q" {box} fill-opacity="{share:.3f}"/>' if count else ""
            ink = ' class="m"' if share > 0.55 else "" if count else ' class="s"'
            number_ = f'<text{ink} text-anchor="middle" x="{x + cell / 2:.0f}" y="{y + cell / 2 + 4:.0f}">{_count(count)}</text>'
            out.append(f'<g><title>{escape(told)}</title>{shade}<rect class="f" {box}/>{number_}</g>')
    for i, full in enumerate(confusion.truths):
        if full in confusion.guesses:
            x, y = left + cell * confusion.guesses.index(full) + 1.5, top + cell * i + 1.5
            out.append(f'<rect class="r" x="{x:.1f}" y="{y:.1f}" width="{cell - 3}" height="{cell - 3}"/>')
    return "\n".join([*out, "</svg>"])


def _count(count: int) -> str:
    """
    >>> _count(9999), _count(12_345), _count(3_456_789)
    ('9999', '12k', '3.5M')
    """
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 999_500 else f"{count / 1e6:.1f}M"


def scatter(title: str, points: Sequence[tuple[float, float]]) -> str:
    """(true, predicted) values as points, with the line on which they are equal; both axes have one scale."""
    ticks = nice_ticks(min(map(min, points)), max(map(max, points)))
    low, high, side, left, top = ticks[0], ticks[-1], 270, 62, 28

    def at(v: float) -> float:
        return (v - low) / (high - low) * side

    out = [_open(title, left + side + 24, top + side + 42, left)[0], STYLE, *_open(title, 0, 0, left)[1:]]
    for tick in ticks:
        y, x, text = top + side - at(tick), left + at(tick), escape(in_short(tick))
        out.append(f'<path class="f" d="M{left},{y:.1f}h{side}M{x:.1f},{top}v{side}"/>')
        out.append(f'<text class="s" text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{text}</text>')
        out.append(f'<text class="s" text-anchor="middle" x="{x:.1f}" y="{top + side + 16}">{text}</text>')
    out.append(f'<path class="r" stroke-dasharray="5 4" d="M{left},{top + side}l{side},-{side}"/>')
    dots = "".join(f"M{left + at(t):.1f},{top + side - at(p):.1f}h0" for t, p in points)
    size = 7 if len(points) <= 60 else 4.5
    out.append(f'<path class="p" stroke-width="{size}" d="{dots}"/>')
    out.append(f'<text class="s" text-anchor="middle" x="{left + side / 2:.0f}" y="{top + side + 34}">true</text>')
    out.append(
        f'<text class="s" text-anchor="middle" transform="translate(13 {top + side / 2:.0f}) rotate(-90)">predicted</text>'
    )
    return "\n".join([*out, "</svg>"])


def label_dots(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a label from 0 to 1, with a disc at its precision and a diamond at its recall."""
    names = [shortened(str(r["class"]), 26) for r in rows]
    left, across, line, top = 20 + max(map(_wide, names)), 300, 21, 46
    width, height = left + across + 74, top + line * len(rows) + 26
    out = _open(title, width, height, 4)
    out.append(
        f'<circle class="q" cx="{left + 4:.0f}" cy="{top - 14}" r="4.5"/><text x="{left + 13:.0f}" y="{top - 10}">precision</text>'
    )
    out.append(f'{_diamond(left + 84, top - 14)}<text x="{left + 94:.0f}" y="{top - 10}">recall</text>')
    out.append(f'<text class="s" text-anchor="end" x="{width - 4:.0f}" y="{top - 10}">ones</text>')
    bottom = top + line * len(rows)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + across * tick
        out.append(f'<path class="f" d="M{x:.1f},{top - 2}V{bottom}"/>')
        out.append(f'<text class="s" text-anchor="middle" x="{x:.1f}" y="{bottom + 15}">{tick:g}</text>')
    for k, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = top + line * (k + 0.5)
        p, r = left + across * row["precision"], left + across * row["recall"]
        told = f"{row['class']}: precision {number(row['precision'])}, recall {number(row['recall'])}, {row['count']:,} ones"
        out.append(
            f'<g><title>{escape(told)}</title><text text-anchor="end" x="{left - 12:.0f}" y="{y + 4:.1f}">{escape(name)}</text>'
            f'<path class="f" d="M{left:.0f},{y:.1f}h{across}"/><path class="p" stroke-width="2" d="M{p:.1f},{y:.1f}H{r:.1f}"/>'
            f'<circle class="q" cx="{p:.1f}" cy="{y:.1f}" r="4.5"/>{_diamond(r, y)}'
            f'<text class="s" text-anchor="end" x="{width - 4:.0f}" y="{y + 4:.1f}">{row["count"]:,}</text></g>'
        )
    return "\n".join([*out, "</svg>"])


def _diamond(x: float, y: float) -> str:
    return f'<path class="o" d="M{x - 5:.1f},{y:.1f}l5,-5l5,5l-5,5z"/>'
