"""One training at a time for each folder: a second one is refused, and a lock that a killed process left doesn't block."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from tidegate.errors import RunError
from tidegate.files import remove, runs
from tidegate.processes import boot

try:
    import fcntl
except ImportError:  # Windows: two trainings are not kept apart there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
PATIENCE = 0.5
"""Seconds for which `take` tries again: somebody who only looks has it for an instant."""
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class FolderLock:
    """A folder's lock, held from `take` to `release`.

    The kernel's lock on the file says whether somebody has it: it ends with the process, however that ends. What stands in the
    file says who that is, for the message, and on which machine: what another machine locked can't always be seen from here,
    so its file is never taken over.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._file: int | None = None

    def take(self) -> None:
        """Raises RunError where another training has it; the message says which."""
        if fcntl is None:
            return
        until = time.monotonic() + PATIENCE
        while self._file is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise RunError(f"{self.folder} can't be written to ({error.strerror}).") from error
            try:
                self._check(file, fcntl.LOCK_EX)
                if _is_at(file, self.path):  # else whoever had it removed it just now
                    self._file = file
            except RunError:
                if time.monotonic() > until:
                    raise
                time.sleep(PATIENCE / 10)
            finally:
                if self._file is None:
                    os.close(file)
        me = {
            "process": os.getpid(),
            "host": platform.node(),
            "boot": boot(),
            "since": time.strftime("%Y-%m-%d %H:%M"),
        }
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(me).encode(), 0)

    def release(self) -> None:
        """Let go, where it is held."""
        if self._file is not None:
            remove(self.path)  # first: once it is free, the file at this place may be another's
            os.close(self._file)
            self._file = None

    def check(self) -> None:
        """Raises RunError where another training has it."""
        if fcntl is None:
            return
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError:
            return
        try:
            self._check(file, fcntl.LOCK_SH)  # which two who check at the same time can both have
        finally:
            os.close(file)

    def _check(self, file: int, kind: int) -> None:
        """Take the kernel's lock on the open file. Raises RunError where that, or what stands in the file, says that it is another's."""
        owner = _owner(file)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            taken = False
        except OSError as error:
            # A disk that knows no locks: all there is to go by is the process that is named.
            taken = error.errno in _TAKEN or (owner.get("boot") == boot() and _runs_here(owner.get("process")))
        who = f" (process {owner.get('process')} on {owner.get('host')}, since {owner.get('since')})" if owner else ""
        if taken:
            raise RunError(
                f"{self.folder} is in use by another training{who}. Wait for it, stop it, or choose another folder."
            )
        if owner and _elsewhere(owner):
            raise RunError(
                f"{self.folder} is in use by a training on another machine{who}. If that one was killed, remove {self.path} and "
                "start again."
            )


def _owner(file: int) -> dict[str, Any]:
    """Who wrote the file; nobody where it isn't whole."""
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _elsewhere(owner: dict[str, Any]) -> bool:
    """Whether that was another machine. A container may have another name on the same one; after a restart of the machine the
    name is the same.
    """
    here = boot()
    return (here is None or owner.get("boot") != here) and owner.get("host") != platform.node()


def _runs_here(process: Any) -> bool:
    return isinstance(process, int) and process != os.getpid() and runs(process)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
