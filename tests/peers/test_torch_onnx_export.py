"""`torch.onnx.export` of a model of one's own, by both exporters, gives in ONNX Runtime what the model gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tidegate
from tests.helpers.torch_onnx import check, session_of
from tidegate.errors import SettingsError
from tidegate.export.onnx import decompositions

pytestmark = pytest.mark.peers

EXPORTERS = [True, False]


class Words(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 4)
        self.gru = tidegate.GRU(4, 5, **options)
        self.linear = nn.Linear(5 * (1 + self.gru.bidirectional), 2)

    def forward(self, tokens):
        output, h_n = self.gru(self.embedding(tokens))
        return self.linear(output), h_n


class Padded(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.gru = tidegate.GRU(4, 5, batch_first=True, **options)

    def forward(self, x, h_0, lengths):
        return self.gru(x, h_0, lengths=lengths)


class Steps(nn.Module):
    def __init__(self, make, **options):
        super().__init__()
        torch.manual_seed(0)
        self.part = make(4, 5, **options)

    def forward(self, x, h):
        return self.part.step(x, h) if isinstance(self.part, tidegate.GRU) else self.part(x, h)


OPTIONS = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"reset": "before"},
    {"learn_initial_state": True},
    {"backend": "torch"},
    {"backend": "reference", "batch_first": True},
    {"checkpoint_every": 2},
]


@pytest.mark.parametrize("dynamo", EXPORTERS, ids=["dynamo", "tracing"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_of_ones_own_gives_in_onnx_runtime_what_it_gives_for_every_t_and_b(options, dynamo):
    model = Words(**options)
    session = session_of(model, (torch.randint(30, (3, 7)),), dynamo, [{0: "one", 1: "two"}])
    for shape in ((3, 7), (5, 11), (2, 2)):
        check(model, session, torch.randint(30, shape))


@pytest.mark.parametrize("dynamo", EXPORTERS, ids=["dynamo", "tracing"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "reset": "before"}], ids=str)
def test_lengths_and_a_state_are_inputs_of_the_file(options, dynamo):
    model = Padded(**options)
    runs = len(model.gru.all_weights)

    def given(*lengths, T):
        x = torch.randn(len(lengths), T, 4)
        return x, torch.randn(runs, len(lengths), 5), torch.tensor(lengths)

    axes = [{0: "B", 1: "T"}, {1: "B"}, {0: "B"}]
    session = session_of(model, given(3, 7, 0, T=7), dynamo, axes)
    for call in (given(3, 7, 0, T=7), given(2, 9, 1, 0, 5, T=11)):
        check(model, session, *call)


@pytest.mark.parametrize("dynamo", EXPORTERS, ids=["dynamo", "tracing"])
@pytest.mark.parametrize("make", [tidegate.GRUCell, tidegate.GRU])
def test_a_cell_and_a_single_step_are_written_too(make, dynamo):
    model = Steps(make)
    one = (5,) if make is tidegate.GRUCell else (1, 5)

    def given(B):
        shape = (B, 5) if make is tidegate.GRUCell else (1, B, 5)
        return torch.randn(B, 4), torch.randn(shape)

    session = session_of(model, given(3), dynamo, [{0: "B"}, {len(one) - 1: "B"}])
    for B in (3, 6):
        check(model, session, *given(B))


@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_half_types_are_computed_in_float32(dtype):
    model = Steps(tidegate.GRU).to(dtype).eval()
    given = torch.randn(3, 4).to(dtype), torch.randn(1, 3, 5).to(dtype)
    session = session_of(model, given, False, [{0: "B"}, {1: "B"}])
    with torch.no_grad():
        expected = model(*given)
    found = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), given, strict=True)})
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b.astype(np.float32), a.float().numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"zoneout": 0.2}], ids=str)
def test_what_onnx_lacks_is_refused_with_the_way_out(options):
    name = next(iter(options))
    model, given = Words(**options), (torch.randint(30, (3, 7)),)
    with pytest.raises(SettingsError, match=rf"ONNX's GRU has no {name}\. .*write_layer"):
        session_of(model, given, False, [{0: "one", 1: "two"}])
    with pytest.raises(Exception, match="ONNX's GRU has no"):
        session_of(model, given, True, [{0: "one", 1: "two"}])


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"zoneout": 0.2, "bidirectional": True}], ids=str)
def test_what_onnx_lacks_is_written_step_by_step_for_a_fixed_number_of_steps(options):
    model = Words(**options)
    session = session_of(model, (torch.randint(30, (3, 7)),), True, [{}])
    check(model, session, torch.randint(30, (3, 7)))


# ------------------------------------------------------------------------------------------- a program that was exported before


def program_of(model, given, axes):
    shapes = tuple({axis: torch.export.Dim(name) for axis, name in each.items()} for each in axes)
    return torch.export.export(model.eval(), given, dynamic_shapes=shapes).run_decompositions(decompositions())


def test_an_exported_program_is_written_after_one_line():
    model = Padded(num_layers=2, bidirectional=True, reset="before")

    def given(*lengths, T):
        return torch.randn(len(lengths), T, 4), torch.randn(4, len(lengths), 5), torch.tensor(lengths)

    program = program_of(model, given(3, 7, 0, T=7), [{0: "B", 1: "T"}, {1: "B"}, {0: "B"}])
    session = session_of(program, None, True, [{}] * 3)
    for call in (given(3, 7, 0, T=7), given(2, 9, 1, 0, 5, T=11)):
        check(model, session, *call)


def test_a_cell_and_a_layer_norm_of_a_fixed_number_of_steps_too():
    cell, words = Steps(tidegate.GRUCell), Words(layer_norm=True)
    program = program_of(cell, (torch.randn(3, 4), torch.randn(3, 5)), [{0: "B"}, {0: "B"}])
    check(cell, session_of(program, None, True, [{}] * 2), torch.randn(6, 4), torch.randn(6, 5))
    program = program_of(words, (torch.randint(30, (3, 7)),), [{}])
    check(words, session_of(program, None, True, [{}]), torch.randint(30, (3, 7)))


def test_what_onnx_lacks_is_refused_in_a_program_with_open_steps():
    with pytest.raises(SettingsError, match=r"ONNX's GRU has no layer_norm\. Export a program with a fixed number"):
        program_of(Words(layer_norm=True), (torch.randint(30, (3, 7)),), [{0: "one", 1: "two"}])
