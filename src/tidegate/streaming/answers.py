"""The loop of `tidegate stream`: rows come in line by line, answers go out line by line, and a state file loses none."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tidegate.data.lines import Line, RowLines
from tidegate.data.names import split_names
from tidegate.documents import Damaged, check, shown
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.files import DiskError
from tidegate.streaming.places import Key, plain_key
from tidegate.streaming.state import read_states
from tidegate.streaming.stream import Stream
from tidegate.streaming.times import LateError

if TYPE_CHECKING:
    from tidegate.trained import Trained


FEW, MANY = 10, 1_000
"""Good rows after which a column that was empty in all of them is told: at the end of the input, and before it."""


class _Stop(BaseException):
    """Ctrl-C or SIGTERM, while the loop waits for a row."""


@dataclass
class Counts:
    """What `Answers.all` has done. rows: taken in by it; bad: of these, answered with an error; late: of these, because their time
    was not after the last one; skipped: rows that the state file had taken in already; stopped: by Ctrl-C or SIGTERM."""

    rows: int = 0
    bad: int = 0
    late: int = 0
    skipped: int = 0
    stopped: bool = False


@dataclass
class _Input:
    rows: int = 0
    first: str = ""
    digest: str = ""


@dataclass
class _Kept:
    """What the loop keeps in a state file beside the states."""

    input: _Input = field(default_factory=_Input)
    key: list[str] | None = None
    only_last: bool = False
    last: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)


def _checked(kept: dict[str, Any], path: Path) -> dict[str, Any]:
    """Raises DataError where that is not what a file of ours holds."""
    try:
        check(_Kept, kept)
        if kept.get("input", {}).get("rows", 0) < 0:
            raise Damaged("rows below 0")
        for key, _ in kept.get("last", []):
            plain_key(tuple(key) if isinstance(key, list) else key)
    except (Damaged, SettingsError) as error:
        raise DataError(f"{path}: not the state of a stream, or damaged ({error}). Begin anew without it.") from None
    return kept


class Intake:
    """How much of an input a state file has taken in, and whether an input is that one: digests of its first row and of all
    rows so far."""

    def __init__(self, lines: RowLines, kept: dict[str, Any] | None = None):
        kept = kept or {}
        self._lines = lines
        self.rows: int = kept.get("rows", 0)
        self.first: str = kept.get("first", "")
        self.digest: str = kept.get("digest", "")
        self._hash, self._added = hashlib.sha256(), False

    def take(self, line: Line) -> None:
        self._add(line)
        if not self.rows:
            self.first = self._hash.hexdigest()
        self.rows += 1

    def _add(self, line: Line) -> None:
        if not self._added:  # a header says what the rows mean
            self._hash.update(len(self._lines.head).to_bytes(8, "little") + self._lines.head)
        self._added = True
        self._hash.update(len(line.raw).to_bytes(8, "little") + line.raw)

    def skip(self, lines: Iterator[Line], path: Path) -> None:
        """Read past the rows that were taken in. Raises DataError where they are not the same rows."""
        for k in range(self.rows):
            line = next(lines, None)
            if line is not None:
                self._add(line)
            if line is None or (k == 0 and self._hash.hexdigest() != self.first):
                found = "begins with another row" if line is not None else f"ends after {k:,}"
                raise DataError(
                    f"{path} has taken in {self.rows:,} rows of an input, and this one {found}. Give it the same input again; where "
                    "the input holds the rows that come after those, say --new-rows; to begin anew, remove the file."
                )
        if self.rows and self._hash.hexdigest() != self.digest:
            raise DataError(
                f"{path} has taken in {self.rows:,} rows of an input, and this one has others among its first {self.rows:,} (was a "
                "last line still being written?). Give it the same input again; to begin anew, remove the file."
            )

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "first": self.first, "digest": self._hash.hexdigest()}


class Answers:
    """Answers each row of `lines` with a line of JSON on `out`, flushed, in order.

    state: the file from which the states are taken up, if it is there, and to which they are written every `save_every` rows
    and at the end; of the same input, rows that it has taken in are not answered again. new_rows: the input goes on where the
    last one ended. only_last: one answer a key, its last, when the input ends or the key goes. strict: a bad row is an error.
    The others are those of `Run.stream`; with `time` an answer holds the row's line and its time, too.

    An answer is out before its row counts as taken in. Ctrl-C and SIGTERM end it between two rows; a second one at once, and
    then as if the process had been killed.
    """

    def __init__(
        self,
        run: Trained,
        lines: RowLines,
        out: BinaryIO,
        *,
        state: Path | None = None,
        save_every: int = 1000,
        new_rows: bool = False,
        only_last: bool = False,
        strict: bool = False,
        **options: Any,
    ):
        self.stream = Stream(run, on_forget=self._forget, **options)
        self.counts = Counts()
        self._run, self._lines, self._out = run, lines, out
        self._state, self._save_every, self._new_rows = state, save_every, new_rows
        self._only_last, self._strict = only_last, strict
        keys = {part for name in lines.key or () for part in (name, *split_names(name))}
        if self.stream.time is not None and self.stream.time in keys:
            raise SettingsError(
                f"time and key both name the column {self.stream.time!r}. A key's rows share its value, their times differ."
            )
        self._last: dict[Key, dict[str, Any]] = {}  # with only_last: the answers that wait
        self._intake = Intake(lines)
        self._empty = set(self.stream.columns)  # of those that the run reads: without a value in any row so far
        self._ready = False  # whether the states are those after the rows that `_intake` counts
        self._key: list[str] | None = None  # the key columns of the state file
        self._seen_key = False
        self._before: Intake | None = None  # with new_rows: of the input before this one

    def all(self) -> Counts:
        """Answer all rows. Raises DataError: a state file of another run or input; a bad row, where strict; SettingsError: a
        state file that was written the other way, with or without only_last. What came before is kept.
        """
        rows = iter(self._lines)
        with _stoppable() as busy:
            try:
                self._begin(rows)
                for line in rows:
                    with busy:
                        self._take(line)
            except _Stop:
                self.counts.stopped = True
        if self._ready:
            if self._only_last and not self.counts.stopped:
                for told in self._last.values():
                    self._write(told)
                self._last.clear()
            self._save()
            if self.counts.rows - self.counts.bad >= FEW:
                self._tell_empty()
        return self.counts

    def _begin(self, rows: Iterator[Line]) -> None:
        """Take up the state file, and read past what it has taken in."""
        path, kept = self._state, {}
        if path is not None and path.exists():
            saved = read_states(path)
            kept = _checked(saved.more, path)
            if bool(kept.get("only_last")) != self._only_last:
                had, say = (
                    ("with", "Say --only-last again") if kept.get("only_last") else ("without", "Leave --only-last out")
                )
                raise SettingsError(f"{path} was written {had} --only-last. {say}, or begin anew with another file.")
            self._last = {tuple(k) if isinstance(k, list) else k: told for k, told in kept.get("last", [])}
            self._key = kept.get("key")
            self.stream.take_up(saved, str(path))  # after: with fewer keys some go, and want their last answers
        if self._new_rows:
            self._before = Intake(self._lines, kept.get("input"))
        else:
            self._intake = Intake(self._lines, kept.get("input"))
            self._intake.skip(rows, path or Path())
            self.counts.skipped = self._intake.rows
            if self.counts.skipped:
                self._check_key()
        self._ready = True
        # At once: a file that can't be written is better known before the first answer; and with --new-rows the same input without
        # it is then right after a crash, from the first row on.
        self._save()

    def _take(self, line: Line) -> None:
        if self._lines.key is not None and not self._seen_key:
            self._seen_key = True
            self._check_key()
            self._first_row(line)
        try:
            told, bad = self._answer(line)
        except (DataError, SettingsError):
            self._save()  # what came before the bad row; once a row is in the states, nothing is saved until it counts
            raise
        if not self._only_last or bad:
            self._write(told)
        else:
            self._last[self._key_of(line)] = told
        self._intake.take(line)
        self.counts.rows += 1
        self.counts.bad += bad
        if self._empty and not bad:
            assert line.row is not None
            self._empty -= {name for name in self._empty if not _is_empty(line.row[name])}
            if self.counts.rows - self.counts.bad == MANY:
                self._tell_empty()
        if not self.counts.rows % self._save_every:
            self._save()

    def _tell_empty(self) -> None:
        """Once: columns that had no value in any good row. A sensor that is gone is answered all the same."""
        names = [name for name in self.stream.columns if name in self._empty]
        self._empty.clear()
        if not names:
            return
        listing = ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        several = len(names) > 1
        warnings.warn(
            f"{'columns' if several else 'column'} {listing} {'are' if several else 'is'} empty in all "
            f"{self.counts.rows - self.counts.bad:,} rows so far, and the run reads {'them' if several else 'it'}: its predictions do "
            "without.",
            DataWarning,
            stacklevel=2,
        )

    def _check_key(self) -> None:
        key = list(self._lines.key or ())
        if self._key is not None and key != self._key:
            say = " ".join(f"--key {name}" for name in self._key) or "no --key"
            raise SettingsError(
                f"{self._state} holds states by {self._key or 'no key'}, and these rows go by {key or 'none'}. Say {say}."
            )
        self._key = key

    def _first_row(self, line: Line) -> None:
        """Warnings about what nobody may have meant. line: the first one that says whose row it is."""
        group = self._run.preprocessing.group
        if line.row is not None and group and self._lines.key == ():
            warnings.warn(
                f"No key: the first row has no column {', '.join(map(repr, group))}, so all rows are one sequence. "
                "--key names another column.",
                DataWarning,
                stacklevel=2,
            )
        if self._before is not None and self._before.rows:
            new = Intake(self._lines)
            new.take(line)
            if new.first == self._before.first:
                warnings.warn(
                    f"--new-rows: this input begins with the same row as the one that {self._state} has taken in "
                    f"{self._before.rows:,} rows of. If it is that one, its rows are taken in twice: leave --new-rows out.",
                    DataWarning,
                    stacklevel=2,
                )

    def _answer(self, line: Line) -> tuple[dict[str, Any], bool]:
        """The answer to a row, and whether it is an error. Raises DataError or SettingsError for an error where strict."""
        where = f"line {line.number}"
        told = self._time_of(line)
        try:
            if line.row is None:
                raise DataError(f"{where}: {line.error}.")
            for name in self._lines.key or ():
                if name not in line.row:
                    raise DataError(f"{where}: there is no column {name!r}, which says whose row it is.")
                value = line.row[name]
                if value is None or isinstance(value, list | dict):
                    raise DataError(
                        f"{where}, column {name!r}: {shown(value)} can't say whose row it is; text or a number is expected."
                    )
            key = self._key_of(line)
            try:
                plain_key(key)
            except SettingsError as error:
                raise DataError(f"{where}: {error}") from None
            told |= {self._name("key", name): line.row[name] for name in self._lines.key or ()}
            answer = self.stream.push_from(line.row, key, where)
            return ({} if self.stream.time is None else {"line": line.number}) | told | answer, False
        except (DataError, SettingsError) as error:
            if self._strict:
                raise
            self.counts.late += isinstance(error, LateError)
            return {"line": line.number, **told, "error": str(error)}, True

    def _time_of(self, line: Line) -> dict[str, Any]:
        """The row's time as it came, by its column, where there is one."""
        name = self.stream.time
        value = None if name is None or line.row is None else line.row.get(name)
        plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        return {self._name("time", name): value} if name is not None and plain else {}

    def _name(self, role: str, name: str) -> str:
        """The name of a key or time column in an answer, which has names of its own."""
        return f"{role}.{name}" if name in ("line", "error") or name in self.stream.predicted else name

    def _key_of(self, line: Line) -> Key:
        names = self._lines.key
        assert line.row is not None
        return None if not names else line.row[names[0]] if len(names) == 1 else tuple(line.row[name] for name in names)

    def _forget(self, key: Key) -> None:
        told = self._last.pop(key, None)
        if told is not None:
            self._write(told)

    def _write(self, values: dict[str, Any]) -> None:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        try:
            self._out.write(text.encode(errors="backslashreplace") + b"\n")  # half of a character, as JSON escapes it
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DiskError(f"The answers could not be written ({error.strerror or error}).") from error

    def _save(self) -> None:
        if self._state is None:
            return
        more: dict[str, Any] = {"input": self._intake.to_dict(), "key": self._key, "only_last": self._only_last}
        if self._only_last:
            more["last"] = [[list(k) if isinstance(k, tuple) else k, told] for k, told in self._last.items()]
        self.stream.save(self._state, more=more)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value


class _Busy:
    """Entered while a row is worked on: a signal that comes then is kept until the row is done."""

    def __init__(self) -> None:
        self.working = self.asked = False

    def __enter__(self) -> None:
        self.working = True

    def __exit__(self, *error: Any) -> None:
        self.working = False
        if self.asked and error[0] is None:
            raise _Stop

    def handle(self, *_: Any) -> None:
        if self.asked:  # a second time: whoever reads the answers stands still, perhaps
            raise KeyboardInterrupt
        self.asked = True
        if not self.working:
            raise _Stop


@contextmanager
def _stoppable() -> Iterator[_Busy]:
    """Ctrl-C and SIGTERM become `_Stop`, between two rows; one that the process was started to ignore stays ignored."""
    busy = _Busy()
    before: dict[int, Callable[..., Any] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, busy.handle)
    try:
        yield busy
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
