"""Numbers, texts and arrays as C spells them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

LONGEST_LITERAL = 4095  # bytes of a string literal that every C99 compiler must take
WIDTH = 116  # of a line of numbers


def number(value: float, digits: int = 17) -> str:
    """A double's literal that reads back as the same number; with 9 digits and an f, a float's."""
    text = f"{value:.{digits}g}"
    return text if "." in text or "e" in text else text + ".0"


def real(value: float) -> str:
    return number(value, 9) + "f"


def text(value: str) -> str:
    """A string literal in plain ASCII: no quote, trigraph or line end of it is C's, and no source encoding changes it.

    >>> print(text('say "ü?"'))
    "say \\"\\303\\274\\?\\""
    """
    out = []
    for byte in value.encode():
        character = chr(byte)
        if character in '"\\?':
            out.append("\\" + character)
        else:
            out.append(character if 32 <= byte < 127 else f"\\{byte:03o}")  # three digits: none that follows joins them
    return '"' + "".join(out) + '"'


def comment(value: str, most: int = 60) -> str:
    """For between /* and */: nothing that ends it, begins another one, turns the line around or splices it."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in value[:most])
    shown = shown.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
    return shown + (" ..." if len(value) > most else "")


def braced(values: Iterable[str]) -> str:
    return "{" + ", ".join(values) + "}"


def listed(values: Sequence[str], labels: Sequence[str] = ()) -> str:
    """Between braces, each on a line of its own, with a comment behind it where labels are given."""
    said = [f" /* {comment(label)} */" for label in labels] or [""] * len(values)
    return "{\n" + "".join(f"    {v},{c}\n" for v, c in zip(values, said, strict=True)) + "}"


def lines_of(values: Sequence[str]) -> str:
    each = max(1, WIDTH // (2 + max(map(len, values))))
    return "".join(f"    {', '.join(values[k : k + each])},\n" for k in range(0, len(values), each))


def constant_array(kind: str, name: str, rows: np.ndarray, labels: Sequence[str] = ()) -> str:
    """A constant array, flat, a row of `rows` beginning on a new line, with a comment before it where labels are given."""
    spell = str if rows.dtype == np.int8 else real
    blocks = []
    for k, row in enumerate(np.atleast_2d(rows)):
        label = f"    /* {comment(labels[k])} */\n" if labels else ""
        blocks.append(label + lines_of([spell(v) for v in row.tolist()]))
    size = " * ".join(map(str, rows.shape))
    return f"static const {kind} {name}[{size}] = {{\n{''.join(blocks)}}};\n"


def text_constants(name: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Definitions that must come first, and an expression for each text: a literal, or the array that a long one needs."""
    before, expressions = [], []
    for k, value in enumerate(texts):
        data = value.encode()
        if len(data) <= LONGEST_LITERAL:
            expressions.append(text(value))
        else:
            characters = [f"'\\{byte:03o}'" for byte in [*data, 0]]
            before.append(f"static const char {name}_{k}[{len(characters)}] = {{\n{lines_of(characters)}}};\n")
            expressions.append(f"{name}_{k}")
    return "".join(before), expressions
