"""`ops.mingru`: the scan over time and the steps without gradients, against the equations in float64."""

import pytest
import torch

from tests.helpers.native import on_threads
from tidegate.ops import mingru


def by_the_paper(x, h_0, w, b):
    """h_t = (1 - z_t) h_(t-1) + z_t g(v_t) in a loop, with the z of the paper, 1 minus ours."""
    w_z, w_h = w.chunk(2)
    b_z, b_h = b.chunk(2)
    h, found = h_0, []
    for x_t in x:
        z = torch.sigmoid(-(x_t @ w_z.T + b_z))
        v = x_t @ w_h.T + b_h
        h = (1 - z) * h + z * torch.where(v >= 0, v + 0.5, torch.sigmoid(v))
        found.append(h)
    return torch.stack(found) if found else x.new_zeros(0, *h_0.shape)


def random_layer(T, B, I, H, dtype=torch.float64):
    shapes = ((T, B, I), (B, H), (2 * H, I), (2 * H,))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(1, 1, 1, 1), (2, 3, 4, 5), (7, 5, 3, 33), (63, 1, 9, 7), (64, 2, 2, 9)]
)
@pytest.mark.parametrize("gradients", [True, False])
def test_states_are_those_of_the_papers_equations(T, B, I, H, gradients):
    x, h_0, w, b = random_layer(T, B, I, H)
    with torch.set_grad_enabled(gradients):
        h, h_n, _ = mingru.direction(x, h_0, w, b)
    torch.testing.assert_close(h, by_the_paper(x, h_0, w, b), rtol=1e-12, atol=1e-12)
    assert torch.equal(h_n, h[-1])


@pytest.mark.parametrize("T", [1, 2, 5, 8])
def test_gradients_are_those_of_the_papers_equations(T):
    inputs = [v.requires_grad_() for v in random_layer(T, 2, 3, 4)]
    d_h = torch.randn(T, 2, 4, dtype=torch.float64)
    ours = torch.autograd.grad(mingru.direction(*inputs)[0], inputs, d_h)
    theirs = torch.autograd.grad(by_the_paper(*inputs), inputs, d_h)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_first_and_second_derivatives_pass_gradcheck():
    inputs = [v.requires_grad_() for v in random_layer(5, 2, 3, 2)]
    there = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], dtype=torch.bool).unsqueeze(-1)
    resets = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 0], [1, 0]], dtype=torch.bool).unsqueeze(-1)
    fresh = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    for reverse in (False, True):

        def run(x, h_0, w, b, fresh, reverse=reverse):
            return mingru.direction(x, h_0, w, b, reverse=reverse, there=there, resets=resets, fresh=fresh)[:2]

        assert torch.autograd.gradcheck(run, (*inputs, fresh))
        assert torch.autograd.gradgradcheck(run, (*inputs, fresh))


def test_the_derivative_of_a_gate_is_right_at_zero_in_both_modes():
    k = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for sigmoid in mingru._sigmoids(k)[0], torch.sigmoid(k):
        assert torch.autograd.grad(sigmoid, k)[0].item() == 0.25


@pytest.mark.one_in(5)
@pytest.mark.parametrize("T", [1, 7, 100, 1000, 10000])
@pytest.mark.parametrize("update", [-20.0, -5.0, 0.0, 5.0, 9.0, 15.0])  # z from 2e-9 to 1 - 3e-7
def test_the_scan_rounds_no_worse_than_twice_the_recurrence(T, update):
    torch.manual_seed(0)
    k, v, h_0 = update + torch.randn(T, 64), torch.rand(T, 64) + 0.01, torch.rand(64)
    keep, write = torch.sigmoid(k), torch.sigmoid(-k) * v

    def recurrence(keep, write, h):
        return torch.stack([h := keep_t * h + write_t for keep_t, write_t in zip(keep, write, strict=True)])

    exact = recurrence(keep.double(), write.double(), h_0.double())

    def error(h):
        return ((h - exact).abs() / exact).max().item()

    in_order = error(recurrence(keep, write, h_0))
    with torch.enable_grad():
        parallel = error(mingru.states(keep, write, h_0))
    assert parallel <= 2 * in_order + 2e-7


def test_the_scan_is_the_papers_sum_of_logarithms():
    keep, write = torch.rand(50, 8, dtype=torch.float64), torch.rand(50, 8, dtype=torch.float64)
    a = keep.log().cumsum(0)
    in_logarithms = (a + torch.logcumsumexp(write.log() - a, 0)).exp()
    torch.testing.assert_close(mingru.scan(keep, write), in_logarithms, rtol=1e-10, atol=0)


def test_a_gate_that_is_all_shut_or_all_open_gives_finite_values_and_gradients():
    for keep_t in (0.0, 1.0):
        keep = torch.full((300, 2), keep_t, requires_grad=True)
        write = torch.rand(300, 2, requires_grad=True)
        h_0 = torch.zeros(2, requires_grad=True)
        h = mingru.states(keep, write, h_0)
        torch.testing.assert_close(h, write if keep_t == 0 else write.cumsum(0))
        assert all(d.isfinite().all() for d in torch.autograd.grad(h.sum(), [keep, write, h_0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gradients_a_value_has_the_same_bits_wherever_it_lies(dtype):
    k = (30 * torch.randn(61, dtype=torch.float64)).to(dtype)
    alone = [torch.cat(values) for values in zip(*(mingru._sigmoids(v) for v in k.split(1)), strict=True)]
    for copies in (1, 2, 5, 700):
        for found, expected in zip(mingru._sigmoids(k.repeat(copies)), alone, strict=True):
            assert torch.equal(found, expected.repeat(copies))


def test_one_minus_z_keeps_its_digits_where_z_is_near_one():
    z, rest = mingru._sigmoids(torch.tensor([20.0]))
    assert z.item() == pytest.approx(1)
    assert rest.item() == pytest.approx(torch.sigmoid(torch.tensor(-20.0, dtype=torch.float64)).item(), rel=1e-6)
    with torch.enable_grad():
        w = torch.tensor([[1.0], [1.0]])
        assert mingru.gates(torch.tensor([[20.0]]), w).write.item() == pytest.approx(rest.item() * 20.5, rel=1e-6)


def test_no_steps_give_no_states_and_the_first_state_back():
    for reverse in (False, True):
        h_0 = torch.randn(2, 4)
        h, h_n, _ = mingru.direction(torch.zeros(0, 2, 3), h_0, torch.randn(8, 3), reverse=reverse)
        assert h.shape == (0, 2, 4)
        assert torch.equal(h_n, h_0)


def test_with_gradients_the_gates_have_the_same_bits_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    x, w = 2 * torch.randn(4_001, 5, generator=generator), torch.randn(74, 5, generator=generator).requires_grad_()

    def gates_and_gradient():
        found = mingru.gates(x, w)
        return [*found, *torch.autograd.grad(sum(v.square().sum(0).sum(0) for v in found), w)]

    alone = on_threads(1, gates_and_gradient)
    for n in (2, 3, 5):
        for ours, theirs in zip(on_threads(n, gates_and_gradient), alone, strict=True):
            assert torch.equal(ours, theirs)
