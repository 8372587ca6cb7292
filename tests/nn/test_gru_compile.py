"""`tidegate.GRU` under torch.compile and torch.export."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import PackedSequence

import tidegate
from tests.helpers.layers import FORMS, jagged, layer_of
from tests.helpers.surface import (
    AUTO,
    BOTH_WAYS,
    COMPILED,
    LENGTHS,
    RESETS,
    B,
    Graphs,
    H,
    I,
    T,
    assert_same,
    compiled_case,
    compiled_forms,
    first_state,
    gradients,
    loss_of,
    made,
    packed,
    sequence,
    two_forms,
)
from tidegate import backends
from tidegate.ops.gru import native, reference, torch_aten


@pytest.mark.one_in(12)
@compiled_forms
def test_a_compiled_call_is_one_graph_of_a_size_that_does_not_depend_on_the_number_of_steps(kind, form):
    sizes = []
    for steps in (3, 60):
        graphs = Graphs()
        layer = compiled_case("native", form, training=True, dropout=0.1)
        args, call = COMPILED[kind](layer, steps, B)
        loss_of(*graphs.compile(layer)(*args, **call)).backward()
        assert all(p.grad is not None for name, p in layer.named_parameters() if name != "initial_h")
        sizes.append(graphs.nodes)
    assert len(sizes[0]) == 2  # forwards, backwards
    assert sizes[0] == sizes[1]
    assert max(sizes[0]) < 100


@pytest.mark.long
@compiled_forms
def test_one_compilation_serves_every_number_of_steps_and_sequences(kind, form):
    graphs = Graphs()
    layer = compiled_case("native", form)
    compiled = graphs.compile(layer, dynamic=True)
    for steps, batch in ((5, 6), (9, 7), (31, 2)):  # (of equal axes, torch takes for granted that they stay so)
        args, call = COMPILED[kind](layer, steps, batch)
        expected = gradients(layer, *args, **call)
        assert_same(gradients(layer, *args, run=compiled, **call), expected, rtol=1e-12, atol=1e-12)
    assert len(graphs.nodes) == 2


@pytest.mark.long
def test_marked_axes_stay_free():
    graphs = Graphs()
    layer = compiled_case("native", FORMS["all"])
    compiled = graphs.compile(layer)
    for steps, batch in ((5, 6), (9, 7)):
        (x,), _ = COMPILED["plain"](layer, steps, batch)
        torch._dynamo.mark_dynamic(x, (0, 1))  # an error where one of them would be a constant of the graph
        assert_same(compiled(x), layer(x))
    assert len(graphs.nodes) == 2


@pytest.mark.one_in(7)
@two_forms
@pytest.mark.parametrize(("backend", "kind"), [("auto", "plain"), ("auto", "all"), ("reference", "all")])
def test_the_compiled_layer_gives_what_the_eager_one_gives(backend, kind, form):
    layer = made(backend, form, bidirectional=True)
    layer.dtype = torch.float64
    args, call = COMPILED[kind](layer, 3 if backend == "reference" else T, B)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected = gradients(layer, *args, **call)
    assert_same(gradients(layer, *args, run=compiled, **call), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert_same(compiled(*args, **call), layer(*args, **call))


@pytest.mark.long
def test_inductor_gives_what_the_eager_layer_gives():
    layer = made("auto", FORMS["all"], dtype=torch.float32, num_layers=2)
    x, h_0 = sequence(torch.float32), first_state(layer, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    expected = gradients(layer, x, h_0, lengths=LENGTHS, resets=RESETS)
    assert_same(gradients(layer, x, h_0, run=compiled, lengths=LENGTHS, resets=RESETS), expected)


@pytest.mark.one_in(5)
@two_forms
@pytest.mark.parametrize("kind", [packed, jagged, lambda sequences: sequences[0]], ids=["packed", "nested", "one"])
def test_sequences_of_every_kind_compile(kind, form):
    layer = made("auto", form, bidirectional=True)
    x = kind([torch.randn(n, I, dtype=torch.float64) for n in (4, 1, 6)])
    graphs = Graphs()
    output, h_n = graphs.compile(layer)(x)
    expected, h_expected = layer(x)
    assert type(output) is type(expected)
    assert graphs.captured() == 1
    values = (lambda y: y.data) if isinstance(x, PackedSequence) else (lambda y: y.values() if y.is_nested else y)
    assert_same([values(output), h_n], [values(expected), h_expected])


@two_forms
def test_single_steps_and_traces_compile(form):
    layer = made("auto", form, num_layers=2)
    x, h = sequence(), first_state(layer)
    graphs = Graphs()
    with torch.no_grad():
        assert_same(graphs.compile(layer.step)(x[0], h), layer.step(x[0], h))
        found = graphs.compile(lambda x: layer.trace(x, h, lengths=LENGTHS)["l1"])(x)
        assert_same(found, layer.trace(x, h, lengths=LENGTHS)["l1"])
    assert len(graphs.nodes) == 2


@pytest.mark.long
@pytest.mark.parametrize("backend", AUTO)
def test_compiled_training_draws_as_often_as_it_should_and_anew_each_call(backend):
    layer = layer_of(I, 40, backend=backend, zoneout=0.3)
    compiled = Graphs().compile(layer)
    x, h_0 = sequence(torch.float32, steps=8, batch=20), torch.full((1, 20, 40), 0.5)
    first, second = compiled(x, h_0)[0], compiled(x, h_0)[0]
    assert not torch.equal(first, second)
    before = torch.cat([h_0, first[:-1]])
    assert abs((first == before).float().mean() - 0.3) < 0.02  # 6400 draws: four standard deviations


TRANSFORMS = {
    "vmap of grad": lambda run, weights, x: vmap(grad(run), in_dims=(None, 1))(weights, x),
    "vmap": lambda run, weights, x: vmap(run, in_dims=(None, 1))(weights, x),
    "jvp": lambda run, weights, x: jvp(lambda x: run(weights, x), (x,), (x,)),
}


@pytest.mark.long
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_of_torch_func_compiles(transform):
    layer = made("auto", {**FORMS["all"], "layer_norm": False})  # (torch's own layer_norm fails in a compiled jvp)
    weights, x = dict(layer.named_parameters()), sequence(steps=2)

    def run(weights, x):
        return loss_of(*functional_call(layer, weights, (x,)))

    expected = transform(run, weights, x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda weights, x: transform(run, weights, x), backend="aot_eager", fullgraph=True)
    assert_same(compiled(weights, x), expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_plain_call_that_is_compiled_runs_in_the_back_end_that_explain_names(device, monkeypatch):
    ran = []
    for name, module in {"native": native, "torch": torch_aten, "reference": reference}.items():
        real = module.gru
        monkeypatch.setattr(module, "gru", lambda *a, name=name, real=real, **k: (ran.append(name), real(*a, **k))[1])
    layer = tidegate.GRU(I, H, device=device)
    torch._dynamo.reset()
    torch.compile(layer, backend="eager")(torch.zeros(T, B, I, device=device))
    assert ran[:1] == [backends.explain(device=device).chosen]


# ------------------------------------------------------------------------------------------- torch.export


class Streaming(nn.Module):
    """State in and state out, and lengths or resets as an input."""

    def __init__(self, layer, name):
        super().__init__()
        self.layer, self.name = layer, name

    def forward(self, x, h_0, more):
        return self.layer(x, h_0, **({self.name: more} if self.name else {}))


@pytest.mark.one_in(12)
@two_forms
@pytest.mark.parametrize(
    ("name", "strict"), [("", False), ("lengths", False), ("resets", False), ("lengths", True)], ids=str
)
def test_an_exported_layer_runs_for_every_number_of_steps_and_sequences(name, strict, form):
    module = Streaming(made("auto", form, batch_first=True, **BOTH_WAYS), name).eval()
    layer = module.layer

    def example(steps, batch):
        more = {"": None, "lengths": torch.arange(batch) + 1, "resets": torch.arange(batch * steps) % 3 == 0}[name]
        more = more.view(batch, steps) if name == "resets" else more
        return sequence(steps=batch, batch=steps), first_state(layer, batch=batch), more

    t, b = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    axes = ({0: b, 1: t}, {1: b}, {"": None, "lengths": {0: b}, "resets": {0: b, 1: t}}[name])
    torch._dynamo.reset()
    program = torch.export.export(module, example(7, 3), dynamic_shapes=axes, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for steps, batch in ((7, 3), (30, 5), (6, 2)):
        args = example(steps, batch)
        assert_same(loaded(*args), module(*args))
