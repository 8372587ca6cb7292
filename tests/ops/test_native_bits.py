"""The native back end gives the same bits in any batch, chunk and number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.native import assert_cut, assert_rows_alone, examples, gradients, layer_of, on_threads
from tidegate.ops.gru import native

# Every test of this file runs on every instruction set of this machine.
pytestmark = pytest.mark.usefixtures("every_isa")

sizes = {
    "T": st.integers(1, 9),
    "B": st.integers(1, 19),
    "I": st.sampled_from([1, 5, 17]),
    "H": st.sampled_from([1, 7, 16, 33, 200]),
    "seed": st.integers(0, 99),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
}


@examples
@given(**sizes, data=st.data())
def test_a_rows_bits_do_not_depend_on_its_batch(T, B, I, H, seed, dtype, data):
    layer = layer_of(I, H, seed, num_layers=2, bidirectional=True, dtype=dtype)
    x, h_0 = torch.randn(T, B, I, dtype=dtype), torch.randn(4, B, H, dtype=dtype)
    assert_rows_alone(layer, x, h_0, data)


@examples
@given(**sizes, data=st.data())
def test_chunks_give_the_bits_of_one_call(T, B, I, H, seed, dtype, data):
    layer = layer_of(I, H, seed, num_layers=2, dtype=dtype)
    x, h = torch.randn(T, B, I, dtype=dtype), torch.randn(2, B, H, dtype=dtype)
    assert_cut(layer, x, h, data)


@examples
@given(**sizes, threads=st.integers(2, 5), both_ways=st.booleans())
def test_outputs_and_gradients_have_the_same_bits_on_any_number_of_threads(T, B, I, H, seed, dtype, threads, both_ways):
    layer = layer_of(I, H, seed, bidirectional=both_ways, dtype=dtype)
    x = torch.randn(T, B, I, dtype=dtype)
    for a, b in zip(*(on_threads(n, lambda: gradients(layer, x)) for n in (1, threads)), strict=True):
        assert torch.equal(a, b)


def test_a_big_layer_has_the_same_bits_on_any_number_of_threads():
    for B in (1, 3, 70):  # split by units, and by rows over several chunks
        layer = layer_of(40, 300, B)
        x = torch.randn(12, B, 40)
        one, four = (on_threads(n, lambda layer=layer, x=x: gradients(layer, x)) for n in (1, 4))
        for a, b in zip(one, four, strict=True):
            assert torch.equal(a, b)


def test_a_packed_sequence_has_the_bits_of_its_sequence_alone():
    layer = layer_of(6, 20, bidirectional=True, num_layers=2)
    sequences = [torch.randn(n, 6) for n in (9, 2, 5, 5, 1)]
    output, lengths = torch.nn.utils.rnn.pad_packed_sequence(
        layer(torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False))[0]
    )
    for b, sequence in enumerate(sequences):
        assert torch.equal(output[: lengths[b], b], layer(sequence)[0])


def test_a_training_run_repeats_to_the_bit():
    def trained(threads):
        layer = layer_of(8, 24, 3, num_layers=2)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.01, foreach=False)
        for step in range(15):
            torch.manual_seed(step)
            optimiser.zero_grad()
            layer(torch.randn(30, 6, 8))[0].square().mean().backward()
            optimiser.step()
        return [p.detach().clone() for p in layer.parameters()]

    for a, b in zip(on_threads(1, lambda: trained(1)), on_threads(2, lambda: trained(2)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "form", [{}, {"num_layers": 2, "bidirectional": True}, {"reset": "before", "zoneout": 0.2}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_avx2_and_avx512_give_the_same_bits_where_there_is_no_layer_norm(every_isa, dtype, form):
    if every_isa == "baseline":
        return  # it has no fused multiply-add
    found = []
    for isa in ("avx2", every_isa):  # (a machine with AVX-512 has AVX2)
        assert native.set_isa(isa)
        for B, H in ((1, 7), (5, 70), (32, 33)):
            layer = layer_of(13, H, dtype=dtype, **form).eval()
            found.append(gradients(layer, torch.randn(9, B, 13, dtype=dtype)))
    assert all(all(map(torch.equal, a, b)) for a, b in zip(found[:3], found[3:], strict=True))
