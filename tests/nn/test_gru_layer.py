"""`tidegate.GRU` held against `torch.nn.GRU` over the whole grid of options."""

from __future__ import annotations

import itertools

import pytest
import torch
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

KINDS = ["batched", "unbatched", "sorted", "unsorted"]


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
