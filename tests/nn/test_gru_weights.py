"""The weights of `tidegate.GRU`: torch's bits, state dicts both ways, copies, parametrisations, cuDNN."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import tidegate
from tests.helpers.layers import BACKENDS, pair


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_seed_gives_the_weights_of_torch_bit_for_bit(bidirectional, bias):
    options = {"num_layers": 3, "bidirectional": bidirectional, "bias": bias}
    torch.manual_seed(5)
    theirs = nn.GRU(3, 9, **options)
    torch.manual_seed(5)
    ours = tidegate.GRU(3, 9, **options)
    for _ in range(2):
        for (a, v), (b, w) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert a == b
            assert torch.equal(v, w)
        torch.manual_seed(6)
        theirs.reset_parameters()
        torch.manual_seed(6)
        ours.reset_parameters()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_state_dicts_load_strictly_both_ways(bidirectional, bias):
    options = {"num_layers": 2, "bidirectional": bidirectional, "bias": bias}
    ours, theirs = tidegate.GRU(3, 4, **options, backend="torch"), nn.GRU(3, 4, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(5, 2, 3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    ours.load_state_dict(nn.GRU(3, 4, **options).state_dict(), assign=True)
    assert not torch.equal(ours(x)[0], theirs(x)[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(nn.GRU(3, 5, **options).state_dict())


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch_save"],
)
def test_a_copy_is_equal_and_independent(copied):
    layer = tidegate.GRU(3, 4, 2, bidirectional=True, dropout=0.5, backend="reference").eval()
    x = torch.randn(5, 2, 3)
    other = copied(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x)[0], layer(x)[0])
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert not torch.equal(other(x)[0], layer(x)[0])


def _saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return buffer


def test_to_changes_dtype_and_device():
    layer = tidegate.GRU(3, 4, dtype=torch.float64)
    assert layer(torch.zeros(5, 2, 3, dtype=torch.float64))[0].dtype == torch.float64
    layer.to(torch.bfloat16)
    assert layer(torch.zeros(5, 2, 3, dtype=torch.bfloat16))[1].dtype == torch.bfloat16
    layer.to("meta")
    assert layer(torch.zeros(5, 2, 3, dtype=torch.bfloat16, device="meta"))[0].shape == (5, 2, 4)
    assert tidegate.GRU(3, 4, device="meta").to_empty(device="cpu").weight_ih_l0.device.type == "cpu"


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_get_no_gradient(backend):
    layer = tidegate.GRU(3, 4, backend=backend)
    layer.weight_hh_l0.requires_grad_(False)
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad is None
    assert layer.weight_ih_l0.grad.abs().sum() > 0


class _Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


@pytest.mark.parametrize("backend", BACKENDS)
def test_parametrised_pruned_and_swapped_weights_are_the_ones_that_run(backend):
    x = torch.randn(5, 2, 3)
    layer, theirs = pair(backend, 3, 4)
    with torch.no_grad():
        theirs.weight_hh_l0.mul_(2)
    doubled = theirs(x)[0]
    swapped = torch.func.functional_call(layer, {"weight_hh_l0": 2 * layer.weight_hh_l0}, (x,))[0]
    torch.testing.assert_close(swapped, doubled)
    parametrize.register_parametrization(layer, "weight_hh_l0", _Doubled())
    torch.testing.assert_close(layer(x)[0], doubled)
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.abs().sum() > 0
    torch.testing.assert_close(copy.deepcopy(layer)(x)[0], doubled)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], doubled)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], doubled)
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original0.zero_()  # the length of each row
        theirs.weight_hh_l0.zero_()
    torch.testing.assert_close(layer(x)[0], theirs(x)[0])

    layer, theirs = pair(backend, 3, 4)
    prune.l1_unstructured(layer, "weight_ih_l0", amount=0.5)
    prune.l1_unstructured(theirs, "weight_ih_l0", amount=0.5)
    with torch.no_grad():
        theirs.weight_ih_l0_orig.mul_(theirs.weight_ih_l0_mask)
    expected = torch.func.functional_call(pair(backend, 3, 4)[1], {"weight_ih_l0": theirs.weight_ih_l0_orig}, (x,))[0]
    torch.testing.assert_close(layer(x)[0], expected)


def test_flatten_parameters_does_nothing_and_says_so():
    layer = tidegate.GRU(3, 4)
    before = {name: (p.data_ptr(), p.clone()) for name, p in layer.named_parameters()}
    assert layer.flatten_parameters() is None
    for name, p in layer.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])
    assert layer.flatten_parameters.__doc__.startswith("Do nothing.")


def test_weights_are_joined_for_cudnn_whenever_they_get_new_memory(monkeypatch):
    calls = []
    monkeypatch.setattr("tidegate.ops.gru.torch_aten.join_weights", lambda ws, **kw: calls.append((list(ws), kw)))

    def joined(layer):
        """The last call was for the weights that this layer has now, in the order of a back end."""
        (weights, options), calls[:] = calls[-1], []
        names = [n for n, _ in layer.named_parameters()]
        assert all(a is b for a, b in zip(weights, layer.parameters(), strict=True)), names
        return options == {
            "input_size": 3, "hidden_size": 4, "num_layers": 2, "bidirectional": True, "bias": True,
        }  # fmt: skip

    layer = tidegate.GRU(3, 4, 2, bidirectional=True)
    assert joined(layer)
    assert joined(layer.double())
    assert joined(layer.to("cpu"))
    assert joined(copy.deepcopy(layer))
    layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    assert joined(layer)
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert not calls  # the values were copied into the memory there was
    assert joined(pickle.loads(pickle.dumps(layer)))
    layer(torch.zeros(2, 2, 3, dtype=torch.float64))
    assert not calls  # a call costs nothing of this
    parametrize.register_parametrization(layer, "weight_hh_l0", _Doubled())
    layer.float()
    assert not calls  # computed anew at every call, so there is nothing to join


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", ["made", "moved", "copied", "converted"])
def test_on_cuda_there_is_no_warning_about_scattered_weights(make):
    layer = tidegate.GRU(3, 8, 2, bidirectional=True, device="cuda" if make == "made" else None).cuda()
    if make == "copied":
        layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    if make == "converted":
        layer = layer.half().float()
    theirs = nn.GRU(3, 8, 2, bidirectional=True).cuda()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4, 3, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output, h_n = layer(x, torch.randn(4, 8, 4, device="cuda").transpose(1, 2))
        output, h_n = layer(x)
    assert torch.equal(output, theirs(x)[0])
    assert torch.equal(h_n, theirs(x)[1])
