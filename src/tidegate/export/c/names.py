"""How files and symbols are called."""

from __future__ import annotations

import hashlib
import re
import shlex
import unicodedata
from pathlib import Path


def self_test_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_test.c")


def pasteable(path: Path) -> str:
    """The path for a shell's command line, where no option begins with it."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def identifier(stem: str) -> str:
    """What every symbol of a file begins with; letters that C hasn't are told apart by a few digits of a hash.

    >>> identifier("My model-2"), identifier("3d"), identifier("模型"), identifier("Modèle")
    ('my_model_2', 'model_3d', 'model_c98e11', 'mod_le_e61bbb')
    """
    name = re.sub("_+", "_", re.sub("[^a-z0-9]", "_", stem.lower())).strip("_")
    if not name or name[0].isdigit():
        name = f"model_{name}".strip("_")
    return name if stem.isascii() else f"{name}_{digits(unicodedata.normalize('NFC', stem), 6)}"


def digits(text: str, count: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:count]
