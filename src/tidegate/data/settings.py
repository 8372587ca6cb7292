"""How a table is to be read as sequences: the same words in Python, on the command line and in YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tidegate.documents import shown
from tidegate.errors import SettingsError, nearest


def _names(value: Any) -> Any:
    """One column name stands for a list of one."""
    return (value,) if isinstance(value, str) else value


VALID_SHARE = 0.15  # of the training rows, where a split names none to validate on


def _split(value: Any) -> Any:
    """'0.8,0.1,0.1' and [0.8, 0.1, 0.1] are fractions; any other text is a column's name. Of two fractions the first trains and
    the second tests; rows to validate on are taken from the first."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    try:
        shares = tuple(float(p) for p in parts)
    except (TypeError, ValueError):
        return value
    if len(shares) == 2 and 0 < shares[0] < 1 and abs(sum(shares) - 1) < 1e-6:
        valid = shares[0] * VALID_SHARE
        return shares[0] - valid, valid, shares[1]
    if len(shares) != 3:
        raise ValueError(
            "expected three fractions that sum to 1 (train, valid, test), such as 0.7,0.15,0.15, two (train, test), or a column"
        )
    return shares


def _spellings(value: Any) -> Any:
    """'n/a,-' and ['n/a', '-'] are two spellings; a number is the spelling that it has."""
    values = [value] if isinstance(value, str | int | float) else value
    if not isinstance(values, list | tuple):
        return values
    if not all(isinstance(one, str | int | float) for one in values):
        return values
    try:
        return tuple(part.strip() for one in values for part in str(one).split(",") if part.strip())
    except ValueError:  # a whole number of thousands of digits
        return values


def _separator(value: Any) -> Any:
    """A separator by its name, or as it is written."""
    names = {",": "comma", ".": "dot", " ": "blank", "'": "apostrophe"}
    return names.get(value, value) if isinstance(value, str) else value


def _fold(value: Any) -> Any:
    """'2/5' is the second of five folds; '0/5': all of them train."""
    if value is None:
        return None
    number, slash, count = str(value).replace(" ", "").partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(count) >= 2 and int(number) <= int(count)):
        raise ValueError("expected which of how many folds, such as 2/5")
    return f"{int(number)}/{int(count)}"


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
TABLE, MODEL, TRAINING = "The table", "The model", "Training"
SPLIT, FILE = "Split, windows and season", "How the file is read"


