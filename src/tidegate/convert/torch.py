"""A `torch.nn.GRU` from one of ours, and back."""

from __future__ import annotations

from typing import Any

from torch import nn

from tidegate.convert.layouts import check_layer, filled
from tidegate.errors import of_type
from tidegate.nn import GRU


def from_torch(layer: nn.GRU) -> GRU:
    """A `tidegate.GRU` with the options, values, dtype, device and mode (training or not) of a `torch.nn.GRU`.

    Weights that are made of others (parametrised, pruned) arrive as their values.

    >>> from_torch(nn.GRU(3, 8, num_layers=2, dropout=0.1, batch_first=True))
    GRU(3, 8, num_layers=2, batch_first=True, dropout=0.1)

    Raises `TypeError` for anything but a `torch.nn.GRU`.
    """
    if not isinstance(layer, nn.GRU):
        raise TypeError(f"from_torch: layer is {of_type(layer)}, expected a torch.nn.GRU.")
    return _twin(GRU, layer)


def to_torch(layer: GRU) -> nn.GRU:
    """A `torch.nn.GRU` with the options, values, dtype, device and mode (training or not) of a `tidegate.GRU`.

    What says how to compute (backend, checkpoint_every) or how to begin (init, update_bias) stays behind.

    >>> to_torch(GRU(3, 8, bidirectional=True))
    GRU(3, 8, bidirectional=True)

    Raises `SettingsError` for a layer that computes what `torch.nn.GRU` can't, and `TypeError` for anything but a
    `tidegate.GRU`.
    """
    check_layer("to_torch", layer, "torch", "Keep the tidegate.GRU, or train one without.")
    return _twin(nn.GRU, layer)


def _twin(make: Any, layer: Any) -> Any:
    weights = [weight for run in layer.all_weights for weight in run]
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    twin = filled(make, weights, weights[0].device, **{name: getattr(layer, name) for name in names})
    for own, given in zip(twin.parameters(), weights, strict=True):
        own.requires_grad_(given.requires_grad)
    return twin.train(layer.training)
