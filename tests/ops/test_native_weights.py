"""The native back end keeps weights packed, notices when they change, and reads none that it can't."""

from __future__ import annotations

import gc

import pytest
import torch

import tidegate
from tests.helpers.native import layer_of
from tidegate.errors import ShapeError
from tidegate.ops.gru import native
from tidegate.ops.gru.extras import LayerExtras

# Every test of this file runs on every instruction set of this machine.
pytestmark = pytest.mark.usefixtures("every_isa")


# ------------------------------------------------------------------------------------------- kept weights


def changed_by(change):
    layer = layer_of(5, 9)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        before = layer(x)[0]
        assert torch.equal(layer(x)[0], before)
        change(layer)
        after = layer(x)[0]
        assert not torch.equal(after, before)
        fresh = tidegate.GRU(5, 9, backend="native")
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(fresh(x)[0], after)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_changed_parameter_is_noticed(name):
    changed_by(lambda layer: getattr(layer, name)[0].add_(1))
    changed_by(lambda layer: getattr(layer, name).view(-1)[4].add_(1))  # none of the values that are looked at
    changed_by(lambda layer: setattr(layer, name, torch.nn.Parameter(2 * getattr(layer, name))))
    changed_by(lambda layer: layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()}))
    changed_by(lambda layer: setattr(getattr(layer, name), "data", 2 * getattr(layer, name).data))
    changed_by(lambda layer: getattr(layer, name).data.mul_(1.5))


def test_another_parameter_on_the_same_memory_and_of_the_same_version_is_noticed():
    layer, x = layer_of(5, 9), torch.randn(4, 3, 5)
    with torch.no_grad():
        state = torch.ones(1, 3, 9)
        before, y = layer(x, state)[0], layer.step(x[0], state)[0]
        old = layer.weight_hh_l0
        layer.weight_hh_l0 = torch.nn.Parameter(old.data)
        while layer.weight_hh_l0._version < old._version:
            layer.weight_hh_l0.view(-1)[4].add_(1)
        assert (layer.weight_hh_l0._version, layer.weight_hh_l0.data_ptr()) == (old._version, old.data_ptr())
        assert native.quick_step(layer._kept, x[0], state, layer._parameters) is None
        assert not torch.equal(layer(x, state)[0], before)
        assert not torch.equal(layer.step(x[0], state)[0], y)


def test_an_optimiser_step_is_noticed():
    def step(layer):
        with torch.enable_grad():
            layer(torch.randn(4, 3, 5))[0].sum().backward()
        torch.optim.SGD(layer.parameters(), lr=1.0).step()

    changed_by(step)


def test_weights_are_packed_once_while_they_stay_the_same(monkeypatch):
    layer = layer_of(5, 9, num_layers=2)
    packs = []
    real = native.weights.pack
    monkeypatch.setattr(native.weights, "pack", lambda *args: (packs.append(1), real(*args))[1])
    with torch.no_grad():
        for _ in range(3):
            layer(torch.randn(4, 3, 5))
    assert len(packs) == 2


def without_a_version(layer, name, index):
    getattr(layer, name).data[index] += 1


def through_numpy(layer, name, index):
    getattr(layer, name).detach().numpy()[index] += 1


@pytest.mark.parametrize("change", [without_a_version, through_numpy])
@pytest.mark.parametrize("begin", ["nothing", "zeros", "a state, and 16 steps"])
def test_a_call_that_begins_a_sequence_or_is_long_sees_every_changed_value(begin, change):
    H = 24
    T = 16 if begin == "a state, and 16 steps" else 2
    state = None if begin == "nothing" else torch.zeros(1, 2, H) if begin == "zeros" else torch.ones(1, 2, H)
    x = torch.randn(T, 2, 5)
    layer = layer_of(5, H)
    for name, parameter in layer.named_parameters():
        for row in range(3 * H):
            index = (row, (7 * row) % parameter.size(1)) if parameter.dim() == 2 else row
            with torch.no_grad():
                layer(x, state), layer.step(x[0], state)
                change(layer, name, index)
                fresh = tidegate.GRU(5, H, backend="native")
                fresh.load_state_dict(layer.state_dict())
                assert torch.equal(layer(x, state)[0], fresh(x, state)[0])
                if T == 2:
                    assert torch.equal(layer.step(x[0], state)[0], fresh.step(x[0], state)[0])


