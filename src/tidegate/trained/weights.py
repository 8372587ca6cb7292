"""Weights on disk: safetensors with a JSON header, never pickle, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tidegate.documents import Damaged, cut, from_json, shown
from tidegate.errors import RunError
from tidegate.files import replacing
from tidegate.model import ModelSpec, SequenceModel

FORMAT = "tidegate-model"
VERSION = 2  # 1, up to November 2026, had no options of the core
HEADER = "tidegate"  # one key: safetensors writes several in a random order, and files of equal runs should be equal


def save_model(model: SequenceModel, path: Path) -> None:
    """The weights, with the sizes of the model in the file's header."""
    write_tensors(model.state_dict(), {"format": FORMAT, "version": VERSION, "model": model.spec.to_dict()}, path)


def load_model(path: Path) -> SequenceModel:
    """The model that `save_model` wrote. Raises RunError: missing, cut off, of a later version, or another program's file."""
    tensors, header = read_tensors(path, FORMAT, VERSION)
    return model_of(ModelSpec.from_dict(header.get("model", {}), str(path)), tensors, str(path))


def model_of(spec: ModelSpec, weights: Mapping[str, Tensor], name: str = "The model") -> SequenceModel:
    """The model of this spec that has these weights (the tensors themselves), in evaluation mode. Raises RunError where they don't
    fit together.
    """
    try:
        if max(spec.num_layers, len(spec.vocabularies)) > len(weights):  # before they are made
            raise ValueError(f"{len(weights)} arrays for {spec.num_layers} layers")
        with torch.device("meta"):  # no weights to draw and throw away, and the random state stays as it was
            model = SequenceModel(spec)
        kinds = {weight.dtype for weight in weights.values()}
        if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
            raise ValueError(f"they are {' and '.join(sorted(map(str, kinds)))}")
        model.load_state_dict(weights, strict=True, assign=True)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise RunError(
            f"{name} doesn't hold the weights that its header describes ({cut(str(error).strip().splitlines()[-1])})."
        ) from error
    return model.eval()


def weights_of(model: SequenceModel) -> dict[str, Tensor]:
    """A copy of the weights as they are now, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def write_tensors(tensors: Mapping[str, Tensor], header: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        # (Its own function for files makes one of another name beside it, which stays where the process is killed.)
        arrays = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        temporary.write_bytes(save(arrays, metadata={HEADER: json.dumps(header)}))


def read_tensors(
    path: Path, expected: str, version: int, *, with_tensors: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file in the format `expected`, of a version up to `version`. Raises RunError."""
    if not path.is_file():
        raise RunError(f"{path} is missing: the run is not complete.")
    try:
        with safe_open(path, framework="pt") as file:
            header = from_json((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, Damaged) as error:
        raise RunError(
            f"{path} can't be read ({cut(str(error))}). It was cut off, or is not a safetensors file."
        ) from error
    mark = header.get("format", "no mark") if isinstance(header, dict) else header
    if mark != expected:
        raise RunError(f"{path} was not written by Tidegate ({expected} was expected, found {shown(mark)}).")
    found = header.get("version")
    if not isinstance(found, int) or found > version:
        raise RunError(f"{path} was written by another version of Tidegate, a later one. Update this one.")
    return tensors, header
