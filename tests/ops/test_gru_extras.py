"""What torch.nn.GRU does not have, alone and combined: the native back end against the definition, derivatives against
finite differences, and the same bits whatever else is in the call."""

from __future__ import annotations

import itertools
import random
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import dropout

from tidegate.ops.gru import native, reference
from tidegate.ops.gru.extras import Extras, LayerExtras, PackedRows, draw

FLOAT64 = torch.float64


def weights_of(I, H, *, D=1, bias=True, norm=False, dtype=FLOAT64):
    """Each number drawn on its own, the recurrence neither dying out nor running away."""
    flat = []
    for _ in range(D):
        flat += [torch.randn(3 * H, I, dtype=dtype) / I**0.5, torch.randn(3 * H, H, dtype=dtype) / H**0.5]
        flat += [torch.randn(3 * H, dtype=dtype) / 2 for _ in range(2 * bias)]
        flat += [1 + torch.randn(3 * H, dtype=dtype) / 3 for _ in range(2 * norm)]
    return flat


def starts_of(lengths):
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])


def native_layer(x, h_0, weights, bias, batch_sizes, extras, traces=True):
    output, h_n, gates = native.roads.run_layer(x, h_0, weights, bias, batch_sizes, extras, 0, None, traces)
    return output, h_n, None if gates is None else gates[:, :, :4]


def reference_layer(x, h_0, weights, bias, batch_sizes, extras):
    output, h_n, gates = reference.layer(x, h_0, weights, bias, batch_sizes, extras._replace(checkpoint_every=0))
    return output, h_n, gates.reshape(h_0.size(0), -1, 4, h_0.size(-1))


# ------------------------------------------------------------------------------------------- against the definition