def setting(default: Any, panel: str, description: str, *, metavar: str = "", option: str = "", **limits: Any) -> Any:
    """A field with its help text, the heading under which `--help` shows it, and what it calls a value. option: a shorter name on
    the command line.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"panel": panel, "metavar": metavar, "option": option},
        **limits,
    )


class Settings(BaseModel):
    """A frozen set of settings whose errors are sentences. `Settings.make(...)` raises SettingsError."""

    # Built when the first settings are made: the help shows fields and makes none.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def make(cls, **values: Any):
        """Build the settings from keyword arguments; an unknown name or an impossible value is a SettingsError."""
        for name in values:
            if name not in cls.model_fields:
                raise SettingsError(f"There is no setting {shown(name)}.{nearest(name, cls.model_fields)}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise SettingsError(str(first["msg"]).removeprefix("Value error, ")) from None
            name = str(first["loc"][0])
            raise SettingsError(f"{name}={shown(values.get(name))}: {_sentence(first)}") from None


def _sentence(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return f"expected one of {context['expected']}."
    if kind == "tuple_type":
        return "expected a column's name or a list of them."
    if kind in {"greater_than_equal", "less_than_equal", "greater_than", "less_than"}:
        word = {"ge": "at least", "le": "at most", "gt": "more than", "lt": "less than"}
        limit, bound = next(iter(context.items()))
        return f"expected {word[limit]} {bound:g}."
    return str(error["msg"]).removeprefix("Value error, ").rstrip(".") + "."


class DataSettings(Settings):
    """Which columns are what, and how rows become sequences (design, section 5)."""

    target: Names = setting(
        (),
        TABLE,
        "Column(s) to predict. One text, whole-number or yes/no column: classes. Float columns: numbers. Several 0/1 columns: several labels at once.",
    )
    group: Names = setting(
        (),
        TABLE,
        "Column(s) that name the sequence a row belongs to. None: the whole table is one sequence, or with list columns each row is one.",
    )
    time: str | None = setting(None, TABLE, "Column that orders the rows of a sequence. None: the order of the file.")
    per: Literal["step", "sequence"] = setting(
        "step", TABLE, "Predict a value for each row (step) or one for each group (sequence)."
    )
    horizon: int = setting(0, TABLE, "0: predict the target of the same row. K > 0: the target's next K values.", ge=0)
    across_gaps: bool = setting(
        False,
        TABLE,
        "With a horizon: rows on both sides of a gap in time count as neighbours. Without it, no target lies across a gap.",
    )
    features: Names | None = setting(
        None,
        TABLE,
        "Columns to read, as a list (a,b) or by a pattern ('x*'). None: all but group, time, split, those of exclude and, at horizon 0, target.",
    )
    exclude: Names = setting((), TABLE, "Columns to leave out, as a list (a,b) or by a pattern ('tmp_*').")
    categories: Names = setting(
        (), TABLE, "Columns of whole numbers that are codes, not amounts (text columns are categories anyway)."
    )
    text: Names = setting((), TABLE, "Columns whose cells hold a whole sentence: cut into words, one word a step.")
    word_features: Literal["auto", "none"] = setting(
        "auto",
        TABLE,
        "What is read of a word beside the word itself (columns of --text, lists of text). auto: its shape (capitals, digits) and its suffix of three characters, where a new text will have words that training never saw. none: nothing.",
    )
    task: Literal["auto", "class", "labels", "number"] = setting(
        "auto",
        TABLE,
        "What the target is: one class, several 0/1 labels, or number(s). auto: by its type; whole numbers several steps ahead are numbers.",
    )
    split: Annotated[str | tuple[float, float, float], BeforeValidator(_split)] = setting(
        (0.7, 0.15, 0.15),
        SPLIT,
        "A column that says train, valid or test for each row, or three fractions such as 0.7,0.15,0.15. Two, 0.8,0.2, are train and test, and 15% of the first validate.",
    )
    split_by: Literal["auto", "group", "time", "date"] = setting(
        "auto",
        SPLIT,
        "How fractions are taken. group: whole groups, drawn at random; time: each sequence is cut, and its first rows train; date: one date for all sequences, before which rows train. auto: time below five groups, else group; with per=sequence always group.",
    )
    split_seed: int | None = setting(
        None,
        SPLIT,
        "Seed of a split that is drawn at random. None: the seed of the run. Set it to give runs with different seeds the same rows.",
        ge=0,
        lt=2**31,
    )
    fold: Annotated[str | None, BeforeValidator(_fold)] = setting(
        None,
        SPLIT,
        "Train a single run of a cross-validation: with 2/5 the second of five folds validates and the others train; with 0/5 all train. --folds 5 trains all five.",
        metavar="K/N",
    )
    window: int | None = setting(
        None,
        SPLIT,
        "Number of steps into which long sequences are cut for training. None: 128 where a sequence has over 256 rows. Evaluation always runs whole sequences.",
        ge=1,
    )
    season: int | None = setting(
        None,
        SPLIT,
        "Rows in a season (24 for hourly data with a daily rhythm): adds the last-season baseline to a forecast.",
        ge=1,
    )
    non_finite: Literal["error", "missing"] = setting(
        "error",
        FILE,
        "What to do with NaN and infinity: stop with an error, or take them as missing. (NaN as text in a CSV file is missing anyway.)",
    )
    missing: Annotated[tuple[str, ...], BeforeValidator(_spellings)] = setting(
        (),
        FILE,
        "More spellings of a missing value, in every column: 'unknown,-999'. In columns of numbers the usual ones (NA, n/a, NaN, null, None, -) need not be named.",
        metavar="TEXT,...",
    )
    encoding: str = setting("utf-8", FILE, "Encoding of a text file (utf-8, latin-1, cp1252, ...).")
    header: bool = setting(
        True,
        FILE,
        "The first line of a CSV file holds the names of the columns. --no-header: it is a row, and the columns are called column_1, column_2, ...",
    )
    row_names: bool = setting(
        False, FILE, "The first field of each CSV row is an unnamed row number, as R writes it: leave it out."
    )
    decimal_comma: bool = setting(
        False, FILE, "Numbers of a CSV file are written with a comma, 1,5 (its separator is then a semicolon or tab)."
    )
    thousands: Annotated[
        Literal["auto", "none", "comma", "dot", "blank", "apostrophe"], BeforeValidator(_separator)
    ] = setting(
        "auto",
        FILE,
        "Separator of thousands in numbers written as text: comma (1,234), dot (1.234), blank (1 234), apostrophe (1'234) or none. auto: found from the whole column; an error where two readings are possible.",
        metavar="[auto|comma|dot|...]",
    )

    date_order: Literal["auto", "dmy", "mdy"] = setting(
        "auto",
        FILE,
        "How times such as 01/02/2026 are read: dmy has the day first, mdy the month. auto: found from the whole column; an error where both are possible.",
    )

    @model_validator(mode="after")
    def _agree(self):
        for role in ("target", "group", "features", "exclude", "categories", "text"):
            names = getattr(self, role) or ()
            if again := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{role} names the column {again[0]!r} twice.")
        if self.time in self.group:
            raise ValueError(
                f"group and time both name the column {self.time!r}. A group's rows share its value, their times differ."
            )
        shares = (1.0, 0.0, 0.0) if isinstance(self.split, str) else self.split
        if any(f < 0 for f in shares) or abs(sum(shares) - 1) > 1e-6 or shares[0] <= 0:
            raise ValueError(f"split={shares}: three fractions that sum to 1 are expected, the first above 0.")
        if self.split_by == "date" and self.time is None:
            raise ValueError("split_by='date' needs the column of the times. Name it with time (--time).")
        if self.decimal_comma and self.thousands == "comma":
            raise ValueError("decimal_comma=True and thousands='comma' contradict each other. Leave one of them out.")
        if self.per == "sequence" and self.horizon:
            raise ValueError(
                "per='sequence' predicts one value a group and horizon the next values of each row: use one of them."
            )
        return self

    @property
    def reading(self) -> dict[str, Any]:
        """What `read_table` is to know of a file."""
        return {
            "encoding": self.encoding,
            "header": self.header,
            "row_names": self.row_names,
            "decimal_comma": self.decimal_comma,
            "missing": self.missing,
            "dots": self.thousands == "dot",
        }
