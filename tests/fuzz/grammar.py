"""What inputs are made of: cells, tables, settings and JSON trees with the oddities of real files, and damage to bytes.

Everything takes the random numbers from the `random.Random` it is given, so that a seed is an input.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "3.5",
    "-0.25",
    "1e3",
    ".5",
    "5.",
    "+5",
    "-0",
    "007",
    "1e308",
    "1.7976931348623157e308",
    "1e-320",
    "1e400",
    "-1e400",
    "inf",
    "-inf",
    "+Infinity",
    "nan",
    "NaN",
    "-nan",
    "1,5",
    "1.5,2",
    "1,234",
    "12,345,678",
    "1.234",
    "1.234,5",
    "1'234",
    "12kg",
    "5%",
    "$3",
    "€9,99",
    "0x10",
    "1_000",
    "1e5",
    "1E+05",
    "1e",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "340282366920938463463374607431768211456",
    "16777217",
    "٣",
    "−3",
    "½",
    "3.4028235e38",
    "-3.5e38",
    "1e39",
    "1/2",
    "١٢٫٥",
    "1 234",
    "12 kg",
    "5 %",
    " 7",
    "7 ",
    "\xa01",
    "1\u202f234",
]
MISSING = [
    "",
    " ",
    "NA",
    "na",
    "N/A",
    "n/a",
    "null",
    "None",
    "NaN",
    "-",
    "--",
    "?",
    "#N/A",
    "-999",
    "unknown",
    "nil",
    ".",
]
TIMES = [
    "2026-11-23",
    "01/02/2026",
    "31/12/2026",
    "12/31/2026",
    "2026-02-30",
    "24:00",
    "10:15",
    "10:15:00.5",
    "1.2.2026",
    "20261123",
    "2026-11-23T14:05:00+02:00",
    "2026-11-23T14:05:00Z",
    "9999-12-31",
    "0001-01-01",
    "0000-00-00",
    "23.11.2026",
    "2026/11/23",
    "99/99/99",
    "1970-01-01T00:00:00.123456789",
    "-4713-01-01",
    "300000-01-01",
    "2026-W48",
    "23-Nov-2026",
    "2026-11",
    "12:61:00",
    "2026-11-23 14:05:00",
    "01/02/2026 10:00",
    "23 November 2026",
    "2026-11-23 14:05:00.5+0130",
    "31.12.26 23:59",
]
TEXTS = [
    "a", "b", "up", "down", "yes", "no", "true", "false", "True", "FALSE", "ä", "Größe", '"', 'a"b', '""', "a,b", "a;b", "a\tb", "a|b",
    "x\ny", "x\r\ny", "\r", "'", "\\", "😀", "👩‍👩‍👧", "\x00", "\x0b", "\x1c", "\u2028", "\u2029", "\x85", "\ufeff", "*", "^x$", "^.*$", "train", "valid",
    "test", "the cat sat", "don't", "=1+1", "\u202e", "e\u0301", "O B-x I-x", "[1,2]", '{"a":1}', "#", "//", "٣",
]  # fmt: skip
NAMES = [
    "x",
    "y",
    "t",
    "device",
    "label",
    "colour",
    "split",
    "value",
    "text",
    "words",
    "*",
    "^x$",
    "^.*$",
    "row",
    "index",
    "a,b",
    "1",
    "2026",
    "p_up",
    "prediction",
    "ä",
    "X",
    "None",
    "null",
    "",
    " ",
    " x",
    "x ",
    "a b",
    '"q"',
    "\n",
    "Unnamed: 0",
    "line",
    "error",
    "x" * 300,
    "\\",
    "'",
    "x*",
    "?",
]
EXTREMES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400, 1.5, 1e308, -1e308, 1e-320, float("inf"), float("-inf"),
    float("nan"), "", " ", "x", "1", "nan", "\x00", "\ud800", "ä" * 9, "x" * 5000, [], {}, [[]], [None], {"": None}, [1, "a", None], {"x": 1},
]  # fmt: skip


def number(rng: Random) -> str:
    """A plain number, as most cells of a table hold one."""
    return (
        rng.choice(["{:d}", "{:.2f}", "{:.3g}"]).format(rng.randrange(-50, 50))
        if rng.random() < 0.9
        else rng.choice(NUMBERS)
    )


def odd(rng: Random) -> str:
    """A cell that nobody expects in its column."""
    return rng.choice(rng.choice([NUMBERS, MISSING, TIMES, TEXTS]))


def column(rng: Random, rows: int) -> list[str]:
    """The cells of a column of some kind, as text."""
    kind = rng.randrange(12)
    if kind == 0:
        form = rng.choice(
            ["{:04d}-{:02d}-{:02d}", "{2:02d}/{1:02d}/{0:04d}", "{2}.{1}.{0}", "{:04d}-{:02d}-{:02d} 10:00:00"]
        )
        return [form.format(2026 - k % 3, k % 12 + 1, k % 28 + 1) for k in range(rows)]
    if kind == 1:
        few = [rng.choice(TEXTS) for _ in range(rng.randint(1, 3))]
        return [rng.choice(few) for _ in range(rows)]
    if kind == 2:
        return [rng.choice(["up", "down"]) for _ in range(rows)]
    if kind == 3:
        return [str(k) for k in range(rows)]
    if kind == 4:
        size = rng.randint(1, 5)
        return [f"d{k // size}" for k in range(rows)]
    if kind == 5:
        return [
            " ".join(rng.choice(["the", "cat", "sat", "don't", "!"]) for _ in range(rng.randint(0, 4)))
            for _ in range(rows)
        ]
    if kind == 6:
        form = rng.choice(["{:,}", "{:,.2f}", "{} kg", "{}%", "$ {:,}", "{:.1f}€"])
        return [form.format(rng.randrange(10_000)) for _ in range(rows)]
    if kind == 7:
        return [rng.choice(["0", "1"]) for _ in range(rows)]
    if kind == 8:
        return [odd(rng) for _ in range(rows)]
    if kind == 9:
        return [rng.choice(["train", "valid", "test", "Train "]) for _ in range(rows)]
    if kind == 10:
        return [f"{rng.randrange(100)},{rng.randrange(100)}" for _ in range(rows)]
    return [number(rng) for _ in range(rows)]


def names(rng: Random, count: int) -> list[str]:
    return rng.sample(NAMES[:9], count) if rng.random() < 0.6 else [rng.choice(NAMES) for _ in range(count)]


def usual(rng: Random, rows: int) -> dict[str, list[str]]:
    """Columns that make a sound table: sequences, an order, a number, a category and a target."""
    size = rng.randint(1, 6)
    return {
        "device": [f"d{k // size}" for k in range(rows)],
        "t": [str(k) for k in range(rows)],
        "x": [number(rng) for _ in range(rows)],
        "colour": [rng.choice(["red", "green", "blue"]) for _ in range(rows)],
        "label": [rng.choice(["up", "down"]) for _ in range(rows)],
    }


def table(rng: Random) -> dict[str, list[str]]:
    """Columns of text by name: mostly what a table holds, with some cells that it shouldn't."""
    rows = rng.choice([0, 1, 2, 3, 5, 8, 12, 20, 20, 30])
    if rng.random() < 0.5:
        columns = usual(rng, rows)
        if rng.random() < 0.5:
            columns[rng.choice([*columns, *names(rng, 1)])] = column(rng, rows)
    else:
        columns = {name: column(rng, rows) for name in names(rng, rng.randint(1, 6))}
    if rows and rng.random() < 0.4:
        for _ in range(rng.randint(1, 3)):
            rng.choice(list(columns.values()))[rng.randrange(rows)] = odd(rng)
    return columns


