"""The definition, held against the equations in Python floats, and the properties every GRU has."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from tidegate.ops.gru import native, reference, torch_aten
from tidegate.ops.gru.extras import Extras

BACKENDS = [native, reference, torch_aten]
FLOAT64 = torch.float64
examples = settings(max_examples=25, deadline=None, derandomize=True)
sizes = {
    "T": st.integers(1, 7),
    "B": st.integers(1, 5),
    "I": st.integers(1, 4),
    "H": st.sampled_from([1, 2, 7, 9]),
}


def weights(I, H, *, runs=1, bidirectional=False, bias=True, seed=0, spread=1.0):
    """A flat list as the back ends take it, each number drawn on its own."""
    g = torch.Generator().manual_seed(seed)
    D = 2 if bidirectional else 1
    flat = []
    for run in range(runs):
        width = I if run < D else D * H
        shapes = [(3 * H, width), (3 * H, H), (3 * H,), (3 * H,)][: 4 if bias else 2]
        flat += [spread * torch.randn(s, generator=g, dtype=FLOAT64) for s in shapes]
    return flat


def tensor(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64)


# ------------------------------------------------------------------------------------------- by hand


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def normalised(v):
    mean = sum(v) / len(v)
    variance = sum((a - mean) ** 2 for a in v) / len(v)
    return [(a - mean) / math.sqrt(variance + 1e-5) for a in v]


def step_by_hand(x, h, w_ih, w_hh, b_ih, b_hh, reset, gains=None, mask=None, zone=None):
    """The equations of docs and design, one number at a time, with no tensor in it."""
    H = len(h)
    m = [1.0] * H if mask is None else mask
    k = [0.0] * H if zone is None else zone

    def product(rows, v, gain):
        sums = [sum(a * b for a, b in zip(row, v, strict=True)) for row in rows]
        return sums if gain is None else [g * s for g, s in zip(gain, normalised(sums), strict=True)]

    def both(rows, v, b, gain):  # r and z together, and n
        first = product(rows[: 2 * H], v, gain and gain[: 2 * H])
        return [s + b for s, b in zip(first, b[: 2 * H], strict=True)]

    def last(rows, v, b, gain):
        return [s + b for s, b in zip(product(rows[2 * H :], v, gain and gain[2 * H :]), b[2 * H :], strict=True)]

    g_ih, g_hh = gains or (None, None)
    masked = [a * b for a, b in zip(m, h, strict=True)]
    rz = [sigmoid(a + b) for a, b in zip(both(w_ih, x, b_ih, g_ih), both(w_hh, masked, b_hh, g_hh), strict=True)]
    r, z = rz[:H], rz[H:]
    if reset == "after":
        recurrent = [a * b for a, b in zip(r, last(w_hh, masked, b_hh, g_hh), strict=True)]
    else:
        recurrent = last(w_hh, [a * b for a, b in zip(r, masked, strict=True)], b_hh, g_hh)
    n = [math.tanh(a + b) for a, b in zip(last(w_ih, x, b_ih, g_ih), recurrent, strict=True)]
    new = [(1 - z[j]) * n[j] + z[j] * h[j] for j in range(H)]
    return [k[j] * h[j] + (1 - k[j]) * new[j] for j in range(H)]


@pytest.mark.parametrize("extra", ["plain", "layer_norm", "mask", "zone", "resets", "all"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("reset", ["after", "before"])
def test_a_layer_equals_the_equations_worked_out_by_hand(reset, reverse, bias, extra):
    T, I, H = 5, 3, 2
    w = weights(I, H, bias=bias)
    x, h_0 = tensor(T, 1, I, seed=1), tensor(1, H, seed=2)
    some = {}
    if extra in ("layer_norm", "all"):
        some |= {"g_ih": tensor(3 * H, seed=3), "g_hh": tensor(3 * H, seed=4)}
    if extra in ("mask", "all"):
        some["mask"] = torch.tensor([[0.0, 2.0]], dtype=FLOAT64)
    if extra in ("zone", "all"):
        some["zone"] = torch.tensor([[0, 1], [0, 0], [1, 1], [1, 0], [0, 1]], dtype=torch.bool).unsqueeze(1)
    if extra in ("resets", "all"):
        some |= {"resets": torch.tensor([[0], [0], [1], [0], [1]], dtype=torch.bool), "fresh": tensor(1, H, seed=5)}
    output, h_n, _ = reference.gru_layer(x, h_0, *w, **some, reverse=reverse, reset=reset)
    numbers = [v.tolist() for v in w] + ([] if bias else [[0.0] * 3 * H] * 2)
    gains = [some["g_ih"].tolist(), some["g_hh"].tolist()] if "g_ih" in some else None
    h = h_0[0].tolist()
    for t in reversed(range(T)) if reverse else range(T):
        marked = t + 1 if reverse else t
        if "resets" in some and marked < T and some["resets"][marked]:
            h = some["fresh"][0].tolist()
        mask = some["mask"][0].tolist() if "mask" in some else None
        zone = some["zone"][t, 0].double().tolist() if "zone" in some else None
        h = step_by_hand(x[t, 0].tolist(), h, *numbers, reset, gains, mask, zone)
        assert output[t, 0].tolist() == pytest.approx(h, rel=1e-12, abs=1e-13)
    assert h_n[0].tolist() == pytest.approx(h, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_equals_the_equations_worked_out_by_hand(backend):
    w = weights(3, 2)
    x, h = tensor(1, 3, seed=1), tensor(1, 2, seed=2)
    expected = step_by_hand(x[0].tolist(), h[0].tolist(), *[v.tolist() for v in w], "after")
    assert backend.gru_cell(x, h, *w)[0].tolist() == pytest.approx(expected, rel=1e-13)


def test_the_two_resets_differ():
    w, x, h_0 = weights(3, 5), tensor(4, 2, 3, seed=1), tensor(2, 5, seed=2)
    after, before = (reference.gru_layer(x, h_0, *w, reset=reset)[1] for reset in ("after", "before"))
    assert (after - before).abs().max() > 0.01


@examples
@given(T=sizes["T"], B=sizes["B"], H=sizes["H"], seed=st.integers(0, 99))
def test_with_w_hn_diagonal_and_b_hn_zero_both_resets_agree(T, B, H, seed):
    w_ih, w_hh, b_ih, b_hh = weights(3, H, seed=seed)
    w_hh[2 * H :] = torch.diag(w_hh[2 * H :].diagonal())
    b_hh[2 * H :] = 0
    x, h_0 = tensor(T, B, 3, seed=1), tensor(B, H, seed=2)
    after, before = (
        reference.gru_layer(x, h_0, w_ih, w_hh, b_ih, b_hh, reset=reset)[0] for reset in ("after", "before")
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-13)


def test_another_word_for_reset_is_refused():
    with pytest.raises(ValueError, match="reset is 'never', expected 'after' or 'before'"):
        reference.gru_cell(tensor(1, 3, seed=1), tensor(1, 2, seed=2), *weights(3, 2), reset="never")


@pytest.mark.one_in(5)
@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize("batch_sizes", [None, torch.tensor([2, 2, 1])], ids=["dense", "packed"])
@pytest.mark.parametrize("reverse", [False, True])
def test_first_and_second_derivatives_are_right(reverse, batch_sizes, reset):
    rows = (3, 2) if batch_sizes is None else (5,)
    args = [tensor(*rows, 2, seed=1), tensor(2, 2, seed=2), *weights(2, 2)]
    for v in args:
        v.requires_grad_()

    def layer(*args):
        return reference.gru_layer(*args, reverse=reverse, reset=reset, batch_sizes=batch_sizes)

    assert gradcheck(layer, args)
    assert gradgradcheck(layer, args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reset", ["after", "before"])
def test_the_state_of_half_types_is_float32_inside_the_loop(dtype, reset):
    # z is 1 - 2^-11, so a step moves the state by 2^-11 of the way to n = 1: less than a half type can hold
    # near 0.5.
    h_0 = torch.full((1, 1), 0.5, dtype=dtype)
    z = torch.tensor([0.0, math.log(2**11 - 1), 20.0], dtype=dtype)
    w = [torch.zeros(3, 1, dtype=dtype), torch.zeros(3, 1, dtype=dtype), z, torch.zeros(3, dtype=dtype)]
    output, h_n = reference.gru(torch.zeros(500, 1, 1, dtype=dtype), h_0.unsqueeze(0), w, extras=Extras(reset=reset))
    kept = torch.sigmoid(z[1].double()) ** 500
    assert output.dtype == h_n.dtype == dtype
    assert h_n.item() == pytest.approx((1 - kept + 0.5 * kept).item(), rel=torch.finfo(dtype).eps)
    assert h_n.item() > 0.55


def test_a_layer_of_no_steps_gives_a_copy_of_the_first_state():
    h_0 = tensor(2, 5, seed=2)
    output, h_n, _ = reference.gru_layer(tensor(0, 2, 3, seed=1), h_0, *weights(3, 5))
    assert output.shape == (0, 2, 5)
    assert torch.equal(h_n, h_0)
    assert h_n.data_ptr() != h_0.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reset", ["after", "before"])
def test_a_step_of_half_types_is_rounded_once(dtype, reset):
    half = [v.to(dtype) for v in (tensor(9, 4, seed=1), tensor(9, 7, seed=2), *weights(4, 7))]
    wide = reference.gru_cell(*[v.float() for v in half], reset=reset)
    assert torch.equal(reference.gru_cell(*half, reset=reset), wide.to(dtype))


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("backend", BACKENDS)
@examples
@given(
    **sizes,
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    h_size=st.sampled_from([0.0, 1.0, 9.0]),
)
def test_no_unit_leaves_one_or_its_first_state(backend, T, B, I, H, seed, spread, h_size):
    h_0 = h_size * tensor(1, B, H, seed=seed)
    output, h_n = backend.gru(9 * tensor(T, B, I, seed=1), h_0, weights(I, H, seed=seed, spread=spread))
    bound = h_0[0].abs().clamp_min(1.0) * (1 + 1e-12)
    assert (output.abs() <= bound).all()
    assert (h_n[0].abs() <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
@examples
@given(**sizes, seed=st.integers(0, 99), cut=st.integers(0, 7))
def test_a_sequence_in_two_parts_equals_one_call(backend, T, B, I, H, seed, cut):
    w = weights(I, H, runs=2, seed=seed)
    x, h_0 = tensor(T, B, I, seed=1), tensor(2, B, H, seed=2)
    cut = min(cut, T)  # 0 and T: one part has no steps
    whole, h_n = backend.gru(x, h_0, w, num_layers=2)
    first, h = backend.gru(x[:cut], h_0, w, num_layers=2)
    second, h = backend.gru(x[cut:], h, w, num_layers=2)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(h, h_n, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@examples
@given(T=sizes["T"], B=st.integers(2, 5), I=sizes["I"], H=sizes["H"], seed=st.integers(0, 99))
def test_the_rows_of_a_batch_do_not_see_each_other(backend, T, B, I, H, seed):
    w = weights(I, H, runs=4, bidirectional=True, seed=seed)
    x, h_0 = tensor(T, B, I, seed=1), tensor(4, B, H, seed=2)
    options = {"num_layers": 2, "bidirectional": True}
    output, h_n = backend.gru(x, h_0, w, **options)
    b = seed % B
    others = [i for i in range(B) if i != b]
    x[:, others], h_0[:, others] = float("nan"), float("nan")
    spoiled, h_spoiled = backend.gru(x, h_0, w, **options)
    torch.testing.assert_close(spoiled[:, b], output[:, b], rtol=0, atol=1e-14)
    torch.testing.assert_close(h_spoiled[:, b], h_n[:, b], rtol=0, atol=1e-14)
    assert spoiled[:, others].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_z_of_one_keeps_the_first_state_and_z_of_zero_forgets_it(backend, dtype):
    H = 7
    w = weights(3, H)
    w[2][H : 2 * H] = 500.0  # b_iz
    x, h_0 = tensor(9, 4, 3, seed=1).to(dtype), tensor(1, 4, H, seed=2).to(dtype)
    output, h_n = backend.gru(x, h_0, [v.to(dtype) for v in w])
    # ATen computes n + z (h - n), so it loses up to a rounding of h and one of n at each of the 9 steps.
    off = 0 if backend is not torch_aten else 9 * torch.finfo(dtype).eps * (1 + h_0.abs().max().item())
    torch.testing.assert_close(h_n, h_0, rtol=0, atol=off)
    torch.testing.assert_close(output, h_0.expand_as(output), rtol=0, atol=off)
    w[2][H : 2 * H] = -500.0
    w[1].zero_()  # W_hr, W_hz, W_hn: no other way for the state to come in
    h_n = backend.gru(x, h_0, [v.to(dtype) for v in w])[1]
    assert torch.equal(h_n, backend.gru(x, 5 * h_0, [v.to(dtype) for v in w])[1])


@pytest.mark.parametrize("backend", BACKENDS)
@examples
@given(**sizes, seed=st.integers(0, 99))
def test_both_directions_are_two_runs_one_of_them_over_the_steps_turned_round(backend, T, B, I, H, seed):
    w = weights(I, H, runs=2, bidirectional=True, seed=seed)
    x, h_0 = tensor(T, B, I, seed=1), tensor(2, B, H, seed=2)
    output, h_n = backend.gru(x, h_0, w, bidirectional=True)
    there, h_there = backend.gru(x, h_0[:1], w[:4])
    back, h_back = backend.gru(x.flip(0), h_0[1:], w[4:])
    torch.testing.assert_close(output, torch.cat([there, back.flip(0)], dim=-1), rtol=0, atol=1e-14)
    torch.testing.assert_close(h_n, torch.cat([h_there, h_back]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_step_by_step_equals_the_layer(backend):
    w, x, h = weights(3, 7), tensor(6, 4, 3, seed=1), tensor(4, 7, seed=2)
    output, h_n = backend.gru(x, h[None], w)
    for t in range(6):
        h = backend.gru_cell(x[t], h, *w)
        torch.testing.assert_close(h, output[t], rtol=0, atol=1e-14)
    torch.testing.assert_close(h, h_n[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inputs_are_left_as_they_were(backend):
    args = [tensor(5, 3, 2, seed=1), tensor(2, 3, 4, seed=2), weights(2, 4, runs=2, bidirectional=True)]
    before = [args[0].clone(), args[1].clone(), [w.clone() for w in args[2]]]
    backend.gru(*args, bidirectional=True)
    torch.testing.assert_close(args, before, rtol=0, atol=0)
