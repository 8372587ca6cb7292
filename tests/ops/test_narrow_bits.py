"""Layers with weights in 8 bits and bfloat16 give the same bits in any batch, chunk and number of threads, on every instruction set."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tidegate
from tests.helpers.layers import FORMS
from tests.helpers.layers import layer_of as with_gains
from tests.helpers.native import assert_cut, assert_rows_alone, assert_steps, examples, layer_of, on_threads
from tidegate.ops.gru import native

pytestmark = pytest.mark.usefixtures("every_narrow_isa")

sizes = {
    "T": st.integers(1, 9),
    "B": st.integers(1, 19),
    "I": st.sampled_from([1, 5, 17]),
    "H": st.sampled_from([1, 7, 16, 33, 200]),
    "seed": st.integers(0, 99),
    "weights": st.sampled_from(["int8", "bf16"]),
}


def small(I, H, seed, weights, **options):
    return tidegate.quantize(layer_of(I, H, seed, **options), weights)


@examples
@given(**sizes, data=st.data())
def test_a_rows_bits_do_not_depend_on_its_batch(T, B, I, H, seed, weights, data):
    layer = small(I, H, seed, weights, num_layers=2, bidirectional=True)
    x, h_0 = torch.randn(T, B, I), torch.randn(4, B, H)
    assert_rows_alone(layer, x, h_0, data)


@examples
@given(**sizes, data=st.data())
def test_chunks_and_steps_give_the_bits_of_one_call(T, B, I, H, seed, weights, data):
    layer = small(I, H, seed, weights, num_layers=2)
    x, h_0 = torch.randn(T, B, I), torch.randn(2, B, H)
    assert_cut(layer, x, h_0, data)
    assert_steps(layer, x, h_0)


@pytest.mark.parametrize("weights", ["int8", "bf16"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_with_every_option_steps_give_the_bits_of_a_call(form, weights):
    layer = tidegate.quantize(with_gains(5, 19, num_layers=2, **form), weights)
    x = torch.randn(7, 3, 5)
    assert_steps(layer, x)


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_bits_are_the_same_on_any_number_of_threads(weights):
    for B in (1, 3, 70):  # split by units, and by rows over several chunks
        layer = small(40, 300, B, weights)
        x = torch.randn(12, B, 40)
        one, four = (on_threads(n, lambda layer=layer, x=x: (*layer(x), *layer.step(x[0]))) for n in (1, 4))
        for a, b in zip(one, four, strict=True):
            assert torch.equal(a, b)


def test_packed_and_padded_and_nested_sequences_have_the_bits_of_each_alone():
    layer = small(6, 20, 0, "int8", bidirectional=True, num_layers=2)
    sequences = [torch.randn(n, 6) for n in (9, 2, 5, 5, 1)]
    alone = [layer(sequence)[0] for sequence in sequences]
    packed = layer(torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False))[0]
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    nested = layer(torch.nested.nested_tensor(sequences, layout=torch.jagged))[0].unbind()
    x = torch.nn.utils.rnn.pad_sequence(sequences)
    x[5:, 2] = torch.nan
    by_lengths = layer(x, lengths=lengths)[0]
    for b, own in enumerate(alone):
        assert torch.equal(padded[: lengths[b], b], own)
        assert torch.equal(nested[b], own)
        assert torch.equal(by_lengths[: lengths[b], b], own)
    assert not by_lengths[5:, 2].any()


def test_rows_between_nested_sequences_are_0():
    layer = small(3, 8, 0, "int8")
    offsets, lengths = torch.tensor([0, 5, 9]), torch.tensor([3, 4])
    x = torch.nested.nested_tensor_from_jagged(torch.randn(9, 3), offsets, lengths)
    torch.use_deterministic_algorithms(True)  # then what is not written to is NaN
    try:
        output = layer(x)[0].values()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not output[3:5].any()
    assert output[:3].all()


def test_after_a_reset_come_the_bits_of_a_new_sequence():
    layer = tidegate.quantize(with_gains(4, 9, learn_initial_state=True, num_layers=2), "int8")
    x, resets = torch.randn(8, 2, 4), torch.zeros(2, 8, dtype=torch.bool)
    resets[1, 5] = True
    output = layer(x, resets=resets)[0]
    assert torch.equal(output[:, 0], layer(x)[0][:, 0])
    assert torch.equal(output[5:, 1], layer(x[5:])[0][:, 1])


def test_another_instruction_set_is_packed_for_anew(every_narrow_isa):
    layer = small(40, 200, 0, "bf16")
    x, h = torch.randn(4, 2, 40), torch.randn(1, 2, 200)
    layer(x)
    layer.step(x[0], h)
    assert native.set_isa("baseline")
    try:
        fresh = copy.deepcopy(layer)
        for found, expected in ((layer(x), fresh(x)), (layer.step(x[0], h), fresh.step(x[0], h))):
            assert torch.equal(found[0], expected[0])
    finally:
        native.set_isa(every_narrow_isa)
