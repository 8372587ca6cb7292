"""Runs that are compared to the bit, and trainings that end early."""

from __future__ import annotations

import os
import signal

import torch

from tidegate.training.progress import Silent

ROLES = {"target": "label", "group": "device", "time": "t"}


def weights(r) -> dict[str, torch.Tensor]:
    return r.model.state_dict()


def same_weights(a, b) -> bool:
    return all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


class StopAfter(Silent):
    """Sends this process a Ctrl-C after some batches."""

    def __init__(self, batches: int):
        self.left = batches

    def step(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


class DieAfter(StopAfter):
    """Ends the training as a power cut would: nothing more is saved."""

    def step(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError
