"""One C99 header with the weights in it, and beside it a program that holds it against what Python computes.

The text is in templates/model.h.j2 and templates/test.c.j2; here are the arrays, the names and the figures that go in.
Every symbol begins with the file's name, so that several models can live in one program.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from tidegate import __version__
from tidegate.convert import lacks
from tidegate.data.arrange import Arranged
from tidegate.data.preprocessing import encode_features
from tidegate.data.tables import Table
from tidegate.errors import DataError, SettingsError
from tidegate.export.parts import Exported, Parts, check_beside
from tidegate.files import replacing_all
from tidegate.model.tasks import TASKS, in_units
from tidegate.pages import render
from tidegate.trained.comparison import nice
from tidegate.trained.evaluation import judge, run_model
from tidegate.trained.metrics import primary
from tidegate.trained.rows import Rows, scored_rows, training_table

if TYPE_CHECKING:
    from tidegate.model import SequenceModel

LENGTHS = (1, 7, 24)  # of the self-test's sequences
LONGEST_LITERAL = 4095  # bytes of a string literal that every C99 compiler must take
WIDTH = 116  # of a line of numbers
MEASURED = 30_000_000  # characters of a header that `cc` may be asked to measure: some seconds
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
    weights = _Weights(parts, int8)
    name = identifier(path.stem)
    values = _shared(parts, weights, name, path)
    header = render("tidegate.export", "model.h", values) + "\n"
    test = render("tidegate.export", "test.c", values | _recorded(parts, weights)) + "\n"
    notes = [
        f"Code: {_code_bytes(header, name, parts)}. Weights: {values['weight_bytes']} bytes. "
        f"{values['state_title']}: {values['state_bytes']}."
    ]
    if int8:
        notes.append(_cost_of_rounding(parts, weights.model, table))
    beside = self_test_of(path)
    notes.append(f"Test it where it will run: cc -std=c99 -O2 {_pasteable(beside)} -lm && ./a.out")
    with replacing_all([beside, path]) as (temporary_test, temporary):
        temporary_test.write_text(test, encoding="utf-8")
        temporary.write_text(header, encoding="utf-8")
    return Exported(path, [beside], notes)


def self_test_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_test.c")


def _pasteable(path: Path) -> str:
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
    return name if stem.isascii() else f"{name}_{_digits(unicodedata.normalize('NFC', stem), 6)}"


def _digits(text: str, count: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:count]


def _check(parts: Parts, path: Path) -> None:
    if re.search(r'["\\\x00-\x1f]|\?\?', path.name):
        raise SettingsError(
            f"{path.name!r}: a C file can't include a file of this name. Leave out what is no letter or digit."
        )
    core = copy.copy(parts.core)
    core.recurrent_dropout = 0.0  # falls in training alone
    said = lacks(core, "torch") + ([] if core.bias else ["bias=False"])
    if said:
        raise SettingsError(
            f"to='c': the core of {parts.run.name}: what is written in C has no {' and no '.join(said)}. Train a run without; "
            "to='onnx' computes some of it."
        )
    arrays = [w for layer in parts.layers for direction in layer for w in direction]
    if not all(np.isfinite(w).all() for w in [*arrays, *parts.embeddings, parts.head_weight, parts.head_bias]):
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


# --------------------------------------------------------------------------------------------------- weights


@dataclass
class Matrix:
    """values [inputs, outputs] (of an embedding: [words, width]) as C multiplies by them; 8-bit: numbers and scales too."""

    values: np.ndarray
    numbers: np.ndarray | None = None  # int8, of the same shape
    scales: np.ndarray | None = None  # float32, one an output; of an embedding one a word

    @property
    def bytes(self) -> int:
        if self.numbers is None or self.scales is None:
            return self.values.nbytes
        return self.numbers.nbytes + self.scales.nbytes


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, n] as int8 [rows, n] and a float32 scale a row: the nearest of 255 evenly spaced values to each."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scales = (largest / 127).astype(np.float32)
    # A row of zeros, or one so small that 1/127 of it is no number, is one of zeros.
    by = np.where(scales > 0, scales, np.inf)[:, None]
    return np.clip(np.rint(rows / by), -127, 127).astype(np.int8), scales


class _Weights:
    """The weights in C's order, and the model that has exactly these."""

    def __init__(self, parts: Parts, int8: bool):
        self.int8 = int8
        self.layers = [
            [(self._columns(w_ih), self._columns(w_hh), b_ih, b_hh) for w_ih, w_hh, b_ih, b_hh in layer]
            for layer in parts.layers
        ]
        self.embeddings = [self._rows(e) for e in parts.embeddings]
        self.head, self.head_bias = self._columns(parts.head_weight), parts.head_bias
        self.model = self._model(parts)

    def _rows(self, rows: np.ndarray) -> Matrix:
        if not self.int8:
            return Matrix(rows)
        numbers, scales = quantise(rows)
        return Matrix(numbers * scales[:, None], numbers, scales)

    def _columns(self, w: np.ndarray) -> Matrix:
        """w [outputs, inputs] as PyTorch has it."""
        m = self._rows(w)
        return Matrix(m.values.T, None if m.numbers is None else m.numbers.T, m.scales)

    def _model(self, parts: Parts) -> SequenceModel:
        """A copy of the run's model, on its device, with the weights that C has."""
        model = copy.deepcopy(parts.run.model).eval()
        flat: list[Any] = [direction for layer in self.layers for direction in layer]
        given_weights: Any = model.core.all_weights  # type: ignore[union-attr]
        with torch.no_grad():
            for given, (w_ih, w_hh, b_ih, b_hh) in zip(given_weights, flat, strict=True):
                for parameter, value in zip(given, (w_ih.values.T, w_hh.values.T, b_ih, b_hh), strict=True):
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
            for embedding, matrix in zip(model.embeddings, self.embeddings, strict=True):
                embedding.weight.copy_(torch.from_numpy(matrix.values))  # type: ignore[operator]
            model.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(self.head.values.T)))
        return model

    @property
    def bytes(self) -> int:
        each = [
            w_ih.bytes + w_hh.bytes + b_ih.nbytes + b_hh.nbytes for l in self.layers for w_ih, w_hh, b_ih, b_hh in l
        ]
        return sum(each) + sum(e.bytes for e in self.embeddings) + self.head.bytes + self.head_bias.nbytes


