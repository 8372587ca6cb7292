"""One input, read: what may come of it, and what may not.

A reader gives a right result or raises an error of `tidegate.errors`. Anything else is a failure: another error, no answer in
`SECONDS`, a message that is empty or endless, a file that is half-written or left over.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import tidegate
from tidegate.errors import TidegateError

SECONDS = 10
LONGEST_MESSAGE = 3000
PACKAGE = str(Path(tidegate.__file__).parent)


@dataclass(frozen=True)
class Input:
    """What is read. data: the bytes of a file (or of one file of a folder, called `name`), or the JSON of arguments; options:
    what is said of it."""

    name: str
    data: bytes
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A reader of ours. make: an input from random numbers; read: reads it, with an empty folder to write into."""

    name: str
    about: str
    make: Callable[[Random], Input]
    read: Callable[[Input, Path], None]
    also: tuple[type[BaseException], ...] = ()  # further errors that the reference promises
    needs: tuple[str, ...] = ()  # packages that an installation may lack


class TooLong(BaseException):
    """No answer in `SECONDS`."""


class Wrong(AssertionError):
    """A result, or an error, that is not as it should be."""


def input_of(target: Target, seed: int) -> Input:
    return target.make(Random(f"{target.name} {seed}"))


def read(target: Target, given: Input) -> str:
    """ "taken", or the sentence with which the reader refused it. Raises whatever is a failure."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_fast()))
    try:
        with _limit(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                target.read(given, folder)
            except target.also as error:
                return str(error)
            except TidegateError as error:
                _check_message(str(error))
                return str(error)
            finally:
                _check_leftovers(folder)
        return "taken"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place_of(error: BaseException) -> str:
    """The kind of a failure: the error, and the deepest line of ours that it came through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    where = f"{Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno}" if ours else "the harness"
    what = str(error)[:60] if isinstance(error, Wrong) else ""
    return f"{type(error).__name__} {where} {what}".strip()


def _check_message(text: str) -> None:
    if not text.strip() or len(text) > LONGEST_MESSAGE:
        raise Wrong(f"a message of {len(text)} characters")


def _check_leftovers(folder: Path) -> None:
    left = [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".old"))]
    if left:
        raise Wrong("left over: a temporary file")


def _fast() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"no answer in {SECONDS} s of its own time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process's own time: a busy machine makes no failure
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
