"""Models as people write them, with GRUs and cells inside: `torch.onnx.export` gives ONNX's GRU, and in ONNX Runtime their numbers for
other batches and lengths than those of the example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tidegate
from tests.helpers.torch_onnx import check, session_of

pytestmark = pytest.mark.peers


class Take(nn.Module):
    """What people put behind a GRU in Sequential."""

    def forward(self, results):
        return results[0]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 4)
        self.gru = tidegate.GRU(4, 5, num_layers=2, batch_first=True, dropout=0.5, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, tokens):
        return self.head(self.gru(self.embedding(tokens))[0]).log_softmax(-1)


class BothEnds(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        _, h_n = self.gru(x)
        return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True, bias=False)

    def forward(self, x):
        output, _ = self.gru(x)
        return torch.cat([output.max(1).values, output.mean(1), output[:, -1]], dim=1)


class WithState(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, num_layers=2)

    def forward(self, x, h_0):
        return self.gru(x, h_0)


class Packed(nn.Module):
    def __init__(self, sorted_first):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True)
        self.sorted_first = sorted_first

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.sorted_first)
        output, h_n = self.gru(packed)
        return pad_packed_sequence(output, batch_first=True)[0], h_n


class Lengths(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x, lengths):
        return self.gru(x, lengths=lengths)


class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True)

    def forward(self, x, lengths):
        mask = torch.arange(x.size(1)).unsqueeze(0) < lengths.unsqueeze(1)
        output, _ = self.gru(x, mask=mask)
        return (output * mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)


class Sentences(nn.Module):
    """A GRU over words under a GRU over sentences, with attention on both (hierarchical attention)."""

    def __init__(self):
        super().__init__()
        self.words, self.sentences = (tidegate.GRU(n, 5, batch_first=True, bidirectional=True) for n in (4, 10))
        self.scores = nn.ModuleList(nn.Linear(10, 1) for _ in range(2))

    def forward(self, x):  # [B, sentences, T, I]
        B, S, T, I = x.shape
        output = self.words(x.reshape(B * S, T, I))[0]
        output = (self.scores[0](output).softmax(1) * output).sum(1).view(B, S, 10)
        output = self.sentences(output)[0]
        return (self.scores[1](output).softmax(1) * output).sum(1)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.gru = tidegate.GRU(6, 5, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.gru(self.convolution(x.transpose(1, 2)).transpose(1, 2))[0]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(tidegate.GRU(4, 4, batch_first=True) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + layer(x)[0])
        return x


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True)

    def forward(self, x, other):
        return (self.gru(x)[1][-1] - self.gru(other)[1][-1]).abs().sum(-1)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.relu = tidegate.GRU(4, 5, batch_first=True), nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.relu(self.gru(x)[0]))


class Halves(nn.Module):
    """One sequence in two calls, the state handed on."""

    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True, learn_initial_state=True)
        nn.init.normal_(self.gru.initial_h)

    def forward(self, x):
        first, h = self.gru(x[:, :3])
        return torch.cat([first, self.gru(x[:, 3:], h)[0]], dim=1)


class Papers(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, num_layers=2, reset="before", bidirectional=True)

    def forward(self, x):
        return self.gru(x)


class Alone(nn.Module):
    """[T, I], without a batch."""

    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5)

    def forward(self, x):
        return self.gru(x)


class CellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([tidegate.GRUCell(4, 5), tidegate.GRUCell(5, 5, bias=False)])

    def forward(self, x):
        states: list[Any] = [None, None]
        outputs = []
        for x_t in x.unbind(1):
            for k, cell in enumerate(self.cells):
                x_t = states[k] = cell(x_t, states[k])
            outputs.append(x_t)
        return torch.stack(outputs, dim=1)


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = tidegate.GRU(4, 5, batch_first=True), tidegate.GRUCell(4, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        h, y, outputs = self.encoder(x)[1][0], x[:, -1], []
        for _ in range(4):
            h = self.decoder(y, h)
            y = self.head(h)
            outputs.append(y)
        return torch.stack(outputs, dim=1)


class Attention(nn.Module):
    """A decoder of single steps of a layer that looks back at what the encoder gave (Bahdanau et al. 2015)."""

    def __init__(self):
        super().__init__()
        self.encoder = tidegate.GRU(4, 5, batch_first=True, bidirectional=True)
        self.decoder, self.query = tidegate.GRU(10, 5, batch_first=True), nn.Linear(5, 10)

    def forward(self, x):
        keys, h_n = self.encoder(x)
        h, outputs = h_n[:1], []
        for _ in range(3):
            weights = (keys @ self.query(h[-1]).unsqueeze(-1)).softmax(1)
            output, h = self.decoder((weights * keys).sum(1, keepdim=True), h)
            outputs.append(output)
        return torch.cat(outputs, dim=1)


class Forecast(nn.Module):
    """Steps of `layer.step`, each fed with the last one's answer."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = tidegate.GRU(2, 5, num_layers=2, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        output, state = self.gru(x)
        y, outputs = self.head(output[:, -1]), []
        for _ in range(3):
            outputs.append(y)
            h, state = self.gru.step(y, state)
            y = self.head(h)
        return torch.stack(outputs, dim=1)


