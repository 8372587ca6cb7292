"""Where a study is: a file, or a database that Optuna knows by its URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tidegate.documents import Damaged, from_json
from tidegate.errors import RunError, SettingsError

NAME = "tidegate"  # of a study in a database, where nobody says; the one in a file is always called so
_BEGINS = b'{"op_code":'  # a line of the journal, as Optuna writes it
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SQLITE = "sqlite:///"
_PASSWORD = re.compile(r"(://[^/:@]*):[^@/]*@")


@dataclass(frozen=True)
class Place:
    """Of a study. path: its file; url: its database; both None: in memory. name: what the study is called there."""

    path: Path | None = None
    url: str | None = None
    name: str = NAME

    @staticmethod
    def of(study: str | Path | None, name: str | None = None) -> Place:
        """Raises SettingsError for a name where there is no database."""
        if isinstance(study, str) and _URL.match(study):
            return Place(url=study, name=name or NAME)
        if name is not None:
            raise SettingsError(
                f"study_name={name!r} names a study in a database, and a file has one study alone. Leave it out, or name a database with "
                "study (--study sqlite:///FILE)."
            )
        if study is not None and not str(study):
            raise SettingsError("study: expected a file or the URL of a database.")
        return Place(path=None if study is None else Path(study))

    def __str__(self) -> str:
        """As a person finds it. The password of a URL is left out."""
        if self.url is not None:
            return f"the study {self.name!r} in {masked(self.url)}"
        return "the study in memory" if self.path is None else str(self.path)

    @property
    def argument(self) -> str:
        """What follows --study."""
        return self.url or str(self.path)

    def check(self) -> bool:
        """Whether there is something to open: a file, or a database, which may be empty. Raises RunError where the file is none of
        a study."""
        if self.url is not None and self.url.startswith(_SQLITE):  # to look is to make it
            return Path(self.url.removeprefix(_SQLITE).partition("?")[0]).exists()
        if self.path is None:
            return True
        try:
            with self.path.open("rb") as file:
                head = file.read(64)
        except FileNotFoundError:
            if self.path.is_symlink():
                raise RunError(f"{self.path} is a link to what isn't there. Choose another file.") from None
            return False
        except IsADirectoryError:
            raise RunError(
                f"{self.path} is a folder; a study is a file. Name one, such as {self.path / 'tune.study'}."
            ) from None
        except OSError as error:
            raise RunError(f"{self.path} can't be read ({error.strerror}).") from None
        if head.startswith(b"SQLite format 3"):
            raise RunError(f"{self.path} is an SQLite database. Name it by its URL: --study sqlite:///{self.path}")
        if not (head.startswith(_BEGINS) or _BEGINS.startswith(head)):
            raise RunError(
                f"{self.path} is not the file of a study, and nothing in it is touched. Choose another file."
            )
        return bool(head)

    def damage(self) -> str:
        """Which line of the file is no line of a study; "" where all are."""
        if self.path is None:
            return ""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    good = not line.endswith(b"\n") or "op_code" in from_json(line)
                except (Damaged, TypeError):
                    good = False
                if not good:
                    return f"line {number:,}"
        return ""


def masked(study: str) -> str:
    """A file or URL without its password, for messages and pages.

    >>> masked("postgresql://me:secret@host/base")
    'postgresql://me:***@host/base'
    """
    return _PASSWORD.sub(r"\1:***@", study)


def mend(path: Path) -> None:
    """Cut off the last line where it isn't whole: its writer was killed, or the disk was full. To be called under the file's lock.

    Without that the next line would be written behind it, and all readers would find a line that is none.
    """
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, 2)
        if not end:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        whole, step = end, 4096
        while whole:
            begin = max(0, whole - step)
            file.seek(begin)
            at = file.read(whole - begin).rfind(b"\n")
            if at >= 0:
                file.truncate(begin + at + 1)
                return
            whole = begin
        file.truncate(0)
