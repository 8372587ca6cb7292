"""ONNX Runtime: where it is installed, a file is run before it is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidegate.export.probe import Runtime, running


class Session:
    """A file that ONNX Runtime has read."""

    def __init__(self, onnxruntime: Any, data: bytes):
        self.runtime = _runtime(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, output: str, given: dict[str, Any]) -> np.ndarray:
        """One output. given: by name, what the file takes; what it doesn't may be among it."""
        names = {value.name for value in self._session.get_inputs()}
        with running(self.runtime):
            answer: np.ndarray = self._session.run([output], {k: v for k, v in given.items() if k in names})[0]
        return answer


def open_session(data: bytes) -> Session | str:
    """A session, or a line that says why there is none."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return "Not checked: ONNX Runtime is not installed here (pip install onnxruntime)."
    try:
        return Session(onnxruntime, data)
    except Exception as error:  # an old one, or one built for other processors: the file may serve elsewhere
        return f"Not checked: {_runtime(onnxruntime).name}, which is installed here, can't read it ({error})."


def _runtime(onnxruntime: Any) -> Runtime:
    return Runtime(f"ONNX Runtime {onnxruntime.__version__}", "onnxruntime")
