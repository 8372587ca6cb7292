"""The state of a stream as a value and as a file: safetensors with a header in JSON, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tidegate.documents import check, cut
from tidegate.errors import DataError, SettingsError
from tidegate.files import DiskError, replacing
from tidegate.streaming.places import Key, plain_key
from tidegate.streaming.times import Moment, moment_from

FORMAT, VERSION = "tidegate-stream", 2
"""1: without the times of rows; a state that has none is still written so, and earlier versions of Tidegate read it."""
Parts = dict[str, np.ndarray]
"""Of one key: h [layers, H], of an LSTM also c, with per="sequence" what is pooled so far [width]."""


@dataclass(frozen=True, eq=False)
class StreamState:
    """Where one stream stands: a value, to be kept, moved to another process and put back.

    run: the fingerprint of the run it belongs to; rows: how many it has taken in; parts: the state of the core, float32
    [layers, H] (of an LSTM h and c), and with per="sequence" what is pooled so far; time: the latest one of its rows, where the
    stream was told their times. `to_bytes` is a safetensors file.
    """

    run: str
    rows: int
    parts: Parts
    time: Moment | None = None

    def to_bytes(self) -> bytes:
        time = {} if self.time is None else {"time": list(self.time)}
        return save(self.parts, _header("one", timed=bool(time), run=self.run, rows=self.rows, **time))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamState) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @staticmethod
    def from_bytes(data: bytes) -> StreamState:
        """Raises DataError where `data` is not what `to_bytes` gave."""
        parts, header = _read(data, "The bytes", "one")
        if not isinstance(header.get("run"), str) or not _is_count(header.get("rows")):
            raise _damaged("The bytes", "its header lacks the run or the number of rows")
        try:
            time = moment_from(header.get("time"))
        except (ValueError, TypeError) as error:
            raise _damaged("The bytes", str(error)) from error
        return StreamState(header["run"], header["rows"], parts, time)


@dataclass(frozen=True)
class Saved:
    """What a file holds: of each key its rows, when it was last heard of, its parts, and the latest time of its rows (None: not
    known); more: what was kept beside them."""

    run: str
    keys: list[Key]
    rows: list[int]
    seen: list[float]
    parts: list[Parts]
    times: list[Moment | None]
    more: dict[str, Any]


def write_states(path: Path, saved: Saved) -> None:
    """One file, whole or not at all. Raises DiskError."""
    # By kind of part: most keys have the same, and one array of all is written and read at once.
    several: dict[str, list[np.ndarray]] = {}
    owners: dict[str, list[int]] = {}
    for k, parts in enumerate(saved.parts):
        for name, part in parts.items():
            several.setdefault(name, []).append(part)
            owners.setdefault(name, []).append(k)
    tensors = {name: np.stack(parts) for name, parts in several.items()}
    tensors |= {f"{name} of": np.array(which, dtype=np.int64) for name, which in owners.items()}
    keys = json.dumps([list(k) if isinstance(k, tuple) else k for k in saved.keys], ensure_ascii=False)
    more = json.dumps(saved.more, ensure_ascii=False, allow_nan=False)
    texts = {"keys": keys, "more": more}
    timed = any(time is not None for time in saved.times)
    if timed:
        texts["times"] = json.dumps(saved.times)
    # As arrays, since a header of safetensors ends at 100 MB.
    tensors |= {name: np.frombuffer(text.encode(), dtype=np.uint8) for name, text in texts.items()}
    tensors["rows"] = np.array(saved.rows, dtype=np.int64)
    tensors["seen"] = np.array(saved.seen, dtype=np.float64)
    with replacing(path.resolve()) as temporary:  # where a link leads, not the link
        try:
            data = save(tensors, _header("all", timed=timed, run=saved.run))
        except SafetensorError as error:
            raise DiskError(f"{path} could not be written ({error}).") from error
        temporary.write_bytes(data)


def read_states(path: Path) -> Saved:
    """Raises DataError: no such file, or none that `write_states` wrote."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}).") from error
    tensors, header = _read(data, str(path), "all")
    try:
        more = json.loads(tensors.pop("more").tobytes())
        keys = [tuple(key) if isinstance(key, list) else key for key in json.loads(tensors.pop("keys").tobytes())]
        for key in keys:
            plain_key(key)
        rows, seen = tensors.pop("rows").tolist(), tensors.pop("seen").tolist()
        check(list[int], rows, "rows")
        if not all(map(_is_count, rows)):
            raise ValueError("a number of rows that no stream has")
        check(list[float], seen, "seen")
        times: list[Moment | None] = [None] * len(keys)
        if "times" in tensors:
            times = [moment_from(time) for time in json.loads(tensors.pop("times").tobytes())]
        owners = {name: tensors.pop(f"{name} of").tolist() for name in [*tensors] if not name.endswith(" of")}
        if not len(keys) == len(set(keys)) == len(rows) == len(seen) == len(times):
            raise ValueError(f"{len(keys)} keys, {len(rows)} numbers of rows, {len(times)} times")
        parts: list[Parts] = [{} for _ in keys]
        for name, which in owners.items():
            for k, part in zip(which, tensors[name], strict=True):
                if not 0 <= k < len(keys):
                    raise ValueError(f"a part of key {k}")
                parts[k][name] = part
        return Saved(str(header["run"]), keys, rows, seen, parts, times, dict(more))
    except (KeyError, ValueError, TypeError, SettingsError, RecursionError) as error:
        raise _damaged(str(path), str(error)) from error


def check_parts(parts: Parts, shapes: Mapping[str, Sequence[int]], what: str) -> None:
    """Raises DataError for parts that are not float32 (pooled sums: float64) of these shapes."""
    found = {name: list(part.shape) for name, part in parts.items()}
    if found != {name: list(shape) for name, shape in shapes.items()} or any(
        part.dtype not in (np.float32, np.float64) or (part.dtype == np.float64 and name != "pooled")
        for name, part in parts.items()
    ):
        raise _damaged(what, f"it holds {found}, and a state of this run {dict(shapes)}")


def _is_count(rows: Any) -> bool:
    """Whether it is a number of rows, with room for more."""
    return isinstance(rows, int) and not isinstance(rows, bool) and 0 <= rows < 1 << 62


def _header(kind: str, *, timed: bool, **values: Any) -> dict[str, str]:
    text = {"format": FORMAT, "version": VERSION if timed else 1, "kind": kind, **values}
    return {"tidegate": json.dumps(text, ensure_ascii=False, allow_nan=False)}


def _read(data: bytes, name: str, kind: str) -> tuple[Parts, dict[str, Any]]:
    """The arrays and the header of a file of ours. Raises DataError for any other."""
    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["tidegate"])
        if header["format"] != FORMAT or header["kind"] != kind:
            raise KeyError("format")
        newer = header["version"] not in range(1, VERSION + 1)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(name, str(error) or type(error).__name__) from error
    if newer:
        raise DataError(f"{name} was written by a newer Tidegate. Update this one.")
    return arrays, header


def _damaged(name: str, why: str) -> DataError:
    return DataError(f"{name}: not the state of a stream, or damaged ({cut(why)}). Begin anew without it.")
