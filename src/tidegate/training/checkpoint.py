"""Weights and training state on disk: safetensors and JSON, never pickle, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tidegate.errors import RunError
from tidegate.files import replacing
from tidegate.model import ModelSpec, SequenceModel

MODEL_FORMAT, CHECKPOINT_FORMAT, VERSION = "tidegate-model", "tidegate-checkpoint", 1
HEADER = "tidegate"  # one key: safetensors writes several in a random order, and files of equal runs should be equal


def save_model(model: SequenceModel, path: Path) -> None:
    """The weights, with the sizes of the model in the file's header."""
    _save(model.state_dict(), {"format": MODEL_FORMAT, "version": VERSION, "model": model.spec.to_dict()}, path)


def load_model(path: Path) -> SequenceModel:
    """The model that `save_model` wrote. Raises RunError: missing, cut off, or another program's file."""
    tensors, header = _load(path, MODEL_FORMAT)
    with torch.device("meta"):  # no weights to draw and throw away, and the random state stays as it was
        model = SequenceModel(ModelSpec.from_dict(header["model"]))
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise RunError(
            f"{path} doesn't hold the weights that its header describes ({str(error).splitlines()[-1].strip()})."
        ) from error
    return model.eval()


def read_spec(path: Path) -> ModelSpec:
    """The sizes alone, without the weights."""
    return ModelSpec.from_dict(_load(path, MODEL_FORMAT, with_tensors=False)[1]["model"])


def save_checkpoint(
    path: Path, model: SequenceModel, optimizer: torch.optim.Optimizer, rng: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Everything that training needs to go on as if it had not stopped."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
    tensors |= {f"rng.{k}": v for k, v in rng.items()}
    _save(tensors, {"format": CHECKPOINT_FORMAT, "version": VERSION, "state": state}, path)


def load_checkpoint(
    path: Path, model: SequenceModel, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a checkpoint's weights and optimiser state in place; return its random state and the rest."""
    tensors, header = _load(path, CHECKPOINT_FORMAT)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise RunError(f"{path} belongs to another model ({str(error).splitlines()[-1].strip()}).") from error
    saved: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            saved.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    rng = {k.removeprefix("rng."): v for k, v in tensors.items() if k.startswith("rng.")}
    return rng, header["state"]


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint without its tensors."""
    return _load(path, CHECKPOINT_FORMAT, with_tensors=False)[1]["state"]


def _save(tensors: dict[str, Tensor], header: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            temporary,
            metadata={HEADER: json.dumps(header)},
        )


def _load(path: Path, expected: str, with_tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run is not complete.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path} can't be read ({error}). It was cut off, or is not a safetensors file.") from error
    if header.get("format") != expected:
        raise RunError(
            f"{path} was not written by Tidegate ({expected} was expected, found {header.get('format', 'no mark')!r})."
        )
    if header.get("version") != VERSION:
        raise RunError(f"{path} was written by another version of Tidegate. Update this one.")
    return tensors, header
