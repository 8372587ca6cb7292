"""PyTorch's transforms of the layer: torch.func, compile, export, and what they share with the eager run."""

from __future__ import annotations

import copy

import pytest
import torch
from test_gru_wishes import FORMS, OURS, layer_of
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrizations

import tidegate

QUIET = {k: f for k, f in FORMS.items() if k not in ("recurrent_dropout", "zoneout", "all")}


@pytest.mark.parametrize("form", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("backend", [*OURS, "auto"])
def test_per_sample_gradients_equal_those_of_each_sample_alone(backend, form):
    layer = layer_of(3, 5, num_layers=2, bidirectional=True, backend=backend, dtype=torch.float64, **form)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    x, resets = torch.randn(4, 6, 3, dtype=torch.float64), torch.rand(1, 6) < 0.3

    def loss(weights, x):
        return functional_call(layer, weights, (x.unsqueeze(1),), {"resets": resets})[0].square().sum()

    together = vmap(grad(loss), (None, 0))(weights, x)
    for b in range(len(x)):
        alone = torch.autograd.grad(layer(x[b].unsqueeze(1), resets=resets)[0].square().sum(), [*layer.parameters()])
        for name, d in zip(weights, alone, strict=True):
            torch.testing.assert_close(together[name][b], d, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", [*OURS, "auto"])
def test_an_ensemble_in_one_call_gives_what_each_of_its_layers_gives(backend):
    layers = [layer_of(3, 5, backend=backend, seed=seed) for seed in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(6, 2, 3)
    output = vmap(lambda p, b, x: functional_call(layers[0], (p, b), (x,))[0], (0, 0, None))(parameters, buffers, x)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(output[i], layer(x)[0])


@pytest.mark.parametrize("backend", OURS)
def test_gradients_of_gradients_under_torch_func_are_those_of_autograd(backend):
    layer = layer_of(3, 4, backend=backend, dtype=torch.float64, layer_norm=True)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    penalty = grad(lambda x: grad(lambda x: layer(x)[0].square().sum())(x).square().sum())(x)
    x.requires_grad_()
    first = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)[0]
    torch.testing.assert_close(penalty, torch.autograd.grad(first.square().sum(), x)[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_compiled_call_is_one_graph_of_as_many_nodes_for_any_number_of_steps(form, training):
    layer = layer_of(3, 5, num_layers=2, bidirectional=True, backend="native", **form).train(training)
    nodes = []

    def count(graph, _):
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    for T in (3, 50):
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend=count)
        x, more = torch.randn(T, 2, 3), {"lengths": torch.tensor([T, 2]), "resets": torch.rand(2, T) < 0.2}
        output, h_n = compiled(x, **more)
        if not training or not (layer.zoneout or layer.recurrent_dropout):
            torch.testing.assert_close((output, h_n), layer(x, **more))
    assert len(nodes) == 2
    assert nodes[0] == nodes[1]


def test_an_exported_layer_takes_any_batch_any_steps_and_a_state():
    layer = layer_of(3, 5, num_layers=2, batch_first=True, layer_norm=True, backend="native").eval()

    class Streaming(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = layer

        def forward(self, x, state, lengths):
            return self.gru(x, state, lengths=lengths)

    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    example = (torch.randn(2, 6, 3), torch.zeros(2, 2, 5), torch.tensor([3, 6]))
    program = torch.export.export(Streaming(), example, dynamic_shapes=({0: B, 1: T}, {1: B}, {0: B}))
    x, state, lengths = torch.randn(4, 9, 3), torch.randn(2, 4, 5), torch.tensor([9, 0, 3, 4])
    for a, b in zip(program.module()(x, state, lengths), layer(x, state, lengths=lengths), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", OURS)
def test_gates_that_are_computed_again_are_not_kept(backend):
    kept = {}
    for every in (0, 8):
        layer = layer_of(4, 16, backend=backend, checkpoint_every=every)
        size = [0]

        def pack(v, size=size):
            size[0] += v.untyped_storage().nbytes()
            return v

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            layer(torch.randn(200, 3, 4))
        kept[every] = size[0]
    assert kept[8] < kept[0] / 2.5


def test_two_processes_get_the_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path / "meet"),), nprocs=2)


def _one_of_two(rank, meet):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    layer = layer_of(3, 5, layer_norm=True, learn_initial_state=True)
    twin = layer_of(3, 5, layer_norm=True, learn_initial_state=True)
    torch.manual_seed(7)
    x = torch.randn(6, 4, 3)
    shared = torch.nn.parallel.DistributedDataParallel(layer)
    shared(x[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
    twin(x)[0].square().mean().backward()
    for ours, whole in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, whole.grad)
    torch.distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------- modules and dtypes


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("backend", OURS)
def test_gradients_in_evaluation_are_right_by_finite_differences(backend, form):
    layer = layer_of(2, 3, bidirectional=True, backend=backend, dtype=torch.float64, **form).eval()
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    more = {"lengths": [4, 2], "resets": torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)}
    names, weights = zip(*layer.named_parameters(), strict=True)

    def run(x, *weights):
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,), more)

    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("form", QUIET.values(), ids=QUIET)
