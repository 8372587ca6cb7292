"""A loop over single steps in training: `tidegate.GRUCell` as GRU-D, graph networks and reinforcement learning use it."""

from __future__ import annotations

import copy

import pytest
import torch

import tidegate
from tests.helpers.layers import BACKENDS, assert_at_most_twice, cells, errors
from tidegate.ops.gru.native import layer


def loop(cell, xs):
    h = torch.zeros(xs.size(1), cell.hidden_size, dtype=xs.dtype)
    for x_t in xs:
        h = cell(x_t, h)
    return h


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("I", "H"), [(32, 32), (5, 32), (32, 7), (16, 48)])
def test_it_has_the_gradients_of_torch_where_weights_are_whole_vectors_and_where_not(every_isa, I, H, dtype):
    mine, its = [], []
    for seed in range(4):
        ours, theirs = cells("native", I, H, seed=seed, dtype=dtype)
        xs = torch.randn(6, 9, I, dtype=dtype)
        found, of_torch, exact = (
            dict(enumerate(torch.autograd.grad(loop(cell, v).pow(2).sum(), [v, *cell.parameters()])))
            for cell, v in (
                (ours, xs.clone().requires_grad_()),
                (theirs, xs.clone().requires_grad_()),
                (copy.deepcopy(theirs).double(), xs.double().requires_grad_()),
            )
        )
        mine += errors(found, exact, dtype).values()
        its += errors(of_torch, exact, dtype).values()
    if dtype == torch.float64:
        assert max(mine) < 1e-13
    else:
        assert_at_most_twice(mine, its)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_has_second_derivatives_and_many_gradients_at_once(backend):
    cell = tidegate.GRUCell(2, 3, dtype=torch.float64, backend=backend)
    xs = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, *_: loop(cell, v), (xs, *cell.parameters()))
    assert torch.autograd.gradgradcheck(lambda v, *_: loop(cell, v), (xs, *cell.parameters()), fast_mode=True)
    one_by_one = torch.autograd.functional.jacobian(lambda v: loop(cell, v), xs)
    at_once = torch.autograd.functional.jacobian(lambda v: loop(cell, v), xs, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_in_training_it_sees_weights_that_were_changed_past_their_version(name):
    ours, theirs = cells("native", 40, 64)
    xs = torch.randn(5, 3, 40)
    for row in range(0, 192, 17):
        with torch.no_grad():
            getattr(ours, name).data[row] += 1  # PyTorch's version counter doesn't see it
            getattr(theirs, name).data[row] += 1
        torch.testing.assert_close(loop(ours, xs), loop(theirs, xs))


def test_a_frozen_cell_passes_gradients_on_and_gets_none():
    ours, theirs = cells("native", 4, 6)
    for cell in (ours, theirs):
        cell.requires_grad_(False)
        cell.bias_hh.requires_grad_()
    xs = torch.randn(4, 2, 4)
    for cell in (ours, theirs):
        loop(cell, xs).sum().backward()
        assert cell.weight_ih.grad is None
    torch.testing.assert_close(ours.bias_hh.grad, theirs.bias_hh.grad)


@pytest.mark.parametrize(("I", "H"), [(16, 32), (5, 32), (16, 7)])
@pytest.mark.parametrize(
    "options",
    [
        {"reset": "before"},
        {"layer_norm": True},
        {"reset": "before", "layer_norm": True},
        {"bidirectional": True},
        {"checkpoint_every": 1},
    ],
    ids=str,
)
def test_a_layer_of_one_step_has_the_gradients_of_the_reference(every_isa, options, I, H):
    """Backward reads the weights where they lie, if their rows are whole vectors."""
    torch.manual_seed(2)
    ours = tidegate.GRU(I, H, dtype=torch.float64, backend="native", **options)
    theirs = tidegate.GRU(I, H, dtype=torch.float64, backend="reference", **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 9, I, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(gru(v)[0].pow(2).sum(), [v, *gru.parameters()])
        for gru, v in ((ours, x.clone().requires_grad_()), (theirs, x.clone().requires_grad_()))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_step_keeps_no_output_so_that_changing_it_costs_nothing(monkeypatch):
    cell, calls = tidegate.GRUCell(4, 5, backend="native"), []
    real = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **named: (calls.append(1), real(*args, **named))[1])
    torch.relu_(cell(torch.randn(3, 4), torch.randn(3, 5))).sum().backward()
    assert calls == [1]
