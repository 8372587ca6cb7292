"""`tidegate.quantize` and the layer that it makes."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import tidegate
from tests.helpers.layers import FORMS, layer_of, pair
from tidegate.errors import BackendUnavailableError, SettingsError, ShapeError, UserError
from tidegate.nn import QuantisedGRU
from tidegate.ops.gru import native
from tidegate.ops.gru.native import kernels

KINDS = ["int8", "bf16"]
both = pytest.mark.parametrize("weights", KINDS)
I, H = 5, 24


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.core = layer_of(I, H, **options)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.drop(self.core(x)[0]))


def x_of(steps=7, batch=3):
    torch.manual_seed(1)
    return torch.randn(steps, batch, I)


# ------------------------------------------------------------------------------------------------------ numbers


@both
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("both_ways", [False, True])
def test_it_computes_the_layer_with_rounded_weights(weights, form, both_ways):
    layer = layer_of(I, H, num_layers=2, bidirectional=both_ways, **form).eval()
    small = tidegate.quantize(layer, weights)
    like = copy.deepcopy(layer)
    with torch.no_grad():
        for own, rounded in zip(like.all_weights, small.all_weights, strict=True):
            for a, b in zip(own, rounded, strict=True):
                a.copy_(b)
        exact, plain, found = like(x_of()), layer(x_of()), small(x_of())
    for a, b, c in zip(found, exact, plain, strict=True):
        assert (a - b).abs().max() < (0.1 if weights == "int8" else 0.05)  # x and h are rounded, too
        assert not torch.equal(a, c)
    assert all((a - b).abs().max() < 0.1 for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(("I", "H", "layers"), [(13, 37, 1), (40, 128, 2), (7, 256, 1)])
def test_its_error_is_at_most_that_of_torchs_dynamic_8_bits(I, H, layers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that there is something newer
        from torch.ao.quantization import quantize_dynamic

        mine, its = [], []
        for seed in range(4):
            ours, theirs = pair("native", I, H, layers, seed=seed)
            x = torch.randn(50, 4, I)
            exact = copy.deepcopy(theirs).double()(x.double())[0]
            dynamic = quantize_dynamic(nn.Sequential(theirs), {nn.GRU})
            its.append((dynamic(x)[0] - exact).square().mean())
            mine.append((tidegate.quantize(ours, "int8")(x)[0] - exact).square().mean())
    assert sum(mine) <= sum(its)


def test_bfloat16_is_nearer_than_8_bits():
    layer = layer_of(I, 64)
    x = x_of(50)
    with torch.no_grad():
        exact = layer(x)[0]
        bf16, int8 = ((tidegate.quantize(layer, kind)(x)[0] - exact).norm() for kind in ("bf16", "int8"))
    assert 0 < bf16 < int8


@both
def test_the_layer_that_was_given_is_as_it_was(weights):
    layer = layer_of(I, H).train()
    before = copy.deepcopy(layer.state_dict())
    tidegate.quantize(layer, weights)
    assert layer.training
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert all(p.requires_grad for p in layer.parameters())


def test_under_autocast_the_output_is_of_the_inputs_type():
    small = tidegate.quantize(layer_of(I, H), "int8")
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = small(x_of().bfloat16())
        y, _ = small.step(x_of()[0].bfloat16())
    assert (output.dtype, h_n.dtype, y.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


@both
def test_no_steps_and_no_sequences_leave_the_state(weights):
    small = tidegate.quantize(layer_of(I, H, num_layers=2), weights)
    h = torch.randn(2, 3, H)
    output, h_n = small(torch.zeros(0, 3, I), h)
    assert output.shape == (0, 3, H)
    assert torch.equal(h_n, h)
    assert small(torch.zeros(4, 0, I))[0].shape == (4, 0, H)


def test_it_takes_layouts_as_the_layer_does():
    small = tidegate.quantize(layer_of(I, H, batch_first=True), "int8")
    x = x_of()
    output, _ = small(x.transpose(0, 1))
    assert torch.equal(small(x[:, 0])[0], output[0])
    assert torch.equal(small(x[:, 0].clone(memory_format=torch.contiguous_format).t().contiguous().t())[0], output[0])
    y, state = small.step(x[0, 0])
    assert torch.equal(y, output[0, 0])
    assert state.shape == (1, H)
    assert torch.equal(small(x.transpose(0, 1), mask=torch.ones(3, 7, dtype=torch.bool))[0], output)


# ------------------------------------------------------------------------------------------------------ as a module


@both
def test_it_holds_a_quarter_or_half_of_the_memory_and_says_its_weights(weights):
    layer = tidegate.GRU(100, 128)
    small = tidegate.quantize(layer, weights)
    matrices = 3 * 128 * (100 + 128)
    more = 2 * 3 * 128 * 4 * (2 if weights == "int8" else 1)  # biases, and scales
    assert sum(b.nbytes for b in small.buffers()) == matrices * (1 if weights == "int8" else 2) + more
    assert [*small.parameters()] == []
    assert repr(small) == f"QuantisedGRU(100, 128, weights={weights!r})"


@both
def test_copies_pickles_and_state_dicts_give_the_same_bits(weights):
    small = tidegate.quantize(layer_of(I, H, num_layers=2, learn_initial_state=True), weights)
    expected, types = small(x_of()), [v.dtype for v in small.buffers()]
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    other = QuantisedGRU(I, H, 2, weights=weights, learn_initial_state=True)
    other(x_of())  # and keeps its zeros
    assert str(other.load_state_dict(small.state_dict())) == "<All keys matched successfully>"
    assigned = QuantisedGRU(I, H, 2, weights=weights, learn_initial_state=True)
    with torch.inference_mode():
        assigned.load_state_dict({k: v.clone() for k, v in small.state_dict().items()}, assign=True)
    for one in (
        copy.copy(small),
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(file, weights_only=False),
        other,
        assigned,
        small.float().cpu().eval(),
    ):
        for a, b in zip(one(x_of()), expected, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.step(x_of()[0])[0], expected[0][0])
        assert [v.dtype for v in one.buffers()] == types


@both
def test_a_buffer_that_changes_in_place_is_noticed_in_a_stream(weights):
    small = tidegate.quantize(layer_of(I, H), weights)
    x, h = x_of()[0], torch.ones(1, 3, H)
    before, _ = small.step(x, h)
    small.bias_ih_l0.add_(1)
    after, _ = small.step(x, h)
    assert not torch.equal(before, after)
    small.bias_ih_l0 = small.bias_ih_l0 - 1
    assert (small.step(x, h)[0] - before).abs().max() < 1e-6


@both
def test_made_in_inference_mode_it_runs_outside_too(weights):
    layer = layer_of(I, H)
    with torch.inference_mode():
        small = tidegate.quantize(layer, weights)
        expected = small(x_of())[0]
    assert torch.equal(small(x_of())[0], expected)
    assert torch.equal(small.step(x_of()[0])[0], expected[0])


@both
def test_of_a_model_every_gru_is_quantised_in_a_copy(weights):
    model = Model().train()
    model.again = model.core  # shared
    small = tidegate.quantize(model, weights)
    assert isinstance(small.core, QuantisedGRU)
    assert small.again is small.core
    assert isinstance(model.core, tidegate.GRU)
    assert model.training
    assert not small.training
    assert small.head.weight is not model.head.weight
    with torch.no_grad():
        assert (small(x_of()) - model.eval()(x_of())).abs().max() < 0.1


def test_a_parametrised_layer_is_quantised_with_the_weights_it_has():
    layer = nn.utils.parametrizations.weight_norm(layer_of(I, H), "weight_hh_l0")
    small = tidegate.quantize(layer, "bf16")
    assert torch.equal(small.weight_hh_l0_bf16, layer.weight_hh_l0.detach().bfloat16())


def test_compiled_models_break_off_before_it_and_go_on_after_it():
    small = tidegate.quantize(Model(), "int8")
    with torch.no_grad():
        assert (torch.compile(small, backend="eager")(x_of()) - small(x_of())).abs().max() < 1e-6


def test_torch_fx_keeps_it_whole():
    small = tidegate.quantize(Model(), "int8")

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = small.core

        def forward(self, x):
            return self.core(x)[0]

    traced = torch.fx.symbolic_trace(Last())
    assert torch.equal(traced(x_of()), small.core(x_of())[0])


# ------------------------------------------------------------------------------------------------------ torch's own


@pytest.fixture
def dynamic():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from torch.ao.quantization import quantize_dynamic

        yield quantize_dynamic


def test_torchs_quantize_dynamic_does_the_same(dynamic):
    model = Model()
    small = dynamic(model, {tidegate.GRU})
    assert isinstance(small.core, QuantisedGRU)
    assert isinstance(model.core, tidegate.GRU)
    assert not hasattr(model.core, "qconfig")
    assert torch.equal(small.core(x_of())[0], tidegate.quantize(model.core, "int8")(x_of())[0])


def test_torchs_quantize_dynamic_leaves_it_where_others_are_named(dynamic):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tidegate.*")
        assert isinstance(dynamic(Model(), {nn.LSTM}).core, tidegate.GRU)


def test_torchs_quantize_dynamic_of_a_layer_alone_warns_how_to_get_it(dynamic):
    with pytest.warns(UserWarning, match=r"tidegate.quantize\(model, 'int8'\)"):
        assert isinstance(dynamic(layer_of(I, H), {tidegate.GRU}), tidegate.GRU)


def test_torchs_quantize_dynamic_in_another_type_says_which_there_are(dynamic):
    with pytest.raises(SettingsError, match="float16 was asked for"):
        dynamic(Model(), {tidegate.GRU}, dtype=torch.float16)


# ------------------------------------------------------------------------------------------------------ refusals


WRONG = {
    "a kind that isn't": (lambda: tidegate.quantize(layer_of(I, H), "int4"), SettingsError, "expected 'int8' or 'bf16'"),
    "twice": (
        lambda: tidegate.quantize(tidegate.quantize(layer_of(I, H), "int8"), "int8"), SettingsError, "quantised already",
    ),
    "a model twice": (
        lambda: tidegate.quantize(tidegate.quantize(Model(), "int8"), "bf16"), SettingsError, "quantised already",
    ),
    "torch's": (lambda: tidegate.quantize(nn.GRU(2, 3), "int8"), SettingsError, "a torch.nn.GRU. tidegate.convert.from_torch"),
    "lstm": (lambda: tidegate.quantize(nn.Sequential(nn.LSTM(2, 3)), "int8"), SettingsError, "a model with torch.nn.LSTM"),
    "rnn": (lambda: tidegate.quantize(nn.RNN(2, 3), "int8"), SettingsError, "a torch.nn.RNN"),
    "mingru": (lambda: tidegate.quantize(tidegate.MinGRU(2, 3), "int8"), SettingsError, "a tidegate.MinGRU"),
    "cell": (lambda: tidegate.quantize(tidegate.GRUCell(2, 3), "int8"), SettingsError, r"a tidegate.GRUCell. .*layer.step\(\)"),
    "no recurrence": (lambda: tidegate.quantize(nn.Linear(2, 3), "int8"), SettingsError, "a model with none"),
    "no module": (lambda: tidegate.quantize("runs/x", "int8"), TypeError, "got a value of type str"),
    "float64": (lambda: tidegate.quantize(tidegate.GRU(2, 3).double(), "int8"), SettingsError, r"layer.float\(\)"),
    "meta": (lambda: tidegate.quantize(tidegate.GRU(2, 3, device="meta"), "int8"), ShapeError, r"on meta.*layer.cpu\(\)"),
    "NaN": (lambda: tidegate.quantize(with_nan(), "int8"), SettingsError, "NaN or infinite"),
    "an own forward": (lambda: tidegate.quantize(Own(2, 3), "int8"), SettingsError, "would be lost"),
}  # fmt: skip


class Own(tidegate.GRU):
    def forward(self, x):
        return super().forward(x * 2)


def with_nan():
    layer = layer_of(2, 3)
    layer.weight_hh_l0.data[4, 1] = torch.nan
    return layer


@pytest.mark.parametrize("what", WRONG)
def test_what_cant_be_quantised_is_told_in_a_sentence(what):
    call, kind, words = WRONG[what]
    with pytest.raises(kind, match=words):
        call()


def small_layer(weights="int8", **options):
    return tidegate.quantize(layer_of(I, H, **options), weights)


CALLS = {
    "gradients of x": (lambda: small_layer()(x_of().requires_grad_()), SettingsError, "for inference only"),
    "gradients of h_0": (
        lambda: small_layer()(x_of(), torch.zeros(1, 3, H, requires_grad=True)), SettingsError, "for inference only",
    ),
    "gradients of a step": (
        lambda: stepped().step(x_of()[0].requires_grad_(), torch.zeros(1, 3, H)), SettingsError, "for inference only",
    ),
    "float64": (lambda: small_layer()(x_of().double()), ShapeError, r"takes float32. Use x.float\(\)"),
    "a state in float64": (lambda: small_layer()(x_of(), torch.zeros(1, 3, H).double()), ShapeError, r"h_0.float\(\)"),
    "a packed sequence in float64": (
        lambda: small_layer()(nn.utils.rnn.pack_sequence([x_of()[:, 0].double()])), ShapeError, r"x.float\(\)",
    ),
    "another device": (lambda: small_layer()(x_of().to("meta")), ShapeError, r"on meta.*x.cpu\(\)"),
    "features": (lambda: small_layer()(torch.zeros(2, 3, I + 1)), ShapeError, f"x has {I + 1} features, expected {I}"),
    "no tensor": (lambda: small_layer()([1.0]), TypeError, "expected a tensor"),
    "steps of both directions": (lambda: small_layer(bidirectional=True).step(x_of()[0]), SettingsError, "forwards in time"),
    "steps of both directions after a call": (lambda: both_ways_called().step(x_of()[0], torch.zeros(1, 3, H)), SettingsError, "forwards"),
    "vmap": (lambda: torch.func.vmap(small_layer())(x_of()[None]), SettingsError, "torch.func"),
    "jit.trace": (lambda: torch.jit.trace(small_layer(), x_of()), SettingsError, "torch.jit.trace"),
    "jit.script": (lambda: torch.jit.script(small_layer()), SettingsError, "torch.jit.script"),
    "trace": (lambda: small_layer().trace(x_of()), SettingsError, "no gates"),
    "train": (lambda: small_layer().train(), SettingsError, "can't be trained"),
    "train of a model": (lambda: tidegate.quantize(Model(), "bf16").train(), SettingsError, "can't be trained"),
    "double": (lambda: small_layer().double(), ShapeError, "not in torch.float64"),
    "half": (lambda: small_layer("bf16").half(), ShapeError, "not in torch.float16"),
    "moved": (lambda: tidegate.quantize(Model(), "int8").to("meta"), ShapeError, "not on meta"),
    "int8 into bf16": (
        lambda: small_layer("bf16").load_state_dict(small_layer("int8").state_dict()), ShapeError,
        r"has int8 weights, and this layer has bf16. Load it into tidegate.nn.QuantisedGRU\(..., weights='int8'\)",
    ),
    "bf16 into int8": (
        lambda: small_layer("int8").load_state_dict(small_layer("bf16").state_dict(), strict=False), ShapeError, "has bf16 weights",
    ),
    "float32 into int8": (
        lambda: small_layer().load_state_dict(layer_of(I, H).state_dict()), ShapeError, "not quantised.*into a tidegate.GRU",
    ),
    "int8 into float32": (
        lambda: layer_of(I, H).load_state_dict(small_layer().state_dict(), strict=False), ShapeError, "with int8 weights",
    ),
    "bf16 into a model": (
        lambda: Model().load_state_dict(tidegate.quantize(Model(), "bf16").state_dict()), ShapeError, "with bf16 weights",
    ),
    "floats as numbers": (
        lambda: small_layer().load_state_dict({k: v.float() for k, v in small_layer().state_dict().items()}), ShapeError,
        "is torch.float32, expected torch.int8",
    ),
}  # fmt: skip


def both_ways_called():
    layer = small_layer(bidirectional=True)
    layer(x_of())
    return layer


def stepped():
    layer = small_layer()
    layer.step(x_of()[0])
    return layer


@pytest.mark.parametrize("what", CALLS)
def test_what_a_quantised_layer_cant_do_is_told_in_a_sentence(what):
    call, kind, words = CALLS[what]
    with pytest.raises(kind, match=words):
        call()


def test_a_refused_state_dict_changes_nothing():
    layer = layer_of(I, H)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(UserError):
        layer.load_state_dict(small_layer().state_dict(), strict=False)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_without_the_kernels_it_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "_MISSING", "the C++ kernel is not part of this installation")
    assert native.missing()
    for call in (lambda: small_layer(), lambda: QuantisedGRU(2, 3, weights="int8")):
        with pytest.raises(BackendUnavailableError, match=r"C\+\+ kernels alone.*tidegate doctor"):
            call()
