"""The native back end in threads, forked processes and data loaders, on one instruction set or another."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

import tidegate
from tests.helpers.native import ISAS, gradients, layer_of, on_threads
from tidegate.ops.gru import native, reference

# Every test of this file runs on every instruction set of this machine.
pytestmark = pytest.mark.usefixtures("every_isa")


def test_calls_from_many_python_threads_at_once_are_all_right():
    layer = layer_of(16, 64, bidirectional=True)
    x = torch.randn(20, 24, 16)
    expected = gradients(layer, x)
    wrong = []

    def work():
        own = copy.deepcopy(layer)
        for _ in range(5):
            with torch.no_grad():
                wrong.extend([] if torch.equal(own(x)[0], expected[0]) else [1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_child(layer, x, expected, queue):
    torch.set_num_threads(2)
    with torch.no_grad():
        queue.put(torch.equal(layer(x)[0], expected))


def test_a_forked_child_gets_the_same_bits():
    layer = layer_of(16, 64)
    x = torch.randn(20, 24, 16)
    with torch.no_grad():
        expected = on_threads(2, lambda: layer(x)[0])  # the parent has used its threads
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(layer, x, expected, queue))
    child.start()
    child.join(60)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert queue.get() is True


def _tiny():
    """A layer and an input whose states lie below the smallest normal number."""
    torch.manual_seed(0)
    return tidegate.GRU(16, 64, bias=False, backend="native"), torch.randn(60, 64, 16) * 1e-39


def _flushed_in_every_mode(layer, x):
    """Whether 1 and 2 threads give zeros for numbers below the smallest normal one, whatever PyTorch's mode is, and leave it."""
    found, left = [], []
    for flush in (False, True):
        assert torch.set_flush_denormal(flush)
        with torch.no_grad():
            found += [on_threads(n, lambda: layer(x)[0]) for n in (1, 2)]
        left.append(bool(torch.tensor([1e-39]) * torch.ones(1)))
    torch.set_flush_denormal(False)
    return all(bool((v == 0).all()) for v in found) and left == [True, False]


def test_numbers_below_the_smallest_normal_one_are_zero_in_kernels_whatever_the_callers_mode():
    layer, x = _tiny()
    with torch.no_grad():
        on_threads(2, lambda: layer(x))  # the threads are there before the mode changes
    assert _flushed_in_every_mode(layer, x)


def _modes_in_child(layer, x, queue):
    with torch.no_grad():
        on_threads(2, lambda: layer(x))
    queue.put(_flushed_in_every_mode(layer, x))


def test_so_they_are_in_a_forked_child():
    layer, x = _tiny()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_modes_in_child, args=(layer, x, queue))
    child.start()
    child.join(60)
    child.kill()
    assert not queue.empty()
    assert queue.get() is True


class _Rows(torch.utils.data.Dataset):
    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 8

    def __getitem__(self, i):
        with torch.no_grad():
            return self.layer(torch.full((6, 2, 3), float(i)))[0]


def test_it_runs_inside_dataloader_workers():
    rows = _Rows(layer_of(3, 40))
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2)
    for i, output in enumerate(loader):
        assert torch.equal(output, rows[i])


@pytest.mark.long
def test_many_calls_of_many_shapes_leak_nothing():
    layer = layer_of(16, 128)

    def resident_kib():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4

    def steps(n):
        with torch.no_grad():
            h = torch.zeros(1, 1, 128)
            for i in range(n):
                h = layer(torch.ones(1, 1, 16), h)[1]
                _, h = layer.step(torch.ones(1, 16), h)
                if i % 10 == 0:
                    layer.step(torch.ones(1 + i % 5, 16))
                    layer(torch.ones(1 + i % 7, 1 + i % 5, 16))
        for i in range(n // 20):
            gradients(layer, torch.ones(1 + i % 7, 1 + i % 5, 16))

    steps(2000)
    before = resident_kib()
    steps(10000)
    assert resident_kib() - before < 4096


def test_torchs_number_of_threads_is_what_the_kernels_get(monkeypatch):
    given = []

    class Spy:
        def __getattr__(self, name):
            real = getattr(cpp, name)
            return lambda *args, **named: (given.append((name, named["threads"])), real(*args, **named))[1]

    cpp = native.kernels.cpp
    monkeypatch.setattr(native.kernels, "cpp", Spy())
    layer, x = layer_of(3, 4), torch.randn(5, 2, 3)
    for n in (1, 3):
        given.clear()
        layer._kept.clear()
        on_threads(n, lambda: gradients(layer, x))
        assert given == [("forward_once", n), ("QuickLayer", torch.get_num_threads), ("backward", n)]


def native_of(isa):
    code = "from tidegate.ops.gru import native; print(native.missing(), native.isa())"
    environment = {**os.environ, "TIDEGATE_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_can_force_a_lower_instruction_set(isa):
    assert native_of(isa).split() == ["None", isa]


@pytest.mark.long
def test_an_instruction_set_that_this_machine_has_not_is_told_with_those_it_has():
    assert "TIDEGATE_ISA='sse9' is none of this machine's: " + ", ".join(ISAS) in native_of("sse9")


def test_the_reference_and_the_native_back_end_agree_on_a_large_layer():
    layer = layer_of(64, 130, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, h_0 = torch.randn(40, 9, 64, dtype=torch.float64), torch.randn(4, 9, 130, dtype=torch.float64)
    options = {"num_layers": 2, "bidirectional": True}
    ours = native.gru(x, h_0, list(layer.parameters()), **options)
    exact = reference.gru(x, h_0, list(layer.parameters()), **options)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