def test_forward_mode_derivatives_are_those_of_the_backward_pass(form):
    layer = layer_of(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64, **form)
    x, v = torch.randn(2, 4, 2, 2, dtype=torch.float64).unbind()
    resets = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    along = torch.func.jvp(lambda x: layer(x, lengths=[4, 2], resets=resets)[0], (x,), (v,))[1]
    whole = torch.autograd.functional.jacobian(lambda x: layer(x, lengths=[4, 2], resets=resets)[0], x)
    torch.testing.assert_close(along, torch.tensordot(whole, v, 3))


@pytest.mark.parametrize("backend", OURS)
def test_a_copy_made_in_the_middle_of_training_goes_on_alike_and_apart(backend):
    layer = layer_of(3, 5, backend=backend, **{**FORMS["all"], "recurrent_dropout": 0.0, "zoneout": 0.0})
    x = torch.randn(6, 2, 3)

    def steps(layer, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            layer(x)[0].square().mean().backward()
            optimiser.step()
        return [p.detach().clone() for p in layer.parameters()]

    first = torch.optim.Adam(layer.parameters(), 0.01)
    steps(layer, first, 3)
    twin = copy.deepcopy(layer)
    second = torch.optim.Adam(twin.parameters(), 0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    here, there = steps(layer, first, 3), steps(twin, second, 3)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a, b)
    before = layer(x)[0]
    steps(twin, second, 1)
    assert torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_default_dtype_and_the_meta_device_are_heard(form):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        wide = tidegate.GRU(3, 5, **form)
        assert {p.dtype for p in wide.parameters()} == {torch.float64}
        assert wide(torch.randn(4, 2, 3))[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    shape = tidegate.GRU(3, 5, num_layers=2, bidirectional=True, device="meta", **form)
    resets = torch.zeros(2, 4, dtype=torch.bool, device="meta")
    output, h_n = shape(torch.zeros(4, 2, 3, device="meta"), lengths=[4, 2], resets=resets)
    assert output.is_meta
    assert (output.shape, h_n.shape) == ((4, 2, 10), (4, 2, 5))
    real = shape.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.randn(4, 2, 3))[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrised_weight_is_the_one_that_runs_and_trains(change, form):
    layer, plain = (layer_of(3, 5, backend="native", **form).eval() for _ in range(2))
    change(layer, "weight_hh_l0")
    layer.eval()  # (spectral norm moves its estimate in training)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(layer.weight_hh_l0)
    x = torch.randn(6, 2, 3)
    assert torch.equal(layer(x)[0], plain(x)[0])
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", OURS)
def test_autocast_runs_and_stays_close(backend, dtype, form):
    layer = layer_of(3, 5, backend=backend, **form).eval()
    x = torch.randn(6, 2, 3)
    exact = layer(x, lengths=[6, 3])[0]
    with torch.autocast("cpu", dtype=dtype):
        output, _ = layer(x, lengths=[6, 3])
        torch.testing.assert_close(output.float(), exact, rtol=0, atol=0.1)
        if backend == "native":  # the recurrence is never narrowed
            assert torch.equal(output, exact)
    output.float().sum().backward()
