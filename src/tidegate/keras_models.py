"""Keras 3 itself: importing it as it should be, and finding the GRU layers of its models.

Weights and gate orders are `tidegate.convert`'s; this is what needs Keras installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tidegate.convert import from_keras
from tidegate.documents import cut
from tidegate.errors import SettingsError, nearest, of_type, package_missing
from tidegate.nn import GRU


def load_keras_gru(source: Any, layers: str | Sequence[str] | None = None, *, device: Any = None) -> GRU:
    """The GRU layers of a Keras model, one on another, as one `tidegate.GRU` (batch_first=True) with the same numbers.

    source: a `.keras` file, an `.h5` one where Keras still reads it, or a model or layer of Keras 3, on any of its back ends.
        Only `.h5` files that you trust: that format can hold code, which Keras refuses in what ways it knows.
    layers: names of the layers to take, from below, where the model has GRUs in several places; None: the only stack.
        Those of a model within the model are called "model/layer", as the error that lists them says. Several names are a
        piece of one stack; of a model that is no graph of layers (a subclass with a call of its own) only one can be taken.
    device: of the parameters.

    Layers of a stack read each other, at most through layers that do nothing outside training (Dropout and its like); all of
    them are `keras.layers.GRU`, or all `Bidirectional` ones. A layer that begins with a state which the model computes
    (initial_state) begins a stack of its own. What is theirs alone stays behind: dropout, masks (give our layer
    a packed sequence in place of one), stateful, and return_sequences: where it is False, `output[:, -1]`, or for
    `Bidirectional` the last two of `h_n`, is what Keras' layer returns.

    Raises `SettingsError` (which layer, and what would help) where there is no stack or more than one, where a layer computes
    what no `tidegate.GRU` does, and where the file can't be read; `PackageMissingError` where Keras isn't installed;
    `TypeError` for other sources.

        layer = tidegate.load_keras_gru("model.keras")
        output, h_n = layer(x)                      # x [B, T, I], output [B, T, D*H], h_n [layers*D, B, H]
    """
    named = _names(layers)
    _check_device(device)
    model = _open_keras(source)
    keras = sys.modules["keras"]
    every = _keras_layers(model)
    grus = {name: layer for name, layer in every.items() if _is_keras_gru(keras, layer)}
    paths = _Paths(keras, model)
    if named is not None:
        chosen = [_named(name, every, grus) for name in named]
        paths.check(chosen)
    elif not grus:
        has = ", ".join(f"{name} ({type(layer).__name__})" for name, layer in every.items()) or "no layers"
        raise SettingsError(
            f"load_keras_gru: found no keras.layers.GRU and no Bidirectional one; {of_type(model)} has {has}."
        )
    else:
        stacks = paths.stacks()
        if len(stacks) > 1:
            said = "; ".join(f"layers={stack}" for stack in stacks)
            raise SettingsError(
                f"load_keras_gru: found {len(stacks)} stacks of GRU layers, with other layers or a state between them, or beside "
                f"each other. Name one of them: {said}."
            )
        (chosen,) = stacks
        paths.check_calls(chosen)
    for name in chosen:
        _check_keras_gru(keras, name, grus[name])
    _check_keras_alike(keras, [(name, grus[name]) for name in chosen])
    first = _keras_directions(grus[chosen[0]])[0]
    return from_keras(
        [grus[name].get_weights() for name in chosen],
        reset="after" if first.reset_after else "before",
        device=device,
    )


def import_keras(what: str, *, tensorflow: bool = False) -> Any:
    """Keras 3, imported for `what`, which stands at the beginning of errors. tensorflow: it must run on TensorFlow.

    Keras chooses its back end once, when it is imported. Where nobody has done that and KERAS_BACKEND isn't set, it is
    TensorFlow, or without that PyTorch, which is here. Raises `PackageMissingError`, and `SettingsError` for a Keras that
    is too old or runs on something else.
    """
    needed = ["keras", "tensorflow"] if tensorflow else ["keras"]
    missing = [name for name in needed if not _installed(name)]
    if missing:
        raise package_missing(what, missing, "keras")
    first = "keras" not in sys.modules and "KERAS_BACKEND" not in os.environ
    if first:
        os.environ["KERAS_BACKEND"] = "tensorflow" if _installed("tensorflow") else "torch"
    try:
        with _without_tensorflow_greetings():
            keras = importlib.import_module("keras")
    finally:
        if first:  # programs started from here choose for themselves
            del os.environ["KERAS_BACKEND"]
    if keras.__version__.startswith(("0.", "1.", "2.")):
        raise SettingsError(f"{what} needs Keras 3, found {keras.__version__}: pip install 'tidegate[keras]'")
    if tensorflow and keras.backend.backend() != "tensorflow":
        raise SettingsError(
            f"{what} needs Keras on TensorFlow, which reads text; here it runs on {keras.backend.backend()!r}. "
            "Start Python anew with KERAS_BACKEND=tensorflow."
        )
    return keras


SAFE_H5 = (3, 11, 3)
"""From this version on Keras heeds safe_mode in .h5 files too (CVE-2025-9905)."""


def _version(module: Any) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", module.__version__)[:3]))


def _installed(name: str) -> bool:
    return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None


@contextlib.contextmanager
def _without_tensorflow_greetings() -> Iterator[None]:
    """What TensorFlow's C++ says of this machine when it is first imported stays off the terminal; all else comes through."""
    if "tensorflow" in sys.modules:
        yield
        return
    quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    if quiet:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # read once: of what it says later, errors where it looks for a GPU
    try:
        terminal = os.dup(2)
    except OSError:  # no stderr at all
        terminal = None
    try:
        if terminal is None:
            yield
        else:
            with _but_the_greetings_of(terminal):
                yield
    finally:
        if quiet:  # programs started from here say what they like
            os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)


