"""Figures for the notes: the size of the code, and what 8-bit weights cost in accuracy."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.errors import DataError
from tidegate.export.parts import Parts
from tidegate.trained.rounding import figures_of

if TYPE_CHECKING:
    from tidegate.model import SequenceModel

MEASURED = 30_000_000  # characters of a header that `cc` may be asked to measure: some seconds


def code_bytes(header: str, name: str, parts: Parts) -> str:
    """The size of the functions as this machine's compiler makes them, in words."""
    cc, size = shutil.which("cc"), shutil.which("size")
    if not (cc and size):
        return "size unknown (no cc and size here to measure it)"
    if len(header) > MEASURED:
        return "size not measured (so many weights take a compiler long)"
    # Functions that somebody calls: an unused static one would be left out.
    uses = ["run"] if parts.spec.bidirectional else ["reset", "step", "run"]
    uses += ["token"] if parts.preprocessing.tokens else []
    pointers = "\n".join(f"void *use_{f}(void) {{ return (void *){name}_{f}; }}" for f in uses)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            source, object_ = Path(folder, "m.c"), Path(folder, "m.o")
            source.write_text(f"{header}\n{pointers}\n", encoding="utf-8")
        except OSError as error:
            return f"size unknown (no temporary file could be written to measure it: {error.strerror})"
        try:
            command = [cc, "-std=c99", "-Os", "-fno-asynchronous-unwind-tables", "-c", str(source), "-o", str(object_)]
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        except (subprocess.SubprocessError, OSError) as error:
            return f"size unknown (cc failed here: {type(error).__name__})"
        try:
            table = subprocess.run([size, "-A", str(object_)], check=True, capture_output=True, text=True, timeout=30)
        except (subprocess.SubprocessError, OSError):  # BSD's and macOS' own know no -A
            return "size unknown (the program size here has no -A)"
    sections = [line.split() for line in table.stdout.splitlines() if line.startswith((".text", "__text"))]
    if not sections:
        return "size unknown (size -A names no .text here)"
    return f"{sum(int(s[1]) for s in sections):,} bytes (cc -Os, {platform.machine()})"


def cost_of_rounding(parts: Parts, rounded: SequenceModel, table: Any) -> str:
    """What 8-bit weights do to the run's figure, in a sentence."""
    ask = "Name the table with table= (--table) to see what 8-bit weights cost in accuracy."
    found = figures_of(parts.run, rounded, table)
    if isinstance(found, str):
        return f"{found}. {ask}"
    if isinstance(found, DataError):
        return f"What 8-bit weights cost in accuracy is unknown: {found}"
    return found.sentence("32-bit", "8-bit")
