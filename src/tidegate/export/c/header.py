"""What the templates are filled with: arrays, names and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidegate import __version__
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
from tidegate.export.c.weights import Matrix, Weights
from tidegate.export.parts import Parts


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
        "id": digits(f"{path.name}\0{parts.run.fingerprint}\0{weights.int8}\0{__version__}", 16).upper(),
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


def _layer_arrays(parts: Parts, weights: Weights, name: str) -> tuple[list[str], list[str]]:
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
                    arrays.append(constant_array("float", f"{base}_scale_{key}", w.scales))
                    names[f"scale_{key}"] = f"{base}_scale_{key}"
            for key, b in (("ih", b_ih), ("hh", b_hh)):
                arrays.append(constant_array("float", f"{base}_b_{key}", b))
                names[f"b_{key}"] = f"{base}_b_{key}"
            order = ["w_ih", "w_hh", "scale_ih", "scale_hh", "b_ih", "b_hh"]
            rows.append(braced([*(names[k] for k in order if k in names), str(len(w_ih.values))]))
    arrays.append(_weight_array(f"{name}_head_w", name, weights.head))
    if weights.head.scales is not None:
        arrays.append(constant_array("float", f"{name}_head_scale", weights.head.scales))
    arrays.append(constant_array("float", f"{name}_head_b", weights.head_bias))
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
                f"/* {comment(column.name)} */\n{before}static const char *const {texts}[{len(order)}] = {{\n{lines_of(expressions)}}};\n"
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
        words = "1" if column.kind == "words" else "0"
        rows.append(braced([texts, codes, str(column.size), words, f"{base}_vectors", *scales, str(m.values.shape[1])]))
    return arrays, rows
