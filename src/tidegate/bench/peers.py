"""The peers: how each program is asked for the same GRU. One class each, one signature.

A class has a method for every kind that it can do (`forward`, `train`, `step`); it takes a `Case` and returns a
`Runner`. What a user would do once (converting weights, compiling, laying out x) happens in the method; only
`Runner.call` is timed. A library is imported where its class is made, so that none is needed to read this file.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tidegate import convert
from tidegate.bench.case import Arrays, Case
from tidegate.bench.shapes import KINDS


@dataclass(frozen=True)
class Runner:
    call: Callable[[], Any]
    read: Callable[[Any], Arrays]
    """From what `call` returned to arrays as in `case.truth`: torch's layout, names and gate order."""
    around: Callable[[], AbstractContextManager] = nullcontext
    """Entered around a block of calls, as a user enters `torch.no_grad()` around a loop."""


class Peer:
    packages: ClassVar[tuple[str, ...]]
    """What pip installs for it, its own package first; each is imported by the same name."""

    def __init__(self, threads: int) -> None: ...

    @classmethod
    def kinds(cls) -> list[str]:
        return [kind for kind in KINDS if hasattr(cls, kind)]

    @classmethod
    def missing(cls) -> list[str]:
        """The packages that are not installed."""
        return [name for name in cls.packages if importlib.util.find_spec(name) is None]

    @classmethod
    def version(cls) -> str:
        return " on ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in cls.packages
            if name != "onnx" and not cls.missing()
        )


# ------------------------------------------------------------------------------------------------ PyTorch


class Torch(Peer):
    """`torch.nn.GRU`."""

    packages = ("torch",)

    def layer(self, case: Case) -> Any:
        import torch

        return self._load(torch.nn.GRU(case.shape.I, case.shape.H, case.shape.layers), case)

    def _load(self, layer: Any, case: Case) -> Any:
        import torch

        layer.load_state_dict({name: torch.from_numpy(w) for name, w in case.weights.items()})
        return layer

    def forward(self, case: Case) -> Runner:
        import torch

        layer, x = self.layer(case).eval(), torch.from_numpy(case.x)
        return Runner(lambda: layer(x)[0], lambda output: {"output": output.numpy()}, torch.inference_mode)

    def train(self, case: Case) -> Runner:
        import torch

        layer, x, d_output = self.layer(case), torch.from_numpy(case.x), torch.from_numpy(case.d_output)

        def call() -> Any:
            layer.zero_grad(set_to_none=True)
            output = layer(x)[0]
            output.backward(d_output)
            return output

        def read(output: Any) -> Arrays:
            gradients = {name: weight.grad.numpy() for name, weight in layer.named_parameters()}
            return {"output": output.detach().numpy(), **gradients}

        return Runner(call, read)

    def step(self, case: Case) -> Runner:
        import torch

        layer, x, h_n = self.layer(case).eval(), torch.from_numpy(case.x), torch.from_numpy(case.h_0)

        def call() -> Any:
            nonlocal h_n
            output, h_n = layer(x, h_n)
            return output

        return Runner(call, lambda output: {"output": output[0].numpy()}, torch.no_grad)


class Tidegate(Torch):
    """`tidegate.GRU`, with the back end that it chooses by itself."""

    packages = ("tidegate",)

    def layer(self, case: Case) -> Any:
        import tidegate

        return self._load(tidegate.GRU(case.shape.I, case.shape.H, case.shape.layers), case)

    def step(self, case: Case) -> Runner:
        import torch

        layer, x_t, state = self.layer(case).eval(), torch.from_numpy(case.x[0]), torch.from_numpy(case.h_0)

        def call() -> Any:
            nonlocal state
            y, state = layer.step(x_t, state)
            return y

        return Runner(call, lambda y: {"output": y.numpy()}, torch.no_grad)


