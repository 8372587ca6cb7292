"""One update of a model's weights: forward, loss, backward, clipping and Adam, by one of two roads.

`ByTorch` is the general one, of PyTorch's operators and autograd. On a CPU with the C++ kernels `ByKernels` does the same in a few
calls (docs/decisions/051): only the core and the pooling go through autograd, so that any cell can stand there; encoder, head,
loss and Adam are kernels of our own (`ops/update.py`). Both have the same optimiser's state, and a run may go on by either. `Sliced`
takes either one by the slice of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tidegate.data.batches import BatchSource
from tidegate.data.sequences import MISSING_CLASS
from tidegate.model import SequenceModel
from tidegate.model.tasks import Task
from tidegate.ops import update
from tidegate.trained.settings import CompleteSettings
from tidegate.training.checkpoint import Optimizer
from tidegate.training.lanes import Lanes
from tidegate.workers import Partial, here, tree_sum

_LARGEST_BLOCK = 31 * 2**20  # bytes: from 32 MB on glibc learns nothing of a block
_LONG = 0xFFFFFFFFFFFFFFFF


class Updates(Protocol):
    """A road. carried: with `carry_state`, the parts of the state that the last batch left in its rows, on which the next one goes
    on; none: all rows of the next one begin anew.
    """

    carried: tuple[Tensor, ...]

    @property
    def optimizer(self) -> Optimizer: ...

    def __call__(self, arguments: tuple[Tensor, ...], lr: float, key: int) -> tuple[float, int]:
        """One update by the batch of these arguments; its summed loss and how many targets it had. key: another one for each
        update of a training, of which all that is random may be a function.
        """


class Road(Updates, Protocol):
    """... of which the gradients of a part of a batch can be had by themselves."""

    parameters: list[Tensor]
    source: BatchSource
    model: SequenceModel

    def gradients_of(
        self, arguments: tuple[Tensor, ...], lanes: Lanes, key: int
    ) -> tuple[float, int, Sequence[Tensor | None]]:
        """The summed loss, the number of targets, and the gradients of that sum by `parameters`, None where one has no part in it.
        The next call may write to them.
        """

    def apply(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Clip, and move the weights."""


def updates_of(
    model: SequenceModel, source: BatchSource, task: Task, weights: Tensor | None, settings: CompleteSettings
) -> Updates:
    """The kernels' road where all of it can go there, else PyTorch's. weights: of the classes."""
    tensors = [*model.parameters(), source.numbers]
    kernels = (
        task.loss is not None
        and update.available(*tensors, source.codes)
        and all(t.dtype is torch.float32 for t in tensors)
        and _in_range(model, source)
    )
    road: Road = (ByKernels if kernels else ByTorch)(model, source, task, weights, settings)
    return road if settings.shards == 1 else Sliced(road, settings.shards)


def _in_range(model: SequenceModel, source: BatchSource) -> bool:
    """Whether all codes and classes are numbers of a row or a score that is there: kernels don't look."""
    codes, y = source.codes, source.y
    sizes = torch.tensor(model.spec.vocabularies, dtype=torch.int64)
    blocks = source.data.blocks
    good = all(bool(((some >= 0) & (some < sizes)).all()) for some in (codes[a:b] for a, b in blocks()))
    classes = [] if y is None else [y] if source.per_sequence else (y[a:b] for a, b in blocks())
    return (
        good
        and y is not None
        and update.available(y)
        and (y.dtype is not torch.int64 or all(bool((some < model.spec.outputs).all()) for some in classes))
    )


def _seed(key: int, device: torch.device) -> None:
    """`torch.manual_seed` for the devices that count: where there is no GPU it notes its stack for later, which takes as long as an update of a small model."""
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.manual_seed(key)


def _learned(model: SequenceModel) -> list[Tensor]:
    """The weights that aren't frozen. With all frozen there are no epochs, and so no update, but torch's optimisers take no
    empty list.
    """
    return [p for p in model.parameters() if p.requires_grad] or list(model.parameters())


