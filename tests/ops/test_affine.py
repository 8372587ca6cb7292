"""y = W x + b by the kernels: right, and a row's bits are its own."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.native import on_threads
from tidegate.ops.affine import affine, one_row
from tidegate.ops.gru import native

SHAPES = [(1, 1, 1), (5, 7, 3), (13, 33, 9), (64, 128, 73), (3, 0, 2), (0, 4, 4)]


def case(rows: int, I: int, O: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + I)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((rows, I), (O, I), (O,))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "I", "O"), SHAPES)
def test_it_is_as_near_to_float64_as_torch(rows, I, O, dtype):
    x, w, b = case(rows, I, O, dtype)
    with torch.no_grad():
        y = affine(x, w, b)
    exact = torch.nn.functional.linear(x.double(), w.double(), b.double())
    assert y.dtype == dtype
    assert y.shape == exact.shape
    bound = 4 * torch.finfo(dtype).eps * (x.double().abs() @ w.double().abs().T + b.abs())
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(("rows", "I", "O"), SHAPES)
def test_a_row_has_the_same_bits_alone_in_any_batch_and_layout(rows, I, O):
    x, w, b = case(rows, I, O, torch.float32)
    with torch.no_grad():
        y = affine(x, w, b)
        row = one_row(w, b)
        for k in range(rows):
            assert torch.equal(affine(x[k : k + 1], w, b)[0], y[k])
            assert torch.equal(torch.from_numpy(row(x[k : k + 1])), y[k])
        assert torch.equal(affine(x.T.contiguous().T, w.T.contiguous().T, b), y)
        three = affine(x.unsqueeze(1).expand(-1, 2, -1), w, b)
        assert torch.equal(three[:, 1], y)


@pytest.mark.parametrize(("rows", "I", "O"), SHAPES)
def test_in_bfloat16_a_row_is_its_float32_sums_rounded_once(rows, I, O):
    x, w, b = case(rows, I, O, torch.bfloat16)
    with torch.no_grad():
        y = affine(x, w, b)
        assert y.dtype is torch.bfloat16
        assert torch.equal(y, affine(x.float(), w.float(), b.float()).bfloat16())
        for k in range(rows):
            assert torch.equal(affine(x[k : k + 1], w, b)[0], y[k])


def test_in_bfloat16_gradients_are_rounded_once_and_the_same_on_any_threads():
    given = case(300, 40, 30, torch.bfloat16)

    def gradients():
        leaves = [v.clone().requires_grad_() for v in given]
        affine(*leaves).float().square().sum().backward()
        return [v.grad for v in leaves]

    one, two = (on_threads(count, gradients) for count in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    d_y = (2 * affine(*given).float()).bfloat16().double()
    exact = d_y.T @ given[0].double()
    assert ((one[1].double() - exact).abs() <= 2**-8 * exact.abs() + 1e-3).all()


def test_the_kernels_run_without_gradients_and_with_them(monkeypatch):
    calls = []
    kernel = native.affine.affine
    monkeypatch.setattr(native.affine, "affine", lambda *a, **more: calls.append(more) or kernel(*a, **more))
    x, w, b = case(5, 7, 3, torch.float32)
    with torch.no_grad():
        affine(x, w, b)
    w.requires_grad_()
    affine(x, w, b).sum().backward()
    assert calls == [{}, {"in_blocks": True}]
    assert torch.allclose(w.grad, x.sum(0).expand(3, 7))


MANY = [(700, 40, 1), (600, 33, 50), (300, 300, 9), (1100, 5, 3), (30, 20, 1100), (20, 1030, 4)]


def trained(x, w, b, upstream):
    x, w, b = (v.clone().requires_grad_() for v in (x, w, b))
    y = affine(x, w, b)
    y.backward(upstream)
    return y.detach(), x.grad, w.grad, b.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "I", "O"), [*SHAPES, *MANY])
def test_in_training_outputs_and_gradients_are_as_near_to_float64_as_torch(rows, I, O, dtype):
    x, w, b = case(rows, I, O, dtype)
    d = case(rows, O, 1, dtype)[0]
    found = trained(x, w, b, d)
    X, W, B, D = (v.double() for v in (x, w, b, d))
    exact = (torch.nn.functional.linear(X, W, B), D @ W, D.T @ X, D.sum(0))
    sizes = (X.abs() @ W.abs().T + B.abs(), D.abs() @ W.abs(), D.abs().T @ X.abs(), D.abs().sum(0))
    for value, right, size in zip(found, exact, sizes, strict=True):
        assert value.dtype == dtype
        assert value.shape == right.shape
        assert ((value.double() - right).abs() <= 8 * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize(("rows", "I", "O"), MANY)
def test_in_training_no_bit_depends_on_the_threads_the_other_rows_or_the_layout(rows, I, O):
    x, w, b = case(rows, I, O, torch.float32)
    d = case(rows, O, 1, torch.float32)[0]
    alone = on_threads(1, lambda: trained(x, w, b, d))
    for n in (2, 3):
        for one, many in zip(alone, on_threads(n, lambda: trained(x, w, b, d)), strict=True):
            assert torch.equal(one, many)
    for one, same in zip(alone, trained(x.T.contiguous().T, w.T.contiguous().T, b, d.T.contiguous().T), strict=True):
        assert torch.equal(one, same)
    some = trained(x[5:12], w, b, d[5:12])
    assert torch.equal(some[0], alone[0][5:12])
    assert torch.equal(some[1], alone[1][5:12])


def test_only_what_is_asked_for_has_a_gradient():
    x, w, b = case(40, 7, 3, torch.float32)
    for k in range(3):
        given = [v.clone().requires_grad_(i == k) for i, v in enumerate((x, w, b))]
        affine(*given).square().sum().backward()
        exact = [v.detach().clone().requires_grad_(i == k) for i, v in enumerate((x, w, b))]
        torch.nn.functional.linear(*exact).square().sum().backward()
        assert [v.grad is not None for v in given] == [i == k for i in range(3)]
        assert torch.allclose(given[k].grad, exact[k].grad, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_and_many_at_once_are_right():
    x, w, b = (v.requires_grad_() for v in case(4, 5, 3, torch.float64))
    assert torch.autograd.gradcheck(affine, (x, w, b), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(affine, (x, w, b))


def test_what_the_kernel_does_not_take_goes_to_pytorch():
    x, w, b = case(5, 7, 3, torch.float32)
    with torch.no_grad():
        assert torch.equal(
            affine(x.bfloat16(), w.bfloat16(), b.bfloat16()),
            torch.nn.functional.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()),
        )
        many = torch.func.vmap(lambda one: affine(one, w, b))(x.unsqueeze(1))
        assert torch.allclose(many.squeeze(1), affine(x, w, b), atol=1e-6)
        assert affine(x.to("meta"), w.to("meta"), b.to("meta")).shape == (5, 3)
        with pytest.raises(RuntimeError, match="shapes"):
            affine(x[:, :6], w, b)