@contextlib.contextmanager
def _but_the_greetings_of(terminal: int) -> Iterator[None]:
    """C++ writes to the descriptor 2 of the whole process, so that is what is turned aside, if only during the import; what
    other threads write meanwhile comes through after it. terminal: a copy of 2."""

    def flush() -> None:
        if sys.stderr is not None:  # as under pythonw
            sys.stderr.flush()

    with tempfile.TemporaryFile() as said:
        flush()
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not re.match(r"I\d{4} |WARNING: All log messages before absl|To enable the following instr", line):
                    print(line, file=sys.stderr or sys.__stderr__)


def _open_keras(source: Any) -> Any:
    if isinstance(source, (str, Path)):
        path = Path(source)
        keras = import_keras("load_keras_gru")
        if not path.is_file():
            raise SettingsError(f"load_keras_gru: there is no file {path}.")
        if path.suffix in (".h5", ".hdf5") and _version(keras) < SAFE_H5:
            raise SettingsError(
                f"load_keras_gru: from {path.suffix} files Keras {keras.__version__} runs code that may stand in them, whatever "
                "is asked of it (CVE-2025-9905). Take a newer one, pip install 'tidegate[keras]', or save the model as .keras."
            )
        try:
            return keras.saving.load_model(path, compile=False)
        except Exception as error:
            said = cut(str(error)) or type(error).__name__
            raise SettingsError(
                f"load_keras_gru: Keras {keras.__version__} can't read {path}: {said.rstrip('.')}. "
                "Where the model has objects of your own, load it with keras.saving.load_model() and give the model."
            ) from error
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(source, keras.layers.Layer):
        raise TypeError(
            f"load_keras_gru: source is {of_type(source)}, expected the path of a .keras file, or a model or layer of Keras 3."
        )
    return source


def _keras_layers(model: Any, above: str = "") -> dict[str, Any]:
    """All layers by name, from the inputs on, those of models within as "model/layer"."""
    if not hasattr(model, "layers"):
        return {above + model.name: model}
    found: dict[str, Any] = {}
    for layer in model.layers:
        found |= _keras_layers(layer, f"{above}{layer.name}/" if hasattr(layer, "layers") else above)
    return found


