"""What torch.fx and TorchScript get to see of a layer."""

from __future__ import annotations

from typing import Any

from tidegate.errors import SettingsError


def as_leaf(layer: Any, *args: Any, **options: Any) -> Any:
    """The call of a layer as one node, `call_module`, where torch.fx traces (x is a `Proxy`): so it treats the layers of torch.nn,
    which it knows by their names. None where x is anything else.

    Asked only where x is no plain tensor. Arguments that are None are left out.
    """
    from torch.fx import Proxy

    if not isinstance(args[0], Proxy):
        return None
    tracer: Any = args[0].tracer
    target = tracer.path_of_module(layer)
    if not target:
        me = type(layer).__name__
        raise SettingsError(
            f"{me}: torch.fx traces a model that holds this layer, and leaves the layer whole, but not the layer itself. "
            f"Trace torch.nn.Sequential(layer), or a model of your own."
        )
    given = {name: value for name, value in options.items() if value is not None}
    return tracer.create_proxy("call_module", target, tuple(v for v in args if v is not None), given)


def not_scriptable(layer: Any, instead: str) -> SettingsError:
    """What `torch.jit.script` is to be told."""
    return SettingsError(
        f"{type(layer).__name__}: torch.jit.script can't read this layer. {instead} Where TorchScript isn't a must, "
        "torch.export and torch.compile take the layer as it is."
    )
