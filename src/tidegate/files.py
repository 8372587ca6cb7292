"""Files that are whole or not there: written to a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tidegate.errors import UserError

STILL = 60
"""Seconds without a change after which a temporary file of a process that isn't here is a leftover: on a shared disk, that
process may run on another machine."""

_TEMPORARY = re.compile(r"\.(?P<name>.+?)\.(?P<pid>\d+)(-[0-9a-f]{8})?(\.tmp\.mode)?\.tmp", re.DOTALL)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskError(UserError):
    """A file could not be written; what was there before is untouched."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the block ends well it takes the place of `path`.

    If the block fails, or the disk is full, the temporary file is removed and `path` is as it was.
    Raises DiskError: the message says which file, why, and what to do.
    """
    with replacing_all([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The same for several files: all of them take their places, or every one is as it was, or is not there."""
    # Other threads may write the same files, too.
    mine = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporaries = [path.with_name(f".{path.name}.{mine}.tmp") for path in paths]
    # What stood there, until all is in place. Of the last file there is nothing to keep: after it nothing can fail.
    kept = {path: path.with_name(f".{path.name}.{mine}.old") for path in paths[:-1]}
    begun: list[Path] = []
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        yield temporaries
        for path, temporary in zip(paths, temporaries, strict=True):
            _give_the_usual_mode(temporary, path)
        # On the disk before the rename, so that a crash can't leave an empty file under the good name.
        for temporary in temporaries:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        for path, old in kept.items():
            if path.is_file():
                shutil.copy2(path, old)
        for path, temporary in zip(paths, temporaries, strict=True):
            begun.append(path)
            temporary.replace(path)
    except BaseException as error:
        if len(begun) < len(paths) or temporaries[-1].exists():
            for path, temporary in zip(begun, temporaries, strict=False):
                if not temporary.exists():  # it took the place
                    if kept[path].exists():
                        kept[path].replace(path)
                    else:
                        remove(path)
        reason = _reason(error)
        if reason is None:
            raise
        raise DiskError(f"{' and '.join(map(str, paths))} could not be written{reason}") from error
    finally:
        for temporary in (*temporaries, *kept.values()):
            remove(temporary)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well it takes the place of `path`, which was not there, or is removed
    just before.

    If the block fails, or the disk is full, the temporary folder is removed. Raises DiskError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    old = temporary.with_suffix(".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    except BaseException as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise DiskError(f"{path} could not be written{reason}") from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` for what is needed while that is made; it is removed when the block ends. What a killed process left
    there for the same `path` is removed first. Raises DiskError.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        folder.mkdir()
        yield folder
    except BaseException as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise DiskError(f"{path} could not be written{reason}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(error: BaseException) -> str | None:
    """Why a file could not be written; None where it isn't the disk's fault."""
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or "No space left" in str(error) or "File too large" in str(error):  # how polars and safetensors say it
        return (
            ": the disk is full or a quota is reached. "
            "Free some space and repeat the command; nothing half-written was left."
        )
    return f" ({error.strerror or error})." if isinstance(error, OSError) else None


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _give_the_usual_mode(temporary: Path, path: Path) -> None:
    """The permissions that any new file of this folder gets, by the umask. Some writers (safetensors) make files that only their
    owner may read, and then a colleague can't open the run.
    """
    if os.name != "posix":
        return
    # The umask itself can only be asked for by changing it, for all threads at once.
    probe = path.with_name(f"{temporary.name}.mode.tmp")
    try:
        file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            mode = stat.S_IMODE(os.fstat(file).st_mode)
        finally:
            os.close(file)
    finally:
        remove(probe)
    if stat.S_IMODE(temporary.stat().st_mode) != mode:
        temporary.chmod(mode)


def temporaries_in(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """The temporary files in a folder, each with the name of the file that it is to become and the process that writes it."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
    for name in names:
        if found := _TEMPORARY.fullmatch(name):
            yield folder / name, found["name"], int(found["pid"])


def _remove_leftovers(path: Path) -> None:
    """Temporary files for `path` of processes that were killed. Those of an .old stay: it may be all there is."""
    if os.name != "posix":  # elsewhere nobody can be asked so simply
        return
    for old, name, process in temporaries_in(path.parent):
        with contextlib.suppress(OSError):  # somebody else may be removing them
            if name == path.name and not runs(process) and time.time() - old.stat().st_mtime > STILL:
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    remove(old)


def runs(process: int) -> bool:
    """Whether there is a process of this number here. POSIX alone: elsewhere asking would end it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink()
