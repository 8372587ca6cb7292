"""One row in, one prediction out: a run over streams whose next row isn't known yet, with the state as a value."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tidegate.errors import DataError, SettingsError, ShapeError
from tidegate.files import replacing
from tidegate.nn import GRU
from tidegate.ops.affine import affine, one_row
from tidegate.streaming.rows import Row, RowReader, kind_of, told
from tidegate.training.evaluation import predicted_columns, probabilities_of

if TYPE_CHECKING:
    from tidegate.training.run import Run

Key = Hashable  # None, or text, a number, or a tuple of these

FORMAT, VERSION = "tidegate-stream", 1


@dataclass(frozen=True)
class StreamState:
    """Where one stream stands: a value, to be kept, moved to another process and put back.

    run: the fingerprint of the run it belongs to; rows: how many it has taken in; parts: the state of the core, float32
    [layers, H] (of an LSTM h and c), and with per="sequence" what is pooled so far. `to_bytes` is a safetensors file.
    """

    run: str
    rows: int
    parts: dict[str, np.ndarray]

    def to_bytes(self) -> bytes:
        from safetensors.numpy import save

        header = {"format": FORMAT, "version": VERSION, "kind": "one", "run": self.run, "rows": self.rows}
        return save(self.parts, {"tidegate": json.dumps(header)})

    @staticmethod
    def from_bytes(data: bytes) -> StreamState:
        """Raises DataError where `data` is not what `to_bytes` gave."""
        parts, header = _read(data, "The bytes", "one")
        return StreamState(header["run"], header["rows"], parts)


class _Place:
    """One key's stream: the core's state as it takes it, what is pooled, and when it was last heard of."""

    __slots__ = ("pooled", "rows", "seen", "state")

    def __init__(self) -> None:
        self.state: Any = None
        self.pooled: np.ndarray | None = None
        self.rows = 0
        self.seen = 0.0


class Stream:
    """A run row by row: `push` takes a row and gives its prediction; the state goes on from row to row. Made by `run.stream()`.

        y_t, state = core.step(e_t, state)      e_t: the row as the run encodes it
        scores_t   = W y_t + b                  per="step"
        scores_t   = W pool(y_1 .. y_t) + b     per="sequence": what the sequence would get if it ended here

    Each key (a device, a user, a session) has a state of its own, 4 bytes a unit and layer. Rows of a key come in the order of
    their time; a group or time column in the row is not looked at. Values are checked as `predict` checks them, a word or
    category that training never saw is read as the unknown one, columns that the run doesn't read are left alone.

    In the native back end predictions are those of `run.predict` over the whole sequence, bit for bit, alone or in
    `push_many`. It runs on the CPU, in about 15 us a row for a small GRU, and may be used from several threads.
    """

    def __init__(
        self,
        run: Run,
        *,
        probabilities: bool = False,
        max_keys: int | None = None,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
        on_forget: Callable[[Key], None] = lambda key: None,
    ):
        pre, spec = run.preprocessing, run.model.spec
        if spec.bidirectional:
            raise SettingsError(
                f"{run.folder} reads each sequence in both directions, so it needs the end before it can answer. "
                "Train with bidirectional=False (--no-bidirectional) to stream, or use predict."
            )
        if probabilities and pre.target.task == "number":
            raise SettingsError("probabilities are for classes and labels; this run predicts numbers.")
        if max_keys is not None and not (isinstance(max_keys, int) and max_keys >= 1):
            raise SettingsError(f"max_keys={max_keys!r}: expected a whole number of at least 1, or None.")
        if ttl is not None and not ttl > 0:
            raise SettingsError(f"ttl={ttl!r}: expected seconds, more than 0, or None.")
        on_cpu = next(run.model.parameters()).device.type == "cpu"
        model = (run.model if on_cpu else copy.deepcopy(run.model).cpu()).eval()
        self.run = run
        self.fingerprint = run.fingerprint
        self.max_keys, self.ttl = max_keys, ttl
        self.probabilities = probabilities
        self._clock, self._on_forget = clock, on_forget
        self._core, self._spec, self._target = model.core, spec, pre.target
        self._reader = RowReader(pre, [e.weight.detach().numpy() for e in model.embeddings])  # type: ignore[union-attr, operator]
        self._x = torch.zeros(1, self._reader.width)
        self._x_row = self._x.numpy()[0]
        self._head = one_row(model.head.weight.detach(), model.head.bias.detach())
        self._model_head, self._head_width = model.head, model.head.in_features
        self._columns = predicted_columns(pre, probabilities)
        self._pooling = spec.pooling if spec.per == "sequence" else "last"
        self._horizon = max(spec.horizon, 1)
        self._residual = None if spec.residual is None else list(spec.residual)
        self._plain = pre.target.task == "class" and self._horizon == 1 and not probabilities and not self._residual
        self._places: OrderedDict[Key, _Place] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Stream({str(self.run.folder)!r}: {len(self)} key{'s' * (len(self) != 1)})"

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    @property
    def columns(self) -> list[str]:
        """What a row holds: the columns that the run reads, in the order for rows without names."""
        return list(self._reader.columns)

    @property
    def keys(self) -> list[Key]:
        """The keys that have a state, the one not heard of for longest first (where max_keys or ttl is set)."""
        return list(self._places)

    # -------------------------------------------------------------------------------------------- rows

    def push(self, row: Row, key: Key = None, *, where: str = "The row") -> dict[str, Any]:
        """Take in one row and give its prediction: the columns that `run.predict` adds, as a dict.

        row: a dict of the run's columns (others are left alone), or a list of values in the order of `columns`. A missing
            value is None.
        key: whose row it is; each key begins with its first row.
        where: how messages name the row.

        Raises DataError: a column is absent, a value is none that the column can have. The state is as it was then.
        """
        with self._lock:
            self._reader.read(row, self._x_row, where)
            place = self._known(key)
            if place is None or self.ttl is not None or self.max_keys is not None:
                place = self._place(key)
            scores = self._advance(place)
            place.rows += 1
            return self._answers(scores[None], self._x_row[None])[0]

    def push_many(
        self, rows: Sequence[Row], keys: Sequence[Key] | None = None, *, where: str = "Row"
    ) -> list[dict[str, Any]]:
        """Take in many rows, those of different keys together, and give a prediction for each. Answers and states are those of
        `push` for one row after the other.

        keys: as many as rows; None: all belong to the key None. Rows of one key are taken in order.
        where: how messages name a row, before its number, which counts from 1.

        Raises DataError as `push` does; then no row has been taken in.
        """
        if keys is None:
            keys = [None] * len(rows)
        if len(keys) != len(rows):
            raise ShapeError(f"push_many: {len(rows)} rows and {len(keys)} keys; expected as many of both.")
        with self._lock, torch.no_grad():
            x = torch.empty(len(rows), self._reader.width)
            for number, (row, to) in enumerate(zip(rows, x.numpy(), strict=True), 1):
                self._reader.read(row, to, f"{where} {number}")
            for key in keys:
                self._known(key)
            answers: list[Any] = [None] * len(rows)
            for wave in _waves(keys):
                self._take(wave, x, keys, answers)
            return answers

    def _take(self, wave: list[int], x: Tensor, keys: Sequence[Key], answers: list[Any]) -> None:
        """A row of each of some different keys, in one step of the core. With max_keys below their number, one after the other."""
        most = len(wave) if self.max_keys is None else self.max_keys
        for first in range(0, len(wave), most):
            some = wave[first : first + most]
            places = [self._place(keys[k]) for k in some]
            rows = x[some]
            y, states = self._step_many(rows, [place.state for place in places])
            for place, state in zip(places, states, strict=True):
                place.state = state
            if self._pooling != "last":
                y = torch.from_numpy(np.stack([self._pool(p, v) for p, v in zip(places, y.numpy(), strict=True)]))
            scores = affine(y, self._model_head.weight, self._model_head.bias).numpy()
            for k, place, answer in zip(some, places, self._answers(scores, rows.numpy()), strict=True):
                place.rows += 1
                answers[k] = answer

    def _step_many(self, x: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        core = self._core
        if core is None:
            return x, states
        fresh = self._fresh()
        parts = [fresh if state is None else state for state in states]
        if isinstance(core, GRU):
            y, h = core.step(x, torch.cat(parts, dim=1))
            return y, [one.clone() for one in h.split(1, dim=1)]
        if isinstance(fresh, tuple):
            y, (h, c) = core(x.unsqueeze(0), tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))
            pairs = zip(h.split(1, dim=1), c.split(1, dim=1), strict=True)
            return y[0], [(a.clone(), b.clone()) for a, b in pairs]
        y, h = core(x.unsqueeze(0), torch.cat(parts, dim=1))
        return y[0], [one.clone() for one in h.split(1, dim=1)]

    def _fresh(self) -> Any:
        """The state of a stream that begins."""
        core = self._core
        if isinstance(core, GRU):
            return core.initial_state(1).detach().clone()
        zeros = torch.zeros(self._spec.num_layers, 1, self._spec.hidden_size)
        return (zeros, zeros) if self._spec.cell == "lstm" else zeros

    def _advance(self, place: _Place) -> np.ndarray:
        """The row in `_x` goes into a place; its scores [K * outputs], which the next row overwrites."""
        core = self._core
        was = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad() takes a microsecond more
        try:
            if isinstance(core, GRU):
                if place.state is None:
                    place.state = self._fresh()
                y, place.state = core.step(self._x, place.state)
            elif core is None:
                y = self._x
            else:
                y, place.state = core(self._x.unsqueeze(0), self._fresh() if place.state is None else place.state)
                y = y[0]
            if self._pooling != "last":
                y = torch.from_numpy(self._pool(place, y.numpy()[0])[None])
            return self._head(y)
        finally:
            torch._C._set_grad_enabled(was)

    def _pool(self, place: _Place, y: np.ndarray) -> np.ndarray:
        """What the head reads after this row: the sequence's mean or maximum so far."""
        if self._pooling == "max":
            place.pooled = y.copy() if place.pooled is None else np.maximum(place.pooled, y)
            return place.pooled
        # The model's evaluation adds up in the same way (SequenceModel._pool).
        place.pooled = y.astype(np.float64) if place.pooled is None else place.pooled + y
        return (place.pooled / (place.rows + 1)).astype(np.float32)

    def _answers(self, scores: np.ndarray, x: np.ndarray) -> list[dict[str, Any]]:
        """Predictions of rows that were read as x [rows, width] and got these scores [rows, K * outputs]."""
        if self._plain:
            classes = self._target.classes
            return [{"prediction": classes[of.index(max(of))]} for of in scores.tolist()]
        target = self._target
        scores = scores.reshape(len(scores), self._horizon, -1)
        if self._residual is not None:
            scores = scores + x[:, None, self._residual]
        rows = scores.tolist()
        probable: Any = [None] * len(rows)
        if self.probabilities:
            probable = probabilities_of(torch.from_numpy(scores), target.task).tolist()
        return [self._named_answer(*both) for both in zip(rows, probable, strict=True)]

    def _named_answer(self, scores: list[list[float]], probabilities: list[list[float]]) -> dict[str, Any]:
        target, answer = self._target, {}
        for name, ahead, which, probability in self._columns:
            of = scores[ahead]
            if probability:
                answer[name] = probabilities[ahead][which]
            elif target.task == "class":
                answer[name] = target.classes[of.index(max(of))]
            elif target.task == "labels":
                answer[name] = int(of[which] > 0)
            else:
                answer[name] = of[which] * target.stds[which] + target.means[which]
        return answer

    # -------------------------------------------------------------------------------------------- keys

    def _known(self, key: Key) -> _Place | None:
        """The key's place, if it has one. Raises SettingsError for what can be no key."""
        try:
            place = self._places.get(key)
        except TypeError:  # what can't be looked up: a list, a dict
            place = None
        if place is None:
            _check_key(key)
        return place

    def _place(self, key: Key) -> _Place:
        """The key's place, begun anew where it rested for too long; others go where there are too many."""
        now = self._clock() if self.ttl is not None else 0.0
        if self.ttl is not None:
            self._forget_old(now)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = _Place()
            while self.max_keys is not None and len(self._places) > self.max_keys:
                self._on_forget(self._places.popitem(last=False)[0])
        elif self.max_keys is not None or self.ttl is not None:
            self._places.move_to_end(key)
        place.seen = now
        return place

    def _forget_old(self, now: float) -> None:
        assert self.ttl is not None
        while self._places:
            key, place = next(iter(self._places.items()))
            if now - place.seen <= self.ttl:
                return
            del self._places[key]
            self._on_forget(key)

    def reset(self, key: Key = None) -> None:
        """Let a key begin anew with its next row. A key that has no state is left alone."""
        with self._lock:
            self._places.pop(key, None)

    def clear(self) -> None:
        """Let every key begin anew."""
        with self._lock:
            self._places.clear()

    def state(self, key: Key = None) -> StreamState | None:
        """Where a key stands, as a value that no later row changes; None where it hasn't begun."""
        with self._lock:
            place = self._places.get(key)
            return None if place is None else StreamState(self.fingerprint, place.rows, self._parts(place))

    def put(self, state: StreamState, key: Key = None) -> None:
        """Let a key go on from a state that `state` gave, here or in another process.

        Raises DataError for the state of another run.
        """
        _check_key(key)
        self._check_run(state.run, "The state")
        self._check_shapes(state.parts, 0, "The state")
        with self._lock:
            self._set(key, state.rows, state.parts, self._clock() if self.ttl is not None else 0.0)
            while self.max_keys is not None and len(self._places) > self.max_keys:
                self._on_forget(self._places.popitem(last=False)[0])

    def _parts(self, place: _Place) -> dict[str, np.ndarray]:
        parts: dict[str, np.ndarray] = {}
        if place.state is not None:
            several = place.state if isinstance(place.state, tuple) else (place.state,)
            parts |= {name: s.squeeze(1).numpy().copy() for name, s in zip(("h", "c"), several, strict=False)}
        if place.pooled is not None:
            parts["pooled"] = place.pooled.copy()
        return parts

    def _set(self, key: Key, rows: int, parts: Mapping[str, np.ndarray], seen: float) -> None:
        place = self._places[key] = _Place()
        self._places.move_to_end(key)
        place.rows, place.seen = rows, seen
        several = tuple(torch.from_numpy(parts[name].copy()).unsqueeze(1) for name in ("h", "c") if name in parts)
        if several:
            place.state = several if len(several) > 1 else several[0]
        if "pooled" in parts:
            place.pooled = parts["pooled"].copy()

    def _check_run(self, fingerprint: str, what: str) -> None:
        if fingerprint != self.fingerprint:
            raise DataError(
                f"{what} is of another run: it was written for {fingerprint[:12]}, and {self.run.folder} is {self.fingerprint[:12]} "
                "(the fingerprint of weights and preprocessing). Use the run it was written for, or begin anew without it."
            )

    def _check_shapes(self, parts: Mapping[str, np.ndarray], more_axes: int, what: str) -> None:
        spec = self._spec
        names = {"none": (), "lstm": ("h", "c")}.get(spec.cell, ("h",))
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (spec.num_layers, spec.hidden_size))
        if self._pooling != "last":
            shapes["pooled"] = (self._head_width,)
        found = {name: part.shape[more_axes:] for name, part in parts.items()}
        if found != shapes:
            raise DataError(f"{what} is damaged: it holds {found}, and the run's is {shapes}. Begin anew without it.")

    # -------------------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path, *, more: Mapping[str, Any] | None = None) -> None:
        """Write the states of all keys to one safetensors file, whole or not at all.

        more: what else is to be kept, as JSON knows it; `restore` gives it back.
        Raises DiskError where the file can't be written.
        """
        with self._lock:
            places = list(self._places.items())
            # Kept by kind: most have the same parts, and one array of all keys is read and written at once.
            several: dict[str, list[np.ndarray]] = {}
            have: dict[str, list[int]] = {}
            for k, (_, place) in enumerate(places):
                for name, part in self._parts(place).items():
                    several.setdefault(name, []).append(part)
                    have.setdefault(name, []).append(k)
            header = {
                "format": FORMAT,
                "version": VERSION,
                "kind": "all",
                "run": self.fingerprint,
                "more": dict(more or {}),
            }
            tensors = {name: np.stack(parts) for name, parts in several.items()}
            tensors |= {f"{name} of": np.array(which, dtype=np.int64) for name, which in have.items()}
            keys = json.dumps([_plain(key) for key, _ in places], ensure_ascii=False).encode()
            tensors["keys"] = np.frombuffer(keys, dtype=np.uint8)
            tensors["rows"] = np.array([place.rows for _, place in places], dtype=np.int64)
            tensors["seen"] = np.array([place.seen for _, place in places], dtype=np.float64)
        from safetensors.numpy import save_file

        with replacing(Path(path)) as temporary:
            save_file(tensors, str(temporary), {"tidegate": json.dumps(header, ensure_ascii=False)})

    def restore(self, path: str | Path) -> dict[str, Any]:
        """Take up the states that `save` wrote, in place of those that are here; returns its `more`.

        Raises DataError: no such file, a damaged one, or one of another run. Then nothing has changed.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror or error}).") from error
        tensors, header = _read(data, str(path), "all")
        self._check_run(header["run"], str(path))
        keys = [_unplain(key) for key in json.loads(tensors["keys"].tobytes())]
        if keys:
            self._check_shapes({name: tensors[name] for name in ("h", "c", "pooled") if name in tensors}, 1, str(path))
        parts: list[dict[str, np.ndarray]] = [{} for _ in keys]
        for name in ("h", "c", "pooled"):
            for k, part in zip(tensors.get(f"{name} of", ()), tensors.get(name, ()), strict=True):
                parts[k][name] = part
        with self._lock:
            self._places.clear()
            for key, rows, seen, own in zip(keys, tensors["rows"], tensors["seen"], parts, strict=True):
                self._set(key, int(rows), own, float(seen))
            while self.max_keys is not None and len(self._places) > self.max_keys:
                self._on_forget(self._places.popitem(last=False)[0])
        return header["more"]


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


def _check_key(key: Any) -> None:
    parts = key if isinstance(key, tuple) else () if key is None else (key,)
    for part in parts:
        if not isinstance(part, str | int | float) or (isinstance(part, float) and part - part != 0):
            raise SettingsError(
                f"key={told(key)} is {kind_of(key)}; a key is text, a number, a tuple of these, or None, so that it can be saved."
            )


def _plain(key: Any) -> Any:
    return list(key) if isinstance(key, tuple) else key


def _unplain(key: Any) -> Key:
    return tuple(key) if isinstance(key, list) else key


def _read(data: bytes, name: str, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file of ours. Raises DataError for any other."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["tidegate"])
        if header["format"] != FORMAT or header["kind"] != kind:
            raise KeyError("format")
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{name}: not the state of a stream, or damaged ({str(error) or type(error).__name__}). Begin anew without it."
        ) from error
    if header["version"] != VERSION:
        raise DataError(f"{name} was written by a newer Tidegate. Update this one.")
    return arrays, header
