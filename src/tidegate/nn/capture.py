"""What torch.fx and TorchScript get to see of a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from tidegate.errors import SettingsError

_USUAL = frozenset((Tensor, Parameter, PackedSequence, list, tuple, type(None)))


def as_node(layer: Any, method: str, *args: Any, **options: Any) -> Any:
    """The call of a layer as one node, where torch.fx traces (an argument is a `Proxy`): so it treats the layers of torch.nn, which
    it knows by their names. None where nothing is traced. Arguments that are None are left out.

    The node is a `call_module`, as for `torch.nn.GRU`. But torch.fx has entered our layer as it enters every module that isn't
    torch.nn's: by now hooks have run, and so has what a subclass puts around `forward`. Where there are such, or another method
    is asked for, the node calls the method alone, so that nothing is computed twice.
    """
    if is_compiling() or (_USUAL.issuperset(map(type, args)) and _USUAL.issuperset(map(type, options.values()))):
        return None
    from torch.fx import Proxy

    tracer: Any = next((v.tracer for v in (*args, *options.values()) if isinstance(v, Proxy)), None)
    if tracer is None:
        return None
    target = tracer.path_of_module(layer)
    if not target:
        me = type(layer).__name__
        raise SettingsError(
            f"{me}: torch.fx traces a model that holds this layer, and leaves the layer whole, but not the layer itself. "
            f"Trace torch.nn.Sequential(layer), or a model of your own."
        )
    args = tuple(v for v in args if v is not None)
    options = {name: value for name, value in options.items() if value is not None}
    if method == "forward" and type(layer).forward is _own(layer, "forward") and not _has_hooks(layer):
        return tracer.create_proxy("call_module", target, args, options)
    module = tracer.create_proxy("get_attr", target, (), {})
    return tracer.create_proxy("call_function", call_method, (module, method, *args), options)


def call_method(layer: Any, method: str, *args: Any, **options: Any) -> Any:
    """A method of a layer as Tidegate has it, whatever a subclass or hooks put around it: what `as_node` leaves in a graph."""
    return _own(layer, method)(layer, *args, **options)


def _own(layer: Any, method: str) -> Any:
    return next(
        vars(c)[method] for c in type(layer).__mro__ if method in vars(c) and c.__module__.startswith("tidegate.nn.")
    )


def _has_hooks(layer: Any) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def not_scriptable(layer: Any, instead: str) -> SettingsError:
    """What `torch.jit.script` is to be told."""
    return SettingsError(
        f"{type(layer).__name__}: torch.jit.script can't read this layer. {instead} Where TorchScript isn't a must, "
        "torch.export and torch.compile take the layer as it is."
    )