@pytest.mark.parametrize("begin", ["nothing", "zeros", "a state, and 16 steps"])
def test_a_large_layer_whose_units_are_silenced_or_whose_rows_change_is_the_one_that_runs(begin):
    H = 48
    T = 16 if begin == "a state, and 16 steps" else 2
    state = None if begin == "nothing" else torch.zeros(1, 2, H) if begin == "zeros" else torch.ones(1, 2, H)
    layer, x = layer_of(200, H), torch.randn(T, 2, 200)
    changes = [("weight_hh_l0", (slice(None), unit)) for unit in range(H)]
    changes += [("weight_ih_l0", (slice(None), feature)) for feature in range(200)]
    changes += [
        (name, row) for name in ("weight_hh_l0", "weight_ih_l0", "bias_ih_l0", "bias_hh_l0") for row in range(3 * H)
    ]
    with torch.no_grad():
        fresh = tidegate.GRU(200, H, backend="native")
        for name, index in changes:
            layer(x, state), layer.step(x[0], state)
            getattr(layer, name).data[index] *= 0.5
            fresh.load_state_dict(layer.state_dict())
            assert torch.equal(layer(x, state)[0], fresh(x, state)[0])
            if T == 2:
                assert torch.equal(layer.step(x[0], state)[0], fresh.step(x[0], state)[0])


def test_a_call_of_many_rows_sees_every_changed_value_of_a_large_layer():
    layer, x = layer_of(40, 48), torch.randn(32, 32, 40)
    with torch.no_grad():
        fresh = tidegate.GRU(40, 48, backend="native")
        for row in range(144):
            layer(x)
            layer.weight_hh_l0.data[row, (11 * row + 5) % 48] += 0.5
            fresh.load_state_dict(layer.state_dict())
            assert torch.equal(layer(x)[0], fresh(x)[0])


def test_a_cell_whose_unit_is_silenced_through_data_is_the_cell_with_that_unit_silenced():
    torch.manual_seed(0)
    cell, x = tidegate.GRUCell(8, 32, backend="native"), torch.randn(5, 2, 8)
    for unit in range(32):
        with torch.no_grad():
            cell.weight_hh.data[:, unit] = 0
            fresh = tidegate.GRUCell(8, 32, backend="native")
            fresh.load_state_dict(cell.state_dict())
            h = wanted = torch.zeros(2, 32)
            for x_t in x:
                h, wanted = cell(x_t, h), fresh(x_t, wanted)
            assert torch.equal(h, wanted)


def test_weights_in_shared_memory_are_looked_at_wholly_at_every_call():
    layer = layer_of(5, 24).share_memory()
    x, state = torch.randn(1, 2, 5), torch.randn(1, 2, 24)
    for row in range(72):
        with torch.no_grad():
            layer(x, state), layer.step(x[0], state)
            layer.weight_hh_l0.data[row] += 0.1  # as another process would
            fresh = tidegate.GRU(5, 24, backend="native")
            fresh.load_state_dict(layer.state_dict())
            assert torch.equal(layer.step(x[0], state)[0], fresh.step(x[0], state)[0])
            assert torch.equal(layer(x, state)[0], fresh(x, state)[0])


def test_a_loop_over_single_steps_with_gradients_packs_the_weights_at_most_twice_an_update(monkeypatch):
    layer, cell = layer_of(5, 9), tidegate.GRUCell(5, 9, backend="native")
    packs = []
    real = native.weights.pack
    monkeypatch.setattr(native.weights, "pack", lambda *args: (packs.append(1), real(*args))[1])
    for module, call in ((cell, cell), (layer, lambda x_t, h: layer.step(x_t, h[None])[0])):
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            packs.clear()
            h = torch.zeros(2, 9)
            for _ in range(12):
                h = call(torch.randn(2, 5), h)
            h.sum().backward()
            optimiser.step()
            assert len(packs) == 1


