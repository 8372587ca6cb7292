"""All that PyTorch does with a module, done with `tidegate.GRU` and everything that it has beyond `torch.nn.GRU`:
derivatives of every kind, torch.func, torch.compile, torch.export, autocast, parametrisations, checkpoints, processes.

Whatever a transform gives is compared with plain calls, one after the other, with `torch.nn.GRU` or with finite
differences."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import tempfile

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

import tidegate
from tests.helpers.layers import BACKENDS, FORMS, OURS, error, jagged, layer_of, pair
from tidegate import backends
from tidegate.errors import BackendUnavailableError, ShapeError
from tidegate.ops.gru import native, reference, torch_aten

T, B, I, H = 5, 3, 3, 4
LENGTHS, RESETS = torch.tensor([5, 0, 2]), torch.tensor([[0, 0, 1, 0, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]).bool()
CALLS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "both": {"lengths": LENGTHS, "resets": RESETS},
}
BOTH_WAYS = {"num_layers": 2, "bidirectional": True}
# "auto" takes the native back end wherever that can do what is asked, and the reference where it can't.
AUTO = ["auto", "reference"]

forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
two_forms = pytest.mark.parametrize("form", [FORMS["torch's"], FORMS["all"]], ids=["torch's", "all"])
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def made(backend, form, dtype=torch.float64, training=False, **options):
    return layer_of(I, H, backend=backend, dtype=dtype, **form, **options).train(training)


def sequence(dtype=torch.float64, seed=1, steps=T, batch=B):
    torch.manual_seed(seed)
    return torch.randn(steps, batch, I, dtype=dtype)


def first_state(layer, dtype=torch.float64, batch=B):
    torch.manual_seed(2)
    return torch.randn(layer.initial_state(batch).shape, dtype=dtype)


def loss_of(output, h_n):
    return output.square().sum() + (h_n**3).sum()


def gradients(layer, x, *args, run=None, **call):
    """Values and gradients of a plain call and backward: output, h_n, d_x, d_weights by name."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    output, h_n = (layer if run is None else run)(x, *args, **call)
    loss_of(output, h_n).backward()
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "h_n": h_n.detach(), "x": x.grad, **found}


def assert_same(found, expected, **tolerance):
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def with_weights(layer, call):
    """The layer as a function of its weights, x and h_0."""
    names = [name for name, _ in layer.named_parameters()]

    def run(x, h_0, *weights):
        torch.manual_seed(0)  # the same masks each time
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x, h_0), call)

    return run


# ------------------------------------------------------------------------------------------- derivatives
# (Of every option and pair of options: tests/ops/test_gru_extras.py.)


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_first_and_second_derivatives_are_right_in_training(backend, form):
    layer = made(backend, form, training=True, bidirectional=True)
    inputs = [v.requires_grad_() for v in (sequence(), first_state(layer))] + [*layer.parameters()]
    run = with_weights(layer, CALLS["both"])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", OURS)
def test_second_derivatives_of_the_gates_are_right(backend):
    layer = made(backend, FORMS["all"], training=True)

    def run(x, h_0, *weights):
        torch.manual_seed(0)
        names = [name for name, _ in layer.named_parameters()]
        with nn.utils.stateless._reparametrize_module(layer, dict(zip(names, weights, strict=True))):
            return layer.trace(x, h_0, resets=RESETS, lengths=LENGTHS)["l0"]

    inputs = [v.requires_grad_() for v in (sequence(), first_state(layer))] + [*layer.parameters()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@two_forms
@pytest.mark.parametrize("backend", AUTO)
def test_forward_mode_derivatives_are_right(backend, form):
    layer = made(backend, form, training=True, bidirectional=True)
    inputs = [v.requires_grad_() for v in (sequence(), first_state(layer))] + [*layer.parameters()]
    run = with_weights(layer, CALLS["both"])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_forward_ad=True, check_backward_ad=False)


def test_a_back_end_without_forward_mode_says_so_and_auto_takes_another():
    layer, x = made("auto", {}), sequence()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(layer(dual)[0]).tangent.abs().sum() > 0
        layer.backend = "native"
        with pytest.raises(BackendUnavailableError, match="forward-mode"):
            layer(dual)
        with torch.no_grad(), pytest.raises(BackendUnavailableError, match="forward-mode"):
            layer.step(dual[0])


