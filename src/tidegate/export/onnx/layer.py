"""A bare layer as an ONNX file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidegate import __version__
from tidegate.errors import SettingsError
from tidegate.export.onnx.graph import Graph, place
from tidegate.export.onnx.recurrence import recur, start
from tidegate.export.onnx.runtime import open_session
from tidegate.export.parts import Exported, array
from tidegate.export.probe import compared
from tidegate.nn import GRU


def write_layer(layer: GRU, path: str | Path) -> Exported:
    """Write a `tidegate.GRU` alone, as it computes in evaluation, all its variants included.

    Inputs: x [B, T, I], or [T, B, I], as the layer's batch_first has it; h_0 [layers*D, B, H]; lengths int64 [B]. Outputs:
    output, laid out like x with D*H features, 0 past a sequence's length; h_n [layers*D, B, H], the state after each
    sequence's last step. B and T are open, but at least 1 (at 0 ONNX Runtime's GRU ends the whole process); numbers float32, or float64 as the layer is.

    Zeros for h_0 stand for no state; with learn_initial_state it is what the metadata have as `initial_h`, JSON
    [layers*D, H], repeated for each sequence. (A default value in the file would be simpler, but makes ONNX Runtime warn
    and OpenVINO take it for a constant.)

    A layer with layer_norm or zoneout, or in float64, becomes a Scan, as ONNX's GRU is none of that; the rest is the
    operator GRU.

    Raises SettingsError for a layer in another dtype, TypeError for anything but a `tidegate.GRU`, and as `write` does.
    """
    if not isinstance(layer, GRU):
        raise TypeError(f"write_layer: layer is of type {type(layer).__name__}, expected a tidegate.GRU.")
    path = Path(path)
    dtype = str(layer.all_weights[0][0].dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise SettingsError(
            f"write_layer: the layer is {dtype}, expected float32 or float64. Use copy.deepcopy(layer).float()."
        )
    graph = Graph()
    layers, H, real = len(layer.all_weights), layer.hidden_size, np.dtype(dtype)
    D = layers // layer.num_layers
    axes = ["B", "T"] if layer.batch_first else ["T", "B"]
    graph.input("x", real, [*axes, layer.input_size])
    graph.input("h_0", real, [layers, "B", H], start(layer.bidirectional))
    graph.input("lengths", np.int64, ["B"], "steps of each sequence; what comes after them is padding")
    x = graph.add("Transpose", "x/by_step", "x", perm=[1, 0, 2]) if layer.batch_first else "x"
    output, _ = recur(graph, layer, x, "h_0")
    zero, one = (graph.constant(f"gru/{n}", np.array(n, np.int64)) for n in (0, 1))
    time = graph.add("Gather", "output/T", graph.add("Shape", "output/sizes", output), zero, axis=0)
    axes_1_2 = graph.constant("output/axes_1_2", np.array([1, 2], np.int64))
    steps = graph.add("Unsqueeze", "output/steps", graph.add("Range", "output/times", zero, time, one), axes_1_2)
    ends = graph.add("Unsqueeze", "output/ends", "lengths", graph.constant("gru/axis_1", np.array([1], np.int64)))
    inside = graph.add("Less", "output/inside", steps, ends)  # [T, B, 1]
    nothing = graph.constant("output/nothing", np.array(0, real))
    masked = graph.add("Where", "output/by_step" if layer.batch_first else "output", inside, output, nothing)
    if layer.batch_first:
        graph.add("Transpose", "output", masked, perm=[1, 0, 2])
    graph.output("output", real, [*axes, D * H], "the last layer's state at each step, 0 past a sequence's length")
    graph.output("h_n", real, [layers, "B", H], "the state after each sequence's last step")
    metadata = {"tidegate_layer": repr(layer), "version": __version__}
    if layer.learn_initial_state:
        metadata["initial_h"] = json.dumps(array(layer.initial_h).tolist())
    data = graph.finish(f"{layer!r}, made with Tidegate.", metadata)
    notes = [*graph.notes(), _layer_checked(layer, data, real)]
    place(path, data)
    return Exported(path, [], notes)


def _layer_checked(layer: GRU, data: bytes, real: Any) -> str:
    session = open_session(data)
    if isinstance(session, str):
        return session
    rng = np.random.default_rng(0)
    B, T = 3, 7
    lengths = np.array([7, 0, 4])
    x = rng.standard_normal((B, T, layer.input_size) if layer.batch_first else (T, B, layer.input_size)).astype(real)
    h_0 = rng.uniform(-1, 1, (len(layer.all_weights), B, layer.hidden_size)).astype(real)
    found = session.run("output", {"x": x, "h_0": h_0, "lengths": lengths})
    ours = copy.deepcopy(layer).cpu().eval()

    def outputs(dtype: torch.dtype) -> np.ndarray:
        with torch.no_grad():
            given = [torch.from_numpy(v).to(dtype) for v in (x, h_0)]
            return ours.to(dtype)(*given, lengths=torch.from_numpy(lengths))[0].numpy()

    return compared(session.runtime, found, outputs(layer.all_weights[0][0].dtype), outputs(torch.float64), "outputs")
