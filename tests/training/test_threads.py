"""The bits of a training don't depend on the number of threads, as long as all of it runs by our kernels."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.native import on_threads
from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import SettingsError
from tidegate.model.tasks import TASKS
from tidegate.training import Interrupted, train

LABELS = [f"l{k}" for k in range(12)]
NUMBERS = [f"y{k}" for k in range(8)]


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """So many rows in a batch that PyTorch shares its sums out to threads: 24 sequences of 301 rows."""
    rng = np.random.default_rng(0)
    rows = 24 * 301
    columns = {"device": np.repeat(np.arange(24), 301).astype(str), "t": np.tile(np.arange(301), 24)}
    columns |= {f"x{k}": rng.standard_normal(rows) for k in range(6)}
    columns |= {name: (rng.random(rows) < 0.3).astype(int) for name in LABELS}
    columns |= {name: rng.standard_normal(rows) for name in NUMBERS}
    columns["word"] = [f"w{k}" for k in rng.integers(0, 300, rows)]
    columns["class"] = [f"c{k}" for k in rng.integers(0, 20, rows)]
    columns["kind"] = np.repeat([f"k{k % 3}" for k in range(24)], 301)
    return pl.DataFrame(columns)


X = [f"x{k}" for k in range(6)]
TRAININGS = {
    "labels": {"target": LABELS, "features": X},
    "numbers": {"target": NUMBERS, "features": X},
    "a class": {
        "target": "class",
        "features": X,
        "class_weights": "balanced",
        "layer_norm": True,
        "weight_decay": 0.01,
    },
    "the next word": {"target": "word", "features": ["word"], "horizon": 1},
    "a sequence's mean": {
        "target": "kind",
        "features": X,
        "per": "sequence",
        "pooling": "mean",
        "learn_initial_state": True,
    },
    "minGRU": {"target": "class", "features": X, "cell": "mingru"},
    "no recurrence": {"target": NUMBERS[0], "features": X, "cell": "none"},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_bits_of_a_training_do_not_depend_on_the_number_of_threads(table, name):
    told = {
        "group": "device",
        "time": "t",
        "out": False,
        "window": None if "per" in TRAININGS[name] else 301,
        "batch_size": 24,
    }
    told |= QUICK | TRAININGS[name]
    runs = [on_threads(n, lambda: train(table, **told)) for n in (1, 2, 3)]
    for run in runs[1:]:
        assert same_weights(run, runs[0])
        assert [r | {"seconds": 0} for r in run.history] == [r | {"seconds": 0} for r in runs[0].history]


def test_the_loss_of_labels_and_its_gradient_have_the_same_bits_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(50_003, 1, 3, generator=generator)
    y = (torch.rand(scores.shape, generator=generator) < 0.3).float()

    def loss_and_gradient():
        given = scores.clone().requires_grad_()
        loss, _ = TASKS["labels"].loss_sum(given, y)
        loss.backward()
        return loss.detach(), given.grad

    alone = on_threads(1, loss_and_gradient)
    exact = torch.nn.functional.binary_cross_entropy_with_logits(scores.double(), y.double(), reduction="sum")
    assert float(alone[0]) == pytest.approx(float(exact))
    assert torch.allclose(alone[1], torch.sigmoid(scores) - y, atol=1e-6)
    for n in (2, 3, 5):
        for ours, theirs in zip(on_threads(n, loss_and_gradient), alone, strict=True):
            assert torch.equal(ours, theirs)


def test_a_run_goes_on_with_another_number_of_threads_to_the_same_bits(tmp_path, table, ctrl_c):
    path = tmp_path / "t.parquet"
    write_table(table, path)
    told = QUICK | {"target": LABELS, "features": X, "group": "device", "time": "t", "batch_size": 24, "window": 301}
    whole = on_threads(1, lambda: train(path, out=False, **told))
    with pytest.raises(Interrupted):
        on_threads(1, lambda: train(path, out=tmp_path / "run", **(told | {"progress": StopAfter(1)})))
    assert same_weights(train(out=tmp_path / "run", resume=True, threads=2, progress=False), whole)


def test_without_the_kernels_a_run_keeps_its_number_of_threads(tmp_path, signals, ctrl_c, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "run", **(QUICK | ROLES | {"progress": StopAfter(1), "threads": 1}))
    monkeypatch.setattr("tidegate.ops.gru.native.missing", lambda: "the C++ kernel is not part of this installation")
    with pytest.raises(
        SettingsError, match="can't change on resume of a run without the C\\+\\+ kernels: it began with 1"
    ):
        train(out=tmp_path / "run", resume=True, threads=2)
