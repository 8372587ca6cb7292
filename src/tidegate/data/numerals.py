"""Numbers as people write them in text: 1,234.50 and 1.234,5, 1 234, 1'234, $5, (5), 12.5 %, 3 kg.

How a column writes its numbers is found once, over the whole column, and kept with the run: a later table and a stream are
read in the same way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import polars as pl

# Text that means "missing" in a column whose other cells are numbers.
SPELLINGS = frozenset(
    ["NA", "N/A", "n/a", "na", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "-nan", "null", "NULL", "Null", "nil", "None", "none",
     "NONE", "-", "--", "–", "—", "?", ".", "#VALUE!", "#DIV/0!"]
)  # fmt: skip
# A number as every program reads it.
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_BLANK = "[ \u00a0\u2009\u202f]"  # also those that don't break a line, as French and Swiss tables have them
_THOUSANDS = {",": ",", ".": r"\.", " ": _BLANK, "'": "['’]"}
NAMES = {"comma": ",", "dot": ".", "blank": " ", "apostrophe": "'"}  # of the setting `thousands`
_CURRENCY = r"(?:US|A|C|HK|NZ|R|S)?\$|\p{Sc}|USD|EUR|GBP|JPY|CNY|CHF|SEK|NOK|DKK|AUD|CAD|BRL|INR|Rs\.?|kr\.?|Fr\.?"
_SIGN = r"[+\-−]?"
# Anything that may be a number: before it a currency sign, behind it a sign or a unit.
_LOOSE = (
    rf"^\(?{_SIGN}\s*(?P<before>{_CURRENCY})?\s*{_SIGN}"
    r"(?P<body>[0-9](?:[0-9.,'’ \x{a0}\x{2009}\x{202f}]*[0-9])?[.,]?|[.,][0-9]+)(?:[eE][+\-]?[0-9]+)?"
    r"(?P<gap>\s*)(?P<after>[%‰°µ\p{Sc}\p{L}][^\s)]{0,11}(?: [\p{L}/²³]{1,8})?)?\s*\)?$"
)
_UNITS = 4
_FEW = 20  # with so few different values, "2D" and "3D" are names, not numbers with a unit
MOSTLY = 0.9  # a column of which so much is numbers is one of numbers, and the rest are slips


@dataclass(frozen=True)
class NumberFormat:
    """How the cells of a column write a number.

    decimal: "." or ",". thousands: what stands between groups of three digits, if anything: "," "." "'" or " ", which is any
    blank. before, after: a currency sign, per cent or a unit, which is left out: "12.5 %" is 12.5. A minus may stand before or
    behind a currency sign, and (5) is -5.

    >>> NumberFormat(thousands=",", before="$").number("-$1,234.50")
    -1234.5
    """

    decimal: str = "."
    thousands: str = ""
    before: str = ""
    after: str = ""

    @property
    def pattern(self) -> str:
        """What a cell looks like, without the blanks around it; the same for Python's re and for polars."""
        mark = re.escape(self.decimal)
        whole = "[0-9]+"
        if self.thousands:
            groups = rf"[1-9][0-9]{{0,2}}(?:{_THOUSANDS[self.thousands]}[0-9]{{3}})+"
            if self.thousands == ",":
                groups += "|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"  # 12,34,567: lakhs
            whole = rf"(?:{groups}|[0-9]+)"
        body = rf"(?:{whole}(?:{mark}[0-9]*)?|{mark}[0-9]+)(?:[eE][+\-]?[0-9]+)?"
        return (
            rf"^(?P<open>\(?)(?P<sign>{_SIGN})\s*{re.escape(self.before)}\s*(?P<inner>{_SIGN})(?P<body>{body})"
            rf"\s*{re.escape(self.after)}\s*(?P<close>\)?)$"
        )

    @property
    def sound(self) -> bool:
        """Whether a file of ours can hold it."""
        return self.decimal in (".", ",") and (self.thousands == "" or self.thousands in _THOUSANDS)

    @property
    def sample(self) -> str:
        """How it writes 1234.5.

        >>> NumberFormat(decimal=",", thousands=".", after="kW").sample
        '1.234,5 kW'
        """
        return f"{self.before}1{self.thousands}234{self.decimal}5 {self.after}".strip()

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def number(self, cell: str) -> float | None:
        """The number in a cell; None where it holds none of this format."""
        match = self._compiled.match(cell.strip())
        if match is None or bool(match["open"]) != bool(match["close"]) or (match["sign"] and match["inner"]):
            return None
        body = match["body"]
        if self.thousands:
            body = re.sub(_THOUSANDS[self.thousands], "", body)
        minus = bool(match["open"]) != ((match["sign"] or match["inner"]) in ("-", "−"))
        return float(("-" if minus else "") + body.replace(self.decimal, "."))

    def read(self, cells: pl.Series) -> pl.Series:
        """The numbers of text cells as float64; null where `number` says None."""
        parts = pl.DataFrame({"cell": cells}).select(pl.col("cell").str.strip_chars().str.extract_groups(self.pattern))
        parts = parts.unnest("cell")
        body = pl.col("body")
        if self.thousands:
            body = body.str.replace_all(_THOUSANDS[self.thousands], "")
        signs = pl.col("sign") + pl.col("inner")
        minus = (pl.col("open") != "") != signs.is_in(["-", "−"])
        right = ((pl.col("open") != "") == (pl.col("close") != "")) & (signs.str.len_chars() < 2)
        text = pl.when(minus).then(pl.lit("-")).otherwise(pl.lit("")) + body.str.replace(
            self.decimal, ".", literal=True
        )
        return parts.select(pl.when(right).then(text).cast(pl.Float64, strict=False)).to_series().alias("")


