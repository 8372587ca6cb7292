"""Exported runs in programs for which there is no test: the biggest difference of a score to the Python model.

Every kind of run in tests/helpers/runs.py, all of its sequences in one padded batch. What is not installed is said and left out:
pip install openvino tract keras tensorflow jax; npm install --ignore-scripts onnxruntime-node onnxruntime-web, and name that
folder. Writes benchmarks/results/runtimes.csv.

    python benchmarks/runtimes.py --npm FOLDER/node_modules
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, markdown, save

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

Answers = dict[str, Any]  # of each folder the scores, or why there are none


def write(root: Path) -> None:
    """A folder a run: its files, and a batch with the scores of the model."""
    from tests.helpers.runs import CASES, CASES_OF, batch_of, run_of, table_of

    for case in CASES:
        run, folder = run_of(case), root / case.replace("/", "-")
        folder.mkdir()
        batch = batch_of(run, table_of(case))
        run.export("onnx", folder / "text.onnx")
        run.export("onnx", folder / "codes.onnx", codes=True)
        if case in CASES_OF["keras"] and importlib.util.find_spec("tensorflow"):
            run.export("keras", folder / "model.keras")
        given: dict[str, Any] = {
            "numbers": batch.numbers,
            "codes": batch.codes,
            "lengths": batch.lengths,
            "h_0": batch.h_0,
        }
        inside = batch.inside if run.preprocessing.per == "step" else np.full(len(batch.lengths), True)
        np.savez(folder / "batch.npz", tokens=batch.tokens.astype(str), scores=batch.scores, inside=inside, **given)
        whole = {
            name: {
                "type": str(v.dtype),
                "dims": v.shape,
                "data": base64.b64encode(np.ascontiguousarray(v).tobytes()).decode(),
            }
            for name, v in given.items()
        }
        whole["tokens"] = {"type": "string", "dims": batch.tokens.shape, "data": batch.tokens.ravel().tolist()}
        (folder / "batch.json").write_text(json.dumps(whole))


def each(root: Path, file: str, scores: Callable[[Path, dict[str, np.ndarray]], np.ndarray]) -> Answers:
    found: Answers = {}
    for folder in sorted(root.iterdir()):
        if (folder / file).exists():
            try:
                found[folder.name] = scores(folder / file, dict(np.load(folder / "batch.npz"))).tolist()
            except Exception as error:  # what it can't do is what is looked for
                found[folder.name] = f"{type(error).__name__}: {error}"
    return found


def openvino_(root: Path, **settings: str) -> Answers:
    import openvino

    def scores(file: Path, given: dict[str, np.ndarray]) -> np.ndarray:
        compiled = openvino.Core().compile_model(file, "CPU", settings)
        return compiled({i.any_name: given[i.any_name] for i in compiled.inputs})["scores"]

    return each(root, "codes.onnx", scores)


def tract_(root: Path) -> Answers:
    import tract

    def scores(file: Path, given: dict[str, np.ndarray]) -> np.ndarray:
        model = tract.onnx().load(str(file))
        takes = [model.input_name(i) for i in range(model.input_count())]
        gives = [model.output_name(i) for i in range(model.output_count())]
        return model.into_model().into_runnable().run([given[name] for name in takes])[gives.index("scores")].to_numpy()

    return each(root, "codes.onnx", scores)


def keras_(root: Path) -> Answers:
    """On the back end that KERAS_BACKEND names."""
    import keras

    def scores(file: Path, given: dict[str, np.ndarray]) -> np.ndarray:
        model = keras.saving.load_model(file)
        inputs: dict[str, Any] = {n: np.moveaxis(given[n], 0, 1) if n == "h_0" else given[n] for n in model.input}
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            inputs = {n: tf.constant(v) for n, v in inputs.items()}
        return keras.ops.convert_to_numpy(model(inputs)["scores"])

    return each(root, "model.keras", scores)


PROGRAMS: dict[str, tuple[str, Callable[[Path], Answers], dict[str, str]]] = {
    "OpenVINO, as it comes": ("openvino", openvino_, {}),
    "OpenVINO, f32": ("openvino", lambda root: openvino_(root, INFERENCE_PRECISION_HINT="f32"), {}),
    "tract": ("tract", tract_, {}),
    "Keras on TensorFlow": ("tensorflow", keras_, {"KERAS_BACKEND": "tensorflow"}),
    "Keras on PyTorch": ("keras", keras_, {"KERAS_BACKEND": "torch"}),
    "Keras on JAX": ("jax", keras_, {"KERAS_BACKEND": "jax"}),
}


def row(name: str, version: str, answers: Answers, root: Path) -> dict[str, Any]:
    away, refused = {}, Counter[str]()
    for case, found in answers.items():
        if isinstance(found, str):
            refused[found.strip().splitlines()[0][:90]] += 1
            continue
        expected = np.load(root / case / "batch.npz")
        scores = np.asarray(found, dtype=np.float32).reshape(expected["scores"].shape)
        away[case] = float(np.abs(scores - expected["scores"])[expected["inside"]].max())
    worst = max(away, key=away.__getitem__, default="")
    print(f"{name}: {dict(refused)}", file=sys.stderr) if refused else None
    return {
        "program": name,
        "version": version,
        "kinds of run": f"{len(away)} of {len(answers)}",
        "biggest difference": f"{away[worst]:.1e}" if away else "",
        "of the run": worst,
        "middle one": f"{np.median(list(away.values())):.1e}" if away else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npm", type=Path, help="a folder node_modules with onnxruntime-node and onnxruntime-web")
    parser.add_argument("--answer", nargs=2, metavar=("PROGRAM", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.answer:  # each program in a process of its own
        print(json.dumps(PROGRAMS[asked.answer[0]][1](Path(asked.answer[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root)
        for program, (package, _, more) in PROGRAMS.items():
            if not importlib.util.find_spec(package):
                print(f"{package} is not installed: {program} is left out", file=sys.stderr)
                continue
            command = [sys.executable, __file__, "--answer", program, name]
            done = subprocess.run(command, env=os.environ | more, stdout=subprocess.PIPE, text=True, check=True)
            version = importlib.metadata.version("keras" if more else package)
            rows.append(row(program, version, json.loads(done.stdout.splitlines()[-1]), root))
        for package in ("onnxruntime-node", "onnxruntime-web") if asked.npm else ():
            command = ["node", str(Path(__file__).with_suffix(".mjs")), str(asked.npm / package), name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            rows.append(row(package, told["version"], told["answers"], root))
    print(machine())
    print(markdown(rows))
    save("runtimes", rows)


if __name__ == "__main__":
    main()
