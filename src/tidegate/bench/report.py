"""Rows become tables, sentences and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from tidegate.bench.measure import Row
from tidegate.bench.peers import PEERS
from tidegate.bench.shapes import KINDS, Shape

OURS = "tidegate"
OTHERS = tuple(name for name in PEERS if name != OURS)

# kind -> what our time is set over: the title of the column, and the peers whose fastest counts
_FASTEST = (("over fastest other", OTHERS),)
COMPARISONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "forward": _FASTEST,
    "train": (
        ("over torch.nn.GRU", ("torch",)),
        ("over fastest JAX/Keras", ("jax", "keras", "keras-xla")),
    ),
    "step": _FASTEST,
}

Table = list[dict[str, str]]
"""A dictionary of column title -> text for each line; all of a table have the same columns."""


def blocks(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of every table: a kind and a number of threads, in the order in which they were measured."""
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((list(KINDS).index(row.kind), row.threads), []).append(row)
    return [found[key] for key in sorted(found)]


def title(block: Sequence[Row]) -> str:
    return f"{KINDS[block[0].kind]}, {_threads(block[0].threads)}: microseconds a call"


def table(block: Sequence[Row]) -> Table:
    """A line for each shape: the peers' medians in microseconds, our ratios, our share of the peak."""
    names = list(dict.fromkeys(row.peer for row in block))
    columns = [c for c, against in COMPARISONS[block[0].kind] if any(name in names for name in against)]
    lines = []
    for by_peer in _cells(block):
        first = next(iter(by_peer.values()))
        line = {"B T I H layers": f"{first.B} {first.T} {first.I} {first.H} {first.layers}"}
        line |= {name: _time(by_peer[name]) for name in names}
        ratios = {column: (ratio, best) for column, ratio, best in _ratios(by_peer)}
        for column in columns:
            ratio = ratios[column][0] if column in ratios else None
            line[column] = "" if ratio is None else f"{ratio:.2f}{' slower' if ratio > 1 else ''}"
        if OURS in by_peer and any(row.share_of_peak is not None for row in block if row.peer == OURS):
            share = by_peer[OURS].share_of_peak
            line["of peak"] = "" if share is None else f"{share:.0%}"
        lines.append(line)
    return lines


def losses(block: Sequence[Row]) -> list[str]:
    """A sentence for every peer or group of peers that is faster than we are in a cell."""
    return [
        f"{_where(best)}: tidegate is slower than {best.peer}, {_us(by_peer[OURS])} us to {_us(best)} us, "
        f"{ratio:.2f} times as long."
        for by_peer in _cells(block)
        for _, ratio, best in _ratios(by_peer)
        if ratio > 1
    ]


def notes(block: Sequence[Row]) -> list[str]:
    """A sentence for every peer that has no time in a cell, and one where a figure can't be."""
    said = {"failed": "failed", "wrong": "is wrong and was not timed"}
    found = [f"{_where(row)}: {row.peer} {said[row.status]}: {row.reason}." for row in block if row.status != "ok"]
    if any(row.share_of_peak is not None and row.share_of_peak > 1 for row in block):
        found.append("A share of the peak above 100%: other programs were at work while the peak was measured.")
    return found


def render(rows: Sequence[Row], markdown_: bool = False) -> str:
    """All tables, each followed by its losing cells and its notes."""
    parts = []
    for block in blocks(rows):
        sentences = losses(block)
        if not sentences and all(_ratios(by_peer) for by_peer in _cells(block)):
            sentences = ["tidegate is the fastest of those compared in every cell of this table."]
        sentences += notes(block)
        if markdown_:
            parts += [f"### {title(block)}", markdown(table(block)), "\n".join(f"- {s}" for s in sentences)]
        else:
            parts += [title(block) + "\n\n" + plain(table(block)), "\n".join(f"  {s}" for s in sentences)]
    return "\n\n".join(part for part in parts if part)


def plain(table: Table) -> str:
    """Columns of one width for a terminal or a pipe: the first to the left, figures to the right."""
    head = list(table[0])
    lines = [head, *([line[name] for name in head] for line in table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(table: Sequence[dict[str, Any]]) -> str:
    head = list(table[0])
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(str(row[h]) for h in head) + " |" for row in table)])


def csv_text(machine: str, rows: Sequence[dict[str, Any]]) -> str:
    """The machine in a first line that begins with #, then the rows under their header."""
    file = io.StringIO()
    file.write(f"# {machine}\n")
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def raw(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows for `csv_text`: every field, floats to the digits that mean something."""
    short = lambda v: float(f"{v:.5g}") if isinstance(v, float) else v  # noqa: E731
    return [{f.name: short(asdict(row)[f.name]) for f in fields(Row)} for row in rows]


# ------------------------------------------------------------------------------------------------ inside


def _cells(block: Sequence[Row]) -> list[dict[str, Row]]:
    """The peers' rows of each shape."""
    found: dict[Shape, dict[str, Row]] = {}
    for row in block:
        found.setdefault(_shape(row), {})[row.peer] = row
    return list(found.values())


def _ratios(by_peer: dict[str, Row]) -> list[tuple[str, float, Row]]:
    """Title of the column, our time over that of the fastest peer there, and that peer's row; where both were timed."""
    found = []
    ours = by_peer.get(OURS)
    for column, against in COMPARISONS[next(iter(by_peer.values())).kind]:
        timed = [row for name, row in by_peer.items() if name in against and row.median_us is not None]
        if ours is not None and ours.median_us is not None and timed:
            best = min(timed, key=lambda row: row.median_us or 0)
            found.append((column, ours.median_us / (best.median_us or 1), best))
    return found


def _shape(row: Row) -> Shape:
    return Shape(row.B, row.T, row.I, row.H, row.layers)


def _where(row: Row) -> str:
    return f"{KINDS[row.kind]}, {_threads(row.threads)}, {_shape(row)}"


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


def _time(row: Row) -> str:
    return _us(row) if row.status == "ok" else f"wrong: {row.reason}" if row.status == "wrong" else row.status


def _us(row: Row) -> str:
    us = row.median_us or 0
    return f"{us:,.0f}" if us >= 1000 else f"{us:.1f}"