@two_forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_every_way_to_a_jacobian_gives_the_same_one(backend, call, form):
    layer, x = made(backend, form), sequence()

    def run(x):
        return layer(x, **call)[0]

    row_by_row = torch.autograd.functional.jacobian(run, x)
    assert row_by_row.abs().sum() > 0
    at_once = torch.autograd.functional.jacobian(run, x, vectorize=True)  # is_grads_batched: a vmap around backward
    assert_same([at_once, jacrev(run)(x), jacfwd(run)(x)], 3 * [row_by_row])


@pytest.mark.parametrize("backend", AUTO)
def test_the_hessian_is_that_of_torch(backend):
    ours, theirs = pair(backend, I, H, num_layers=2, dtype=torch.float64)
    x = sequence(steps=3, batch=2)
    expected = torch.autograd.functional.hessian(lambda x: loss_of(*theirs(x)), x)
    assert_same(hessian(lambda x: loss_of(*ours(x)))(x), expected)


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_a_batch_of_nothing_but_padding_has_gradients_of_zero(backend, form):
    found = gradients(made(backend, form, num_layers=2), sequence(), lengths=[0, 0, 0])
    assert found["x"].shape == (T, B, I)
    assert all(not found[name].any() for name in found if name not in ("h_n", "initial_h"))


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_what_lies_between_the_sequences_of_a_nested_tensor_is_zero_and_has_no_gradient(backend, form, monkeypatch):
    # Memory that nobody has written is full of what was there before.
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda v, *shape, **k: v.new_full(shape, torch.nan, **k))
    layer, base = made(backend, form, **BOTH_WAYS), sequence(steps=3, batch=9).requires_grad_()
    starts, lengths = torch.tensor([5, 0, 2]), torch.tensor([3, 2, 0])
    output, h_n = layer(torch.nested.narrow(base, 1, starts, lengths, layout=torch.jagged))
    loss_of(output.values(), h_n).backward()

    between = torch.ones(3, 9, dtype=torch.bool)
    for b, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        between[b, start : start + n] = False
        assert_same(output.values().view(3, 9, -1)[b, start : start + n], layer(base[b, start : start + n])[0])
    assert not output.values().view(3, 9, -1)[between].any()
    assert not base.grad[between].any()
    assert base.grad[~between].abs().min() > 0


@two_forms
@calls
@pytest.mark.parametrize("backend", OURS)
def test_backward_in_evaluation_is_that_of_training_without_chance(backend, call, form):
    certain = {k: v for k, v in form.items() if k not in ("zoneout", "recurrent_dropout")}
    layer, x = made(backend, certain, dropout=0.0, num_layers=2), sequence()
    expected = gradients(layer.train(), x, **call)
    assert_same(gradients(layer.eval(), x, **call), expected)
    if not certain and not call:
        theirs = nn.GRU(I, H, 2, dtype=torch.float64).eval()
        theirs.load_state_dict(layer.state_dict())
        assert_same(gradients(layer, x), gradients(theirs, x))


# ------------------------------------------------------------------------------------------- torch.func


def one_by_one(layer, x, call):
    """The gradients of the weights, a sample at a time, by plain backward."""
    found = []
    for b in range(x.size(1)):
        own = {name: v[b : b + 1] for name, v in call.items()}
        each = gradients(layer, x[:, b : b + 1], **own)
        found.append({name: each.get(name, torch.zeros_like(p)) for name, p in layer.named_parameters()})
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


@forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_per_sample_gradients_equal_those_of_each_sample_alone(backend, call, form):
    layer, x = made(backend, form, bidirectional=True), sequence()
    x[2:, 2] = torch.nan if "lengths" in call else x[2:, 2]  # padding is not looked at

    def loss(weights, x, call):
        own = {name: v.unsqueeze(0) for name, v in call.items()}
        return loss_of(*functional_call(layer, weights, (x.unsqueeze(1),), own))

    weights = dict(layer.named_parameters())
    assert_same(vmap(grad(loss), in_dims=(None, 1, 0))(weights, x, call), one_by_one(layer, x, call))


