"""A run, or a bare layer, as an ONNX file: from the raw columns of a table to predictions in words.

The recurrence is ONNX's own operator, `GRU`, as far as it reaches; layer norm, zoneout and float64, which it has not,
become a `Scan` of elementary operators. Operators: https://onnx.ai/onnx/operators/ (GRU, Scan, LayerNormalization) and
https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html for the vocabularies.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidegate import __version__, convert
from tidegate.errors import SettingsError, TidegateError, package_missing
from tidegate.export.parts import FORMAT, Exported, Parts, array, check_beside, one_line
from tidegate.files import replacing_all
from tidegate.nn import GRU
from tidegate.ops.gru.equations import NORM_EPSILON

OPSET = 17  # the lowest with LayerNormalization; all else here is older. ONNX Runtime reads it since 1.12, of 2022.
IR_VERSION = 8  # the one that came with opset 17: newer ones only shut out older runtimes
ML_OPSET = 2  # the lowest whose LabelEncoder turns text into numbers
LARGEST = 2**31 - 1  # bytes that protobuf puts into one file
ALLOWED = (
    1e-3  # difference to Tidegate's at which a file is not written: rounding alone was at most 5e-6 in all our tests
)

TEXT = np.dtype(object)


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
    `missing_text` (what to give for a missing token), `version`.

    Where ONNX Runtime is installed the file is run beside the model before it is written.

    Raises SettingsError for weights beyond what one file can hold, and where a JSON file that is not ours has the name of the
    one beside it; PackageMissingError without the package onnx; TidegateError where ONNX Runtime computes something else;
    DiskError where nothing can be written. Nothing is written then, and what was there before is as it was.
    """
    beside = path.with_suffix(".json") if codes else None
    if beside is not None:
        check_beside(beside, f'"format": "{FORMAT}"')
    graph = _Graph()
    pre, spec = parts.preprocessing, parts.spec
    layers, H = spec.states, spec.hidden_size
    missing_text = parts.missing_text

    encoded, numbers = [], ""
    if pre.numbers:
        about = f"{_listed(pre.numbers)}; in the units of the table, NaN where a value is missing"
        graph.input("numbers", np.float64, ["B", "T", len(pre.numbers)], about)
        numbers = _standardised(graph, parts, codes)
        encoded.append(numbers)
    if pre.tokens:
        if codes:
            about = f"{_listed(pre.tokens)}; i + 1 for entry i of the vocabulary, 0 for what is unknown or missing"
            graph.input("codes", np.int64, ["B", "T", len(pre.tokens)], about)
        else:
            words = [c for c in pre.tokens if c.kind == "words"]
            about = f"{_listed(pre.tokens)}; {missing_text!r} where a value is missing"
            about += f"; in lower case: {_listed(words)}" if words else ""
            graph.input("tokens", TEXT, ["B", "T", len(pre.tokens)], about)
        encoded += [_vectors(graph, parts, k, codes, missing_text) for k in range(len(pre.tokens))]
    graph.input("lengths", np.int64, ["B"], "steps of each sequence; what comes after them is padding")
    graph.input("h_0", np.float32, [layers, "B", H], _start(spec.bidirectional))

    x = encoded[0] if len(encoded) == 1 else graph.add("Concat", "encoded", *encoded, axis=2)
    x = graph.add("Transpose", "encoded/by_step", x, perm=[1, 0, 2])  # the operator wants time first
    output, h_n = _recur(graph, parts.core, x, "h_0")
    output = graph.add("Transpose", "gru/by_sequence", output, perm=[1, 0, 2])
    if spec.per == "sequence":
        output = _pooled(graph, parts, output, h_n)
    scores = _scores(graph, parts, output, numbers)
    shape = _predict(graph, parts, scores, codes)
    graph.output("scores", np.float32, shape, "what the head gives")
    graph.output("h_n", np.float32, [layers, "B", H], "the state after each sequence's last step")

    description = parts.description
    target = description["target"]
    features = [c["name"] for c in (*description["numbers"], *description["tokens"])]
    metadata = {
        "tidegate": json.dumps(description, ensure_ascii=False),
        "version": __version__,
        "columns": json.dumps(features, ensure_ascii=False),
        "classes": json.dumps(target["classes"], ensure_ascii=False),
        "group": json.dumps(list(pre.group), ensure_ascii=False),
        "time": json.dumps(pre.time, ensure_ascii=False),
        "missing_text": missing_text,
    }
    what = f"{', '.join(target['names'])} ({target['task']}) from {', '.join(features)}"
    data = graph.finish(f"A GRU that predicts {what}, trained with Tidegate.", metadata)
    notes = [*graph.notes(), _checked(parts, data, codes, missing_text)]
    if codes:
        notes += _rounded(parts)
    _place(path, data, beside, parts.to_json())
    return Exported(path, [] if beside is None else [beside], notes)


