"""An update by our kernels is the one that autograd and torch's Adam make, and a training may go on by either road."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.native import examples
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter
from tidegate.data.batches import BatchSource
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import TRAIN, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table, write_table
from tidegate.model.tasks import TASKS
from tidegate.trained.rows import batch_source
from tidegate.trained.settings import TrainSettings
from tidegate.training import Interrupted, train, updates
from tidegate.training.checkpoint import load_checkpoint
from tidegate.training.journal import Journal
from tidegate.training.loop import Loop
from tidegate.training.origin import freeze
from tidegate.training.progress import Silent
from tidegate.training.resolve import build, complete, model_spec
from tidegate.training.updates import ByKernels, ByTorch


def table() -> pl.DataFrame:
    frame = signal_table(groups=12, seed=1)
    rng = np.random.default_rng(0)
    n = frame.height
    missing = [None if rng.random() < 0.3 else label for label in frame["label"]]
    return frame.with_columns(
        w=pl.Series(rng.standard_normal(n)),
        p=pl.Series([None if k % 5 == 0 else int(rng.random() < 0.3) for k in range(n)]),
        q=pl.Series((rng.random(n) < 0.6).astype(int)),
        sparse=pl.Series(missing),
        kind=pl.col("label").last().over("device"),
    )


MODELS = {
    "a class, with words": {"target": "label"},
    "a class of few rows, weighted": {"target": "sparse", "class_weights": "balanced"},
    "labels": {"target": ["p", "q"]},
    "numbers": {"target": ["x", "w"], "features": ["colour", "q"]},
    "a forecast from the last value": {"target": ["w", "x"], "horizon": 3, "residual": True},
    "a class ahead": {"target": "label", "horizon": 2},
    "one class a sequence": {"target": "kind", "per": "sequence", "pooling": "last+max+mean"},
    "both directions": {"target": "label", "bidirectional": True, "num_layers": 2},
    "layer norm and a learned state": {"target": "label", "layer_norm": True, "learn_initial_state": True},
    "minGRU": {"target": "label", "cell": "mingru", "bidirectional": True},
    "LSTM": {"target": "label", "cell": "lstm", "bidirectional": True},
    "no recurrence": {"target": "label", "cell": "none"},
    "no recurrence, of sequences": {"target": "kind", "per": "sequence", "cell": "none"},
    "numbers alone": {"target": "label", "features": ["x"]},
    "the head alone is learned": {"target": "label", "freeze": ("encoder", "core")},
    "the core alone is learned": {"target": "label", "freeze": ("encoder", "head")},
    "the encoder alone is learned": {"target": "label", "freeze": ("core", "head"), "cell": "none"},
    "the head is frozen": {"target": "label", "freeze": ("head",)},
}


def loop_of(told: dict, road=None, monkeypatch=None, **more) -> Loop:
    """Ready to train: without dropout and noise, so that both roads compute the same."""
    settings = QUICK | ROLES | {"dropout": 0.0, "word_dropout": 0.0, "batch_size": 5} | told | more
    parts = settings.pop("freeze", ())
    if road is not None:
        monkeypatch.setattr("tidegate.training.loop.updates_of", road)
    settings.pop("progress")
    chosen = TrainSettings.make(**settings)
    reading = {k: v for k, v in settings.items() if k in DataSettings.model_fields}
    pre, data = fit_preprocessing(read_table(table()), DataSettings.make(**reading), 0)
    full = complete(chosen, data)
    model = build(model_spec(chosen, pre, data), pre, full, torch.device("cpu"))
    freeze(model, parts, full.epochs)
    model.train()
    return Loop(model, pre, batch_source(data, pre, torch.device("cpu")), full, journal=Journal(), progress=Silent())


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    *(st.integers(0, 3), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 5)),
)
@examples
def test_a_batch_is_cut_as_pytorch_cuts_it(lengths, horizon, per_sequence, torn, classes, seed):
    rng = np.random.default_rng(seed)
    steps, count = sum(lengths), len(lengths) if per_sequence else sum(lengths)
    data = Sequences(
        numbers=rng.standard_normal((steps, 3)).astype(np.float32),
        codes=rng.integers(0, 9, (steps, 2)),
        y=rng.integers(0, 5, count) if classes else rng.standard_normal((count, 3)).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        part=np.full(steps, TRAIN, dtype=np.uint8),
        rows=np.arange(steps),
        stretch=np.cumsum(rng.random(steps) < 0.2) if torn else None,
    )
    source = BatchSource(data, per_sequence=per_sequence, horizon=0 if per_sequence else horizon)
    for arguments in source.training_batches(TRAIN, 4, 9, rng):
        batch = source.training_batch(arguments)
        found = ByKernels.cut(SimpleNamespace(source=source), arguments)
        for ours, theirs in zip(found, (batch.numbers, batch.codes, batch.y), strict=True):
            assert ours.dtype is theirs.dtype
            assert ours.shape == theirs.shape
            assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_of_an_update_are_those_of_autograd(name):
    loop = loop_of(MODELS[name])
    model = loop.model
    assert isinstance(loop.update, ByKernels)
    for arguments in loop.batches():  # (the second one finds what the first left)
        batch = loop.source.training_batch(arguments)
        loss, count, found = loop.update.gradients(batch.numbers, batch.codes, batch.lengths, batch.y, 3)
        scores, _ = model(batch.numbers, batch.codes, batch.lengths)
        expected, targets = loop.task.loss_sum(scores, batch.y, loop.weights)
        assert count == int(targets) > 0
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        learned = [p for p in model.parameters() if p.requires_grad]
        assert len(found) == len(learned)
        exact = torch.autograd.grad(expected / targets, learned, allow_unused=True)
        for ours, theirs in zip(found, exact, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["a class, with words", "a forecast from the last value", "the head is frozen"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_some_updates_end_at_the_weights_of_autograd_and_torchs_adam(monkeypatch, name, weight_decay):
    ours = loop_of(MODELS[name], weight_decay=weight_decay)
    torchs = loop_of(MODELS[name], ByTorch, monkeypatch, weight_decay=weight_decay)
    before = {k: v.clone() for k, v in ours.model.state_dict().items()}
    for _ in range(4):
        for arguments in ours.batches():
            for loop in (ours, torchs):
                loop.update(arguments, 0.01, 1)
    for key, value in ours.model.state_dict().items():
        frozen = "freeze" in MODELS[name] and key.startswith("head")
        assert torch.equal(value, before[key]) == frozen, key
        assert torch.allclose(value, torchs.model.state_dict()[key], atol=1e-4), key


def test_numbers_are_dropped_by_no_head_without_a_recurrence_and_outputs_of_one_are():
    told = {"target": "label", "features": ["x"], "dropout": 0.5}
    for cell in ("none", "gru"):
        loop = loop_of(told, cell=cell)
        batch = loop.source.training_batch(loop.batches()[0])
        first, again, other = (
            loop.update.gradients(batch.numbers, batch.codes, batch.lengths, batch.y, key)[0] for key in (3, 3, 4)
        )
        assert first == again
        assert (first == other) == (cell == "none")


def test_a_batch_without_a_target_has_no_loss_and_no_gradient():
    loop = loop_of(MODELS["a class, with words"])
    batch = loop.source.training_batch(loop.batches()[0])
    loss, count, found = loop.update.gradients(
        batch.numbers, batch.codes, batch.lengths, torch.full_like(batch.y, -100), 3
    )
    assert (loss, count) == (0.0, 0)
    assert not any(g.any() for g in found)


@pytest.mark.parametrize("first", [ByTorch, ByKernels])
def test_a_run_goes_on_by_the_other_road(tmp_path, monkeypatch, ctrl_c, first):
    """As one of an earlier version does, which knew PyTorch's road alone."""
    path = tmp_path / "t.parquet"
    write_table(table(), path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4, "dropout": 0.0, "word_dropout": 0.0, "target": "label"}
    whole = train(path, out=False, **settings)
    with monkeypatch.context() as patched:
        patched.setattr("tidegate.training.loop.updates_of", first)
        with pytest.raises(Interrupted):
            train(path, out=tmp_path / "run", **(settings | {"progress": StopAfter(4)}))
    state = load_checkpoint(tmp_path / "run/checkpoints/last.safetensors").optimizer
    assert {int(v["step"]) for v in state.values()} == {4}
    assert len(state) == len([*whole.model.parameters()])
    second = ByKernels if first is ByTorch else ByTorch
    monkeypatch.setattr("tidegate.training.loop.updates_of", second)
    run = train(out=tmp_path / "run", resume=True, progress=False)
    for key, value in run.model.state_dict().items():
        assert torch.allclose(value, whole.model.state_dict()[key], atol=1e-4), key


def test_what_the_kernels_dont_know_takes_the_general_road(monkeypatch):
    assert isinstance(loop_of(MODELS["a class, with words"]).update, ByKernels)
    with monkeypatch.context() as patched:
        patched.setattr(TASKS["class"], "loss", None)  # somebody's own task
        assert isinstance(loop_of(MODELS["a class, with words"]).update, ByTorch)
    with monkeypatch.context() as patched:
        patched.setattr("tidegate.ops.gru.native.kernels.missing", lambda: "not here")
        assert isinstance(loop_of(MODELS["a class, with words"]).update, ByTorch)
    loop = loop_of(MODELS["a class, with words"])
    loop.source.codes[3, 0] = 1000  # a code that no embedding has: PyTorch says so, a kernel would read anything
    assert isinstance(updates.updates_of(loop.model, loop.source, loop.task, None, loop.settings), ByTorch)
    loop = loop_of(MODELS["a class, with words"])
    loop.source.y[3] = 2
    assert isinstance(updates.updates_of(loop.model, loop.source, loop.task, None, loop.settings), ByTorch)
