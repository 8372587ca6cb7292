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
from tidegate.training.threads import Threads


class AllThreads(Threads):
    """As many as there are, at every update."""

    def __enter__(self):
        self.now = self.most
        return super().__enter__()

    def took(self, cost: float) -> None:
        assert torch.get_num_threads() == self.most


class EachInTurn(Threads):
    """One, two, three threads, one, two ..."""

    def took(self, cost: float) -> None:
        torch.set_num_threads(torch.get_num_threads() % 3 + 1)


@pytest.fixture
def all_threads(monkeypatch):
    monkeypatch.setattr("tidegate.training.loop.Threads", AllThreads)


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


@pytest.mark.usefixtures("all_threads")
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


@pytest.mark.usefixtures("all_threads")
def test_a_run_goes_on_with_another_number_of_threads_to_the_same_bits(tmp_path, table, ctrl_c):
    path = tmp_path / "t.parquet"
    write_table(table, path)
    told = QUICK | {"target": LABELS, "features": X, "group": "device", "time": "t", "batch_size": 24, "window": 301}
    whole = on_threads(1, lambda: train(path, out=False, **told))
    with pytest.raises(Interrupted):
        on_threads(1, lambda: train(path, out=tmp_path / "run", **(told | {"progress": StopAfter(1)})))
    assert same_weights(train(out=tmp_path / "run", resume=True, threads=2, progress=False), whole)


def test_the_number_of_threads_may_change_at_every_update(monkeypatch, table):
    told = QUICK | {"target": "class", "features": X, "group": "device", "time": "t", "batch_size": 6, "window": 301}
    plain = on_threads(1, lambda: train(table, out=False, **told))
    monkeypatch.setattr("tidegate.training.loop.Threads", EachInTurn)
    mixed = on_threads(3, lambda: train(table, out=False, **told))
    assert same_weights(mixed, plain)


def test_a_training_begins_on_one_thread_and_leaves_the_callers_number(monkeypatch, signals):
    seen = []

    class Seen(Threads):
        def begin(self):
            seen.append(torch.get_num_threads())

        def end(self, rows: int):
            self.took(1.0)

    monkeypatch.setattr("tidegate.training.loop.Threads", Seen)

    def run():
        train(signals, out=False, batch_size=2, **(QUICK | ROLES))
        return torch.get_num_threads()

    assert on_threads(3, run) == 3
    assert seen[:7] == [1, 1, 1, 1, 3, 3, 3]
    assert seen[7] == 1


def simulated(most: int, updates: int, cost_of) -> list[int]:
    """With how many threads each update ran, where update k on n threads takes cost_of(k, n)."""
    used = []
    with Threads(most) as threads:
        for k in range(updates):
            used.append(torch.get_num_threads())
            threads.took(cost_of(k, used[-1]))
    return used


def test_updates_take_the_number_of_threads_that_is_faster_and_try_the_other_ever_more_seldom():
    quiet = simulated(2, 3000, lambda k, n: 1.0 if n == 1 else 0.6)
    assert quiet[:5] == [1, 1, 1, 1, 2]
    assert quiet.count(1) < 50
    assert quiet[1000:].count(1) < 15
    busy = simulated(2, 3000, lambda k, n: 1.0 if n == 1 else 20.0)
    assert busy.count(2) < 15  # a trial that goes so badly has one update
    assert max(np.diff(np.flatnonzero(np.array(busy) == 2))) < 520  # and there is always a next one
    assert simulated(4, 100, lambda k, n: 1.0 / n).count(4) > 80
    even = simulated(2, 3000, lambda k, n: 1.0 if n == 1 else 0.95)  # what scatter alone could be
    assert even.count(2) < 50
    assert set(simulated(1, 50, lambda k, n: 1.0)) == {1}
    assert on_threads(3, lambda: [simulated(2, 4, lambda k, n: 1.0), torch.get_num_threads()][1]) == 3


def test_a_machine_that_gets_busy_or_quiet_is_noticed():
    used = simulated(2, 4000, lambda k, n: 1.0 if n == 1 else 10.0 if 1000 <= k < 2000 else 0.6)
    assert used[:1000].count(2) > 950
    late = used[1000:2000].index(1)
    assert late < 520  # at the next trial
    assert used[1000 + late + 3 : 2000].count(2) < 12
    assert 2 in used[1000 + late + 3 : 1000 + late + 12]  # what has just changed may soon change again
    assert used[2000 + 520 :].count(2) > 1400


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_threads_of_a_cell_whose_bits_depend_on_them_stay(cell, monkeypatch, signals):
    seen = set()

    class Seen(AllThreads):
        def __init__(self, most: int):
            super().__init__(most)
            seen.add(most)

    monkeypatch.setattr("tidegate.training.loop.Threads", Seen)
    on_threads(3, lambda: train(signals, out=False, cell=cell, **(QUICK | ROLES)))
    assert seen == ({3} if cell == "gru" else set())


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
