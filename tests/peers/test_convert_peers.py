"""Converted weights give the same numbers in Keras and in ONNX Runtime, from the same states, as our definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.conversions import H, I, kinds, ours
from tidegate import convert
from tidegate.bench.peers import PEERS
from tidegate.convert import OnnxGRU
from tidegate.ops.gru import reference

pytestmark = pytest.mark.peers

T, B = 7, 2

# How far rounding alone may lead. Over five seeds of every kind below, Keras in float64 was at most 3.4e-15 away, and in
# float32 both programs were at most 1.4e-6 away, as far as the definition itself is in float32 (1.3e-6). Gates swapped and
# biases dropped, in all ways that were tried, led further than 0.7.
FLOAT64, FLOAT32 = 1e-13, 1e-5


@pytest.fixture(scope="module")
def keras():
    return PEERS["keras"](1).keras  # on TensorFlow, with one thread


def given(layer):
    """x [T, B, I] and h_0 [layers*D, B, H]."""
    generator = torch.Generator().manual_seed(1)
    runs = len(layer.all_weights)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(layer.weight_ih_l0.dtype)
        for shape in ((T, B, I), (runs, B, H))
    ]


def truth(layer, x, h_0):
    """output [T, B, D*H] and h_n [layers*D, B, H] of the definition, in float64."""
    D = 2 if layer.bidirectional else 1
    below, h_n = x.double(), []
    for k in range(layer.num_layers):
        sides = []
        for run in range(k * D, k * D + D):
            weights = [w.detach().double() for w in layer.all_weights[run]]
            backwards = run % D == 1
            side, last = reference.gru_layer(below, h_0[run].double(), *weights, reverse=backwards, reset=layer.reset)[
                :2
            ]
            sides.append(side)
            h_n.append(last)
        below = torch.cat(sides, dim=-1)
    return below.numpy(), torch.stack(h_n).numpy()


def assert_close(found, right, atol):
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------- Keras


def keras_layer(keras, kind, dtype):
    gru = keras.layers.GRU(
        H,
        use_bias=kind["bias"],
        reset_after=kind["reset"] == "after",
        return_sequences=True,
        return_state=True,
        dtype=dtype,
    )
    return keras.layers.Bidirectional(gru, dtype=dtype) if kind["bidirectional"] else gru


def run_keras(layers, x, h_0):
    """The layers one after the other: output [T, B, D*H], h_n [layers*D, B, H]."""
    D = len(h_0) // len(layers)
    below, h_n = x.numpy().swapaxes(0, 1), []
    for k, layer in enumerate(layers):
        states = [h.numpy() for h in h_0[k * D : k * D + D]]
        below, *last = layer(below, initial_state=states if D == 2 else states[0])
        h_n += [h.numpy() for h in last]
    return below.numpy().swapaxes(0, 1), np.stack(h_n)


@pytest.mark.parametrize(("dtype", "atol"), [("float64", FLOAT64), ("float32", FLOAT32)])
@kinds(layers=(1, 2))
def test_keras_with_our_weights_gives_our_numbers(keras, kind, dtype, atol):
    layer = ours(**kind, dtype=getattr(torch, dtype))
    x, h_0 = given(layer)
    theirs = []
    for weights in convert.to_keras(layer):
        one = keras_layer(keras, kind, dtype)
        one.build((B, T, len(weights[0])))
        one.set_weights(weights)
        theirs.append(one)
    assert_close(run_keras(theirs, x, h_0), truth(layer, x, h_0), atol)


@kinds(layers=(1, 2))
def test_our_layer_with_weights_of_keras_gives_the_numbers_of_keras(keras, kind):
    rng = np.random.default_rng(2)
    theirs = [keras_layer(keras, kind, "float64") for _ in range(kind["num_layers"])]
    for k, one in enumerate(theirs):
        one.build((B, T, I if k == 0 else H * (1 + kind["bidirectional"])))
        one.set_weights([rng.standard_normal(w.shape) for w in one.get_weights()])
    layer = convert.from_keras(
        [one.get_weights() for one in theirs], reset=None if kind["bias"] else kind["reset"], batch_first=False
    )
    x, h_0 = given(layer)
    right = truth(layer, x, h_0)
    assert_close(run_keras(theirs, x, h_0), right, FLOAT64)
    assert_close([v.detach().numpy() for v in layer(x, h_0)], right, FLOAT64)


# ---------------------------------------------------------------------------------------------- ONNX


def onnx_file(operators):
    """A file of these operators: x [T, B, I], h_0_0, h_0_1 ... [D, B, H] -> output [T, B, D*H], h_n_0, h_n_1 ... [D, B, H]."""
    D = len(operators[0].W)
    tensor = lambda name, *axes: helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)  # noqa: E731
    nodes, states, lasts, below = [], [], [], "x"
    constants = [numpy_helper.from_array(np.array([0, 0, -1]), "side_by_side")]
    for k, operator in enumerate(operators):
        weights = {"W": operator.W, "R": operator.R, "B": operator.B}
        names = {name: f"{name}_{k}" if w is not None else "" for name, w in weights.items()}
        constants += [numpy_helper.from_array(w, names[name]) for name, w in weights.items() if w is not None]
        out = "output" if k == len(operators) - 1 else f"output_{k}"
        nodes += [
            helper.make_node(
                "GRU", [below, *names.values(), "", f"h_0_{k}"], [f"Y_{k}", f"h_n_{k}"], **operator.attributes
            ),
            helper.make_node("Transpose", [f"Y_{k}"], [f"YT_{k}"], perm=[0, 2, 1, 3]),  # [T, D, B, H] -> [T, B, D, H]
            helper.make_node("Reshape", [f"YT_{k}", "side_by_side"], [out]),
        ]
        states.append(tensor(f"h_0_{k}", D, "B", H))
        lasts.append(tensor(f"h_n_{k}", D, "B", H))
        below = out
    graph = helper.make_graph(
        nodes, "gru", [tensor("x", "T", "B", I), *states], [tensor("output", "T", "B", D * H), *lasts], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model, x, h_0):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs() if value.name != "x"]
    states = dict(zip(names, np.split(h_0.numpy(), len(names)), strict=True))
    output, *h_n = session.run(None, {"x": x.numpy(), **states})
    return output, np.concatenate(h_n)


def operators_in(model):
    """What a reader of a file writes, as the docstring of `OnnxGRU` has it."""
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "GRU":
            W, R, B = (constants.get(name) for name in node.input[1:4])
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            direction = given.get("direction", b"forward").decode()
            yield OnnxGRU(W, R, B, given.get("linear_before_reset", 0), direction)


@kinds(layers=(1, 2))
def test_onnx_runtime_with_our_weights_gives_our_numbers(kind):
    layer = ours(**kind)
    x, h_0 = given(layer)
    assert_close(run_onnx(onnx_file(convert.to_onnx(layer)), x, h_0), truth(layer, x, h_0), FLOAT32)


@kinds(layers=(1, 2))
def test_our_layer_with_the_weights_of_an_onnx_file_gives_the_numbers_of_onnx_runtime(kind):
    rng = np.random.default_rng(2)
    D = 2 if kind["bidirectional"] else 1
    operators = []
    for k in range(kind["num_layers"]):
        shapes = [(D, 3 * H, I if k == 0 else D * H), (D, 3 * H, H), *([(D, 6 * H)] if kind["bias"] else [])]
        W, R, *B = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
        words = {"direction": "bidirectional"} if D == 2 else {}
        if kind["reset"] == "after":
            words["linear_before_reset"] = 1
        operators.append(OnnxGRU(W, R, *B, **words))
    model = onnx_file(operators)
    layer = convert.from_onnx(operators_in(model))
    x, h_0 = given(layer)
    right = truth(layer, x, h_0)
    assert_close(run_onnx(model, x, h_0), right, FLOAT32)
    assert_close([v.detach().numpy() for v in layer(x, h_0)], right, FLOAT32)
