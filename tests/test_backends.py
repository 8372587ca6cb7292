"""The table of back ends: what is chosen, what is refused, and proof of what ran."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tidegate
from tidegate import backends
from tidegate.errors import BackendUnavailableError, SettingsError
from tidegate.ops.gru import reference, torch_aten


def operators_of(layer, x):
    """The names of all operators that torch itself saw run."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        layer(x)
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_fast_path_really_runs(backend):
    assert "aten::gru" in operators_of(tidegate.GRU(3, 4, backend=backend), torch.zeros(5, 2, 3))
    assert "aten::gru_cell" in operators_of(tidegate.GRUCell(3, 4, backend=backend), torch.zeros(2, 3))


def test_the_reference_asked_for_by_name_is_what_runs():
    for layer, x in (
        (tidegate.GRU(3, 4, backend="reference"), torch.zeros(5, 2, 3)),
        (tidegate.GRUCell(3, 4, backend="reference"), torch.zeros(2, 3)),
    ):
        seen = operators_of(layer, x)
        assert {"aten::linear", "aten::tanh"} <= seen
        assert not {name for name in seen if name.startswith("aten::gru")}


def test_choose_gives_the_module_that_was_asked_for():
    assert backends.choose() is backends.choose("auto") is torch_aten
    assert backends.choose("torch") is torch_aten
    assert backends.choose("reference") is reference


def test_a_named_back_end_that_is_not_here_raises_and_says_so():
    with pytest.raises(BackendUnavailableError) as caught:
        backends.choose("native")
    assert str(caught.value) == (
        "Back end 'native' can't run: the C++ kernel for CPUs is not part of this build. "
        "Use one of 'auto', 'torch', 'reference'."
    )
    for layer in (tidegate.GRU, tidegate.GRUCell):
        with pytest.raises(BackendUnavailableError):
            layer(3, 4, backend="native")


@pytest.mark.parametrize("ask", [backends.choose, backends.explain])
def test_an_unknown_name_raises_and_names_the_nearest(ask):
    with pytest.raises(SettingsError, match=r"known are 'auto', 'torch', 'reference', 'native'\. Did you mean 'torch'"):
        ask("troch")
    with pytest.raises(ValueError, match="Unknown back end None"):
        ask(None)


@pytest.mark.parametrize("backend", backends.NAMES)
def test_explain_agrees_with_choose(backend):
    said = backends.explain(backend)
    assert said.asked == backend
    assert set(said.reasons) | {"auto"} == set(backends.NAMES)
    if said.chosen is None:
        with pytest.raises(BackendUnavailableError):
            backends.choose(backend)
        assert "can't run here" in str(said)
    else:
        assert backends.choose(backend) is backends.choose(said.chosen)
        assert [name for name, why in said.reasons.items() if why.startswith("chosen")] == [said.chosen]
        assert f"runs {said.chosen!r}" in str(said)
    for name, why in said.reasons.items():
        assert f"  {name:<10} {why}" in str(said)


@pytest.mark.parametrize("name", ["backends", "nn.gru", "nn.cell", "ops.gru.reference"])
def test_the_examples_in_the_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(f"tidegate.{name}"))
    assert tried > 0
    assert failed == 0
