"""A run as a `.keras` file of Keras' own layers and operations: no custom object, no Lambda, nothing of ours to import.

numbers -> (x - mean) / std in float64, masks ─┐
tokens  -> StringLookup -> Embedding ──────────┴─ GRU or Bidirectional(GRU), a layer each -> EinsumDense -> scores
lengths -> mask of the steps ───────────────────────┘
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tidegate import convert
from tidegate.export.contract import Value, contract
from tidegate.export.parts import DESCRIPTION, Exported, Parts, check_core, feed_initial_h, one_line
from tidegate.export.probe import Runtime, batch, checked, running
from tidegate.files import replacing
from tidegate.keras_models import import_keras


def write(parts: Parts, path: Path) -> Exported:
    """Write the run as a functional model of Keras 3 that runs on TensorFlow.

    What goes in and comes out, dicts both, is what `tidegate.export` says, text included, with one difference: **the states are
    batch first**, h_0 and h_n are [B, layers*D, H], as `predict` and `fit` cut all that goes in and comes out along its
    first axis. `numbers` and `tokens` are not there where the run has no such columns. prediction is the class itself (text as
    UTF-8 bytes, a whole number or a bool) [B, T, K] or [B, 1]; 0 or 1 for labels and a float64 in the table's units for
    numbers, [B, T, K, outputs] or [B, 1, outputs]; probabilities has the shape of scores.

    The file is loaded and run on TensorFlow beside the model before it is put in its place.

    Raises SettingsError for a core that `keras.layers.GRU` can't be, and where Keras runs on something else;
    PackageMissingError without Keras or TensorFlow; TidegateError where the file would give other numbers; DiskError; nothing is
    written then.
    """
    check_core(parts, "keras", "keras.layers.GRU")
    keras = import_keras("to='keras'", tensorflow=True)
    model = _model(keras, parts, convert.to_keras(parts.core))
    with replacing(path) as temporary, tempfile.TemporaryDirectory(prefix="tidegate-") as folder:
        whole = Path(folder) / "model.keras"  # Keras wants this ending, which a temporary name doesn't have
        model.save(whole)
        check = _checked(keras, parts, whole)
        with zipfile.ZipFile(whole, "a") as archive:
            archive.writestr(DESCRIPTION, parts.to_json())
        shutil.copyfile(whole, temporary)
    notes = [
        f"keras.saving.load_model({path.name!r}) takes {', '.join(model.input)}; h_0 and h_n are [B, layers*D, H]."
    ]
    words = [c.name for c in parts.preprocessing.tokens if c.kind == "words"]
    if words:
        notes.append(f"Words ({', '.join(map(one_line, words))}) are compared as they come: give them in lower case.")
    empty = [c for c in parts.preprocessing.tokens if "" in c.vocabulary]
    if empty:
        missing = ", ".join(f"{_unlike(c.vocabulary)!r} in {one_line(c.name)}" for c in empty)
        notes.append(f"The empty text is a value of its own in some columns. Give a missing one as {missing}.")
    notes += [*feed_initial_h(parts, DESCRIPTION), check]
    return Exported(path, notes=notes)


def _checked(keras: Any, parts: Parts, file: Path) -> str:
    tensorflow = importlib.import_module("tensorflow")
    runtime = Runtime(f"Keras {keras.__version__} on TensorFlow {tensorflow.__version__}", "keras tensorflow")
    probe = batch(parts)
    every = probe.inputs(parts.missing_text)
    every["h_0"] = every["h_0"].swapaxes(0, 1)
    with running(runtime):
        model = keras.saving.load_model(file)
        scores = model({name: tensorflow.constant(every[name]) for name in model.input})["scores"].numpy()
    return checked(parts, probe, runtime, scores)


def _model(keras: Any, parts: Parts, weights: list[list[np.ndarray]]) -> Any:
    layers, ops, spec, pre = keras.layers, keras.ops, parts.spec, parts.preprocessing
    D = spec.directions
    K = spec.ahead
    # All in float32 whatever policy the user has set for models of their own.
    plain = {"dtype": "float32"}

    agreed = contract(spec, pre, states_batch_first=True)
    inputs = {name: _input(keras, name, value) for name, value in agreed.inputs.items()}
    lengths, h_0 = inputs["lengths"], inputs["h_0"]

    encoded = []
    if pre.numbers:
        encoded.append(_encode(ops, inputs["numbers"], pre.numbers))
    for k, (column, entries) in enumerate(zip(pre.tokens, parts.embeddings, strict=True)):
        vocabulary = column.vocabulary
        if not vocabulary:  # which Keras can't have: a word then that reads like all others
            vocabulary, entries = ("",), np.repeat(entries, 2, axis=0)
        codes = _lookup(layers, vocabulary, num_oov_indices=1, name=f"codes_{k}")(inputs["tokens"][..., k])
        embedding = layers.Embedding(*entries.shape, name=f"embedding_{k}", **plain)
        encoded.append(embedding(codes))
        embedding.set_weights([entries])
    x = encoded[0] if len(encoded) == 1 else ops.concatenate(encoded, axis=-1)  # [B, T, E]
    # The number of steps is known only when the model runs, and to count them is what can be saved.
    steps = ops.cumsum(ops.ones_like(x[..., 0], dtype="int64"), axis=1)  # [B, T]: 1, 2, ...
    mask = steps <= lengths[:, None]

    below, h_n = x, []
    for k, given in enumerate(weights):
        gru = layers.GRU(
            spec.hidden_size,
            use_bias=parts.core.bias,
            reset_after=parts.core.reset == "after",
            return_sequences=True,
            return_state=True,
            name=f"gru_{k}",
            **plain,
        )
        if D == 2:
            gru = layers.Bidirectional(gru, name=f"gru_{k}", **plain)
        states = [h_0[:, run] for run in range(k * D, k * D + D)]
        # With the mask a state stays as it is beyond the last step, and the second direction begins at it.
        below, *last = gru(below, initial_state=states if D == 2 else states[0], mask=mask)
        gru.set_weights(given)
        h_n += last

    if spec.per == "sequence":
        pooled = [_pool(ops, pooling, below, h_n[-D:], mask, lengths) for pooling in spec.poolings]
        read = pooled[0] if len(pooled) == 1 else ops.concatenate(pooled, axis=-1)
        head = layers.EinsumDense("bh,hko->bko", (K, spec.outputs), bias_axes="ko", name="head", **plain)
    else:
        # Beyond the last step zeros; and an operation, unlike the head, takes off Keras' mask without a warning.
        read = ops.where(mask[..., None], below, 0.0)
        head = layers.EinsumDense("bth,hko->btko", (None, K, spec.outputs), bias_axes="ko", name="head", **plain)
    scores = head(read)
    head.set_weights(
        [
            np.ascontiguousarray(parts.head_weight.T).reshape(-1, K, spec.outputs),
            parts.head_bias.reshape(K, spec.outputs),
        ]
    )
    if spec.residual is not None:
        # The numbers come first in x.
        scores = scores + ops.expand_dims(ops.take(x, np.array(spec.residual), axis=-1), axis=-2)
    outputs = MEANINGS[pre.target.task](layers, ops, pre.target, scores)
    return keras.Model(inputs, {**outputs, "scores": scores, "h_n": ops.stack(h_n, axis=1)}, name="tidegate")


def _input(keras: Any, name: str, value: Value) -> Any:
    dtype = "string" if value.dtype == "text" else value.dtype
    return keras.Input([None if axis == "T" else axis for axis in value.axes[1:]], dtype=dtype, name=name)


def _encode(ops: Any, numbers: Any, columns: Any) -> Any:
    """numbers [B, T, F] in the table's units -> [B, T, F + masks]."""
    values = (numbers - np.array([c.mean for c in columns])) / np.array([c.std for c in columns])
    # In float64 up to here: of 1 000 050 - 1 000 000 a float32 would leave three digits.
    values = ops.cast(values, "float32")
    there = ops.isfinite(values)
    values = ops.where(there, values, 0.0)
    masked = [k for k, c in enumerate(columns) if c.mask]
    if not masked:
        return values
    missing = ops.cast(ops.logical_not(ops.take(there, np.array(masked), axis=-1)), "float32")
    return ops.concatenate([values, missing], axis=-1)


