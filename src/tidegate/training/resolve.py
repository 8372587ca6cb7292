"""What a run works out for itself: every setting that was left to it, the model's sizes, the device."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tidegate import __version__
from tidegate.data.preprocessing import Preprocessing, Target, TokenColumn
from tidegate.data.sequences import PART_NAMES, TRAIN, Sequences
from tidegate.data.tables import Table
from tidegate.errors import SettingsError, nearest
from tidegate.model import ModelSpec, SequenceModel
from tidegate.model.model import default_embedding_dim
from tidegate.ops.gru import native
from tidegate.trained import Resolved
from tidegate.trained.metrics import MOST_NAMED
from tidegate.trained.settings import CompleteSettings, TrainSettings
from tidegate.workers import asked

LONG, WINDOW = 256, 128  # window=None: sequences above LONG rows are cut into WINDOW
MOST_IN_BATCH, LEAST_IN_BATCH = 32, 4
UPDATES_AN_EPOCH, UPDATES = 30, 2_000  # aimed at by batch_size=None and epochs=None
FEWEST_EPOCHS, MOST_EPOCHS = 15, 150
RAREST = 1e-4  # share of ones at which the bias of a label begins at the least
MOST_OF_FEATURES = 32  # length of the vector of a shape or a suffix, which has less to say than a word


def complete(settings: TrainSettings, data: Sequences) -> CompleteSettings:
    """The settings with window, batch_size, epochs and patience filled in.

    Few sequences make few updates an epoch: smaller batches and more epochs make up for it. Without that the
    smallest tables would be trained least, and so would the baseline that they are held against.
    """
    window = _window(settings, data)
    lengths = np.diff(data.segments(TRAIN), axis=1)[:, 0]
    pieces = len(lengths) if window is None else int((-(-lengths // window)).sum())
    size = settings.batch_size or max(LEAST_IN_BATCH, min(MOST_IN_BATCH, pieces // UPDATES_AN_EPOCH))
    epochs = settings.epochs
    if epochs is None:
        updates = -(-pieces // size)
        if settings.carry_state and window:  # no batch has two windows of one stretch
            updates = max(updates, -(-int(lengths.max()) // window))
        epochs = max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(UPDATES / updates)))
    found = {
        "window": window,
        "batch_size": size,
        "epochs": epochs,
        "patience": patience_for(settings.patience, epochs),
    }
    return CompleteSettings(**(settings.model_dump() | found))


def patience_for(asked: int | None, epochs: int) -> int:
    """The patience, where it is left open by the number of epochs."""
    return max(10, epochs // 2) if asked is None else asked


def model_spec(settings: TrainSettings, pre: Preprocessing, data: Sequences) -> ModelSpec:
    """The sizes of the model for the columns that were found."""
    names = [c.name for c in pre.numbers]
    forecast = pre.horizon > 0 and pre.target.task == "number"
    can = forecast and all(name in names for name in pre.target.names)
    if settings.residual and not can:
        raise SettingsError(
            "residual=True needs a forecast of numbers (horizon above 0) whose targets are among the features."
        )
    residual = settings.residual
    if residual is None:
        residual = can and _last_value_beats_mean(data, pre.horizon)
    both = settings.bidirectional
    if both is None:
        both = pre.horizon == 0 and (pre.per == "sequence" or pre.lists) and not settings.carry_state
    return ModelSpec(
        number_width=pre.number_width,
        vocabularies=tuple(c.size for c in pre.tokens),
        embedding_dims=tuple(settings.embedding_dim or _embedding_dim(c) for c in pre.tokens),
        cell=settings.cell,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        bidirectional=both and settings.cell != "none",
        dropout=settings.dropout,
        per=pre.per,
        pooling=settings.pooling,
        horizon=pre.horizon,
        outputs=pre.target.width,
        residual=tuple(names.index(n) for n in pre.target.names) if residual else None,
        core=settings.core,
    )


def _embedding_dim(column: TokenColumn) -> int:
    dim = default_embedding_dim(column.size)
    return min(dim, MOST_OF_FEATURES) if column.of_words else dim


def class_weights(settings: TrainSettings, target: Target) -> list[float] | None:
    """The weight of each class in the training loss, 1 in the mean over the training rows; None: all alike.

    balanced: 1 / (share of the class · number of classes). Raises SettingsError where the target is not one of classes, or has
    none of that name.
    """
    asked = settings.class_weights
    if asked is None:
        return None
    if target.task != "class":
        raise SettingsError(
            "class_weights are for a target that is one of several classes; this one isn't. Leave them out."
        )
    counts = np.array(target.counts, dtype=np.float64)
    weights = np.ones(len(counts))
    if isinstance(asked, str):
        weights = 1 / np.maximum(counts, 1)
    else:
        places = {str(name): k for k, name in enumerate(target.classes)}
        for name, weight in asked.items():
            if name not in places:
                known = ", ".join(repr(n) for n in [*places][:MOST_NAMED]) + (
                    ", ..." if len(places) > MOST_NAMED else ""
                )
                raise SettingsError(
                    f"class_weights names {name!r}, which is no class of {target.names[0]!r}; its classes are {known}."
                    f"{nearest(name, places)}"
                )
            weights[places[name]] = weight
    # Only their ratios are asked for. With a mean of 1 the learning rate keeps its meaning.
    return [float(w) for w in weights * counts.sum() / (weights * counts).sum()]


def _last_value_beats_mean(data: Sequences, horizon: int) -> bool:
    """Whether, on the training rows, the last value misses the next ones by less than the training mean does."""
    assert data.y is not None
    from_last, from_mean = 0.0, 0.0
    for ahead in range(1, horizon + 1):
        for first, end in data.blocks():
            end = min(end, len(data.part) - ahead)
            if end <= first:
                continue
            here, there = slice(first, end), slice(first + ahead, end + ahead)
            _, limits = data.bounds(first, end)
            pairs = (data.part[here] == TRAIN) & (data.part[there] == TRAIN) & (np.arange(first, end) + ahead < limits)
            if data.stretch is not None:
                pairs &= data.stretch[here] == data.stretch[there]
            now, then = data.y[here][pairs], data.y[there][pairs]
            from_last += float(np.nansum((then - now) ** 2))
            from_mean += float(
                np.nansum(np.where(np.isnan(now), np.nan, then) ** 2)
            )  # y is standardised: its mean is 0
    return from_last < from_mean


def build(spec: ModelSpec, pre: Preprocessing, settings: TrainSettings, device: torch.device) -> SequenceModel:
    """A new model whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SequenceModel(spec)
    if pre.target.task == "labels":
        _begin_at_shares(model, pre.target)
    return ready(model, pre, settings, device)


