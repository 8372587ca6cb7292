"""An ONNX graph as it is put together, and as bytes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidegate import __version__
from tidegate.errors import SettingsError, package_missing
from tidegate.files import replacing_all

OPSET = 17  # the lowest with LayerNormalization; all else here is older. ONNX Runtime reads it since 1.12, of 2022.
IR_VERSION = 8  # the one that came with opset 17: newer ones only shut out older runtimes
ML_OPSET = 2  # the lowest whose LabelEncoder turns text into numbers
LARGEST = 2**31 - 1  # bytes that protobuf puts into one file


class Graph:
    """What becomes a graph: nodes in order, constants, inputs and outputs. A value is its name.

    A graph inside another one (a Scan's) has its constants there, as all names are one space.
    """

    def __init__(self, outer: Graph | None = None) -> None:
        self.onnx: Any = _package() if outer is None else outer.onnx
        self.root: Graph = self if outer is None else outer.root
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, dtype: Any, axes: Sequence[Any], about: str = "") -> None:
        self.inputs.append(self._tensor(name, dtype, axes, about))

    def output(self, name: str, dtype: Any, axes: Sequence[Any], about: str = "") -> None:
        self.outputs.append(self._tensor(name, dtype, axes, about))

    def constant(self, name: str, value: np.ndarray) -> str:
        """The same name with the same value may come again."""
        known = self.root.constants.setdefault(name, value)
        assert known is value or (known.dtype == value.dtype and np.array_equal(known, value)), name
        return name

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        return self.add_several(op, [name], *inputs, **attributes)[0]

    def add_several(self, op: str, names: Sequence[str], *inputs: str, **attributes: Any) -> list[str]:
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), list(names), name=names[0], **attributes))
        return list(names)

    def cast(self, name: str, value: str, dtype: Any) -> str:
        return self.add("Cast", name, value, to=self._type(dtype))

    def graph(self, name: str, about: str = "") -> Any:
        make, constants = self.onnx.numpy_helper.from_array, self.constants
        return self.onnx.helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, [make(constants[n], n) for n in constants], about
        )

    def finish(self, about: str, metadata: dict[str, str]) -> bytes:
        """The file's bytes, checked. Raises SettingsError where they are too many for one file."""
        size = sum(value.nbytes for value in self.constants.values())
        too_large = SettingsError(
            f"The weights are {size / 2**30:.1f} GiB, and with its texts the file would have more than the 2 GiB that an "
            "ONNX file holds. Train with a smaller hidden_size, or smaller vocabularies."
        )
        if size > LARGEST:
            raise too_large
        helper = self.onnx.helper
        domains = {node.domain for node in self.nodes} | {""}
        versions = [helper.make_opsetid(domain, OPSET if not domain else ML_OPSET) for domain in sorted(domains)]
        model = helper.make_model(
            self.graph("tidegate", about),
            opset_imports=versions,
            ir_version=IR_VERSION,
            producer_name="tidegate",
            producer_version=__version__,
            doc_string=about,
        )
        helper.set_model_props(model, metadata)
        try:
            data: bytes = model.SerializeToString()
        except (ValueError, importlib.import_module("google.protobuf.message").EncodeError) as error:
            raise too_large from error
        if len(data) > LARGEST:
            raise too_large
        self.onnx.checker.check_model(data, full_check=True)
        return data

    def notes(self) -> list[str]:
        """What to feed and what comes, a line each."""
        return [
            f"{what} {self._line(value)}"
            for what, values in (("Input ", self.inputs), ("Output", self.outputs))
            for value in values
        ]

    def _line(self, value: Any) -> str:
        tensor = value.type.tensor_type
        kind = self.onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        kind = {"float": "float32", "double": "float64", "string": "text"}.get(kind, kind)
        axes = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
        about = f": {value.doc_string}" if value.doc_string else ""
        return f"{value.name:<13} {kind} [{axes}]{about}"

    def _type(self, dtype: Any) -> int:
        if dtype == "text":
            return int(self.onnx.TensorProto.STRING)
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _tensor(self, name: str, dtype: Any, axes: Sequence[Any], about: str) -> Any:
        return self.onnx.helper.make_tensor_value_info(name, self._type(dtype), list(axes), about)


def _package() -> Any:
    try:
        onnx = importlib.import_module("onnx")
        for part in ("checker", "helper", "numpy_helper"):
            importlib.import_module(f"onnx.{part}")
    except ModuleNotFoundError as error:
        raise package_missing("Writing ONNX files", [error.name or "onnx"], "onnx") from error
    return onnx


def place(path: Path, data: bytes, beside: Path | None = None, text: str = "") -> None:
    """Both files, or neither."""
    with replacing_all([path] if beside is None else [beside, path]) as temporaries:
        temporaries[-1].write_bytes(data)
        if beside is not None:
            temporaries[0].write_text(text, encoding="utf-8")
