"""The native back end as operators of torch: torch's own check, torch.compile, dispatch modes, autocast."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.native import FLOAT_ISAS, gradients, layer_of
from tidegate.ops.gru.extras import LayerExtras

# Every test of this file runs on every instruction set of this machine.
pytestmark = pytest.mark.usefixtures("every_isa")


def operator_arguments(bidirectional, packed):
    D = 1 + bidirectional
    weights = list(layer_of(3, 5, bidirectional=bidirectional).parameters())
    x = torch.randn((5, 3) if packed else (4, 2, 3), requires_grad=True)
    sizes = torch.tensor([2, 2, 1]) if packed else None
    return x, torch.randn(D, 2, 5, requires_grad=True), weights, True, sizes, *LayerExtras(), True


@pytest.mark.one_in(12)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_operators_pass_torchs_own_check(bidirectional, packed):
    torch.library.opcheck(torch.ops.tidegate.gru_layer.default, operator_arguments(bidirectional, packed))


def test_without_anything_to_save_the_operators_shapes_are_right_too():
    x, h_0, weights, bias, sizes, *extras, _ = operator_arguments(False, False)
    plain = (x.detach(), h_0.detach(), [w.detach() for w in weights], bias, sizes, *extras, False)
    torch.library.opcheck(torch.ops.tidegate.gru_layer.default, plain)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("before", [False, True])
def test_the_operators_pass_torchs_own_check_with_all_extras(before):
    layer = layer_of(3, 5, bidirectional=True, layer_norm=True, reset="before" if before else "after")
    x, h_0 = torch.randn(4, 3, 3, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    extras = LayerExtras(
        lengths=torch.tensor([2, 4, 0]),
        resets=torch.rand(4, 3) < 0.4,
        fresh=torch.randn(2, 3, 5, requires_grad=True),
        mask=torch.nn.functional.dropout(torch.ones(2, 3, 5), 0.3),
        zone=torch.rand(4, 3, 10) < 0.3,
        before=before,
        norm=True,
    )
    torch.library.opcheck(
        torch.ops.tidegate.gru_layer.default, (x, h_0, list(layer.parameters()), True, None, *extras, True)
    )


def test_the_compiled_layer_gives_the_bits_and_gradients_of_the_eager_one(every_isa):
    if every_isa != FLOAT_ISAS[0]:
        return  # the operators are the same for all; one compilation is slow enough
    torch._dynamo.reset()
    layer = layer_of(3, 8, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    for a, b in zip(gradients(layer, x), gradients(compiled, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], compiled(x)[0])


def test_under_a_dispatch_mode_the_registered_operator_runs():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, x = layer_of(3, 4), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    with Watch():
        assert torch.equal(layer(x)[0], expected)
    assert "tidegate.gru_layer.default" in seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_the_registered_operator_in_float32(dtype):
    layer = layer_of(3, 4)
    x = torch.randn(5, 2, 3).to(dtype)
    exact = layer(x.float())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, *_ = torch.ops.tidegate.gru_layer(
            x, torch.zeros(1, 2, 4), list(layer.parameters()), True, None, *LayerExtras(), False
        )
    assert torch.equal(output, exact)