def write_layer(layer: GRU, path: str | Path) -> Exported:
    """Write a `tidegate.GRU` alone, as it computes in evaluation, all its variants included.

    Inputs: x [B, T, I], or [T, B, I], as the layer's batch_first has it; h_0 [layers*D, B, H]; lengths int64 [B]. Outputs:
    output, laid out like x with D*H features, 0 past a sequence's length; h_n [layers*D, B, H], the state after each
    sequence's last step. B and T are open, but at least 1 (at 0 ONNX Runtime's GRU ends the whole process); numbers float32, or float64 as the layer is.

    Zeros for h_0 stand for no state; with learn_initial_state it is what the metadata have as `initial_h`, JSON
    [layers*D, H], repeated for each sequence. (A default value in the file would be simpler, but makes ONNX Runtime warn
    and OpenVINO take it for a constant.)

    A layer with layer_norm or zoneout, or in float64, becomes a Scan, as ONNX's GRU is none of that; the rest is the
    operator GRU.

    Raises SettingsError for a layer in another dtype, TypeError for anything but a `tidegate.GRU`, and as `write` does.
    """
    if not isinstance(layer, GRU):
        raise TypeError(f"write_layer: layer is of type {type(layer).__name__}, expected a tidegate.GRU.")
    path = Path(path)
    dtype = str(layer.all_weights[0][0].dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise SettingsError(
            f"write_layer: the layer is {dtype}, expected float32 or float64. Use copy.deepcopy(layer).float()."
        )
    graph = _Graph()
    D = 2 if layer.bidirectional else 1
    layers, H, real = layer.num_layers * D, layer.hidden_size, np.dtype(dtype)
    axes = ["B", "T"] if layer.batch_first else ["T", "B"]
    graph.input("x", real, [*axes, layer.input_size])
    graph.input("h_0", real, [layers, "B", H], _start(layer.bidirectional))
    graph.input("lengths", np.int64, ["B"], "steps of each sequence; what comes after them is padding")
    x = graph.add("Transpose", "x/by_step", "x", perm=[1, 0, 2]) if layer.batch_first else "x"
    output, _ = _recur(graph, layer, x, "h_0")
    zero, one = (graph.constant(f"gru/{n}", np.array(n, np.int64)) for n in (0, 1))
    time = graph.add("Gather", "output/T", graph.add("Shape", "output/sizes", output), zero, axis=0)
    axes_1_2 = graph.constant("output/axes_1_2", np.array([1, 2], np.int64))
    steps = graph.add("Unsqueeze", "output/steps", graph.add("Range", "output/times", zero, time, one), axes_1_2)
    ends = graph.add("Unsqueeze", "output/ends", "lengths", graph.constant("gru/axis_1", np.array([1], np.int64)))
    inside = graph.add("Less", "output/inside", steps, ends)  # [T, B, 1]
    nothing = graph.constant("output/nothing", np.array(0, real))
    masked = graph.add("Where", "output/by_step" if layer.batch_first else "output", inside, output, nothing)
    if layer.batch_first:
        graph.add("Transpose", "output", masked, perm=[1, 0, 2])
    graph.output("output", real, [*axes, D * H], "the last layer's state at each step, 0 past a sequence's length")
    graph.output("h_n", real, [layers, "B", H], "the state after each sequence's last step")
    metadata = {"tidegate_layer": repr(layer), "version": __version__}
    if layer.learn_initial_state:
        metadata["initial_h"] = json.dumps(array(layer.initial_h).tolist())
    data = graph.finish(f"{layer!r}, made with Tidegate.", metadata)
    notes = [*graph.notes(), _layer_checked(layer, data, real)]
    _place(path, data)
    return Exported(path, [], notes)


# ------------------------------------------------------------------------------------------------ a run's ends


def _start(bidirectional: bool) -> str:
    # A sequence that is read in both directions has no later chunk to hand a state on to.
    return "the state to begin with: zeros" + ("" if bidirectional else ", or an earlier h_n")


def _listed(columns: Sequence[Any]) -> str:
    """Their names on one line; of many the first ones, as all of them stand in the metadata."""
    names = [one_line(c.name) for c in columns]
    return ", ".join(names if len(names) <= 12 else [*names[:10], f"and {len(names) - 10} more"])


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


def _standardised(graph: _Graph, parts: Parts, codes: bool) -> str:
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


def _vectors(graph: _Graph, parts: Parts, k: int, codes: bool, missing_text: str) -> str:
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


def _pooled(graph: _Graph, parts: Parts, output: str, h_n: str) -> str:
    """[B, D*H] of the output [B, T, D*H] over each sequence's own steps."""
    spec = parts.spec
    D = spec.directions
    if spec.pooling == "last":  # the last layer's last states: backwards that is the one at the first step
        last = h_n
        if spec.num_layers > 1:
            rows = np.arange((spec.num_layers - 1) * D, spec.num_layers * D)
            last = graph.add("Gather", "pool/last_layer", h_n, graph.constant("pool/rows", rows), axis=0)
        last = graph.add("Transpose", "pool/by_sequence", last, perm=[1, 0, 2])
        shape = graph.constant("pool/shape", np.array([0, D * spec.hidden_size], np.int64))  # 0: B as it is
        return graph.add("Reshape", "pool/last", last, shape)
    zero, one = (graph.constant(f"pool/{n}", np.array(n, np.int64)) for n in (0, 1))
    time = graph.add("Gather", "pool/T", graph.add("Shape", "pool/sizes", output), one, axis=0)
    steps = graph.add("Range", "pool/steps", zero, time, one)
    ends = graph.add("Unsqueeze", "pool/ends", "lengths", graph.constant("pool/axes_1_2", np.array([1, 2], np.int64)))
    steps = graph.add("Unsqueeze", "pool/steps_column", steps, graph.constant("pool/axis_1", np.array([1], np.int64)))
    inside = graph.add("Less", "pool/inside", steps, ends)  # [B, T, 1]
    if spec.pooling == "max":
        lowest = graph.constant("pool/lowest", np.array(-np.inf, np.float32))
        kept = graph.add("Where", "pool/kept", inside, output, lowest)
        return graph.add("ReduceMax", "pool/max", kept, axes=[1], keepdims=0)
    kept = graph.add("Where", "pool/kept", inside, output, graph.constant("zero", np.array(0, np.float32)))
    # In float64: of 300 000 steps ONNX Runtime's sum in float32 is off by 2e-4 of the mean.
    kept = graph.cast("pool/float64", kept, np.float64)
    total = graph.add("ReduceSum", "pool/sum", kept, graph.constant("pool/axis_1", np.array([1], np.int64)), keepdims=0)
    count = graph.add("Unsqueeze", "pool/lengths", "lengths", graph.constant("pool/axis_1", np.array([1], np.int64)))
    mean = graph.add("Div", "pool/mean", total, graph.cast("pool/count", count, np.float64))
    return graph.cast("pool/float32", mean, np.float32)


def _scores(graph: _Graph, parts: Parts, output: str, numbers: str) -> str:
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


def _predict(graph: _Graph, parts: Parts, scores: str, codes: bool) -> list[Any]:
    """Add prediction and probabilities; return the shape of the scores."""
    spec, target = parts.spec, parts.preprocessing.target
    leading: list[Any] = ["B", "T"] if spec.per == "step" else ["B"]
    shape = [*leading, spec.ahead, spec.outputs]
    what = ", ".join(map(one_line, target.names))
    if target.task == "number":
        means, stds = (graph.constant(f"target/{n}", np.array(getattr(target, n))) for n in ("means", "stds"))
        wide = graph.add("Mul", "target/scaled", graph.cast("target/float64", scores, np.float64), stds)
        graph.add("Add", "prediction", wide, means)
        graph.output("prediction", np.float64, shape, f"{what}, in the units of the table")
        return shape
    if target.task == "labels":
        zero = graph.constant("zero", np.array(0, np.float32))
        graph.cast("prediction", graph.add("Greater", "target/yes", scores, zero), np.int64)
        graph.output("prediction", np.int64, shape, f"{what}, 0 or 1 each")
        graph.add("Sigmoid", "probabilities", scores)
    else:
        if codes:
            graph.add("ArgMax", "prediction", scores, axis=-1, keepdims=0)
            graph.output("prediction", np.int64, shape[:-1], f"the number of the class of {what}, from 0")
        else:
            kind = type(target.classes[0])
            dtype = TEXT if kind is str else np.dtype(np.bool_) if kind is bool else np.dtype(np.int64)
            if dtype == np.int64:
                _check_classes(target)
            classes = graph.constant("target/classes", np.array(target.classes, dtype))
            best = graph.add("ArgMax", "target/best", scores, axis=-1, keepdims=0)
            graph.add("Gather", "prediction", classes, best, axis=0)
            graph.output("prediction", dtype, shape[:-1], what)
        graph.add("Softmax", "probabilities", scores, axis=-1)
    graph.output("probabilities", np.float32, shape)
    return shape


def _check_classes(target: Any) -> None:
    large = [value for value in target.classes if not -(2**63) <= value < 2**63]
    if large:
        raise SettingsError(
            f"to='onnx': the classes of {', '.join(target.names)} hold {', '.join(map(str, large[:3]))}, beyond the whole numbers "
            "of 64 bits that the file gives. codes=True (--codes) gives the numbers of the classes in their place; or make "
            "text of them in the table and train again."
        )


# ------------------------------------------------------------------------------------------------ the recurrence


def _recur(graph: _Graph, core: GRU, x: str, h_0: str) -> tuple[str, str]:
    """The whole stack on x [T, B, I] from h_0 [layers*D, B, H]: output [T, B, D*H], and h_n.

    The operator's own input for lengths is left empty: OpenVINO pays no heed to it where shapes are open (its pull request
    10710), and ONNX does not say what becomes of the state of a sequence with no steps. In place of it each direction
    runs forwards over all T steps, the second one over sequences that are turned round within their lengths, so that
    padding always comes last; and the state after n steps is entry n of [h_0, h_1 ... h_T].
    """
    D = 2 if core.bidirectional else 1
    plain = not core.layer_norm and not core.zoneout and core.all_weights[0][0].dtype == torch.float32
    run = _operator if plain else _scan
    runs = [[array(w) for w in weights] for weights in core.all_weights]
    axis_1 = graph.constant("gru/axis_1", np.array([1], np.int64))
    zero, one = (graph.constant(f"gru/{n}", np.array(n, np.int64)) for n in (0, 1))
    # [B, 2]: which entry of [T + 1, B, H] is the last state of each sequence
    batch = graph.add("Squeeze", "gru/B", graph.add("Shape", "gru/batch", "lengths"))
    rows = graph.add("Unsqueeze", "gru/row", graph.add("Range", "gru/rows", zero, batch, one), axis_1)
    at = graph.add("Concat", "gru/last", graph.add("Unsqueeze", "gru/steps", "lengths", axis_1), rows, axis=1)

    starts = [h_0]
    if len(runs) > 1:
        each = graph.constant("gru/each", np.ones(len(runs), np.int64))
        starts = graph.add_several("Split", [f"gru/{_place_of(k, D)}/h_0" for k in range(len(runs))], h_0, each, axis=0)
    ends = []
    for k in range(core.num_layers):
        outputs = []
        for d in range(D):
            me = f"gru/{_place_of(k * D + d, D)}"
            turned = x if d == 0 else _turned(graph, f"{me}/turned", x)
            states = run(graph, core, me, runs[k * D + d], turned, starts[k * D + d])
            all_states = graph.add("Concat", f"{me}/states", starts[k * D + d], states, axis=0)
            h_n = graph.add("GatherND", f"{me}/last_state", all_states, at)
            end = f"{me}/h_n" if len(runs) > 1 else "h_n"
            ends.append(graph.add("Unsqueeze", end, h_n, graph.constant("gru/axis_0", np.array([0], np.int64))))
            outputs.append(states if d == 0 else _turned(graph, f"{me}/output", states))
        x = outputs[0] if D == 1 else graph.add("Concat", f"gru/{k}/output", *outputs, axis=2)
    return x, ends[0] if len(ends) == 1 else graph.add("Concat", "h_n", *ends, axis=0)


def _place_of(run: int, D: int) -> str:
    """The name of a layer and direction."""
    return f"{run // D}" if D == 1 else f"{run // D}/{('forth', 'back')[run % D]}"


def _turned(graph: _Graph, name: str, x: str) -> str:
    return graph.add("ReverseSequence", name, x, "lengths", time_axis=0, batch_axis=1)


def _operator(graph: _Graph, core: GRU, me: str, weights: Sequence[np.ndarray], x: str, h_0: str) -> str:
    """All states [T, B, H] of one layer and direction, by ONNX's GRU."""
    gru = convert.layer_to_onnx([weights], reset=core.reset)
    W, R = graph.constant(f"{me}/W", gru.W), graph.constant(f"{me}/R", gru.R)
    B = "" if gru.B is None else graph.constant(f"{me}/B", gru.B)
    Y = graph.add("GRU", f"{me}/Y", x, W, R, B, "", h_0, **gru.attributes)
    return graph.add("Squeeze", f"{me}/steps", Y, graph.constant("gru/axis_1", np.array([1], np.int64)))


def _scan(graph: _Graph, core: GRU, me: str, weights: Sequence[np.ndarray], x: str, h_0: str) -> str:
    """The same by a Scan over the steps, from the equations in `tidegate.ops.gru.equations`."""
    H, real = core.hidden_size, weights[0].dtype
    w_ih, w_hh, *more = weights
    b_ih, b_hh = (more.pop(0), more.pop(0)) if core.bias else (None, None)
    g_ih, g_hh = more or (None, None)
    gates_x = _sums(graph, f"{me}/of_x", x, w_ih, b_ih, g_ih, H)  # [T, B, 3H]: it needs no state, so all steps at once

    body = _Graph(graph)
    h_prev, x_t = f"{me}/h_prev", f"{me}/gates_x"
    body.input(h_prev, real, ["B", H])
    body.input(x_t, real, ["B", 3 * H])
    sizes = graph.constant("gru/rz_n", np.array([2 * H, H], np.int64))
    x_rz, x_n = body.add_several("Split", [f"{me}/x_rz", f"{me}/x_n"], x_t, sizes, axis=-1)
    h_rz = _sum(body, f"{me}/h_rz", h_prev, *_rows(0, 2 * H, w_hh, b_hh, g_hh))
    rz = body.add("Sigmoid", f"{me}/rz", body.add("Add", f"{me}/sum_rz", x_rz, h_rz))
    halves = graph.constant("gru/r_z", np.array([H, H], np.int64))
    r, z = body.add_several("Split", [f"{me}/r", f"{me}/z"], rz, halves, axis=-1)
    of_n = _rows(2 * H, 3 * H, w_hh, b_hh, g_hh)
    if core.reset == "after":
        h_n = body.add("Mul", f"{me}/reset", r, _sum(body, f"{me}/h_n_of", h_prev, *of_n))
    else:
        h_n = _sum(body, f"{me}/h_n_of", body.add("Mul", f"{me}/reset", r, h_prev), *of_n)
    n = body.add("Tanh", f"{me}/n", body.add("Add", f"{me}/sum_n", x_n, h_n))
    one, keep = graph.constant("gru/unit", np.array(1, real)), z
    if core.zoneout:  # in evaluation every unit keeps the part p of its state in any case: z + p (1 - z)
        part = graph.constant("gru/zoneout", np.array(core.zoneout, real))
        zoned = body.add("Mul", f"{me}/zoned", part, body.add("Sub", f"{me}/not_z", one, z))
        keep = body.add("Add", f"{me}/keep", z, zoned)
    new = body.add("Mul", f"{me}/new", body.add("Sub", f"{me}/not_kept", one, keep), n)
    h_t = body.add("Add", f"{me}/h_t", new, body.add("Mul", f"{me}/old", keep, h_prev))
    body.output(h_t, real, ["B", H])
    body.output(body.add("Identity", f"{me}/of_step", h_t), real, ["B", H])

    start = graph.add("Squeeze", f"{me}/start", h_0, graph.constant("gru/axis_0", np.array([0], np.int64)))
    names = [f"{me}/end", f"{me}/steps"]
    return graph.add_several("Scan", names, start, gates_x, body=body.graph(me), num_scan_inputs=1)[1]


def _rows(first: int, end: int, *stacked: np.ndarray | None) -> list[np.ndarray | None]:
    return [None if v is None else v[first:end] for v in stacked]


def _sums(graph: _Graph, name: str, v: str, w: Any, b: Any, g: Any, H: int) -> str:
    """W v + b for all gates; with layer norm r and z are normalised together, and n by itself."""
    if g is None:
        return _sum(graph, name, v, w, b, None)
    parts = [
        _sum(graph, f"{name}_{gates}", v, *_rows(first, end, w, b, g))
        for gates, first, end in (("rz", 0, 2 * H), ("n", 2 * H, 3 * H))
    ]
    return graph.add("Concat", name, *parts, axis=-1)


def _sum(graph: _Graph, name: str, v: str, w: Any, b: Any, g: Any) -> str:
    """W v + b, or g * normalised(W v) + b."""
    product = graph.add("MatMul", f"{name}/product", v, graph.constant(f"{name}/W", np.ascontiguousarray(w.T)))
    bias = None if b is None else graph.constant(f"{name}/b", b)
    if g is not None:
        gain = graph.constant(f"{name}/gain", g)
        given = [product, gain] if bias is None else [product, gain, bias]
        return graph.add("LayerNormalization", name, *given, axis=-1, epsilon=NORM_EPSILON)
    return product if bias is None else graph.add("Add", name, product, bias)


# ------------------------------------------------------------------------------------------------ an ONNX graph


class _Graph:
    """What becomes a graph: nodes in order, constants, inputs and outputs. A value is its name.

    A graph inside another one (a Scan's) has its constants there, as all names are one space.
    """

    def __init__(self, outer: _Graph | None = None) -> None:
        self.onnx: Any = _package() if outer is None else outer.onnx
        self.root: _Graph = self if outer is None else outer.root
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, dtype: Any, axes: Sequence[Any], about: str = "") -> None:
        self.inputs.append(self._tensor(name, dtype, axes, about))

    def output(self, name: str, dtype: Any, axes: Sequence[Any], about: str = "") -> None:
        self.outputs.append(self._tensor(name, dtype, axes, about))

    def constant(self, name: str, value: np.ndarray) -> str:
        """The same name with the same value may come again."""
        known = self.root.constants.setdefault(name, value)
        assert known is value or (known.dtype == value.dtype and np.array_equal(known, value)), name
        return name

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        return self.add_several(op, [name], *inputs, **attributes)[0]

    def add_several(self, op: str, names: Sequence[str], *inputs: str, **attributes: Any) -> list[str]:
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), list(names), name=names[0], **attributes))
        return list(names)

    def cast(self, name: str, value: str, dtype: Any) -> str:
        return self.add("Cast", name, value, to=self._type(dtype))

    def graph(self, name: str, about: str = "") -> Any:
        make, constants = self.onnx.numpy_helper.from_array, self.constants
        return self.onnx.helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, [make(constants[n], n) for n in constants], about
        )

    def finish(self, about: str, metadata: dict[str, str]) -> bytes:
        """The file's bytes, checked. Raises SettingsError where they are too many for one file."""
        size = sum(value.nbytes for value in self.constants.values())
        too_large = SettingsError(
            f"The weights are {size / 2**30:.1f} GiB, and with its texts the file would have more than the 2 GiB that an "
            "ONNX file holds. Train with a smaller hidden_size, or smaller vocabularies."
        )
        if size > LARGEST:
            raise too_large
        helper = self.onnx.helper
        domains = {node.domain for node in self.nodes} | {""}
        versions = [helper.make_opsetid(domain, OPSET if not domain else ML_OPSET) for domain in sorted(domains)]
        model = helper.make_model(
            self.graph("tidegate", about),
            opset_imports=versions,
            ir_version=IR_VERSION,
            producer_name="tidegate",
            producer_version=__version__,
            doc_string=about,
        )
        helper.set_model_props(model, metadata)
        try:
            data: bytes = model.SerializeToString()
        except (ValueError, importlib.import_module("google.protobuf.message").EncodeError) as error:
            raise too_large from error
        if len(data) > LARGEST:
            raise too_large
        self.onnx.checker.check_model(data, full_check=True)
        return data

    def notes(self) -> list[str]:
        """What to feed and what comes, a line each."""
        return [
            f"{what} {self._line(value)}"
            for what, values in (("Input ", self.inputs), ("Output", self.outputs))
            for value in values
        ]

    def _line(self, value: Any) -> str:
        tensor = value.type.tensor_type
        kind = self.onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        kind = {"float": "float32", "double": "float64", "string": "text"}.get(kind, kind)
        axes = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
        about = f": {value.doc_string}" if value.doc_string else ""
        return f"{value.name:<13} {kind} [{axes}]{about}"

    def _type(self, dtype: Any) -> int:
        if dtype is TEXT:
            return int(self.onnx.TensorProto.STRING)
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _tensor(self, name: str, dtype: Any, axes: Sequence[Any], about: str) -> Any:
        return self.onnx.helper.make_tensor_value_info(name, self._type(dtype), list(axes), about)


