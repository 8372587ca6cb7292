"""`layer.trace`: the gates, from every back end that has them."""

from __future__ import annotations

import sys

import polars as pl
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import tidegate
from tests.helpers.layers import FORMS, OURS, jagged, layer_of
from tidegate.gates.gates import Gates
from tidegate.gates.statistics import Counter

NAMES = ("reset", "update", "candidate", "recurrent", "hidden")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", OURS)
def test_a_trace_has_the_numbers_of_forward(backend, grad, training, form):
    layer = layer_of(4, 7, num_layers=3, bidirectional=True, dropout=0.3, backend=backend, **form).train(training)
    x, more = torch.randn(5, 3, 4), {"lengths": [5, 0, 3], "resets": torch.rand(3, 5) < 0.2}
    with torch.set_grad_enabled(grad):
        torch.manual_seed(1)
        output, h_n = layer(x, **more)
        torch.manual_seed(1)
        trace = layer.trace(x, **more)
    assert torch.equal(trace.output, output)
    assert torch.equal(trace.h_n, h_n)
    assert list(trace) == ["l0", "l0_reverse", "l1", "l1_reverse", "l2", "l2_reverse"]
    assert torch.equal(torch.cat([trace["l2"].hidden, trace["l2_reverse"].hidden], -1), output)
    for name in NAMES:
        for v in getattr(trace, name).values():
            assert v.shape == (5, 3, 7)
            assert (v[:, 1] == 0).all()
            assert (v[3:, 2] == 0).all()
            assert v.requires_grad == grad


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize("backend", OURS)
def test_the_gates_are_those_of_the_equations(backend, reset):
    layer = layer_of(4, 7, bidirectional=True, backend=backend, reset=reset, dtype=torch.float64)
    x, h_0 = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    trace = layer.trace(x, h_0)
    for d, name in enumerate(trace):
        w_ih, w_hh, b_ih, b_hh = layer.all_weights[d]
        r, z, n, recurrent, h = trace[name]
        before = torch.cat([h_0[d : d + 1], h[:-1]]) if d == 0 else torch.cat([h[1:], h_0[d : d + 1]])
        x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, -1)
        h_r, h_z, h_n = (before @ w_hh.T + b_hh).chunk(3, -1)
        if reset == "before":
            h_n = (r * before) @ w_hh[14:].T + b_hh[14:]
        torch.testing.assert_close(r, torch.sigmoid(x_r + h_r))
        torch.testing.assert_close(z, torch.sigmoid(x_z + h_z))
        torch.testing.assert_close(recurrent, h_n)
        torch.testing.assert_close(n, torch.tanh(x_n + (r * h_n if reset == "after" else h_n)))
        torch.testing.assert_close(h, (1 - z) * n + z * before)


@pytest.mark.parametrize("backend", OURS)
def test_a_trace_is_laid_out_like_the_output(backend):
    options = {"num_layers": 2, "bidirectional": True, "backend": backend}
    layer, first = layer_of(4, 7, **options), layer_of(4, 7, batch_first=True, **options)
    x = torch.randn(5, 3, 4)
    trace = layer.trace(x)
    turned, one = first.trace(x.transpose(0, 1)), layer.trace(x[:, 1])
    sequences = [x[:2, 0], x[:, 1]]
    packed, nested = layer.trace(pack_sequence(sequences, enforce_sorted=False)), layer.trace(jagged(sequences))
    assert isinstance(packed.output, PackedSequence)
    for name in NAMES:
        for key, v in getattr(trace, name).items():
            torch.testing.assert_close(getattr(turned, name)[key], v.transpose(0, 1))
            torch.testing.assert_close(getattr(one, name)[key], v[:, 1])
            of_packed, of_nested = getattr(packed, name)[key], getattr(nested, name)[key]
            padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(of_packed)
            assert lengths.tolist() == [2, 5]
            torch.testing.assert_close(padded[:, 1], v[:, 1])
            assert of_nested.is_nested
            torch.testing.assert_close(of_nested.unbind()[1], v[:, 1])


