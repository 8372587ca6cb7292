"""A run as a torch.export archive: a graph of ATen operators that PyTorch alone loads.

The recurrence is `aten.gru`, the operator under `torch.nn.GRU`, one call a layer and direction. torch.export would not leave
it whole: it unrolls the loop over time, and with it the number of steps becomes a constant of the program. So the export
sees an operator of our own, of which it knows the shapes alone, and afterwards `aten.gru` takes its place in the graph.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tidegate import convert
from tidegate.export.contract import Contract, contract
from tidegate.export.parts import DESCRIPTION, Exported, Parts, check_core, feed_initial_h
from tidegate.export.probe import Runtime, batch, checked, running
from tidegate.files import replacing


def write(parts: Parts, path: Path) -> Exported:
    """Write the run as a program of PyTorch's.

    What goes in, by keyword, and comes out, a dict, is what `tidegate.export` says, with `codes` in place of tokens, as
    a PyTorch program knows no text: a column's code is 1 + the place of its value in the vocabulary, and 0 for any other
    and for none. `numbers` and `codes` are not there where the run has no such columns. prediction is the number of the
    class [B, T, K] or [B, 1], 0 or 1 for labels, a float64 in the table's units for numbers, [B, T, K, outputs] or
    [B, 1, outputs]; probabilities has the shape of scores. The vocabularies, the names of the columns and of the classes are
    in the archive's extra file "tidegate.json".

    The archive is loaded and run beside the model before it is written.

    Raises SettingsError for a core that `torch.nn.GRU` can't be, TidegateError where the archive would give other numbers, and
    DiskError; nothing is written then.
    """
    check_core(parts, "pt2", "torch.nn.GRU")
    agreed = contract(parts.spec, parts.preprocessing, codes=True)
    buffer = io.BytesIO()
    torch.export.save(_export(_Program(parts).eval(), agreed), buffer, extra_files={DESCRIPTION: parts.to_json()})
    notes = [f"torch.export.load({path.name!r}).module()({', '.join(agreed.inputs)}) by keyword."]
    notes += [*feed_initial_h(parts, DESCRIPTION), _checked(parts, agreed, buffer)]
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return Exported(path, notes=notes)


def _checked(parts: Parts, agreed: Contract, buffer: io.BytesIO) -> str:
    probe, runtime = batch(parts), Runtime(f"PyTorch {torch.__version__}", "torch")
    every = probe.inputs(parts.missing_text)
    with running(runtime), torch.no_grad():
        buffer.seek(0)
        program = torch.export.load(buffer).module()
        scores = program(**{name: torch.from_numpy(every[name]) for name in agreed.inputs})["scores"].numpy()
    return checked(parts, probe, runtime, scores)


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


def _export(program: _Program, agreed: Contract) -> torch.export.ExportedProgram:
    open_axes: Any = {"B": torch.export.Dim("B"), "T": torch.export.Dim("T")}
    sizes: Any = {"B": 3, "T": 5}  # that no weight has, so that the export can't take one for the other
    example, shapes = {}, {}
    for name, (dtype, axes) in agreed.inputs.items():
        example[name] = torch.zeros([sizes.get(axis, axis) for axis in axes], dtype=getattr(torch, dtype))
        shapes[name] = {k: open_axes[axis] for k, axis in enumerate(axes) if axis in open_axes}
    example["lengths"] += sizes["T"]
    exported = torch.export.export(program, (), example, dynamic_shapes=shapes, strict=False)
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
    cuts: Tensor

    def __init__(self, parts: Parts):
        super().__init__()
        pre, self.spec = parts.preprocessing, parts.spec
        self.task = pre.target.task
        core = convert.to_torch(parts.core)
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
        if self.task == "labels":
            self.register_buffer("cuts", torch.tensor(pre.target.cuts))

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
            output = torch.cat([self.pool(name, output, h_n, lengths) for name in spec.poolings], dim=-1)
        scores = self.head(output).unflatten(-1, (spec.ahead, spec.outputs))
        if spec.residual is not None:
            scores = scores + x[..., list(spec.residual)].unsqueeze(-2)  # the numbers come first in x
        return {**self.meaning(scores), "scores": scores, "h_n": h_n}

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

    def pool(self, name: str, output: Tensor, h_n: Tensor, lengths: Tensor) -> Tensor:
        """output [B, T, D*H], h_n [layers*D, B, H] -> [B, D*H]."""
        if name == "last":
            D = self.spec.directions
            return torch.cat([h_n[k] for k in range(len(self.names) - D, len(self.names))], dim=-1)
        inside = (torch.arange(output.shape[1], device=output.device) < lengths[:, None])[..., None]
        if name == "mean":
            return torch.where(inside, output, 0.0).sum(dim=1) / lengths[:, None]
        return torch.where(inside, output, -torch.inf).amax(dim=1)

    def meaning(self, scores: Tensor) -> dict[str, Tensor]:
        """What the scores say."""
        return MEANINGS[self.task](self, scores)


MEANINGS: dict[str, Callable[[_Program, Tensor], dict[str, Tensor]]] = {
    "class": lambda _, scores: {"prediction": scores.argmax(dim=-1), "probabilities": scores.softmax(dim=-1)},
    "labels": lambda program, scores: {"prediction": (scores > program.cuts).long(), "probabilities": scores.sigmoid()},
    "number": lambda program, scores: {"prediction": scores.double() * program.target_std + program.target_mean},
}


def _take(values: Tensor, steps: Tensor) -> Tensor:
    """values [B, T, N] at steps [B, S, 1]: [B, S, N]."""
    return values.gather(1, steps.expand(-1, -1, values.shape[2]))
