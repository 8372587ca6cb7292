"""TorchRL's GRUModule with a `tidegate.GRU` gives what it gives with a `torch.nn.GRU`."""

from __future__ import annotations

import pytest
import tensordict
import torch
from torch import nn
from torchrl import modules

import tidegate

pytestmark = pytest.mark.peers


def data(B, T, layers):
    begins = torch.rand(B, T, 1) < 0.3
    begins[:, 0] = True
    begins[0, 1:] = False
    return tensordict.TensorDict(
        {"obs": torch.randn(B, T, 6), "rs": torch.zeros(B, T, layers, 8), "is_init": begins}, [B, T]
    )


@pytest.mark.parametrize("backend", ["pad", "scan"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_trajectories_give_the_numbers_and_gradients_of_nn_gru(backend, layers, bias):
    torch.manual_seed(0)
    theirs = nn.GRU(6, 8, layers, bias=bias, batch_first=True)
    ours = tidegate.GRU(6, 8, layers, bias=bias, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    given = data(4, 12, layers)
    found = []
    for gru in (theirs, ours):
        module = modules.GRUModule(
            gru=gru, in_keys=["obs", "rs"], out_keys=["y", ("next", "rs")], recurrent_backend=backend
        )
        with modules.set_recurrent_mode(True):
            answer = module(given.clone())
        answer["y"].pow(2).sum().backward()
        found.append([answer["y"], answer["next", "rs"], *(p.grad for p in gru.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)
