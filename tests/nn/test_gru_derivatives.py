"""Derivatives of every kind through `tidegate.GRU`: compared with finite differences, with `torch.nn.GRU` or with plain calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import hessian, jacfwd, jacrev

from tests.helpers.layers import FORMS, OURS, pair
from tests.helpers.surface import (
    AUTO,
    BOTH_WAYS,
    CALLS,
    LENGTHS,
    RESETS,
    B,
    H,
    I,
    T,
    assert_same,
    calls,
    first_state,
    gradients,
    loss_of,
    made,
    sequence,
    two_forms,
    with_weights,
)
from tidegate.errors import BackendUnavailableError

# (Of every option and pair of options: tests/ops/test_gru_extras.py.)


@pytest.mark.one_in(5)
@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_first_and_second_derivatives_are_right_in_training(backend, form):
    layer = made(backend, form, training=True, bidirectional=True)
    inputs = [v.requires_grad_() for v in (sequence(), first_state(layer))] + [*layer.parameters()]
    run = with_weights(layer, CALLS["both"])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.long
@pytest.mark.parametrize("backend", OURS)
def test_second_derivatives_of_the_gates_are_right(backend):
    layer = made(backend, FORMS["all"], training=True)

    def run(x, h_0, *weights):
        torch.manual_seed(0)
        names = [name for name, _ in layer.named_parameters()]
        with nn.utils.stateless._reparametrize_module(layer, dict(zip(names, weights, strict=True))):
            return layer.trace(x, h_0, resets=RESETS, lengths=LENGTHS)["l0"]

    inputs = [v.requires_grad_() for v in (sequence(), first_state(layer))] + [*layer.parameters()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.one_in(12)
@two_forms
@pytest.mark.parametrize("backend", AUTO)
def test_forward_mode_derivatives_are_right(backend, form):
    layer = made(backend, form, training=True, bidirectional=True)
    inputs = [v.requires_grad_() for v in (sequence(), first_state(layer))] + [*layer.parameters()]
    run = with_weights(layer, CALLS["both"])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


def test_a_back_end_without_forward_mode_says_so_and_auto_takes_another():
    layer, x = made("auto", {}), sequence()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(layer(dual)[0]).tangent.abs().sum() > 0
        layer.backend = "native"
        with pytest.raises(BackendUnavailableError, match="forward-mode"):
            layer(dual)
        with torch.no_grad(), pytest.raises(BackendUnavailableError, match="forward-mode"):
            layer.step(dual[0])


@pytest.mark.one_in(5)
@two_forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_every_way_to_a_jacobian_gives_the_same_one(backend, call, form):
    layer, x = made(backend, form), sequence()

    def run(x):
        return layer(x, **call)[0]

    row_by_row = torch.autograd.functional.jacobian(run, x)
    assert row_by_row.abs().sum() > 0
    at_once = torch.autograd.functional.jacobian(run, x, vectorize=True)  # is_grads_batched: a vmap around backward
    assert_same([at_once, jacrev(run)(x), jacfwd(run)(x)], 3 * [row_by_row])


@pytest.mark.parametrize("backend", AUTO)
def test_the_hessian_is_that_of_torch(backend):
    ours, theirs = pair(backend, I, H, num_layers=2, dtype=torch.float64)
    x = sequence(steps=3, batch=2)
    expected = torch.autograd.functional.hessian(lambda x: loss_of(*theirs(x)), x)
    assert_same(hessian(lambda x: loss_of(*ours(x)))(x), expected)


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_a_batch_of_nothing_but_padding_has_gradients_of_zero(backend, form):
    found = gradients(made(backend, form, num_layers=2), sequence(), lengths=[0, 0, 0])
    assert found["x"].shape == (T, B, I)
    assert all(not found[name].any() for name in found if name not in ("h_n", "initial_h"))


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_what_lies_between_the_sequences_of_a_nested_tensor_is_zero_and_has_no_gradient(backend, form, monkeypatch):
    # Memory that nobody has written is full of what was there before.
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda v, *shape, **k: v.new_full(shape, torch.nan, **k))
    layer, base = made(backend, form, **BOTH_WAYS), sequence(steps=3, batch=9).requires_grad_()
    starts, lengths = torch.tensor([5, 0, 2]), torch.tensor([3, 2, 0])
    output, h_n = layer(torch.nested.narrow(base, 1, starts, lengths, layout=torch.jagged))
    loss_of(output.values(), h_n).backward()

    between = torch.ones(3, 9, dtype=torch.bool)
    for b, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        between[b, start : start + n] = False
        assert_same(output.values().view(3, 9, -1)[b, start : start + n], layer(base[b, start : start + n])[0])
    assert not output.values().view(3, 9, -1)[between].any()
    assert not base.grad[between].any()
    assert base.grad[~between].abs().min() > 0


@two_forms
@calls
@pytest.mark.parametrize("backend", OURS)
def test_backward_in_evaluation_is_that_of_training_without_chance(backend, call, form):
    certain = {k: v for k, v in form.items() if k not in ("zoneout", "recurrent_dropout")}
    layer, x = made(backend, certain, dropout=0.0, num_layers=2), sequence()
    expected = gradients(layer.train(), x, **call)
    assert_same(gradients(layer.eval(), x, **call), expected)
    if not certain and not call:
        theirs = nn.GRU(I, H, 2, dtype=torch.float64).eval()
        theirs.load_state_dict(layer.state_dict())
        assert_same(gradients(layer, x), gradients(theirs, x))
