"""Lists of columns as a command line has them: 'a,b' is two columns, 'x*' all whose names begin so."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.documents import cut
from tidegate.errors import DataError

Kind = TypeVar("Kind", bound=DataSettings)
_WORDS = {
    "features": "feature",
    "exclude": "left-out",
    "categories": "category",
}  # how messages call a column of that role


def name_columns(settings: Kind, table: Table) -> Kind:
    """The settings with the columns of this table that their lists and patterns mean.

    A name that is a column stands for itself, whatever is in it. A pattern passes over the columns that have another role.
    Raises DataError where a pattern fits no column, SettingsError where a column has two roles.
    """
    known = table.frame.columns
    names: dict[str, tuple[str, ...] | None] = {}

    def find(role: str, *taken: str) -> None:
        given = getattr(settings, role)
        if given is None or all(name in known for name in given):
            names[role] = given
            return
        others = {settings.time, settings.split} | {name for other in taken for name in names[other] or ()}
        found = [
            name
            for one in given
            for name in _columns_of(one, known, others, f"{table.name} has no {_WORDS.get(role, role)} column")
        ]
        names[role] = tuple(dict.fromkeys(found))

    find("group")
    find("target", "group")
    find("exclude", "group", "target")
    find("features", "group", "exclude", *(() if settings.horizon else ("target",)))
    for role in ("categories", "text"):
        find(role, "group", "exclude")
    changes = {role: found for role, found in names.items() if found != getattr(settings, role)}
    return type(settings).make(**(settings.model_dump() | changes)) if changes else settings


def split_names(given: str) -> list[str]:
    """The names in a list such as "a, b"; of one without a name, itself."""
    return [part.strip() for part in given.split(",") if part.strip()] or [given]


def _columns_of(given: str, known: Sequence[str], others: Collection[Any], none: str) -> list[str]:
    if given in known:
        return [given]
    parts = split_names(given)
    if len(parts) > 1:
        return [name for part in parts for name in _columns_of(part, known, others, none)]
    (one,) = parts
    if one in known or not re.search("[*?]", one):
        return [one]
    pattern = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in one), re.DOTALL)
    found = [name for name in known if pattern.fullmatch(name)]
    if not found:
        listing = ", ".join(map(cut, known[:12])) + (", ..." if len(known) > 12 else "")
        raise DataError(f"{none} that fits {one!r}. Its columns are: {listing}.")
    return [name for name in found if name not in others]
