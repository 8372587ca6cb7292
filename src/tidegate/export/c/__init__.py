"""One C99 header with the weights in it, and beside it a program that holds it against what Python computes.

The text is in templates/model.h.j2 and templates/test.c.j2; `header.py` and `self_test.py` have what goes in. Every symbol
begins with the file's name, so that several models can live in one program.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.errors import SettingsError
from tidegate.export.c.header import header_values
from tidegate.export.c.names import identifier, pasteable, self_test_of
from tidegate.export.c.notes import code_bytes, cost_of_rounding
from tidegate.export.c.self_test import recorded
from tidegate.export.c.weights import Weights
from tidegate.export.parts import Exported, Parts, check_beside, check_core
from tidegate.files import replacing_all
from tidegate.pages import render

MARK = "Written by Tidegate"  # in the first lines of both templates


def write(parts: Parts, path: Path, *, int8: bool = False, table: Any = None) -> Exported:
    """Write the run as one header `path` of C99, and a self-test `STEM_test.c` beside it.

    int8: weights as 8-bit numbers with a scale a row (of a matrix's outputs; of an embedding's words); states, biases and
        activations stay float. Then the notes say what the run's figure on its test rows was and is.
    table: the table for that figure; None: the one of the training, where it still lies unchanged.

    Raises SettingsError for what C can't express (it says which part), and where a file that is not ours has the name of the
    self-test; nothing is written then. DataError where `table` can't be read or scored. Cost: about 14 bytes of text a weight, 5 with int8; a compiler run (`cc`, where there is one)
    to measure the code; with int8 two passes over the test rows.
    """
    if table is not None and not int8:
        raise SettingsError("table: it tells what 8-bit weights cost, so it goes with int8=True (--int8) only.")
    _check(parts, path)
    weights = Weights(parts, int8)
    name = identifier(path.stem)
    values = header_values(parts, weights, name, path)
    header = render("tidegate.export", "model.h", values) + "\n"
    test = render("tidegate.export", "test.c", values | recorded(parts, weights)) + "\n"
    notes = [
        f"Code: {code_bytes(header, name, parts)}. Weights: {values['weight_bytes']} bytes. "
        f"{values['state_title']}: {values['state_bytes']}."
    ]
    if int8:
        notes.append(cost_of_rounding(parts, weights.model, table))
    beside = self_test_of(path)
    notes.append(f"Test it where it will run: cc -std=c99 -O2 {pasteable(beside)} -lm && ./a.out")
    with replacing_all([beside, path]) as (temporary_test, temporary):
        temporary_test.write_text(test, encoding="utf-8")
        temporary.write_text(header, encoding="utf-8")
    return Exported(path, [beside], notes)


def _check(parts: Parts, path: Path) -> None:
    if re.search(r'["\\\x00-\x1f]|\?\?', path.name):
        raise SettingsError(
            f"{path.name!r}: a C file can't include a file of this name. Leave out what is no letter or digit."
        )
    check_core(parts, "c", "what is written in C")
    weights = [w for layer in parts.layers for direction in layer for w in direction]
    weights += [*parts.embeddings, parts.head_weight, parts.head_bias]
    weights += [] if parts.initial_h is None else [parts.initial_h]
    if not all(np.isfinite(w).all() for w in weights):
        raise SettingsError(
            f"The weights of {parts.run.name} hold NaN or infinity, which C has no constant for. Train it again."
        )
    check_beside(self_test_of(path), MARK)
    pre = parts.preprocessing
    for what, texts in [
        *((f"column {c.name!r}", c.vocabulary) for c in pre.tokens),
        (f"target {', '.join(pre.target.names)!r}", [c for c in pre.target.classes if isinstance(c, str)]),
        ("a column's name", [c.name for c in pre.features]),
        ("a target's name", pre.target.names),
    ]:
        for text in texts:
            if "\0" in text:
                raise SettingsError(
                    f"{what}: {text!r} holds a zero character, with which a text ends in C. Take it out of the table and train again."
                )