PLAIN = NumberFormat()


@dataclass(frozen=True)
class Finding:
    """What the cells of a text column are, most of which are numbers.

    format: theirs. numbers, others: how many cells are and aren't, the missing ones not counted. other: the first row that
    isn't. distinct: how many different numbers. decimals: whether some have a decimal mark. example: a row that shows the format.
    odd: whether it isn't what every program takes for a number. missing: how often each spelling of a missing value occurs.
    mixed: whether the first row that isn't one has another sign or unit. doubt: "comma" or "dot" where that mark may as well be
    a decimal one. sure: whether more than the kind of the file speaks for the format.
    """

    format: NumberFormat
    numbers: int
    others: int
    other: int | None
    distinct: int
    decimals: bool
    example: int
    odd: bool
    missing: dict[str, int]
    mixed: bool = False
    doubt: str = ""
    sure: bool = True

    @property
    def amounts(self) -> bool:
        """Whether they are hardly the names of a few classes."""
        return self.decimals or self.distinct > _FEW or bool(self.format.thousands or self.format.before)


def look(column: pl.Series, *, decimal_comma: bool, thousands: str, separator: str | None) -> Finding | None:
    """What a text column writes where at least half of its cells are numbers; else None.

    decimal_comma, thousands: the settings. separator: of the CSV file, None for another table.
    """
    rows = pl.DataFrame({"cell": column.str.strip_chars()}).with_row_index("row")
    rows = rows.filter(pl.col("cell").is_not_null() & (pl.col("cell") != ""))
    spelled = pl.col("cell").is_in(list(SPELLINGS))
    missing = dict(rows.filter(spelled).group_by("cell", maintain_order=True).len().iter_rows())
    cells = (
        rows.filter(~spelled)
        .group_by("cell", maintain_order=True)
        .agg(pl.len().alias("count"), pl.col("row").first())
        .with_columns(pl.col("cell").str.extract_groups(_LOOSE).alias("parts"))
        .unnest("parts")
        .with_columns(pl.col("before", "after", "gap").fill_null(""))
    )
    present = int(cells["count"].sum())
    alike = cells.filter(pl.col("body").is_not_null())
    if not alike.height or 2 * int(alike["count"].sum()) < present:
        return None
    signs = alike.group_by("before", "after", maintain_order=True).agg(pl.col("count").sum())
    before, after, _ = signs.sort("count", descending=True, maintain_order=True).row(0)
    alike = alike.filter((pl.col("before") == before) & (pl.col("after") == after))
    # Some amounts in one unit and some in another: no numbers that can be compared, and no category.
    units = signs.filter(pl.col("count") >= 0.05 * present)
    mixed = 1 < units.height <= _UNITS and int(units["count"].sum()) >= MOSTLY * present
    share = int(alike["count"].sum()) / present
    marks = bool(alike["body"].str.contains("[.,]").any())
    if after and after[0].isalpha():
        glued = bool((alike["gap"] == "").all())
        few = alike.height <= _FEW and not marks
        if (share < MOSTLY and (not mixed or few)) or (glued and few):
            return None
    found = _reading(alike, before, after, decimal_comma=decimal_comma, thousands=thousands, separator=separator)
    if found is None:
        return None
    format_, doubt, sure = found
    cells = cells.with_columns(format_.read(cells["cell"]).alias("number"))
    right = cells.filter(pl.col("number").is_not_null())
    wrong = cells.filter(pl.col("number").is_null())
    numbers, others = int(right["count"].sum()), int(wrong["count"].sum())
    if numbers < present / 2 and not mixed:
        return None
    first = wrong.sort("row").head(1)
    mark = format_.decimal
    odd = right.filter(pl.col("cell").str.contains(r"[^0-9.+\-eE]" if mark == "." else r"[^0-9+\-eE]"))
    shown = odd.filter(pl.col("cell").str.contains(mark, literal=True)) if mark == "," else odd
    shown = next(rows for rows in (shown, odd, right) if rows.height)
    return Finding(
        format=format_,
        numbers=numbers,
        others=others,
        other=int(first["row"][0]) if others else None,
        mixed=bool(first["body"].is_not_null().any()) and (first["before"][0], first["after"][0]) != (before, after),
        distinct=right["number"].n_unique(),
        decimals=bool(right["body"].str.contains(format_.decimal, literal=True).any()),
        example=int(shown["row"].min()),  # type: ignore[arg-type]
        odd=odd.height > 0,
        missing=missing,
        doubt=doubt,
        sure=sure,
    )


