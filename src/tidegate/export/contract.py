"""What every format but C takes and gives, as data: names, dtypes and axes. The page of `tidegate.export` says what they mean.

Formats are written from this, and tests run their files against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tidegate.data.preprocessing import Preprocessing
    from tidegate.model import ModelSpec


class Value(NamedTuple):
    """dtype: numpy's name, or "text". axes: a size; "B" sequences and "T" steps are open."""

    dtype: str
    axes: tuple[str | int, ...]


class Contract(NamedTuple):
    """In the order in which a format lists them."""

    inputs: dict[str, Value]
    outputs: dict[str, Value]


def contract(spec: ModelSpec, pre: Preprocessing, *, codes: bool = False, states_batch_first: bool = False) -> Contract:
    """The contract of a run. codes: for a format that knows no text. states_batch_first: h_0 and h_n are [B, layers*D, H]."""
    first = ("B", spec.states) if states_batch_first else (spec.states, "B")
    state = Value("float32", (*first, spec.hidden_size))
    inputs = {}
    if pre.numbers:
        inputs["numbers"] = Value("float64", ("B", "T", len(pre.numbers)))
    if pre.tokens:
        name, dtype = ("codes", "int64") if codes else ("tokens", "text")
        inputs[name] = Value(dtype, ("B", "T", len(pre.tokens)))
    inputs |= {"lengths": Value("int64", ("B",)), "h_0": state}

    steps: tuple[str | int, ...] = ("B", "T") if spec.per == "step" else ("B",)
    scores = Value("float32", (*steps, spec.ahead, spec.outputs))
    predicted = {"class": Value("int64", scores.axes[:-1]), "labels": Value("int64", scores.axes)}
    predicted["number"] = Value("float64", scores.axes)
    prediction = predicted[pre.target.task]
    if pre.target.task == "class" and not codes:
        prediction = prediction._replace(dtype=class_dtype(pre.target.classes))
    outputs = {"prediction": prediction}
    if pre.target.task != "number":
        outputs["probabilities"] = scores
    return Contract(inputs, outputs | {"scores": scores, "h_n": state})


def class_dtype(classes: tuple[object, ...]) -> str:
    """In which type a class comes out, where a format knows text."""
    return {str: "text", bool: "bool"}.get(type(classes[0]), "int64")