@pytest.mark.parametrize("more", [{}, {"lengths": [5, 2, 4]}], ids=str)
@pytest.mark.parametrize("form", [f for k, f in FORMS.items() if k != "all"], ids=str)
def test_a_loss_on_the_gates_has_the_gradients_of_the_reference(form, more):
    found = []
    for backend in OURS:
        layer = layer_of(4, 7, num_layers=2, bidirectional=True, backend=backend, dtype=torch.float64, **form)
        torch.manual_seed(2)
        x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
        trace = layer.trace(x, **more)
        torch.manual_seed(3)
        loss = sum((torch.randn_like(v) * v).sum() for gates in trace.values() for v in gates)
        found.append(torch.autograd.grad(loss + trace.h_n.sum(), [x, *layer.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_gates_that_are_kept_do_not_change_with_the_next_call():
    layer = layer_of(4, 7, backend="native")
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        trace = layer.trace(x)
        before = trace["l0"].update.clone()
        layer.trace(2 * x)
    assert torch.equal(trace["l0"].update, before)


def test_a_trace_tells_what_is_in_it():
    trace = tidegate.GRU(4, 7).trace(torch.zeros(5, 3, 4))
    assert repr(trace) == ("GateTrace(reset, update, candidate, recurrent, hidden of\n  l0: torch.Size([5, 3, 7])\n)")
    assert trace.update["l0"] is trace["l0"].update
    assert len(trace) == 1
    with pytest.raises(KeyError, match=r"No layer 'l1' in this trace; there are l0\."):
        trace["l1"]


def test_statistics_are_the_same_in_every_layout():
    options = {"num_layers": 2, "bidirectional": True}
    layer, first = layer_of(4, 7, **options), layer_of(4, 7, batch_first=True, **options)
    sequences = [torch.randn(n, 4) for n in (2, 9, 5)]
    padded = torch.nn.utils.rnn.pad_sequence(sequences)
    resets = torch.rand(3, 9) < 0.2
    traces = [
        layer.trace(padded, lengths=[2, 9, 5], resets=resets),
        first.trace(padded.transpose(0, 1), lengths=[2, 9, 5], resets=resets),
        layer.trace(pack_sequence(sequences, enforce_sorted=False), resets=resets),
        layer.trace(jagged(sequences), resets=resets),
    ]
    expected = traces[0].statistics()
    assert expected["l0"].steps == 16
    assert expected["l0"].sequences == 3
    for trace in traces[1:]:
        assert list(trace.statistics()) == ["l0", "l0_reverse", "l1", "l1_reverse"]
        for name, s in trace.statistics().items():
            for column, values in s.columns().items():
                if column == "kind":
                    assert values == expected[name].columns()[column]
                else:
                    torch.testing.assert_close(values, expected[name].columns()[column])
            assert trace.memory_length_steps()[name].tolist() == s.memory_length_steps.tolist()
            assert trace.saturation()[name].reset_near_1.tolist() == s.reset_near_1.tolist()
    one = layer.trace(sequences[1])
    assert one.statistics()["l1"].steps == 9
    assert one.sequence()["l1"].hidden.shape == (9, 7)


def test_the_memory_of_a_backward_direction_runs_backwards():
    both, one = layer_of(4, 7, bidirectional=True), layer_of(4, 7)
    with torch.no_grad():
        both.bias_ih_l0_reverse[7:14] += 2.0  # memories of several steps, of which the two ends cut off others
    one.load_state_dict({k.removesuffix("_reverse"): v for k, v in both.state_dict().items() if "reverse" in k})
    x = 3 * torch.randn(60, 1, 4)
    backwards, forwards = both.trace(x).statistics()["l0_reverse"], one.trace(x.flip(0)).statistics()["l0"]
    for name in ("memory_length_steps", "update_near_0", "reset_near_1"):
        assert getattr(backwards, name).tolist() == getattr(forwards, name).tolist()
    update = both.trace(x)["l0_reverse"].update
    counter = Counter()
    counter.add(Gates(update, update, update, update, update))
    assert counter.result().memory_length_steps.tolist() != backwards.memory_length_steps.tolist()


def test_resets_and_zoneout_count_in_the_memory_of_a_trace():
    layer = layer_of(4, 7)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        layer.bias_ih_l0[7:14] = 4.0  # z = 0.98: 39 steps
    x, resets = torch.zeros(200, 1, 4), torch.zeros(1, 200, dtype=torch.bool)
    resets[0, ::10] = True
    assert set(layer.trace(x).memory_length_steps()["l0"].tolist()) == {39}
    assert set(layer.trace(x, resets=resets).memory_length_steps()["l0"].tolist()) == {6}
    keeping = layer_of(4, 7, zoneout=0.5).eval()
    keeping.load_state_dict(layer.state_dict())
    assert set(keeping.trace(x).memory_length_steps()["l0"].tolist()) == {77}  # z = 0.5 + 0.5 * 0.982


def test_a_frame_has_a_row_for_each_step_and_unit_of_each_sequence():
    layer = layer_of(4, 7, bidirectional=True)
    trace = layer.trace(torch.randn(5, 3, 4), lengths=[5, 0, 2])
    frame = trace.to_frame()
    assert frame.columns == ["layer", "sequence", "step", "unit", "update", "reset", "candidate", "hidden"]
    assert frame.height == 2 * (5 + 2) * 7
    assert frame["step"].min() == 1
    assert frame["unit"].min() == 0
    for row in frame.sample(20, seed=0).to_dicts():
        gates = trace[row["layer"]]
        for name in ("update", "reset", "candidate", "hidden"):
            assert row[name] == getattr(gates, name)[row["step"] - 1, row["sequence"], row["unit"]].item()


def test_the_plot_shows_the_values_units_in_order_of_memory():
    layer = layer_of(4, 7, num_layers=2)
    trace = layer.trace(torch.randn(5, 3, 4))
    order = trace.statistics()["l1"].order
    axes = [a for a in trace.plot(sequence=2, layer="l1").axes if a.images and a.get_ylabel()]
    assert [a.get_ylabel().split("\n")[0] for a in axes] == ["update gate z", "reset gate r", "candidate n", "state h"]
    for axis, name in zip(axes, ("update", "reset", "candidate", "hidden"), strict=True):
        shown = torch.from_numpy(axis.images[0].get_array().data.copy())
        torch.testing.assert_close(shown, getattr(trace["l1"], name)[:, 2].detach()[:, order].T)
    assert len([a for a in trace.plot().axes if a.images]) == 8
    for wrong in ({"sequence": 3}, {"layer": "l2"}):
        with pytest.raises(tidegate.errors.SettingsError, match="has"):
            trace.plot(**wrong)


def test_a_notebook_shows_sentences_and_a_picture():
    shown = layer_of(4, 7, bidirectional=True).trace(torch.randn(5, 3, 4))._repr_html_()
    assert "7 units: " in shown
    assert "l0_reverse" in shown
    assert '<img style="max-width: 100%" alt="gates over the steps" src="data:image/png;base64,' in shown


@pytest.mark.parametrize(("method", "module"), [("to_frame", "polars"), ("plot", "matplotlib")])
def test_without_the_extras_a_sentence_says_what_to_install(monkeypatch, method, module):
    trace = layer_of(4, 7).trace(torch.randn(5, 3, 4))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{method}\(\) needs {module}.*tidegate\[train\]"):
        getattr(trace, method)()
    if module == "matplotlib":
        monkeypatch.delitem(sys.modules, "tidegate.gates.pictures", raising=False)
        assert trace._repr_html_().startswith("<p><b>l0</b>: 7 units")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_can_be_drawn_and_framed(dtype):
    trace = layer_of(4, 7, dtype=dtype).trace(torch.randn(5, 3, 4, dtype=dtype))
    assert trace.to_frame()["update"].dtype == pl.Float32
    assert trace.plot().axes
    assert "data:image/png" in trace._repr_html_()


def test_a_trace_without_a_step_is_shown_as_text():
    trace = layer_of(4, 7).trace(torch.zeros(5, 2, 4), lengths=[0, 0])
    assert "There is no step in it." in trace._repr_html_()


def test_a_frame_keeps_the_order_of_many_layers_and_is_empty_for_an_empty_batch():
    trace = layer_of(4, 3, num_layers=12).trace(torch.randn(2, 1, 4))
    assert trace.to_frame()["layer"].unique(maintain_order=True).to_list() == [f"l{k}" for k in range(12)]
    empty = layer_of(4, 3).trace(torch.randn(2, 0, 4)).to_frame()
    assert empty.height == 0
    assert empty.columns == trace.to_frame().columns
