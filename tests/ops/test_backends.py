"""The table of back ends: what is chosen, what is refused, and proof of what ran."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tidegate
from tidegate import backends
from tidegate.errors import BackendUnavailableError, BackendWarning, SettingsError
from tidegate.ops.gru import native, reference, torch_aten


def operators_of(layer, x):
    """The names of all operators that torch itself saw run."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        layer(x)
    return {event.key for event in seen.key_averages()}


def native_calls(monkeypatch):
    """The calls that arrive at the C++ module, by name."""
    seen = []

    class Spy:
        def __getattr__(self, name):
            real = getattr(cpp, name)
            return lambda *args, **named: (seen.append(name), real(*args, **named))[1]

    cpp = native.kernels.cpp
    monkeypatch.setattr(native.kernels, "cpp", Spy())
    return seen


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_the_fast_path_really_runs(backend, monkeypatch):
    seen = native_calls(monkeypatch)
    layer, cell = tidegate.GRU(3, 4, backend=backend), tidegate.GRUCell(3, 4, backend=backend)
    assert not {name for name in operators_of(layer, torch.zeros(5, 2, 3)) if "gru" in name.lower()} - {"_Layer"}
    assert seen == ["forward_once", "QuickLayer"]
    layer(torch.zeros(5, 2, 3))[0].sum().backward()
    assert len(seen) == 2  # from the second call on one object of C++ does it all
    layer._kept.clear()
    layer(torch.zeros(5, 2, 3))[0].sum().backward()
    assert seen[2:] == ["forward_once", "QuickLayer", "backward"]
    cell(torch.zeros(2, 3))
    assert seen[5:] == ["forward_once"]
    with torch.no_grad():
        layer(torch.zeros(5, 2, 3))
        cell(torch.zeros(2, 3))
        layer.step(torch.zeros(2, 3))
    assert seen[6:] == [
        "pack",
        "forward",
        "QuickLayer",
        "is_beginning",
        "pack",
        "QuickStep",
        "step",
        "QuickStep",
        "step",
    ]
    with torch.no_grad():  # again from now on
        layer(torch.zeros(5, 2, 3))
        layer.step(torch.zeros(2, 3), torch.zeros(1, 2, 4))
        cell(torch.zeros(2, 3), torch.zeros(2, 4))
    assert len(seen) == 15


def test_torch_asked_for_by_name_is_what_runs(monkeypatch):
    seen = native_calls(monkeypatch)
    assert "aten::gru" in operators_of(tidegate.GRU(3, 4, backend="torch"), torch.zeros(5, 2, 3))
    assert "aten::gru_cell" in operators_of(tidegate.GRUCell(3, 4, backend="torch"), torch.zeros(2, 3))
    assert not seen


def test_the_reference_asked_for_by_name_is_what_runs():
    for layer, x in (
        (tidegate.GRU(3, 4, backend="reference"), torch.zeros(5, 2, 3)),
        (tidegate.GRUCell(3, 4, backend="reference"), torch.zeros(2, 3)),
    ):
        seen = operators_of(layer, x)
        assert {"aten::linear", "aten::tanh"} <= seen
        assert not {name for name in seen if name.startswith("aten::gru")}


def test_choose_gives_the_module_that_was_asked_for():
    x = torch.zeros(1)
    assert backends.choose("auto", x) is backends.choose("native", x) is native
    assert backends.choose("torch", x) is torch_aten
    assert backends.choose("reference", x) is reference


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (torch.zeros(1, device="meta"), "it runs on the CPU, and x is on meta"),
        (torch.zeros(1, dtype=torch.complex64), "it computes in float32 and float64, and x is torch.complex64"),
    ],
    ids=["device", "dtype"],
)
def test_native_says_what_it_cant_run_and_auto_takes_another(x, why):
    with pytest.raises(BackendUnavailableError) as caught:
        backends.choose("native", x)
    assert str(caught.value) == f"Back end 'native' can't run: {why}. Use one of 'auto', 'torch', 'reference'."
    assert backends.choose("auto", x) is torch_aten
    said = backends.explain(device=x.device, dtype=x.dtype)
    assert said.chosen == "torch"
    assert said.reasons["native"] == f"can't run: {why}"


def test_forward_mode_derivatives_go_another_way():
    layer = tidegate.GRU(3, 4)
    x = torch.randn(5, 2, 3)
    tangent = torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))[1]
    step = 1e-3
    moved = (layer(x + step)[0] - layer(x - step)[0]) / (2 * step)
    torch.testing.assert_close(tangent, moved, rtol=0, atol=1e-3)
    with pytest.raises(BackendUnavailableError, match="it has no forward-mode derivative"):
        torch.func.jvp(lambda x: tidegate.GRU(3, 4, backend="native")(x)[0], (x,), (x,))


def test_an_installation_without_the_kernel_says_so_and_runs(monkeypatch):
    monkeypatch.setattr(native.kernels, "_MISSING", "the C++ kernel is not part of this installation")
    backends._say_what_is_missing.cache_clear()
    for make in (tidegate.GRU, tidegate.GRUCell):
        with pytest.raises(BackendUnavailableError) as caught:
            make(3, 4, backend="native")
        assert str(caught.value) == (
            "Back end 'native' can't run: the C++ kernel is not part of this installation. "
            "Use one of 'auto', 'torch', 'reference'."
        )
    assert backends.explain().chosen == "torch"
    runs = lambda: operators_of(tidegate.GRU(3, 4), torch.zeros(5, 2, 3))  # noqa: E731
    with pytest.warns(
        BackendWarning, match=r"runs without its kernels, as the C\+\+ kernel is not part of this"
    ) as said:
        assert all("aten::gru" in operators for operators in (runs(), runs()))
    assert len(said) == 1  # once in a process


def test_where_the_kernels_are_nothing_is_said_of_them(recwarn):
    backends._say_what_is_missing.cache_clear()
    tidegate.GRU(3, 4).half()(torch.zeros(5, 2, 3, dtype=torch.float16))
    torch.func.vmap(tidegate.GRU(3, 4))(torch.zeros(2, 5, 2, 3))
    assert not recwarn.list


@pytest.mark.parametrize("ask", [backends.check, lambda name: backends.choose(name, torch.zeros(1)), backends.explain])
def test_an_unknown_name_raises_and_names_the_nearest(ask):
    with pytest.raises(SettingsError, match=r"known are 'auto', 'native', 'torch', 'reference'\. Did you mean 'torch'"):
        ask("troch")
    with pytest.raises(ValueError, match="Unknown back end None"):
        ask(None)


@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_explain_agrees_with_choose(backend, device):
    x = torch.zeros(1, device=device)
    said = backends.explain(backend, device=device)
    assert said.asked == backend
    assert set(said.reasons) | {"auto"} == set(backends.NAMES)
    if said.chosen is None:
        with pytest.raises(BackendUnavailableError):
            backends.choose(backend, x)
        assert "can't run here" in str(said)
    else:
        assert backends.choose(backend, x) is backends.choose(said.chosen, x)
        assert [name for name, why in said.reasons.items() if why.startswith("chosen")] == [said.chosen]
        assert f"runs {said.chosen!r}" in str(said)
    for name, why in said.reasons.items():
        assert f"  {name:<10} {why}" in str(said)


@pytest.mark.parametrize("name", ["backends", "nn.gru", "nn.cell", "ops.gru.equations"])
def test_the_examples_in_the_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(f"tidegate.{name}"))
    assert tried > 0
    assert failed == 0
