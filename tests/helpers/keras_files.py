"""The Keras file of every kind of run, each written and loaded once."""

from __future__ import annotations

import functools

from tests.helpers.runs import folder_of, run_of


@functools.cache
def file_of(name):
    """The file of that run, written by the door that users take."""
    run = run_of(name)
    path = folder_of(name).parent / "run.keras"
    assert run.export("keras", path).path == path
    return path


@functools.cache
def model_of(name):
    import keras

    return keras.saving.load_model(file_of(name))
