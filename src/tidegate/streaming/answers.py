"""The loop of `tidegate stream`: rows come in line by line, answers go out line by line, and a state file loses none."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tidegate.data.lines import Line, RowLines
from tidegate.errors import DataError, SettingsError
from tidegate.streaming.stream import Key, Stream


class _Stop(BaseException):
    """Ctrl-C or SIGTERM, while the loop waits for a row."""


@dataclass
class Counts:
    """What a call of `answer` has done. rows: taken in by it; bad: of these, answered with an error; skipped: rows that the
    state file had taken in already; stopped: by Ctrl-C or SIGTERM."""

    rows: int = 0
    bad: int = 0
    skipped: int = 0
    stopped: bool = False


class Progress:
    """How much of an input a state file has taken in, and whether an input is that one: digests of its first row and of all
    rows so far."""

    def __init__(self, kept: dict[str, Any] | None = None):
        kept = kept or {}
        self.rows: int = kept.get("rows", 0)
        self.first: str = kept.get("first", "")
        self.digest: str = kept.get("digest", "")
        self._hash = hashlib.sha256()

    def take(self, line: Line) -> None:
        self._add(line)
        if not self.rows:
            self.first = self._hash.hexdigest()
        self.rows += 1

    def _add(self, line: Line) -> None:
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
                f"{path} has taken in {self.rows:,} rows of an input, and this one has others among its first {self.rows:,}. Give it "
                "the same input again; to begin anew, remove the file."
            )

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "first": self.first, "digest": self._hash.hexdigest()}


def answer(
    stream: Stream,
    lines: RowLines,
    out: BinaryIO,
    *,
    state: Path | None = None,
    save_every: int = 1000,
    new_rows: bool = False,
    only_last: bool = False,
    strict: bool = False,
    forgotten: list[Key],
) -> Counts:
    """Answer each row of `lines` with a line of JSON on `out`, flushed, in order.

    state: the file from which the states are taken up, if it is there,
    and to which they are written every `save_every` rows and at the end; of the same input, rows that it has taken in are
    not answered again. new_rows: the input goes on where the last one ended. only_last: one answer a key, its last, when
    the input ends or the key is forgotten. strict: a bad row is an error.
    forgotten: the list to which the stream's `on_forget` adds.

    An answer is out before its row counts as taken in. Ctrl-C and SIGTERM end the loop between two rows.
    Raises DataError: a state file of another run or input; a bad row, where strict. All before it is kept.
    """
    counts, kept, last = Counts(), {}, {}
    if state is not None and state.exists():
        kept = stream.restore(state)
        if bool(kept.get("only_last")) != only_last:
            raise SettingsError(
                f"{state} was written {'with' if kept.get('only_last') else 'without'} --only-last. Go on so."
            )
        last = {tuple(k) if isinstance(k, list) else k: told for k, told in kept.get("last", [])}
    progress = Progress(None if new_rows else kept.get("input"))
    rows = iter(lines)

    def write(values: dict[str, Any]) -> None:
        out.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        out.flush()

    def save() -> None:
        if state is not None:
            more: dict[str, Any] = {"input": progress.to_dict(), "only_last": only_last}
            if only_last:
                more["last"] = [[list(k) if isinstance(k, tuple) else k, told] for k, told in last.items()]
            stream.save(state, more=more)

    def forget() -> None:
        for gone in forgotten:
            if (told := last.pop(gone, None)) is not None:
                write(told)
        forgotten.clear()

    with _stoppable() as busy:
        try:
            progress.skip(rows, state or Path())
            counts.skipped = progress.rows
            for line in rows:
                with busy:
                    key = lines.key or ()
                    told, bad = _one(stream, line, key, strict)
                    if not only_last or bad:
                        write(told)
                    else:
                        last[_key_of(line, key)] = told
                    if forgotten:
                        forget()
                    progress.take(line)
                    counts.rows += 1
                    counts.bad += bad
                    if not counts.rows % save_every:
                        save()
        except _Stop:
            counts.stopped = True
        except DataError:
            if counts.rows:
                save()
            raise
    if only_last and not counts.stopped:
        for told in last.values():
            write(told)
        last.clear()
    save()
    return counts


def _one(stream: Stream, line: Line, key: Sequence[str], strict: bool) -> tuple[dict[str, Any], bool]:
    """The answer to a row, and whether it is an error. Raises DataError for an error where strict."""
    where = f"line {line.number}"
    told: dict[str, Any] = {}
    try:
        if line.row is None:
            raise DataError(f"{where}: {line.error}.")
        row = line.row
        for name in key:
            if name not in row:
                raise DataError(f"{where}: there is no column {name!r}, which says whose row it is.")
            value = row[name]
            if value is None or isinstance(value, list | dict):
                raise DataError(
                    f"{where}, column {name!r}: {value!r} can't say whose row it is; text or a number is expected."
                )
            told[name] = value
        return told | stream.push(row, _key_of(line, key), where=where), False
    except (DataError, SettingsError) as error:
        if strict:
            raise
        return {"line": line.number, **told, "error": str(error)}, True


def _key_of(line: Line, key: Sequence[str]) -> Key:
    assert line.row is not None
    return None if not key else line.row[key[0]] if len(key) == 1 else tuple(line.row[name] for name in key)


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
        self.asked = True
        if not self.working:
            raise _Stop


@contextmanager
def _stoppable() -> Iterator[_Busy]:
    """Ctrl-C and SIGTERM become `_Stop`, between two rows."""
    busy = _Busy()
    before: dict[int, Callable[..., Any] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, busy.handle)
    try:
        yield busy
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
