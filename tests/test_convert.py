"""Weights arrive where they belong, in torch, Keras and ONNX, and come back. Real Keras and ONNX Runtime: tests/peers."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import tidegate
from tests.helpers.conversions import H, I, kinds, ours, spread
from tidegate import convert
from tidegate.convert import OnnxGRU
from tidegate.errors import SettingsError, ShapeError
from tidegate.ops.gru import reference


def options_of(layer):
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    return {name: getattr(layer, name) for name in names} | {"training": layer.training}


def assert_same_values(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert torch.equal(value, b[name]), name


def assert_same_arrays(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=True)


def arrays_of(operator):
    return [operator.W, operator.R] if operator.B is None else [operator.W, operator.R, operator.B]


# ---------------------------------------------------------------------------------------------- there and back


@kinds()
def test_to_keras_and_back_changes_nothing(kind):
    layer = ours(**kind)
    again = convert.from_keras(convert.to_keras(layer), reset=kind["reset"], batch_first=False)
    assert options_of(again) == options_of(layer)
    assert again.reset == kind["reset"]
    if kind["bias"] and kind["reset"] == "before":  # but that both biases are one now
        with torch.no_grad():
            for _, _, b_ih, b_hh in layer.all_weights:
                b_ih.add_(b_hh)
                b_hh.zero_()
    assert_same_values(again, layer)


@kinds()
def test_from_keras_and_back_changes_nothing(kind):
    rng = np.random.default_rng(0)
    weights = []
    for k in range(kind["num_layers"]):
        D = 2 if kind["bidirectional"] else 1
        width = I if k == 0 else D * H
        bias = [(2, 3 * H) if kind["reset"] == "after" else (3 * H,)] if kind["bias"] else []
        weights.append([rng.standard_normal(shape) for _ in range(D) for shape in [(width, 3 * H), (H, 3 * H), *bias]])
    layer = convert.from_keras(weights, reset=None if kind["bias"] else kind["reset"])
    assert options_of(layer)["batch_first"]
    assert layer.reset == kind["reset"]
    again = convert.to_keras(layer)
    assert len(again) == len(weights)
    for one, other in zip(again, weights, strict=True):
        assert_same_arrays(one, other)


@kinds()
def test_to_onnx_and_back_changes_nothing(kind):
    layer = ours(**kind)
    again = convert.from_onnx(convert.to_onnx(layer))
    assert options_of(again) == options_of(layer)
    assert again.reset == kind["reset"]
    assert_same_values(again, layer)


@kinds()
def test_from_onnx_and_back_changes_nothing(kind):
    rng = np.random.default_rng(0)
    operators = []
    for k in range(kind["num_layers"]):
        D = 2 if kind["bidirectional"] else 1
        shapes = [(D, 3 * H, I if k == 0 else D * H), (D, 3 * H, H), *([(D, 6 * H)] if kind["bias"] else [])]
        arrays = [rng.standard_normal(shape) for shape in shapes]
        words = {"direction": "bidirectional" if D == 2 else "forward"}
        operators.append(OnnxGRU(*arrays, linear_before_reset=int(kind["reset"] == "after"), **words))
    again = convert.to_onnx(convert.from_onnx(operators))
    assert len(again) == len(operators)
    for one, other in zip(again, operators, strict=True):
        assert one.attributes == other.attributes
        assert_same_arrays(arrays_of(one), arrays_of(other))


@kinds(resets=["after"])
def test_to_torch_and_back_changes_nothing(kind):
    layer = ours(**kind)
    there = convert.to_torch(layer)
    assert type(there) is nn.GRU
    assert_same_values(there, layer)
    again = convert.from_torch(there)
    assert type(again) is tidegate.GRU
    assert options_of(again) == options_of(there) == options_of(layer)
    assert_same_values(again, layer)


def test_the_torch_twin_gives_the_same_bits():
    layer = ours(num_layers=2, bidirectional=True, batch_first=True, backend="torch")
    x, h_0 = torch.randn(2, 7, I), torch.randn(4, 2, H)
    for one, other in zip(convert.to_torch(layer)(x, h_0), layer(x, h_0), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------------------------------- layouts


R, Z, N = 1.0, 2.0, 3.0


def marked(gates, columns):
    """Two rows for each gate, of numbers that name their place: gate, row, column."""
    return [[100 * gate + 10 * i + j for j in range(columns)] for gate in gates for i in range(2)]


def test_every_number_has_its_place_in_keras():
    w_ih, w_hh = np.array(marked((R, Z, N), 3)), np.array(marked((R, Z, N), 2))
    b_ih, b_hh = np.repeat([R, Z, N], 2), np.repeat([10 * R, 10 * Z, 10 * N], 2)
    kernel, recurrent_kernel, bias = convert.layer_to_keras([[w_ih, w_hh, b_ih, b_hh]])
    assert kernel.T.tolist() == marked((Z, R, N), 3)
    assert recurrent_kernel.T.tolist() == marked((Z, R, N), 2)
    assert bias.tolist() == [[Z, Z, R, R, N, N], [10 * Z, 10 * Z, 10 * R, 10 * R, 10 * N, 10 * N]]
    *_, bias = convert.layer_to_keras([[w_ih, w_hh, b_ih, b_hh]], reset="before")
    assert bias.tolist() == [11 * Z, 11 * Z, 11 * R, 11 * R, 11 * N, 11 * N]


def test_every_number_has_its_place_in_onnx():
    w_ih, w_hh = np.array(marked((R, Z, N), 3)), np.array(marked((R, Z, N), 2))
    b_ih, b_hh = np.repeat([R, Z, N], 2), np.repeat([10 * R, 10 * Z, 10 * N], 2)
    backwards = [-w_ih, -w_hh, -b_ih, -b_hh]
    for reset in ("after", "before"):
        found = convert.layer_to_onnx([[w_ih, w_hh, b_ih, b_hh], backwards], reset=reset)
        assert found.W[0].tolist() == marked((Z, R, N), 3)
        assert found.R[0].tolist() == marked((Z, R, N), 2)
        assert found.B[0].tolist() == [Z, Z, R, R, N, N, *(10 * b for b in (Z, Z, R, R, N, N))]
        for array in (found.W, found.R, found.B):
            assert np.array_equal(array[1], -array[0])


def test_a_bidirectional_keras_layer_has_the_forward_weights_first():
    layer = ours(bidirectional=True)
    forwards, backwards = layer.all_weights
    found = convert.to_keras(layer)[0]
    assert_same_arrays(found[:3], convert.layer_to_keras([forwards]))
    assert_same_arrays(found[3:], convert.layer_to_keras([backwards]))


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def keras_equations(x, h, kernel, recurrent_kernel, bias, reset_after):
    """keras/src/layers/rnn/gru.py, GRUCell.call, step by step. x [T, B, I], h [B, H]."""
    units = len(recurrent_kernel)
    input_bias, recurrent_bias = bias if reset_after else (bias, np.zeros_like(bias))
    for x_t in x:
        x_z, x_r, x_h = np.split(x_t @ kernel + input_bias, 3, axis=-1)
        z = sigmoid(x_z + h @ recurrent_kernel[:, :units] + recurrent_bias[:units])
        r = sigmoid(x_r + h @ recurrent_kernel[:, units : 2 * units] + recurrent_bias[units : 2 * units])
        if reset_after:
            recurrent_h = r * (h @ recurrent_kernel[:, 2 * units :] + recurrent_bias[2 * units :])
        else:
            recurrent_h = (r * h) @ recurrent_kernel[:, 2 * units :]
        h = z * h + (1 - z) * np.tanh(x_h + recurrent_h)
    return h


def onnx_equations(X, H_t, W, R, B, linear_before_reset):
    """The equations of the operator GRU (version 22), step by step. X [T, B, I], H_t [B, H]."""
    Wz, Wr, Wh = np.split(W, 3)
    Rz, Rr, Rh = np.split(R, 3)
    Wbz, Wbr, Wbh, Rbz, Rbr, Rbh = np.split(B, 6)
    for Xt in X:
        zt = sigmoid(Xt @ Wz.T + H_t @ Rz.T + Wbz + Rbz)
        rt = sigmoid(Xt @ Wr.T + H_t @ Rr.T + Wbr + Rbr)
        if linear_before_reset:
            ht = np.tanh(Xt @ Wh.T + rt * (H_t @ Rh.T + Rbh) + Wbh)
        else:
            ht = np.tanh(Xt @ Wh.T + (rt * H_t) @ Rh.T + Rbh + Wbh)
        H_t = (1 - zt) * ht + zt * H_t
    return H_t


@pytest.mark.parametrize("reset", ["after", "before"])
def test_their_equations_with_the_converted_weights_give_our_numbers(reset):
    weights = [w.detach() for w in ours(dtype=torch.float64).all_weights[0]]
    torch.manual_seed(1)
    x, h_0 = torch.randn(7, 2, I, dtype=torch.float64), torch.randn(2, H, dtype=torch.float64)
    right = reference.gru_layer(x, h_0, *weights, reset=reset)[1]
    by_keras = keras_equations(
        x.numpy(), h_0.numpy(), *convert.layer_to_keras([weights], reset=reset), reset == "after"
    )
    operator = convert.layer_to_onnx([weights], reset=reset)
    W, R, B = (array[0] for array in arrays_of(operator))
    by_onnx = onnx_equations(x.numpy(), h_0.numpy(), W, R, B, operator.linear_before_reset)
    for found in (by_keras, by_onnx):
        # Rounding alone: over twenty seeds of these 7 steps, in which |h| < 4, it was 10 eps at most.
        np.testing.assert_allclose(found, right.numpy(), rtol=0, atol=64 * np.finfo(float).eps)


# ---------------------------------------------------------------------------------------------- all that belongs to it


@pytest.mark.parametrize("there", ["torch", "tidegate"])
def test_a_torch_twin_has_all_options_the_mode_and_what_is_frozen(there):
    options = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.25, "bidirectional": True}
    make, turn = (tidegate.GRU, convert.to_torch) if there == "torch" else (nn.GRU, convert.from_torch)
    layer = make(I, H, **options, dtype=torch.bfloat16).eval()
    layer.weight_hh_l1.requires_grad_(False)
    twin = turn(layer)
    assert options_of(twin) == options_of(layer) == {"input_size": I, "hidden_size": H, **options, "training": False}
    assert_same_values(twin, layer)
    assert [name for name, p in twin.named_parameters() if not p.requires_grad] == ["weight_hh_l1"]
    assert not twin.training
    assert turn(layer.train()).training


@pytest.mark.parametrize("turn", [convert.from_torch, convert.to_torch])
def test_a_torch_twin_is_on_the_same_device(turn):
    make = tidegate.GRU if turn is convert.to_torch else nn.GRU
    assert {p.device.type for p in turn(make(I, H, device="meta")).parameters()} == {"meta"}
    assert {p.device.type for p in turn(make(I, H)).parameters()} == {"cpu"}


def test_weights_made_of_others_arrive_as_their_values():
    theirs = spread(nn.GRU(I, H))
    prune.l1_unstructured(theirs, "weight_ih_l0", amount=0.5)
    parametrizations.weight_norm(theirs, "weight_hh_l0")
    twin = convert.from_torch(theirs)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in nn.GRU(I, H).named_parameters()]
    assert (twin.weight_ih_l0 == 0).sum() == 3 * H * I // 2
    for name, value in twin.named_parameters():
        assert torch.equal(value, getattr(theirs, name)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    layer = ours(dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert {str(array.dtype) for array in convert.to_keras(layer)[0]} == {name}
    assert {str(array.dtype) for array in arrays_of(convert.to_onnx(layer)[0])} == {name}
    assert {p.dtype for p in convert.from_keras(convert.to_keras(layer)).parameters()} == {dtype}
    assert {p.dtype for p in convert.from_onnx(convert.to_onnx(layer)).parameters()} == {dtype}


def test_the_new_layer_is_where_it_was_wanted_and_reads_x_as_it_was_wanted():
    layer = ours()
    for turn, weights in (
        (convert.from_keras, convert.to_keras(layer)),
        (convert.from_onnx, convert.to_onnx(layer)),
    ):
        assert turn(weights, device="meta").weight_ih_l0.is_meta
        assert turn(weights).weight_ih_l0.device.type == "cpu"
        assert turn(weights, batch_first=True).batch_first
        assert not turn(weights, batch_first=False).batch_first


def test_tensors_arrays_and_lists_are_taken_alike():
    weights = ours(dtype=torch.float64).all_weights[0]
    as_arrays = [w.detach().numpy() for w in weights]
    as_lists = [w.tolist() for w in weights]
    for turn in (convert.layer_to_keras, lambda directions: arrays_of(convert.layer_to_onnx(directions))):
        for given in (as_arrays, as_lists):
            assert_same_arrays(turn([weights]), turn([given]))
    flat = convert.layer_to_keras([weights])
    for given in (flat, [torch.from_numpy(w) for w in flat], [w.tolist() for w in flat]):
        assert_same_arrays(convert.layer_from_keras(given)[0], as_arrays)


# ---------------------------------------------------------------------------------------------- manners


def test_nothing_shares_memory():
    layer = ours(bidirectional=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for twin in (convert.to_torch(layer), convert.from_torch(convert.to_torch(layer))):
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
    flat, operator = convert.to_keras(layer)[0], convert.to_onnx(layer)[0]
    for array in [*flat, *arrays_of(operator)]:
        array *= 2
    from_keras, from_onnx = convert.from_keras([flat]), convert.from_onnx([operator])
    directions = [*convert.layer_from_keras(flat), *convert.layer_from_onnx(operator)]
    for array in [*flat, *arrays_of(operator)]:
        array[:] = 0
    for name, value in before.items():
        assert torch.equal(layer.state_dict()[name], value)
        assert torch.equal(from_keras.state_dict()[name], 2 * value)
        assert torch.equal(from_onnx.state_dict()[name], 2 * value)
    assert all(np.abs(array).max() > 0 for arrays in directions for array in arrays)


def test_arrays_lie_in_rows():
    layer = ours(bidirectional=True)
    flat, operator = convert.to_keras(layer)[0], convert.to_onnx(layer)[0]
    directions = [*convert.layer_from_keras(flat), *convert.layer_from_onnx(operator)]
    for array in [*flat, *arrays_of(operator), *itertools.chain(*directions)]:
        assert array.flags.c_contiguous


def test_random_numbers_are_left_alone():
    layer = ours()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    convert.from_torch(convert.to_torch(layer))
    convert.from_keras(convert.to_keras(layer))
    convert.from_onnx(convert.to_onnx(layer))
    assert torch.equal(torch.rand(3), wanted)


def test_a_converted_layer_can_be_trained():
    for layer in (
        convert.from_torch(nn.GRU(I, H)),
        convert.to_torch(tidegate.GRU(I, H)),
        convert.from_onnx(convert.to_onnx(tidegate.GRU(I, H))),
    ):
        layer(torch.randn(4, 2, I))[0].sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_no_other_program_is_imported():
    code = (
        "import sys, torch; from tidegate import GRU, convert\n"
        "convert.from_keras(convert.to_keras(GRU(3, 5))), convert.from_onnx(convert.to_onnx(GRU(3, 5)))\n"
        "print({'keras', 'tensorflow', 'onnx', 'onnxruntime'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr


# ---------------------------------------------------------------------------------------------- one array


def test_gates_are_reordered_along_the_axis_and_back():
    gates = np.arange(6)
    assert convert.reorder_gates(gates, "torch", "onnx").tolist() == [2, 3, 0, 1, 4, 5]
    two = np.stack([gates, 10 * gates])
    assert convert.reorder_gates(two, "torch", "keras", axis=1)[1].tolist() == [20, 30, 0, 10, 40, 50]
    assert convert.reorder_gates(torch.from_numpy(two), "torch", "keras", axis=-1)[0].tolist() == [2, 3, 0, 1, 4, 5]
    for source, target in itertools.product(convert.GATE_ORDERS, repeat=2):
        there = convert.reorder_gates(gates, source, target)
        assert convert.reorder_gates(there, target, source).tolist() == gates.tolist()
        assert (there.tolist() == gates.tolist()) == (
            (source in ("tidegate", "torch")) == (target in ("tidegate", "torch"))
        )
        assert torch.equal(convert.reorder_gates(torch.from_numpy(gates), source, target), torch.from_numpy(there))


def test_an_order_that_is_not_its_own_inverse_is_taken_the_right_way_round(monkeypatch):
    monkeypatch.setitem(convert.GATE_ORDERS, "turned", "nrz")
    for gates in (np.array([R, Z, N]), torch.tensor([R, Z, N])):
        assert convert.reorder_gates(gates, "torch", "turned").tolist() == [N, R, Z]
        assert convert.reorder_gates(gates, "turned", "torch").tolist() == [Z, N, R]


def test_a_program_that_keeps_its_order_gets_a_copy():
    for gates in (np.arange(6), torch.arange(6)):
        there = convert.reorder_gates(gates, "torch", "tidegate")
        there[0] = 9
        assert gates[0] == 0


def test_gradients_pass_through_the_reordering_of_a_tensor():
    gates = torch.arange(3.0, requires_grad=True)
    convert.reorder_gates(gates, "torch", "onnx").dot(torch.tensor([1.0, 10.0, 100.0])).backward()
    assert gates.grad.tolist() == [10, 1, 100]


def test_an_order_that_is_not_in_the_table_is_told_with_the_nearest():
    with pytest.raises(SettingsError) as caught:
        convert.reorder_gates(np.arange(3), "torch", "Kears")
    assert str(caught.value) == (
        "Unknown gate order 'Kears'; known are 'tidegate', 'torch', 'keras', 'onnx', 'onednn'. Did you mean 'keras'?"
    )


@pytest.mark.parametrize(("shape", "axis"), [((4, 3), 0), ((3, 3), 2), ((), 0)])
def test_gates_that_are_not_three_are_told(shape, axis):
    for gates in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(ShapeError) as caught:
            convert.reorder_gates(gates, "torch", "keras", axis)
        assert str(caught.value) == f"reorder_gates: gates is {list(shape)}, expected 3H along axis {axis}."


# ---------------------------------------------------------------------------------------------- refusals

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
