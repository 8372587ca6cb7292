"""What the templates are filled with: arrays, names and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidegate import __version__
from tidegate.data.texts import listed as in_words
from tidegate.export.c.names import digits, self_test_of
from tidegate.export.c.spelling import (
    braced,
    comment,
    constant_array,
    lines_of,
    listed,
    number,
    real,
    text,
    text_constants,
)
from tidegate.export.c.weights import Direction, Matrix, Weights
from tidegate.export.parts import Parts
from tidegate.ops.gru.equations import NORM_EPSILON


def header_values(parts: Parts, weights: Weights, name: str, path: Path) -> dict[str, Any]:
    """What both templates are filled with."""
    spec, pre, target = parts.spec, parts.preprocessing, parts.preprocessing.target
    directions, ahead = spec.directions, spec.ahead
    means, stds = [np.array([getattr(c, a) for c in pre.numbers]) for a in ("mean", "std")]
    labels = [class_text(c) for c in target.classes]
    long_classes, class_names = text_constants(f"{name}_class", labels)
    arrays, layer_rows = _layer_arrays(parts, weights, name)
    vocabularies, vocabulary_rows = _vocabularies(parts, weights, name)
    H, inputs = spec.hidden_size, spec.number_width + sum(spec.embedding_dims)
    pooled = sum({"mean": 2, "max": 1, "last": 0}[name] for name in spec.poolings)
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
        "id": digits(f"{path.name}\0{parts.run.fingerprint}\0{weights.int8}\0{__version__}", 16).upper(),
        "about": _about(parts),
        "int8": weights.int8,
        "reset_before": parts.core.reset == "before",
        "layer_norm": parts.core.layer_norm,
        "norm_epsilon": real(NORM_EPSILON),
        "zoneout": real(parts.core.zoneout) if parts.core.zoneout else None,
        "learned_start": parts.initial_h is not None,
        "both_ways": spec.bidirectional,
        "per": spec.per,
        "poolings": spec.poolings,
        "joined": len(spec.poolings) > 1,
        "features": spec.read_width,
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
        "token_names": listed([text(c.label) for c in pre.tokens]),
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
        "cuts": listed([real(c) for c in target.cuts], [*target.names]) if target.thresholds else None,
        "arrays": arrays,
        "layer_rows": layer_rows,
        "vocabularies": vocabularies,
        "vocabulary_rows": vocabulary_rows,
        "weight_bytes": f"{weights.bytes:,}",
        "state_title": "Scratch" if spec.bidirectional else "State",
        "state_bytes": state,
        "stack_bytes": f"{4 * (inputs + 6 * H + len(spec.poolings) * directions * H + ahead * spec.outputs) + 100:,}",
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
    for kind, title in (("category", "Categories"), ("words", "Words"), ("shape", "Of words"), ("suffix", "Of words")):
        names = [c.label for c in pre.tokens if c.kind == kind]
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
    words = {"last": "the last state", "mean": "the mean of the states", "max": "the largest of the states"}
    pooled = in_words([words[name] for name in spec.poolings])
    lines.append(
        f"Model: {layers}{', both directions' if spec.bidirectional else ''}"
        f"{f', then {pooled}' if spec.per == 'sequence' else ''}."
    )
    return lines


FIELDS = ["w_ih", "w_hh", "w_hn", "scale_ih", "scale_hh", "scale_hn", "b_ih", "b_hh", "g_ih", "g_hh"]
"""Of a layer's struct, in this order, as far as a model has them."""


def _matrices(direction: Direction, reset: str) -> dict[str, Matrix]:
    w_hh = direction.w_hh
    if reset == "after":
        return {"ih": direction.w_ih, "hh": w_hh}
    H = len(w_hh.values)  # the candidate's part is multiplied by itself, after the reset gate
    return {"ih": direction.w_ih, "hh": w_hh.outputs(slice(2 * H)), "hn": w_hh.outputs(slice(2 * H, 3 * H))}


def _layer_arrays(parts: Parts, weights: Weights, name: str) -> tuple[list[str], list[str]]:
    pre = parts.preprocessing
    read = [c.name for c in pre.numbers] + [f"{c.name} is missing" for c in pre.numbers if c.mask]
    for column, dim in zip(pre.tokens, parts.spec.embedding_dims, strict=True):
        read += [f"{column.label}, value {k + 1} of its vector" for k in range(dim)]
    arrays, rows = [], []
    for l, layer in enumerate(weights.layers):
        for k, direction in enumerate(layer):
            base = f"{name}_l{l}{'_back' if k else ''}"
            fields = {}
            for key, m in _matrices(direction, parts.core.reset).items():
                arrays.append(_weight_array(f"{base}_w_{key}", name, m, read if key == "ih" and l == 0 else ()))
                fields[f"w_{key}"] = f"{base}_w_{key}"
                if m.scales is not None:
                    arrays.append(constant_array("float", f"{base}_scale_{key}", m.scales))
                    fields[f"scale_{key}"] = f"{base}_scale_{key}"
            vectors = zip(
                ("b_ih", "b_hh", "g_ih", "g_hh"), (direction.b_ih, direction.b_hh, *direction.gains), strict=False
            )
            for field, vector in vectors:
                arrays.append(constant_array("float", f"{base}_{field}", vector))
                fields[field] = f"{base}_{field}"
            rows.append(braced([*(fields[f] for f in FIELDS if f in fields), str(len(direction.w_ih.values))]))
    arrays.append(_weight_array(f"{name}_head_w", name, weights.head))
    if weights.head.scales is not None:
        arrays.append(constant_array("float", f"{name}_head_scale", weights.head.scales))
    arrays.append(constant_array("float", f"{name}_head_b", weights.head_bias))
    if weights.initial_h is not None:
        arrays.append(constant_array("float", f"{name}_initial", weights.initial_h))
    return arrays, rows


def _weight_array(array: str, name: str, m: Matrix, labels: Sequence[str] = ()) -> str:
    return constant_array(f"{name}_weight", array, m.values if m.numbers is None else m.numbers, labels)


def _vocabularies(parts: Parts, weights: Weights, name: str) -> tuple[list[str], list[str]]:
    arrays, rows = [], []
    for k, (column, m) in enumerate(zip(parts.preprocessing.tokens, weights.embeddings, strict=True)):
        base = f"{name}_t{k}"
        order = sorted(range(len(column.vocabulary)), key=lambda i: column.vocabulary[i].encode())
        texts = codes = "0"
        if order:
            texts, codes = f"{base}_texts", f"{base}_codes"
            before, expressions = text_constants(f"{base}_text", [column.vocabulary[i] for i in order])
            arrays.append(
                f"/* {comment(column.label)} */\n{before}static const char *const {texts}[{len(order)}] = {{\n{lines_of(expressions)}}};\n"
            )
            arrays.append(
                f"static const int32_t {codes}[{len(order)}] = {{\n{lines_of([str(i + 1) for i in order])}}};\n"
            )
        labels = ["unknown or missing", *column.vocabulary]
        arrays.append(_weight_array(f"{base}_vectors", name, m, labels))
        scales = []
        if m.scales is not None:
            scales = [f"{base}_scales"]
            arrays.append(constant_array("float", scales[0], m.scales))
        words = "1" if column.kind in ("words", "suffix") else "0"  # in lower case
        rows.append(braced([texts, codes, str(column.size), words, f"{base}_vectors", *scales, str(m.values.shape[1])]))
    return arrays, rows