def _is_keras_gru(keras: Any, layer: Any) -> bool:
    # Not a subclass: it may compute something else.
    wrapped = layer.forward_layer if type(layer) is keras.layers.Bidirectional else layer
    return type(wrapped) is keras.layers.GRU


_IDLE = (
    "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization", "Identity",
)  # fmt: skip
"""Layers of Keras that hand on what they read, but for training."""


@dataclass(frozen=True)
class _Place:
    """What is known of a tensor: for each GRU under it what stands between, nothing where it is that GRU's sequences; the
    inputs of the model under it; and whether it is such an input, or a piece of one."""

    grus: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: frozenset[int] = frozenset()
    given: bool = False

    @property
    def gru(self) -> str | None:
        return next((name for name, between in self.grus.items() if not between), None)


def _above(places: Sequence[_Place], what: str) -> _Place:
    """What a layer `what` makes of them."""
    grus: dict[str, tuple[str, ...]] = {}
    for place in places:
        for name, between in place.grus.items():
            grus[name] = tuple(dict.fromkeys([*grus.get(name, ()), *between, what]))
    return _Place(grus, frozenset().union(*(place.inputs for place in places)))


@dataclass(frozen=True)
class _Call:
    """One call of a GRU: what it reads, and whether it begins with a state that the model computes."""

    reads: _Place
    own_state: bool

    @property
    def below(self) -> str | None:
        return None if self.own_state else self.reads.gru


