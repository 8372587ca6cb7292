"""y = W x + b by the kernels: right, and a row's bits are its own."""

from __future__ import annotations

import pytest
import torch

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


def test_the_kernel_runs_without_gradients_and_pytorch_with_them(monkeypatch):
    calls = []
    kernel = native.affine.affine
    monkeypatch.setattr(native.affine, "affine", lambda *a: calls.append(1) or kernel(*a))
    x, w, b = case(5, 7, 3, torch.float32)
    with torch.no_grad():
        affine(x, w, b)
    assert calls == [1]
    w.requires_grad_()
    affine(x, w, b).sum().backward()
    assert calls == [1]
    assert torch.allclose(w.grad, x.sum(0).expand(3, 7))


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
