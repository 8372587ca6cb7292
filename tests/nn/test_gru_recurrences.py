"""Recurrences that `torch.nn.GRU` does not have: reset before, layer norm, zoneout, dropout; and how a layer begins."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import tidegate
from tests.helpers.layers import FORMS, OURS, layer_of

# ------------------------------------------------------------------------------------------- other recurrences


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_the_native_layer_gives_what_the_reference_gives(form, training):
    x, more = torch.randn(6, 3, 4, dtype=torch.float64), {"lengths": [6, 0, 4], "resets": torch.rand(3, 6) < 0.3}
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.2, "dtype": torch.float64, **form}
    found = []
    for backend in OURS:
        layer = layer_of(4, 7, backend=backend, **options).train(training)
        torch.manual_seed(3)
        output, h_n = layer(x, **more)
        found.append([output, h_n, *torch.autograd.grad(output.sum() + h_n.square().sum(), [*layer.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", OURS)
def test_evaluation_uses_expectations_and_training_draws_again_each_call(backend):
    x = torch.randn(5, 3, 4)
    for form in ({"recurrent_dropout": 0.4}, {"zoneout": 0.3}):
        layer = layer_of(4, 7, backend=backend, **form)
        assert not torch.equal(layer(x)[0], layer(x)[0])
        torch.manual_seed(1)
        first = layer(x)[0]
        torch.manual_seed(1)
        assert torch.equal(layer(x)[0], first)
        layer.eval()
        assert torch.equal(layer(x)[0], layer(x)[0])
        torch.manual_seed(1)
        assert not torch.equal(layer(x)[0], first)


@pytest.mark.parametrize("backend", OURS)
def test_zoneout_keeps_a_unit_as_often_as_it_should_and_a_part_of_it_in_evaluation(backend):
    layer = layer_of(4, 50, backend=backend, zoneout=0.25)
    x, h_0 = torch.randn(40, 50, 4), torch.randn(1, 50, 50)
    output, _ = layer(x, h_0)
    before = torch.cat([h_0, output[:-1]])
    kept = (output == before).double().mean().item()
    assert abs(kept - 0.25) < 0.01
    layer.eval()
    plain = layer_of(4, 50, backend=backend)
    torch.testing.assert_close(layer(x[:1], h_0)[0], 0.25 * h_0 + 0.75 * plain(x[:1], h_0)[0], rtol=1e-5, atol=1e-6)
    layer.zoneout = 1.0
    assert torch.equal(layer(x, h_0)[0], h_0.expand(40, 50, 50))


@pytest.mark.parametrize("backend", OURS)
def test_recurrent_dropout_masks_the_same_units_at_every_step_and_never_the_memory_itself(backend):
    layer = layer_of(1, 40, backend=backend, recurrent_dropout=0.5)
    with torch.no_grad():  # only what a state says to the candidate of its own unit, and z = 1/2
        for p in layer.parameters():
            p.zero_()
        layer.weight_hh_l0[80:].copy_(torch.eye(40))
        layer.bias_ih_l0[:40] = 20  # r = 1
    output, _ = layer(torch.zeros(6, 1, 1), torch.full((1, 1, 40), 0.1))
    before, after = output[:-1, 0], output[1:, 0]
    dropped = torch.isclose(after, before / 2)  # n = tanh(0)
    doubled = torch.isclose(after, (torch.tanh(2 * before) + before) / 2)
    assert (dropped ^ doubled).all()
    assert (dropped == dropped[0]).all()
    assert 5 < dropped[0].sum() < 35


@pytest.mark.parametrize("backend", OURS)
def test_layer_norm_makes_the_layer_indifferent_to_the_scale_of_its_input(backend):
    layer = layer_of(4, 16, backend=backend, layer_norm=True)
    plain = layer_of(4, 16, backend=backend)
    x = torch.randn(6, 2, 4)
    torch.testing.assert_close(layer(100 * x)[0], layer(1e4 * x)[0], rtol=1e-4, atol=1e-4)
    assert (plain(100 * x)[0] - plain(1e4 * x)[0]).abs().max() > 0.1


def test_the_gains_of_layer_norm_are_parameters_that_start_at_one():
    layer = tidegate.GRU(3, 4, num_layers=2, bidirectional=True, layer_norm=True)
    names = [name for name, _ in layer.named_parameters() if "ln" in name]
    assert names == [f"weight_ln_{side}_l{k}{way}" for k in (0, 1) for way in ("", "_reverse") for side in ("ih", "hh")]
    assert all((getattr(layer, name) == 1).all() for name in names)
    assert [len(ws) for ws in layer.all_weights] == [6] * 4


def test_nothing_of_all_that_is_in_a_layer_by_default():
    layer = tidegate.GRU(3, 4, 2, bidirectional=True)
    assert [*layer.state_dict()] == [*nn.GRU(3, 4, 2, bidirectional=True).state_dict()]


@pytest.mark.parametrize("form", [*FORMS.values(), {"zoneout": 0.3, "reset": "before"}], ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", OURS)
def test_steps_give_what_one_call_over_the_sequence_gives(backend, grad, form):
    layer = layer_of(4, 20, num_layers=2, backend=backend, **form).eval()
    x = torch.randn(6, 3, 4)
    with torch.set_grad_enabled(grad):
        output, h_n = layer(x)
        state = None
        for t, x_t in enumerate(x):
            y, state = layer.step(x_t, state)
            if backend == "native":
                assert torch.equal(y, output[t])
            torch.testing.assert_close(y, output[t])
        torch.testing.assert_close(state, h_n)


def test_a_changed_form_is_noticed_between_two_steps():
    layer = layer_of(4, 8, backend="native").eval()
    x_t, state = torch.randn(2, 4), torch.randn(1, 2, 8)
    with torch.no_grad():
        plain = [layer.step(x_t, state)[0] for _ in range(3)][-1]
        for name, value in (("reset", "before"), ("zoneout", 0.5), ("reset", "after"), ("zoneout", 0.0)):
            setattr(layer, name, value)
            other = copy.deepcopy(layer)
            other.backend = "reference"
            torch.testing.assert_close(layer(x_t.unsqueeze(0), state), other(x_t.unsqueeze(0), state))
            expected = layer(x_t.unsqueeze(0), state)[0][0]
            for _ in range(3):
                assert torch.equal(layer.step(x_t, state)[0], expected)
        assert torch.equal(expected, plain)


# ------------------------------------------------------------------------------------------- how a layer begins


def test_the_initial_state_is_zeros_or_learned():
    plain = tidegate.GRU(3, 4, 2, bidirectional=True, dtype=torch.float64)
    assert torch.equal(plain.initial_state(5), torch.zeros(4, 5, 4, dtype=torch.float64))
    assert plain.initial_state().shape == (4, 4)
    layer = tidegate.GRU(3, 4, 2, bidirectional=True, learn_initial_state=True)
    assert layer.initial_h.shape == (4, 4)
    assert (layer.initial_h == 0).all()
    with torch.no_grad():
        layer.initial_h.normal_()
    x = torch.randn(6, 5, 3)
    torch.testing.assert_close(layer(x), layer(x, layer.initial_state(5)))
    assert layer(x)[1].sum().backward() is None
    assert layer.initial_h.grad.abs().min() > 0


def test_a_learned_initial_state_trains():
    torch.manual_seed(0)
    layer = tidegate.GRU(1, 8, learn_initial_state=True)
    optimiser = torch.optim.Adam(layer.parameters(), 0.02)
    target = torch.linspace(-0.8, 0.8, 8)  # of the very first step, with nothing in x to tell it
    for _ in range(200):
        optimiser.zero_grad()
        loss = (layer(torch.zeros(1, 2, 1))[0] - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-3
    assert layer.initial_h.abs().max() > 0.05


def test_orthogonal_weights_are_so_for_each_gate():
    layer = tidegate.GRU(5, 16, 2, bidirectional=True, init="orthogonal")
    for names in layer._weight_names:
        w_ih, w_hh, b_ih, b_hh = (getattr(layer, name).detach() for name in names)
        for gate in w_hh.chunk(3):
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=0, atol=1e-5)
        bound = math.sqrt(6 / (16 + w_ih.size(1)))
        for gate in w_ih.chunk(3):
            assert 0.8 * bound < gate.abs().max() <= bound
        assert not b_ih.any()
        assert not b_hh.any()
    assert not torch.equal(*layer.weight_hh_l0.detach().chunk(3)[:2])


def test_the_memory_that_was_asked_for_is_the_memory_there_is():
    """With nothing else to hear, the state falls to 1/e in τ steps."""
    layer = tidegate.GRU(1, 6, update_bias=50.0)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("weight"):
                p.zero_()
        layer.bias_ih_l0[12:] = layer.bias_hh_l0[12:] = 0
    output, _ = layer(torch.zeros(50, 1, 1), torch.ones(1, 1, 6))
    torch.testing.assert_close(output[-1], torch.full((1, 6), (1 - 1 / 50) ** 50), rtol=1e-4, atol=0)
    assert output[-1, 0, 0].item() == pytest.approx(1 / math.e, rel=0.02)


def test_a_range_of_memories_is_chrono_initialisation():
    torch.manual_seed(0)
    layer = tidegate.GRU(1, 4000, num_layers=2, update_bias=(2, 100))
    for k in range(2):
        b_iz, b_hz = (getattr(layer, f"bias_{side}_l{k}").detach()[4000:8000] for side in ("ih", "hh"))
        assert not b_hz.any()
        steps = b_iz.exp() + 1
        assert 2 <= steps.min() < 3
        assert 99 < steps.max() <= 100.01
        assert abs(steps.mean().item() - 51) < 2
    same = tidegate.GRU(3, 4)
    torch.manual_seed(1)
    same.reset_parameters()
    torch.manual_seed(1)
    other = tidegate.GRU(3, 4, update_bias=10)
    assert torch.equal(same.weight_hh_l0, other.weight_hh_l0)  # the rest is drawn as ever
