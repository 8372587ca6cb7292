"""The table of export formats."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    suffix: str
    line: str  # for whom it is


TARGETS = {
    "onnx": Target(".onnx", "ONNX Runtime, OpenVINO and others"),
    "keras": Target(".keras", "Keras 3 on TensorFlow"),
    "pt2": Target(".pt2", "PyTorch alone"),
    "c": Target(".h", "any C99 compiler, microcontrollers too"),
}
