"""Lengths, nested tensors and resets: sequences of any length in one call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import tidegate
from tests.helpers.layers import BACKENDS, FORMS, IN_FLOAT32, OURS, assert_at_most_twice, error, jagged, layer_of, pair
from tidegate.errors import SettingsError, ShapeError

# ------------------------------------------------------------------------------------------- lengths

LENGTHS = [3, 0, 5, 1, 5]


def each_alone(theirs, x, h_0, lengths, d_output, d_h_n):
    """Values and gradients of torch.nn.GRU over one sequence at a time; x is [T, B, I]."""
    x, h_0 = x.clone().requires_grad_(), h_0.clone().requires_grad_()
    outputs, states = [], []
    for b, n in enumerate(lengths):
        if n == 0:
            outputs.append(torch.zeros_like(d_output[:, b]))
            states.append(h_0[:, b])
        else:
            output, h_n = theirs(x[:n, b], h_0[:, b].contiguous())
            outputs.append(torch.cat([output, torch.zeros_like(d_output[n:, b])]))
            states.append(h_n)
    output, h_n = torch.stack(outputs, 1), torch.stack(states, 1)
    leaves = [x, h_0, *theirs.parameters()]
    return [output, h_n, *torch.autograd.grad([output, h_n], leaves, [d_output, d_h_n])]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["lengths", "a list", "not contiguous", "nested"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["T_first", "batch_first"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_with_lengths_each_sequence_gets_what_torch_gives_it_alone(
    num_layers, bidirectional, bias, batch_first, kind, dtype
):
    T, B, I, H = 6, len(LENGTHS), 4, 7
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    runs = num_layers * (1 + bidirectional)
    torch.manual_seed(1)
    x, h_0 = torch.randn(T, B, I, dtype=dtype), torch.randn(runs, B, H, dtype=dtype)
    d_output, d_h_n = torch.randn(T, B, H * (1 + bidirectional), dtype=dtype), torch.randn_like(h_0)
    theirs = pair("torch", I, H, **options, dtype=dtype)[1]
    of_torch = each_alone(theirs, x, h_0, LENGTHS, d_output, d_h_n)
    wide = [v.double() for v in (x, h_0)]
    exact = each_alone(theirs.double(), *wide, LENGTHS, d_output.double(), d_h_n.double())

    for backend in BACKENDS:
        ours, _ = pair(backend, I, H, **options, batch_first=batch_first, dtype=dtype)
        leaf, h = x.clone().requires_grad_(), h_0.clone().requires_grad_()
        given = leaf.transpose(0, 1) if batch_first else leaf
        if kind == "not contiguous":
            given = given.repeat_interleave(2, dim=-1)[..., ::2]
        if kind == "nested":
            given = torch.nested.nested_tensor_from_jagged(
                torch.cat([leaf[:n, b] for b, n in enumerate(LENGTHS)]), torch.tensor([0, *LENGTHS]).cumsum(0)
            )
            output, h_n = ours(given, h)
            assert output.is_nested
            assert torch.equal(output.offsets(), given.offsets())
            output = torch.stack([nn.functional.pad(v, (0, 0, 0, T - len(v))) for v in output.unbind()], 1)
        else:
            lengths = LENGTHS if kind == "a list" else torch.tensor(LENGTHS)
            output, h_n = ours(given, h, lengths=lengths)
            output = output.transpose(0, 1) if batch_first else output
        gradients = torch.autograd.grad([output, h_n], [leaf, h, *ours.parameters()], [d_output, d_h_n])
        of_ours = [output, h_n, *gradients]
        mine, its = ([error(v, e) for v, e in zip(vs, exact, strict=True)] for vs in (of_ours, of_torch))
        if dtype == torch.float64:
            assert max(mine) < 1e-14, backend
        else:
            assert_at_most_twice(mine, its)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[0, 0, 0], [4, 4, 4], [0, 0, 4]])
def test_all_empty_or_all_full_is_no_special_case(lengths, backend):
    layer = layer_of(3, 5, bidirectional=True, backend=backend)
    x, h_0 = torch.randn(4, 3, 3), torch.randn(2, 3, 5)
    output, h_n = layer(x, h_0, lengths=lengths)
    for b, n in enumerate(lengths):
        alone, last = layer(x[:n, b], h_0[:, b])
        torch.testing.assert_close(output[:n, b], alone)
        assert (output[n:, b] == 0).all()
        torch.testing.assert_close(h_n[:, b], last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_steps_and_no_sequences_are_no_special_case(backend):
    layer = layer_of(3, 5, backend=backend)
    output, h_n = layer(torch.zeros(0, 2, 3), torch.ones(1, 2, 5), lengths=[0, 0])
    assert output.shape == (0, 2, 5)
    assert (h_n == 1).all()
    output, h_n = layer(torch.zeros(4, 0, 3), lengths=[])
    assert output.shape == (4, 0, 5)
    assert h_n.shape == (1, 0, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_give_the_bits_of_a_packed_sequence(backend):
    layer = layer_of(3, 33, num_layers=2, bidirectional=True, backend=backend)
    lengths = [2, 5, 1]
    x = torch.randn(5, 3, 3)
    packed, of_packed = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    output, h_n = layer(x, lengths=lengths)
    assert torch.equal(h_n, of_packed)
    assert torch.equal(pack_padded_sequence(output, lengths, enforce_sorted=False).data, packed.data)


@pytest.mark.parametrize(("backend", "dtype"), IN_FLOAT32, ids=str)
def test_half_types_are_computed_in_float32_and_rounded_once(backend, dtype):
    for form in FORMS.values():
        layer = layer_of(3, 9, num_layers=2, bidirectional=True, backend=backend, dtype=dtype, **form)
        wide = copy.deepcopy(layer).float()
        x, more = torch.randn(6, 2, 3, dtype=dtype), {"lengths": [6, 4], "resets": torch.rand(2, 6) < 0.3}
        torch.manual_seed(5)
        narrow = layer(x, **more)
        torch.manual_seed(5)
        for a, b in zip(narrow, wide(x.float(), **more), strict=True):
            assert torch.equal(a, b.to(dtype))


# ------------------------------------------------------------------------------------------- resets


@pytest.mark.one_in(3)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", ["batched", "batch_first", "one", "packed", "nested", "lengths"])
@pytest.mark.parametrize("backend", OURS)
def test_a_reset_begins_a_new_sequence_in_every_layer_and_direction(backend, kind, form):
    """Two pieces in one: as if each had been given alone, to the bit in the native back end."""
    T, cut, I, H = 7, 3, 4, 9
    form = {k: v for k, v in form.items() if k not in ("zoneout", "recurrent_dropout")}  # (drawn for each call)
    form |= {"num_layers": 2, "bidirectional": True, "backend": backend}
    layer = layer_of(I, H, batch_first=kind == "batch_first", **form)
    x = torch.randn(T, 2, I)
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[:, cut] = True
    if kind == "packed":
        resets[0] = False  # it ends there, and in the pack it comes second
    plain = layer_of(I, H, **form)
    expected = torch.cat([plain(x[:cut])[0], plain(x[cut:])[0]])
    if kind == "one":
        got = layer(x[:, 0], resets=resets[0])[0].unsqueeze(1)
        expected = expected[:, :1]
    elif kind == "batch_first":
        got = layer(x.transpose(0, 1), resets=resets)[0].transpose(0, 1)
    elif kind == "packed":
        shorter = pack_sequence([x[:, 0][:cut], x[:, 1]], enforce_sorted=False)
        got = layer(shorter, resets=resets)[0]
        got = torch.nn.utils.rnn.pad_packed_sequence(got)[0][:, 1:]
        expected = expected[:, 1:]
    elif kind == "nested":
        got = layer(jagged([x[:cut, 0], x[:, 1]]), resets=resets)[0].unbind()[1].unsqueeze(1)
        expected = expected[:, 1:]
    elif kind == "lengths":
        got = layer(x, lengths=[T, cut], resets=resets)[0][:, :1]
        expected = expected[:, :1]
    else:
        got = layer(x, resets=resets)[0]
    if backend == "native":
        assert torch.equal(got, expected)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", OURS)
def test_hx_is_where_the_first_piece_begins_and_a_reset_begins_at_the_initial_state(backend):
    layer = layer_of(3, 5, learn_initial_state=True, backend=backend)
    x, h_0, resets = torch.randn(4, 1, 3), torch.randn(1, 1, 5), torch.tensor([[False, False, True, False]])
    output, _ = layer(x, h_0, resets=resets)
    torch.testing.assert_close(output[:2], layer(x[:2], h_0)[0])
    torch.testing.assert_close(output[2:], layer(x[2:])[0])
    resets[0, 0] = True
    torch.testing.assert_close(layer(x, h_0, resets=resets)[0][:2], layer(x[:2])[0])
    d_h = torch.autograd.grad(layer(x, resets=resets)[0].sum(), layer.initial_h)[0]
    twice = torch.autograd.grad(layer(x[:2])[0].sum() + layer(x[2:])[0].sum(), layer.initial_h)[0]
    torch.testing.assert_close(d_h, twice)


def test_resets_in_chunks_with_the_state_carried_give_the_bits_of_one_call():
    layer = layer_of(3, 20, num_layers=2, backend="native", layer_norm=True, reset="before").eval()
    x, resets = torch.randn(9, 3, 3), torch.rand(3, 9) < 0.3
    whole, h_n = layer(x, resets=resets)
    parts, state = [], None
    for first, last in ((0, 2), (2, 3), (3, 9)):
        part, state = layer(x[first:last], state, resets=resets[:, first:last])
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, h_n)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("make", [tidegate.GRU, tidegate.MinGRU])
def test_a_mask_says_the_same_as_lengths(make, batch_first):
    layer = make(3, 5, batch_first=batch_first)
    x, lengths = torch.randn(4, 4, 3), torch.tensor([4, 0, 2, 1])
    x = torch.randn(*((4, 6) if batch_first else (6, 4)), 3)
    mask = torch.arange(6) < lengths.unsqueeze(1)
    assert all(map(torch.equal, layer(x, mask=mask), layer(x, lengths=lengths)))


def test_what_is_no_mask_is_told_with_the_way_out():
    layer, x = tidegate.GRU(3, 5, batch_first=True), torch.randn(2, 4, 3)
    mask = torch.ones(2, 4, dtype=torch.bool)
    hole = mask.clone()
    hole[1, 1] = False
    for given, kind, said in (
        ({"mask": mask, "lengths": [4, 4]}, SettingsError, "Give one of them"),
        ({"mask": mask.T}, ShapeError, r"mask is \[4, 2\], torch.bool; expected \[B=2, T=4\]"),
        ({"mask": mask.int()}, ShapeError, "torch.int32; expected"),
        ({"mask": hole}, ShapeError, r"steps after padding \(sequence 1\).* resets="),
        ({"mask": [True]}, TypeError, "mask is of type list"),
    ):
        with pytest.raises(kind, match=said):
            layer(x, **given)
    with pytest.raises(SettingsError, match="no batch of padded sequences"):
        layer(x[0], mask=mask)
