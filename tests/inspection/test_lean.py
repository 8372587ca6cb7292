"""What a prediction leans on, held against the gradient of that prediction alone, taken the plain way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.inspection_runs import KINDS
from tidegate.data.batches import BatchSource
from tidegate.inspection import lean as module
from tidegate.inspection.lean import Stretch, lean


def whole(run, table):
    """The first sequence of a table as the model reads it: encoded [T, 1, E]."""
    found = run.inspect(table)
    own = table
    if run.preprocessing.group:
        for name, value in zip(run.preprocessing.group, found.sequence.split(", "), strict=True):
            own = own.filter(own[name].cast(str) == value)
    elif run.preprocessing.lists:
        own = own[:1]
    from tidegate.data.tables import read_table

    data = run.preprocessing.apply(read_table(own), with_target=False)
    source = BatchSource(data, per_sequence=run.preprocessing.per == "sequence", horizon=run.preprocessing.horizon)
    T = int(data.lengths[0])
    batch = source.cut(torch.tensor([0]), torch.tensor([T]), torch.tensor([T]), sequences=torch.tensor([0]))
    return found, run.model.encode(batch.numbers, batch.codes).detach()


def plainly(run, encoded: torch.Tensor, step: int) -> np.ndarray:
    """|d score / d e| of one prediction by autograd in float64, [T, E]."""
    model, task = run.model.double(), run.preprocessing.target.task
    try:
        x = encoded.double().requires_grad_()
        scores = model.scores(x, torch.tensor([len(x)]))
        score = (
            scores[0, 0]
            if model.spec.per == "sequence"
            else scores[step, 0].flatten()
            if task != "class"
            else scores[step, 0, 0]
        )
        if task == "class":
            best, second = score.sort(descending=True).values[:2]
            target = best - second
        else:
            target = score[score.abs().argmax()]
        return torch.autograd.grad(target, x)[0][:, 0].numpy()
    finally:
        model.float()


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_leans_on_what_its_own_gradient_says(trained, kind):
    run, table = trained(kind)
    found, encoded = whole(run, table)
    steps = [0] if run.preprocessing.per == "sequence" else range(found.length)
    assert found.lean.steps.shape == (len(steps), found.length)
    for p in steps:
        slopes = plainly(run, encoded, p)
        np.testing.assert_allclose(found.lean.steps[p], np.linalg.norm(slopes, axis=1), rtol=2e-4, atol=1e-6)
        for k, column in enumerate(found.columns):
            expected = np.linalg.norm(slopes[:, list(column.features)])
            np.testing.assert_allclose(found.lean.columns[p, k], expected, rtol=2e-4, atol=1e-6)
    assert sorted(f for c in found.columns for f in c.features) == list(range(encoded.shape[2]))
    if not run.model.spec.bidirectional and len(steps) > 1:
        assert not np.triu(found.lean.steps, 1).any()  # nothing leans on what comes later
        assert np.diag(found.lean.steps).all()


@pytest.mark.parametrize("kind", ["classes", "a forecast", "one sequence"])
def test_a_shorter_look_back_finds_the_same_within_its_reach(trained, monkeypatch, kind):
    run, table = trained(kind)
    full = run.inspect(table).lean
    monkeypatch.setattr(module, "WHOLE", 4)
    monkeypatch.setattr(module, "_STEPS_AT_ONCE", 12)
    near = run.inspect(table).lean
    assert near.reach == 4
    assert full.reach is None
    back = np.arange(len(full.steps))[:, None] - np.arange(len(full.steps))
    expected = np.where((back >= 0) & (back < 4), full.steps, 0)
    np.testing.assert_allclose(near.steps, expected, rtol=1e-4, atol=1e-6)


def test_a_shorter_look_in_both_directions_begins_with_the_states_there(trained, monkeypatch):
    run, table = trained("words")  # one layer in both directions
    long = {"words": [["play", "a", "song", "by", "nina", "wake", "me", "at", "seven", "please"] * 2]}
    full = run.inspect(long).lean
    monkeypatch.setattr(module, "WHOLE", 19)
    monkeypatch.setattr(module, "AROUND", 6)
    near = run.inspect(long).lean
    for p in range(20):
        first = min(max(p - 3, 0), 14)
        inside = slice(first, first + 6)
        np.testing.assert_allclose(near.steps[p, inside], full.steps[p, inside], rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(near.steps[p]) == 6
    assert table.height


def test_a_stretch_leans_on_its_own_steps_as_in_the_whole(trained):
    for kind in KINDS:
        run, table = trained(kind)
        full, part = run.inspect(table).lean, run.inspect(table, steps=(2, 4)).lean
        rows = slice(None) if kind == "a class a sequence" else slice(1, 4)
        np.testing.assert_allclose(part.steps, full.steps[rows, 1:4], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(part.columns, full.columns[rows], rtol=1e-4, atol=1e-6)  # of steps not shown, too
        assert part.reach is None


def test_a_stretch_far_from_the_beginning_looks_back_over_its_own_border(trained, monkeypatch):
    run, table = trained("one sequence")
    for name in ("lean", "look"):
        monkeypatch.setattr(f"tidegate.inspection.{name}.WHOLE", 20)
    full, part = run.inspect(table).lean, run.inspect(table, steps=(60, 70)).lean
    assert part.reach == full.reach == 20
    np.testing.assert_allclose(part.steps, full.steps[59:70, 59:70], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(part.columns, full.columns[59:70], rtol=1e-4, atol=1e-6)


def test_steps_between_those_drawn_are_counted_with_the_one_before(trained):
    run, table = trained("classes")
    found, encoded = whole(run, table)
    gates = {layer.name: layer.gates for layer in found.layers}
    edges = torch.zeros(1, 8)
    T = found.length
    columns = [c.features for c in found.columns]
    every = lean(run.model, "class", Stretch(encoded, gates, edges), np.arange(T), np.arange(T), columns)
    some = lean(run.model, "class", Stretch(encoded, gates, edges), np.arange(T), np.array([0, 3, 4]), columns)
    np.testing.assert_allclose(every.steps, found.lean.steps)
    squares = every.steps**2
    together = np.stack([squares[:, :3].sum(1), squares[:, 3], squares[:, 4:].sum(1)], axis=1)
    np.testing.assert_allclose(some.steps, np.sqrt(together), rtol=1e-6)
    np.testing.assert_allclose(some.columns, every.columns)
