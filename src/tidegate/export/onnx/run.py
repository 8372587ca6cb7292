"""A run as an ONNX file: from the raw columns of a table to predictions in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidegate import __version__
from tidegate.errors import SettingsError
from tidegate.export.contract import class_dtype, contract
from tidegate.export.onnx.graph import Graph, place
from tidegate.export.onnx.recurrence import recur, start
from tidegate.export.onnx.runtime import open_session
from tidegate.export.parts import FORMAT, Exported, Parts, check_beside, one_line
from tidegate.export.probe import batch, checked
from tidegate.model import ModelSpec


def write(parts: Parts, path: Path, *, codes: bool = False) -> Exported:
    """Write the run as an ONNX file with the inputs and outputs of `tidegate.export`, all preprocessing inside.

    codes: for programs that know no text, such as OpenVINO: the input `codes` int64 [B, T, C] stands in place of `tokens`,
        a predicted class is its number, and a JSON file beside it, of the same stem, lists vocabularies and classes. Entry i
        of a vocabulary has the code i + 1; 0 is for what is unknown or missing, and any number of no entry counts as 0.

    Inputs, B and T open: numbers float64 [B, T, F] and tokens text [B, T, C], each only if there are such columns, lengths
    int64 [B], h_0 float32 [layers*D, B, H]. Outputs: prediction [B, T, K] for a class, in the type of the class, else
    [B, T, K, targets], numbers in float64 and labels in int64; probabilities [B, T, K, outputs], but for numbers; scores,
    of the same shape; h_n. With one prediction a sequence there is no T and K is 1.

    Give at least one sequence and one step: at B = 0 or T = 0 ONNX Runtime's GRU ends the whole process. What comes after a
    sequence's length is read by nobody, and what is predicted there means nothing. A sequence of no
    steps, among others, keeps its h_0. Columns of words are compared as they come: give them in lower case. The metadata hold what
    another program wants to know: `tidegate` (all of it, JSON), `columns`, `classes`, `group` and `time` (JSON each),
    `missing_text` (what to give for a missing token), `version`; where the initial state is learned also `initial_h`
    [layers*D, H] (JSON): what h_0 is, for each sequence, where one begins.

    Where ONNX Runtime is installed the file is run beside the model before it is written.

    Raises SettingsError for weights beyond what one file can hold, and where a JSON file that is not ours has the name of the
    one beside it; PackageMissingError without the package onnx; TidegateError where ONNX Runtime computes something else;
    DiskError where nothing can be written. Nothing is written then, and what was there before is as it was.
    """
    beside = path.with_suffix(".json") if codes else None
    if beside is not None:
        check_beside(beside, f'"format": "{FORMAT}"')
    graph = Graph()
    pre, spec = parts.preprocessing, parts.spec
    missing_text = parts.missing_text

    agreed = contract(spec, pre, codes=codes)
    about = {
        "numbers": f"{_listed(pre.numbers)}; in the units of the table, NaN where a value is missing",
        "tokens": _about_tokens(parts),
        "codes": f"{_listed(pre.tokens)}; i + 1 for entry i of the vocabulary, 0 for what is unknown or missing",
        "lengths": "steps of each sequence; what comes after them is padding",
        "h_0": start(spec.bidirectional, "zeros" if parts.initial_h is None else "initial_h of the metadata"),
        "scores": "what the head gives",
        "h_n": "the state after each sequence's last step",
    }
    for name, value in agreed.inputs.items():
        graph.input(name, *value, about[name])

    encoded, numbers = [], ""
    if pre.numbers:
        numbers = _standardised(graph, parts, codes)
        encoded.append(numbers)
    encoded += [_vectors(graph, parts, k, codes, missing_text) for k in range(len(pre.tokens))]
    x = encoded[0] if len(encoded) == 1 else graph.add("Concat", "encoded", *encoded, axis=2)
    x = graph.add("Transpose", "encoded/by_step", x, perm=[1, 0, 2])  # the operator wants time first
    output, h_n = recur(graph, parts.core, x, "h_0")
    output = graph.add("Transpose", "gru/by_sequence", output, perm=[1, 0, 2])
    if spec.per == "sequence":
        output = _pooled(graph, parts, output, h_n)
    scores = _scores(graph, parts, output, numbers)
    about["prediction"] = PREDICTIONS[pre.target.task](graph, parts, scores, codes)
    for name, value in agreed.outputs.items():
        graph.output(name, *value, about.get(name, ""))

    data = graph.finish(_title(parts), _metadata(parts))
    notes = [*graph.notes(), _checked(parts, data)]
    if codes:
        notes += _rounded(parts)
    place(path, data, beside, parts.to_json())
    return Exported(path, [] if beside is None else [beside], notes)


def _title(parts: Parts) -> str:
    pre, target = parts.preprocessing, parts.preprocessing.target
    names = dict.fromkeys([*(c.name for c in pre.numbers), *(c.name for c in pre.tokens)])
    return (
        f"A GRU that predicts {', '.join(target.names)} ({target.task}) from {', '.join(names)}, trained with Tidegate."
    )


def _metadata(parts: Parts) -> dict[str, str]:
    """What another program wants to know; all of it is in `tidegate`."""
    description = parts.description
    pre = parts.preprocessing
    features = [*(c.label for c in pre.numbers), *(c.label for c in pre.tokens)]
    metadata = {
        "tidegate": json.dumps(description, ensure_ascii=False),
        "version": __version__,
        "columns": json.dumps(features, ensure_ascii=False),
        "classes": json.dumps(description["target"]["classes"], ensure_ascii=False),
        "group": json.dumps(description["group"], ensure_ascii=False),
        "time": json.dumps(description["time"], ensure_ascii=False),
        "missing_text": parts.missing_text,
    }
    if parts.initial_h is not None:
        metadata["initial_h"] = json.dumps(description["initial_h"])
    return metadata


def _listed(columns: Sequence[Any]) -> str:
    """Their names on one line; of many the first ones, as all of them stand in the metadata."""
    names = [one_line(c.label) for c in columns]
    return ", ".join(names if len(names) <= 12 else [*names[:10], f"and {len(names) - 10} more"])


def _about_tokens(parts: Parts) -> str:
    tokens = parts.preprocessing.tokens
    words = [c for c in tokens if c.kind == "words"]
    about = f"{_listed(tokens)}; {parts.missing_text!r} where a value is missing"
    return about + (f"; in lower case: {_listed(words)}" if words else "")


def _rounded(parts: Parts) -> list[str]:
    """A line for the columns of which a program without float64 loses something, as OpenVINO does."""
    lost = {c.name: abs(c.mean) * 2**-24 / c.std for c in parts.preprocessing.numbers}
    worst = {name: share for name, share in lost.items() if share > 1e-5}
    if not worst:
        return []
    columns = ", ".join(f"{one_line(name)} ({share:.0e})" for name, share in worst.items())
    return [
        "OpenVINO computes in float32, and values far from 0 beside their spread lose digits there: in standard "
        f"deviations, {columns}. ONNX Runtime loses nothing."
    ]


def _standardised(graph: Graph, parts: Parts, codes: bool) -> str:
    """float32 [B, T, F + masks]: (x - mean) / std, 0 where missing, and then the masks."""
    columns = parts.preprocessing.numbers
    mean = graph.constant("numbers/mean", np.array([c.mean for c in columns]))
    std = graph.constant("numbers/std", np.array([c.std for c in columns]))
    # In float64 up to here: of 1e6 + 50 float32 keeps a sixteenth, which a small std would blow up.
    scaled = graph.add("Div", "numbers/scaled", graph.add("Sub", "numbers/centred", "numbers", mean), std)
    scaled = graph.cast("numbers/float32", scaled, np.float32)
    infinite = graph.add("IsInf", "numbers/infinite", scaled)
    missing = graph.add("Or", "numbers/missing", graph.add("IsNaN", "numbers/nan", scaled), infinite)
    if codes:  # OpenVINO, which such files are for, lets infinities in as the largest float32
        largest = graph.constant("numbers/largest", np.array(np.finfo(np.float32).max, np.float64))
        clipped = graph.add("Equal", "numbers/clipped", graph.add("Abs", "numbers/size", "numbers"), largest)
        missing = graph.add("Or", "numbers/missing_or_clipped", missing, clipped)
    zero = graph.constant("zero", np.array(0, np.float32))
    filled = graph.add("Where", "numbers/standardised", missing, zero, scaled)
    masked = np.flatnonzero([c.mask for c in columns])
    if not len(masked):
        return filled
    mask = missing
    if len(masked) < len(columns):
        which = graph.constant("numbers/with_mask", masked.astype(np.int64))
        mask = graph.add("Gather", "numbers/masked", missing, which, axis=2)
    return graph.add("Concat", "numbers/encoded", filled, graph.cast("numbers/mask", mask, np.float32), axis=2)


def _vectors(graph: Graph, parts: Parts, k: int, codes: bool, missing_text: str) -> str:
    """float32 [B, T, dim], the vectors of one token column."""
    column = parts.preprocessing.tokens[k]
    name = f"tokens/{k}_{column.name}"
    which = graph.constant(f"{name}/column", np.array(k, np.int64))
    code = graph.add("Gather", f"{name}/{'code' if codes else 'text'}", "codes" if codes else "tokens", which, axis=2)
    if codes:  # those of no entry are unknown, as in C
        zero, size = (graph.constant(f"codes/{n}", np.array(n, np.int64)) for n in (0, column.size))
        below, beyond = graph.add("Less", f"{name}/below", code, zero), graph.add("Less", f"{name}/inside", code, size)
        known_code = graph.add("And", f"{name}/known", graph.add("Not", f"{name}/not_below", below), beyond)
        code = graph.add("Where", f"{name}/code_or_unknown", known_code, code, zero)
    else:
        known = {missing_text: 0} | {entry: code for code, entry in enumerate(column.vocabulary, 1)}
        code = graph.add(
            "LabelEncoder",
            f"{name}/code",
            code,
            domain="ai.onnx.ml",
            keys_strings=list(known),
            values_int64s=list(known.values()),
            default_int64=0,
        )
    table = graph.constant(f"{name}/embedding", parts.embeddings[k])
    return graph.add("Gather", f"{name}/vector", table, code, axis=0)


def _pooled(graph: Graph, parts: Parts, output: str, h_n: str) -> str:
    """[B, poolings*D*H] of the output [B, T, D*H] over each sequence's own steps."""
    spec = parts.spec
    inside = _inside(graph, output) if {*spec.poolings} & {"mean", "max"} else ""
    pooled = [_pooled_by(graph, spec, name, output, h_n, inside) for name in spec.poolings]
    return pooled[0] if len(pooled) == 1 else graph.add("Concat", "pool/joined", *pooled, axis=1)


