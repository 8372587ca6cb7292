"""What a person sees of a search: a line a trial, and on a terminal a bar below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tidegate.trained.comparison import nice, number
from tidegate.training.progress import Printed, Silent
from tidegate.tuning.record import FINISHED, PRUNED, Definition, Trial
from tidegate.tuning.space import text_of


def line(trial: Trial, about: Definition, best: Trial | None) -> str:
    """What became of a trial, with what it tried.

    best: the best finished trial, this one included.
    """
    figure = "" if trial.figure is None else f"{nice(about.chosen_by)} {number(trial.figure)}"
    after = f" after {trial.epochs} epoch{'' if trial.epochs == 1 else 's'}" if trial.epochs else ""
    if trial.state == FINISHED:
        mark = "  best so far" if best is not None and best.number == trial.number else ""
        what = f"{figure}{mark}"
    elif trial.state == PRUNED and not trial.why:
        what = f"pruned{after}, {figure}" if figure else f"pruned{after}"
    else:
        what = f"{'stopped' if trial.state == PRUNED else trial.state}{after}{f': {trial.why}' if trial.why else ''}"
    seconds = "" if trial.seconds is None else f"  {trial.seconds:.1f} s"
    return f"trial {trial.number}  {what}{seconds}  ({'defaults: ' if trial.defaults else ''}{tried(trial.settings or {})})"


def tried(settings: Mapping[str, Any]) -> str:
    """The values of a trial, in short."""
    return ", ".join(f"{name} {text_of(value)}" for name, value in settings.items())


class Bar:
    """Below the lines, on a terminal: how many trials are done, and how far the running one is."""

    def __init__(self, shown: Silent) -> None:
        self.bar: Progress | None = None
        if isinstance(shown, Printed) and shown.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.1f} of {task.total:.0f} trials,"),
                TimeRemainingColumn(),
                TextColumn("left at most"),
                console=shown.console,
                transient=True,
            )
        self.task: Any = None

    def begin(self, total: int, done: int) -> None:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("", total=total, completed=done)

    def show(self, title: str, done: float) -> None:
        if self.bar:
            self.bar.update(self.task, completed=done, description=title)

    def end(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