class Graph(nn.Module):
    """Messages along edges, and a cell at every node (gated graph networks)."""

    def __init__(self):
        super().__init__()
        self.messages, self.cell = nn.Linear(5, 4), tidegate.GRUCell(4, 5)

    def forward(self, nodes, edges):
        for _ in range(3):
            nodes = self.cell(edges @ self.messages(nodes), nodes)
        return nodes


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = tidegate.GRU(4, 5, batch_first=True)
        nn.utils.parametrizations.weight_norm(self.gru, "weight_hh_l0")

    def forward(self, x):
        return self.gru(x)[0]


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    given: Callable[[int, int], tuple[Tensor, ...]]  # of B and T
    axes: list[dict[int, str]]  # which axes of each input are open
    exporters: tuple[bool, ...] = (True, False)  # dynamo


X = [{0: "B", 1: "T"}]
BATCH = [{0: "B"}]


def batch_first(B, T, I=4):
    return (torch.randn(B, T, I),)


def with_lengths(B, T):
    lengths = torch.arange(B) * 3 % T + 1
    lengths[0] = T
    return torch.randn(B, T, 4), lengths.sort(descending=True).values


MODELS = {
    "Sequential": Case(
        lambda: nn.Sequential(tidegate.GRU(4, 5, batch_first=True), Take(), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        batch_first,
        X,
    ),
    "a tagger": Case(Tagger, lambda B, T: (torch.randint(30, (B, T)),), X),
    "both ends": Case(BothEnds, batch_first, X),
    "pooled": Case(Pooled, batch_first, X),
    "h_0": Case(WithState, lambda B, T: (torch.randn(T, B, 4), torch.randn(2, B, 5)), [{0: "T", 1: "B"}, {1: "B"}]),
    # (With dynamo=True neither this layer nor torch.nn.GRU takes a PackedSequence.)
    "packed": Case(lambda: Packed(False), with_lengths, [*X, *BATCH], (False,)),
    "packed, sorted": Case(lambda: Packed(True), with_lengths, [*X, *BATCH], (False,)),
    "lengths": Case(Lengths, with_lengths, [*X, *BATCH]),
    "a mask": Case(Mask, with_lengths, [*X, *BATCH]),
    "sentences of words": Case(Sentences, lambda B, T: (torch.randn(B, 3, T, 4),), [{0: "B", 2: "T"}]),
    "convolutions": Case(Convolutions, batch_first, X),
    "residual": Case(Residual, batch_first, X),
    "twins": Case(Twins, lambda B, T: (torch.randn(B, T, 4), torch.randn(B, T, 4)), X * 2),
    "in place": Case(InPlace, batch_first, X),
    "halves": Case(Halves, batch_first, X),
    "papers": Case(Papers, lambda B, T: (torch.randn(T, B, 4),), [{0: "T", 1: "B"}]),
    "alone": Case(Alone, lambda B, T: (torch.randn(T, 4),), [{0: "T"}]),
    "cells in a loop": Case(CellLoop, lambda B, T: (torch.randn(B, 4, 4),), BATCH),
    "encoder and decoder": Case(EncoderDecoder, batch_first, X),
    "attention": Case(Attention, batch_first, X),
    "a forecast": Case(Forecast, lambda B, T: batch_first(B, T, 2), X),
    "a graph": Case(Graph, lambda B, T: (torch.randn(B, 5), torch.rand(B, B)), [{0: "B"}, {0: "B", 1: "B"}]),
    "weight norm": Case(Normed, batch_first, X),
}


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        pytest.param(name, dynamo, id=f"{name}, {'dynamo' if dynamo else 'tracing'}")
        for name, case in MODELS.items()
        for dynamo in case.exporters
    ],
)
def test_the_file_has_onnx_s_gru_and_the_numbers_of_the_model(name, dynamo):
    case = MODELS[name]
    torch.manual_seed(0)
    model = case.make().eval()
    session, operators = session_of(model, case.given(3, 7), dynamo, case.axes, operators=True)
    assert "GRU" in operators
    assert set(operators.values()) <= {"", "ai.onnx"}  # ONNX's own
    for B, T in ((3, 7), (2, 5), (6, 11)):
        check(model, session, *case.given(B, T))