# --------------------------------------------------------------------------------------------------- C's spelling


def number(value: float, digits: int = 17) -> str:
    """A double's literal that reads back as the same number; with 9 digits and an f, a float's."""
    text = f"{value:.{digits}g}"
    return text if "." in text or "e" in text else text + ".0"


def real(value: float) -> str:
    return number(value, 9) + "f"


def text(value: str) -> str:
    """A string literal in plain ASCII: no quote, trigraph or line end of it is C's, and no source encoding changes it.

    >>> print(text('say "ü?"'))
    "say \\"\\303\\274\\?\\""
    """
    out = []
    for byte in value.encode():
        character = chr(byte)
        if character in '"\\?':
            out.append("\\" + character)
        else:
            out.append(character if 32 <= byte < 127 else f"\\{byte:03o}")  # three digits: none that follows joins them
    return '"' + "".join(out) + '"'


def comment(value: str, most: int = 60) -> str:
    """For between /* and */: nothing that ends it, begins another one, turns the line around or splices it."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in value[:most])
    shown = shown.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
    return shown + (" ..." if len(value) > most else "")


def braced(values: Iterable[str]) -> str:
    return "{" + ", ".join(values) + "}"


def listed(values: Sequence[str], labels: Sequence[str] = ()) -> str:
    """Between braces, each on a line of its own, with a comment behind it where labels are given."""
    said = [f" /* {comment(label)} */" for label in labels] or [""] * len(values)
    return "{\n" + "".join(f"    {v},{c}\n" for v, c in zip(values, said, strict=True)) + "}"


def _lines(values: Sequence[str]) -> str:
    each = max(1, WIDTH // (2 + max(map(len, values))))
    return "".join(f"    {', '.join(values[k : k + each])},\n" for k in range(0, len(values), each))


def _array(kind: str, name: str, rows: np.ndarray, labels: Sequence[str] = ()) -> str:
    """A constant array, flat, a row of `rows` beginning on a new line, with a comment before it where labels are given."""
    spell = str if rows.dtype == np.int8 else real
    blocks = []
    for k, row in enumerate(np.atleast_2d(rows)):
        label = f"    /* {comment(labels[k])} */\n" if labels else ""
        blocks.append(label + _lines([spell(v) for v in row.tolist()]))
    size = " * ".join(map(str, rows.shape))
    return f"static const {kind} {name}[{size}] = {{\n{''.join(blocks)}}};\n"


def _texts(name: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Definitions that must come first, and an expression for each text: a literal, or the array that a long one needs."""
    before, expressions = [], []
    for k, value in enumerate(texts):
        data = value.encode()
        if len(data) <= LONGEST_LITERAL:
            expressions.append(text(value))
        else:
            characters = [f"'\\{byte:03o}'" for byte in [*data, 0]]
            before.append(f"static const char {name}_{k}[{len(characters)}] = {{\n{_lines(characters)}}};\n")
            expressions.append(f"{name}_{k}")
    return "".join(before), expressions


