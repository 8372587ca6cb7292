"""A run as a torch.export archive: a graph of ATen operators that PyTorch alone loads.

The recurrence is `aten.gru`, the operator under `torch.nn.GRU`, one call a layer and direction. torch.export would not leave
it whole: it unrolls the loop over time, and with it the number of steps becomes a constant of the program. So the export
sees an operator of our own, of which it knows the shapes alone, and afterwards `aten.gru` takes its place in the graph.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tidegate import convert
from tidegate.errors import SettingsError
from tidegate.export.parts import DESCRIPTION, Exported, Parts
from tidegate.files import replacing


def write(parts: Parts, path: Path) -> Exported:
    """Write the run as a program of PyTorch's.

    What goes in, by keyword, and comes out, a dict, is what `tidegate.export` says, with `codes` in place of tokens, as
    a PyTorch program knows no text: a column's code is 1 + the place of its value in the vocabulary, and 0 for any other
    and for none. `numbers` and `codes` are not there where the run has no such columns. prediction is the number of the
    class [B, T, K] or [B, 1], 0 or 1 for labels, a float64 in the table's units for numbers, [B, T, K, outputs] or
    [B, 1, outputs]; probabilities has the shape of scores. The vocabularies, the names of the columns and of the classes are
    in the archive's extra file "tidegate.json".

    Raises SettingsError for a core that `torch.nn.GRU` can't be, and DiskError; nothing is written then.
    """
    program = _Program(parts).eval()
    buffer = io.BytesIO()
    torch.export.save(_export(program), buffer, extra_files={DESCRIPTION: parts.to_json()})
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    names = [name for name in ("numbers", "codes") if name in program.inputs]
    return Exported(
        path, notes=[f"torch.export.load({path.name!r}).module()({', '.join(names)}, lengths, h_0) by keyword."]
    )


# ------------------------------------------------------------------------------------------------ the recurrence


@torch.library.custom_op("tidegate_export::gru", mutates_args=())
def _gru(x: Tensor, h_0: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One layer, one direction: x [B, T, I], h_0 [1, B, H] -> output [B, T, H], h_n [1, B, H]."""
    return torch.ops.aten.gru.input(x, h_0, weights, *_options(weights))


@_gru.register_fake
def _(x: Tensor, h_0: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], h_0.shape[2]), torch.empty_like(h_0)


def _options(weights: Any) -> tuple[Any, ...]:
    # has_biases, num_layers, dropout, train, bidirectional, batch_first
    return len(weights) == 4, 1, 0.0, False, False, True


def _export(program: _Program) -> torch.export.ExportedProgram:
    # Sizes that no weight has, so that the export can't take one for the other.
    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    inputs = program.example(B=3, T=5)
    sizes = {"numbers": {0: B, 1: T}, "codes": {0: B, 1: T}, "lengths": {0: B}, "h_0": {1: B}}
    exported = torch.export.export(
        program, (), inputs, dynamic_shapes={name: sizes[name] for name in inputs}, strict=False
    )
    for node in exported.graph.nodes:
        if node.target == torch.ops.tidegate_export.gru.default:
            node.target = torch.ops.aten.gru.input
            node.args = (*node.args, *_options(node.args[2]))
    exported.graph_module.recompile()
    return exported


# ------------------------------------------------------------------------------------------------ the program


