"""What a search varies: ranges and lists of values, from text, from YAML, or by default. Knows no Optuna and no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tidegate.data.settings import MODEL, TRAINING
from tidegate.documents import cut, shown
from tidegate.errors import SettingsError, nearest
from tidegate.model.cells import CELLS
from tidegate.trained.settings import RECURRENCE, TrainSettings

DEFAULT = "default"  # among the parameters of a search: those that are searched where none are named
# Of the panels that are searched: what says how a run is judged, watched or computed, and changes no model.
NEVER = {"choose_by", "label_thresholds", "baselines", "log_gates", "seed", "device", "precision", "threads", "checkpoint_every"}  # fmt: skip
DIGITS = 4  # of a number that is drawn: more would be noise on a command line

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included. log: drawn so that each factor is as likely as another. whole: whole numbers alone."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{text_of(self.low)}..{text_of(self.high)}{':log' if self.log else ''}"

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or isinstance(value, int))  # type: ignore[operator]

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    def rounded(self, value: float) -> float:
        """A number that was drawn, as people write it.

        >>> Range(0.001, 0.02, log=True).rounded(0.00312345678)
        0.003123
        """
        return value if self.whole else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join(map(text_of, self.values))

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(own) and value == own for own in self.values)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values


Space = dict[str, Range | Choice]


def text_of(value: Value) -> str:
    """A value as `--search` takes it.

    >>> [text_of(v) for v in (None, True, 64, 0.5, 2.0, "after")]
    ['none', 'yes', '64', '0.5', '2', 'after']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------ by default


@dataclass(frozen=True)
class Facts:
    """What the table makes of the settings that were left open. resolved: their values by name. longest: rows of the longest
    stretch of training rows; sequences: a value a sequence is predicted."""

    resolved: Mapping[str, Any]
    longest: int
    sequences: bool