def a_case(seed):
    """Sizes, a layout and options, each drawn on its own: arguments of a layer, and what they are."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    T, B = pick.choice([0, 1, 2, 7, 63]), pick.choice([1, 2, 5, 13])
    I, H, D = pick.choice([1, 3, 17]), pick.choice([1, 7, 9, 33, 64]), pick.choice([1, 2])
    layout = pick.choice(["dense", "lengths", "packed", "end to end"])
    bias, norm, before = pick.random() < 0.7, pick.random() < 0.4 and H > 2, pick.random() < 0.5
    lengths = starts = batch_sizes = None
    if layout == "packed":
        steps = sorted((pick.randint(1, max(1, T)) for _ in range(B)), reverse=True)
        T = steps[0]
        batch_sizes = torch.tensor([sum(n > t for n in steps) for t in range(T)])
        shape = (sum(steps),)
    elif layout == "end to end":
        lengths = torch.randint(0, T + 1, (B,))
        starts, shape, T = starts_of(lengths), (int(lengths.sum()),), int(lengths.max())
    else:
        lengths = torch.randint(0, T + 1, (B,)) if layout == "lengths" else None
        shape = (T, B)
    x = torch.randn(*shape, I, dtype=FLOAT64)
    if len(shape) == 2 and pick.random() < 0.5:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    resets = torch.rand(B, T).transpose(0, 1) < 0.3 if pick.random() < 0.5 else None
    zones = pick.choice(["none", "drawn", "rate"])
    extras = LayerExtras(
        lengths,
        starts,
        resets,
        torch.randn(D, B, H, dtype=FLOAT64) if resets is not None and pick.random() < 0.6 else None,
        dropout(torch.ones(D, B, H, dtype=FLOAT64), 0.4) if pick.random() < 0.4 else None,
        torch.rand(*shape, D * H) < 0.4 if zones == "drawn" else None,
        0.3 if zones == "rate" else 0.0,
        before,
        norm,
        5 if pick.random() < 0.3 else 0,
    )
    h_0 = torch.randn(D, B, H, dtype=FLOAT64)
    return x, h_0, weights_of(I, H, D=D, bias=bias, norm=norm), bias, batch_sizes, extras


def results(layer, x, h_0, weights, bias, batch_sizes, extras):
    """Output, h_n, the gates at real steps, and all gradients for random gradients of each."""
    x, h_0, *weights = (v.detach().clone().requires_grad_() for v in (x, h_0, *weights))
    fresh = None if extras.fresh is None else extras.fresh.clone().requires_grad_()
    found = list(layer(x, h_0, weights, bias, batch_sizes, extras._replace(fresh=fresh)))
    torch.manual_seed(0)
    upstream = [None if v is None else torch.randn_like(v) for v in found]
    inputs = [v for v in (x, h_0, fresh, *weights) if v is not None]
    on = [i for i, v in enumerate(found) if v is not None and v.requires_grad]
    given = torch.autograd.grad([found[i] for i in on], inputs, [upstream[i] for i in on], allow_unused=True)
    return found, [torch.zeros_like(v) if d is None else d for v, d in zip(inputs, given, strict=True)]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("seed", range(120))
def test_the_native_back_end_computes_the_definition_whatever_is_combined(seed, every_isa):
    case = a_case(seed)
    traces = not case[-1].checkpoint_every
    (*ours, gates), d_ours = results(partial(native_layer, traces=traces), *case)
    (*truth, true_gates), d_truth = results(
        lambda *args: (*reference_layer(*args)[:2], reference_layer(*args)[2] if traces else None), *case
    )
    for a, b in zip((*ours, *d_ours), (*truth, *d_truth), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    if traces:
        torch.testing.assert_close(gates, true_gates, rtol=1e-10, atol=1e-11)


# ------------------------------------------------------------------------------------------- derivatives

OPTIONS = {
    "lengths": {"lengths": torch.tensor([2, 0, 3])},
    "resets": {"resets": torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)},
    "recurrent_dropout": {"mask": torch.tensor([[[0.0, 2.0, 2.0]] * 3, [[2.0, 2.0, 0.0]] * 3], dtype=FLOAT64)},
    "zoneout": {"zone": torch.arange(3 * 3 * 6).reshape(3, 3, 6) % 5 < 2},
    "zoneout's expectation": {"zone_rate": 0.3},
    "before": {"before": True},
    "layer_norm": {"norm": True},
}
PAIRS = [(a,) for a in OPTIONS] + [
    pair for pair in itertools.combinations(OPTIONS, 2) if pair != ("zoneout", "zoneout's expectation")
]


@pytest.mark.one_in(25)
@pytest.mark.parametrize("layer", [native_layer, reference_layer])
@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_first_and_second_derivatives_are_right_for_every_option_and_pair(names, layer):
    torch.manual_seed(1)
    options = {key: v for name in names for key, v in OPTIONS[name].items()}
    norm = options.get("norm", False)
    x, h_0 = torch.randn(3, 3, 2, dtype=FLOAT64), torch.randn(2, 3, 3, dtype=FLOAT64)
    fresh = [torch.randn(2, 3, 3, dtype=FLOAT64)] if "resets" in options else []
    inputs = [x, h_0, *fresh, *weights_of(2, 3, D=2, norm=norm)]
    inputs = [v.requires_grad_() for v in inputs]

    def run(x, h_0, *rest):
        fresh, weights = (rest[0], rest[1:]) if "resets" in options else (None, rest)
        output, h_n, gates = layer(x, h_0, list(weights), True, None, LayerExtras(**options, fresh=fresh))
        return output, h_n, gates

    assert gradcheck(run, inputs, fast_mode=len(names) > 1)
    assert gradgradcheck(run, inputs, fast_mode=True)


# ------------------------------------------------------------------------------------------- the same bits

FORMS = [
    {},
    {"before": True},
    {"norm": True},
    {"before": True, "norm": True, "zone_rate": 0.2},
    {"drawn": True},
    {"drawn": True, "norm": True},
    {"drawn": True, "before": True},
]


def extras_of(form, D, B, H, shape):
    form = dict(form)
    if form.pop("drawn", False):
        mask = dropout(torch.ones(D, 1, H), 0.3).expand(D, B, H)  # one for all: the pieces are sequences of their own
        form |= {"mask": mask, "zone": torch.rand(*shape, D * H) < 0.3}
    return LayerExtras(**form)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("H", [7, 33, 240])
def test_episodes_joined_by_resets_give_the_bits_of_the_separate_ones(H, form, every_isa):
    torch.manual_seed(0)
    pieces, D, I = [3, 1, 5, 2], 2, 6
    T = sum(pieces)
    weights = weights_of(I, H, D=D, norm=form.get("norm", False), dtype=torch.float32)
    x = torch.randn(T, 2, I)
    extras = extras_of(form, D, 2, H, (T, 2))
    starts = [sum(pieces[:k]) for k in range(len(pieces))]
    resets = torch.zeros(T, 2, dtype=torch.bool)
    resets[starts] = True
    with torch.no_grad():
        joined, h_n, _ = native_layer(x, None, weights, True, None, extras._replace(resets=resets), False)
        for start, n in zip(starts, pieces, strict=True):
            zone = None if extras.zone is None else extras.zone[start : start + n]
            own = x[start : start + n]
            output, last, _ = native_layer(own, None, weights, True, None, extras._replace(zone=zone), False)
            assert torch.equal(joined[start : start + n], output)
        assert torch.equal(h_n[0], last[0])  # forwards the last piece comes last, backwards the first


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_gradients_of_joined_episodes_are_those_of_the_separate_ones(form):
    torch.manual_seed(0)
    pieces, D, I, H = [3, 1, 4], 2, 3, 9
    weights = [w.requires_grad_() for w in weights_of(I, H, D=D, norm=form.get("norm", False))]
    x = torch.randn(8, 2, I, dtype=FLOAT64, requires_grad=True)
    extras = extras_of(form, D, 2, H, (8, 2))
    if extras.mask is not None:
        extras = extras._replace(mask=extras.mask.double())
    resets = torch.zeros(8, 2, dtype=torch.bool)
    resets[[0, 3, 4]] = True
    upstream = torch.randn(8, 2, D * H, dtype=FLOAT64)
    output, _, _ = native_layer(x, None, weights, True, None, extras._replace(resets=resets), False)
    joined = torch.autograd.grad(output, [x, *weights], upstream)
    outputs, start = [], 0
    for n in pieces:
        zone = None if extras.zone is None else extras.zone[start : start + n]
        own = extras._replace(zone=zone)
        outputs.append(native_layer(x[start : start + n], None, weights, True, None, own, False)[0])
        start += n
    apart = torch.autograd.grad(torch.cat(outputs), [x, *weights], upstream)
    for a, b in zip(joined, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layer", [native_layer, reference_layer])
def test_no_gradient_passes_a_reset(layer):
    torch.manual_seed(0)
    weights = weights_of(3, 5, D=2)
    x, h_0 = (
        torch.randn(6, 2, 3, dtype=FLOAT64, requires_grad=True),
        torch.randn(2, 2, 5, dtype=FLOAT64, requires_grad=True),
    )
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[4, 0] = True
    output, _, _ = layer(x, h_0, weights, True, None, LayerExtras(resets=resets))
    d_x, d_h_0 = torch.autograd.grad(output[5].sum(), [x, h_0], retain_graph=True)
    assert (d_x[:4, 0] == 0).all()  # forwards from the mark on
    assert (d_x[4:, 0] != 0).all()
    assert (d_x[:, 1] != 0).any()
    assert (d_h_0[0, 0] == 0).all()
    assert (d_h_0[0, 1] != 0).all()
    d_x = torch.autograd.grad(output[0, :, 5:].sum(), x)[0]
    assert (d_x[4:, 0] == 0).all()  # and backwards up to it
    assert (d_x[:4, 0] != 0).all()
    assert (d_x[4:, 1] != 0).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("ends", [False, True], ids=["padded", "end to end"])
def test_the_bits_of_a_sequence_do_not_depend_on_the_others_their_lengths_or_the_threads(ends, form, every_isa):
    torch.manual_seed(0)
    B, T, I, H, D = 6, 9, 5, 40, 2
    lengths = torch.tensor([4, 9, 0, 1, 9, 6])
    weights = weights_of(I, H, D=D, norm=form.get("norm", False), dtype=torch.float32)
    x, h_0 = torch.randn(T, B, I), torch.randn(D, B, H)
    extras = extras_of(form, D, B, H, (T, B))
    if ends:
        rows = torch.cat([torch.arange(n) * B + b for b, n in enumerate(lengths.tolist())])
        zone = None if extras.zone is None else extras.zone.flatten(0, 1)[rows]
        packed = extras._replace(lengths=lengths, starts=starts_of(lengths), zone=zone)
        given = x.flatten(0, 1)[rows]
    else:
        packed, given = extras._replace(lengths=lengths), x
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                output, h_n, _ = native_layer(given, h_0, weights, True, None, packed, False)
                for b, n in enumerate(lengths.tolist()):
                    zone = None if extras.zone is None else extras.zone[:n, b : b + 1]
                    mask = None if extras.mask is None else extras.mask[:, b : b + 1]
                    one = extras._replace(zone=zone, mask=mask)
                    alone, last, _ = native_layer(x[:n, b : b + 1], h_0[:, b : b + 1], weights, True, None, one, False)
                    own = output[starts_of(lengths)[b] :][:n] if ends else output[:n, b]
                    assert torch.equal(own, alone[:, 0])
                    assert torch.equal(h_n[:, b], last[:, 0])
                    if not ends:
                        assert (output[n:, b] == 0).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_padding_is_not_even_looked_at(form):
    torch.manual_seed(0)
    lengths = torch.tensor([2, 0, 4])
    weights = [w.requires_grad_() for w in weights_of(3, 5, D=2, norm=form.get("norm", False), dtype=torch.float32)]
    extras = extras_of(form, 2, 3, 5, (4, 3))._replace(lengths=lengths)
    found = []
    for padding in (0.0, float("nan")):
        x = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
        x = torch.where((torch.arange(4)[:, None] < lengths)[..., None], x, padding).requires_grad_()
        for layer in (native_layer, reference_layer):
            output, h_n, gates = layer(x, torch.ones(2, 3, 5), weights, True, None, extras)
            found.append([output, h_n, gates, *torch.autograd.grad(output.sum() + gates.sum(), [x, *weights])])
    for ours, others in (found[0::2], found[1::2]):
        for a, b in zip(ours, others, strict=True):
            assert torch.equal(a, b)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("every", [1, 7, 100])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("B", [1, 5, 300])
def test_gates_computed_again_give_the_same_bits_in_every_gradient(B, form, every, every_isa):
    torch.manual_seed(0)
    T, I, H, D = (70, 4, 9, 2) if B < 100 else (3, 4, 9, 2)
    weights = weights_of(I, H, D=D, norm=form.get("norm", False), dtype=torch.float32)
    resets = torch.rand(T, B) < 0.1
    extras = extras_of(form, D, B, H, (T, B))._replace(resets=resets, lengths=torch.randint(0, T + 1, (B,)))
    case = (torch.randn(T, B, I), torch.randn(D, B, H), weights, True, None)
    layer = partial(native_layer, traces=False)
    before = torch.get_num_threads()
    try:
        kept = results(layer, *case, extras)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = results(layer, *case, extras._replace(checkpoint_every=every))
            for a, b in zip((*kept[0][:2], *kept[1]), (*again[0][:2], *again[1]), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_every_gradient_has_the_same_bits_on_any_number_of_threads(every_isa):
    before = torch.get_num_threads()
    try:
        for seed in range(20):
            case = a_case(1000 + seed)
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(results(partial(native_layer, traces=False), *case))
            for other in found[1:]:
                for a, b in zip((*found[0][0][:2], *found[0][1]), (*other[0][:2], *other[1]), strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("p", [0.0, 0.01, 0.25, 0.5, 0.999, 1.0])
def test_what_is_drawn_is_true_as_often_as_it_should_be(p):
    torch.manual_seed(0)
    n = 200_000
    mean = draw((n // 100, 100), p, torch.zeros(1)).double().mean().item()
    assert abs(mean - p) <= 5 * (p * (1 - p) / n) ** 0.5 + 1 / 65536
    assert draw((3, 5), p, torch.zeros(1)).shape == (3, 5)  # no multiple of four


def test_one_seed_gives_every_back_end_the_same_masks_in_every_layer():
    torch.manual_seed(0)
    weights = weights_of(3, 5, D=2) + weights_of(10, 5, D=2)
    x, extras = torch.randn(6, 2, 3, dtype=FLOAT64), Extras(recurrent_dropout=0.4, zoneout=0.3)
    found = []
    for seed, backend in ((1, native), (1, reference), (2, native)):
        torch.manual_seed(seed)
        options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "training": True, "extras": extras}
        found.append(backend.gru(x, None, weights, **options)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)
    assert (found[0] - found[2]).abs().max() > 0.01


def test_the_rows_of_sequences_with_lengths_are_those_of_a_packed_sequence():
    lengths = torch.tensor([2, 0, 4, 2])
    numbers, batch_sizes, order = PackedRows.of(lengths, None)
    assert order.tolist() == [2, 0, 3]
    assert batch_sizes.tolist() == [3, 3, 1, 1]
    assert numbers.tolist() == [2, 0, 3, 6, 4, 7, 10, 14]
    numbers, _, _ = PackedRows.of(lengths, starts_of(lengths))
    assert numbers.tolist() == [2, 0, 6, 3, 1, 7, 4, 5]
