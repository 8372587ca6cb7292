"""The files that exports write of every kind of run, each written and loaded once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from tests.helpers.runs import folder_of, run_of


@functools.cache
def file_of(name: str, to: str) -> Path:
    """The file of that run, written by the door that users take."""
    path = folder_of(name).parent / f"run.{to}"
    assert run_of(name).export(to, path).path == path
    return path


@functools.cache
def program(name: str) -> Any:
    """PyTorch's archive, loaded."""
    return torch.export.load(file_of(name, "pt2")).module()


@functools.cache
def model_of(name: str) -> Any:
    """Keras' model, loaded."""
    import keras

    return keras.saving.load_model(file_of(name, "keras"))