def _pool(ops: Any, pooling: str, output: Any, last: list[Any], mask: Any, lengths: Any) -> Any:
    """output [B, T, D*H], last: the layer's states [B, H] of each direction -> [B, D*H]."""
    if pooling == "last":
        return last[0] if len(last) == 1 else ops.concatenate(last, axis=-1)
    inside = mask[..., None]
    if pooling == "mean":
        return ops.sum(ops.where(inside, output, 0.0), axis=1) / ops.cast(lengths, "float32")[:, None]
    # No output is so small, and unlike infinity it is a number in JSON too.
    return ops.max(ops.where(inside, output, float(np.finfo(np.float32).min)), axis=1)


# What the scores say.


def _class(layers: Any, ops: Any, target: Any, scores: Any) -> dict[str, Any]:
    best = ops.argmax(scores, axis=-1)
    if isinstance(target.classes[0], str):
        names = _lookup(layers, target.classes, num_oov_indices=0, invert=True, name="classes")
        prediction = names(best)
    else:
        prediction = ops.take(np.array(target.classes), best, axis=0)
    return {"prediction": prediction, "probabilities": ops.softmax(scores, axis=-1)}


def _labels(layers: Any, ops: Any, target: Any, scores: Any) -> dict[str, Any]:
    return {
        "prediction": ops.cast(scores > np.array(target.cuts, np.float32), "int64"),
        "probabilities": ops.sigmoid(scores),
    }


def _number(layers: Any, ops: Any, target: Any, scores: Any) -> dict[str, Any]:
    return {"prediction": ops.cast(scores, "float64") * np.array(target.stds) + np.array(target.means)}


MEANINGS: dict[str, Callable[..., dict[str, Any]]] = {"class": _class, "labels": _labels, "number": _number}


def _lookup(layers: Any, vocabulary: Iterable[str], **options: Any) -> Any:
    # Given here the vocabulary is saved in the model's JSON; else it would be a file of lines, and an entry may hold "\n".
    vocabulary = list(vocabulary)
    return layers.StringLookup(vocabulary=vocabulary, mask_token=None, oov_token=_unlike(vocabulary), **options)


def _unlike(vocabulary: Iterable[str]) -> str:
    """What Keras writes for the unknown entry; it must not be a word."""
    token, words = "[UNK]", set(vocabulary)
    while token in words:
        token = f"[{token}]"
    return token