def _inside(graph: Graph, output: str) -> str:
    """[B, T, 1]: False where padded."""
    zero, one = (graph.constant(f"pool/{n}", np.array(n, np.int64)) for n in (0, 1))
    time = graph.add("Gather", "pool/T", graph.add("Shape", "pool/sizes", output), one, axis=0)
    steps = graph.add("Range", "pool/steps", zero, time, one)
    ends = graph.add("Unsqueeze", "pool/ends", "lengths", graph.constant("pool/axes_1_2", np.array([1, 2], np.int64)))
    steps = graph.add("Unsqueeze", "pool/steps_column", steps, graph.constant("pool/axis_1", np.array([1], np.int64)))
    return graph.add("Less", "pool/inside", steps, ends)


def _pooled_by(graph: Graph, spec: ModelSpec, pooling: str, output: str, h_n: str, inside: str) -> str:
    D = spec.directions
    if pooling == "last":  # the last layer's last states: backwards that is the one at the first step
        last = h_n
        if spec.num_layers > 1:
            rows = np.arange((spec.num_layers - 1) * D, spec.num_layers * D)
            last = graph.add("Gather", "pool/last_layer", h_n, graph.constant("pool/rows", rows), axis=0)
        last = graph.add("Transpose", "pool/by_sequence", last, perm=[1, 0, 2])
        shape = graph.constant("pool/shape", np.array([0, D * spec.hidden_size], np.int64))  # 0: B as it is
        return graph.add("Reshape", "pool/last", last, shape)
    if pooling == "max":
        lowest = graph.constant("pool/lowest", np.array(-np.inf, np.float32))
        kept = graph.add("Where", "pool/kept_or_lowest", inside, output, lowest)
        return graph.add("ReduceMax", "pool/max", kept, axes=[1], keepdims=0)
    kept = graph.add("Where", "pool/kept", inside, output, graph.constant("zero", np.array(0, np.float32)))
    # In float64: of 300 000 steps ONNX Runtime's sum in float32 is off by 2e-4 of the mean.
    kept = graph.cast("pool/float64", kept, np.float64)
    total = graph.add("ReduceSum", "pool/sum", kept, graph.constant("pool/axis_1", np.array([1], np.int64)), keepdims=0)
    count = graph.add("Unsqueeze", "pool/lengths", "lengths", graph.constant("pool/axis_1", np.array([1], np.int64)))
    mean = graph.add("Div", "pool/mean", total, graph.cast("pool/count", count, np.float64))
    return graph.cast("pool/float32", mean, np.float32)


