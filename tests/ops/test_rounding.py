"""Weights in 8 bits: one rounding for the kernels, the C export and what a quantised layer keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.native import layer_of
from tidegate.nn import QuantisedGRU
from tidegate.ops.gru.native import narrow
from tidegate.ops.rounding import quantise, widened


def rows_of_all_sizes(count: int = 400) -> torch.Tensor:
    """float32 [count, 33], from the smallest that have all their digits to the largest; one row of zeros."""
    torch.manual_seed(0)
    rows = torch.randn(count, 33) * torch.logspace(-34, 30, count).unsqueeze(1)
    rows[3] = 0
    return rows


def test_quantised_weights_are_the_nearest_that_a_scale_a_row_allows() -> None:
    rows = rows_of_all_sizes()
    numbers, scales = quantise(rows)
    assert numbers.dtype == torch.int8
    assert scales.dtype == torch.float32
    assert numbers.abs().amax(dim=1).tolist() == [127 if k != 3 else 0 for k in range(len(rows))]
    assert ((numbers * scales[:, None] - rows).abs() <= scales[:, None] * 0.5001).all()


def test_the_rounding_is_ieees_in_float32_with_halves_to_even() -> None:
    rows = rows_of_all_sizes()
    rows[0] = torch.arange(33) + 0.5
    rows[0, 0] = 127  # a scale of 1
    numbers, scales = quantise(rows)
    largest = np.abs(rows.numpy()).max(axis=1)
    expected = (largest / np.float32(127)).astype(np.float32)
    by = np.where(expected > 0, expected, np.inf)[:, None].astype(np.float32)
    assert np.array_equal(scales.numpy(), expected)
    assert np.array_equal(numbers.numpy(), np.clip(np.rint(rows.numpy() / by), -127, 127))


def test_weights_that_were_rounded_are_rounded_to_themselves() -> None:
    torch.manual_seed(1)
    rows = torch.randn(200_000, 2) * torch.logspace(-34, 30, 200_000).unsqueeze(1)
    again = quantise(widened(*quantise(rows)))
    for a, b in zip(again, quantise(rows), strict=True):
        assert torch.equal(a, b)


def test_an_empty_matrix_and_a_row_too_small_for_a_scale_are_zeros() -> None:
    assert quantise(torch.zeros(3, 0))[1].tolist() == [0, 0, 0]
    numbers, scales = quantise(torch.full((1, 2), 1e-45))
    assert (numbers.tolist(), scales.tolist()) == ([[0, 0]], [0])


@pytest.mark.usefixtures("every_narrow_isa")
@pytest.mark.parametrize("form", [{}, {"reset": "before", "layer_norm": True}], ids=str)
@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_the_kernels_round_the_weights_as_a_quantised_layer_has_them(weights: str, form: dict[str, object]) -> None:
    layer = layer_of(13, 37, bidirectional=True, **form)
    small = QuantisedGRU.of(layer, weights)
    x = torch.randn(9, 5, 13)
    raw = narrow.pack_rounded([w.detach() for each in layer.all_weights for w in each], small.form)
    for a, b in zip(narrow.gru(x, None, raw, small.form), small(x), strict=True):
        assert torch.equal(a, b)
