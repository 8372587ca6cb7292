"""One row in, one prediction out: a run over streams whose next row isn't known yet, with the state as a value."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import time as now_of_clock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tidegate.data.dates import ORDERS
from tidegate.data.rows import Row, RowReader
from tidegate.errors import DataError, SettingsError, ShapeError
from tidegate.model.cells import CELLS, State, parts_of, state_of
from tidegate.model.pooling import POOLINGS
from tidegate.model.tasks import TASKS, predicted_columns
from tidegate.ops.affine import one_row
from tidegate.streaming.places import Key, Place, Places
from tidegate.streaming.state import Parts, Saved, StreamState, check_parts, read_states, write_states
from tidegate.streaming.times import Moment, check_after, moment_of
from tidegate.trained.predict import check_probabilities

if TYPE_CHECKING:
    from tidegate.trained import Trained


class Stream:
    """A run row by row: `push` takes a row and gives its prediction; the state goes on from row to row. Made by `run.stream()`.

        y_t, state = core.step(e_t, state)      e_t: the row as the run encodes it
        scores_t   = W y_t + b                  per="step"
        scores_t   = W pool(y_1 .. y_t) + b     per="sequence": what the sequence would get if it ended here

    Each key (a device, a user, a session) has a state of its own: 4 bytes a unit and layer, and some 700 of Python's. Rows of a
    key come in the order of their time; with time="COLUMN" that is checked, and a row whose time is not after the last one of its key
    is refused (late="take": taken all the same). A group column in the row is not looked at. Values are checked as `predict` checks
    them, a word or category that training never saw is read as the unknown one, columns that the run doesn't read are left alone.
    Keys that Python takes for equal are one: 1, 1.0 and True, but not "1".

    In the native back end predictions are those of `run.predict` over the whole sequence, bit for bit, alone or in
    `push_many`. It runs on the CPU (docs/stream.md says how fast) and may be used from several threads.
    """

    def __init__(
        self,
        run: Trained,
        *,
        probabilities: bool = False,
        time: str | None = None,
        date_order: Literal["auto", "dmy", "mdy"] = "auto",
        late: Literal["error", "take"] = "error",
        max_keys: int | None = None,
        ttl: float | None = None,
        clock: Callable[[], float] = now_of_clock,
        on_forget: Callable[[Key], None] = lambda key: None,
    ):
        pre, spec = run.preprocessing, run.model.spec
        if spec.bidirectional:
            raise SettingsError(
                f"{run.name} reads each sequence in both directions, so it needs the end before it can answer. "
                "Train with bidirectional=False (--no-bidirectional) to stream, or use predict."
            )
        check_probabilities(pre, probabilities)
        if late not in ("error", "take"):
            raise SettingsError(f"late={late!r}: expected 'error' or 'take'.")
        if date_order not in ("auto", *ORDERS):
            raise SettingsError(f"date_order={date_order!r}: expected 'auto', 'dmy' or 'mdy'.")
        if late == "take" and time is None:
            raise SettingsError(
                "late='take' is for rows whose time is not after the last one. Name the column of the times (time, --time), or leave late out."
            )
        if max_keys is not None and (isinstance(max_keys, bool) or not isinstance(max_keys, int) or max_keys < 1):
            raise SettingsError(f"max_keys={max_keys!r}: expected a whole number of at least 1, or None.")
        if ttl is not None and not (isinstance(ttl, int | float) and ttl > 0):
            raise SettingsError(f"ttl={ttl!r}: expected seconds, more than 0, or None.")
        model = (run.model if run.device.type == "cpu" else copy.deepcopy(run.model).cpu()).eval()
        self.run = run
        self.fingerprint = run.fingerprint
        self.probabilities = probabilities
        self.time, self.late = time, late
        self._comma = run.settings.decimal_comma
        # As it was said here, found in the table of the training, or said there.
        orders = [date_order, pre.date_order if time == pre.time else "", run.settings.date_order]
        self._date_order = next((order for order in orders if order in ORDERS), "")
        self._clock, self._on_forget = clock, on_forget
        self._core, self._spec, self._target = model.core, spec, pre.target
        self._row, self._task = CELLS[spec.cell], TASKS[pre.target.task]
        self._cell = self._row.load()
        self._reader = RowReader(pre, [e.weight.detach().numpy() for e in model.embeddings])  # type: ignore[union-attr, operator]
        self._x = torch.zeros(1, self._reader.width, dtype=torch.float32)
        self._x_row = self._x.numpy()[0]
        self._head = one_row(model.head.weight.detach(), model.head.bias.detach())
        self._model_head = model.head
        self._columns = predicted_columns(pre.target, pre.horizon, probabilities)
        self._pooling = POOLINGS[spec.pooling if spec.per == "sequence" else "last"]
        self._residual = None if spec.residual is None else list(spec.residual)
        self._plain = pre.target.task == "class" and spec.ahead == 1 and not probabilities and not self._residual
        self._places = Places(max_keys, ttl)
        self._shapes = self._shapes_of_parts()
        self._lock, self._saving = threading.Lock(), threading.Lock()

    def __repr__(self) -> str:
        return f"Stream({self.run.name!r}: {len(self)} key{'s' * (len(self) != 1)})"

    def __len__(self) -> int:
        return len(self._places)

    def __bool__(self) -> bool:
        return True  # also before its first row

    def __contains__(self, key: Key) -> bool:
        return self._places.find(key) is not None

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys())

    @property
    def predicted(self) -> list[str]:
        """What an answer holds: the columns that `run.predict` adds."""
        return [column.name for column in self._columns]

    @property
    def columns(self) -> list[str]:
        """What a row holds: the columns that the run reads, in the order for rows without names."""
        return list(self._reader.columns)

    def keys(self) -> list[Key]:
        """The keys that have a state, the one not heard of for longest first."""
        return list(self._places)

    # -------------------------------------------------------------------------------------------- rows

    def push(self, row: Row, key: Key = None) -> dict[str, Any]:
        """Take in one row and give its prediction: the columns that `run.predict` adds, as a dict.

        row: a dict of the run's columns (others are left alone), or a list of values in the order of `columns`. A missing
            value is None. With `time` it is a dict that has this column, too: a number, a date, or the text of one (the year first).
        key: whose row it is; each key begins with its first row.

        Raises DataError: a column is absent, a value is none that the column can have, the row is late; SettingsError: no key. The
        state is as it was then.
        """
        return self.push_from(row, key, "The row")

    def push_from(self, row: Row, key: Key, where: str) -> dict[str, Any]:
        """`push` of a row that messages call by this name, such as "line 17"."""
        with self._lock:
            self._reader.read(row, self._x_row, where)
            now = self._clock()
            moment = None if self.time is None else self._moment(row, where)
            if moment is not None:
                moment = self._in_order(moment, self._places.last_time(key, now), where, key)
            place = self._places.take(key, now)
            scores = self._advance(place)
            place.rows += 1
            if moment is not None:
                place.time = moment
            answer = self._answers(scores[None], self._x_row[None])[0]
        if self._places.gone:
            self._tell()
        return answer

    def push_many(self, rows: Sequence[Row], keys: Sequence[Key] | None = None) -> list[dict[str, Any]]:
        """Take in many rows, those of different keys together, and give a prediction for each. Answers and states are those of
        `push` for one row after the other.

        keys: as many as rows; None: all belong to the key None. Rows of one key are taken in order. Where there are so many
            that max_keys makes some of them go, they are taken one by one.

        Raises DataError and SettingsError as `push` does, ShapeError for another number of keys; then no row has been taken in.
        """
        if keys is None:
            keys = [None] * len(rows)
        if len(keys) != len(rows):
            raise ShapeError(f"push_many: {len(rows)} rows and {len(keys)} keys; expected as many of both.")
        with self._lock, torch.no_grad():
            x = torch.empty(len(rows), self._reader.width, dtype=torch.float32)
            for number, (row, to) in enumerate(zip(rows, x.numpy(), strict=True), 1):
                self._reader.read(row, to, f"Row {number}")
            for number, key in enumerate(keys, 1):
                try:
                    self._places.find(key)
                except SettingsError as error:
                    raise SettingsError(f"Row {number}: {error}") from None
            answers: list[Any] = [None] * len(rows)
            now = self._clock()
            moments = {} if self.time is None else self._moments(rows, keys, now)
            waves = [[k] for k in range(len(rows))] if self._places.crowded_by(set(keys)) else _waves(keys)
            for wave in waves:
                self._take(wave, x, keys, now, answers)
            self._places.heard(keys)  # in this order, whichever went together
            for key, moment in moments.items():
                if (place := self._places.find(key)) is not None:
                    place.time = moment
        if self._places.gone:
            self._tell()
        return answers

    def _moment(self, row: Row, where: str) -> Moment:
        """When a row happened."""
        name = self.time
        assert name is not None
        if not isinstance(row, Mapping) and name in self._reader.columns:
            return self._moment({name: row[self._reader.columns.index(name)]}, where)
        if not isinstance(row, Mapping) or name not in row:
            raise DataError(
                f"{where}: there is no column {name!r}, which holds the time. Give the row as a dict that has it."
            )
        place = f"{where}, column {name!r}"
        return moment_of(row[name], place, decimal_comma=self._comma, date_order=self._date_order)

    def _in_order(self, moment: Moment, last: Moment | None, where: str, key: Key) -> Moment:
        """The latest time of a key after a row. Raises DataError where the row comes late."""
        if last is None:
            return moment
        check_after(moment, last, f"{where}, column {self.time!r}", key, take=self.late == "take")
        return max(moment, last)

    def _moments(self, rows: Sequence[Row], keys: Sequence[Key], now: float) -> dict[Key, Moment]:
        """The latest time of each key after these rows. Raises DataError where one of them comes late."""
        after: dict[Key, Moment] = {}
        for number, (row, key) in enumerate(zip(rows, keys, strict=True), 1):
            last = after[key] if key in after else self._places.last_time(key, now)
            after[key] = self._in_order(self._moment(row, f"Row {number}"), last, f"Row {number}", key)
        return after

    def _tell(self) -> None:
        """Call on_forget for the keys that went. Not under the lock: it may want to ask this stream something."""
        with self._lock:
            gone, self._places.gone = self._places.gone, []
        for key in gone:
            self._on_forget(key)

    def _take(self, wave: list[int], x: Tensor, keys: Sequence[Key], now: float, answers: list[Any]) -> None:
        """A row of each of some different keys, in one step of the core."""
        places = [self._places.take(keys[k], now) for k in wave]
        rows = torch.from_numpy(x.numpy()[wave])  # a third of the time of x[wave]
        y, states = self._step_many(rows, [place.state for place in places])
        for place, state in zip(places, states, strict=True):
            place.state = state
        if self._pooling.carries:
            y = torch.from_numpy(np.stack([self._pool(p, v) for p, v in zip(places, y.numpy(), strict=True)]))
        scores = self._model_head(y).numpy()
        for k, place, answer in zip(wave, places, self._answers(scores, rows.numpy()), strict=True):
            place.rows += 1
            answers[k] = answer

    def _step_many(self, x: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """A step of several streams side by side: x [B, E], a state each."""
        together = _joined([self._fresh() if state is None else state for state in states])
        y, after = self._cell.step(self._core, x, together)
        return y, _separated(after, len(states))

    def _fresh(self) -> State:
        """The state of a stream that begins."""
        return self._cell.fresh(self._core, self._spec)

    def _advance(self, place: Place) -> np.ndarray:
        """The row in `_x` goes into a place; its scores [K * outputs], which the next row overwrites."""
        was = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad() takes a microsecond more
        try:
            state = self._fresh() if place.state is None else place.state
            y, place.state = self._cell.step(self._core, self._x, state)
            if self._pooling.carries:
                y = torch.from_numpy(self._pool(place, y.numpy()[0])[None])
            return self._head(y)
        finally:
            torch._C._set_grad_enabled(was)

    def _pool(self, place: Place, y: np.ndarray) -> np.ndarray:
        """What the head reads after this row, of its sequence so far."""
        place.pooled, value = self._pooling.running(place.pooled, y, place.rows)
        return value

    def _answers(self, scores: np.ndarray, x: np.ndarray) -> list[dict[str, Any]]:
        """Predictions of rows that were read as x [rows, width] and got these scores [rows, K * outputs]."""
        if self._plain:
            classes = self._target.classes
            return [{"prediction": classes[of.index(max(of))]} for of in scores.tolist()]
        scores = scores.reshape(len(scores), self._spec.ahead, -1)
        if self._residual is not None:
            scores = scores + x[:, None, self._residual]
        rows = scores.tolist()
        probable: Any = [None] * len(rows)
        if self.probabilities:
            probable = self._task.probabilities(torch.from_numpy(scores)).tolist()
        return [self._named_answer(*both) for both in zip(rows, probable, strict=True)]

    def _named_answer(self, scores: list[list[float]], probabilities: list[list[float]]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for name, ahead, which, probability in self._columns:
            if probability:
                answer[name] = probabilities[ahead][which]
            else:
                answer[name] = self._task.decide_one(scores[ahead], which, self._target)
        return answer

    # -------------------------------------------------------------------------------------------- keys

    def reset(self, key: Key = None) -> None:
        """Let a key begin anew with its next row. A key that has no state is left alone."""
        with self._lock:
            self._places.drop(key)

    def clear(self) -> None:
        """Let every key begin anew."""
        with self._lock:
            self._places.clear()

    def state(self, key: Key = None) -> StreamState | None:
        """Where a key stands, as a value that no later row changes; None where it hasn't begun."""
        with self._lock:
            place = self._places.find(key)
            return None if place is None else StreamState(self.fingerprint, place.rows, self._parts(place), place.time)

    def put(self, state: StreamState, key: Key = None) -> None:
        """Let a key go on from a state that `state` gave, here or in another process.

        Raises DataError for the state of another run.
        """
        self._check_run(state.run, "The state")
        place = self._place_of(state.parts, state.rows, self._clock(), "The state")
        place.time = state.time
        with self._lock:
            self._places.find(key)
            self._places.put(key, place)
        self._tell()

    def _parts(self, place: Place) -> dict[str, np.ndarray]:
        several = zip(self._row.state, parts_of(place.state), strict=False)
        parts = {name: part.squeeze(1).numpy().copy() for name, part in several}
        if place.pooled is not None:
            parts["pooled"] = place.pooled.copy()
        return parts

    def _place_of(self, parts: Parts, rows: int, seen: float, what: str) -> Place:
        check_parts(parts, self._shapes, what)
        place = Place()
        place.rows, place.seen = rows, seen
        names = [name for name in self._row.state if name in parts]
        place.state = state_of(tuple(torch.from_numpy(parts[name].copy()).unsqueeze(1) for name in names))
        if "pooled" in parts:
            place.pooled = parts["pooled"].copy()
        return place

    def _shapes_of_parts(self) -> dict[str, tuple[int, ...]]:
        spec = self._spec
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self._row.state, (spec.num_layers, spec.hidden_size))
        if self._pooling.carries:
            shapes["pooled"] = (self._pooling.carries * spec.output_width,)
        return shapes

    def _check_run(self, fingerprint: str, what: str) -> None:
        if fingerprint != self.fingerprint:
            raise DataError(
                f"{what} is of another run: it was written for {fingerprint[:12]}, and {self.run.name} is {self.fingerprint[:12]} "
                "(the fingerprint of weights and preprocessing). Use the run it was written for, or begin anew without it."
            )

    # -------------------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path, *, more: Mapping[str, Any] | None = None) -> None:
        """Write the states of all keys to one safetensors file, whole or not at all.

        more: what else is to be kept, as JSON knows it; `restore` gives it back.
        Raises DiskError where the file can't be written. Cost: all keys are written, some microseconds each.
        """
        with self._lock:
            items = self._places.items()
            saved = Saved(
                self.fingerprint,
                [key for key, _ in items],
                [place.rows for _, place in items],
                [place.seen for _, place in items],
                [self._parts(place) for _, place in items],
                [place.time for _, place in items],
                dict(more or {}),
            )
        with self._saving:  # two threads would share a temporary name
            write_states(Path(path), saved)

    def restore(self, path: str | Path) -> dict[str, Any]:
        """Take up the states that `save` wrote, in place of those that are here; returns its `more`.

        Raises DataError: no such file, a damaged one, or one of another run. Then nothing has changed.
        """
        path = Path(path)
        saved = read_states(path)
        self.take_up(saved, str(path))
        return saved.more

    def take_up(self, saved: Saved, name: str) -> None:
        """`restore` from a file that was read already; name: how messages call it."""
        self._check_run(saved.run, name)
        places = [
            self._place_of(parts, rows, seen, name)
            for parts, rows, seen in zip(saved.parts, saved.rows, saved.seen, strict=True)
        ]
        for place, moment in zip(places, saved.times, strict=True):
            place.time = moment
        with self._lock:
            self._places.clear()
            for key, place in zip(saved.keys, places, strict=True):
                self._places.put(key, place)
        self._tell()


def _waves(keys: Iterable[Key]) -> list[list[int]]:
    """Which rows can go together: the first of every key, then the second, and so on."""
    waves: list[list[int]] = []
    count: dict[Key, int] = {}
    for k, key in enumerate(keys):
        wave = count.get(key, 0)
        count[key] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(k)
    return waves


def _joined(states: Sequence[State]) -> State:
    """The states of several streams, each of batch 1, side by side."""
    if isinstance(states[0], Tensor):  # most cells carry one tensor, and with many keys the time goes here
        return torch.cat(states, dim=1)  # type: ignore[arg-type]
    together = zip(*map(parts_of, states), strict=True)
    return state_of(tuple(torch.cat(part, dim=1) for part in together))


def _separated(state: State, count: int) -> list[State]:
    """The reverse of `_joined`; each state owns its memory."""
    if isinstance(state, Tensor):
        return [one.clone() for one in state.split(1, dim=1)]
    apart = [part.split(1, dim=1) for part in parts_of(state)]
    return [state_of(tuple(part[k].clone() for part in apart)) for k in range(count)]
