"""Every number arrives where it belongs in Keras and ONNX, and in the order of another program's gates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.helpers.conversions import H, I, arrays_of, assert_same_arrays, ours
from tidegate import convert
from tidegate.errors import SettingsError, ShapeError
from tidegate.ops.gru import reference

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
