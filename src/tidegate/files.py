"""Files that are whole or not there: written to a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tidegate.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskError(UserError):
    """A file could not be written; what was there before is untouched."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the block ends well it takes the place of `path`.

    If the block fails, or the disk is full, the temporary file is removed and `path` is as it was.
    Raises DiskError: the message says which file, why, and what to do.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # On the disk before the rename, so that a crash can't leave an empty file under the good name.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        if error.errno in _FULL:
            raise DiskError(
                f"{path} could not be written: the disk is full or a quota is reached. "
                "Free some space and repeat the command; nothing half-written was left."
            ) from error
        raise DiskError(f"{path} could not be written ({error.strerror or error}).") from error
    except BaseException as error:
        _remove(temporary)
        if "No space left" in str(error) or "File too large" in str(error):  # how polars and safetensors say it
            raise DiskError(
                f"{path} could not be written: the disk is full or a quota is reached. "
                "Free some space and repeat the command; nothing half-written was left."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