class _Program(nn.Module):
    """The run with what is around it, batch first: the columns' encoding, the model and what its scores mean."""

    mean: Tensor
    std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, parts: Parts):
        super().__init__()
        pre, self.spec = parts.preprocessing, parts.spec
        self.task = pre.target.task
        core = _plain(parts)
        # Not the layer itself, whose list of its weights torch.export would take for an assignment; its names stay.
        self.core = nn.Module()
        for name, weight in core.named_parameters():
            self.core.register_parameter(name, nn.Parameter(weight.detach().clone()))
        self.names = list(core._all_weights)  # of each layer and direction
        self.embeddings = nn.ModuleList(
            nn.Embedding.from_pretrained(torch.from_numpy(e), freeze=False) for e in parts.embeddings
        )
        self.head = nn.Linear(parts.head_weight.shape[1], parts.head_weight.shape[0], device="meta").to_empty(
            device="cpu"
        )
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(parts.head_weight))
            self.head.bias.copy_(torch.from_numpy(parts.head_bias))
        float64 = lambda values: torch.tensor(list(values), dtype=torch.float64)  # noqa: E731
        self.register_buffer("mean", float64(c.mean for c in pre.numbers))
        self.register_buffer("std", float64(c.std for c in pre.numbers))
        self.masked = [k for k, c in enumerate(pre.numbers) if c.mask]
        if self.task == "number":
            self.register_buffer("target_mean", float64(pre.target.means))
            self.register_buffer("target_std", float64(pre.target.stds))
        self.inputs = [*["numbers"][: len(pre.numbers)], *["codes"][: len(pre.tokens)], "lengths", "h_0"]

    def example(self, B: int, T: int) -> dict[str, Tensor]:
        spec = self.spec
        every = {
            "numbers": torch.zeros(B, T, len(self.mean), dtype=torch.float64),
            "codes": torch.zeros(B, T, len(self.embeddings), dtype=torch.int64),
            "lengths": torch.full((B,), T, dtype=torch.int64),
            "h_0": torch.zeros(len(self.names), B, spec.hidden_size),
        }
        return {name: every[name] for name in self.inputs}

    def forward(
        self, *, lengths: Tensor, h_0: Tensor, numbers: Tensor | None = None, codes: Tensor | None = None
    ) -> dict[str, Tensor]:
        spec = self.spec
        parts = [] if numbers is None else [self.encode(numbers)]
        if codes is not None:
            parts += [embedding(codes[..., k]) for k, embedding in enumerate(self.embeddings)]
        x = torch.cat(parts, dim=-1)  # [B, T, E]
        output, h_n = self.recur(x, lengths, h_0)
        if spec.per == "sequence":
            output = self.pool(output, h_n, lengths)
        scores = self.head(output).unflatten(-1, (spec.ahead, spec.outputs))
        if spec.residual is not None:
            scores = scores + x[..., list(spec.residual)].unsqueeze(-2)  # the numbers come first in x
        return {**self.read(scores), "scores": scores, "h_n": h_n}

    def encode(self, numbers: Tensor) -> Tensor:
        """numbers [B, T, F] in the table's units -> [B, T, F + masks]."""
        # In float64 up to here: of 1 000 050 - 1 000 000 a float32 would leave three digits.
        values = ((numbers - self.mean) / self.std).float()
        missing = ~values.isfinite()
        return torch.cat([values.masked_fill(missing, 0.0), missing[..., self.masked].float()], dim=-1)

    def recur(self, x: Tensor, lengths: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, E], h_0 [layers*D, B, H] -> output [B, T, D*H], h_n [layers*D, B, H], where padding changes nothing."""
        last = (lengths - 1).clamp(min=0)[:, None, None]  # [B, 1, 1]
        any_step = lengths[:, None] > 0  # a sequence that has ended, among others that go on, keeps its state
        steps = torch.arange(x.shape[1], device=x.device)[:, None]
        # Which step of its sequence the second direction reads at a step: the last first, and padding where it is.
        turned = torch.where(steps <= last, last - steps, steps)  # [B, T, 1]
        D, states = self.spec.directions, []
        for layer in range(0, len(self.names), D):
            sides = []
            for run in range(layer, layer + D):
                weights = [getattr(self.core, name) for name in self.names[run]]
                read = x if run == layer else _take(x, turned)
                output, _ = _gru(read, h_0[run : run + 1], weights)
                # Not the operator's own last state, which has read the padding.
                states.append(torch.where(any_step, _take(output, last)[:, 0], h_0[run]))
                sides.append(output if run == layer else _take(output, turned))
            x = torch.cat(sides, dim=-1)
        return x, torch.stack(states)

    def pool(self, output: Tensor, h_n: Tensor, lengths: Tensor) -> Tensor:
        """output [B, T, D*H], h_n [layers*D, B, H] -> [B, D*H]."""
        if self.spec.pooling == "last":
            D = self.spec.directions
            return torch.cat([h_n[k] for k in range(len(self.names) - D, len(self.names))], dim=-1)
        inside = (torch.arange(output.shape[1], device=output.device) < lengths[:, None])[..., None]
        if self.spec.pooling == "mean":
            return torch.where(inside, output, 0.0).sum(dim=1) / lengths[:, None]
        return torch.where(inside, output, -torch.inf).amax(dim=1)

    def read(self, scores: Tensor) -> dict[str, Tensor]:
        """What the scores say."""
        if self.task == "class":
            return {"prediction": scores.argmax(dim=-1), "probabilities": scores.softmax(dim=-1)}
        if self.task == "labels":
            return {"prediction": (scores > 0).long(), "probabilities": scores.sigmoid()}
        return {"prediction": scores.double() * self.target_std + self.target_mean}


def _take(values: Tensor, steps: Tensor) -> Tensor:
    """values [B, T, N] at steps [B, S, 1]: [B, S, N]."""
    return values.gather(1, steps.expand(-1, -1, values.shape[2]))


def _plain(parts: Parts) -> nn.GRU:
    """The core as what `aten.gru` computes."""
    core = copy.copy(parts.core)
    core.recurrent_dropout = 0.0  # falls in training alone
    said = convert.lacks(core, "torch")
    if not said:
        return convert.to_torch(core)
    advice = "Train a run without"
    if core.reset == "before":
        advice = "to='onnx' and to='keras' can compute reset='before'; or train a run without what is named"
    raise SettingsError(
        f"to='pt2': the core of {parts.run.name}: torch.nn.GRU has no {' and no '.join(said)}. {advice}."
    )
