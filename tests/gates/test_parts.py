"""`trace.parts`: what gates are made of, held against the equations in float64 and against the trace itself."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import tidegate
from tidegate.errors import SettingsError
from tidegate.ops.gru import equations

ALONE = [
    {},
    {"reset": "before"},
    {"layer_norm": True},
    {"recurrent_dropout": 0.4},
    {"zoneout": 0.3},
    {"learn_initial_state": True},
    {"update_bias": 20},
    {"bias": False},
    {"layer_norm": True, "bias": False},
]
TOGETHER = {
    "reset": "before",
    "layer_norm": True,
    "recurrent_dropout": 0.4,
    "zoneout": 0.3,
    "learn_initial_state": True,
    "checkpoint_every": 4,
}
OPTIONS = [*ALONE, TOGETHER]


def layer_of(options, *, cell=tidegate.GRU, seed=0, **more):
    """A layer in float64 whose weights, gains and first states are all different and large enough to matter."""
    layer = cell(3, 5, num_layers=2, bidirectional=True, dtype=torch.float64, **more, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.8)
    return layer


def put_together(equations, parts):
    """h_t, and the gates by letter, of the parts."""
    stacked = list(parts.input.chunk(len(equations.gates), dim=-1))
    given = dict(zip(equations.gates, stacked, strict=True))
    if parts.state is None:
        v = given["n"]
        gates = {"z": torch.sigmoid(given["z"]), "n": torch.where(v >= 0, v + 0.5, torch.sigmoid(v))}
    else:
        state = dict(zip(equations.gates, parts.state.chunk(3, dim=-1), strict=True))
        r = torch.sigmoid(given["r"] + state["r"])
        through = state["n"] if equations.reset == "before" else r * state["n"]
        gates = {"r": r, "z": torch.sigmoid(given["z"] + state["z"]), "n": torch.tanh(given["n"] + through)}
    p, h = equations.zoneout, parts.before
    return p * h + (1 - p) * ((1 - gates["z"]) * gates["n"] + gates["z"] * h), gates


def check_against_trace(trace, index=0):
    for name, own in trace.sequence(index).items():
        h, gates = put_together(trace.equations, trace.parts(name, index))
        torch.testing.assert_close(h, own.hidden, rtol=1e-10, atol=1e-12)
        for letter, field in (("r", own.reset), ("z", own.update), ("n", own.candidate)):
            if letter in gates:
                torch.testing.assert_close(gates[letter], field, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gates_and_states_follow_from_the_parts(options):
    layer = layer_of(options)
    x, hx = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(4, 2, 5, dtype=torch.float64)
    for trace in (layer.trace(x), layer.trace(x, hx)):
        for index in (0, 1):
            check_against_trace(trace, index)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_parts_are_those_of_the_definitions_step(options):
    layer = layer_of(options)
    x = torch.randn(6, 1, 3, dtype=torch.float64)
    trace = layer.trace(x)
    for run, name in enumerate(trace):
        weights = list(layer.all_weights[run])
        if not layer.bias:
            weights[2:2] = [None, None]
        w_ih, w_hh, b_ih, b_hh, *gains = weights
        g_ih, g_hh = gains or (None, None)
        below = x[:, 0] if run < 2 else torch.cat([trace["l0"].hidden, trace["l0_reverse"].hidden], -1)[:, 0]
        parts = trace.parts(name)
        steps = reversed(range(6)) if run % 2 else range(6)
        h = layer.initial_state(1)[run]
        for t in steps:
            torch.testing.assert_close(parts.before[t], h[0])
            gates_x = equations.gates_of_x(below[t : t + 1], w_ih, b_ih, g_ih)
            torch.testing.assert_close(parts.input[t], gates_x[0])
            h, (*_, h_n) = equations.next_state(gates_x, h, w_hh, b_hh, layer.reset, g_hh, zone=layer.zoneout)
            torch.testing.assert_close(parts.state[t, 10:], h_n[0])
            torch.testing.assert_close(trace[name].hidden[t], h)


def test_the_parts_of_a_layer_norm_have_its_scale_and_its_biases():
    layer = layer_of({"layer_norm": True})
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    parts = layer.trace(x).parts("l0")
    sums = x[:, 0] @ layer.weight_ih_l0.T
    for first, end in ((0, 10), (10, 15)):  # r and z together, n by itself
        v = sums[:, first:end]
        v = (v - v.mean(1, keepdim=True)) / (v.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        expected = v * layer.weight_ln_ih_l0[first:end] + layer.bias_ih_l0[first:end]
        torch.testing.assert_close(parts.input[:, first:end], expected.detach())


@pytest.mark.parametrize("options", [{}, TOGETHER], ids=str)
@pytest.mark.parametrize("cell", [tidegate.GRU, tidegate.MinGRU])
def test_lengths_resets_and_every_layout_have_the_parts_of_their_sequence(cell, options):
    if cell is tidegate.MinGRU:
        options = {"learn_initial_state": True} if options else {}
    layer = layer_of(options, cell=cell)
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    resets = torch.tensor([[0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1]], dtype=torch.bool)
    trace = layer.trace(x, lengths=[6, 4, 2], resets=resets)
    for index in range(3):
        check_against_trace(trace, index)
    pieces = [x[:n, b] for b, n in enumerate((2, 6, 4))]
    packed = layer.trace(pack_sequence(pieces, enforce_sorted=False), torch.randn(4, 3, 5, dtype=torch.float64))
    nested = layer.trace(torch.nested.as_nested_tensor(pieces, layout=torch.jagged))
    for index in range(3):
        check_against_trace(packed, index)
        check_against_trace(nested, index)
    check_against_trace(layer.trace(x[:, 0], torch.randn(4, 5, dtype=torch.float64)))
    first = layer_of(options, cell=cell, batch_first=True).trace(x.transpose(0, 1))
    for index in range(3):
        check_against_trace(first, index)
        torch.testing.assert_close(first.parts("l1", index), layer.trace(x).parts("l1", index), rtol=0, atol=1e-12)


def test_a_mingru_has_no_state_part_and_two_gates():
    layer = layer_of({}, cell=tidegate.MinGRU)
    trace = layer.trace(torch.randn(6, 2, 3, dtype=torch.float64))
    parts = trace.parts("l1_reverse")
    assert parts.state is None
    assert parts.input.shape == (6, 10)
    assert (trace.equations.reset, trace.equations.candidate, trace.equations.gates) == (None, "g", "zn")
    check_against_trace(trace, 1)


def test_some_steps_have_the_parts_that_they_have_among_all():
    trace = layer_of(TOGETHER).trace(torch.randn(9, 2, 3, dtype=torch.float64))
    for name in trace:
        whole, some = trace.parts(name, 1), trace.parts(name, 1, slice(3, 6))
        for ours, theirs in zip(whole, some, strict=True):
            torch.testing.assert_close(ours[3:6], theirs)


def test_parts_are_plain_numbers():
    layer = tidegate.GRU(3, 5).to(torch.bfloat16)
    trace = layer.trace(torch.randn(4, 1, 3, dtype=torch.bfloat16))
    for v in trace.parts("l0"):
        assert (v.dtype, v.requires_grad) == (torch.float32, False)


def test_no_steps_have_no_parts():
    for cell in (tidegate.GRU, tidegate.MinGRU):
        parts = cell(3, 5).trace(torch.zeros(0, 2, 3)).parts("l0")
        assert [len(v) for v in parts if v is not None] == [0] * (3 if cell is tidegate.GRU else 2)


@pytest.mark.parametrize("options", [{"recurrent_dropout": 0.5}, {"dropout": 0.5, "num_layers": 2}])
def test_after_dropout_the_parts_are_refused_in_training_alone(options):
    layer = tidegate.GRU(3, 5, **options)
    x = torch.randn(4, 1, 3)
    with pytest.raises(SettingsError, match=r"dropout acted on what the gates read.*layer\.eval\(\)"):
        layer.trace(x).parts("l0")
    layer.eval()
    assert len(layer.trace(x).parts("l0").before) == 4


def test_a_sequence_or_a_layer_that_is_not_there_is_told():
    trace = tidegate.GRU(3, 5).trace(torch.randn(4, 2, 3))
    with pytest.raises(SettingsError, match="the trace has 2 sequences, 0 to 1"):
        trace.parts("l0", 2)
    with pytest.raises(KeyError, match="No layer 'l7' in this trace"):
        trace.parts("l7")