class _Paths:
    """Which GRUs of a model read each other, by their names as `_keras_layers` has them."""

    def __init__(self, keras: Any, model: Any):
        self.keras = keras
        self.names = list(_keras_layers(model))
        self.calls: dict[str, list[_Call]] = {}
        self.hidden: dict[str, str] = {}  # GRUs of which nobody knows what they read, and the type of their model
        if hasattr(model, "layers"):
            self._model(model, "", None)
        else:
            self._layer(model, "", [_Place()], None)

    def below(self, name: str) -> str | None:
        """The GRU that the one of that name reads, in each of its calls."""
        below = {call.below for call in self.calls.get(name, ())}
        return below.pop() if len(below) == 1 else None

    def stacks(self) -> list[list[str]]:
        """In the order of the layers. A stack that forks is two."""
        stacks: dict[str, list[str]] = {}  # by the name of the topmost
        for name in (*self.calls, *self.hidden):
            below = self.below(name)
            stacks[name] = [*stacks.get(below or "", []), name]
        inner = {below for stack in stacks.values() for below in stack[:-1]}
        return [stacks[name] for name in self.names if name in stacks and name not in inner]

    def check(self, chosen: Sequence[str]) -> None:
        """Raise SettingsError unless they are a piece of one stack, from below."""
        for below, name in itertools.pairwise(chosen):
            if self.below(name) != below or name == below:
                raise SettingsError(
                    f"load_keras_gru: layers={list(chosen)} is no piece of one stack: {self._why(below, name)}. "
                    f"{self._instead(chosen)}"
                )
        if len(chosen) > 1:  # one alone is what it is, whatever it reads
            self.check_calls(chosen)

    def check_calls(self, chosen: Sequence[str]) -> None:
        for name in chosen:
            calls = self.calls.get(name, [])
            if len({call.below for call in calls}) > 1 or any(name in call.reads.grus for call in calls):
                raise SettingsError(
                    f"load_keras_gru: layer {name!r} is called {len(calls)} times in this model and reads something else each "
                    f"time, which no stack of different layers does. layers={name!r} takes it as the one layer that it is."
                )

    def _instead(self, chosen: Sequence[str]) -> str:
        turned = list(chosen[::-1])
        if all(self.below(name) == below for below, name in itertools.pairwise(turned)):
            return f"Name them from below: layers={turned}."
        one_by_one = " and ".join(f"layers={name!r}" for name in dict.fromkeys(chosen))
        return f"Layers of a tidegate.GRU read each other directly: load one at a time, {one_by_one}."

    def _why(self, below: str, name: str) -> str:
        if name == below:
            return f"{name!r} stands in it twice"
        for hidden in (below, name):
            if hidden in self.hidden:
                return f"{hidden!r} is in a {self.hidden[hidden]}, which is no graph, so what it reads isn't known"
        calls = self.calls[name]
        if any(call.own_state and call.reads.gru == below for call in calls):
            return f"{name!r} begins with a state that the model computes (initial_state)"
        between = [call.reads.grus[below] for call in calls if below in call.reads.grus]
        if between and between[0]:
            return f"between {below!r} and {name!r} stands {', '.join(between[0])}"
        if any(name in call.reads.grus for call in self.calls[below]):
            return f"{below!r} reads {name!r}, not the other way round"
        return f"{name!r} doesn't read {below!r}, or not in all of its calls"

    def _model(self, model: Any, above: str, reads: list[_Place] | None) -> list[_Place] | None:
        """The places of what it gives; None where it is no graph. reads: of what it reads; None: of inputs from outside."""
        keras = self.keras
        if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
            places = reads or [_Place(inputs=frozenset([id(model)]), given=True)]
            for layer in model.layers:
                places = self._layer(layer, above, places[:1], None)
            return places
        if not _is_graph(model):
            for layer in model.layers:
                if hasattr(layer, "layers"):  # may be a graph by itself
                    self._layer(layer, above, [_Place()], None)
                elif _is_keras_gru(keras, layer):
                    self.hidden[above + layer.name] = type(model).__name__
            return None
        known: dict[int, _Place] = {}
        for k, tensor in enumerate(model.inputs):
            known[id(tensor)] = reads[k] if reads else _Place(inputs=frozenset([id(tensor)]), given=True)
        for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):  # by their distance from the outputs
            for node in nodes:
                if node.is_input:
                    continue
                places = [known.get(id(tensor), _Place()) for tensor in node.input_tensors]
                found = self._layer(node.operation, above, places, (node, known))
                for k, tensor in enumerate(node.outputs):
                    known[id(tensor)] = found[min(k, len(found) - 1)]
        return [known.get(id(tensor), _Place()) for tensor in model.outputs]

    def _layer(self, layer: Any, above: str, reads: list[_Place], call: Any) -> list[_Place]:
        """The places of what one call gives. call: its node and the places known so far; None within a Sequential."""
        name = above + layer.name
        given = None if call is None else call[0].arguments
        args: tuple[Any, ...] = given.args if given else ()
        kwargs: dict[str, Any] = given.kwargs if given else {}
        other = _above(reads, f"{name} ({type(layer).__name__})")
        if hasattr(layer, "layers"):
            # Of several inputs, or a dictionary of them, it is not sure which is which.
            fits = len(reads) == 1 and len(getattr(layer, "inputs", reads) or reads) == 1
            places = self._model(
                layer, name + "/", reads if fits else [other] * max(1, len(getattr(layer, "inputs", ())))
            )
            return places or [other]
        if _is_keras_gru(self.keras, layer):
            sequences, state = reads[0], None
            if call is not None:
                sequences = call[1].get(id(args[0] if args else kwargs.get("sequences")), other)
                state = args[1] if len(args) > 1 else kwargs.get("initial_state")
            own = state is not None and not all(
                place is not None and place.given and not place.inputs & sequences.inputs
                for place in (call[1].get(id(one)) for one in (state if isinstance(state, (list, tuple)) else [state]))
            )
            self.calls.setdefault(name, []).append(_Call(sequences, own))
            return [
                _Place({**_above(reads, name).grus, name: between}, (other if own else sequences).inputs)
                for between in ((), (f"the last state of {name}",))
            ]
        if self._idle(layer) and kwargs.get("training") is not True and len(reads) == 1:
            return reads
        if type(layer).__name__ == "GetItem" and len(reads) == 1 and reads[0].given:
            return reads
        return [other]

    def _idle(self, layer: Any) -> bool:
        layers = self.keras.layers
        if type(layer) is layers.Activation:
            return layer.activation is self.keras.activations.linear
        return any(type(layer) is getattr(layers, name, None) for name in _IDLE)


