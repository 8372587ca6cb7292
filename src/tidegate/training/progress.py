"""What a person sees while training: a line an epoch, and on a terminal a bar with the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Silent:
    """Says nothing; the interface of the other."""

    def note(self, text: str) -> None: ...

    def begin(self, title: str, batches: int, done: int) -> None: ...

    def step(self, loss: float) -> None: ...

    def epoch(self, text: str) -> None: ...

    def end(self) -> None: ...

    @contextlib.contextmanager
    def work(self, title: str, rows: int) -> Iterator[Callable[[int], None]]:
        """A pass over so many rows (0: it isn't known how many); what is given is called with how many more are done."""
        yield lambda done: None


class Printed(Silent):
    """Plain lines; on a terminal also a bar below them."""

    def __init__(self, stream: TextIO | None = None):
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.task: Any = None

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def begin(self, title: str, batches: int, done: int) -> None:
        self.note(title)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("batches,"),
                TimeRemainingColumn(),
                TextColumn("left at most"),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("loss", total=batches, completed=done)

    def step(self, loss: float) -> None:
        if self.bar:
            self.bar.update(self.task, advance=1, description=f"loss {loss:.4f}")

    def epoch(self, text: str) -> None:
        self.note(text)

    def end(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    @contextlib.contextmanager
    def work(self, title: str, rows: int) -> Iterator[Callable[[int], None]]:
        began = time.perf_counter()
        if not self.console.is_terminal:
            yield lambda done: None
        else:
            columns = [TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("left")]
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task(title, total=rows or None)
                yield lambda done: bar.update(task, advance=done)
        self.note(f"{title}: {time.perf_counter() - began:.1f} s")


def make(progress: bool | Silent) -> Silent:
    """True: printed to standard error; False: nothing."""
    if isinstance(progress, Silent):
        return progress
    return Printed() if progress else Silent()
