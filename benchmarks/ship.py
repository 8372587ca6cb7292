"""What a run becomes elsewhere: for each target the biggest difference to the Python model, and how long it takes.

Differences are of scores, over every kind of run in tests/helpers/runs.py, all of its sequences in one padded batch (C: one by
one). Times are of a run that reads six numbers with 64 units and predicts one of two classes, one sequence: a step with the
state handed on, and 100 steps at once; one thread, all in turns in one run, everything prepared before the clock starts.
What is not installed is said and left out: pip install 'tidegate[test,bench]'. Writes benchmarks/results/ship.csv.

    python benchmarks/ship.py
"""

from __future__ import annotations

import ctypes
import importlib.util
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from common import machine, markdown, save

import tidegate
from tidegate.bench.measure import in_turns
from tidegate.bench.peers import Runner

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.compiling import Library, name_of  # noqa: E402
from tests.helpers.runs import CASES, CASES_OF, Batch, batch_of, run_of, table_of  # noqa: E402

UNITS, NUMBERS, STEPS, ROUNDS = 64, 6, 100, 12
Given = dict[str, np.ndarray]
Program = Callable[[Given], dict[str, Any]]  # inputs by the names of tidegate.export -> outputs


def inputs_of(batch: Batch) -> Given:
    given = {"lengths": batch.lengths, "h_0": batch.h_0}
    if batch.numbers.shape[2]:
        given["numbers"] = batch.numbers
    if batch.tokens.shape[2]:
        given |= {"tokens": batch.tokens, "codes": batch.codes}
    return given


# ------------------------------------------------------------------------------------------------ the targets


def onnxruntime_(run: tidegate.Run, folder: Path) -> Program:
    import onnxruntime

    path = run.export("onnx", folder / "model.onnx").path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    takes, gives = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    return lambda given: dict(zip(gives, session.run(gives, {name: given[name] for name in takes}), strict=True))


def openvino_(run: tidegate.Run, folder: Path) -> Program:
    import openvino

    path = run.export("onnx", folder / "codes.onnx", codes=True).path
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    takes, gives = [i.any_name for i in compiled.inputs], [o.any_name for o in compiled.outputs]
    request = compiled.create_infer_request()

    def call(given: Given) -> dict[str, Any]:
        found = request.infer({name: given[name] for name in takes}, share_inputs=True)
        return {name: found[name] for name in gives}

    return call


def keras_(run: tidegate.Run, folder: Path) -> Program:
    path = run.export("keras", folder / "model.keras").path
    import keras
    import tensorflow as tf

    with suppress(RuntimeError):  # already set
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    model = keras.saving.load_model(path)
    names = list(model.input)
    function = tf.function(model, reduce_retracing=True)

    def call(given: Given) -> dict[str, Any]:
        found = function({n: tf.constant(np.moveaxis(given[n], 0, 1) if n == "h_0" else given[n]) for n in names})
        found = {name: value.numpy() for name, value in found.items()}
        return found | {"h_n": np.moveaxis(found["h_n"], 0, 1)}

    return call


def pt2_(run: tidegate.Run, folder: Path) -> Program:
    program = torch.export.load(run.export("pt2", folder / "model.pt2").path).module()
    names = [
        "lengths",
        "h_0",
        *["numbers"][: len(run.preprocessing.numbers)],
        *["codes"][: len(run.preprocessing.tokens)],
    ]

    def call(given: Given) -> dict[str, Any]:
        with torch.no_grad():
            return program(**{name: torch.from_numpy(given[name]) for name in names})

    return call


TARGETS = {
    "ONNX, ONNX Runtime": (onnxruntime_, "onnxruntime", "onnx"),
    "ONNX, OpenVINO": (openvino_, "openvino", "onnx"),
    "Keras on TensorFlow": (keras_, "tensorflow", "keras"),
    "pt2, PyTorch alone": (pt2_, "torch", "pt2"),
}
C_FLAGS = {"C": (), "C, TIDEGATE_NO_MATH": ("-DTIDEGATE_NO_MATH",)}
EIGHT = "C, 8-bit weights"


# ------------------------------------------------------------------------------------------------ differences


