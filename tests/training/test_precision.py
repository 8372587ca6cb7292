"""--precision bf16: the recurrence multiplies in bfloat16 while it is trained; all else is float32."""

from __future__ import annotations

import pytest
import torch

import tidegate
from tests.helpers.native import on_threads
from tests.helpers.tables import QUICK, signal_table
from tidegate.errors import SettingsError
from tidegate.ops.gru import native
from tidegate.trained.settings import TrainSettings
from tidegate.training import train

TOLD = QUICK | {"target": "label", "group": "device", "time": "t", "out": False}


def weights_of(run):
    return dict(run.model.state_dict())


def test_it_learns_what_float32_learns_with_other_bits():
    table = signal_table(groups=40)
    wide, narrow = (train(table, **TOLD | {"epochs": 12, "precision": p}) for p in ("float32", "bf16"))
    assert all(v.dtype == torch.float32 for v in weights_of(narrow).values())
    assert any(not torch.equal(v, weights_of(wide)[name]) for name, v in weights_of(narrow).items())
    losses = [run.history[-1]["valid_loss"] for run in (wide, narrow)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_weights_are_the_same_on_any_number_of_threads(signals):
    one, three = (on_threads(n, lambda: weights_of(train(signals, precision="bf16", **TOLD))) for n in (1, 3))
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_a_run_says_its_precision_and_is_judged_and_predicts_in_float32(signals, tmp_path):
    tidegate.train(signals, precision="bf16", **TOLD | {"out": tmp_path / "run"})
    run = tidegate.load(tmp_path / "run")
    assert "precision: bf16" in (tmp_path / "run" / "config.yaml").read_text()
    before = run.predict(signals, probabilities=True)
    run.model.bf16 = True  # (as in a training; it is of no account while it doesn't train)
    assert run.predict(signals, probabilities=True).equals(before)


def test_only_a_gru_on_the_cpu_with_its_kernels_can_be_trained_so(signals, monkeypatch):
    with pytest.raises(SettingsError, match=r"precision='bf16' needs cell='gru': 'lstm' is trained in float32\. Leave"):
        train(signals, precision="bf16", cell="lstm", **TOLD)
    with pytest.raises(SettingsError, match=r"precision='fp8': expected one of 'float32' or 'bf16'"):
        train(signals, precision="fp8", **TOLD)
    with pytest.raises(
        SettingsError, match=r"for the CPU, and the device is meta\. Leave precision out, or say device='cpu'"
    ):
        tidegate.training.resolve.check_precision("bf16", torch.device("meta"))
    monkeypatch.setattr(native.kernels, "_MISSING", "not here")
    with pytest.raises(SettingsError, match="precision='bf16' can't be had here: not here"):
        train(signals, precision="bf16", **TOLD)


def test_cells_to_compare_with_are_trained_in_float32():
    settings = TrainSettings(target="label", precision="bf16")
    assert settings.with_cell("none").precision == "float32"
    assert settings.with_cell("gru").precision == "bf16"
