"""Autocast to bfloat16, and layers in it: products in bfloat16; sums, gates and states in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.layers import FORMS, error
from tests.helpers.native import assert_cut, assert_rows_alone, assert_steps, examples, gradients, layer_of, on_threads

pytestmark = pytest.mark.usefixtures("every_narrow_isa")
autocast = torch.autocast("cpu", torch.bfloat16)
STILL = {
    name: {k: v for k, v in form.items() if k not in ("zoneout", "recurrent_dropout")} for name, form in FORMS.items()
}


def in_float64(layer, x):
    return gradients(layer.double(), x.double())


@pytest.mark.parametrize(
    ("T", "B", "I", "H", "options"),
    [
        (1, 1, 1, 1, {}),
        (9, 5, 7, 33, {"bidirectional": True}),
        (30, 20, 40, 64, {"num_layers": 2}),
        (12, 3, 65, 130, {"bias": False}),
        (40, 33, 16, 48, {}),
    ],
    ids=str,
)
def test_the_error_of_autocast_is_at_most_that_of_torch(T, B, I, H, options):
    """Of outputs, the last state and all gradients, against float64."""
    ours = layer_of(I, H, **options)
    torchs = torch.nn.GRU(I, H, **options)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(T, B, I)
    with autocast:
        found, theirs = gradients(ours, x), gradients(torchs, x)
    exact = in_float64(ours, x)

    def whole(values):
        return torch.stack(
            [(a.double() - b).norm() / b.norm().clamp(min=1e-12) for a, b in zip(values, exact, strict=True)]
        )

    assert (whole(found) <= 1.1 * whole(theirs) + 1e-3).all(), (whole(found), whole(theirs))
    assert whole(found).mean() <= whole(theirs).mean() + 1e-3
    assert whole(found).max() > 1e-4 or H == 1  # (it was bfloat16 that ran)


@pytest.mark.parametrize("form", STILL.values(), ids=STILL)
def test_every_option_has_the_gradients_of_float32_to_rounding(form):
    layer = layer_of(6, 20, num_layers=2, bidirectional=True, **form)
    x = torch.randn(9, 4, 6)
    h_0 = None if form.get("learn_initial_state") else torch.randn(4, 4, 20)
    exact = gradients(layer, x, h_0)
    with autocast:
        found = gradients(layer, x, h_0)
    errors = [error(a, b) for a, b in zip(found, exact, strict=True) if b is not None]
    assert 1e-4 < max(errors) < 0.06


def test_types_are_those_of_torch_but_for_the_state_which_stays_in_float32():
    layer, x = layer_of(3, 4), torch.randn(5, 2, 3)
    with autocast:
        output, h_n = layer(x)
        assert (output.dtype, h_n.dtype) == (torch.float32, torch.float32)
        output, h_n = layer(x.bfloat16())
        assert (output.dtype, h_n.dtype) == (torch.bfloat16, torch.float32)
    output, h_n = layer.bfloat16()(x.bfloat16())
    assert (output.dtype, h_n.dtype) == (torch.bfloat16, torch.bfloat16)


sizes = {
    "T": st.integers(1, 9),
    "B": st.integers(1, 19),
    "I": st.sampled_from([1, 5, 17, 64]),
    "H": st.sampled_from([1, 7, 16, 33, 200]),
    "seed": st.integers(0, 99),
    "reset": st.sampled_from(["after", "before"]),
}


@examples
@given(**sizes, data=st.data())
def test_a_rows_bits_do_not_depend_on_its_batch_or_on_chunks(T, B, I, H, seed, reset, data):
    layer = layer_of(I, H, seed, num_layers=2, reset=reset)
    x, h = torch.randn(T, B, I), torch.randn(2, B, H)
    with autocast:
        assert_rows_alone(layer, x, h, data)
        assert_cut(layer, x, h, data)


@pytest.mark.parametrize("grad", [True, False], ids=["gradients", "inference"])
def test_steps_have_the_bits_of_the_whole_sequence(grad):
    layer, x = layer_of(6, 40, num_layers=2), torch.randn(9, 3, 6)
    with autocast, torch.set_grad_enabled(grad):
        assert_steps(layer, x)


@examples
@given(**sizes, threads=st.integers(2, 5), every=st.sampled_from([0, 3]))
def test_gradients_have_the_same_bits_on_any_number_of_threads(T, B, I, H, seed, reset, threads, every):
    layer = layer_of(I, H, seed, bidirectional=True, reset=reset)
    x = torch.randn(T, B, I)

    def found():
        with autocast:
            return gradients(layer, x)

    one = on_threads(1, found)
    layer.checkpoint_every = every  # gates that are computed again are the same
    for a, b in zip(one, on_threads(threads, found), strict=True):
        assert torch.equal(a, b)


def test_backward_keeps_half_of_the_bytes():
    layer, x = layer_of(32, 64), torch.randn(50, 16, 32)
    own = {p.data_ptr() for p in layer.parameters()}

    def kept(run):
        seen = {}

        def pack(v):
            if v is not None and v.data_ptr() not in own:
                seen[v.data_ptr()] = v.numel() * v.element_size()
            return v

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            run()
        return sum(seen.values())

    wide = kept(lambda: layer(x))
    with autocast:
        assert kept(lambda: layer(x)) == wide // 2


def test_gradients_of_gradients_are_those_of_float32_to_rounding():
    layer, x = layer_of(4, 6), torch.randn(5, 2, 4, requires_grad=True)

    def twice(run):
        (d_x,) = torch.autograd.grad(run().square().sum(), [x], create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), [x, *layer.parameters()])

    exact = twice(lambda: layer(x)[0])
    with autocast:
        found = twice(lambda: layer(x)[0])
    for a, b in zip(found, exact, strict=True):
        assert error(a, b) < 0.1


def test_an_output_that_was_changed_in_place_is_computed_again():
    layer, x = layer_of(4, 20), torch.randn(5, 2, 4).bfloat16()

    def found(change):
        layer.zero_grad()
        with autocast:
            output = layer(x)[0]
            output = output.relu_() if change else output.relu()
        output.float().sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    for a, b in zip(found(True), found(False), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen_in_its_own_sequence_alone(bad):
    layer, x = layer_of(5, 40), torch.randn(7, 9, 5)
    x[2, 4, 1] = bad
    with autocast:
        output = layer(x)[0]
        x[2, 4, 1] = 0
        clean = layer(x)[0]
    others = [b for b in range(9) if b != 4]
    assert torch.equal(output[:, others], clean[:, others])
    assert output[2:, 4].isnan().any() if bad != bad else not torch.equal(output[2:, 4], clean[2:, 4])