# --------------------------------------------------------------------------------------------------- the header


def _shared(parts: Parts, weights: _Weights, name: str, path: Path) -> dict[str, Any]:
    """What both templates are filled with."""
    spec, pre, target = parts.spec, parts.preprocessing, parts.preprocessing.target
    directions, ahead = spec.directions, spec.ahead
    means, stds = [np.array([getattr(c, a) for c in pre.numbers]) for a in ("mean", "std")]
    labels = [class_text(c) for c in target.classes]
    long_classes, class_names = _texts(f"{name}_class", labels)
    arrays, layer_rows = _layer_arrays(parts, weights, name)
    vocabularies, vocabulary_rows = _vocabularies(parts, weights, name)
    H, inputs = spec.hidden_size, spec.number_width + sum(spec.embedding_dims)
    pooled = {"mean": 2, "max": 1}.get(spec.pooling, 0) if spec.per == "sequence" else 0
    if spec.bidirectional:
        state = f"{(2 if spec.num_layers > 1 else 1) * 2 * H * 4:,} bytes a row"
    else:
        state = f"{(spec.num_layers + pooled) * H * 4 + 4:,} bytes"

    def constants(values: Iterable[float], labels: Sequence[str]) -> str:
        """Of the type of the table's numbers, which the user of the header chooses."""
        return listed([f"{name.upper()}_CONSTANT({number(v)})" for v in values], labels)

    columns = [c.name for c in pre.numbers]
    of_target = [target.means, target.stds] if target.task == "number" else [(), ()]
    no_float = [*_beyond_float(columns, means, stds), *_beyond_float(target.names, *of_target)]
    return {
        "name": name,
        "NAME": name.upper(),
        "file": path.name,
        "test_file": self_test_of(path).name,
        "version": __version__,
        "fingerprint": parts.run.fingerprint,
        "id": _digits(f"{path.name}\0{parts.run.fingerprint}\0{weights.int8}\0{__version__}", 16).upper(),
        "about": _about(parts),
        "int8": weights.int8,
        "both_ways": spec.bidirectional,
        "per": spec.per,
        "pooling": spec.pooling if spec.per == "sequence" else None,
        "task": target.task,
        "numbers": pre.numbers,
        "tokens": pre.tokens,
        "number_width": spec.number_width,
        "inputs": inputs,
        "hidden": H,
        "layers": spec.num_layers,
        "directions": directions,
        "ahead": ahead,
        "outputs": spec.outputs,
        "residual": spec.residual,
        "masked": [k for k, c in enumerate(pre.numbers) if c.mask],
        "number_names": listed([text(c) for c in columns]),
        "token_names": listed([text(c.name) for c in pre.tokens]),
        "target_names": listed([text(n) for n in target.names]),
        "target_count": len(target.names),
        "class_names": listed(class_names),
        "long_classes": long_classes,
        "means": constants(means, columns),
        # In float64: mean = float32(mean) + rest, and (x - float32(mean)) of a float x near it is exact.
        "mean_rests": listed([real(m - float(np.float32(m))) for m in means], columns),
        "stds": constants(stds, columns),
        "no_float": comment(no_float[0]) if no_float else None,
        "target_means": constants(target.means, target.names) if target.task == "number" else "",
        "target_stds": constants(target.stds, target.names) if target.task == "number" else "",
        "arrays": arrays,
        "layer_rows": layer_rows,
        "vocabularies": vocabularies,
        "vocabulary_rows": vocabulary_rows,
        "weight_bytes": f"{weights.bytes:,}",
        "state_title": "Scratch" if spec.bidirectional else "State",
        "state_bytes": state,
        "stack_bytes": f"{4 * (inputs + 6 * H + (directions * H if spec.per == 'sequence' else 0) + ahead * spec.outputs) + 100:,}",
    }


