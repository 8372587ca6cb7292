"""Where a training stands, on disk: weights, optimiser, random state and counts. See `trained.weights` for the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tidegate.documents import shown
from tidegate.errors import RunError
from tidegate.model import SequenceModel
from tidegate.trained.weights import read_tensors, write_tensors

FORMAT = "tidegate-checkpoint"
VERSION, WITHOUT_STATES = 2, 1  # 1 is still written where no state is carried, so that earlier versions go on from it
_OF_ADAM = {"step", "exp_avg", "exp_avg_sq"}
AGAIN = "The training can't go on from it: start a new run."


class Optimizer(Protocol):
    """What a checkpoint asks of an optimiser; torch's have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> None: ...


class Checkpoint(NamedTuple):
    """weights: the model's; optimizer: its state by parameter; random: of the generators; state: the rest, as JSON knows it;
    carried: with `carry_state`, inside an epoch, the parts of the cell's state that the last batch left in its rows.
    """

    weights: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    random: dict[str, Tensor]
    state: dict[str, Any]
    carried: tuple[Tensor, ...] = ()

    @staticmethod
    def of(
        model: SequenceModel,
        optimizer: Optimizer,
        random: dict[str, Tensor],
        state: dict[str, Any],
        carried: tuple[Tensor, ...] = (),
    ) -> Checkpoint:
        """How things stand now. The tensors are those in use: to be written before they change."""
        saved = {
            int(index): {k: torch.as_tensor(v) for k, v in values.items()}
            for index, values in optimizer.state_dict()["state"].items()
        }
        return Checkpoint(dict(model.state_dict()), saved, random, state, carried)

    def put_into(self, model: SequenceModel, optimizer: Optimizer, name: str) -> None:
        """Go on from here. Raises RunError where it is another model's; name: how that calls it."""
        try:
            model.load_state_dict(self.weights, strict=True)
        except RuntimeError as error:
            raise RunError(f"{name} belongs to another model ({str(error).splitlines()[-1].strip()}).") from error
        parameters = [
            p for group in optimizer.param_groups for p in group["params"]
        ]  # (frozen ones have no place there)
        for index, values in self.optimizer.items():
            for key, value in values.items():
                right = 0 <= index < len(parameters) and value.shape in ((), parameters[index].shape)
                if (
                    not right
                    or value.dtype != torch.float32
                    or {*values} != _OF_ADAM
                    or (key == "step") != (value.ndim == 0)
                ):
                    raise RunError(f"{name} is damaged (the optimiser's {key} of weight {index}). {AGAIN}")
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.optimizer, "param_groups": groups})


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    tensors = {f"model.{k}": v for k, v in checkpoint.weights.items()}
    for index, values in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    tensors |= {f"rng.{k}": v for k, v in checkpoint.random.items()}
    tensors |= {f"carried.{k}": v for k, v in enumerate(checkpoint.carried)}
    version = VERSION if checkpoint.carried else WITHOUT_STATES
    write_tensors(tensors, {"format": FORMAT, "version": version, "state": checkpoint.state}, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """What `save_checkpoint` wrote. Raises RunError: missing, cut off, of a later version, or another program's file."""
    tensors, header = read_tensors(path, FORMAT, VERSION)
    state = header.get("state")
    if not isinstance(state, dict):
        raise RunError(f"{path} is damaged (it doesn't say where the training stood). {AGAIN}")
    carried: list[Tensor] = []
    while (name := f"carried.{len(carried)}") in tensors:
        carried.append(tensors.pop(name))
    checkpoint = Checkpoint({}, {}, {}, state, tuple(carried))
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            checkpoint.weights[rest] = value
        elif kind == "rng":
            checkpoint.random[rest] = value
        else:
            index, _, key = rest.partition(".")
            if kind != "optimizer" or not index.isdecimal() or len(index) > 9:
                raise RunError(f"{path} is damaged (an array {shown(name)}). {AGAIN}")
            checkpoint.optimizer.setdefault(int(index), {})[key] = value
    return checkpoint
