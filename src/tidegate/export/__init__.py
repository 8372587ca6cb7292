"""The same numbers elsewhere: a run written for ONNX Runtime, Keras, torch.export or a C compiler.

| file | format | what is written |
| --- | --- | --- |
| `onnx/` | `onnx` | an ONNX file with ONNX's own GRU operator |
| `keras.py` | `keras` | a `.keras` file of Keras' own layers |
| `pt2.py` | `pt2` | a `torch.export` archive that PyTorch alone loads |
| `c/` | `c` | one C99 header with its own test |

This page loads neither torch nor polars, and `onnx.write_layer` needs torch, numpy and onnx alone.

`parts.py` takes a run apart into arrays and says in JSON what goes in and what comes out; every format is written from that.
`contract.py` has the names, types and axes below as data, `probe.py` the made-up sequences that a file is run on before it is
written. To add a format: a module with `write(parts, path, **options) -> Exported`, a line in `TARGETS`, what its recurrence
computes in `parts.COMPUTED`, and its cases in the tests.

What all but C take and give (B sequences, T steps, at least one sequence and one step; axes in this order; numbers or tokens only where the run has such
columns), and what their tests hold them to:

    numbers   float64 [B, T, F]    the numeric columns in the units of the table; NaN where a value is missing. Infinities, and
                                   what is too far away for float32, count as missing too, in C as well (`predict` refuses
                                   them, but for infinities where the run was trained with non_finite="missing")
    tokens    text    [B, T, C]    the columns of words (in lower case) and categories, `Parts.missing_text` where missing. What is
                                   read of a word beside itself, its shape and its suffix (`tidegate.data.word_features`),
                                   are columns of their own; the description says of each its name and its kind
    codes     int64   [B, T, C]    in their place, where a format knows no text: i + 1 for entry i of the vocabulary, else 0
    lengths   int64   [B]          steps of each sequence; what comes after them is padding
    h_0       float32 [layers*D, B, H]   the state to begin with (Keras: [B, layers*D, H]): zeros (where the
                                         initial state is learned, the description's initial_h [layers*D, H] for each
                                         sequence), or an earlier h_n if the run reads forwards alone

    prediction, probabilities      as `run.predict` gives them; K steps ahead, 1 without a horizon. Of a class [B, T, K], of
                                   labels and numbers [B, T, K, targets]; a sequence: without T
    scores    float32              what the head gives: [B, T, K, outputs] a step, [B, 1, outputs] a sequence
    h_n       float32 [layers*D, B, H]   the state after each sequence's last step; h_0 where it has none
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate._lazy import names_of
from tidegate.errors import SettingsError, nearest
from tidegate.export.targets import TARGETS, Target

if TYPE_CHECKING:
    from tidegate.export.parts import Exported, Parts, take_apart
    from tidegate.trained import Trained

__getattr__, __dir__ = names_of(__name__, dict.fromkeys(("Exported", "Parts", "take_apart"), "tidegate.export.parts"))

__all__ = ["TARGETS", "Exported", "Parts", "Target", "export_run", "take_apart"]


def export_run(run: Trained, to: str, path: str | Path | None = None, **options: Any) -> Exported:
    """Write `run` for another program; see `Run.export`."""
    from tidegate.export.parts import numbers_in_text, take_apart, word_features_of
    from tidegate.trained.folder import short_name

    if to not in TARGETS:
        raise SettingsError(f"to={to!r}: expected one of {', '.join(TARGETS)}.{nearest(str(to), TARGETS)}")
    write = importlib.import_module(f"tidegate.export.{to}").write
    known = [name for name, p in inspect.signature(write).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise SettingsError(f"{name}: the target {to!r} {has}.{nearest(name, known)}")
    suffix = TARGETS[to].suffix
    if path is None and run.folder is None:
        raise SettingsError("The run has no folder to be named after, so name the file to write.")
    path = Path(f"{short_name(run.folder)}{suffix}" if path is None and run.folder else path or "")
    if path.suffix != suffix:
        raise SettingsError(f"{path}: a file for {to!r} has a name that ends in {suffix}.")
    if path.is_dir():
        raise SettingsError(f"{path} is a folder. Name a file.")
    exported: Exported = write(take_apart(run), path, **options)
    return replace(
        exported, notes=[*exported.notes, *numbers_in_text(run.preprocessing), *word_features_of(run.preprocessing)]
    )
