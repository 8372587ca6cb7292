"""Narrow numbers and checkpoints: what autocast stores, and what is kept for backward."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.helpers.layers import FORMS, IN_FLOAT32, OURS, error, jagged
from tests.helpers.surface import (
    BOTH_WAYS,
    CALLS,
    B,
    H,
    I,
    assert_same,
    calls,
    first_state,
    gradients,
    loss_of,
    made,
    packed,
    sequence,
    two_forms,
)

# ------------------------------------------------------------------------------------------- narrow numbers


@two_forms
@calls
@pytest.mark.parametrize(("backend", "dtype"), IN_FLOAT32, ids=str)
def test_autocast_stores_narrow_numbers_and_computes_in_float32(backend, dtype, call, form):
    layer = made(backend, form, dtype=torch.float32, num_layers=2)
    x, h_0 = sequence(torch.float32).to(dtype), first_state(layer, torch.float32).to(dtype)
    exact = layer(x.float(), h_0.float(), **call)
    with torch.autocast("cpu", dtype=dtype):
        narrow, wide = layer(x, h_0, **call), layer(x.float(), h_0, **call)
        trace = layer.trace(x, h_0, **call)
    loss_of(*wide).backward()
    assert_same(narrow, [v.to(dtype) for v in exact], rtol=0, atol=0)
    assert_same(wide, exact, rtol=0, atol=0)
    assert trace["l1"].update.dtype == dtype
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    expected = gradients(layer, x.float(), h_0.float(), **call)
    assert_same(found, {name: expected[name] for name in found}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", OURS)
def test_autocast_takes_every_mixture(backend, weights, state, dtype):
    layer = made(backend, FORMS["all"], dtype=weights)
    x, h_0 = sequence(torch.float64), first_state(layer)
    exact = copy.deepcopy(layer).double()(x, h_0, **CALLS["both"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x.to(dtype), h_0.to(state), **CALLS["both"])
    for a, b in zip(found, exact, strict=True):
        assert error(a, b) < 0.02  # three roundings to 8 bits, one of them of a state that is normalised


@pytest.mark.long
@pytest.mark.parametrize(("backend", "form"), [("native", FORMS["all"]), ("reference", {})], ids=OURS)
def test_autocast_and_half_types_compile(backend, form):
    layer = made(backend, form, dtype=torch.float32)
    x = sequence(torch.float32, steps=2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lengths = torch.tensor([2, 0, 1])
        pairs = [(compiled(x.bfloat16(), lengths=lengths), layer(x.bfloat16(), lengths=lengths))]
    layer.bfloat16()
    pairs.append((compiled(x.bfloat16()), layer(x.bfloat16())))
    for found, expected in pairs:
        if backend == "native":  # compiled, all is float32; in eager mode products are bfloat16
            assert [v.dtype for v in found] == [v.dtype for v in expected]
            assert all(error(a.float(), b.float()) < 0.02 for a, b in zip(found, expected, strict=True))
        else:
            assert_same(found, expected)


# ------------------------------------------------------------------------------------------- memory


def kept_for_backward(layer, x, h_0, **call):
    """The bytes that autograd keeps, of all but what is there in any case."""
    kept = {}

    def pack(v):
        kept[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        output, h_n = layer(x, h_0, **call)
    for known in (x, h_0, output, h_n, *layer.parameters()):
        kept.pop(known.untyped_storage().data_ptr(), None)
    return sum(kept.values())


CHECKPOINTED = {
    "after": {},
    "before": {"reset": "before"},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3, "recurrent_dropout": 0.4},
}


@pytest.mark.parametrize("form", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_the_native_layer_keeps_no_gates_with_checkpoints(form):
    steps, values = 300, 10 if "layer_norm" in form else 4  # a step and unit
    layer = made("native", form, dtype=torch.float32, bidirectional=True)
    x, h_0 = sequence(torch.float32, steps=steps), first_state(layer, torch.float32)
    without = kept_for_backward(layer, x, h_0)
    layer.checkpoint_every = 10
    saved = without - kept_for_backward(layer, x, h_0)
    norms = 4 * (4 * 2 * steps * B) if "layer_norm" in form else 0  # bytes
    assert saved == 4 * (values * 2 * steps * B * H) + norms


@pytest.mark.parametrize("form", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_the_reference_keeps_a_state_for_each_checkpoint(form):
    layer = made("reference", form, dtype=torch.float32, bidirectional=True)
    x, h_0 = sequence(torch.float32, steps=100), first_state(layer, torch.float32)
    without = kept_for_backward(layer, x, h_0)
    layer.checkpoint_every = 10
    with_checkpoints = kept_for_backward(layer, x, h_0)
    # 10 states in two directions, and for each step no more than what x says to the gates, the masks and the output.
    assert with_checkpoints < 0.4 * without


@pytest.mark.one_in(5)
@pytest.mark.parametrize("form", CHECKPOINTED.values(), ids=CHECKPOINTED)
@pytest.mark.parametrize("kind", [*CALLS, "packed", "nested"])
@pytest.mark.parametrize("backend", OURS)
def test_checkpoints_change_no_bit_of_any_result(backend, kind, form):
    steps = 23 if backend == "reference" else 300
    layer = made(backend, form, dtype=torch.float32, training=True, **BOTH_WAYS)
    torch.manual_seed(0)
    sequences = [torch.randn(n, I) for n in (steps, 1, steps // 2)]
    lengths, resets = torch.tensor([steps, 0, steps // 3]), torch.rand(B, steps) < 0.2
    given = {
        "lengths": {"lengths": lengths},
        "both": {"lengths": lengths, "resets": resets},
        "plain": {},
    }.get(kind, {"resets": resets})
    h_0, found = first_state(layer, torch.float32), []
    for checkpoint_every in (0, 7):
        layer.checkpoint_every = checkpoint_every
        layer.zero_grad()
        x = {"packed": packed, "nested": jagged}.get(kind, lambda _: sequence(torch.float32, steps=steps))(sequences)
        leaf = x.data if kind == "packed" else x
        leaf.requires_grad_()
        h = h_0.clone().requires_grad_()
        torch.manual_seed(4)
        output, h_n = layer(x, h, **given)
        output = {"packed": lambda y: y.data, "nested": lambda y: y.values()}.get(kind, lambda y: y)(output)
        loss_of(output, h_n).backward()
        d_x = leaf.grad.values() if kind == "nested" else leaf.grad
        found.append([output, h_n, d_x, h.grad, *(p.grad for p in layer.parameters())])
    assert_same(*found, rtol=0, atol=0)
