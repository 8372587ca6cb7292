"""A bare layer as an ONNX file."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import onnx
import pytest
import torch

import tidegate
from tests.helpers.onnx_files import CLOSE, answers, open_session
from tests.helpers.processes import without
from tidegate.errors import SettingsError, TidegateError
from tidegate.export import onnx as target
from tidegate.export.onnx import recurrence

pytestmark = pytest.mark.peers


PLAIN = list(itertools.product(["after", "before"], [False, True], [False, True], [False, True]))
KINDS = [
    {"reset": reset, "bidirectional": both, "bias": bias, "batch_first": first, "num_layers": 1 + both}
    for reset, both, bias, first in PLAIN
]
MORE = [
    {"layer_norm": True},
    {"zoneout": 0.3},
    {"layer_norm": True, "zoneout": 0.2, "learn_initial_state": True},
    {"learn_initial_state": True},
    {"num_layers": 3},
]
LAYERS = [*KINDS, *(kind | more for kind in KINDS for more in MORE[:3]), *(KINDS[2] | more for more in MORE[3:])]


def a_layer(H=7, **options):
    torch.manual_seed(2)
    layer = tidegate.GRU(3, H, **options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.7)
    return layer


def a_call(layer, lengths, T=9):
    """x, h_0, lengths, and what the layer gives."""
    generator = torch.Generator().manual_seed(4)
    real, B = layer.weight_ih_l0.dtype, len(lengths)
    x = torch.randn(B, T, layer.input_size, generator=generator, dtype=torch.float64).to(real)
    x = x if layer.batch_first else x.transpose(0, 1).contiguous()
    runs = len(layer.all_weights)
    h_0 = torch.randn(runs, B, layer.hidden_size, generator=generator, dtype=torch.float64).to(real)
    lengths = torch.tensor(lengths)
    with torch.no_grad():
        output, h_n = layer(x, h_0, lengths=lengths)
    given = {"x": x.numpy(), "h_0": h_0.numpy(), "lengths": lengths.numpy()}
    return given, {"output": output.numpy(), "h_n": h_n.numpy()}


@pytest.mark.parametrize("H", [1, 7])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_a_bare_layer_gives_in_onnx_runtime_what_it_gives_in_evaluation(options, H, tmp_path):
    layer = a_layer(H, **options)
    result = target.write_layer(layer, tmp_path / "layer.onnx")
    session = open_session(result.path)
    for lengths in ([9], [4, 9, 0, 1, 7]):
        given, expected = a_call(layer, lengths)
        found = answers(session, given)
        for name, value in expected.items():
            assert found[name].dtype == np.float32
            assert found[name].shape == value.shape
            np.testing.assert_allclose(found[name], value, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("options", [{}, {"reset": "before", "bidirectional": True}, {"layer_norm": True}], ids=str)
def test_a_layer_in_float64_stays_in_float64(options, tmp_path):
    layer = a_layer(dtype=torch.float64, num_layers=2, **options)
    session = open_session(target.write_layer(layer, tmp_path / "layer.onnx").path)
    given, expected = a_call(layer, [4, 9, 0])
    found = answers(session, given)
    for name, value in expected.items():
        assert found[name].dtype == np.float64
        # LayerNormalization has its epsilon in float32, whatever it normalises.
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-7 if layer.layer_norm else 1e-13)


def test_the_operator_is_used_as_far_as_it_reaches(tmp_path):
    def operators(**options):
        model = onnx.load(target.write_layer(a_layer(**options), tmp_path / "layer.onnx").path)
        onnx.checker.check_model(model, full_check=True)
        return {node.op_type for node in model.graph.node} & {"GRU", "Scan"}

    assert operators() == operators(reset="before", bias=False) == operators(learn_initial_state=True) == {"GRU"}
    assert operators(layer_norm=True) == operators(zoneout=0.1) == operators(dtype=torch.float64) == {"Scan"}


def test_chunks_of_a_bare_layer_give_what_one_call_gives(tmp_path):
    for options in ({"num_layers": 2}, {"layer_norm": True, "zoneout": 0.1}):
        layer = a_layer(batch_first=True, **options)
        session = open_session(target.write_layer(layer, tmp_path / "layer.onnx").path)
        given, expected = a_call(layer, [9, 2, 5])
        outputs, state = [], given["h_0"]
        for first in range(0, 9, 4):
            x = given["x"][:, first : first + 4]
            lengths = np.clip(given["lengths"] - first, 0, x.shape[1])
            found = answers(session, {"x": x, "h_0": state, "lengths": lengths})
            outputs.append(found["output"])
            state = found["h_n"]
        np.testing.assert_allclose(np.concatenate(outputs, 1), expected["output"], rtol=0, atol=CLOSE)
        np.testing.assert_allclose(state, expected["h_n"], rtol=0, atol=CLOSE)


def test_a_learned_state_stands_in_the_metadata_to_the_last_bit(tmp_path):
    layer = a_layer(learn_initial_state=True, num_layers=2)
    session = open_session(target.write_layer(layer, tmp_path / "layer.onnx").path)
    told = json.loads(session.get_modelmeta().custom_metadata_map["initial_h"])
    initial = np.array(told, np.float32)
    np.testing.assert_array_equal(initial, layer.initial_h.detach().numpy())
    given, _ = a_call(layer, [9, 3])
    given["h_0"] = np.repeat(initial[:, None], 2, axis=1)
    with torch.no_grad():
        output, _ = layer(torch.from_numpy(given["x"]), lengths=[9, 3])
    np.testing.assert_allclose(answers(session, given)["output"], output.numpy(), rtol=0, atol=CLOSE)


def test_a_layer_is_written_as_it_is_in_evaluation_and_stays_as_it_was(tmp_path):
    layer = a_layer(num_layers=2, dropout=0.5, recurrent_dropout=0.5, zoneout=0.2).train()
    before = copy.deepcopy(layer.state_dict())
    session = open_session(target.write_layer(layer, tmp_path / "layer.onnx").path)
    assert layer.training
    given, expected = a_call(layer.eval(), [9, 3])
    np.testing.assert_allclose(answers(session, given)["output"], expected["output"], rtol=0, atol=CLOSE)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_layers_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    said = target.write_layer(a_layer(), tmp_path / "layer.onnx").notes[-1]
    assert float(said.split("at most ")[1].rstrip(".")) <= CLOSE
    wrong = copy.deepcopy(a_layer())
    with torch.no_grad():
        wrong.weight_ih_l0.add_(1)
    operator = recurrence.operator
    monkeypatch.setattr(
        recurrence, "operator", lambda g, core, me, w, x, h: operator(g, core, me, [w[0] - 1, *w[1:]], x, h)
    )
    with pytest.raises(TidegateError, match="outputs differ from Tidegate's"):
        target.write_layer(wrong, tmp_path / "wrong.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["layer.onnx"]


def test_half_precision_and_other_layers_are_refused_in_words(tmp_path):
    with pytest.raises(SettingsError, match="bfloat16, expected float32 or float64"):
        target.write_layer(tidegate.GRU(3, 4, dtype=torch.bfloat16), tmp_path / "layer.onnx")
    with pytest.raises(TypeError, match=r"expected a tidegate\.GRU"):
        target.write_layer(torch.nn.GRU(3, 4), tmp_path / "layer.onnx")
    assert list(tmp_path.iterdir()) == []


def test_to_write_a_layer_torch_numpy_and_onnx_are_enough(tmp_path):
    installed = {"polars", "pydantic", "typer", "rich", "safetensors", "torchmetrics", "yaml", "jinja2", "matplotlib"}
    code = (
        "import tidegate; from tidegate.export.onnx import write_layer\n"
        "print(write_layer(tidegate.GRU(3, 4), sys.argv[1]))"
    )
    done = without(installed, code, tmp_path / "layer.onnx")
    assert done.returncode == 0, done.stderr
    assert "Checked with ONNX Runtime" in done.stdout


@pytest.mark.parametrize("options", [*KINDS, {"layer_norm": True, "bidirectional": True}, {"zoneout": 0.2}], ids=str)
def test_openvino_gives_what_a_bare_layer_gives(options, tmp_path, openvino):
    layer = a_layer(**options)
    path = target.write_layer(layer, tmp_path / "layer.onnx").path
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for lengths in ([9], [4, 9, 0, 1, 7]):
        given, expected = a_call(layer, lengths)
        found = model(given)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=CLOSE)
