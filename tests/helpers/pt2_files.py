"""The torch.export archive of every kind of run, each written and loaded once."""

from __future__ import annotations

import functools

import torch

from tests.helpers.runs import folder_of, run_of


@functools.cache
def archive(name):
    """The file of that run, written by the door that users take."""
    run = run_of(name)
    path = folder_of(name).parent / "run.pt2"
    assert run.export("pt2", path).path == path
    return path


@functools.cache
def program(name):
    return torch.export.load(archive(name)).module()
