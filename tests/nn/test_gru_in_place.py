"""Results that their owner changes in place between forward and backward, as `torch.nn.GRU` on the CPU allows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tidegate

CHANGES = {
    "relu_": torch.relu_,
    "dropout": lambda v: nn.functional.dropout(v, 0.5, True, inplace=True),
    "part": lambda v: v[4:].zero_(),
    "masked": lambda v: v.masked_fill_(torch.arange(len(v)).view(-1, *(1,) * (v.dim() - 1)) > 3, 0.0),
    "scaled": lambda v: v.mul_(2).add_(1),
}


def pair(**options):
    torch.manual_seed(1)
    theirs = nn.GRU(4, 5, **options)
    ours = tidegate.GRU(4, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def gradients(layer, x, change, weight=None):
    """The gradients of the weights and of x after `change` of the output."""
    layer = copy.deepcopy(layer)
    x = x.clone().requires_grad_()
    output, h_n = layer(x)
    torch.manual_seed(3)
    change(output)
    loss = output.pow(2).sum() + h_n.sum()
    loss.backward()
    return [x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_an_output_that_is_changed_in_place_has_the_gradients_of_torch(options, change):
    theirs, ours = pair(**options)
    x = torch.randn(6, 3, 4)
    for expected, found in zip(gradients(theirs, x, change), gradients(ours, x, change), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_so_has_one_that_began_at_a_state(options):
    found = []
    for layer in pair(**options):
        torch.manual_seed(2)
        x, h_0 = torch.randn(6, 3, 4), torch.randn(4 if options else 1, 3, 5, requires_grad=True)
        output, h_n = layer(x, h_0)
        torch.relu_(output)
        (output.pow(2).sum() + h_n.sum()).backward()
        found.append([h_0.grad, *(p.grad for p in layer.parameters())])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


FORMS = [
    {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.2, "reset": "before"},
    {"checkpoint_every": 2},
    {"learn_initial_state": True},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "more", [{}, {"lengths": [6, 0, 4]}, {"resets": torch.tensor([[0, 0, 1, 0, 1, 0]] * 3).bool()}]
)
def test_an_output_that_is_changed_in_place_has_the_bits_of_a_changed_copy(form, more):
    torch.manual_seed(0)
    layer, x = tidegate.GRU(4, 5, num_layers=2, bidirectional=True, **form), torch.randn(6, 3, 4)
    found = []
    for given in (lambda v: v.clone(), lambda v: v):
        layer.zero_grad()
        torch.manual_seed(5)
        output, h_n = layer(x, **more)
        output = given(output)
        (torch.relu_(output).pow(2).sum() + h_n.sum()).backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    assert all(map(torch.equal, *found))


def test_a_packed_output_and_a_step_and_a_cell_may_be_changed_in_place_too():
    theirs, ours = pair()
    packed = pack_sequence([torch.randn(n, 4) for n in (5, 3, 1)])

    def of_packed(layer):
        output, _ = layer(packed)
        assert isinstance(output, PackedSequence)
        torch.relu_(output.data).sum().backward()
        return [p.grad for p in layer.parameters()]

    for expected, found in zip(of_packed(theirs), of_packed(ours), strict=True):
        torch.testing.assert_close(found, expected)

    torch.manual_seed(0)
    cells = nn.GRUCell(4, 5), tidegate.GRUCell(4, 5)
    cells[1].load_state_dict(cells[0].state_dict())
    x = torch.randn(6, 3, 4)

    def of_steps(call, module):
        h, outputs = torch.zeros(3, 5), []
        for x_t in x:
            h = call(x_t, h)
            torch.relu_(h)
            outputs.append(h)
        torch.stack(outputs).pow(2).sum().backward()
        return [p.grad for p in module.parameters()]

    expected = of_steps(cells[0], cells[0])
    for a, b in zip(expected, of_steps(cells[1], cells[1]), strict=True):
        torch.testing.assert_close(b, a)

    def step(x_t, h):
        return ours.step(x_t, h[None])[0]

    ours.zero_grad()
    ours.load_state_dict({f"{name}_l0": value for name, value in cells[0].state_dict().items()})
    for a, b in zip(expected, of_steps(step, ours), strict=True):
        torch.testing.assert_close(b, a)


def test_a_graph_that_is_kept_gives_the_same_gradients_twice():
    _, layer = pair()
    x = torch.randn(6, 3, 4)
    output, _ = layer(x)
    loss = torch.relu_(output).sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(layer.parameters()))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_second_derivatives_pass_an_output_that_was_changed_in_place():
    theirs, ours = (layer.double() for layer in pair())
    x = torch.randn(6, 3, 4, dtype=torch.float64)

    def second(layer):
        given = x.clone().requires_grad_()
        output = torch.relu_(layer(given)[0])
        first = torch.autograd.grad(output.pow(2).sum(), given, create_graph=True)[0]
        return torch.autograd.grad(first.pow(2).sum(), [given, *layer.parameters()])

    for expected, found in zip(second(theirs), second(ours), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_within_a_checkpoint_the_gradients_are_right_too(reentrant):
    theirs, ours = pair()
    x = torch.randn(6, 3, 4, requires_grad=True)

    def run(layer):
        def part(x):
            return torch.relu_(layer(x)[0])

        checkpoint(part, x, use_reentrant=reentrant).pow(2).sum().backward()
        return [p.grad for p in layer.parameters()]

    for expected, found in zip(run(theirs), run(ours), strict=True):
        torch.testing.assert_close(found, expected)


def test_under_hooks_for_saved_tensors_the_gradients_are_right_too():
    theirs, ours = pair()
    x = torch.randn(6, 3, 4)

    def run(layer):
        with torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v):
            output = torch.relu_(layer(x)[0])
        output.pow(2).sum().backward()
        return [p.grad for p in layer.parameters()]

    for expected, found in zip(run(theirs), run(ours), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_within_the_transforms_of_torch_func_the_gradients_are_right_too(options):
    layer, x = tidegate.GRU(4, 5, **options), torch.randn(3, 6, 2, 4)
    weights = dict(layer.named_parameters())

    def loss(change):
        def of(weights, x):
            output, h_n = torch.func.functional_call(layer, weights, (x,))
            return change(output).pow(2).sum() + h_n.sum()

        return of

    for each in (
        lambda f: torch.func.grad(f)(weights, x[0]),
        lambda f: torch.func.vmap(torch.func.grad(f), (None, 0))(weights, x),
    ):
        expected, found = each(loss(torch.relu)), each(loss(torch.relu_))
        for name in weights:
            assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("layer", [tidegate.MinGRU(4, 5, num_layers=2, bidirectional=True), tidegate.MinGRU(4, 5)])
@pytest.mark.parametrize("T", [1, 2, 6])
def test_so_may_the_output_of_a_mingru(T, layer):
    x, found = torch.randn(T, 3, 4), []
    for given in (lambda v: v.clone(), lambda v: v):
        output, h_n = layer(x)
        output = given(output)
        output[T // 2 :] = 0
        loss = torch.relu_(output.sub_(0.1)).pow(2).sum() + h_n.mul_(2).sum()
        found.append(torch.autograd.grad(loss, [*layer.parameters()]))
    assert all(map(torch.equal, *found))


def test_a_compiled_call_refuses_it_and_takes_it_inside():
    layer, x = tidegate.GRU(4, 5), torch.randn(6, 3, 4)
    output, _ = torch.compile(layer, backend="aot_eager")(x)
    torch.relu_(output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    found = []
    for compiled in (True, False):

        def rectified(x):
            return torch.relu_(layer(x)[0])

        call = torch.compile(rectified, backend="aot_eager") if compiled else rectified
        found.append(torch.autograd.grad(call(x).pow(2).sum(), [*layer.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_registered_operator_allows_it_too():
    theirs, ours = pair()
    x = torch.randn(6, 3, 4)
    expected = gradients(theirs, x, torch.relu_)
    with FlopCounterMode(display=False):  # a dispatch mode: so the operator runs
        found = gradients(ours, x, torch.relu_)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("what", ["x", "h_0", "weight"])
def test_what_nn_gru_refuses_is_refused(what):
    for layer in pair():
        x, h_0 = torch.randn(6, 3, 4), torch.zeros(1, 3, 5)
        output, _ = layer(x, h_0)
        torch.relu_(output)
        with torch.no_grad():
            {"x": x, "h_0": h_0, "weight": layer.weight_hh_l0}[what].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
