"""What the tests of torch's surface share: small layers of every form, calls of every kind, and what is compared."""

from __future__ import annotations

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

from tests.helpers.layers import FORMS, layer_of

T, B, I, H = 5, 3, 3, 4
LENGTHS, RESETS = torch.tensor([5, 0, 2]), torch.tensor([[0, 0, 1, 0, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]).bool()
CALLS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "both": {"lengths": LENGTHS, "resets": RESETS},
}
BOTH_WAYS = {"num_layers": 2, "bidirectional": True}
# "auto" takes the native back end wherever that can do what is asked, and the reference where it can't.
AUTO = ["auto", "reference"]
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
two_forms = pytest.mark.parametrize("form", [FORMS["torch's"], FORMS["all"]], ids=["torch's", "all"])
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def made(backend, form, dtype=torch.float64, training=False, **options):
    return layer_of(I, H, backend=backend, dtype=dtype, **form, **options).train(training)


def sequence(dtype=torch.float64, seed=1, steps=T, batch=B):
    torch.manual_seed(seed)
    return torch.randn(steps, batch, I, dtype=dtype)


def first_state(layer, dtype=torch.float64, batch=B):
    torch.manual_seed(2)
    return torch.randn(layer.initial_state(batch).shape, dtype=dtype)


def loss_of(output, h_n):
    return output.square().sum() + (h_n**3).sum()


def gradients(layer, x, *args, run=None, **call):
    """Values and gradients of a plain call and backward: output, h_n, d_x, d_weights by name."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    output, h_n = (layer if run is None else run)(x, *args, **call)
    loss_of(output, h_n).backward()
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "h_n": h_n.detach(), "x": x.grad, **found}


def assert_same(found, expected, **tolerance):
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def with_weights(layer, call):
    """The layer as a function of its weights, x and h_0."""
    names = [name for name, _ in layer.named_parameters()]

    def run(x, h_0, *weights):
        torch.manual_seed(0)  # the same masks each time
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x, h_0), call)

    return run


# ------------------------------------------------------------------------------------------- torch.compile


class Graphs:
    """A back end of torch.compile that runs what it is given as it is and counts: the nodes of each graph."""

    def __init__(self):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        self.nodes = []
        self.backend = aot_autograd(fw_compiler=self._seen, bw_compiler=self._seen)

    def _seen(self, graph, _):
        self.nodes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    def captured(self):
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def compile(self, function, **options):
        return torch.compile(function, backend=self.backend, fullgraph=True, **options)  # raises where it would break


COMPILED = {  # what a compiled call may look like; each is a function of the layer and the numbers of steps and sequences
    "plain": lambda layer, t, b: ((sequence(layer.dtype, steps=t, batch=b),), {}),
    "state": lambda layer, t, b: ((sequence(layer.dtype, steps=t, batch=b), first_state(layer, layer.dtype, b)), {}),
    "lengths": lambda layer, t, b: (
        (sequence(layer.dtype, steps=t, batch=b),),
        {"lengths": torch.arange(b) * t // max(1, b - 1)},
    ),
    "all": lambda layer, t, b: (
        (sequence(layer.dtype, steps=t, batch=b), first_state(layer, layer.dtype, b)),
        {"lengths": torch.arange(b) * t // max(1, b - 1), "resets": torch.arange(b * t).view(b, t) % 3 == 0},
    ),
}


def compiled_case(backend, form, **options):
    layer = made(backend, form, **BOTH_WAYS, **options)
    layer.dtype = torch.float64
    return layer


COMPILED_FORMS = [
    ("plain", "torch's"),
    ("state", "torch's"),
    ("lengths", "torch's"),
    ("all", "torch's"),
    ("all", "all"),
]
compiled_forms = pytest.mark.parametrize(
    ("kind", "form"), [(kind, FORMS[form]) for kind, form in COMPILED_FORMS], ids=map(" ".join, COMPILED_FORMS)
)


def packed(sequences):
    return pack_sequence(sequences, enforce_sorted=False)
