"""Which implementation runs: the table of back ends, `choose()` and `explain()`.

`"auto"` may choose, and `explain()` says what it chose and why not the others. A back end asked for by name
runs or raises `BackendUnavailableError`; it never quietly becomes another one.

>>> print(explain())
backend='auto' runs 'torch'
  torch      chosen: PyTorch's own GRU (ATen, cuDNN on CUDA), the fastest in this build
  reference  not chosen: the definition, step by step in Python; it runs when asked for by name
  native     can't run: the C++ kernel for CPUs is not part of this build
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from tidegate.errors import BackendUnavailableError, SettingsError, nearest
from tidegate.ops.gru import reference, torch_aten

# A back end is a module of `ops/gru` with `gru` and `gru_cell`. The order is that in which "auto" prefers
# them.
_MODULES: dict[str, ModuleType] = {"torch": torch_aten, "reference": reference}
_ABOUT = {
    "torch": "PyTorch's own GRU (ATen, cuDNN on CUDA), the fastest in this build",
    "reference": "the definition, step by step in Python; it runs when asked for by name",
}
# Known by name, and not here: the reason ends the sentence "Back end NAME can't run: ...".
_MISSING = {"native": "the C++ kernel for CPUs is not part of this build"}

_AUTO = next(iter(_MODULES))

NAMES: tuple[str, ...] = ("auto", *_MODULES, *_MISSING)
"""Every name that a `backend=` argument knows, whether or not it can run here."""


@dataclass(frozen=True)
class Explanation:
    """What `backend=asked` leads to, and the reason for each back end. `print()` it to read it.

    `chosen` is None where the back end that was asked for can't run.
    """

    asked: str
    chosen: str | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        runs = "can't run here" if self.chosen is None else f"runs {self.chosen!r}"
        lines = [f"  {name:<10} {reason}" for name, reason in self.reasons.items()]
        return "\n".join([f"backend={self.asked!r} {runs}", *lines])


def choose(backend: str = "auto") -> ModuleType:
    """The module whose `gru` and `gru_cell` run for `backend`.

    >>> choose("reference").__name__
    'tidegate.ops.gru.reference'

    Raises `BackendUnavailableError` for one that is known but can't run here, and `SettingsError` (a
    `ValueError`) for an unknown name. Cost: two dictionary look-ups, so a layer asks again at every call.
    """
    module = _MODULES.get(_AUTO if backend == "auto" else backend)
    if module is not None:
        return module
    if backend in _MISSING:
        raise BackendUnavailableError(
            f"Back end {backend!r} can't run: {_MISSING[backend]}. "
            f"Use one of {', '.join(map(repr, ('auto', *_MODULES)))}."
        )
    raise _unknown(backend)


def explain(backend: str = "auto") -> Explanation:
    """What `choose(backend)` would do and why, without doing it.

    >>> explain("native").chosen is None
    True

    Raises `SettingsError` (a `ValueError`) for an unknown name.
    """
    if backend not in NAMES:
        raise _unknown(backend)
    chosen = _AUTO if backend == "auto" else backend if backend in _MODULES else None
    reasons = {}
    for name, about in _ABOUT.items():
        if name == chosen:
            reasons[name] = f"chosen: {about}"
        elif backend == "auto":
            reasons[name] = f"not chosen: {about}"
        else:
            reasons[name] = f"not chosen: {backend!r} was asked for by name"
    reasons.update({name: f"can't run: {why}" for name, why in _MISSING.items()})
    return Explanation(backend, chosen, reasons)


def _unknown(backend: object) -> SettingsError:
    known = ", ".join(map(repr, NAMES))
    return SettingsError(f"Unknown back end {backend!r}; known are {known}.{nearest(str(backend), NAMES)}")
