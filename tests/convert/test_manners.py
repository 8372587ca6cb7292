"""All that belongs to a layer is carried over, and nothing else is touched."""

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
from tests.helpers.conversions import H, I, arrays_of, assert_same_arrays, assert_same_values, options_of, ours, spread
from tidegate import convert

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
