"""What can't be had together, in one back end or at all, is told with the place and the way out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import tidegate
from tests.helpers.layers import BACKENDS, OURS, jagged
from tidegate import backends
from tidegate.errors import BackendUnavailableError, SettingsError, ShapeError

# ------------------------------------------------------------------------------------------- which back end


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"reset": "before"}, {}),
        ({"layer_norm": True}, {}),
        ({"zoneout": 0.1}, {}),
        ({"recurrent_dropout": 0.1}, {}),
        ({"checkpoint_every": 3}, {}),
        ({}, {"resets": torch.zeros(2, 4, dtype=torch.bool)}),
    ],
    ids=str,
)
def test_torchs_back_end_says_what_it_has_not(options, call):
    layer = tidegate.GRU(3, 5, backend="torch", **options)
    with pytest.raises(BackendUnavailableError, match=r"Back end 'torch' can't run: it has no (\w|=|\")+\. Use one of"):
        layer(torch.zeros(4, 2, 3), **call)
    with pytest.raises(BackendUnavailableError):
        layer.trace(torch.zeros(4, 2, 3), **call)


def test_on_a_gpu_what_cudnn_lacks_goes_to_the_reference_and_explain_says_so():
    said = backends.explain(device="cuda", wishes=["zoneout", "resets"])
    assert said.chosen == "reference"
    assert "it has no zoneout, resets" in said.reasons["torch"]
    assert backends.explain(device="cuda").chosen == "torch"
    assert backends.explain(device="cpu", wishes=["zoneout"]).chosen == "native"
    x = torch.zeros(1, device="meta")  # any device that is not the CPU
    assert backends.choose("auto", x).__name__.endswith("torch_aten")
    assert backends.choose("auto", x, ["zoneout"]).__name__.endswith("reference")
    with pytest.raises(SettingsError, match="'zoneuot'"):
        backends.explain(wishes=["zoneuot"])


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reset": "befor"}, "reset is 'befor', expected 'after' or 'before'. Did you mean 'before'?"),
        ({"layer_norm": 1}, "layer_norm should be of type bool"),
        ({"zoneout": 1.1}, "zoneout must be a number in [0, 1], got 1.1"),
        ({"zoneout": -0.1}, "zoneout must be a number in [0, 1], got -0.1"),
        ({"recurrent_dropout": 2}, "recurrent_dropout must be a number in [0, 1], got 2"),
        ({"recurrent_dropout": math.nan}, "recurrent_dropout must be a number in [0, 1], got nan"),
        ({"learn_initial_state": "yes"}, "learn_initial_state should be of type bool"),
        ({"init": "orthonormal"}, "init is 'orthonormal', expected 'torch' or 'orthogonal'"),
        ({"update_bias": 1}, "update_bias is a memory in steps, a number above 1 or a pair"),
        ({"update_bias": (5, 2)}, "update_bias is a memory in steps"),
        ({"update_bias": (2, math.inf)}, "update_bias is a memory in steps"),
        ({"update_bias": "long"}, "update_bias is a memory in steps"),
        ({"update_bias": 5, "bias": False}, "update_bias needs biases, and bias is False"),
        ({"checkpoint_every": -1}, "checkpoint_every must be greater than zero, got -1"),
        ({"checkpoint_every": 2.5}, "checkpoint_every should be of type int"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_before_anything_is_made(options, said):
    with pytest.raises((SettingsError, TypeError)) as caught:
        tidegate.GRU(3, 8, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_lengths_are_told_with_the_place_and_the_way_out(backend):
    me = "GRU(input_size=3, hidden_size=8): "
    layer, x = tidegate.GRU(3, 8, backend=backend), torch.zeros(7, 2, 3)
    for lengths, said in (
        ([3, 9], "lengths[1] is 9, expected 0 ... 7, as x has T=7 steps."),
        ([-1, 3], "lengths[0] is -1, expected 0 ... 7, as x has T=7 steps."),
        ([3], "lengths is [1], expected [B=2], the steps of each sequence of x."),
        (torch.tensor([[3, 2]]), "lengths is [1, 2], expected [B=2], the steps of each sequence of x."),
        (
            torch.tensor([3.0, 2.0]),
            "lengths is torch.float32, expected whole numbers (torch.int64). Use lengths.long().",
        ),
        (torch.tensor([True, False]), "lengths is torch.bool, expected whole numbers"),
        (
            torch.tensor([1, 2], device="meta"),
            "lengths is on meta, expected on cpu (or with x, on cpu). Use lengths.cpu().",
        ),
        ([1.5, 2], "lengths is [1.5, 2]; expected whole numbers, one for each sequence of x."),
        (["a", 2], "lengths is ['a', 2]; expected whole numbers"),
    ):
        with pytest.raises(ShapeError) as caught:
            layer(x, lengths=lengths)
        assert (me + said) in str(caught.value)
    with pytest.raises(TypeError, match="lengths is of type int, expected a tensor or a list"):
        layer(x, lengths=7)
    for given, why in (
        (torch.zeros(7, 3), "one sequence without a batch"),
        (pack_sequence([torch.zeros(2, 3)]), "a PackedSequence has its own"),
        (jagged([torch.zeros(2, 3)]), "a nested tensor has its own"),
    ):
        with pytest.raises(SettingsError, match=why):
            layer(given, lengths=[2])


@pytest.mark.parametrize("backend", OURS)
def test_wrong_resets_are_told_with_the_place_and_the_way_out(backend):
    me = "GRU(input_size=3, hidden_size=8): "
    layer, x = tidegate.GRU(3, 8, backend=backend), torch.zeros(7, 2, 3)
    good = torch.zeros(2, 7, dtype=torch.bool)
    for resets, said in (
        (good.t(), "resets is [7, 2], expected [B=2, T=7] for this x, whatever batch_first says. It is the other way "
                   "round: use resets.transpose(0, 1)."),
        (good[:, :3], "resets is [2, 3], expected [B=2, T=7] for this x, whatever batch_first says."),
        (good.float(), "resets is torch.float32, expected torch.bool. Use resets.bool()."),
        (good.to("meta"), "resets is on meta, x is on cpu. Use resets.to('cpu')."),
    ):  # fmt: skip
        with pytest.raises(ShapeError) as caught:
            layer(x, resets=resets)
        assert str(caught.value) == me + said
    with pytest.raises(ShapeError, match=r"resets is \[2, 7\], expected \[T=7\]"):
        layer(x[:, 0], resets=good)
    with pytest.raises(TypeError, match="resets is of type list"):
        layer(x, resets=[[True] * 7] * 2)


def test_a_nested_tensor_that_is_no_batch_of_sequences_is_told():
    layer = tidegate.GRU(3, 8)
    with pytest.raises(ShapeError, match=r"x is nested, torch\.strided.*Use torch\.nested\.nested_tensor"):
        layer(torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)]))
    with pytest.raises(ShapeError, match=r"x has 5 features, expected 3\. x is nested, \[B=2, steps, I=5\]"):
        layer(jagged([torch.zeros(2, 5), torch.zeros(1, 5)]))
    with pytest.raises(ShapeError, match=r"h_0 is \[1, 3, 8\], expected \[layers\*D=1, B=2, H=8\]"):
        layer(jagged([torch.zeros(2, 3), torch.zeros(1, 3)]), torch.zeros(1, 3, 8))


def test_everything_that_was_asked_for_is_in_the_repr():
    layer = tidegate.GRU(
        3, 8, reset="before", zoneout=0.1, update_bias=(2, 9), init="orthogonal", learn_initial_state=True
    )
    assert repr(layer) == (
        "GRU(3, 8, reset='before', zoneout=0.1, learn_initial_state=True, init='orthogonal', update_bias=(2.0, 9.0))"
    )