class TorchCell(Peer):
    """`torch.nn.GRUCell`, one for each layer."""

    packages = ("torch",)

    def step(self, case: Case) -> Runner:
        import torch

        cells = []
        for k in range(case.shape.layers):
            w_ih, w_hh, b_ih, b_hh = map(torch.from_numpy, case.layer(k))
            cell = torch.nn.GRUCell(w_ih.shape[1], case.shape.H)
            cell.load_state_dict({"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh})
            cells.append(cell)
        x_t = torch.from_numpy(case.x[0])
        state = list(torch.from_numpy(case.h_0))  # [B, H] each

        def call() -> Any:
            y = x_t
            for k, cell in enumerate(cells):
                y = state[k] = cell(y, state[k])
            return y

        return Runner(call, lambda y: {"output": y.numpy()}, torch.no_grad)


# ------------------------------------------------------------------------------------------------ ONNX


def onnx_model(case: Case) -> bytes:
    """An ONNX file with a GRU node a layer: x [T, B, I], h_0 [layers, B, H] -> output [T, B, H], h_n [layers, B, H].

    T and B are left open, as in a file that a person ships.
    """
    from onnx import TensorProto, helper, numpy_helper

    layers, I, H = case.shape.layers, case.shape.I, case.shape.H
    ints = lambda name, *values: numpy_helper.from_array(np.array(values, np.int64), name)  # noqa: E731
    constants, nodes = [ints("axis_1", 1), ints("ones", *[1] * layers)], []
    states = [f"h_0_{k}" for k in range(layers)]
    nodes.append(helper.make_node("Split", ["h_0", "ones"], states, axis=0))
    below = "x"
    for k in range(layers):
        operator = convert.layer_to_onnx([case.layer(k)])
        weights = {f"W_{k}": operator.W, f"R_{k}": operator.R, f"B_{k}": operator.B}
        constants += [numpy_helper.from_array(value, name) for name, value in weights.items()]
        out = "output" if k == layers - 1 else f"output_{k}"
        nodes += [
            helper.make_node("GRU", [below, *weights, "", states[k]], [f"Y_{k}", f"h_n_{k}"], **operator.attributes),
            helper.make_node("Squeeze", [f"Y_{k}", "axis_1"], [out]),  # [T, D=1, B, H] -> [T, B, H]
        ]
        below = out
    nodes.append(helper.make_node("Concat", [f"h_n_{k}" for k in range(layers)], ["h_n"], axis=0))
    tensor = lambda name, *axes: helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "gru",
        [tensor("x", "T", "B", I), tensor("h_0", layers, "B", H)],
        [tensor("output", "T", "B", H), tensor("h_n", layers, "B", H)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


class OnnxRuntime(Peer):
    packages = ("onnxruntime", "onnx")

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        self.make = onnxruntime.InferenceSession

    def session(self, case: Case) -> Any:
        return self.make(onnx_model(case), self.options, providers=["CPUExecutionProvider"])

    def forward(self, case: Case) -> Runner:
        session, given = self.session(case), {"x": case.x, "h_0": case.h_0}
        return Runner(lambda: session.run(["output"], given), lambda results: {"output": results[0]})

    def step(self, case: Case) -> Runner:
        session, given = self.session(case), {"x": case.x, "h_0": case.h_0}

        def call() -> Any:
            output, given["h_0"] = session.run(["output", "h_n"], given)
            return output

        return Runner(call, lambda output: {"output": output[0]})


class OpenVino(Peer):
    packages = ("openvino", "onnx")

    def __init__(self, threads: int) -> None:
        import openvino

        self.core = openvino.Core()
        self.options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the processor can
        }

    def request(self, case: Case) -> Any:
        model = self.core.read_model(onnx_model(case))
        # OpenVINO's own advice: fixed shapes are faster, a quarter of the time at a single step.
        model.reshape({"x": list(case.x.shape), "h_0": list(case.h_0.shape)})
        return self.core.compile_model(model, "CPU", self.options).create_infer_request()

    def forward(self, case: Case) -> Runner:
        request, given = self.request(case), {"x": case.x, "h_0": case.h_0}
        return Runner(
            lambda: request.infer(given, share_inputs=True, share_outputs=True),
            lambda results: {"output": results["output"]},
        )

    def step(self, case: Case) -> Runner:
        request, given = self.request(case), {"x": case.x, "h_0": case.h_0.copy()}

        def call() -> Any:
            results = request.infer(given, share_inputs=True, share_outputs=True)
            # A copy: the result is the request's own memory, which the next call writes to while it reads h_0.
            np.copyto(given["h_0"], results["h_n"])
            return results

        return Runner(call, lambda results: {"output": results["output"][0]})


# ------------------------------------------------------------------------------------------------ JAX


class Jax(Peer):
    """What a person writes in JAX: the input's products for all steps at once, then `lax.scan`, all of it compiled."""

    packages = ("jax",)

    def __init__(self, threads: int) -> None:
        import jax

        # A computation then runs in the calling thread: a small one would else wait for another thread to wake.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.jax = jax

    def weights(self, case: Case) -> list[tuple[Any, ...]]:
        """For each layer w_ih [I, 3H], w_hh [H, 3H], b_ih, b_hh: JAX's custom, and its faster layout."""
        return [tuple(self.jax.numpy.array(w.T) for w in case.layer(k)) for k in range(case.shape.layers)]

    def _gates(self, gates_x: Any, h: Any, w_hh: Any, b_hh: Any) -> Any:
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid
        x_r, x_z, x_n = jnp.split(gates_x, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(h @ w_hh + b_hh, 3, axis=-1)
        z = sigmoid(x_z + h_z)
        return (1 - z) * jnp.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h

    def _gru(self, weights: Any, x: Any) -> Any:
        for w_ih, w_hh, b_ih, b_hh in weights:

            def step(h: Any, gates_x: Any, w_hh: Any = w_hh, b_hh: Any = b_hh) -> Any:
                h = self._gates(gates_x, h, w_hh, b_hh)
                return h, h

            h_0 = self.jax.numpy.zeros((x.shape[1], w_hh.shape[0]), x.dtype)
            x = self.jax.lax.scan(step, h_0, x @ w_ih + b_ih)[1]
        return x

    def forward(self, case: Case) -> Runner:
        weights, x = self.weights(case), self.jax.numpy.array(case.x)
        gru = self.jax.jit(self._gru)
        return Runner(lambda: gru(weights, x).block_until_ready(), lambda output: {"output": np.asarray(output)})

    def train(self, case: Case) -> Runner:
        weights, x, d_output = self.weights(case), *map(self.jax.numpy.array, (case.x, case.d_output))

        @self.jax.jit
        def both(weights: Any, x: Any, d_output: Any) -> Any:
            output, back = self.jax.vjp(lambda w: self._gru(w, x), weights)
            return output, back(d_output)[0]

        def read(results: Any) -> Arrays:
            output, d_weights = results
            gradients = [np.asarray(d).T for layer in d_weights for d in layer]
            return {"output": np.asarray(output), **dict(zip(case.weights, gradients, strict=True))}

        return Runner(lambda: self.jax.block_until_ready(both(weights, x, d_output)), read)

    def step(self, case: Case) -> Runner:
        weights, x_t = self.weights(case), self.jax.numpy.array(case.x[0])
        state = [self.jax.numpy.array(h) for h in case.h_0]

        @self.jax.jit
        def one(weights: Any, x_t: Any, state: Any) -> Any:
            after = []
            for (w_ih, w_hh, b_ih, b_hh), h in zip(weights, state, strict=True):
                x_t = self._gates(x_t @ w_ih + b_ih, h, w_hh, b_hh)
                after.append(x_t)
            return after

        def call() -> Any:
            nonlocal state
            state = self.jax.block_until_ready(one(weights, x_t, state))
            return state[-1]

        return Runner(call, lambda y: {"output": np.asarray(y)})


# ------------------------------------------------------------------------------------------------ Keras


class Keras(Peer):
    """`keras.layers.GRU` on TensorFlow, as a graph. Batch first, as Keras has it: x is laid out so beforehand."""

    packages = ("keras", "tensorflow")
    xla = False

    def __init__(self, threads: int) -> None:
        import tensorflow

        if tensorflow.config.threading.get_intra_op_parallelism_threads() != threads:  # once, ahead of any operation
            tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
            tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
        import keras

        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(f"Keras runs on {keras.backend.backend()!r} here, expected tensorflow")
        self.tf, self.keras = tensorflow, keras
        self.compiled = tensorflow.function(jit_compile=True) if self.xla else tensorflow.function

    def _layers(self, case: Case, make: Callable[[], Any]) -> list[Any]:
        layers = []
        for k in range(case.shape.layers):
            weights = convert.layer_to_keras([case.layer(k)])
            layer = make()
            layer.build((case.shape.B, case.shape.T, len(weights[0])))
            layer.set_weights(weights)
            layers.append(layer)
        return layers

    def _grus(self, case: Case) -> list[Any]:
        make = lambda: self.keras.layers.GRU(case.shape.H, return_sequences=True, reset_after=True)  # noqa: E731
        return self._layers(case, make)

    def _constant(self, array: np.ndarray) -> Any:
        return self.tf.constant(array.swapaxes(0, 1))

    def forward(self, case: Case) -> Runner:
        layers, x = self._grus(case), self._constant(case.x)

        @self.compiled
        def gru(x: Any) -> Any:
            for layer in layers:
                x = layer(x, training=False)
            return x

        return Runner(lambda: gru(x), lambda output: {"output": output.numpy().swapaxes(0, 1)})

    def train(self, case: Case) -> Runner:
        layers, x, d_output = self._grus(case), self._constant(case.x), self._constant(case.d_output)
        weights = [variable.value for layer in layers for variable in layer.trainable_variables]

        @self.compiled
        def both(x: Any, d_output: Any) -> Any:
            with self.tf.GradientTape() as tape:
                y = x
                for layer in layers:
                    y = layer(y, training=True)
            return y, tape.gradient(y, weights, output_gradients=d_output)

        def read(results: Any) -> Arrays:
            output, d_weights = results
            found = {"output": output.numpy().swapaxes(0, 1)}
            # Gradients are turned round as weights are.
            ours = [convert.layer_from_keras(d_weights[3 * k : 3 * k + 3])[0] for k in range(len(layers))]
            return found | dict(zip(case.weights, (d for layer in ours for d in layer), strict=True))

        return Runner(lambda: both(x, d_output), read)

    def step(self, case: Case) -> Runner:
        cells = self._layers(case, lambda: self.keras.layers.GRUCell(case.shape.H, reset_after=True))
        x_t, state = self.tf.constant(case.x[0]), [self.tf.constant(h) for h in case.h_0]

        @self.compiled
        def one(x_t: Any, state: Any) -> Any:
            after = []
            for cell, h in zip(cells, state, strict=True):
                x_t = cell(x_t, [h])[0]
                after.append(x_t)
            return after

        def call() -> Any:
            nonlocal state
            state = one(x_t, state)
            return state[-1]

        return Runner(call, lambda y: {"output": y.numpy()})


class KerasXla(Keras):
    """The same, compiled with `jit_compile=True`."""

    xla = True


PEERS: dict[str, type[Peer]] = {
    "tidegate": Tidegate,
    "torch": Torch,
    "torch-cell": TorchCell,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "jax": Jax,
    "keras": Keras,
    "keras-xla": KerasXla,
}
"""By the names that `--peers` takes and the tables show."""
