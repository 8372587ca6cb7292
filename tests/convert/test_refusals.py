"""What another program does not have, and arrays that don't fit, are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tidegate
from tests.helpers.conversions import H, I, ours
from tidegate import convert
from tidegate.convert import OnnxGRU
from tidegate.errors import SettingsError, ShapeError

NOT_IN_TORCH = {
    "reset": "before",
    "layer_norm": True,
    "zoneout": 0.1,
    "recurrent_dropout": 0.1,
    "learn_initial_state": True,
}


@pytest.mark.parametrize(("name", "value"), NOT_IN_TORCH.items())
def test_what_torch_has_not_is_refused(name, value):
    with pytest.raises(SettingsError) as caught:
        convert.to_torch(tidegate.GRU(I, H, **{name: value}))
    assert str(caught.value) == (
        f"to_torch: torch.nn.GRU has no {name}={value!r}. Keep the tidegate.GRU, or train one without."
    )


@pytest.mark.parametrize("name", ["layer_norm", "zoneout", "learn_initial_state"])
def test_what_weights_of_keras_and_onnx_cant_carry_is_refused(name):
    layer = tidegate.GRU(I, H, **{name: NOT_IN_TORCH[name]})
    with pytest.raises(SettingsError) as caught:
        convert.to_keras(layer)
    assert str(caught.value) == (
        f"to_keras: keras.layers.GRU has no {name}={NOT_IN_TORCH[name]!r}. Train one without. Where it is the learned state "
        "alone: convert the weights with layer_to_keras(), and give the state as initial_state."
    )
    with pytest.raises(
        SettingsError, match=rf"ONNX's GRU has no {name}=.* layer_to_onnx\(\), .* as initial_h\. .*onnx\.write_layer"
    ):
        convert.to_onnx(layer)


def test_two_refusals_are_told_at_once():
    with pytest.raises(SettingsError, match=r"has no zoneout=0\.1 and no learn_initial_state=True"):
        convert.to_keras(tidegate.GRU(I, H, zoneout=0.1, learn_initial_state=True))


def test_dropout_of_training_stands_in_nobodys_way():
    layer = ours(num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    assert len(convert.to_keras(layer)) == len(convert.to_onnx(layer)) == 2


def test_another_kind_of_layer_is_refused():
    for turn in (convert.to_torch, convert.to_keras, convert.to_onnx):
        with pytest.raises(TypeError) as caught:
            turn(nn.GRU(I, H))
        assert str(caught.value) == (
            f"{turn.__name__}: layer is of type torch.nn.modules.rnn.GRU, expected a tidegate.GRU. Use from_torch() first."
        )
    with pytest.raises(
        TypeError, match=r"^from_torch: layer is of type torch\.nn\.modules\.rnn\.LSTM, expected a torch"
    ):
        convert.from_torch(nn.LSTM(I, H))


def test_weights_that_numpy_cant_hold_are_told():
    for turn in (convert.to_keras, convert.to_onnx):
        with pytest.raises(
            ShapeError, match=r"layer 0: w_ih is bfloat16, expected float16, float32 or float64\. Use \.float"
        ):
            turn(ours(dtype=torch.bfloat16))
        with pytest.raises(ShapeError, match="layer 0: w_ih is on meta, where tensors have no values"):
            turn(tidegate.GRU(I, H, device="meta"))


def zeros(*shapes, dtype="float32"):
    return [np.zeros(shape, dtype) for shape in shapes]


K, RK, B2, B1 = (3, 15), (5, 15), (2, 15), (15,)
GET_WEIGHTS = "expected what get_weights() returns: a list of kernel, recurrent_kernel and, with use_bias, bias; "


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([zeros(K)], f"layer 0 is a list of 1, {GET_WEIGHTS}as many again if Bidirectional."),
        ([zeros(K, RK, B2, K, RK)], f"layer 0 is a list of 5, {GET_WEIGHTS}as many again if Bidirectional."),
        (zeros(K, RK, B2), f"layer 0 is of type numpy.ndarray, {GET_WEIGHTS}as many again if Bidirectional."),
        ([zeros(K, (15, 5), B2)], "layer 0: recurrent_kernel is [15, 5], expected [H, 3H]."),
        ([zeros(K, (15,), B2)], "layer 0: recurrent_kernel is [15], expected [H, 3H]."),
        ([zeros((15, 3), RK, B2)], "layer 0: kernel is [15, 3], expected [I, 3H=15]."),
        ([zeros((0, 15), RK, B2)], "layer 0: kernel is [0, 15], expected [I, 3H=15]."),
        ([zeros(K, RK, (30,))], "layer 0: bias is [30], expected [3H=15]."),
        ([zeros(K, RK, (15, 2))], "layer 0: bias is [15, 2], expected [2, 3H=15]."),
        (
            [zeros(K, RK, B2, K, (4, 12), (2, 12))],
            "layer 0: recurrent_kernel (backwards) is [4, 12], expected [H=5, 3H=15].",
        ),
        ([zeros(K, RK, B2, (4, 15), RK, B2)], "layer 0: kernel (backwards) is [4, 15], expected [I=3, 3H=15]."),
        ([zeros(K, RK, B2, K, RK, B1)], "layer 0: bias (backwards) is [15], expected [2, 3H=15]."),
        (
            [zeros(K, RK, B2), zeros(K, RK, B2)],
            "layer 1 reads 3 features, expected D*H=5, which the layer below gives.",
        ),
        (
            [zeros(K, RK, B2, K, RK, B2), zeros(RK, RK, B2, RK, RK, B2)],
            "layer 1 reads 5 features, expected D*H=10, which the layer below gives.",
        ),
        (
            [zeros(K, RK, B2), zeros((5, 12), (4, 12), (2, 12))],
            "layer 1 has hidden_size=4, layer 0 has 5. The layers of a tidegate.GRU are alike: convert these one by one.",
        ),
        (
            [zeros(K, RK, B2), zeros(RK, RK)],
            "layer 1 has bias=False, layer 0 has True. The layers of a tidegate.GRU are alike: convert these one by one.",
        ),
        (
            [zeros(K, RK, B2), zeros(RK, RK, B2, dtype="float64")],
            "layer 1 has dtype='float64', layer 0 has 'float32'. The layers of a tidegate.GRU are alike: "
            "convert these one by one.",
        ),
        (
            [zeros(K, RK, B2, dtype="int64")],
            "layer 0: kernel is int64, expected float16, float32 or float64. "
            "Use .float() on a layer or a tensor, .astype('float32') on an array.",
        ),
        (
            [zeros(K, RK) + zeros(B2, dtype="float64")],
            "layer 0: bias is float64, kernel is float32. Give all in one dtype.",
        ),
    ],
)
def test_keras_arrays_that_dont_fit_are_told(layers, message):
    with pytest.raises(ShapeError) as caught:
        convert.from_keras(layers)
    assert str(caught.value) == f"from_keras: {message}"


def test_one_keras_layer_that_doesnt_fit_is_told():
    with pytest.raises(ShapeError, match=r"^layer_from_keras: bias is \[14\], expected \[3H=15\]\.$"):
        convert.layer_from_keras(zeros(K, RK, (14,)))


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "there are no layers, expected one or more."),
        ([zeros(K, RK)], {"reset": "first"}, "reset is 'first', expected 'after', 'before' or None."),
        (
            [zeros(K, RK)],
            {},
            "without biases the weights don't say where the reset gate falls. Give reset='after' where Keras has "
            "reset_after=True, its default, and reset='before' where it has False.",
        ),
        (
            [zeros(K, RK, B2)],
            {"reset": "before"},
            "layer 0: its bias says reset='after', and 'before' was given. Leave it out.",
        ),
        (
            [zeros(K, RK, B2), zeros(RK, RK, B1)],
            {},
            "layer 1: its bias says reset='before', and the ones below say 'after'. The layers of a tidegate.GRU are alike: "
            "convert these one by one.",
        ),
    ],
)
def test_a_reset_that_is_unknown_or_contradicted_is_told(layers, options, message):
    with pytest.raises(SettingsError) as caught:
        convert.from_keras(layers, **options)
    assert str(caught.value) == f"from_keras: {message}"


def onnx(W=(1, 15, 3), R=(1, 15, 5), B=(1, 30), dtype="float32", **words):
    return OnnxGRU(*(None if shape is None else np.zeros(shape, dtype) for shape in (W, R, B)), **words)


TWO = {"W": (2, 15, 3), "R": (2, 15, 5), "B": (2, 30), "direction": "bidirectional"}


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ([onnx(R=(15, 5))], "layer 0: R is [15, 5], expected [D=1, 3H, H]."),
        ([onnx(R=(1, 5, 15))], "layer 0: R is [1, 5, 15], expected [D=1, 3H, H]."),
        ([onnx(R=(2, 15, 5))], "layer 0: R is [2, 15, 5], expected [D=1, 3H, H]."),
        ([onnx(W=(1, 3, 15))], "layer 0: W is [1, 3, 15], expected [D=1, 3H=15, I]."),
        ([onnx(B=(1, 15))], "layer 0: B is [1, 15], expected [D=1, 6H=30]."),
        ([onnx(B=(30,))], "layer 0: B is [30], expected [D=1, 6H=30]."),
        ([onnx(**TWO | {"R": (1, 15, 5)})], "layer 0: R is [1, 15, 5], expected [D=2, 3H, H]."),
        ([onnx(**TWO), onnx(**TWO)], "layer 1 reads 3 features, expected D*H=10, which the layer below gives."),
        (
            [onnx(), onnx(**TWO)],
            "layer 1 has bidirectional=True, layer 0 has False. The layers of a tidegate.GRU are alike: "
            "convert these one by one.",
        ),
        (
            [onnx(dtype="int32")],
            "layer 0: W is int32, expected float16, float32 or float64. "
            "Use .float() on a layer or a tensor, .astype('float32') on an array.",
        ),
    ],
)
def test_onnx_arrays_that_dont_fit_are_told(operators, message):
    with pytest.raises(ShapeError) as caught:
        convert.from_onnx(operators)
    assert str(caught.value) == f"from_onnx: {message}"


def test_onnx_operators_that_are_none_of_ours_are_told():
    hint = "'reverse' is 'forward' with x and the output turned round in time; bytes want .decode()."
    for direction in ("reverse", b"forward"):
        with pytest.raises(SettingsError) as caught:
            convert.layer_from_onnx(onnx(direction=direction))
        assert str(caught.value) == (
            f"layer_from_onnx: direction is {direction!r}, expected 'forward' or 'bidirectional'. {hint}"
        )
    with pytest.raises(
        SettingsError, match=r"^from_onnx: layer 1 has linear_before_reset=1, the ones below have another\."
    ):
        convert.from_onnx([onnx(), onnx(W=(1, 15, 5), linear_before_reset=1)])
    with pytest.raises(SettingsError, match=r"^from_onnx: there are no layers"):
        convert.from_onnx([])
    with pytest.raises(TypeError, match=r"^from_onnx: layer 0 is of type tuple, expected an OnnxGRU: OnnxGRU\(W, R, B"):
        convert.from_onnx([tuple(zeros(K, RK, B2))])


def test_onnx_words_left_out_mean_what_onnx_says():
    assert onnx().attributes == {"hidden_size": 5, "direction": "forward", "linear_before_reset": 0}
    assert onnx().reset == "before"


@pytest.mark.parametrize("turn", [convert.layer_to_keras, convert.layer_to_onnx])
def test_our_arrays_that_dont_fit_are_told(turn):
    w_ih, w_hh, b_ih, b_hh = zeros((15, 3), (15, 5), (15,), (15,))
    for directions, message in (
        ([], "found 0 directions of  arrays, expected one or two of [w_ih, w_hh] or of [w_ih, w_hh, b_ih, b_hh]."),
        (
            [[w_ih, w_hh, b_ih]],
            "found 1 directions of 3 arrays, expected one or two of [w_ih, w_hh] or of [w_ih, w_hh, b_ih, b_hh].",
        ),
        ([[w_ih, w_hh.T, b_ih, b_hh]], "w_hh is [5, 15], expected [3H, H]."),
        ([[w_ih.T, w_hh, b_ih, b_hh]], "w_ih is [3, 15], expected [3H=15, I]."),
        ([[w_ih, w_hh, b_ih, b_hh[:5]]], "b_hh is [5], expected [3H=15]."),
        ([[w_ih, w_hh], [w_ih[:, :2], w_hh]], "w_ih (backwards) is [15, 2], expected [3H=15, I=3]."),
    ):
        with pytest.raises(ShapeError) as caught:
            turn(directions)
        assert str(caught.value) == f"{turn.__name__}: {message}"
    with pytest.raises(SettingsError, match=f"^{turn.__name__}: reset is 'first', expected 'after' or 'before'"):
        turn([[w_ih, w_hh]], reset="first")