def default_space(settings: TrainSettings, given: Collection[str], facts: Facts) -> Space:
    """What is searched where nobody says: see docs/tune.md for the reasons. given: the settings that are fixed."""
    cell, batch, window = CELLS[settings.cell], facts.resolved["batch_size"], facts.resolved["window"]
    space: Space = {
        "dropout": Range(0.0, 0.6),
        "lr": Range(0.001, 0.02, log=True),
        "batch_size": Range(max(2, batch // 2), max(4, 2 * batch), log=True, whole=True),
    }
    if settings.cell != "none":
        space |= {"hidden_size": Range(32, 256, log=True, whole=True), "num_layers": Range(1, 3, whole=True)}
        if facts.resolved["bidirectional"]:  # else it would read steps that come later, which nobody asked for
            space["bidirectional"] = Choice((True, False))
    if facts.sequences:
        space["pooling"] = Choice(("max", "mean", "last", "last+max+mean"))
    if window is not None and window > 1:
        space["window"] = Range(max(1, window // 2), min(2 * window, facts.longest), log=True, whole=True)
    space |= {
        name: choice
        for name, choice in (("reset", Choice(("after", "before"))), ("layer_norm", Choice((False, True))))
        if name in cell.options
    }
    return {name: space[name] for name in TrainSettings.model_fields if name in space and name not in given}


def defaults_of(space: Space, settings: TrainSettings, facts: Facts) -> dict[str, Value]:
    """The value that each parameter has where nobody searches."""
    own = {name: getattr(settings, name) for name in space}
    return {name: facts.resolved.get(name) if value is None else value for name, value in own.items()}


# ------------------------------------------------------------------------------------------------ as it is given


def searchable() -> list[str]:
    """The settings that a search may vary."""
    names = []
    for name, about in TrainSettings.model_fields.items():
        extra = about.json_schema_extra
        assert isinstance(extra, dict)
        if name == "window" or (extra["panel"] in (MODEL, RECURRENCE, TRAINING) and name not in NEVER):
            names.append(name)
    return names


def read_search(search: Any) -> tuple[Space, bool]:
    """A space as it is given, and whether the default one is searched beside it.

    search: "NAME=LOW..HIGH[:log]" or "NAME=a,b,c", a list of such, or a mapping of names to "LOW..HIGH" or lists of values.
    "default" among them, or as a name with a true value, keeps the default space. Raises SettingsError.
    """
    entries, default = _entries(search)
    space: Space = {}
    for name, value in entries:
        if name in space:
            raise SettingsError(f"search names {name} twice. Give it one range, or one list of values.")
        space[name] = parse(name, value)
    return space, default


def _entries(search: Any) -> tuple[list[tuple[str, Any]], bool]:
    if search is None:
        return [], False
    if isinstance(search, Mapping):
        named = {str(name): value for name, value in search.items()}
        return [(name, value) for name, value in named.items() if name != DEFAULT], bool(named.get(DEFAULT))
    if not isinstance(search, Sequence):
        raise SettingsError(
            f"search={shown(search)}: expected text such as hidden_size=32..256, a list of such, or a mapping of names to ranges."
        )
    entries, default = [], False
    for text in [search] if isinstance(search, str) else search:
        name, equals, value = str(text).partition("=")
        if not equals and name.strip() == DEFAULT:
            default = True
        elif not equals:
            raise SettingsError(
                f"search={shown(text)}: expected NAME=LOW..HIGH such as hidden_size=32..256, NAME=a,b,c, or the word {DEFAULT}."
            )
        else:
            entries.append((name.strip().replace("-", "_"), value))
    return entries, default


def parse(name: str, value: Any) -> Range | Choice:
    """One parameter of a space.

    >>> parse("lr", "0.001..0.02:log")
    Range(low=0.001, high=0.02, log=True, whole=False)
    >>> parse("layer_norm", "no,yes")
    Choice(values=(False, True))

    Raises SettingsError: no such setting, not one to search, a value of the wrong type, or nothing to choose from.
    """
    _check_name(name)
    kinds = _kinds(TrainSettings.model_fields[name].annotation)
    if isinstance(value, str) and ".." in value:
        return _range(name, value, kinds)
    if not isinstance(value, str | list | tuple):
        raise SettingsError(
            f"search: {name}={shown(value)}: expected a range such as {_example(kinds)}, or a list of values. A single value is no "
            "search: give it as a setting."
        )
    parts = value.split(",") if isinstance(value, str) else value
    values = tuple(_value(name, part, kinds) for part in parts)
    keys = {(type(v), v) for v in values}
    if len(keys) < 2:
        raise SettingsError(
            f"search: {name}={cut(_joined(value))} is a single value. Name several (a,b) or a range, or fix it: --{name.replace('_', '-')} {cut(_joined(value))}."
        )
    if len(keys) < len(values):
        raise SettingsError(f"search: {name}={cut(_joined(value))} names a value twice.")
    return Choice(values)


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value))


def _check_name(name: str) -> None:
    known = searchable()
    if name in known:
        return
    if name in TrainSettings.model_fields:
        raise SettingsError(
            f"search: {name} can't be searched: it says how the table is read or a run is judged, not what the model is. Give it as an "
            f"option. What can be searched: {', '.join(known)}."
        )
    raise SettingsError(f"search: there is no setting {shown(name)}.{nearest(name, known)}")


def _kinds(annotation: Any) -> list[Any]:
    """The types that a setting may have, its words as a tuple."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for one in get_args(annotation) for kind in _kinds(one)]
    return [get_args(annotation)] if origin is Literal else [annotation]


def _numeric(kinds: list[Any]) -> type[int] | type[float] | None:
    return float if float in kinds else int if int in kinds else None


def _example(kinds: list[Any]) -> str:
    return "32..256" if _numeric(kinds) is int else "0.001..0.02:log"


def _range(name: str, text: str, kinds: list[Any]) -> Range:
    kind = _numeric(kinds)
    given = f"search: {name}={cut(text)}"
    if kind is None:
        words = next((kind for kind in kinds if isinstance(kind, tuple)), ("yes", "no"))
        raise SettingsError(f"{given}: {name} is no number. List its values: {name}={','.join(words)}.")
    low_text, _, rest = text.partition("..")
    high_text, colon, scale = rest.partition(":")
    if colon and scale.strip() != "log":
        raise SettingsError(f"{given}: what may follow the range is :log, for a logarithmic scale.")
    try:
        low, high = kind(low_text), kind(high_text)
        good = math.isfinite(low) and math.isfinite(high)
    except (ValueError, OverflowError):
        good = False
    if not good:
        raise SettingsError(
            f"{given}: expected two {'whole ' if kind is int else ''}numbers, such as {_example(kinds)}."
        )
    if low == high:
        raise SettingsError(
            f"{given} is a single value. Name two ends, or fix it: --{name.replace('_', '-')} {low_text.strip()}."
        )
    if low > high:
        raise SettingsError(f"{given} is empty: {low_text.strip()} is above {high_text.strip()}. Turn them round.")
    if colon and low <= 0:
        raise SettingsError(f"{given}: a logarithmic scale begins above 0.")
    return Range(low, high, log=bool(colon), whole=kind is int)


_YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def _value(name: str, value: Any, kinds: list[Any]) -> Value:
    """One value of a list, as the type that the setting has; what that type doesn't know is left to the settings' own checks."""
    if not isinstance(value, str | int | float | NoneType):
        raise SettingsError(f"search: {name}: {shown(value)} is no single value.")
    if isinstance(value, bool) and bool not in kinds:
        raise SettingsError(f"search: {name}: {shown(value)} is neither a number nor a word of this setting.")
    if not isinstance(value, str):
        return (
            float(value)
            if isinstance(value, int) and not isinstance(value, bool) and _numeric(kinds) is float
            else value
        )
    text = value.strip()
    if NoneType in kinds and text.lower() == "none":
        return None
    if bool in kinds:
        return _YES_NO.get(text.lower(), text)
    kind = _numeric(kinds)
    if kind is int and re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def check_space(space: Space, fixed: Mapping[str, Any]) -> None:
    """Raises SettingsError where a value of the space is none that its setting may have, alone or beside those that are fixed."""
    cells = space["cell"].ends if "cell" in space else (None,)
    for name, parameter in space.items():
        for value in parameter.ends:
            for cell in cells if name != "cell" else (value,):
                more = {} if cell is None else {"cell": cell}
                try:
                    TrainSettings.make(**(dict(fixed) | more | {name: value}))
                except SettingsError as error:
                    raise SettingsError(f"search: {error}") from None