def _scores(graph: Graph, parts: Parts, output: str, numbers: str) -> str:
    """float32 [B, T, K, outputs], or [B, 1, outputs] a sequence."""
    spec = parts.spec
    weight = graph.constant("head/weight", np.ascontiguousarray(parts.head_weight.T))
    bias = graph.constant("head/bias", parts.head_bias)
    flat = graph.add("Add", "head/flat", graph.add("MatMul", "head/product", output, weight), bias)
    leading = [0, 0] if spec.per == "step" else [0]  # 0: as it is
    shape = graph.constant("head/shape", np.array([*leading, spec.ahead, spec.outputs], np.int64))
    if spec.residual is None:
        return graph.add("Reshape", "scores", flat, shape)
    change = graph.add("Reshape", "head/change", flat, shape)
    which = graph.constant("head/starts_from", np.array(spec.residual, np.int64))
    start = graph.add("Gather", "head/now", numbers, which, axis=2)
    axis = graph.constant("head/axis_2", np.array([2], np.int64))
    return graph.add("Add", "scores", change, graph.add("Unsqueeze", "head/start", start, axis))


# Each adds what the scores say, prediction and probabilities, and returns in words what is predicted.


def _number(graph: Graph, parts: Parts, scores: str, codes: bool) -> str:
    target = parts.preprocessing.target
    means, stds = (graph.constant(f"target/{n}", np.array(getattr(target, n))) for n in ("means", "stds"))
    wide = graph.add("Mul", "target/scaled", graph.cast("target/float64", scores, np.float64), stds)
    graph.add("Add", "prediction", wide, means)
    return f"{_names(parts)}, in the units of the table"