def test_a_loop_over_single_steps_with_gradients_sees_every_change_of_a_weight():
    torch.manual_seed(0)
    cell, x = tidegate.GRUCell(5, 24, backend="native"), torch.randn(2, 5)
    h = torch.randn(2, 24)
    for row in range(72):
        cell(x, h), cell(x, h), cell(x, h)
        cell.weight_hh.data[row] += 0.1
        fresh = tidegate.GRUCell(5, 24, backend="native")
        fresh.load_state_dict(cell.state_dict())
        found, expected = cell(x, h), fresh(x, h)
        assert torch.equal(found, expected)
        assert all(
            map(
                torch.equal,
                torch.autograd.grad(found.sum(), list(cell.parameters())),
                torch.autograd.grad(expected.sum(), list(fresh.parameters())),
            )
        )


def test_weights_that_are_computed_of_others_are_not_kept_alive_by_a_loop_over_steps():
    cell = torch.nn.utils.parametrizations.weight_norm(tidegate.GRUCell(5, 9, backend="native"), "weight_hh")
    with torch.nn.utils.parametrize.cached():
        h = torch.zeros(2, 9)
        for _ in range(4):
            h = cell(torch.randn(2, 5), h)
    kept = [value for value in cell._kept.values() if isinstance(value, native.weights.Pack)]
    assert not kept


def test_weights_made_in_inference_mode_are_never_kept():
    with torch.inference_mode():
        layer = layer_of(5, 9)
        x = torch.randn(4, 3, 5)
        before = layer(x)[0]
        layer.weight_hh_l0[3, 3] += 1
        assert not torch.equal(layer(x)[0], before)


# ------------------------------------------------------------------------------------------- what must not reach C++


def test_weights_whose_memory_holds_the_negative_are_read_right():
    layer = layer_of(3, 4)
    x = torch.randn(5, 2, 3)
    expected = layer(x)[0].detach()
    layer.weight_hh_l0 = torch.nn.Parameter(torch._neg_view(-layer.weight_hh_l0.detach()))
    assert layer.weight_hh_l0.is_neg()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(layer(x)[0], expected)
            assert torch.equal(layer.step(x[0])[0], expected[0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w.half(),
        lambda w: w.double(),
        lambda w: w[..., :-1],
        lambda w: torch.cat([w, w]),
        lambda w: w.to("meta"),
    ],
    ids=["half", "double", "short", "long", "meta"],
)
@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l0", "weight_ih_l1"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_spoiled_weight_is_told_before_c_plus_plus_reads_it(spoil, name, grad):
    layer = layer_of(5, 9, num_layers=2)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        layer(x), layer.step(x[0])  # kept, and the quick road open
    setattr(layer, name, torch.nn.Parameter(spoil(getattr(layer, name).detach())))
    with torch.set_grad_enabled(grad):
        for call in (lambda: layer(x), lambda: layer.step(x[0], torch.zeros(2, 3, 9))):
            with pytest.raises(ShapeError, match="expected"):
                call()


def test_a_weight_that_lies_transposed_streams_right_after_one_that_was_kept():
    layer = layer_of(300, 600)
    x_t, state = torch.randn(2, 300), torch.randn(1, 2, 600)
    with torch.no_grad():
        layer.step(x_t, state)
        layer.weight_hh_l0 = torch.nn.Parameter(torch.randn(600, 1800).t())
        first = layer.step(x_t, state)[0]
        junk = [torch.randn(600, 1800) for _ in range(3)]  # takes the place of copies that were dropped
        assert torch.equal(layer.step(x_t, state)[0], first)
        assert native.quick_step(layer._kept, x_t, state, layer._parameters) is None
    assert len(junk) == 3


