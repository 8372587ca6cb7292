"""The slices of a batch: what they add up to, and that nothing but they decides the bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tidegate
from tests.helpers.runs import sensors, sentences
from tests.helpers.training import same_weights, weights
from tidegate import train
from tidegate.errors import SettingsError
from tidegate.training.prepared import memory_for
from tidegate.training.updates import ByKernels, ByTorch
from tidegate.workers import Partial, subtrees, tree_sum

SENSORS = {
    "target": "label",
    "group": "device",
    "time": "t",
    "hidden_size": 8,
    "epochs": 2,
    "batch_size": 6,
    "baselines": False,
}
WORDS = {"target": "tags", "features": "words", "hidden_size": 8, "epochs": 2, "baselines": False}


def trained(table, **settings):
    return train(table, out=False, progress=False, **settings)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 8, 12])
def test_whatever_workers_hold_the_tree_is_the_same(shards):
    numbers = torch.from_numpy(np.random.default_rng(0).standard_normal((shards, 50)).astype(np.float32))

    def leaf(first, last):
        return Partial(numbers[first].clone(), np.zeros(1)) if last - first == 1 else None

    whole = tree_sum(0, shards, leaf).gradients
    for workers in (w for w in range(1, shards + 1) if shards % w == 0):
        each = shards // workers
        trees = [t for k in range(workers) for t in subtrees(shards, k * each, (k + 1) * each)]
        assert sorted(s for first, last in trees for s in range(first, last)) == [*range(shards)]
        sums = {tree: tree_sum(*tree, leaf) for tree in trees}
        assert torch.equal(tree_sum(0, shards, lambda *tree, sums=sums: sums.get(tree)).gradients, whole)


@pytest.mark.parametrize("options", [{}, {"carry_state": True, "window": 4}])
def test_the_gradient_of_slices_is_that_of_the_whole_batch(options):
    plain = {"dropout": 0.0, "word_dropout": 0.0, "lr": 1e-4} | options
    one, four = (trained(sensors(), **SENSORS, **plain, shards=shards) for shards in (1, 4))
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(four)[name], atol=2e-6), name
    assert one.history[0]["train_loss"] == pytest.approx(four.history[0]["train_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.4, "num_layers": 2},
        {"zoneout": 0.2, "noise": 0.1},
        {"cell": "mingru"},
        {"carry_state": True, "window": 4},
    ],
)
def test_the_bits_do_not_depend_on_threads(options):
    def run(threads):
        return trained(sensors(), **SENSORS, **options, shards=4, threads=threads)

    assert same_weights(run(1), run(2))


def test_what_is_random_differs_from_slice_to_slice_and_repeats():
    runs = [trained(sensors(), **SENSORS, shards=shards) for shards in (2, 2, 3)]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


@pytest.fixture(params=[ByKernels, ByTorch])
def road(request, monkeypatch):
    """One of them; the other one isn't taken."""
    if request.param is ByTorch:
        monkeypatch.setattr("tidegate.ops.update.available", lambda *tensors: False)
    return request.param


def test_all_that_slices_learn_arrives_words_that_were_read_as_unknown_too(road, monkeypatch):
    of_slices, keys, updates = [], [], []
    gradients_of, apply = road.gradients_of, road.apply

    def spied(self, arguments, lanes, key):
        loss, count, gradients = gradients_of(self, arguments, lanes, key)
        of_slices.append((count, [g.clone() for g in gradients]))
        keys.append(key)
        return loss, count, gradients

    def received(self, gradients, lr):
        count = sum(n for n, _ in of_slices)
        for parts, whole in zip(zip(*(g for _, g in of_slices), strict=True), gradients, strict=True):
            assert torch.allclose(sum(parts) / count, whole, atol=1e-6)
        updates.append(len(of_slices))
        of_slices.clear()
        apply(self, gradients, lr)

    monkeypatch.setattr(road, "gradients_of", spied)
    monkeypatch.setattr(road, "apply", received)
    trained(sentences(), **WORDS, word_dropout=3.0, shards=3)
    assert updates.count(3) > len(updates) / 2  # the last batch of an epoch has fewer sequences
    assert len({*keys}) == len(keys)


@pytest.mark.parametrize("options", [{"noise": 0.3}, {"zoneout": 0.3}, {"dropout": 0.4, "num_layers": 2}])
def test_a_slice_is_the_same_whatever_was_drawn_before_it(road, options, monkeypatch):
    seen, gradients_of = [], road.gradients_of

    def twice(self, arguments, lanes, key):
        first = gradients_of(self, arguments, lanes, key)
        seen.append([None if g is None else g.clone() for g in first[2]])
        torch.rand(3)
        again = gradients_of(self, arguments, lanes, key)
        assert all(a is b or torch.equal(a, b) for a, b in zip(seen[-1], again[2], strict=True))
        return again

    monkeypatch.setattr(road, "gradients_of", twice)
    trained(sensors(), **SENSORS | {"epochs": 1}, **options, shards=2)
    assert seen


def test_more_slices_than_a_batch_has_sequences_are_refused():
    with pytest.raises(SettingsError, match=r"shards=7 can't cut a batch of 6 sequences"):
        trained(sensors(), **SENSORS, shards=7)


def test_the_workers_of_a_machine_share_its_memory(monkeypatch):
    settings = tidegate.TrainSettings.make(**SENSORS)
    alone = memory_for(settings)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert memory_for(settings) == alone // 4
    assert memory_for(settings.model_copy(update={"memory": "2GB"})) == 2 * 10**9
