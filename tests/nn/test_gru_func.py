"""torch.func with `tidegate.GRU`: whatever a transform gives is compared with plain calls, one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from tests.helpers.layers import FORMS, jagged
from tests.helpers.surface import (
    AUTO,
    LENGTHS,
    I,
    assert_same,
    calls,
    first_state,
    forms,
    gradients,
    loss_of,
    made,
    sequence,
    two_forms,
)
from tidegate import backends
from tidegate.errors import BackendUnavailableError, ShapeError


def one_by_one(layer, x, call):
    """The gradients of the weights, a sample at a time, by plain backward."""
    found = []
    for b in range(x.size(1)):
        own = {name: v[b : b + 1] for name, v in call.items()}
        each = gradients(layer, x[:, b : b + 1], **own)
        found.append({name: each.get(name, torch.zeros_like(p)) for name, p in layer.named_parameters()})
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


@forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_per_sample_gradients_equal_those_of_each_sample_alone(backend, call, form):
    layer, x = made(backend, form, bidirectional=True), sequence()
    x[2:, 2] = torch.nan if "lengths" in call else x[2:, 2]  # padding is not looked at

    def loss(weights, x, call):
        own = {name: v.unsqueeze(0) for name, v in call.items()}
        return loss_of(*functional_call(layer, weights, (x.unsqueeze(1),), own))

    weights = dict(layer.named_parameters())
    assert_same(vmap(grad(loss), in_dims=(None, 1, 0))(weights, x, call), one_by_one(layer, x, call))


@pytest.mark.parametrize("backend", AUTO)
def test_wrong_lengths_are_told_inside_vmap_too(backend):
    layer, lengths = made(backend, {}), torch.tensor([[5], [-1], [2]])
    with pytest.raises(ShapeError, match=r"a length is -1, expected 0 \.\.\. 5"):
        vmap(lambda x, n: layer(x, lengths=n)[1], in_dims=(1, 0))(sequence().unsqueeze(2), lengths)


@forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_an_ensemble_gives_what_its_members_give(backend, call, form):
    members = [made(backend, form, seed=seed, num_layers=2) for seed in range(3)]
    x, h_0 = sequence(), first_state(members[0])
    weights, _ = stack_module_state(members)
    empty = copy.deepcopy(members[0]).to("meta")  # the weights come from outside

    def run(weights, x, h_0):
        return functional_call(empty, weights, (x, h_0), call)

    found = vmap(run, in_dims=(0, None, None))(weights, x, h_0)
    assert_same([v.unbind() for v in found], list(zip(*(m(x, h_0, **call) for m in members), strict=True)))


@two_forms
@pytest.mark.parametrize("backend", AUTO)
def test_a_vmap_of_single_steps_gives_what_a_batch_gives(backend, form):
    layer = made(backend, {k: v for k, v in form.items() if k != "checkpoint_every"}, num_layers=2)
    x, h = sequence()[0], first_state(layer)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            y, state = layer.step(x, h)
            y, state = layer.step(x, h)  # the second takes the quick road
            assert_same(vmap(layer.step, in_dims=(0, 1), out_dims=(0, 1))(x, h), (y, state))


@pytest.mark.parametrize("backend", AUTO)
def test_every_element_of_a_vmap_draws_masks_of_its_own_where_that_is_wished(backend):
    layer, x = made(backend, FORMS["all"], training=True), sequence(batch=1)
    for randomness, equal in (("same", True), ("different", False)):
        y = vmap(lambda _: layer(x)[0], randomness=randomness)(torch.zeros(2))
        assert torch.equal(y[0], y[1]) is equal
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda _: layer(x)[0])(torch.zeros(2))


@two_forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_gradients_of_gradients_of_torch_func_are_those_of_autograd(backend, call, form):
    layer, x = made(backend, form, bidirectional=True), sequence()

    def loss(x, weight):
        with nn.utils.stateless._reparametrize_module(layer, {"weight_hh_l0": weight}):
            trace = layer.trace(x, **call)
        return loss_of(trace.output, trace.h_n) + trace["l0"].update.square().sum()

    def penalty(x, weight):
        return sum(v.square().sum() for v in grad(loss, argnums=(0, 1))(x, weight))

    weight = layer.weight_hh_l0.detach()
    found = grad(penalty, argnums=(0, 1))(x, weight)
    several = vmap(grad(penalty, argnums=(0, 1)), in_dims=(0, None))(torch.stack([x, 2 * x]), weight)

    layer.backend = "reference"
    leaves = [x.requires_grad_(), weight.clone().requires_grad_()]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(v.square().sum() for v in first), leaves)
    assert_same(found, expected, rtol=1e-9, atol=1e-9)
    assert_same([v[0] for v in several], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", AUTO)
def test_gradients_of_torch_func_go_through_a_nested_tensor(backend):
    layer = made(backend, FORMS["all"])
    x = jagged([torch.randn(n, I, dtype=torch.float64) for n in (4, 1, 3)])
    found = grad(lambda weights: functional_call(layer, weights, (x,))[1].square().sum())(
        dict(layer.named_parameters())
    )
    layer(x)[1].square().sum().backward()
    assert_same(found, {name: p.grad for name, p in layer.named_parameters()})


def test_torchs_back_end_runs_in_a_transform_or_says_that_it_cannot():
    layer, x = made("torch", {}), sequence()
    weights = dict(layer.named_parameters())

    def loss(weights, x, **call):
        return loss_of(*functional_call(layer, weights, (x,), call))

    assert_same(vmap(grad(loss), in_dims=(None, 1))(weights, x.unsqueeze(2)), one_by_one(layer, x, {}))
    with pytest.raises(BackendUnavailableError, match=r"no rule for torch\.func\.vmap"):
        vmap(layer, in_dims=1)(x.unsqueeze(2))
    with pytest.raises(BackendUnavailableError, match="lengths"):
        grad(loss)(weights, x, lengths=LENGTHS)
    assert backends.explain(device="cuda", wishes=["lengths in torch.compile or torch.func"]).chosen == "reference"