def _package() -> Any:
    try:
        onnx = importlib.import_module("onnx")
        for part in ("checker", "helper", "numpy_helper"):
            importlib.import_module(f"onnx.{part}")
    except ModuleNotFoundError as error:
        raise package_missing("Writing ONNX files", [error.name or "onnx"], "onnx") from error
    return onnx


def _place(path: Path, data: bytes, beside: Path | None = None, text: str = "") -> None:
    """Both files, or neither."""
    with replacing_all([path] if beside is None else [beside, path]) as temporaries:
        temporaries[-1].write_bytes(data)
        if beside is not None:
            temporaries[0].write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------ looking at it


def _session(data: bytes) -> tuple[Any, str]:
    """A session of ONNX Runtime, or None and a line that says why there is none."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None, "Not checked: ONNX Runtime is not installed here (pip install onnxruntime)."
    name = f"ONNX Runtime {onnxruntime.__version__}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]), name
    except Exception as error:  # an old one, or one built for other processors: the file may serve elsewhere
        return None, f"Not checked: {name}, which is installed here, can't read it ({error})."


def _wrong(name: str, what: str) -> TidegateError:
    return TidegateError(
        f"Nothing was written: {name} ran the file on made-up sequences, and {what}. Try another version of it (pip install "
        "--upgrade onnxruntime); if it stays so, please report it, with what `tidegate doctor` says."
    )


def _run(session: Any, name: str, output: str, given: dict[str, Any]) -> np.ndarray:
    try:
        found: np.ndarray = session.run([output], given)[0]
    except Exception as error:  # ONNX Runtime's own kinds
        raise _wrong(name, f"stopped: {error}") from error
    return found


def _checked(parts: Parts, data: bytes, codes: bool, missing_text: str) -> str:
    """Run the file beside the model on sequences that are made up, and say how far apart they are."""
    session, name = _session(data)
    if session is None:
        return name
    pre, spec = parts.preprocessing, parts.spec
    rng = np.random.default_rng(0)
    lengths = np.array([7, 1, 4])
    B, T = len(lengths), 7
    means, stds = (np.array([getattr(c, key) for c in pre.numbers]) for key in ("mean", "std"))
    numbers = means + stds * rng.standard_normal((B, T, len(pre.numbers)))
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    code = np.stack([rng.integers(0, c.size, (B, T)) for c in pre.tokens] or [np.zeros((B, T, 0), np.int64)], -1)
    code = code.reshape(B, T, len(pre.tokens)).astype(np.int64)
    directions = spec.directions
    h_0 = rng.uniform(-1, 1, (spec.num_layers * directions, B, spec.hidden_size)).astype(np.float32)
    given: dict[str, Any] = {"lengths": lengths, "h_0": h_0}
    if pre.numbers:
        given["numbers"] = numbers
    if pre.tokens and codes:
        given["codes"] = code
    elif pre.tokens:
        texts = [(missing_text, *c.vocabulary) for c in pre.tokens]
        given["tokens"] = np.array(
            [[[t[c] for t, c in zip(texts, at, strict=True)] for at in row] for row in code], TEXT
        )
    found = _run(session, name, "scores", given)

    encoded = np.nan_to_num((numbers - means) / stds).astype(np.float32)
    mask = np.isnan(numbers[..., [k for k, c in enumerate(pre.numbers) if c.mask]]).astype(np.float32)
    encoded = np.concatenate([encoded, mask], axis=-1)
    model = copy.deepcopy(parts.run.model).cpu().eval()

    def scores(real: torch.dtype) -> np.ndarray:
        numbers_, codes_ = (torch.from_numpy(v).transpose(0, 1) for v in (encoded, code))
        state = torch.from_numpy(h_0).to(real)
        with torch.no_grad():
            got = model.to(real)(numbers_.to(real), codes_, torch.from_numpy(lengths), state)[0].numpy()
        return got if spec.per == "sequence" else got.swapaxes(0, 1)[np.arange(T) < lengths[:, None]]

    if spec.per == "step":
        found = found[np.arange(T) < lengths[:, None]]
    return _said(name, found, scores(torch.float32), scores(torch.float64))


def _layer_checked(layer: GRU, data: bytes, real: Any) -> str:
    session, name = _session(data)
    if session is None:
        return name
    rng = np.random.default_rng(0)
    B, T = 3, 7
    lengths = np.array([7, 0, 4])
    x = rng.standard_normal((B, T, layer.input_size) if layer.batch_first else (T, B, layer.input_size)).astype(real)
    runs = layer.num_layers * (2 if layer.bidirectional else 1)
    h_0 = rng.uniform(-1, 1, (runs, B, layer.hidden_size)).astype(real)
    found = _run(session, name, "output", {"x": x, "h_0": h_0, "lengths": lengths})
    ours = copy.deepcopy(layer).cpu().eval()

    def outputs(dtype: torch.dtype) -> np.ndarray:
        with torch.no_grad():
            given = [torch.from_numpy(v).to(dtype) for v in (x, h_0)]
            return ours.to(dtype)(*given, lengths=torch.from_numpy(lengths))[0].numpy()

    return _said(name, found, outputs(layer.all_weights[0][0].dtype), outputs(torch.float64), "outputs")


def _said(name: str, found: np.ndarray, expected: np.ndarray, exact: np.ndarray, what: str = "scores") -> str:
    """The difference in a sentence. exact: what is expected, from float64: where the model itself makes much of rounding, so
    may the file. Raises TidegateError for a file that computes something else."""
    if not np.isfinite(expected).all():
        raise SettingsError(
            f"On made-up sequences the {what} are NaN or infinite already in Tidegate. Look for such weights, and train again."
        )
    size = np.maximum(1, np.abs(expected))
    difference, rounding = (float((np.abs(other - expected) / size).max()) for other in (found, exact))
    if not difference <= max(ALLOWED, 20 * rounding):  # nor NaN
        raise _wrong(name, f"its {what} differ from Tidegate's by up to {difference:.1g}, more than {ALLOWED:g}")
    return f"Checked with {name}: on made-up sequences its {what} differ from Tidegate's by at most {difference:.1g}."
