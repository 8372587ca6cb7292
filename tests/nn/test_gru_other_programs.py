"""The layers in the hands of torch.fx, TorchScript and the counter of operations."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import fx, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import tidegate
from tidegate.errors import SettingsError


class Model(nn.Module):
    def __init__(self, make, **options):
        super().__init__()
        torch.manual_seed(0)
        self.gru = make(4, 5, batch_first=True, **options)
        self.linear = nn.Linear(5, 2)

    def forward(self, x):
        output, _ = self.gru(x)
        return self.linear(output[:, -1])


class Loop(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.cell = make(4, 5)

    def forward(self, x, h):
        return self.cell(x, h)


class Marked(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True, **options)

    def forward(self, x, h_0, lengths, resets):
        return self.gru(x, h_0, lengths=lengths, resets=resets)[0]


# ------------------------------------------------------------------------------------------- torch.fx


def nodes(model):
    return [(node.op, node.target) for node in model.graph.nodes if node.op == "call_module"]


def test_a_model_traced_by_torch_fx_holds_the_layer_as_it_holds_nn_gru():
    x = torch.randn(2, 7, 4)
    theirs, ours = Model(nn.GRU).eval(), Model(tidegate.GRU).eval()
    traced = fx.symbolic_trace(ours)
    assert nodes(traced) == nodes(fx.symbolic_trace(theirs))
    assert torch.equal(traced(x), ours(x))
    torch.testing.assert_close(traced(torch.ones(5, 9, 4)), theirs(torch.ones(5, 9, 4)))
    cells = Loop(nn.GRUCell), Loop(tidegate.GRUCell)
    traced = fx.symbolic_trace(cells[1])
    assert nodes(traced) == nodes(fx.symbolic_trace(cells[0])) == [("call_module", "cell")]
    torch.testing.assert_close(traced(x[:, 0], torch.ones(2, 5)), cells[0](x[:, 0], torch.ones(2, 5)))
    mingru = Model(tidegate.MinGRU).eval()
    assert torch.equal(fx.symbolic_trace(mingru)(x), mingru(x))


def test_torch_fx_keeps_the_arguments_that_torch_does_not_have():
    model, x, lengths = Marked(), torch.randn(3, 7, 4), torch.tensor([7, 0, 4])
    resets = torch.rand(3, 7) < 0.3
    given = x, torch.randn(1, 3, 5), lengths, resets
    assert torch.equal(fx.symbolic_trace(model)(*given), model(*given))


def test_torch_fx_on_the_layer_itself_says_what_to_trace():
    with pytest.raises(SettingsError, match=r"GRU: torch.fx traces a model .* Trace torch.nn.Sequential\(layer\)"):
        fx.symbolic_trace(tidegate.GRU(4, 5))
    model = nn.Sequential(tidegate.GRU(4, 5))
    x = torch.randn(6, 2, 4)
    assert torch.equal(fx.symbolic_trace(model)(x)[0], model(x)[0])


class Doubled(tidegate.GRU):
    def forward(self, x):
        output, h_n = super().forward(x)
        return 2 * output, h_n


class Stepped(nn.Module):
    """A method of a layer other than `forward`."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x, state=None):
        return self.call(self.layer, x, state)


def test_torch_fx_runs_hooks_and_what_a_subclass_adds_once():
    x = torch.randn(2, 7, 4)
    hooks = {
        "register_forward_hook": lambda layer, given, results: (results[0] * 3, results[1]),
        "register_forward_pre_hook": lambda layer, given: (given[0] * 3,),
    }
    models = [Model(Doubled)]
    traced = pickle.loads(pickle.dumps(fx.symbolic_trace(models[0])))
    assert torch.equal(traced(x), models[0](x))
    for make in (tidegate.GRU, tidegate.MinGRU):
        for register, hook in hooks.items():
            models.append(Model(make))
            getattr(models[-1].gru, register)(hook)
    for model in models:
        traced = copy.deepcopy(fx.symbolic_trace(model))
        assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("make", [tidegate.GRU, tidegate.MinGRU])