def class_text(value: Any) -> str:
    """A class as text: as it stands in JSON where it is no text itself."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _beyond_float(names: Iterable[str], means: Iterable[float], stds: Iterable[float]) -> list[str]:
    """Those whose mean or spread no float can hold."""
    small, large = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    columns = zip(names, means, stds, strict=False)  # no means and stds: nothing to hold
    return [name for name, mean, std in columns if abs(mean) > large or not small <= std <= large]


def _about(parts: Parts) -> list[str]:
    """What the model reads and predicts, in lines for a comment."""
    spec, pre, target = parts.spec, parts.preprocessing, parts.preprocessing.target

    def some(names: Sequence[str]) -> str:
        shown = ", ".join(comment(n) for n in names[:8])
        return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    lines = []
    if pre.numbers:
        lines.append(f"Numbers: {some([c.name for c in pre.numbers])}.")
    for kind, title in (("category", "Categories"), ("words", "Words")):
        names = [c.name for c in pre.tokens if c.kind == kind]
        if names:
            lines.append(f"{title}: {some(names)}.")
    what = {"class": "class", "labels": "yes or no", "number": "number"}[target.task]
    when = "of a sequence" if spec.per == "sequence" else "at each row"
    if spec.horizon:
        when += f", of the next row{f's, {spec.horizon} of them' if spec.horizon > 1 else ''}"
    lines.append(f"Predicted {when}: {some(target.names)} ({what}).")
    if target.task == "class":
        lines.append(f"Classes: {some([class_text(c) for c in target.classes])}.")
    layers = f"{spec.num_layers} layer{'s' if spec.num_layers > 1 else ''} of {spec.hidden_size} units"
    pooled = {"last": "the last state", "mean": "the mean of the states", "max": "the largest of the states"}[
        spec.pooling
    ]
    lines.append(
        f"Model: {layers}{', both directions' if spec.bidirectional else ''}"
        f"{f', then {pooled}' if spec.per == 'sequence' else ''}."
    )
    return lines


def _layer_arrays(parts: Parts, weights: _Weights, name: str) -> tuple[list[str], list[str]]:
    pre = parts.preprocessing
    read = [c.name for c in pre.numbers] + [f"{c.name} is missing" for c in pre.numbers if c.mask]
    for column, dim in zip(pre.tokens, parts.spec.embedding_dims, strict=True):
        read += [f"{column.name}, value {k + 1} of its vector" for k in range(dim)]
    arrays, rows = [], []
    for l, layer in enumerate(weights.layers):
        for direction, (w_ih, w_hh, b_ih, b_hh) in enumerate(layer):
            base = f"{name}_l{l}{'_back' if direction else ''}"
            names = {}
            for key, w, labels in (("ih", w_ih, read if l == 0 else ()), ("hh", w_hh, ())):
                arrays.append(_weight_array(f"{base}_w_{key}", name, w, labels))
                names[f"w_{key}"] = f"{base}_w_{key}"
                if w.scales is not None:
                    arrays.append(_array("float", f"{base}_scale_{key}", w.scales))
                    names[f"scale_{key}"] = f"{base}_scale_{key}"
            for key, b in (("ih", b_ih), ("hh", b_hh)):
                arrays.append(_array("float", f"{base}_b_{key}", b))
                names[f"b_{key}"] = f"{base}_b_{key}"
            order = ["w_ih", "w_hh", "scale_ih", "scale_hh", "b_ih", "b_hh"]
            rows.append(braced([*(names[k] for k in order if k in names), str(len(w_ih.values))]))
    arrays.append(_weight_array(f"{name}_head_w", name, weights.head))
    if weights.head.scales is not None:
        arrays.append(_array("float", f"{name}_head_scale", weights.head.scales))
    arrays.append(_array("float", f"{name}_head_b", weights.head_bias))
    return arrays, rows


def _weight_array(array: str, name: str, m: Matrix, labels: Sequence[str] = ()) -> str:
    return _array(f"{name}_weight", array, m.values if m.numbers is None else m.numbers, labels)


def _vocabularies(parts: Parts, weights: _Weights, name: str) -> tuple[list[str], list[str]]:
    arrays, rows = [], []
    for k, (column, m) in enumerate(zip(parts.preprocessing.tokens, weights.embeddings, strict=True)):
        base = f"{name}_t{k}"
        order = sorted(range(len(column.vocabulary)), key=lambda i: column.vocabulary[i].encode())
        texts = codes = "0"
        if order:
            texts, codes = f"{base}_texts", f"{base}_codes"
            before, expressions = _texts(f"{base}_text", [column.vocabulary[i] for i in order])
            arrays.append(
                f"/* {comment(column.name)} */\n{before}static const char *const {texts}[{len(order)}] = {{\n{_lines(expressions)}}};\n"
            )
            arrays.append(
                f"static const int32_t {codes}[{len(order)}] = {{\n{_lines([str(i + 1) for i in order])}}};\n"
            )
        labels = ["unknown or missing", *column.vocabulary]
        arrays.append(_weight_array(f"{base}_vectors", name, m, labels))
        scales = []
        if m.scales is not None:
            scales = [f"{base}_scales"]
            arrays.append(_array("float", scales[0], m.scales))
        words = "1" if column.kind == "words" else "0"
        rows.append(braced([texts, codes, str(column.size), words, f"{base}_vectors", *scales, str(m.values.shape[1])]))
    return arrays, rows


# --------------------------------------------------------------------------------------------------- the self-test


def _recorded(parts: Parts, weights: _Weights) -> dict[str, Any]:
    """Made-up rows, always the same ones for a run, and what Python makes of them."""
    pre = parts.preprocessing
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    numbers = np.array([[c.mean for c in pre.numbers]]) + rng.standard_normal((rows, len(pre.numbers))) * [
        [c.std for c in pre.numbers]
    ]
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float32).astype(np.float64)  # so that TIDEGATE_FLOAT_INPUT reads the same numbers
    numbers = np.where(np.isfinite(rounded), rounded, numbers)
    gone = rng.random(numbers.shape) < 0.15
    texts = [_made_up(c.vocabulary, c.kind, rows, rng) for c in pre.tokens]
    columns = {
        c.name: pl.Series(np.where(gone[:, k], np.nan, numbers[:, k])).fill_nan(None) for k, c in enumerate(pre.numbers)
    }
    columns |= {c.name: pl.Series(t, dtype=pl.String) for c, t in zip(pre.tokens, texts, strict=True)}
    offsets = np.cumsum([0, *LENGTHS])
    arranged = Arranged(Table(pl.DataFrame(), "the self-test"), columns, None, offsets, np.arange(rows), {}, ())
    encoded, codes = encode_features(arranged, pre.features, "error")
    model = copy.deepcopy(weights.model).cpu()
    scores = _scores(model, encoded, codes)
    # How far rounding alone goes: float32 against float64, on these rows.
    apart = np.abs(scores - _scores(model.double(), encoded.astype(np.float64), codes)) / np.maximum(1, np.abs(scores))
    allowed = max(1e-5, 20 * float(apart.max()))
    task = pre.target.task
    # What a task doesn't have is filled in all the same: the test of such a header leaves it out.
    with_probabilities = TASKS[task].has_probabilities
    probabilities = TASKS[task].probabilities(torch.from_numpy(scores)).numpy() if with_probabilities else scores
    predicted = scores if with_probabilities else in_units(scores.astype(np.float64), pre.target)

    def nested(values: np.ndarray, spell: Any) -> list[str]:
        return [braced(braced(map(spell, k)) for k in row) for row in values.tolist()]

    return {
        "lengths": LENGTHS,
        "test_numbers": [braced(map(number, row)) for row in numbers.tolist()],
        "missing": [braced(map(str, at)) for at in np.argwhere(gone).tolist()],
        "test_texts": [braced("0" if t is None else text(t) for t in row) for row in zip(*texts, strict=True)],
        "test_codes": [braced(map(str, row)) for row in codes.tolist()],
        "test_scores": nested(scores, real),
        "test_probabilities": nested(probabilities, real),
        "test_predictions": nested(predicted, number),
        "tolerance": number(allowed, 2),
    }


def _made_up(vocabulary: Sequence[str], kind: str, rows: int, rng: np.random.Generator) -> list[str | None]:
    """Texts of a column: of the vocabulary (those that fit into a literal), unknown ones and missing ones."""
    known = [t for t in vocabulary if len(t.encode()) <= LONGEST_LITERAL]
    choices: list[str | None] = [None, "not in the vocabulary, surely"]
    choices += [known[i] for i in rng.choice(len(known), min(len(known), rows), replace=False)] if known else []
    out = [choices[i] for i in rng.permutation(np.resize(np.arange(len(choices)), rows))]
    if kind == "words":  # A to Z may come in capitals
        out = [t.capitalize() if t is not None and t.isascii() else t for t in out]
    return out


def _scores(model: SequenceModel, encoded: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[rows, K, outputs], or [sequences, 1, outputs]: each sequence of LENGTHS by itself."""
    out, first = [], 0
    with torch.no_grad():
        for length in LENGTHS:
            steps = slice(first, first + length)
            numbers, words = torch.from_numpy(encoded[steps, None]), torch.from_numpy(codes[steps, None])
            scores = model(numbers, words, torch.tensor([length]))[0]
            out.append(scores[:, 0] if model.spec.per == "step" else scores)
            first += length
    return torch.cat(out).numpy()