@pytest.mark.parametrize(
    "sizes",
    [
        torch.tensor([3, 3, 2]),
        torch.tensor([1, 3, 1]),
        torch.tensor([3, 1]),
        torch.tensor([3, 2, 0]),
        torch.tensor([3, 2], dtype=torch.int32),
    ],
    ids=["more rows than there are", "growing", "fewer rows", "nothing at the end", "int32"],
)
@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_an_impossible_packed_sequence_is_told(sizes, backend):
    layer = tidegate.GRU(3, 4, backend=backend)
    packed = torch.nn.utils.rnn.PackedSequence(torch.randn(5, 3), sizes)
    with pytest.raises(ShapeError, match=r"batch_sizes of the PackedSequence are \[.*pack_padded_sequence"):
        layer(packed)


def test_the_operator_itself_refuses_what_does_not_fit():
    weights = list(layer_of(3, 4).parameters())
    x, h_0 = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
    op = torch.ops.tidegate.gru_layer
    good, three = LayerExtras(), torch.tensor([3, 1])
    for x_, h, ws, sizes, extras in (
        (x.half(), h_0, weights, None, good),
        (x, h_0[:, :1], weights, None, good),
        (x, h_0, weights[:2], None, good),
        (x, h_0, [w.double() for w in weights], None, good),
        (x[0], h_0, weights, torch.tensor([2, 1]), good),
        (x, h_0, weights, None, LayerExtras(lengths=torch.tensor([3, 6]))),
        (x, h_0, weights, None, LayerExtras(lengths=torch.tensor([-1, 5]))),
        (x, h_0, weights, None, LayerExtras(lengths=three.int())),
        (x, h_0, weights, None, LayerExtras(lengths=torch.tensor([3]))),
        (x[0], h_0, weights, None, LayerExtras(lengths=three, starts=torch.tensor([0, 2]))),
        (x[:, 0], h_0, weights, None, LayerExtras(lengths=three, starts=torch.tensor([0, -1]))),
        (x[0], h_0, weights, torch.tensor([2]), LayerExtras(lengths=torch.tensor([1, 1]))),
        (x, h_0, weights, None, LayerExtras(resets=torch.zeros(4, 2, dtype=torch.bool))),
        (x, h_0, weights, None, LayerExtras(resets=torch.zeros(5, 2))),
        (x, h_0, weights, None, LayerExtras(fresh=h_0[:, :, :1])),
        (x, h_0, weights, None, LayerExtras(mask=h_0.double())),
        (x, h_0, weights, None, LayerExtras(zone=torch.zeros(5, 2, 4))),
    ):
        with torch.no_grad(), pytest.raises(ShapeError, match=r"tidegate::gru_layer|GRU"):
            op(x_, h, ws, True, sizes, *extras, False)


@pytest.mark.one_in(3)
def test_a_layer_that_streamed_is_collected_even_from_within_a_cycle():
    import weakref

    layer = layer_of(3, 4)
    layer.weight_hh_l0.owner = layer
    with torch.no_grad():
        layer.step(torch.zeros(1, 3))
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None


def test_a_value_that_is_seen_everywhere_counts_at_every_place():
    layer = layer_of(3, 4)
    x, h_0 = torch.randn(1, 1, 1).expand(5, 2, 3), torch.randn(1, 1, 1).expand(1, 2, 4)
    for stretched in ((x, None), (x, h_0), (torch.randn(5, 2, 3), h_0), (torch.randn(5, 1, 3).expand(5, 2, 3), h_0)):
        tight = [None if v is None else v.contiguous() for v in stretched]
        assert torch.equal(layer(*stretched)[0], layer(*tight)[0])
        ends = [torch.autograd.grad(layer(*given)[1].sum(), list(layer.parameters())) for given in (stretched, tight)]
        alike = torch.autograd.grad(layer(*tight)[1], list(layer.parameters()), torch.ones(1, 2, 4))
        assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(*ends, alike, strict=True))


def test_a_name_left_out_on_the_way_to_the_kernels_is_an_error():
    kind = native.weights.kind_of(3, 4, False, False, False, False)
    with pytest.raises(TypeError):
        native.kernels.cpp.forward_once([torch.zeros(12, 3), torch.zeros(12, 4)], kind, T=1, B=1, rows=1)
