"""`tidegate.GRUCell` held against `torch.nn.GRUCell`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import tidegate
from tests.helpers.layers import BACKENDS, EXACT, assert_at_most_twice, cells, errors
from tidegate.errors import SettingsError, ShapeError


def values_and_gradients(cell, x, h):
    leaves = {"d_x": x.clone().requires_grad_(), **{f"d_{n}": p for n, p in cell.named_parameters()}}
    if h is not None:
        leaves["d_h"] = h.clone().requires_grad_()
    h_next = cell(leaves["d_x"], leaves.get("d_h"))
    torch.manual_seed(3)
    d_h_next = torch.randn(h_next.shape, dtype=torch.float64).to(h_next.dtype)
    gradients = torch.autograd.grad(h_next, list(leaves.values()), d_h_next)
    return {"h_next": h_next.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_h", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (5,), (0,)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("H", [1, 7, 33])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_are_those_of_torch(backend, H, bias, batch, with_h, dtype):
    mine, its = [], []
    for seed in range(5):
        ours, theirs = cells(backend, 4, H, seed=seed, bias=bias, dtype=dtype)
        x, h = torch.randn(*batch, 4, dtype=dtype), torch.randn(*batch, H, dtype=dtype) if with_h else None
        of_ours, of_torch = values_and_gradients(ours, x, h), values_and_gradients(theirs, x, h)
        exact = values_and_gradients(theirs.double(), x.double(), None if h is None else h.double())
        mine += errors(of_ours, exact, dtype).values()
        its += errors(of_torch, exact, dtype).values()
        if backend in EXACT:
            for name, value in of_torch.items():
                assert torch.equal(of_ours[name], value), name
    if dtype == torch.float64:
        assert max(mine) < 1e-14
    else:
        assert_at_most_twice(mine, its)


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_made_as_torch_makes_it(bias):
    torch.manual_seed(5)
    theirs = nn.GRUCell(3, 9, bias, "cpu", torch.float64)
    torch.manual_seed(5)
    ours = tidegate.GRUCell(3, 9, bias, "cpu", torch.float64)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for v, w in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(v, w)
    assert (ours.bias_ih is None) == (theirs.bias_ih is None)
    theirs.reset_parameters()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.weight_hh, theirs.weight_hh)
    assert [ours.input_size, ours.hidden_size, ours.bias] == [
        theirs.input_size,
        theirs.hidden_size,
        theirs.bias,
    ]


def test_copies_are_equal_and_independent():
    cell = tidegate.GRUCell(3, 4, backend="reference")
    x = torch.randn(2, 3)
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert repr(other) == repr(cell) == "GRUCell(3, 4, backend='reference')"
        assert torch.equal(other(x), cell(x))
        with torch.no_grad():
            other.weight_ih.zero_()
        assert not torch.equal(other(x), cell(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_swapped_and_parametrised_weights_are_the_ones_that_run(backend):
    ours, theirs = cells(backend, 3, 4)
    x = torch.randn(2, 3)
    with torch.no_grad():
        theirs.weight_ih.mul_(2)
    twice = torch.func.functional_call(ours, {"weight_ih": 2 * ours.weight_ih}, (x,))
    torch.testing.assert_close(twice, theirs(x))
    nn.utils.parametrizations.weight_norm(ours, "weight_ih")
    with torch.no_grad():
        ours.parametrizations.weight_ih.original0.mul_(2)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((0, 4), SettingsError),
        ((3, -1), SettingsError),
        ((3.0, 4), TypeError),
        ((3, 4, "relu"), TypeError),
        ((3, 4, 1), TypeError),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(args, expected):
    with pytest.raises(expected, match=r"GRUCell: (input_size|hidden_size|bias) "):
        tidegate.GRUCell(*args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_tensors_are_told_with_the_answer_in_it(backend):
    me = "GRUCell(input_size=3, hidden_size=4): "
    cell = tidegate.GRUCell(3, 4, backend=backend)

    def told(*args):
        with pytest.raises(ShapeError) as caught:
            cell(*args)
        return str(caught.value)

    x = torch.zeros(2, 3)
    assert told(torch.zeros(2, 5)) == me + "x has 5 features, expected 3. x is [B=2, I=5]."
    assert told(torch.zeros(5)) == me + "x has 5 features, expected 3. x is [I=5]."
    assert told(torch.zeros(1, 2, 3)) == (
        me + "x has 3 axes, expected 2, [B, I], or 1, [I], without a batch. x is [1, 2, 3]."
    )
    assert told(x, torch.zeros(3, 4)) == me + "h_0 is [3, 4], expected [B=2, H=4] for this x."
    assert told(x, torch.zeros(4)) == me + "h_0 is [4], expected [B=2, H=4] for this x."
    assert told(torch.zeros(3), torch.zeros(1, 4)) == me + "h_0 is [1, 4], expected [H=4] for this x."
    assert "x is torch.float64" in told(x.double())
    assert "h_0 is torch.float64" in told(x, torch.zeros(2, 4).double())
    assert "x is on meta" in told(x.to("meta"))
    with pytest.raises(TypeError, match="x is of type list"):
        cell([1.0, 2.0, 3.0])