def differences(here: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """target -> kind of run -> the biggest difference of a score."""
    found: dict[str, dict[str, float]] = {name: {} for name in [*here, *C_FLAGS, EIGHT]}
    batches = {case: batch_of(run_of(case), table_of(case)) for case in CASES}
    runs = {name_of(case): run_of(case) for case in CASES}
    for name, run in runs.items():
        run.export("c", folder / f"{name}.h")
        run.export("c", folder / "8" / f"{name}.h", int8=True)
    libraries = {target: Library(folder, runs, "-O2", *flags) for target, flags in C_FLAGS.items()}
    libraries[EIGHT] = Library(folder / "8", runs, "-O2")
    for case, batch in batches.items():
        run, given = run_of(case), inputs_of(batch)
        inside = batch.inside if run.preprocessing.per == "step" else np.full(len(batch.lengths), True)
        for target, make in here.items():
            if case not in CASES_OF[TARGETS[target][2]]:
                continue  # a core that this format doesn't compute
            scores = np.asarray(make(run, folder)(given)["scores"])
            found[target][case] = float(np.abs(scores - batch.scores)[inside].max())
        for target, library in libraries.items():
            worst = 0.0
            for b, n in enumerate(batch.lengths):
                out = library.drive(name_of(case), run, batch.numbers[b, :n], batch.codes[b, :n], batch.h_0[:, b])
                expected = batch.scores[b, :n] if run.preprocessing.per == "step" else batch.scores[b : b + 1]
                worst = max(worst, float(np.abs(out["scores"][: len(expected)] - expected).max()))
            found[target][case] = worst
    return found


# ------------------------------------------------------------------------------------------------ times

C_DRIVER = """
#include <string.h>
#include "model.h"
static model_state state;
static model_input rows[{steps}];
static model_output output[{steps}];
void give(const double *numbers) {{ int t, k; for (t = 0; t < {steps}; ++t) for (k = 0; k < MODEL_NUMBERS; ++k) rows[t].numbers[k] = *numbers++; }}
void step(void) {{ model_step(&state, rows, output); }}
void run(void) {{ model_reset(&state); model_run(&state, rows, {steps}, output); }}
"""


def c_library(run: tidegate.Run, folder: Path, numbers: np.ndarray, *flags: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(dir=folder))
    run.export("c", folder / "model.h", int8="8-bit" in flags)
    (folder / "driver.c").write_text(C_DRIVER.format(steps=STEPS))
    command = [
        "cc",
        "-std=c99",
        "-O3",
        "-march=native",
        *[f for f in flags if f[0] == "-"],
        "driver.c",
        "-shared",
        "-fPIC",
    ]
    subprocess.run([*command, "-o", "driver.so", "-lm"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "driver.so"))
    library.give(ctypes.c_void_p(np.ascontiguousarray(numbers).ctypes.data))
    return library


def times(here: dict[str, Any], folder: Path) -> dict[str, tuple[float, float]]:
    """what runs -> microseconds of a step and of 100 steps."""
    draw = np.random.default_rng(0)
    columns = {f"s{k}": draw.standard_normal(400) for k in range(NUMBERS)}
    table = pl.DataFrame({"device": np.arange(400) // 20, **columns, "label": draw.choice(["low", "high"], 400)})
    run = tidegate.train(
        table,
        target="label",
        group="device",
        hidden_size=UNITS,
        epochs=1,
        baselines=False,
        progress=False,
        out=folder / "run",
    )
    numbers = np.stack([table[f"s{k}"].to_numpy() for k in range(NUMBERS)], axis=1)
    state = np.zeros((1, 1, UNITS), dtype=np.float32)
    one = {"numbers": numbers[None, :1], "lengths": np.array([1]), "h_0": state}
    many = {"numbers": numbers[None, :STEPS], "lengths": np.array([STEPS]), "h_0": state}
    stream = run.stream()
    row = dict(zip(stream.columns, numbers[0].tolist(), strict=True))
    x = torch.zeros(STEPS, 1, NUMBERS)
    codes, lengths = torch.zeros(STEPS, 1, 0, dtype=torch.int64), torch.tensor([STEPS])

    def whole() -> None:
        with torch.no_grad():
            run.model(x, codes, lengths)

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "Tidegate: `stream.push`, the model": (lambda: stream.push(row), whole)
    }
    for target, make in here.items():
        program = make(run, folder)
        calls[target] = (partial(program, one), partial(program, many))
    for target, flags in {**C_FLAGS, EIGHT: ("8-bit",)}.items():
        library = c_library(run, folder, numbers, *flags)
        calls[target] = (library.step, library.run)
    runners = {f"{what}|{k}": Runner(call, lambda _: {}) for what, both in calls.items() for k, call in enumerate(both)}
    found, failed = in_turns(runners, ROUNDS)
    for error in failed.values():
        raise error
    us = {name: statistics.median(ns) / 1000 for name, ns in found.items()}
    return {what: (us[f"{what}|0"], us[f"{what}|1"]) for what in calls}


def main() -> None:
    torch.set_num_threads(1)
    here = {}
    for target, (make, package, _) in TARGETS.items():
        if importlib.util.find_spec(package):
            here[target] = make
        else:
            print(f"{package} is not installed: {target} is left out", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        us = times(here, Path(name))
        found = differences(here, Path(name))
    rows = []
    for target, (step, whole) in us.items():
        by_case = found.get(target)
        worst = max(by_case, key=by_case.get) if by_case else ""  # type: ignore[arg-type]
        rows.append(
            {
                "target": target,
                "biggest difference": f"{by_case[worst]:.1e}" if by_case else "",
                "of the run": worst,
                "one step us": f"{step:.2f}" if step < 10 else f"{step:.0f}",
                f"{STEPS} steps us": f"{whole:.0f}",
            }
        )
    print(machine())
    print(markdown(rows))
    save("ship", rows)


if __name__ == "__main__":
    main()