@pytest.mark.parametrize("backend", AUTO)
def test_wrong_lengths_are_told_inside_vmap_too(backend):
    layer, lengths = made(backend, {}), torch.tensor([[5], [-1], [2]])
    with pytest.raises(ShapeError, match=r"a length is -1, expected 0 \.\.\. 5"):
        vmap(lambda x, n: layer(x, lengths=n)[1], in_dims=(1, 0))(sequence().unsqueeze(2), lengths)


@forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_an_ensemble_gives_what_its_members_give(backend, call, form):
    members = [made(backend, form, seed=seed, num_layers=2) for seed in range(3)]
    x, h_0 = sequence(), first_state(members[0])
    weights, _ = stack_module_state(members)
    empty = copy.deepcopy(members[0]).to("meta")  # the weights come from outside

    def run(weights, x, h_0):
        return functional_call(empty, weights, (x, h_0), call)

    found = vmap(run, in_dims=(0, None, None))(weights, x, h_0)
    assert_same([v.unbind() for v in found], list(zip(*(m(x, h_0, **call) for m in members), strict=True)))


@two_forms
@pytest.mark.parametrize("backend", AUTO)
def test_a_vmap_of_single_steps_gives_what_a_batch_gives(backend, form):
    layer = made(backend, {k: v for k, v in form.items() if k != "checkpoint_every"}, num_layers=2)
    x, h = sequence()[0], first_state(layer)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            y, state = layer.step(x, h)
            y, state = layer.step(x, h)  # the second takes the quick road
            assert_same(vmap(layer.step, in_dims=(0, 1), out_dims=(0, 1))(x, h), (y, state))


@pytest.mark.parametrize("backend", AUTO)
def test_every_element_of_a_vmap_draws_masks_of_its_own_where_that_is_wished(backend):
    layer, x = made(backend, FORMS["all"], training=True), sequence(batch=1)
    for randomness, equal in (("same", True), ("different", False)):
        y = vmap(lambda _: layer(x)[0], randomness=randomness)(torch.zeros(2))
        assert torch.equal(y[0], y[1]) is equal
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda _: layer(x)[0])(torch.zeros(2))


