"""What the native back end promises beyond the equations: the same bits, weights kept and noticed, the registered
operators, threads and processes. That its numbers are right, the grids of the other files show: it is in them all."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tidegate
from tidegate.errors import ShapeError
from tidegate.ops.gru import native, reference
from tidegate.ops.gru.extras import LayerExtras

ISAS = native.isas()
examples = settings(max_examples=20, deadline=None, derandomize=True)


@pytest.fixture(params=ISAS, autouse=True)
def every_isa(request):
    before = native.isa()
    assert native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


def on_threads(n, run):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def layer_of(I, H, seed=0, **options):
    torch.manual_seed(seed)
    layer = tidegate.GRU(I, H, **options, backend="native")
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, p.size(-1) ** -0.5)
    return layer


def gradients(layer, x, h_0=None):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output, h_n = layer(x, h_0)
    torch.manual_seed(9)
    torch.autograd.backward([output, h_n], [torch.randn_like(output), torch.randn_like(h_n)])
    return [output.detach(), h_n.detach(), x.grad, *(p.grad for p in layer.parameters())]


# ------------------------------------------------------------------------------------------- the same bits

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
    output, h_n = layer(x, h_0)
    rows = data.draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=B, unique=True))
    some, h_some = layer(x[:, rows], h_0[:, rows])
    assert torch.equal(some, output[:, rows])
    assert torch.equal(h_some, h_n[:, rows])


@examples
@given(**sizes, data=st.data())
def test_chunks_give_the_bits_of_one_call(T, B, I, H, seed, dtype, data):
    layer = layer_of(I, H, seed, num_layers=2, dtype=dtype)
    x, h = torch.randn(T, B, I, dtype=dtype), torch.randn(2, B, H, dtype=dtype)
    output, h_n = layer(x, h)
    cuts = sorted(data.draw(st.sets(st.integers(0, T))))
    parts = []
    for first, last in zip([0, *cuts], [*cuts, T], strict=True):
        # with and without gradients, and so with and without kept weights, are the same kernel
        with torch.set_grad_enabled(first % 2 == 0):
            part, h = layer(x[first:last], h)
        parts.append(part)
    assert torch.equal(torch.cat(parts), output)
    assert torch.equal(h, h_n)


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


# ------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_are_right_by_finite_differences(bidirectional, packed):
    layer = layer_of(3, 5, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    sizes = torch.tensor([3, 2, 2, 1]) if packed else None
    D = 1 + bidirectional

    def run(x, h_0, *weights):
        return native.gru(x, h_0, list(weights), num_layers=2, bidirectional=bidirectional, batch_sizes=sizes)

    x = torch.randn((8, 3) if packed else (4, 3, 3), dtype=torch.float64, requires_grad=True)
    h_0 = torch.randn(2 * D, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, h_0, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, h_0, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.ones(1).expand(d),
        lambda d: torch.randn(d[0], 1, d[2]).expand(d),
        lambda d: torch.randn(*d[:2], 1).expand(d),
        lambda d: torch.randn(d[1], d[0], d[2]).transpose(0, 1),
        lambda d: torch.randn(d[0], d[1], 2 * d[2])[..., ::2],
    ],
    ids=["one value", "all rows alike", "all units alike", "batch first", "every other"],
)
def test_gradients_that_arrive_in_odd_strides_are_read_right(make):
    layer = layer_of(3, 5, bidirectional=True)
    x = torch.randn(4, 2, 3, requires_grad=True)
    d = make((4, 2, 10))
    inputs = [x, *layer.parameters()]
    strange = torch.autograd.grad(layer(x)[0], inputs, d)
    plain = torch.autograd.grad(layer(x)[0], inputs, d.contiguous())
    for a, b in zip(strange, plain, strict=True):
        assert torch.equal(a, b)


def test_backward_keeps_no_more_than_four_values_a_unit_besides_output_and_x():
    T, B, I, H = 20, 3, 4, 32
    layer = layer_of(I, H)
    x = torch.randn(T, B, I)
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output, h_n = layer(x)
    for known in (x, output, h_n, *layer.parameters()):
        kept.pop(known.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) <= 4 * (4 * T * B * H + B * H)  # bytes; h_0 is the rest


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


def test_weights_made_in_inference_mode_are_never_kept():
    with torch.inference_mode():
        layer = layer_of(5, 9)
        x = torch.randn(4, 3, 5)
        before = layer(x)[0]
        layer.weight_hh_l0[3, 3] += 1
        assert not torch.equal(layer(x)[0], before)


# ------------------------------------------------------------------------------------------- operators


def operator_arguments(bidirectional, packed):
    D = 1 + bidirectional
    weights = list(layer_of(3, 5, bidirectional=bidirectional).parameters())
    x = torch.randn((5, 3) if packed else (4, 2, 3), requires_grad=True)
    sizes = torch.tensor([2, 2, 1]) if packed else None
    return x, torch.randn(D, 2, 5, requires_grad=True), weights, True, sizes, *LayerExtras(), True


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_operators_pass_torchs_own_check(bidirectional, packed):
    torch.library.opcheck(torch.ops.tidegate.gru_layer.default, operator_arguments(bidirectional, packed))


def test_without_anything_to_save_the_operators_shapes_are_right_too():
    x, h_0, weights, bias, sizes, *extras, _ = operator_arguments(False, False)
    plain = (x.detach(), h_0.detach(), [w.detach() for w in weights], bias, sizes, *extras, False)
    torch.library.opcheck(torch.ops.tidegate.gru_layer.default, plain)


@pytest.mark.parametrize("before", [False, True])
def test_the_operators_pass_torchs_own_check_with_all_extras(before):
    layer = layer_of(3, 5, bidirectional=True, layer_norm=True, reset="before" if before else "after")
    x, h_0 = torch.randn(4, 3, 3, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    extras = LayerExtras(
        lengths=torch.tensor([2, 4, 0]),
        resets=torch.rand(4, 3) < 0.4,
        fresh=torch.randn(2, 3, 5, requires_grad=True),
        mask=torch.nn.functional.dropout(torch.ones(2, 3, 5), 0.3),
        zone=torch.rand(4, 3, 10) < 0.3,
        before=before,
        norm=True,
    )
    torch.library.opcheck(
        torch.ops.tidegate.gru_layer.default, (x, h_0, list(layer.parameters()), True, None, *extras, True)
    )


def test_the_compiled_layer_gives_the_bits_and_gradients_of_the_eager_one(every_isa):
    if every_isa != ISAS[0]:
        return  # the operators are the same for all; one compilation is slow enough
    torch._dynamo.reset()
    layer = layer_of(3, 8, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    for a, b in zip(gradients(layer, x), gradients(compiled, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], compiled(x)[0])


def test_under_a_dispatch_mode_the_registered_operator_runs():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, x = layer_of(3, 4), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    with Watch():
        assert torch.equal(layer(x)[0], expected)
    assert "tidegate.gru_layer.default" in seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_the_recurrence_in_float32(dtype):
    layer = layer_of(3, 4)
    x = torch.randn(5, 2, 3).to(dtype)
    exact = layer(x.float())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x)[0], exact.to(dtype))
        output, *_ = torch.ops.tidegate.gru_layer(
            x, torch.zeros(1, 2, 4), list(layer.parameters()), True, None, *LayerExtras(), False
        )
    assert torch.equal(output, exact)


# ------------------------------------------------------------------------------------------- threads, processes


def test_calls_from_many_python_threads_at_once_are_all_right():
    layer = layer_of(16, 64, bidirectional=True)
    x = torch.randn(20, 24, 16)
    expected = gradients(layer, x)
    wrong = []

    def work():
        own = copy.deepcopy(layer)
        for _ in range(5):
            with torch.no_grad():
                wrong.extend([] if torch.equal(own(x)[0], expected[0]) else [1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_child(layer, x, expected, queue):
    torch.set_num_threads(2)
    with torch.no_grad():
        queue.put(torch.equal(layer(x)[0], expected))


def test_a_forked_child_gets_the_same_bits():
    layer = layer_of(16, 64)
    x = torch.randn(20, 24, 16)
    with torch.no_grad():
        expected = on_threads(2, lambda: layer(x)[0])  # the parent has used its threads
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(layer, x, expected, queue))
    child.start()
    child.join(60)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert queue.get() is True


class _Rows(torch.utils.data.Dataset):
    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 8

    def __getitem__(self, i):
        with torch.no_grad():
            return self.layer(torch.full((6, 2, 3), float(i)))[0]


def test_it_runs_inside_dataloader_workers():
    rows = _Rows(layer_of(3, 40))
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2)
    for i, output in enumerate(loader):
        assert torch.equal(output, rows[i])


def test_many_calls_of_many_shapes_leak_nothing():
    layer = layer_of(16, 128)

    def resident_kib():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4

    def steps(n):
        with torch.no_grad():
            h = torch.zeros(1, 1, 128)
            for i in range(n):
                h = layer(torch.ones(1, 1, 16), h)[1]
                _, h = layer.step(torch.ones(1, 16), h)
                if i % 10 == 0:
                    layer.step(torch.ones(1 + i % 5, 16))
                    layer(torch.ones(1 + i % 7, 1 + i % 5, 16))
        for i in range(n // 20):
            gradients(layer, torch.ones(1 + i % 7, 1 + i % 5, 16))

    steps(2000)
    before = resident_kib()
    steps(10000)
    assert resident_kib() - before < 4096


def test_torchs_number_of_threads_is_what_the_kernels_get(monkeypatch):
    given = []

    class Spy:
        def __getattr__(self, name):
            real = getattr(cpp, name)
            return lambda *args, **named: (given.append((name, named["threads"])), real(*args, **named))[1]

    cpp = native.kernels.cpp
    monkeypatch.setattr(native.kernels, "cpp", Spy())
    layer, x = layer_of(3, 4), torch.randn(5, 2, 3)
    for n in (1, 3):
        given.clear()
        on_threads(n, lambda: gradients(layer, x))
        assert given == [("forward_once", n), ("backward", n)]


def test_the_environment_can_force_a_lower_instruction_set(every_isa):
    code = "from tidegate.ops.gru import native; print(native.missing(), native.isa())"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env={**os.environ, "TIDEGATE_ISA": every_isa}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", every_isa]
    done = subprocess.run(run, env={**os.environ, "TIDEGATE_ISA": "sse9"}, capture_output=True, text=True, check=True)
    assert "TIDEGATE_ISA='sse9' is none of this machine's: " + ", ".join(ISAS) in done.stdout


def test_the_reference_and_the_native_back_end_agree_on_a_large_layer():
    layer = layer_of(64, 130, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, h_0 = torch.randn(40, 9, 64, dtype=torch.float64), torch.randn(4, 9, 130, dtype=torch.float64)
    options = {"num_layers": 2, "bidirectional": True}
    ours = native.gru(x, h_0, list(layer.parameters()), **options)
    exact = reference.gru(x, h_0, list(layer.parameters()), **options)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------- backward of backward


def second_order(backend, run):
    layer = tidegate.GRU(3, 4, bidirectional=True, dtype=torch.float64)
    torch.manual_seed(0)
    for p in layer.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    layer.backend = backend
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    result = run(layer, x)
    first = [g for g in torch.autograd.grad(result, inputs, create_graph=True, allow_unused=True) if g is not None]
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
    return [*first, *(g for g in second if g is not None)]


def two_calls(layer, x):
    h = layer(x)[1]
    return layer(x * 2, h)[0].square().sum()


def tied(layer, x):
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    return layer(x)[0].square().sum()


def negative(layer, x):
    """The registered operator's road."""
    return layer(torch._neg_view(x))[0].square().sum()


def cells(layer, x):
    cell = tidegate.GRUCell(3, 4, dtype=torch.float64, backend=layer.backend)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(layer, f"{name}_l0"))
    h = torch.zeros(2, 4, dtype=torch.float64)
    for x_t in x:
        h = cell(x_t, h)
    return h.sum() + sum(p.sum() for p in layer.parameters())


@pytest.mark.parametrize("run", [two_calls, tied, negative, cells], ids=lambda f: f.__name__)
def test_second_derivatives_are_the_references_when_inputs_depend_on_each_other(run):
    for a, b in zip(second_order("native", run), second_order("reference", run), strict=True):
        torch.testing.assert_close(a, b)


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
