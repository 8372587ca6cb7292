"""The arguments of `tidegate.GRU` are torch's, and what is wrong with a call is told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import tidegate
from tests.helpers.layers import BACKENDS, pair
from tidegate.errors import BackendUnavailableError, SettingsError, ShapeError
from tidegate.ops.gru import native

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