def ready(model: SequenceModel, pre: Preprocessing, settings: TrainSettings, device: torch.device) -> SequenceModel:
    """The model on the device, with the noise and the precision of training."""
    model.to(device)
    model.bf16 = settings.precision == "bf16"
    model.set_noise(word_dropout=settings.word_dropout, counts=[c.counts for c in pre.tokens], numbers=settings.noise)
    return model


def _begin_at_shares(model: SequenceModel, target: Target) -> None:
    """Let the head's bias begin at the log odds of each label's share of ones (Lin et al. 2017, arXiv:1708.02002, section 3.3): a rare
    label is then no surprise from the first update on, and the updates go to what can be learned of the inputs.
    """
    shares = torch.tensor(target.means, dtype=torch.float64).clamp(RAREST, 1 - RAREST)
    with torch.no_grad():
        model.head.bias.copy_(torch.logit(shares).repeat(model.spec.ahead))


def _window(settings: TrainSettings, data: Sequences) -> int | None:
    segments = data.segments(TRAIN)
    longest = int((segments[:, 1] - segments[:, 0]).max())
    if settings.per == "sequence":
        if settings.window is not None:
            raise SettingsError(
                "window cuts sequences for a target a step; with per='sequence' each one is read whole. Leave it out."
            )
        return None
    if settings.carry_state:
        window = settings.window or WINDOW
        if longest <= window:
            raise SettingsError(
                f"carry_state=True hands the state from window to window, but no training sequence is longer than one: the longest has "
                f"{longest} rows, a window {window}. Say a smaller window, or leave carry_state out: each sequence is one window then."
            )
        return window
    if settings.window is None:
        return WINDOW if longest > LONG else None
    if settings.window > longest:
        raise SettingsError(
            f"window={settings.window} is longer than every training sequence (the longest has {longest} rows). "
            f"Use at most {longest}, or leave window out to train on whole sequences."
        )
    return settings.window


def check_carry(settings: TrainSettings, spec: ModelSpec) -> None:
    """Raises SettingsError where the model, another run's, reads in both directions."""
    if settings.carry_state and spec.bidirectional:
        raise SettingsError(
            f"carry_state=True hands the state from one window of a sequence to the next, and the model of {settings.from_run} reads "
            "from the last step, too. Leave carry_state out, or train a new run without from_run (--from)."
        )


def check_precision(precision: str, device: torch.device) -> None:
    """Raises SettingsError where this device can't train in it."""
    if precision == "float32":
        return
    why = native.missing() or (
        None if device.type == "cpu" else f"these products are our kernels', for the CPU, and the device is {device}"
    )
    if why is not None:
        raise SettingsError(
            f"precision={precision!r} can't be had here: {why}. Leave precision out, or say device='cpu'."
        )


def find_device(name: str) -> torch.device:
    """The device of that name. Raises SettingsError where it can't be used."""
    if name == "auto":
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if asked() else "cuda"  # a GPU for each worker
        return torch.device(own if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(
            f"device={name!r} can't be used here: PyTorch has no device of that name. Say cpu, cuda (an NVIDIA or AMD GPU; the "
            "second one is cuda:1), mps (a GPU of Apple), or auto."
        ) from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        there = [
            kind
            for kind, is_there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
            if is_there
        ]
        raise SettingsError(
            f"device={name!r} can't be used here ({str(error).splitlines()[0][:120].rstrip('.')}). This machine has: "
            f"{', '.join(['cpu', *there])}."
        ) from None
    return device


def resolve(
    table: Table,
    pre: Preprocessing,
    data: Sequences,
    *,
    settings: CompleteSettings,
    model: SequenceModel,
    origin: Mapping[str, Any] | None = None,
) -> Resolved:
    """What stands under `resolved` in config.yaml. settings: those that `complete` returned."""
    spec = model.spec
    return Resolved(
        tidegate=__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        device=str(next(model.parameters()).device),
        threads=settings.threads or torch.get_num_threads(),
        table_name=table.name,
        table_sha256=table.sha256,
        rows=table.height,
        parts={
            name: {"sequences": len(data.containing(part)), "rows": data.count(part)}
            for name, part in PART_NAMES.items()
        },
        longest=int(data.lengths.max()),
        task=pre.target.task,
        classes=len(pre.target.classes),
        numbers=[c.name for c in pre.numbers],
        categories={c.label: c.size - 1 for c in pre.tokens},
        bidirectional=spec.bidirectional,
        embedding_dims=list(spec.embedding_dims),
        residual=spec.residual is not None,
        window=settings.window,
        lanes=min(settings.batch_size, len(data.segments(TRAIN))) if settings.carry_state else None,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        patience=settings.patience,
        parameters=sum(p.numel() for p in model.parameters()),
        origin=origin,
        notes=list(data.notes),
    )