def _is_graph(model: Any) -> bool:
    """Whether it computes what its graph of layers says. The class of such models has no public name."""
    classes = (c for c in type(model).__mro__ if c.__name__ == "Functional" and c.__module__.startswith("keras."))
    functional: Any = next(classes, None)
    return functional is not None and type(model).call is functional.call and hasattr(model, "_nodes_by_depth")


def _names(layers: Any) -> list[str] | None:
    if layers is None:
        return None
    names = [layers] if isinstance(layers, str) else layers
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"load_keras_gru: layers is {layers!r}, expected a name of a layer, a list of names, or None.")
    if not names:
        raise SettingsError("load_keras_gru: layers is empty, expected names of layers, or None for the only stack.")
    return list(names)


def _check_device(device: Any) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"load_keras_gru: device={device!r} can't be used here: {said}") from error


def _named(name: str, every: dict[str, Any], grus: dict[str, Any]) -> str:
    if name in grus:
        return name
    if name in every:
        what = f"is a {type(every[name]).__name__}, no GRU."
    else:
        what = f"isn't there.{nearest(str(name), grus)}"
    raise SettingsError(f"load_keras_gru: {name!r} {what} The GRUs are {', '.join(map(repr, grus)) or 'none'}.")


def _keras_directions(layer: Any) -> list[Any]:
    return [layer.forward_layer, layer.backward_layer] if hasattr(layer, "forward_layer") else [layer]


def _check_keras_gru(keras: Any, name: str, layer: Any) -> None:
    """Raise SettingsError unless a `tidegate.GRU` computes what this layer does."""
    directions = _keras_directions(layer)
    place = f"load_keras_gru: layer {name!r}"
    if len(directions) == 2 and layer.merge_mode != "concat":
        raise SettingsError(
            f"{place} has merge_mode={layer.merge_mode!r}; a tidegate.GRU has the directions side by side, 'concat'. "
            "Give layer.forward_layer here and merge by hand, or train one with 'concat'."
        )
    for k, one in enumerate(directions):
        if type(one) is not keras.layers.GRU:
            raise SettingsError(f"{place}: its second direction is a {type(one).__name__}, expected a GRU.")
        if one.go_backwards != (k == 1):
            hint = (
                "Set layer.go_backwards = False here, and turn x round in time: x.flip(1)."
                if len(directions) == 1
                else "Make Bidirectional of a layer that goes forwards; its second one goes backwards."
            )
            raise SettingsError(f"{place} has go_backwards={one.go_backwards} in its direction {k}. {hint}")
        for what, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
            function = getattr(one, what)
            if function not in (keras.activations.get(wanted), getattr(keras.ops, wanted)):
                raise SettingsError(
                    f"{place} has {what}={getattr(function, '__name__', function)!r}, a tidegate.GRU has {wanted!r}. "
                    f"The weights would mean something else: train one in Keras with {what}={wanted!r}."
                )
    for trait in ("units", "use_bias", "reset_after", "compute_dtype"):
        there, back = getattr(directions[0], trait), getattr(directions[-1], trait)
        if there != back:
            raise SettingsError(
                f"{place} has {trait}={there!r} forwards and {back!r} backwards; both directions of a tidegate.GRU are alike. "
                "Give layer.forward_layer and layer.backward_layer here, one at a time."
            )
    if not layer.get_weights():
        raise SettingsError(f"{place} has no weights yet. Call the model once, or build it.")


def _check_keras_alike(keras: Any, chosen: Sequence[tuple[str, Any]]) -> None:
    def traits(layer: Any) -> dict[str, Any]:
        one = _keras_directions(layer)[0]
        sides = {"bidirectional": type(layer) is keras.layers.Bidirectional}
        return sides | {k: getattr(one, k) for k in ("units", "use_bias", "reset_after", "compute_dtype")}

    below, first = chosen[0]
    expected = traits(first)
    for name, layer in chosen[1:]:
        for trait, value in traits(layer).items():
            if value != expected[trait]:
                raise SettingsError(
                    f"load_keras_gru: layer {name!r} has {trait}={value!r}, layer {below!r} has {expected[trait]!r}. The layers "
                    f"of a tidegate.GRU are alike: load them one by one, layers={below!r} and layers={name!r}."
                )