def _labels(graph: Graph, parts: Parts, scores: str, codes: bool) -> str:
    target = parts.preprocessing.target
    cuts = graph.constant("target/cuts", np.array(target.cuts if target.thresholds else 0, np.float32))
    graph.cast("prediction", graph.add("Greater", "target/yes", scores, cuts), np.int64)
    graph.add("Sigmoid", "probabilities", scores)
    return f"{_names(parts)}, 0 or 1 each"


def _class(graph: Graph, parts: Parts, scores: str, codes: bool) -> str:
    target = parts.preprocessing.target
    about = _names(parts)
    if codes:
        graph.add("ArgMax", "prediction", scores, axis=-1, keepdims=0)
        about = f"the number of the class of {about}, from 0"
    else:
        dtype = class_dtype(target.classes)
        if dtype == "int64":
            _check_classes(target)
        classes = graph.constant("target/classes", np.array(target.classes, object if dtype == "text" else dtype))
        best = graph.add("ArgMax", "target/best", scores, axis=-1, keepdims=0)
        graph.add("Gather", "prediction", classes, best, axis=0)
    graph.add("Softmax", "probabilities", scores, axis=-1)
    return about


PREDICTIONS: dict[str, Callable[[Graph, Parts, str, bool], str]] = {
    "class": _class,
    "labels": _labels,
    "number": _number,
}


def _names(parts: Parts) -> str:
    return ", ".join(map(one_line, parts.preprocessing.target.names))


def _check_classes(target: Any) -> None:
    large = [value for value in target.classes if not -(2**63) <= value < 2**63]
    if large:
        raise SettingsError(
            f"to='onnx': the classes of {', '.join(target.names)} hold {', '.join(map(str, large[:3]))}, beyond the whole numbers "
            "of 64 bits that the file gives. codes=True (--codes) gives the numbers of the classes in their place; or make "
            "text of them in the table and train again."
        )


def _checked(parts: Parts, data: bytes) -> str:
    session = open_session(data)
    if isinstance(session, str):
        return session
    probe = batch(parts)
    return checked(parts, probe, session.runtime, session.run("scores", probe.inputs(parts.missing_text)))