def csv_text(rng: Random, columns: dict[str, list[str]]) -> str:
    """A table as some program might write it: separators, quotes, line ends, blank lines, a short row."""
    separator = rng.choice([",", ",", ",", ";", "\t", "|", ":", " "])
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator="\n")
    header = list(columns)
    if rng.random() < 0.03:
        header.append(rng.choice(header))
    writer.writerow(header)
    writer.writerows(zip(*columns.values(), strict=True))
    lines = out.getvalue().split("\n")
    if rng.random() < 0.15:
        at = rng.randrange(len(lines))
        lines[at] = rng.choice([
            "", " ", lines[at] + separator, separator + lines[at], lines[at][: len(lines[at]) // 2], lines[at] + '"', '"' + lines[at],
            lines[at].replace(separator, "", 1), lines[at].replace(separator, separator + " "), lines[0], lines[at] * 2, "#" + lines[at],
        ])  # fmt: skip
    if rng.random() < 0.05:
        lines = [line.replace(separator, separator + " ") for line in lines]
    return rng.choice(["\n"] * 20 + ["\r\n"] * 8 + ["\r", "\n\n"]).join(lines)


def encoded(rng: Random, text: str) -> bytes:
    codec = rng.choice(["utf-8"] * 60 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32"])
    return text.encode(codec, errors="replace")


def damaged(rng: Random, data: bytes) -> bytes:
    """The bytes with one to four places flipped, cut, repeated, moved or overwritten."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not out:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(20)))
        at = rng.randrange(len(out))
        end = min(len(out), at + rng.choice([1, 2, 4, 8, 30]))
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:end]
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[at:end] * rng.choice([1, 2, 50])
        elif kind == 4:
            out[at:at] = bytes([rng.randrange(256)])
        elif kind == 5:
            out[at] = rng.choice(b'\x00\xff\x7f\x80\n\r",;\t{}[]\\-+.eE0123456789 ')
        elif kind == 6:
            out[at : at + 4] = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1]).to_bytes(4, "little")
        elif kind == 7:
            out[at : at + 8] = rng.choice([0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**40]).to_bytes(8, "little")
        else:
            other = rng.randrange(len(out))
            out[at:end] = out[other : other + end - at]
    return bytes(out)


def mutated(rng: Random, tree: Any, times: int = 1) -> Any:
    """A copy of a JSON tree in which something was dropped, retyped, renamed, repeated, moved or made extreme."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        places = list(_places(tree))
        if not places:
            return copy.deepcopy(rng.choice(EXTREMES))
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind in (1, 2):
            holder[key] = copy.deepcopy(rng.choice(EXTREMES))  # (what comes next may change what is in it)
        elif kind == 3:
            other, its = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[its]))
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice([*NAMES, key + "x", key.upper()])] = (
                copy.deepcopy(holder[key]) if rng.random() < 0.5 else holder.pop(key)
            )
        elif kind == 4:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 5:
            value = holder[key]
            holder[key] = (
                -value if isinstance(value, int | float) else value[::-1] if isinstance(value, str | list) else [value]
            )
        elif kind == 6:
            holder[key] = rng.choice([[holder[key]], {"x": holder[key]}, str(holder[key])])
        else:
            value: Any = holder[key]
            for _ in range(rng.choice([3, 50, 200]) if rng.random() < 0.05 else 2):
                value = [value]
            holder[key] = value
    return tree


def _places(tree: Any) -> Any:
    stack = [tree]
    while stack:
        node = stack.pop()
        keys: Sequence[Any] = (
            list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        )
        for key in keys:
            yield node, key
            stack.append(node[key])


def json_text(rng: Random, tree: Any) -> str:
    """A tree as JSON, now and then with a key twice, deep brackets, or what only Python takes for JSON."""
    try:
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    except RecursionError:
        text = "[" * 3000 + "]" * 3000
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]
    if rng.random() < 0.02:
        text = "[" * 100_000 + text
    if rng.random() < 0.02:
        text = text.replace("1", "1" * 5000, 1)
    return text


def as_bytes(text: str) -> bytes:
    """UTF-8, with half a character as three bytes that are none."""
    return text.encode("utf-8", errors="surrogatepass")
