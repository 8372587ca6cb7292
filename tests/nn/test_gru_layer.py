"""`tidegate.GRU` held against `torch.nn.GRU` over the whole grid of options; and as a module."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import tidegate
from tests.helpers.layers import (
    BACKENDS,
    EXACT,
    assert_at_most_twice,
    error,
    errors,
    inputs,
    pair,
    state,
    values_and_gradients,
)
from tidegate.errors import BackendUnavailableError, SettingsError, ShapeError
from tidegate.ops.gru import native

KINDS = ["batched", "unbatched", "sorted", "unsorted"]


# ------------------------------------------------------------------------------------------- the whole grid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_h_0", [False, True], ids=["no_h_0", "h_0"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["T_first", "batch_first"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_values_and_gradients_are_those_of_torch(num_layers, bidirectional, bias, batch_first, with_h_0, dtype, kind):
    T, B, I, H = 5, 3, 4, 7
    options = {
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "bias": bias,
        "batch_first": batch_first,
    }
    x = inputs(kind, T, B, I, batch_first=batch_first, dtype=dtype)
    h_0 = state(kind, B, H, num_layers * (1 + bidirectional), dtype=dtype) if with_h_0 else None
    theirs = pair("torch", I, H, **options, dtype=dtype)[1]
    of_torch = values_and_gradients(theirs, x, h_0)
    theirs = theirs.double()
    wide = x._replace(data=x.data.double()) if isinstance(x, PackedSequence) else x.double()
    exact = values_and_gradients(theirs, wide, None if h_0 is None else h_0.double())

    for backend in BACKENDS:
        ours = pair(backend, I, H, **options, dtype=dtype)[0]
        of_ours = values_and_gradients(ours, x, h_0)
        if backend in EXACT:
            for name, value in of_torch.items():
                assert torch.equal(of_ours[name], value), (backend, name)
                if name in ("output", "h_n"):
                    assert of_ours[name].stride() == value.stride(), (backend, name)
        elif dtype == torch.float64:
            for name, e in errors(of_ours, exact, dtype).items():
                assert e < 1e-14, (backend, name)
        else:
            mine, its = errors(of_ours, exact, dtype), errors(of_torch, exact, dtype)
            assert_at_most_twice(mine.values(), its.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_error_is_at_most_twice_that_of_torch_at_odd_sizes(backend, dtype):
    mine, its = {}, {}
    for H, T, B in itertools.product((1, 7, 9, 33), (1, 63), (1, 5)):
        ours, theirs = pair(backend, 6, H, seed=H, dtype=dtype)
        x, h_0 = inputs("batched", T, B, 6, dtype=dtype, seed=T), state("batched", B, H, 1, dtype=dtype)
        of_ours, of_torch = values_and_gradients(ours, x, h_0), values_and_gradients(theirs, x, h_0)
        exact = values_and_gradients(theirs.double(), x.double(), h_0.double())
        mine[H, T, B], its[H, T, B] = errors(of_ours, exact, dtype), errors(of_torch, exact, dtype)
        assert_at_most_twice(mine[H, T, B].values(), its[H, T, B].values())  # at each size, over all quantities
    for name in exact:  # each quantity, over all sizes
        assert_at_most_twice((e[name] for e in mine.values()), (e[name] for e in its.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_seed_gives_the_dropout_of_torch(backend, kind):
    ours, theirs = pair(backend, 4, 7, num_layers=3, dropout=0.4, bidirectional=True, dtype=torch.float64)
    x = inputs(kind, 5, 3, 4, dtype=torch.float64)
    torch.manual_seed(11)
    a = values_and_gradients(theirs, x)
    torch.manual_seed(11)
    b = values_and_gradients(ours, x)
    for name, value in a.items():
        assert error(b[name], value) < 1e-13, name
    torch.manual_seed(12)
    assert error(values_and_gradients(ours, x)["output"], a["output"]) > 1e-3  # another seed, another mask
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x)[1], theirs(x)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_one_silences_all_but_the_first_layer(backend):
    ours, theirs = pair(backend, 4, 7, num_layers=2, dropout=1.0)
    x = inputs("batched", 5, 3, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x)[0], ours(10 * x)[0])  # nothing of x arrives


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_empty_results(backend):
    output, h_n = tidegate.GRU(3, 4, num_layers=2, bidirectional=True, backend=backend)(torch.zeros(5, 0, 3))
    assert output.shape == (5, 0, 8)
    assert h_n.shape == (4, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_steps_leave_the_state_as_it_was(backend, bidirectional, dtype):
    layer = tidegate.GRU(3, 4, 2, batch_first=True, bidirectional=bidirectional, backend=backend, dtype=dtype)
    D = 1 + bidirectional
    h_0 = torch.randn(2 * D, 6, 4, dtype=dtype, requires_grad=True)
    output, h_n = layer(torch.zeros(6, 0, 3, dtype=dtype), h_0)
    assert output.shape == (6, 0, D * 4)
    assert output.dtype == dtype
    assert torch.equal(h_n, h_0)
    assert h_n.data_ptr() != h_0.data_ptr()
    assert torch.equal(torch.autograd.grad(h_n.sum(), h_0)[0], torch.ones_like(h_0))
    output, h_n = layer(torch.zeros(0, 3, dtype=dtype))
    assert output.shape == (0, D * 4)
    assert torch.equal(h_n, torch.zeros(2 * D, 4, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_rows_equal_each_sequence_run_alone(backend):
    layer = pair(backend, 3, 5, num_layers=2, bidirectional=True, dtype=torch.float64)[0]
    torch.manual_seed(0)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (4, 1, 6, 3)]
    h_0 = torch.randn(4, 4, 5, dtype=torch.float64)
    packed, h_n = layer(pack_sequence(sequences, enforce_sorted=False), h_0)
    padded, lengths = pad_packed_sequence(packed)
    for b, x in enumerate(sequences):
        alone, h_alone = layer(x, h_0[:, b])
        torch.testing.assert_close(padded[: lengths[b], b], alone, rtol=0, atol=1e-14)
        torch.testing.assert_close(h_n[:, b], h_alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_gives_what_torch_gives(backend, dtype):
    ours, theirs = pair(backend, 4, 7, num_layers=2)
    x = inputs("batched", 5, 3, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = ours(x), theirs(x)
    torch.testing.assert_close(a[0].float(), b[0].float(), rtol=0, atol=0.03)  # bfloat16 has 8 bits
    assert error(a[1], theirs(x.float())[1]) < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_compile_takes_a_call_as_one_graph(backend):
    layer = pair(backend, 3, 4, num_layers=2, bidirectional=True, batch_first=True)[0]
    x = torch.randn(2, 5, 3)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")  # raises where the graph would break
    torch.testing.assert_close(compiled(x), layer(x))


# ------------------------------------------------------------------------------------------- arguments


def test_the_arguments_have_the_order_and_defaults_of_torch():
    ours, theirs = tidegate.GRU(3, 4, 2, False, True, 0.25, True), nn.GRU(3, 4, 2, False, True, 0.25, True)
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional", "mode", "proj_size"]
    for a, b in ((ours, theirs), (tidegate.GRU(3, 4), nn.GRU(3, 4))):
        assert [getattr(a, n) for n in names] == [getattr(b, n) for n in names]
        assert repr(a) == repr(b)
        assert [[w.shape for w in run] for run in a.all_weights] == [[w.shape for w in run] for run in b.all_weights]


def test_the_call_takes_the_keywords_of_torch():
    ours, theirs = pair("torch", 3, 4)
    x, h_0 = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert torch.equal(ours(input=x, hx=h_0)[0], theirs(input=x, hx=h_0)[0])


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((0, 4), {}),
        ((3, 0), {}),
        ((3, -4), {}),
        ((3, 4, 0), {}),
        ((3, 4), {"dropout": 1.5}),
        ((3, 4), {"dropout": -0.1}),
        ((3, 4), {"dropout": True}),
        ((3, 4), {"dropout": "much"}),
        ((3, 4), {"dropout": float("nan")}),
        ((3.0, 4), {}),
        (("3", 4), {}),
        ((3, 4.0), {}),
        ((3, 4, 1.5), {}),
        ((3, 4, 1, 1), {}),
        ((3, 4), {"bias": None}),
        ((3, 4), {"batch_first": 1}),
        ((3, 4), {"nonlinearity": "tanh"}),
    ],
    ids=str,
)
def test_bad_arguments_raise_what_torch_raises(args, options):
    with pytest.raises((ValueError, TypeError)) as theirs:
        nn.GRU(*args, **options)
    with pytest.raises(theirs.type) as ours:
        tidegate.GRU(*args, **options)
    bad = next((n for n in ("dropout", "bias", "batch_first", "nonlinearity") if n in options), None)
    assert (bad or ("size", "num_layers", "bias")[max(0, len(args) - 2)]) in str(ours.value)


@pytest.mark.parametrize("options", [{"num_layers": True}, {"bidirectional": 1}, {"proj_size": 2}], ids=str)
def test_arguments_that_could_only_be_slips_are_refused(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        tidegate.GRU(3, 4, **options)


def test_sizes_may_be_numpy_integers():
    assert repr(tidegate.GRU(np.int64(3), np.int32(4))) == "GRU(3, 4)"


def test_dropout_without_a_second_layer_warns_at_the_callers_line():
    with pytest.warns(UserWarning, match="num_layers=1") as caught:
        tidegate.GRU(3, 4, dropout=0.5)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tidegate.GRU(3, 4, 2, dropout=0.5)


def test_changing_dropout_or_the_back_end_afterwards_counts():
    layer, _ = pair("torch", 3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    whole = layer(x)[0]
    layer.dropout = 0.9
    assert not torch.allclose(layer(x)[0], whole)
    layer.dropout, layer.backend = 0.0, "reference"
    torch.testing.assert_close(layer(x)[0], whole)
    layer.backend = "native"
    with pytest.raises(BackendUnavailableError):
        layer.to("meta")(x.to("meta"))


# ------------------------------------------------------------------------------------------- errors of a call


def errors_of(layer, *args):
    with pytest.raises(ShapeError) as caught:
        layer(*args)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)
    return str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_input_is_told_with_the_answer_in_it(backend):
    me = "GRU(input_size=3, hidden_size=8): "
    layer = tidegate.GRU(3, 8, backend=backend)
    first = tidegate.GRU(3, 8, batch_first=True, backend=backend)
    assert errors_of(layer, torch.zeros(20, 4, 5)) == (
        me + "x has 5 features, expected 3. x is [T=20, B=4, I=5] (batch_first=False)."
    )
    assert errors_of(first, torch.zeros(4, 20, 5)) == (
        me + "x has 5 features, expected 3. x is [B=4, T=20, I=5] (batch_first=True)."
    )
    assert errors_of(layer, torch.zeros(20, 5)) == (
        me + "x has 5 features, expected 3. x is [T=20, I=5] (one sequence, no batch)."
    )
    assert errors_of(layer, pack_sequence([torch.zeros(2, 5), torch.zeros(1, 5)])) == (
        me + "x has 5 features, expected 3. x is packed, [rows=3, I=5]."
    )
    assert errors_of(first, torch.zeros(3)) == (
        me + "x has 1 axes, expected 3, [B, T, I] (batch_first=True), "
        "or 2, [T, I], for one sequence without a batch. x is [3]."
    )
    assert "4 axes" in errors_of(layer, torch.zeros(1, 2, 4, 3))
    assert "data of the PackedSequence has 3 axes" in errors_of(
        layer, PackedSequence(torch.zeros(2, 1, 3), torch.tensor([1, 1]))
    )
    assert errors_of(layer, torch.zeros(20, 4, 3, dtype=torch.float64)) == (
        me + "x is torch.float64, the weights are torch.float32. Use x.to(torch.float32), or layer.to(torch.float64)."
    )
    assert errors_of(layer, torch.zeros(20, 4, 3, dtype=torch.int64)) == (
        me + "x is torch.int64, the weights are torch.float32. Use x.to(torch.float32)."
    )
    assert errors_of(layer, torch.zeros(20, 4, 3, device="meta")) == (
        me + "x is on meta, the weights are on cpu. Use x.to('cpu'), or layer.to('meta')."
    )
    with pytest.raises(TypeError, match=r"x is of type numpy\.ndarray, expected a tensor or a PackedSequence"):
        layer(np.zeros((2, 2, 3)))
    with torch.autocast("cpu"), pytest.raises(ShapeError, match=r"torch\.int64"):
        layer(torch.zeros(20, 4, 3, dtype=torch.int64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_state_is_told_with_the_answer_in_it(backend):
    me = "GRU(input_size=3, hidden_size=8): "
    layer = tidegate.GRU(3, 8, 2, bidirectional=True, backend=backend)
    x, one = torch.zeros(20, 4, 3), torch.zeros(20, 3)
    packed = pack_sequence([torch.zeros(2, 3), torch.zeros(1, 3)])
    for h_0 in (torch.zeros(4, 4, 7), torch.zeros(2, 4, 8), torch.zeros(4, 1, 8), torch.zeros(4, 8)):
        want = "expected [layers*D=4, B=4, H=8] for this x."
        assert errors_of(layer, x, h_0) == f"{me}h_0 is {list(h_0.shape)}, {want}"
    assert errors_of(layer, one, torch.zeros(4, 1, 8)) == (
        me + "h_0 is [4, 1, 8], expected [layers*D=4, H=8] for this x."
    )
    assert "[layers*D=4, B=2, H=8]" in errors_of(layer, packed, torch.zeros(4, 3, 8))
    assert "h_0 is torch.float64, the weights are torch.float32" in errors_of(layer, x, torch.zeros(4, 4, 8).double())
    assert "h_0 is on meta, the weights are on cpu" in errors_of(layer, x, torch.zeros(4, 4, 8, device="meta"))
    with pytest.raises(TypeError, match="h_0 is of type tuple"):
        layer(x, (torch.zeros(4, 4, 8), torch.zeros(4, 4, 8)))


def test_a_bad_back_end_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(native.kernels, "_MISSING", "the C++ kernel is not part of this installation")
    with pytest.raises(BackendUnavailableError, match="not part of this installation"):
        tidegate.GRU(3, 4, backend="native")
    with pytest.raises(SettingsError, match="Did you mean 'reference'"):
        tidegate.GRU(3, 4, backend="refrence")


# ------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_seed_gives_the_weights_of_torch_bit_for_bit(bidirectional, bias):
    options = {"num_layers": 3, "bidirectional": bidirectional, "bias": bias}
    torch.manual_seed(5)
    theirs = nn.GRU(3, 9, **options)
    torch.manual_seed(5)
    ours = tidegate.GRU(3, 9, **options)
    for _ in range(2):
        for (a, v), (b, w) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert a == b
            assert torch.equal(v, w)
        torch.manual_seed(6)
        theirs.reset_parameters()
        torch.manual_seed(6)
        ours.reset_parameters()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_state_dicts_load_strictly_both_ways(bidirectional, bias):
    options = {"num_layers": 2, "bidirectional": bidirectional, "bias": bias}
    ours, theirs = tidegate.GRU(3, 4, **options, backend="torch"), nn.GRU(3, 4, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(5, 2, 3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    ours.load_state_dict(nn.GRU(3, 4, **options).state_dict(), assign=True)
    assert not torch.equal(ours(x)[0], theirs(x)[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict(nn.GRU(3, 5, **options).state_dict())


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch_save"],
)
def test_a_copy_is_equal_and_independent(copied):
    layer = tidegate.GRU(3, 4, 2, bidirectional=True, dropout=0.5, backend="reference").eval()
    x = torch.randn(5, 2, 3)
    other = copied(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x)[0], layer(x)[0])
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert not torch.equal(other(x)[0], layer(x)[0])


def _saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return buffer


def test_to_changes_dtype_and_device():
    layer = tidegate.GRU(3, 4, dtype=torch.float64)
    assert layer(torch.zeros(5, 2, 3, dtype=torch.float64))[0].dtype == torch.float64
    layer.to(torch.bfloat16)
    assert layer(torch.zeros(5, 2, 3, dtype=torch.bfloat16))[1].dtype == torch.bfloat16
    layer.to("meta")
    assert layer(torch.zeros(5, 2, 3, dtype=torch.bfloat16, device="meta"))[0].shape == (5, 2, 4)
    assert tidegate.GRU(3, 4, device="meta").to_empty(device="cpu").weight_ih_l0.device.type == "cpu"


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_get_no_gradient(backend):
    layer = tidegate.GRU(3, 4, backend=backend)
    layer.weight_hh_l0.requires_grad_(False)
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad is None
    assert layer.weight_ih_l0.grad.abs().sum() > 0


class _Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


@pytest.mark.parametrize("backend", BACKENDS)
def test_parametrised_pruned_and_swapped_weights_are_the_ones_that_run(backend):
    x = torch.randn(5, 2, 3)
    layer, theirs = pair(backend, 3, 4)
    with torch.no_grad():
        theirs.weight_hh_l0.mul_(2)
    doubled = theirs(x)[0]
    swapped = torch.func.functional_call(layer, {"weight_hh_l0": 2 * layer.weight_hh_l0}, (x,))[0]
    torch.testing.assert_close(swapped, doubled)
    parametrize.register_parametrization(layer, "weight_hh_l0", _Doubled())
    torch.testing.assert_close(layer(x)[0], doubled)
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.abs().sum() > 0
    torch.testing.assert_close(copy.deepcopy(layer)(x)[0], doubled)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], doubled)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], doubled)
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original0.zero_()  # the length of each row
        theirs.weight_hh_l0.zero_()
    torch.testing.assert_close(layer(x)[0], theirs(x)[0])

    layer, theirs = pair(backend, 3, 4)
    prune.l1_unstructured(layer, "weight_ih_l0", amount=0.5)
    prune.l1_unstructured(theirs, "weight_ih_l0", amount=0.5)
    with torch.no_grad():
        theirs.weight_ih_l0_orig.mul_(theirs.weight_ih_l0_mask)
    expected = torch.func.functional_call(pair(backend, 3, 4)[1], {"weight_ih_l0": theirs.weight_ih_l0_orig}, (x,))[0]
    torch.testing.assert_close(layer(x)[0], expected)


def test_flatten_parameters_does_nothing_and_says_so():
    layer = tidegate.GRU(3, 4)
    before = {name: (p.data_ptr(), p.clone()) for name, p in layer.named_parameters()}
    assert layer.flatten_parameters() is None
    for name, p in layer.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])
    assert layer.flatten_parameters.__doc__.startswith("Do nothing.")


def test_weights_are_joined_for_cudnn_whenever_they_get_new_memory(monkeypatch):
    calls = []
    monkeypatch.setattr("tidegate.ops.gru.torch_aten.join_weights", lambda ws, **kw: calls.append((list(ws), kw)))

    def joined(layer):
        """The last call was for the weights that this layer has now, in the order of a back end."""
        (weights, options), calls[:] = calls[-1], []
        names = [n for n, _ in layer.named_parameters()]
        assert all(a is b for a, b in zip(weights, layer.parameters(), strict=True)), names
        return options == {
            "input_size": 3, "hidden_size": 4, "num_layers": 2, "bidirectional": True, "bias": True,
        }  # fmt: skip

    layer = tidegate.GRU(3, 4, 2, bidirectional=True)
    assert joined(layer)
    assert joined(layer.double())
    assert joined(layer.to("cpu"))
    assert joined(copy.deepcopy(layer))
    layer.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    assert joined(layer)
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert not calls  # the values were copied into the memory there was
    assert joined(pickle.loads(pickle.dumps(layer)))
    layer(torch.zeros(2, 2, 3, dtype=torch.float64))
    assert not calls  # a call costs nothing of this
    parametrize.register_parametrization(layer, "weight_hh_l0", _Doubled())
    layer.float()
    assert not calls  # computed anew at every call, so there is nothing to join


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", ["made", "moved", "copied", "converted"])
def test_on_cuda_there_is_no_warning_about_scattered_weights(make):
    layer = tidegate.GRU(3, 8, 2, bidirectional=True, device="cuda" if make == "made" else None).cuda()
    if make == "copied":
        layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    if make == "converted":
        layer = layer.half().float()
    theirs = nn.GRU(3, 8, 2, bidirectional=True).cuda()
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4, 3, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output, h_n = layer(x, torch.randn(4, 8, 4, device="cuda").transpose(1, 2))
        output, h_n = layer(x)
    assert torch.equal(output, theirs(x)[0])
    assert torch.equal(h_n, theirs(x)[1])