def _reading(
    cells: pl.DataFrame, before: str, after: str, *, decimal_comma: bool, thousands: str, separator: str | None
) -> tuple[NumberFormat, str, bool] | None:
    """The format that most cells follow; what it leaves in doubt; and whether it is sure. None: they follow none."""
    asked = NAMES.get(thousands, "")
    decimals = [",", "."] if decimal_comma else [".", ","]
    bodies = cells["body"]
    marks = [""] + [t for t in _THOUSANDS if thousands == "auto" and bodies.str.contains(_THOUSANDS[t]).any()]
    marks += [asked] if asked else []
    readings: list[tuple[int, NumberFormat, pl.Series]] = []
    for decimal in decimals:
        for mark in marks:
            if mark == decimal:
                continue
            numbers = NumberFormat(decimal, mark).read(bodies)
            count = int(cells["count"].filter(numbers.is_not_null()).sum())
            readings.append((count, NumberFormat(decimal, mark, before, after), numbers))
    most = max(count for count, _, _ in readings)
    if decimal_comma:  # as the user says, where nearly all cells can be read so
        commas = [r for r in readings if r[1].decimal == ","]
        best = max(count for count, _, _ in commas)
        if best >= MOSTLY * most and best:
            readings, most = commas, best
    if not most:
        return None
    found: list[tuple[NumberFormat, pl.Series]] = []
    for count, format_, numbers in readings:
        if count == most and not any(numbers.equals(other) for _, other in found):
            found.append((format_, numbers))
    if len(found) == 1:
        return found[0][0], "", True
    by_mark = {(f.decimal, f.thousands): f for f, _ in found}
    if asked and (picked := next((f for f, _ in found if f.thousands == asked), None)):
        return picked, "", True
    for mark, name in ((",", "comma"), (".", "dot")):
        as_decimal, as_thousands = by_mark.get((mark, "")), next((f for f, _ in found if f.thousands == mark), None)
        if as_decimal is None or as_thousands is None:
            continue
        if mark == ("," if decimal_comma else ".") and not (mark == "." and before + after in _SIGNS):
            return as_decimal, "", True
        # 999 beside 8,520: who writes decimals writes 999,000, or now and then 8,5.
        plain = bodies.filter(~bodies.str.contains(mark, literal=True))
        grouped = len(plain) > 0 and not bool(plain.str.contains("[0-9]{4}").any()) and len(bodies) - len(plain) >= 3
        if grouped or (mark == "," and separator == ","):
            return as_thousands, "", grouped
        return as_thousands, name, False
    return found[0][0], "", True


_SIGNS = set("€$£¥")
