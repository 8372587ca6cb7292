"""The peers that are always here. The others are in tests/peers."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from tests.helpers.bench import SHAPES, as_cell, checked
from tidegate.bench import case
from tidegate.bench.peers import PEERS, Torch
from tidegate.bench.shapes import KINDS, Cell
from tidegate.convert import reorder_gates

ALWAYS = [(name, kind) for name in ("tidegate", "torch", "torch-cell") for kind in PEERS[name].kinds()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "kind"), ALWAYS)
def test_its_numbers_are_right(name, kind, shape):
    error, passed = checked(PEERS[name](1), case.make(as_cell(kind, shape)))
    assert passed
    assert error < 1e-5


def test_a_layer_with_two_gates_swapped_is_not_right():
    class Swapped(Torch):
        def _load(self, layer, given):
            swapped = {name: reorder_gates(torch.from_numpy(w), "torch", "keras") for name, w in given.weights.items()}
            layer.load_state_dict(swapped)
            return layer

    for kind in KINDS:
        assert not checked(Swapped(1), case.make(as_cell(kind, SHAPES[0])))[1], kind


@pytest.mark.parametrize("name", ["tidegate", "torch"])
def test_gradients_are_fresh_at_every_call(name):
    given = case.make(Cell("train", SHAPES[0]))
    runner = PEERS[name](1).train(given)
    once = {key: value.copy() for key, value in runner.read(runner.call()).items()}
    again = runner.read(runner.call())
    for key, value in once.items():
        np.testing.assert_array_equal(value, again[key])


@pytest.mark.parametrize("name", ["tidegate", "torch"])
def test_inference_keeps_nothing_for_gradients(name):
    given = case.make(Cell("forward", SHAPES[0]))
    runner = PEERS[name](1).forward(given)
    with runner.around():
        assert runner.call().is_inference()


def test_tidegate_is_timed_with_the_back_end_that_it_chooses_by_itself():
    layer = PEERS["tidegate"](1).layer(case.make(Cell("forward", SHAPES[0])))
    assert layer.backend == "auto"


def test_each_kind_is_known_by_the_peers_that_have_it():
    assert {kind: [name for name, peer in PEERS.items() if kind in peer.kinds()] for kind in KINDS} == {
        "forward": ["tidegate", "torch", "onnxruntime", "openvino", "jax", "keras", "keras-xla"],
        "train": ["tidegate", "torch", "jax", "keras", "keras-xla"],
        "step": list(PEERS),
    }


def test_a_peer_knows_which_of_its_packages_are_missing(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else real("torch"))
    assert PEERS["onnxruntime"].missing() == ["onnx"]
    assert PEERS["jax"].missing() == []
