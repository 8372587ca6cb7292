"""Every error that Tidegate raises on purpose.

All of them say what was given, what was expected and what to do. Those that a user can mend by changing
an argument, a file or a setting derive from `UserError`; the command line ends with status 2 for these and
with status 1 for anything else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any


class TidegateError(Exception):
    """The base of all errors that Tidegate raises on purpose."""


class UserError(TidegateError, ValueError):
    """Something that was given can't be used; the message says what to change."""


class ShapeError(UserError, RuntimeError):
    """A tensor has the wrong shape, dtype or device.

    It is a `ValueError` and a `RuntimeError`, as `torch.nn.GRU` raises either one.
    """


class BackendUnavailableError(TidegateError, RuntimeError):
    """A back end was asked for by name and can't run here; the message says why."""


class PackageMissingError(TidegateError, ImportError):
    """A package that only a part of Tidegate needs isn't installed; the message names the command that brings it."""


_ENDLESS = re.compile(r"\S{600,}")


class DataError(UserError):
    """A table can't be read, or can't become sequences; the message names file, row and column.

    A cell or a name of 600 characters or more without a blank is cut in the message.
    """

    def __init__(self, message: str = "", *more: Any) -> None:
        super().__init__(_ENDLESS.sub(lambda found: f"{found[0][:300]}...{found[0][-100:]}", message), *more)


class DataWarning(UserWarning):
    """A table can be read, but hardly as it was meant; the message names file and column."""


class BackendWarning(RuntimeWarning):
    """A slower back end runs, as the kernels are not part of this installation. Said once in a process."""


class SettingsError(UserError):
    """A setting is unknown, has an impossible value, or contradicts another one."""


class RunError(UserError):
    """A run folder is missing, taken, incomplete, or not ours."""


class Interrupted(TidegateError):
    """Training was stopped by Ctrl-C (or SIGTERM) and can go on."""


class WorkerLost(TidegateError):
    """One of several processes that share the work has ended, or can't be reached; the message says which."""


class TrainingFailed(TidegateError):
    """The loss is no longer a number."""


def of_type(value: Any) -> str:
    """What a value is, for a message: 'of type torch.nn.modules.rnn.GRU'.

    >>> of_type(3)
    'of type int'
    """
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def package_missing(what: str, packages: Sequence[str], extra: str) -> PackageMissingError:
    """The error for `what`, which needs packages that the extra of that name brings.

    >>> package_missing("to='keras'", ["keras", "tensorflow"], "keras")
    PackageMissingError("to='keras' needs keras and tensorflow, which are not installed: pip install 'tidegate[keras]'")
    """
    verb = "is" if len(packages) == 1 else "are"
    return PackageMissingError(
        f"{what} needs {' and '.join(packages)}, which {verb} not installed: pip install 'tidegate[{extra}]'",
        name=packages[0],
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the known name closest to `name`, or '' where none is close.

    >>> nearest("tagret", ["target", "group"])
    " Did you mean 'target'?"
    >>> nearest("zzz", ["target", "group"])
    ''
    """
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
