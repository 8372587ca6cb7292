"""Keras 3 itself: importing it as it should be, and finding the GRU layers of its models.

Weights and gate orders are `tidegate.convert`'s; this is what needs Keras installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tidegate.convert import from_keras
from tidegate.errors import SettingsError, nearest, of_type, package_missing
from tidegate.nn import GRU


def load_keras_gru(source: Any, layers: str | Sequence[str] | None = None, *, device: Any = None) -> GRU:
    """The GRU layers of a Keras model, one on another, as one `tidegate.GRU` (batch_first=True) with the same numbers.

    source: a `.keras` file, an `.h5` one where Keras still reads it, or a model or layer of Keras 3, on any of its back ends.
        Only `.h5` files that you trust: that format can hold code, which Keras refuses in what ways it knows.
    layers: names of the layers to take, from below, where the model has GRUs in several places; None: the only stack.
        Those of a model within the model are called "model/layer", as the error that lists them says.
    device: of the parameters.

    Layers of a stack read each other, at most through layers that do nothing outside training (Dropout and its like); all of
    them are `keras.layers.GRU`, or all `Bidirectional` ones. What is theirs alone stays behind: dropout, masks (give our layer
    a packed sequence in place of one), stateful, and return_sequences: where it is False, `output[:, -1]`, or for
    `Bidirectional` the last two of `h_n`, is what Keras' layer returns.

    Raises `SettingsError` (which layer, and what would help) where there is no stack or more than one, where a layer computes
    what no `tidegate.GRU` does, and where the file can't be read; `PackageMissingError` where Keras isn't installed;
    `TypeError` for other sources.

        layer = tidegate.load_keras_gru("model.keras")
        output, h_n = layer(x)                      # x [B, T, I], output [B, T, D*H], h_n [layers*D, B, H]
    """
    model = _open_keras(source)
    keras = sys.modules["keras"]
    every = _keras_layers(model)
    grus = {name: layer for name, layer in every.items() if _is_keras_gru(keras, layer)}
    stacks = _keras_stacks(keras, model)
    if layers is not None:
        chosen = [_named(name, every, grus) for name in ([layers] if isinstance(layers, str) else layers)]
        if not chosen:
            raise SettingsError(
                "load_keras_gru: layers is empty, expected names of layers, or None for the only stack."
            )
    elif not stacks:
        has = ", ".join(f"{name} ({type(layer).__name__})" for name, layer in every.items()) or "no layers"
        raise SettingsError(
            f"load_keras_gru: found no keras.layers.GRU and no Bidirectional one; {of_type(model)} has {has}."
        )
    elif len(stacks) > 1:
        said = "; ".join(f"layers={stack}" for stack in stacks)
        raise SettingsError(
            f"load_keras_gru: found {len(stacks)} stacks of GRU layers, with other layers between them or beside each other. "
            f"Say which: {said}."
        )
    else:
        (chosen,) = stacks
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
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
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


_IDLE = {"Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization"}
"""Layers of Keras that hand on what they read, but for training."""


def _keras_stacks(keras: Any, model: Any, above: str = "") -> list[list[str]]:
    """Names of the GRUs that read each other, as `_keras_layers` has them. A stack that forks is two."""
    within: list[list[str]] = []
    stacks: dict[str, list[str]] = {}  # by the name of the topmost
    source: dict[Any, str] = {}  # the GRU whose sequences stand at a place
    for k, layer in enumerate(getattr(model, "layers", [model])):
        name = above + layer.name
        if hasattr(layer, "layers"):
            within += _keras_stacks(keras, layer, name + "/")
            continue
        if isinstance(model, keras.Sequential):
            x, y = k, k + 1  # what its layers say of themselves may come from an earlier call
        else:
            try:
                x, y = id(_first(layer.input)), id(_first(layer.output))
            except (AttributeError, ValueError):  # of a model that is no graph: what reads what isn't known
                x, y = -1, -2
        below = source.get(x)
        if _is_keras_gru(keras, layer):
            stacks[name] = [*stacks.get(below or "", []), name]
            source[y] = name
        elif below is not None and type(layer).__name__ in _IDLE:
            source[y] = below
    inner = {below for stack in stacks.values() for below in stack[:-1]}
    return within + [stack for top, stack in stacks.items() if top not in inner]


def _first(tensors: Any) -> Any:
    if isinstance(tensors, (list, tuple)):
        return tensors[0] if tensors else None  # of the layer Input
    return tensors


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
            if function is not keras.activations.get(wanted):
                raise SettingsError(
                    f"{place} has {what}={getattr(function, '__name__', function)!r}, a tidegate.GRU has {wanted!r}. "
                    f"The weights would mean something else: train one in Keras with {what}={wanted!r}."
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
    D = 1 + expected["bidirectional"]
    for name, layer in chosen[1:]:
        for trait, value in traits(layer).items():
            if value != expected[trait]:
                raise SettingsError(
                    f"load_keras_gru: layer {name!r} has {trait}={value!r}, layer {below!r} has {expected[trait]!r}. The layers "
                    f"of a tidegate.GRU are alike: load them one by one, layers={below!r} and layers={name!r}."
                )
        reads = len(layer.get_weights()[0])
        if reads != D * expected["units"]:
            raise SettingsError(
                f"load_keras_gru: layer {name!r} reads {reads} features, but the one below gives {D * expected['units']}. "
                "Layers of one stack read each other: load them one by one."
            )