def test_torch_fx_takes_single_steps_and_gates_of_a_layer(make):
    x = torch.randn(6, 2, 4)
    model = Stepped(make(4, 5), lambda layer, x_t, state: layer.step(x_t, state))
    h = torch.rand(1, 2, 5)
    assert all(map(torch.equal, fx.symbolic_trace(model)(x[0], h), model(x[0], h)))
    model = Stepped(make(4, 5), lambda layer, x, _: layer.trace(x)["l0"].update)
    assert torch.equal(fx.symbolic_trace(model, {"state": None})(x), model(x))


def test_torch_fx_traces_a_call_of_which_the_state_or_the_lengths_alone_are_traced():
    x, h = torch.randn(6, 2, 4), torch.randn(2, 5)
    for layer, call, given in (
        (tidegate.GRU(4, 5), lambda layer, h, _: layer(x, h.unsqueeze(0))[0], h),
        (tidegate.GRUCell(4, 5), lambda cell, h, _: cell(x[0], h), h),
        (tidegate.GRU(4, 5), lambda layer, lengths, _: layer(x, lengths=lengths)[0], torch.tensor([6, 3])),
    ):
        model = Stepped(layer, call)
        assert torch.equal(fx.symbolic_trace(model, {"state": None})(given), model(given))


@pytest.mark.parametrize("make", [nn.GRU, tidegate.GRU])
def test_quantisation_by_torch_fx_leaves_the_layer_whole(make):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, x = Model(make).eval(), torch.randn(2, 7, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        converted = convert_fx(prepared)
    assert type(converted.gru) is make
    assert ("call_module", "gru") in nodes(converted)
    assert "quantized" in type(converted.linear).__module__
    torch.testing.assert_close(converted(x), model(x), rtol=0, atol=0.05)


# ------------------------------------------------------------------------------------------- TorchScript


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(tidegate.GRU), r"GRU: torch.jit.script can't read this layer\. .*tidegate.convert.to_torch"),
        (Loop(tidegate.GRUCell), r"GRUCell: torch.jit.script can't .* torch.nn.GRUCell that loads its state_dict"),
        (Model(tidegate.MinGRU), r"MinGRU: torch.jit.script can't .* torch.jit.trace takes it"),
        (tidegate.GRU(4, 5), "tidegate.convert.to_torch"),
    ],
    ids=["GRU", "GRUCell", "MinGRU", "the layer itself"],
)
def test_torch_jit_script_says_what_to_use_in_its_place(model, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SettingsError, match=said):
            torch.jit.script(model)
    assert not any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def test_the_way_that_the_sentence_on_torch_jit_script_names_is_open():
    model = Model(tidegate.GRU).eval()
    x = torch.randn(3, 9, 4)
    expected = model(x)
    model.gru = tidegate.convert.to_torch(model.gru)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.script(model)(x), expected)


FORMS = [{}, {"num_layers": 2, "bidirectional": True}, {"reset": "before", "layer_norm": True}, {"checkpoint_every": 2}]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_torch_jit_trace_passes_its_own_check_and_serves_any_batch_and_number_of_steps(form, grad):
    torch.manual_seed(0)
    layer = tidegate.GRU(4, 5, batch_first=True, **form).eval()
    with warnings.catch_warnings(), torch.set_grad_enabled(grad):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, torch.randn(4, 10, 4))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        traced = torch.jit.load(file)
    for shape in ((4, 10, 4), (2, 17, 4), (1, 1, 4)):
        x = torch.randn(shape)
        assert all(map(torch.equal, traced(x), layer(x)))
        found = torch.autograd.grad(traced(x)[0].pow(2).sum(), list(traced.parameters()))
        expected = torch.autograd.grad(layer(x)[0].pow(2).sum(), list(layer.parameters()))
        assert all(map(torch.equal, found, expected))