# --------------------------------------------------------------------------------------------------- figures for the notes


def _code_bytes(header: str, name: str, parts: Parts) -> str:
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


def _cost_of_rounding(parts: Parts, rounded: SequenceModel, table: Any) -> str:
    """What 8-bit weights do to the run's figure, in a sentence."""
    run = parts.run
    ask = "Name the table with table= (--table) to see what 8-bit weights cost in accuracy."
    try:
        if table is None:
            read, gone = training_table(run)
            if read is None:
                return f"{gone}. {ask}"
        else:
            read = run.read(table)
        rows = scored_rows(run, read)
        before, after, metric = _figures(parts, rounded, rows)
    except DataError as error:
        if table is not None:
            raise
        return f"What 8-bit weights cost in accuracy is unknown: {error}"
    return (
        f"{metric[0].upper()}{metric[1:]} on {rows.what}: {before:.4g} as 32-bit, {after:.4g} as 8-bit "
        f"({after - before:+.2g})."
    )


def _figures(parts: Parts, rounded: SequenceModel, rows: Rows) -> tuple[float, float, str]:
    pre = parts.preprocessing
    metric, _ = primary(pre.target, pre.horizon)
    values = []
    for model in (parts.run.model, rounded):
        scores = judge(pre, rows.source, rows.part, run_model(model, pre, rows.source, rows.part).values)
        if not scores.count:
            raise DataError("these rows hold no target value.")
        values.append(float(scores.summary[metric]))
    return values[0], values[1], nice(metric)
