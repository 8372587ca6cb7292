"""SequenceModel: feature encoder -> recurrent core -> linear head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tidegate.errors import SettingsError
from tidegate.gates.trace import GateTrace
from tidegate.model.cells import CELLS, gated, state_of
from tidegate.model.pooling import POOLINGS
from tidegate.model.spec import ModelSpec
from tidegate.nn.layouts import RecurrentLayer
from tidegate.ops.affine import affine

EMBEDDING_STD = 0.3


def default_embedding_dim(vocabulary: int) -> int:
    """Length of the vector of a word: 2 for a yes/no column, 16 for a hundred categories, at most 64 for words."""
    return int(min(64, max(2, round(1.6 * vocabulary**0.56))))


class Head(nn.Linear):
    """`nn.Linear`; without gradients in the native back end a row's bits are its own: see `tidegate.ops.affine`."""

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias)


class Traced(NamedTuple):
    """What `SequenceModel.trace` finds: what `forward` returns, what the core read, and its gates."""

    scores: Tensor
    state: Tensor
    encoded: Tensor
    gates: GateTrace


class SequenceModel(nn.Module):
    """A recurrent network over sequences of numbers and categories.

        e_t = [numbers_t ; E_1[code_1t] ; E_2[code_2t] ; ...]
        o_t = core(e_t)                      a cell of `tidegate.model.cells`; the identity for cell="none"
        y_t = W o_t + b                      per="step"
        y   = W pool(o_1 .. o_L) + b         per="sequence"; pool is the last output, the mean, the maximum, or all
                                             three side by side

    In training, dropout acts on the embeddings, between the layers and on what the head reads, and a word that was seen c
    times in the training rows is read as unknown with probability a / (a + c) (Kiperwasser and Goldberg 2016,
    arXiv:1603.04351, section 6), so that the unknown entry learns what a rare word is like.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, dim) for size, dim in zip(spec.vocabularies, spec.embedding_dims, strict=True)
        )
        for embedding in self.embeddings:
            # torch starts embeddings at a standard deviation of 1, which drowns what few updates of a rare word teach:
            # on SNIPS the span F1 falls from .91 to .88.
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)  # type: ignore[arg-type]
        self.drop = nn.Dropout(spec.dropout)
        self.core = CELLS[spec.cell].load().make(spec)
        self.head = Head(spec.read_width, spec.ahead * spec.outputs)
        self.noise = 0.0
        self.bf16 = False  # training multiplies in bfloat16: in the core
        self._unknown_rate: list[Tensor] = []

    def set_noise(self, *, word_dropout: float, counts: Sequence[Sequence[int]], numbers: float) -> None:
        """What training adds to the inputs: word dropout (see the class) and Gaussian noise on the numbers."""
        self.noise = numbers
        device = self.head.weight.device
        self._unknown_rate = []
        for seen in counts:
            rate = word_dropout / (word_dropout + torch.tensor([1, *seen], dtype=torch.float32))
            self._unknown_rate.append(rate.to(device) if word_dropout else torch.zeros(len(seen) + 1, device=device))

    def forward(
        self, numbers: Tensor, codes: Tensor, lengths: Tensor, state: Any = None, *, ends: bool = False
    ) -> tuple[Tensor, Any]:
        """Scores and the state after the last step: after step T, or, with `ends`, of each sequence after its own last step.

        numbers [T, B, F], codes [T, B, C], lengths [B] on the CPU, state: what an earlier call returned, or None.
        Scores: [T, B, K, outputs] a step, [B, 1, outputs] a sequence, with K = max(horizon, 1). Scores of padded
        steps are there and mean nothing.
        """
        output, state = self.recur(numbers, codes, lengths, state, ends=ends)
        return self._read(output, numbers, lengths), state

    def recur(
        self, numbers: Tensor, codes: Tensor, lengths: Tensor, state: Any = None, *, ends: bool = False
    ) -> tuple[Tensor, Any]:
        """`forward` up to what the head reads of every step [T, B, width], for callers that read it by the piece, with `score`."""
        return self._recur(self.encode(numbers, codes), lengths, state, ends=ends)

    def begin(self, before: tuple[Tensor, ...], fresh: Tensor) -> Any:
        """The state with which the rows of a batch begin: where `fresh`, the initial one, else what an earlier batch left in them.

        before: the parts of that [layers, B', H], B' ≥ B; none: all rows are fresh. fresh: [B] bool, on the CPU.
        """
        if not before or bool(fresh.all()):
            return None
        B, anew = len(fresh), fresh.to(before[0].device).unsqueeze(-1)
        core: Any = self.core
        initial = core.initial_state(B) if self.spec.core.learn_initial_state else before[0].new_zeros(())
        return state_of(tuple(torch.where(anew, initial, part[:, :B]) for part in before))

    @property
    def unknown_rates(self) -> list[Tensor]:
        """Of each column of codes, with which probability training reads each as unknown, [V]; empty: `set_noise` was not called."""
        return self._unknown_rate

    def encode(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """What the core reads: the numbers and the vectors of words and categories, side by side, [T, B, E]. In training
        with their noise and dropout.
        """
        parts = []
        if self.spec.number_width:
            if self.training and self.noise:
                numbers = numbers + self.noise * torch.randn_like(numbers)
            parts.append(numbers)
        for k, embedding in enumerate(self.embeddings):
            code = codes[..., k]
            if self.training and self._unknown_rate:
                rate = self._unknown_rate[k][code]
                code = torch.where(torch.rand_like(rate) < rate, 0, code)
            parts.append(self.drop(embedding(code)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def trace(self, numbers: Tensor, codes: Tensor, lengths: Tensor, state: Any = None) -> Traced:
        """What `forward` returns, with what the core read and the gates of every layer and direction on the way.

        Arguments and the numbers are those of `forward`. Gates and states past a sequence's end are 0.
        Raises SettingsError where the core has no gates to show.
        """
        if not CELLS[self.spec.cell].gates:
            raise SettingsError(no_gates(self.spec.cell))
        encoded = self.encode(numbers, codes)
        core: Any = self.core
        gates: GateTrace = core.trace(encoded, state, lengths=lengths)
        return Traced(self._read(gates.output, numbers, lengths), gates.h_n, encoded, gates)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In evaluation mode for as long as the block runs, then again in the mode it was in."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def scores(self, encoded: Tensor, lengths: Tensor, state: Any = None) -> Tensor:
        """The scores as a function of what the core reads (see `encode`), so that they can be derived by it."""
        output, _ = self._recur(encoded, lengths, state)
        return self._read(output, encoded[..., : self.spec.number_width], lengths)

    def read_of(self, encoded: Tensor, lengths: Tensor, state: Any = None, *, ends: bool = False) -> tuple[Tensor, Any]:
        """What the head reads of what the core reads, before dropout: of each step [T, B, width], or of sequences [B, width]; and
        the state, as `forward` has it.
        """
        output, state = self._recur(encoded, lengths, state, ends=ends)
        return self._pooled(output, lengths), state

    def _pooled(self, output: Tensor, lengths: Tensor) -> Tensor:
        if self.spec.per != "sequence":
            return output
        return POOLINGS[self.spec.pooling].whole(output, lengths.to(output.device), self.spec)

    def _read(self, output: Tensor, numbers: Tensor, lengths: Tensor) -> Tensor:
        """The head on the core's output."""
        output = self._pooled(output, lengths)
        if self.core is not None:  # without a recurrence the head reads the inputs themselves: numbers are not dropped
            output = self.drop(output)
        return self.score(output, numbers)

    def score(self, read: Tensor, numbers: Tensor) -> Tensor:
        """The head on what it reads, [..., width]: scores [..., K, outputs]. numbers [..., F]: of the same steps, from which a
        forecast with `residual` starts.
        """
        scores: Tensor = self.head(read).unflatten(-1, (self.spec.ahead, self.spec.outputs))
        if self.spec.residual is not None:
            scores = scores + numbers[..., list(self.spec.residual)].unsqueeze(-2)
        return scores

    def _recur(self, x: Tensor, lengths: Tensor, state: Any, *, ends: bool = False) -> tuple[Tensor, Any]:
        if self.core is None:
            return x, None
        if self.training and self.bf16:
            with torch.autocast(x.device.type, torch.bfloat16):
                return self._run_core(x, lengths, state, ends)
        return self._run_core(x, lengths, state, ends)

    def _run_core(self, x: Tensor, lengths: Tensor, state: Any, ends: bool) -> tuple[Tensor, Any]:
        core: Any = self.core
        # Forward in time padding comes last: it can't reach a step that counts, but it moves the state on.
        if not (self.spec.bidirectional or ends) or bool((lengths == x.shape[0]).all()):
            output, state = core(x, state)
            return output, state
        if isinstance(self.core, RecurrentLayer) and x.is_cpu:
            output, state = self.core(x, state, lengths=lengths)
            return output, state
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, state = core(packed, state)
        return nn.utils.rnn.pad_packed_sequence(output, total_length=x.shape[0])[0], state


def no_gates(cell: str) -> str:
    """Why a model of this cell can't be traced."""
    able = " or ".join(repr(name) for name in gated())
    return f"The cell is {cell!r}, which has no update and reset gate to look at. Take a model with the cell {able}."