class ByTorch:
    """PyTorch's operators, its autograd and its Adam."""

    def __init__(
        self, model: SequenceModel, source: BatchSource, task: Task, weights: Tensor | None, settings: CompleteSettings
    ):
        self.model, self.source, self.task, self.weights, self.settings = model, source, task, weights, settings
        self.parameters = _learned(model)
        fused = source.device.type in {"cpu", "cuda"}  # one kernel for all weights: half the time of an Adam step here
        kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
        self.optimizer = kind(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
        self.carried: tuple[Tensor, ...] = ()

    def __call__(self, arguments: tuple[Tensor, ...], lr: float, key: int) -> tuple[float, int]:
        lanes = Lanes.of(self.model, arguments, self.carried)
        loss, count = self._loss_of(arguments, lanes)
        self.carried = lanes.after
        self.apply(self._by_weights(loss / count.clamp(min=1)), lr)
        return float(loss.detach()), int(count)

    def gradients_of(
        self, arguments: tuple[Tensor, ...], lanes: Lanes, key: int
    ) -> tuple[float, int, Sequence[Tensor | None]]:
        _seed(key, self.source.device)  # of dropout and noise
        loss, count = self._loss_of(arguments, lanes)
        return float(loss.detach()), int(count), self._by_weights(loss)

    def apply(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()

    def _loss_of(self, arguments: tuple[Tensor, ...], lanes: Lanes) -> tuple[Tensor, Tensor]:
        batch = self.source.training_batch(arguments)
        state = lanes.begin(self.model)
        scores, state = self.model(batch.numbers, batch.codes, batch.lengths, state, ends=lanes.carried)
        lanes.end(state)
        assert batch.y is not None
        return self.task.loss_sum(scores, batch.y, self.weights)

    def _by_weights(self, loss: Tensor) -> Sequence[Tensor | None]:
        return torch.autograd.grad(loss, self.parameters, allow_unused=True)


class ByKernels:
    """Our kernels; autograd for the core alone."""

    def __init__(
        self, model: SequenceModel, source: BatchSource, task: Task, weights: Tensor | None, settings: CompleteSettings
    ):
        self.model, self.source, self.task, self.weights = model, source, task, weights
        self.clip = settings.clip or 0.0
        self.carried: tuple[Tensor, ...] = ()
        self.parameters = _learned(model)
        self.optimizer = Adam(self.parameters, weight_decay=settings.weight_decay)
        words: list[Tensor] = [*model.embeddings.parameters()]  # (each has one weight)
        rates = model.unknown_rates if settings.word_dropout else []
        self.encoding = update.Encoding(words, rates, [w.requires_grad for w in words])
        self.core = [p for p in model.core.parameters() if p.requires_grad] if model.core is not None else []
        self.residual = None if model.spec.residual is None else torch.tensor(model.spec.residual)
        # In the order of `model.parameters()`: embeddings, core, head.
        self.embeddings = [g for g in self.encoding.gradients if g is not None]
        # glibc gives memory back to the system as soon as more than twice the largest block that was ever returned is free at
        # its end, and each update would take its pages anew: a tenth of an update of SNIPS. After this block of the largest
        # size that counts, never touched, it keeps 64 MB.
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)

    def __call__(self, arguments: tuple[Tensor, ...], lr: float, key: int) -> tuple[float, int]:
        numbers, codes, y = self.cut(arguments)
        lanes = Lanes.of(self.model, arguments, self.carried)
        loss, count, gradients = self.gradients(numbers, codes, arguments[1], y, key, lanes)
        self.carried = lanes.after
        self.apply(gradients, lr)
        return loss, count

    def gradients_of(
        self, arguments: tuple[Tensor, ...], lanes: Lanes, key: int
    ) -> tuple[float, int, Sequence[Tensor | None]]:
        _seed(key, self.source.device)  # of noise, and of what the core draws
        numbers, codes, y = self.cut(arguments)
        return self.gradients(numbers, codes, arguments[1], y, key, lanes, mean=False)

    def apply(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        self.optimizer.step(gradients, lr, self.clip)

    def cut(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers, codes and targets of `BatchSource.training_batch`, the same, in one pass."""
        source, (starts, lengths, limits, owners) = self.source, arguments[:4]
        read = source.readable(starts, lengths, limits)
        assert read.y is not None
        return update.cut(
            read.numbers, read.codes, read.y, read.stretch, read.starts, lengths, read.limits,
            owners if source.per_sequence else None, source.horizon, MISSING_CLASS,
        )  # fmt: skip

    def gradients(
        self,
        numbers: Tensor,
        codes: Tensor,
        lengths: Tensor,
        y: Tensor,
        key: int,
        lanes: Lanes | None = None,
        *,
        mean: bool = True,
    ) -> tuple[float, int, list[Tensor | None]]:
        """The summed loss of a batch, the number of its targets, and the gradients of the loss divided by that (mean=False: of the
        sum), in the order of the weights that are learned. lanes: of these rows, with what they begin and what they leave; None: by
        themselves.
        """
        lanes = lanes or Lanes(None, (), ())
        model, head, spec = self.model, self.model.head, self.model.spec
        rate = model.drop.p
        encoded = self._encoded(numbers, codes, rate, key)
        wants_encoded, wants_core = bool(self.embeddings), bool(self.core)
        pooled = spec.per == "sequence"
        graph = (model.core is not None or pooled) and (wants_encoded or wants_core)
        with torch.set_grad_enabled(graph):
            # A leaf of its own, not the batch's own tensor.
            leaf = encoded.detach().requires_grad_(wants_encoded) if graph else encoded
            output, state = model.read_of(leaf, lengths, lanes.begin(model), ends=lanes.carried)
        lanes.end(state)
        flat = output.detach().float().flatten(0, -2).contiguous()  # (a core in bfloat16 may answer in it)
        scored = update.scored_rows(y, flat.size(0))
        if not scored.targets:  # a batch without a target has a loss of 0, and an update moves on by Adam's moments
            scored = update.Scored(torch.zeros(1, dtype=torch.int64), 0)
        # (Without a recurrence the head reads the inputs themselves: numbers are not dropped.)
        drop = update.Dropout(
            None if scored.rows.size(0) == flat.size(0) else scored.rows,
            0.0 if model.core is None else rate,
            key ^ _HEAD,
        )
        read = drop.forward(flat)
        scores = update.affine(read, head.weight.detach(), head.bias.detach())
        assert self.task.loss is not None
        loss = update.loss(
            self.task.loss, scores, scored.rows, y, ahead=spec.ahead, scale=1 / max(scored.targets, 1) if mean else 1.0, class_weights=self.weights,
            numbers=None if self.residual is None else numbers, residual=self.residual,
        )  # fmt: skip
        learned = (head.weight.requires_grad, head.bias.requires_grad)
        d_read, d_weight, d_bias = update.affine_gradients(
            read, head.weight.detach(), scores, wants_encoded or graph, *learned
        )
        d_core: Sequence[Tensor | None] = []
        if d_read is not None:
            d_output = drop.backward(d_read, flat.size(0)).view(output.shape).to(output.dtype)
            if graph:
                wanted = ([leaf] if wants_encoded else []) + self.core
                found = torch.autograd.grad([output], wanted, [d_output], allow_unused=True)
                d_encoded, d_core = (found[0], found[1:]) if wants_encoded else (None, found)
            else:
                d_encoded = d_output
            if wants_encoded:
                assert d_encoded is not None
                self.encoding.backward(d_encoded.float().contiguous())
        own = [g for g, wanted in zip((d_weight, d_bias), learned, strict=True) if wanted]
        return loss, scored.targets, [*self.embeddings, *d_core, *own]

    def _encoded(self, numbers: Tensor, codes: Tensor, rate: float, key: int) -> Tensor:
        if self.model.noise and numbers.size(-1):
            numbers = numbers + self.model.noise * torch.randn_like(numbers)
        return self.encoding.forward(numbers, codes, rate, key) if self.encoding.widths else numbers


class Sliced:
    """A batch in fixed slices, whose gradients are added up along one tree: by this process, or by as many workers as divide the
    number of slices, with the same bits (docs/decisions/059).
    """

    def __init__(self, road: Road, shards: int):
        self.road, self.shards, self.optimizer = road, shards, road.optimizer
        self.carried: tuple[Tensor, ...] = ()
        self.workers = here()
        embeddings = [e.weight for e in road.model.embeddings]
        # Only the vectors of a batch's own words have gradients: the others are neither added up nor sent.
        self._columns = {
            k: next(c for c, w in enumerate(embeddings) if w is p)
            for k, p in enumerate(road.parameters)
            if any(p is w for w in embeddings)
        }
        self._wide = {k: torch.zeros_like(road.parameters[k], requires_grad=False) for k in self._columns}
        self._before: dict[int, Tensor] = {}

    def __call__(self, arguments: tuple[Tensor, ...], lr: float, key: int) -> tuple[float, int]:
        words, lanes = self._words(arguments), Lanes.of(self.road.model, arguments, self.carried)
        shapes = [words[k].shape + p.shape[1:] if k in words else p.shape for k, p in enumerate(self.road.parameters)]
        B = arguments[0].size(0)

        def of_slice(k: int) -> Partial:
            rows = slice(k * B // self.shards, (k + 1) * B // self.shards)
            if rows.start == rows.stop:
                zeros = self.road.parameters[0].new_zeros(sum(s.numel() for s in shapes))
                return Partial(zeros, np.zeros(2))
            of_rows = lanes.rows(rows.start, rows.stop)
            loss, count, gradients = self.road.gradients_of(
                tuple(a[rows] for a in arguments), of_rows, key ^ (k + 1) * _SLICE & _LONG
            )
            some = [
                p.new_zeros(shape.numel()) if g is None else (g.index_select(0, words[i]) if i in words else g).ravel()
                for i, (p, g, shape) in enumerate(zip(self.road.parameters, gradients, shapes, strict=True))
            ]
            return Partial(torch.cat(some), np.array([loss, count], dtype=np.float64))

        def of_slices(first: int, last: int) -> Partial:
            return tree_sum(first, last, lambda a, b: of_slice(a) if b - a == 1 else None)

        total = self.workers.total(self.shards, of_slices)
        self.carried = self._of_all(lanes.after)
        loss, count = float(total.numbers[0]), int(total.numbers[1])
        flat = total.gradients.mul_(1 / max(count, 1))
        parts = flat.split([s.numel() for s in shapes])
        self.road.apply(
            [self._whole(k, part.view(s), words) for k, (part, s) in enumerate(zip(parts, shapes, strict=True))], lr
        )
        return loss, count

    def _words(self, arguments: tuple[Tensor, ...]) -> dict[int, Tensor]:
        """Which vectors the whole batch reads, the unknown word's among them, by the number of their weight."""
        if not self._columns:
            return {}
        # numpy's calls and marks instead of sorting: a fifth of the time of the same by PyTorch's operators.
        read = self.road.source.readable(*arguments[:3])
        starts, lengths = read.starts.numpy(), arguments[1].numpy()
        ends = lengths.cumsum()
        steps = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        codes = read.codes.cpu().numpy()[steps]
        found = {}
        for k, c in self._columns.items():
            weight = self.road.parameters[k]
            is_read = np.zeros(weight.size(0), dtype=bool)
            is_read[0] = True  # the unknown word
            is_read[codes[:, c]] = True
            found[k] = torch.from_numpy(np.flatnonzero(is_read)).to(weight.device)
        return found

    def _of_all(self, after: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The states that all workers leave, of which each has those of its own rows."""
        if not after or self.workers.size == 1:
            return after
        B, each = after[0].size(1), self.shards // self.workers.size
        first, last = (k * each * B // self.shards for k in (self.workers.rank, self.workers.rank + 1))
        rows = [part[:, first:last].transpose(0, 1).cpu().numpy() for part in after]
        found = [np.concatenate(parts) for parts in zip(*self.workers.gather(rows), strict=True)]
        return tuple(
            torch.from_numpy(new).transpose(0, 1).contiguous().to(old) for new, old in zip(found, after, strict=True)
        )

    def _whole(self, k: int, part: Tensor, words: dict[int, Tensor]) -> Tensor:
        if k not in words:
            return part
        wide = self._wide[k]
        if k in self._before:
            wide.index_fill_(0, self._before[k], 0)
        wide.index_copy_(0, words[k], part)
        self._before[k] = words[k]
        return wide


_HEAD = 0x5851F42D4C957F2D  # what tells the head's dropout from the encoder's
_SLICE = 0xD1342543DE82EF95  # ... and slices from each other, and from those of the next update


def key_of(epoch: int, number: int) -> int:
    """The key of an update, from an epoch's own number and the update's within it."""
    return (epoch + (number + 1) * 0x9E3779B97F4A7C15) & _LONG


class Adam:
    """`torch.optim.Adam` with its defaults, or `AdamW` where there is a weight decay, after clipping, in one pass of a kernel."""

    def __init__(self, parameters: Sequence[Tensor], *, weight_decay: float):
        self.parameters = [*parameters]
        self.param_groups: list[dict[str, Any]] = [{"params": self.parameters}]
        self.weight_decay = weight_decay
        self.first = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.second = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.steps = [0.0] * len(self.parameters)

    def step(self, gradients: Sequence[Tensor | None], lr: float, clip: float) -> None:
        """gradients: of each parameter, contiguous; None: it stays. clip: the largest norm over all of them; 0: any."""
        gradients = [None if g is None else g.contiguous() for g in gradients]
        self.steps = [step + (g is not None) for step, g in zip(self.steps, gradients, strict=True)]
        update.adam(
            self.parameters, self.first, self.second, gradients, self.steps, lr=lr, beta1=0.9, beta2=0.999, eps=1e-8,
            weight_decay=self.weight_decay, clip=clip,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """As torch's optimisers have it: a checkpoint doesn't show which one wrote it."""
        state = {
            k: {"step": torch.tensor(step), "exp_avg": self.first[k], "exp_avg_sq": self.second[k]}
            for k, step in enumerate(self.steps)
            if step
        }
        return {"state": state, "param_groups": [{"params": [*range(len(self.parameters))]}]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for k, values in state_dict["state"].items():
            self.steps[k] = float(values["step"])
            self.first[k].copy_(values["exp_avg"])
            self.second[k].copy_(values["exp_avg_sq"])