def test_a_traced_cell_and_a_traced_minimal_layer_pass_the_check_too():
    cell, layer = tidegate.GRUCell(4, 5), tidegate.MinGRU(4, 5)
    x, h, xs = torch.randn(2, 4), torch.randn(2, 5), torch.randn(6, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.trace(cell, (x, h))(x[:1], h[:1]), cell(x[:1], h[:1]))
        assert torch.equal(torch.jit.trace(layer, xs)(xs)[0], layer(xs)[0])


# ------------------------------------------------------------------------------------------- operations


def operations(layer, *given, wanted=()):
    """Forwards, and forwards and backwards."""
    for v in wanted:
        v.requires_grad_()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        layer(*given)
    with FlopCounterMode(display=False) as both:
        output, h_n = layer(*given)
        data = output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output
        (data.sum() + h_n.sum()).backward()
    return forward.get_total_flops(), both.get_total_flops()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "with h_0", "packed"])
def test_as_many_operations_are_counted_as_for_nn_gru(kind, options, bias):
    runs = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    found = []
    for make in (nn.GRU, tidegate.GRU):
        layer = make(6, 8, bias=bias, **options)
        x, h_0 = torch.randn(10, 4, 6), torch.randn(runs, 4, 8)
        if kind == "plain":
            found.append(operations(layer, x))
        elif kind == "with h_0":
            found.append(operations(layer, x, h_0, wanted=[x, h_0]))
        else:
            found.append(operations(layer, pack_sequence([torch.randn(n, 6) for n in (7, 3, 1)])))
    assert found[0] == found[1]
    assert found[0][0] > 0


def test_a_single_layer_counts_two_operations_for_each_product():
    B, T, I, H = 4, 10, 6, 8
    assert operations(tidegate.GRU(I, H), torch.randn(T, B, I))[0] == 2 * B * T * 3 * H * (I + H)


def test_fvcore_is_told_half_of_it():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = tidegate.GRU(6, 8, num_layers=2, bidirectional=True)
            self.cell = tidegate.GRUCell(16, 5)

        def forward(self, x):
            output, _ = self.gru(x)
            return self.cell(output[-1])

    x = torch.randn(10, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(Both(), x).inlined_graph
    nodes = [node for node in graph.nodes() if node.kind() == "tidegate::gru_layer"]
    found = [tidegate.nn.fvcore_handle(list(node.inputs()), list(node.outputs())) for node in nodes]
    assert found == [2 * 40 * 24 * (6 + 8), 2 * 40 * 24 * (16 + 8), 4 * 15 * (16 + 5)]
    assert 2 * sum(found[:2]) == operations(tidegate.GRU(6, 8, num_layers=2, bidirectional=True), x)[0]


def test_padding_is_no_operation():
    layer, x = tidegate.GRU(6, 8), torch.randn(10, 3, 6)
    packed = pack_sequence([x[:n, b] for b, n in enumerate((10, 4, 1))])

    class Padded(nn.Module):
        def forward(self, x):
            return layer(x, lengths=[10, 4, 1])

    assert operations(Padded(), x) == operations(layer, packed)


# ------------------------------------------------------------------------------------------- TorchRL


def test_who_computes_nn_grus_equations_from_the_names_of_the_weights_finds_those_of_nn_gru():
    for options in ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False}):
        assert tidegate.GRU(3, 4, **options)._all_weights == nn.GRU(3, 4, **options)._all_weights


@pytest.mark.parametrize(
    "options", [{"layer_norm": True}, {"reset": "before"}, {"zoneout": 0.1}, {"learn_initial_state": True}], ids=str
)
def test_a_layer_with_other_equations_is_not_taken_for_nn_gru(options):
    assert not hasattr(tidegate.GRU(3, 4, **options), "_all_weights")
