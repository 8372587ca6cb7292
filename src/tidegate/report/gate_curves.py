"""The gates over the epochs of a training, from its history (see `training.gate_log`)."""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.gates.sentences import MEMORY as MEMORY_LENGTH
from tidegate.gates.sentences import RESET, UPDATE
from tidegate.gates.statistics import MEMORY, SHARES
from tidegate.report.charts import line_chart

DEFINITIONS = [UPDATE, RESET, MEMORY_LENGTH]


def places(history: Sequence[dict[str, float]]) -> list[str]:
    """The layers and directions whose gates were logged: "l0", "l0_reverse" ...; none where log_gates was off."""
    end = f"_{SHARES[0]}"
    return [key.removesuffix(end) for key in (history[0] if history else {}) if key.endswith(end)]


def in_words(place: str) -> str:
    """
    >>> in_words("l1_reverse")
    'layer 2 backward'
    """
    layer, _, direction = place.partition("_")
    return f"layer {int(layer[1:]) + 1}{' backward' if direction else ''}"


def gate_curves(history: Sequence[dict[str, float]], mark: float | None = None) -> list[tuple[str, str]]:
    """(title, SVG) of the gates over the epochs of a run's history; none where they were not logged."""

    def of(field: str) -> dict[str, list[tuple[float, float]]]:
        return {in_words(p): [(r["epoch"], r[f"{p}_{field}"]) for r in history] for p in places(history)}

    z, memory = of("update_mean"), of(MEMORY)
    has_reset = all(f"{p}_reset_mean" in row for p in places(history) for row in history)
    r = of("reset_mean") if has_reset else {}  # a minGRU has no reset gate
    if len(z) == 1:
        names = {"update z": z, "reset r": r}
        gates = {"Mean gates": {name: next(iter(lines.values())) for name, lines in names.items() if lines}}
        memory = {"middle unit": next(iter(memory.values()))}
    else:
        gates = {"Mean update gate z": z} | ({"Mean reset gate r": r} if r else {})
    charts = {**gates, "Memory length in steps": memory}
    found = [(title, line_chart(title, lines, mark)) for title, lines in charts.items()]
    return [(title, svg) for title, svg in found if svg]
