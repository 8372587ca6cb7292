"""Where each key's stream stands, in the order in which the keys were last heard of, and which of them go."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np

from tidegate.data.rows import told
from tidegate.errors import SettingsError, of_type
from tidegate.streaming.times import Moment

Key = Hashable  # None, or text, a number, or a tuple of these


class Place:
    """One key's stream: the core's state as it takes it, what is pooled so far, how many rows it has taken in, when it was last
    heard of, and the latest time of its rows."""

    __slots__ = ("pooled", "rows", "seen", "state", "time")

    def __init__(self) -> None:
        self.state: Any = None
        self.pooled: np.ndarray | None = None
        self.rows = 0
        self.seen = 0.0
        self.time: Moment | None = None


class Places:
    """The places of all keys. Beyond `most` keys the one not heard of for longest goes, and so does whoever rested for longer
    than `ttl`; `gone` lists their keys until somebody takes it.
    """

    def __init__(self, most: int | None = None, ttl: float | None = None):
        self.most, self.ttl = most, ttl
        self.gone: list[Key] = []
        self._latest = -math.inf  # a clock that is set back must not make old keys young
        self._by_key: OrderedDict[Key, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_key)

    def items(self) -> list[tuple[Key, Place]]:
        return list(self._by_key.items())

    def find(self, key: Key) -> Place | None:
        """The key's place, if it has one. Raises SettingsError for what can be no key."""
        try:
            place = self._by_key.get(key)
        except TypeError:  # what can't be looked up: a list, a dict
            place = None
        if place is None:
            plain_key(key)
        return place

    def last_time(self, key: Key, now: float) -> Moment | None:
        """The latest time of a key's rows; None where it begins with a row that comes now. Raises SettingsError for no key."""
        place = self.find(key)
        if place is None or (self.ttl is not None and max(now, self._latest) - place.seen > self.ttl):
            return None
        return place.time

    def take(self, key: Key, now: float) -> Place:
        """The place for a row of this key that comes now; a new one for a key that is not here, or no longer."""
        self._latest = now = max(now, self._latest)
        if self.ttl is not None:
            self._drop_old(now)
        place = self.find(key)
        if place is None:
            place = self._by_key[plain_key(key)] = Place()
            self._drop_many()
        else:
            self._by_key.move_to_end(key)
        place.seen = now
        return place

    def heard(self, keys: Iterable[Key]) -> None:
        """These are the keys last heard of, in this order."""
        for key in keys:
            if key in self._by_key:
                self._by_key.move_to_end(key)

    def put(self, key: Key, place: Place) -> None:
        """Set a key's place, as that of one just heard of."""
        self._latest = max(place.seen, self._latest)
        self._by_key[plain_key(key)] = place
        self._by_key.move_to_end(key)
        self._drop_many()

    def drop(self, key: Key) -> None:
        self._by_key.pop(key, None)

    def clear(self) -> None:
        self._by_key.clear()

    def crowded_by(self, keys: set[Key]) -> bool:
        """Whether taking in rows of these keys can make some key go."""
        return self.most is not None and len(self) + sum(key not in self._by_key for key in keys) > self.most

    def _drop_many(self) -> None:
        while self.most is not None and len(self._by_key) > self.most:
            self.gone.append(self._by_key.popitem(last=False)[0])

    def _drop_old(self, now: float) -> None:
        assert self.ttl is not None
        while self._by_key:
            key, place = next(iter(self._by_key.items()))
            if now - place.seen <= self.ttl:
                return
            del self._by_key[key]
            self.gone.append(key)


def plain_key(key: Any) -> Key:
    """The key as a file can hold it. Raises SettingsError for one that can't be."""
    if isinstance(key, tuple):
        return tuple(_plain(part, key) for part in key)
    return None if key is None else _plain(key, key)


def _plain(part: Any, key: Any) -> Key:
    part = part.item() if isinstance(part, np.generic) else part
    if isinstance(part, str):
        if not any("\ud800" <= letter <= "\udfff" for letter in part):
            return part
        why = "holds half of a character"
    elif isinstance(part, int | float):
        if part - part == 0:
            return part
        why = "is not finite"
    else:
        why = f"is {of_type(part)}"
    raise SettingsError(
        f"key={told(key)} {why}; a key is text, a finite number, a tuple of these, or None, so that it can be saved."
    )
