"""Weights come back from torch, Keras and ONNX as they were. Real Keras and ONNX Runtime: tests/peers."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import tidegate
from tests.helpers.conversions import H, I, arrays_of, assert_same_arrays, assert_same_values, kinds, options_of, ours
from tidegate import convert
from tidegate.convert import OnnxGRU


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
