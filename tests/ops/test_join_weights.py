"""Joining the weights for cuDNN, as far as it can be seen without CUDA (tests/nn has a test that uses it)."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from tidegate.ops.gru import torch_aten


class OnCuda(torch.Tensor):
    """A tensor on the CPU that says it is on CUDA."""

    is_cuda = True


def joined(module, weights):
    torch_aten.join_weights(
        weights,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        num_layers=module.num_layers,
        bidirectional=module.bidirectional,
        bias=module.bias,
    )


@pytest.fixture
def calls(monkeypatch):
    """What reaches cuDNN's function, on a machine that believes it has one."""
    made = []
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *args: made.append(args))
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: tensor.dtype != torch.float16)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", lambda mode: f"mode of {mode}")
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_is_asked_for_what_torch_asks_it_for(calls, bidirectional, bias):
    theirs = nn.GRU(3, 4, 2, bias=bias, bidirectional=bidirectional)
    weights = [OnCuda(p.detach()) for p in theirs.parameters()]
    theirs._flat_weights = weights
    theirs.flatten_parameters()
    joined(theirs, weights)
    of_torch, of_ours = calls
    assert len(of_torch[0]) == len(of_ours[0]) == len(weights)
    assert all(a is b for a, b in zip(of_torch[0], of_ours[0], strict=True))
    assert of_ours[1:] == of_torch[1:]


def test_weights_that_cudnn_cannot_take_are_left_alone(calls):
    module = nn.GRU(3, 4)
    on_cpu = [p.detach() for p in module.parameters()]
    weights = [OnCuda(w) for w in on_cpu]
    joined(module, on_cpu)
    joined(module, [*weights[:3], on_cpu[3]])  # not all on CUDA
    joined(module, [*weights[:3], OnCuda(on_cpu[3].double())])  # not all of one dtype
    joined(module, [OnCuda(w.half()) for w in on_cpu])  # of a dtype that cuDNN refuses here
    joined(module, [*weights[:3], weights[2]])  # tied
    joined(module, [])
    assert calls == []
    joined(module, weights)
    assert len(calls) == 1


def test_joining_weights_on_the_cpu_changes_nothing():
    module = nn.GRU(3, 4)
    w = [p.detach() for p in module.parameters()]
    before = [(v.data_ptr(), v.clone()) for v in w]
    joined(module, w)
    assert all(v.data_ptr() == p and torch.equal(v, old) for v, (p, old) in zip(w, before, strict=True))
