"""YAML and JSON that anybody may have written: read, and compared with the types that they should have."""

from __future__ import annotations

import functools
import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

MOST_VALUES = 100_000
"""In a YAML document. A few lines of aliases to aliases can stand for more values than any memory holds."""


LARGEST = 1 << 128
"""Of whole numbers: no column of a table has larger ones, and a float can't be as large as JSON's."""


class Damaged(ValueError):
    """What is wrong with a document, without its name. line: from 1, where it is known."""

    def __init__(self, why: str, line: int | None = None):
        super().__init__(why)
        self.line = line


def from_yaml(raw: bytes) -> Any:
    """What a YAML file in UTF-8 says; never code. Raises Damaged."""
    import yaml  # late: help texts need none

    try:
        value = yaml.safe_load(raw.decode("utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise Damaged(why, None if mark is None else mark.line + 1) from None
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # PyYAML's, for 2026-13-45, !!bool x and !!int ''
        raise Damaged(f"a value can't be read: {cut(str(error))}") from None
    _check_size(value)
    return value


def from_json(text: str | bytes) -> Any:
    """What JSON says. Raises Damaged."""
    try:
        return json.loads(text)
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Damaged(f"{error.msg}, column {error.colno}", error.lineno) from None
    except UnicodeDecodeError as error:
        raise Damaged(f"it is not UTF-8: {error.reason} at byte {error.start:,}") from None
    except ValueError:  # Python's limit
        raise Damaged("a whole number of thousands of digits") from None


def check(kind: Any, values: Any, name: str = "") -> None:
    """Raise Damaged unless the values of a JSON tree have the types of a dataclass or another annotated type. name: theirs."""
    from pydantic import ValidationError

    for value in _walk(values):
        if type(value) is int and abs(value) >= LARGEST:
            raise Damaged(f"the number {cut(f'{value:#x}')}")
    try:
        _adapter(kind).validate_json(json.dumps(values), strict=True)
    except (TypeError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise Damaged(cut(str(error))) from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, [name] * bool(name) + list(first["loc"])))
        raise Damaged(f"{cut(place)}: {cut(first['msg'])}") from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _check_size(tree: Any) -> None:
    """Raises Damaged where a walk over the whole tree would not end, or not soon."""
    for count, _ in enumerate(_walk(tree)):
        if count > MOST_VALUES:
            raise Damaged(f"its aliases (such as *a) stand for more than {MOST_VALUES:,} values")


def _walk(tree: Any) -> Iterator[Any]:
    stack = [tree]
    while stack:
        value = stack.pop()
        yield value
        if isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, list | tuple | set):
            stack += value


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxset = 3, 12, 12, 12, 12
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 200, 200, 60
LONGEST = 300


def shown(value: Any) -> str:
    """A value for a message: as repr has it, cut where it is long, large or deep.

    >>> shown([1, "a"]), len(shown("x" * 1000))
    ("[1, 'a']", 200)
    """
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def cut(text: str) -> str:
    """A text for a message, its first line, cut where it is long."""
    first = text.strip().split("\n")[0]
    return first if len(first) <= LONGEST else first[: LONGEST - 3] + "..."