@two_forms
@calls
@pytest.mark.parametrize("backend", AUTO)
def test_gradients_of_gradients_of_torch_func_are_those_of_autograd(backend, call, form):
    layer, x = made(backend, form, bidirectional=True), sequence()

    def loss(x, weight):
        with nn.utils.stateless._reparametrize_module(layer, {"weight_hh_l0": weight}):
            trace = layer.trace(x, **call)
        return loss_of(trace.output, trace.h_n) + trace["l0"].update.square().sum()

    def penalty(x, weight):
        return sum(v.square().sum() for v in grad(loss, argnums=(0, 1))(x, weight))

    weight = layer.weight_hh_l0.detach()
    found = grad(penalty, argnums=(0, 1))(x, weight)
    several = vmap(grad(penalty, argnums=(0, 1)), in_dims=(0, None))(torch.stack([x, 2 * x]), weight)

    layer.backend = "reference"
    leaves = [x.requires_grad_(), weight.clone().requires_grad_()]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(v.square().sum() for v in first), leaves)
    assert_same(found, expected, rtol=1e-9, atol=1e-9)
    assert_same([v[0] for v in several], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", AUTO)
def test_gradients_of_torch_func_go_through_a_nested_tensor(backend):
    layer = made(backend, FORMS["all"])
    x = jagged([torch.randn(n, I, dtype=torch.float64) for n in (4, 1, 3)])
    found = grad(lambda weights: functional_call(layer, weights, (x,))[1].square().sum())(
        dict(layer.named_parameters())
    )
    layer(x)[1].square().sum().backward()
    assert_same(found, {name: p.grad for name, p in layer.named_parameters()})


def test_torchs_back_end_runs_in_a_transform_or_says_that_it_cannot():
    layer, x = made("torch", {}), sequence()
    weights = dict(layer.named_parameters())

    def loss(weights, x, **call):
        return loss_of(*functional_call(layer, weights, (x,), call))

    assert_same(vmap(grad(loss), in_dims=(None, 1))(weights, x.unsqueeze(2)), one_by_one(layer, x, {}))
    with pytest.raises(BackendUnavailableError, match=r"no rule for torch\.func\.vmap"):
        vmap(layer, in_dims=1)(x.unsqueeze(2))
    with pytest.raises(BackendUnavailableError, match="lengths"):
        grad(loss)(weights, x, lengths=LENGTHS)
    assert backends.explain(device="cuda", wishes=["lengths in torch.compile or torch.func"]).chosen == "reference"


# ------------------------------------------------------------------------------------------- torch.compile


class Graphs:
    """A back end of torch.compile that runs what it is given as it is and counts: the nodes of each graph."""

    def __init__(self):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        self.nodes = []
        self.backend = aot_autograd(fw_compiler=self._seen, bw_compiler=self._seen)

    def _seen(self, graph, _):
        self.nodes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    def captured(self):
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def compile(self, function, **options):
        return torch.compile(function, backend=self.backend, fullgraph=True, **options)  # raises where it would break


COMPILED = {  # what a compiled call may look like; each is a function of the layer and the numbers of steps and sequences
    "plain": lambda layer, t, b: ((sequence(layer.dtype, steps=t, batch=b),), {}),
    "state": lambda layer, t, b: ((sequence(layer.dtype, steps=t, batch=b), first_state(layer, layer.dtype, b)), {}),
    "lengths": lambda layer, t, b: (
        (sequence(layer.dtype, steps=t, batch=b),),
        {"lengths": torch.arange(b) * t // max(1, b - 1)},
    ),
    "all": lambda layer, t, b: (
        (sequence(layer.dtype, steps=t, batch=b), first_state(layer, layer.dtype, b)),
        {"lengths": torch.arange(b) * t // max(1, b - 1), "resets": torch.arange(b * t).view(b, t) % 3 == 0},
    ),
}


def compiled_case(backend, form, **options):
    layer = made(backend, form, **BOTH_WAYS, **options)
    layer.dtype = torch.float64
    return layer


COMPILED_FORMS = [
    ("plain", "torch's"),
    ("state", "torch's"),
    ("lengths", "torch's"),
    ("all", "torch's"),
    ("all", "all"),
]
compiled_forms = pytest.mark.parametrize(
    ("kind", "form"), [(kind, FORMS[form]) for kind, form in COMPILED_FORMS], ids=map(" ".join, COMPILED_FORMS)
)


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


def test_marked_axes_stay_free():
    graphs = Graphs()
    layer = compiled_case("native", FORMS["all"])
    compiled = graphs.compile(layer)
    for steps, batch in ((5, 6), (9, 7)):
        (x,), _ = COMPILED["plain"](layer, steps, batch)
        torch._dynamo.mark_dynamic(x, (0, 1))  # an error where one of them would be a constant of the graph
        assert_same(compiled(x), layer(x))
    assert len(graphs.nodes) == 2


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


def test_inductor_gives_what_the_eager_layer_gives():
    layer = made("auto", FORMS["all"], dtype=torch.float32, num_layers=2)
    x, h_0 = sequence(torch.float32), first_state(layer, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    expected = gradients(layer, x, h_0, lengths=LENGTHS, resets=RESETS)
    assert_same(gradients(layer, x, h_0, run=compiled, lengths=LENGTHS, resets=RESETS), expected)


def packed(sequences):
    return pack_sequence(sequences, enforce_sorted=False)


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


# ------------------------------------------------------------------------------------------- narrow numbers


@two_forms
@calls
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", OURS)
def test_autocast_stores_narrow_numbers_and_computes_in_float32(backend, dtype, call, form):
    layer = made(backend, form, dtype=torch.float32, num_layers=2)
    x, h_0 = sequence(torch.float32).to(dtype), first_state(layer, torch.float32).to(dtype)
    exact = layer(x.float(), h_0.float(), **call)
    with torch.autocast("cpu", dtype=dtype):
        narrow, wide = layer(x, h_0, **call), layer(x.float(), h_0, **call)
        trace = layer.trace(x, h_0, **call)
    loss_of(*wide).backward()
    assert_same(narrow, [v.to(dtype) for v in exact], rtol=0, atol=0)
    assert_same(wide, exact, rtol=0, atol=0)
    assert trace["l1"].update.dtype == dtype
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    expected = gradients(layer, x.float(), h_0.float(), **call)
    assert_same(found, {name: expected[name] for name in found}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", OURS)
def test_autocast_takes_every_mixture(backend, weights, state, dtype):
    layer = made(backend, FORMS["all"], dtype=weights)
    x, h_0 = sequence(torch.float64), first_state(layer)
    exact = copy.deepcopy(layer).double()(x, h_0, **CALLS["both"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x.to(dtype), h_0.to(state), **CALLS["both"])
    for a, b in zip(found, exact, strict=True):
        assert error(a, b) < 0.02  # three roundings to 8 bits, one of them of a state that is normalised


@pytest.mark.parametrize(("backend", "form"), [("native", FORMS["all"]), ("reference", {})], ids=OURS)
def test_autocast_and_half_types_compile(backend, form):
    layer = made(backend, form, dtype=torch.float32)
    x = sequence(torch.float32, steps=2)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lengths = torch.tensor([2, 0, 1])
        assert_same(compiled(x.bfloat16(), lengths=lengths), layer(x.bfloat16(), lengths=lengths))
    layer.bfloat16()
    assert_same(compiled(x.bfloat16()), layer(x.bfloat16()))


# ------------------------------------------------------------------------------------------- other weights


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_functional_call_runs_with_the_weights_that_it_is_given(backend, form):
    layer, other = made(backend, form, **BOTH_WAYS), made(backend, form, seed=5, **BOTH_WAYS)
    x = sequence()
    with torch.no_grad():
        before = layer(x)  # and keeps its packed weights
        found = functional_call(layer, dict(other.named_parameters()), (x,), {"lengths": LENGTHS})
        assert_same(found, other(x, lengths=LENGTHS))
        assert_same(layer(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_with_weight_norm_trains_as_torchs_does(backend):
    layer, theirs = pair(backend, I, H, num_layers=2, dtype=torch.float64)
    x = sequence(steps=3)
    for module in (layer, theirs):
        parametrizations.weight_norm(module, "weight_hh_l0")
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss_of(*module(x)).backward()
            optimiser.step()
    assert_same(layer.state_dict(), theirs.state_dict())
    assert_same(layer.eval()(x), theirs.eval()(x))
    with torch.no_grad():
        for _ in range(2):
            assert_same(layer.step(x[0])[0], theirs(x[:1])[0][0])
    torch._dynamo.reset()
    assert_same(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_spectral_norm_divides_by_the_largest_singular_value_and_iterates_once_a_call(backend):
    layer, theirs = pair(backend, I, H, dtype=torch.float64)
    x, weight = sequence(), layer.weight_hh_l0.detach().clone().requires_grad_()
    parametrizations.spectral_norm(layer, "weight_hh_l0", n_power_iterations=2)
    norm = layer.parametrizations.weight_hh_l0[0]
    again = copy.deepcopy(norm)
    layer(x)
    again(weight)
    assert torch.equal(norm._u, again._u)
    for _ in range(200):
        layer(x)  # in training each call brings it nearer
    found = gradients(layer.eval(), x)

    output, h_n = functional_call(theirs, {"weight_hh_l0": weight / torch.linalg.matrix_norm(weight, 2)}, (x,))
    loss_of(output, h_n).backward()
    expected = {"output": output, "h_n": h_n, "parametrizations.weight_hh_l0.original": weight.grad}
    assert_same({name: found[name] for name in expected}, expected)


@pytest.mark.parametrize("backend", OURS)
def test_parametrised_weights_of_any_form_get_right_gradients(backend):
    layer = made(backend, {**FORMS["all"], "checkpoint_every": 0})
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrizations.weight_norm(layer, "weight_ih_l0")
    x = sequence()
    names = [name for name, _ in layer.named_parameters()]

    def run(*weights):
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,), CALLS["both"])

    assert torch.autograd.gradcheck(run, [*layer.parameters()], fast_mode=True)


# ------------------------------------------------------------------------------------------- memory


def kept_for_backward(layer, x, h_0, **call):
    """The bytes that autograd keeps, of all but what is there in any case."""
    kept = {}

    def pack(v):
        kept[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        output, h_n = layer(x, h_0, **call)
    for known in (x, h_0, output, h_n, *layer.parameters()):
        kept.pop(known.untyped_storage().data_ptr(), None)
    return sum(kept.values())


CHECKPOINTED = {
    "after": {},
    "before": {"reset": "before"},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3, "recurrent_dropout": 0.4},
}


@pytest.mark.parametrize("form", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_the_native_layer_keeps_no_gates_with_checkpoints(form):
    steps, values = 300, 10 if "layer_norm" in form else 4  # a step and unit
    layer = made("native", form, dtype=torch.float32, bidirectional=True)
    x, h_0 = sequence(torch.float32, steps=steps), first_state(layer, torch.float32)
    without = kept_for_backward(layer, x, h_0)
    layer.checkpoint_every = 10
    saved = without - kept_for_backward(layer, x, h_0)
    norms = 4 * (4 * 2 * steps * B) if "layer_norm" in form else 0  # bytes
    assert saved == 4 * (values * 2 * steps * B * H) + norms


@pytest.mark.parametrize("form", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_the_reference_keeps_a_state_for_each_checkpoint(form):
    layer = made("reference", form, dtype=torch.float32, bidirectional=True)
    x, h_0 = sequence(torch.float32, steps=100), first_state(layer, torch.float32)
    without = kept_for_backward(layer, x, h_0)
    layer.checkpoint_every = 10
    with_checkpoints = kept_for_backward(layer, x, h_0)
    # 10 states in two directions, and for each step no more than what x says to the gates, the masks and the output.
    assert with_checkpoints < 0.4 * without


@pytest.mark.parametrize("form", CHECKPOINTED.values(), ids=CHECKPOINTED)
@pytest.mark.parametrize("kind", [*CALLS, "packed", "nested"])
@pytest.mark.parametrize("backend", OURS)
def test_checkpoints_change_no_bit_of_any_result(backend, kind, form):
    steps = 23 if backend == "reference" else 300
    layer = made(backend, form, dtype=torch.float32, training=True, **BOTH_WAYS)
    torch.manual_seed(0)
    sequences = [torch.randn(n, I) for n in (steps, 1, steps // 2)]
    lengths, resets = torch.tensor([steps, 0, steps // 3]), torch.rand(B, steps) < 0.2
    given = {
        "lengths": {"lengths": lengths},
        "both": {"lengths": lengths, "resets": resets},
        "plain": {},
    }.get(kind, {"resets": resets})
    h_0, found = first_state(layer, torch.float32), []
    for checkpoint_every in (0, 7):
        layer.checkpoint_every = checkpoint_every
        layer.zero_grad()
        x = {"packed": packed, "nested": jagged}.get(kind, lambda _: sequence(torch.float32, steps=steps))(sequences)
        leaf = x.data if kind == "packed" else x
        leaf.requires_grad_()
        h = h_0.clone().requires_grad_()
        torch.manual_seed(4)
        output, h_n = layer(x, h, **given)
        output = {"packed": lambda y: y.data, "nested": lambda y: y.values()}.get(kind, lambda y: y)(output)
        loss_of(output, h_n).backward()
        d_x = leaf.grad.values() if kind == "nested" else leaf.grad
        found.append([output, h_n, d_x, h.grad, *(p.grad for p in layer.parameters())])
    assert_same(*found, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- as a module


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_a_copy_made_amid_training_goes_on_to_the_same_bits(backend, form):
    layer = made(backend, form, dtype=torch.float32, training=True, **BOTH_WAYS)

    def train(layer, optimiser, first):
        for step in range(first, first + 2):
            optimiser.zero_grad()
            torch.manual_seed(step)
            loss_of(*layer(sequence(torch.float32, seed=step), resets=RESETS)).backward()
            optimiser.step()
            with torch.no_grad():
                layer(sequence(torch.float32))  # packs and keeps the weights

    optimiser = torch.optim.Adam(layer.parameters(), 0.01, foreach=False)
    train(layer, optimiser, 0)
    graph_alive = loss_of(*layer(sequence(torch.float32)))
    other = copy.deepcopy(layer)
    its = torch.optim.Adam(other.parameters(), 0.01, foreach=False)
    its.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    graph_alive.backward()  # the copy's memory is its own
    train(layer, optimiser, 2)
    after = copy.deepcopy(layer.state_dict())
    train(other, its, 2)
    assert_same(other.state_dict(), after, rtol=0, atol=0)
    assert_same(layer.state_dict(), after, rtol=0, atol=0)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@two_forms
@calls
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", OURS)
def test_the_default_dtype_is_that_of_new_layers_and_changes_no_old_one(backend, training, call, form, default_dtype):
    old = made(backend, form, dtype=None, training=training)
    x, h_0 = sequence(torch.float32), first_state(old, torch.float32)
    torch.manual_seed(6)
    expected = gradients(old, x, h_0, **call)
    default_dtype(torch.float64)
    torch.manual_seed(6)
    assert_same(gradients(old, x, h_0, **call), expected, rtol=0, atol=0)
    new = made(backend, form, dtype=None, training=training)
    assert {v.dtype for v in gradients(new, x.double(), **call).values()} == {torch.float64}
    assert new.initial_state(2).dtype == torch.float64


@two_forms
@pytest.mark.parametrize("call", [CALLS["plain"], CALLS["both"]], ids=["plain", "both"])
@pytest.mark.parametrize("backend", AUTO)
def test_on_the_meta_device_a_call_tells_the_shapes(backend, call, form):
    call = {name: v.to("meta") if name == "resets" else v for name, v in call.items()}
    layer = tidegate.GRU(I, H, **BOTH_WAYS, **form, backend=backend, device="meta")
    x = torch.zeros(T, B, I, device="meta", requires_grad=True)
    output, h_n = layer(x, layer.initial_state(B), **call)
    loss_of(output, h_n).backward()
    trace = layer.trace(x, **call)
    assert (output.shape, h_n.shape, x.grad.shape) == ((T, B, 2 * H), (4, B, H), x.shape)
    assert {v.device.type for v in (output, h_n, x.grad, trace["l1"].update)} == {"meta"}
    assert trace["l1_reverse"].update.shape == (T, B, H)


@two_forms
def test_a_layer_made_on_meta_and_filled_is_the_one_that_was_made_with_memory(form):
    layer = tidegate.GRU(I, H, **BOTH_WAYS, **form, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer.to_empty(device="cpu")
    torch.manual_seed(7)
    layer.reset_parameters()
    torch.manual_seed(7)
    assert_same(layer.state_dict(), tidegate.GRU(I, H, **BOTH_WAYS, **form).state_dict(), rtol=0, atol=0)
    with pytest.raises(BackendUnavailableError, match="x is on meta"):
        tidegate.GRU(I, H, device="meta", backend="native")(torch.zeros(T, B, I, device="meta"))


@two_forms
@pytest.mark.parametrize("backend", OURS)
def test_hooks_and_torchs_own_checkpoint_see_what_passes(backend, form):
    layer, x, seen = made(backend, form, training=False), sequence(), []
    expected = gradients(layer, x, lengths=LENGTHS)
    layer.register_forward_hook(lambda module, given, found: seen.append(found[0].shape))
    layer.register_full_backward_hook(lambda module, d_in, d_out: seen.append(d_out[0].shape))
    assert_same(gradients(layer, x, lengths=LENGTHS), expected)
    assert seen == 2 * [(T, B, H)]

    def again(x):
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, lengths=LENGTHS)

    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        assert_same(gradients(layer, x, run=again), expected)
    assert seen == 5 * [(T, B, H)]  # forwards twice, backwards once


# ------------------------------------------------------------------------------------------- many processes


def _one_of_two(rank, layer, x, lengths, file, queue):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(layer)
    half = slice(rank * 2, rank * 2 + 2)
    for _ in range(2):  # the buckets are built in the first
        parallel.zero_grad()
        loss_of(*parallel(x[:, half], lengths=lengths[half])).backward()
    queue.put((rank, {name: p.grad.numpy() for name, p in layer.named_parameters()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", OURS)
def test_two_processes_get_the_gradients_of_one_over_the_whole_batch(backend):
    layer = made(backend, FORMS["all"], num_layers=2)
    x, lengths = sequence(batch=4), torch.tensor([5, 2, 0, 4])
    expected = gradients(layer, x, lengths=lengths)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (layer, x, lengths, f"{folder}/store", queue)
        processes = [context.Process(target=_one_of_two, args=(rank, *given)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        hung = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
    assert not any(hung)
    assert [process.exitcode for process in processes] == [0, 0]
    for _ in processes:
        _, found = queue.get()
        assert_same({k: 2 * torch.from_numpy(v) for k, v in found.items()}, {k: expected[k] for k in found})
