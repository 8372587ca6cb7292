"""PyTorch's transforms of the layer: torch.func, compile, export, and what they share with the eager run."""

from __future__ import annotations

import pytest
import torch
from test_gru_wishes import FORMS, OURS, layer_of
from torch.func import functional_call, grad, stack_module_state, vmap

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
