"""C compilers for the tests, and headers behind functions that ctypes can call."""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.runs import CASES, run_of
from tidegate.export import c as target
from tidegate.run import Run

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
FAST = ("-O3", "-ffast-math")
MOST_STEPS = 64


def name_of(case: str) -> str:
    return re.sub("[^a-z]", "_", case)


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tidegate-c-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def header_of(case: str, bits: str = "") -> Path:
    """The header of a case, its self-test beside it, in the folder of all; bits: "8" for weights of 8 bits, in 8/."""
    path = _folder() / bits / f"{name_of(case)}.h"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "code_bytes", lambda *_: "size not asked for")  # a compiler run each
        run_of(case).export("c", path, **({"int8": True} if bits else {}))
    return path


def headers() -> Path:
    """A folder with a header and a self-test of every case, and of every case with 8-bit weights in 8/."""
    for case in CASES:
        header_of(case)
        header_of(case, "8")
    return _folder()


def need(program: str, package: str) -> str:
    """The path of a program. Fails the test where it isn't there: one that is skipped says nothing about the code."""
    found = shutil.which(program)
    if found is None:
        pytest.fail(f"This test needs {program!r}, which is not on the PATH. On Debian: apt-get install {package}")
    return found


def compile_c(source: Path, out: Path, *flags: str, compiler: str = "cc", package: str = "gcc") -> Path:
    """Compile and link `source`, in its folder; what the compiler says becomes the test's message."""
    command = [need(compiler, package), *flags, source.name, "-o", str(out), "-lm"]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
    return out


def errors_of(
    header: Path, name: str, folder: Path, stride: int, *flags: str, compiler: str = "cc"
) -> dict[str, tuple[float, float]]:
    """The largest errors of a header's exp, sigmoid and tanh over every stride-th float: units in the last place, and, where
    the truth is too small for these, the error itself."""
    shutil.copy(Path(__file__).with_name("activations.c"), folder)
    shutil.copy(header, folder / "m.h")
    defined = ('-DHEADER="m.h"', f"-DNAME(x)={name}_##x")
    program = compile_c(folder / "activations.c", folder / "a", *STRICT, *flags, *defined, compiler=compiler)
    lines = [line.split() for line in run_program(program, str(stride)).stdout.splitlines()]
    assert [line[0] for line in lines] == ["exp", "sigmoid", "tanh"]
    return {function: (float(ulps), float(tiny) * 1e-38) for function, ulps, tiny in lines}


def measured_errors(header: Path, name: str, folder: Path, stride: int, *flags: str, compiler: str = "cc") -> list[str]:
    """Which of a header's own exp, sigmoid and tanh are above the bounds that it states."""
    stated = re.search(
        r"tanh at most (\d) units.*sigmoid at most (\d) and exp at most (\d)\. .*?sigmoid is at most (\S+) off",
        header.read_text(encoding="utf-8").replace("\n * ", " "),
    )
    assert stated is not None
    bounds = {"tanh": float(stated[1]), "sigmoid": float(stated[2]), "exp": float(stated[3])}
    found = errors_of(header, name, folder, stride, "-DTIDEGATE_NO_MATH", *flags, compiler=compiler)
    return [
        f"{function}: {ulps} units, {tiny} where the truth is too small for them"
        for function, (ulps, tiny) in found.items()
        if not (0.4 < ulps <= bounds[function] and tiny <= float(stated[4]))
    ]


def run_program(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)


def driver(name: str, header: str, run: Run) -> str:
    """NAME_drive for a sequence: what `Library.drive` calls. The state is rubbish before it is reset."""
    spec, task = run.model.spec, run.preprocessing.target.task
    one = spec.per == "sequence"
    read = []
    if run.preprocessing.numbers:
        read.append(f"for (k = 0; k < {name.upper()}_NUMBERS; ++k) rows[t].numbers[k] = *numbers++;")
    if run.preprocessing.tokens:
        read.append(f"for (k = 0; k < {name.upper()}_TOKENS; ++k) rows[t].tokens[k] = *tokens++;")
    if spec.bidirectional:
        go = f"(void)piece; (void)h_0; (void)h_n; {name}_run(rows, steps, out, scratch);"
        state = f"static float scratch[{name.upper()}_SCRATCH({MOST_STEPS})];"
    else:
        state = f"static {name}_state state;"
        go = f"""
  memset(&state, 0x7b, sizeof state);
  {name}_reset(&state);
  if (h_0) memcpy(state.hidden, h_0, sizeof state.hidden);
  if (piece == 0) {name}_run(&state, rows, steps, out);
  else if (piece == 1) for (t = 0; t < steps; ++t) {name}_step(&state, rows + t, out{"" if one else " + t"});
  else for (t = 0; t < steps; t += piece)
    {name}_run(&state, rows + t, steps - t < piece ? steps - t : piece, out{"" if one else " + t"});
  memcpy(h_n, state.hidden, sizeof state.hidden);"""
    values = []
    if task != "number":
        values.append("*probabilities++ = out[t].probabilities[k][c];")
    values.append(f"*prediction++ = (double)out[t].prediction[k]{'' if task == 'class' else '[c]'};")
    token = f"{name}_token(column, text)" if run.preprocessing.tokens else "(void)column, (void)text, 0"
    classes = f"{name}_class_names[place]" if task == "class" else "((void)place, (const char *)0)"
    return f"""
#include "{header}"
void {name}_drive(const double *numbers, const int32_t *tokens, int32_t steps, int32_t piece, const float *h_0,
    float *scores, float *probabilities, double *prediction, float *h_n) {{
  static {name}_input rows[{MOST_STEPS}];
  static {name}_output out[{MOST_STEPS}];
  {state}
  int32_t t; int k, c;
  (void)numbers; (void)tokens; (void)probabilities;
  for (t = 0; t < steps; ++t) {{ {" ".join(read)} }}
  {go}
  for (t = 0; t < {"1" if one else "steps"}; ++t)
    for (k = 0; k < {name.upper()}_AHEAD; ++k)
      for (c = 0; c < {name.upper()}_OUTPUTS; ++c) {{ *scores++ = out[t].scores[k][c]; {" ".join(values)} }}
}}
int32_t {name}_find(int column, const char *text) {{ return {token}; }}
const char *{name}_class_text(int place) {{ return {classes}; }}
uint32_t {name}_state_size(void) {{ return {"0" if spec.bidirectional else f"sizeof({name}_state)"}; }}
"""


class Library:
    """Headers compiled into one shared library: that they get along is part of what is tested."""

    def __init__(self, folder: Path, runs: dict[str, Run], *flags: str, compiler: str = "cc"):
        source = folder / "drivers.c"
        parts = [driver(name, f"{name}.h", run) for name, run in runs.items()]
        source.write_text("#include <string.h>\n" + "".join(parts), encoding="utf-8")
        out = folder / f"drivers{abs(hash(flags))}.so"
        self.c = ctypes.CDLL(str(compile_c(source, out, *STRICT, *flags, "-shared", "-fPIC", compiler=compiler)))

    def drive(
        self, name: str, run: Run, numbers: np.ndarray, codes: np.ndarray, h_0: np.ndarray, piece: int = 0
    ) -> dict[str, np.ndarray]:
        """A sequence: numbers [T, F], codes [T, C], h_0 [layers, H]. piece: rows a call; 1: step(), 0: all at once."""
        spec = run.model.spec
        steps = len(numbers)
        shape = (1 if spec.per == "sequence" else steps, max(spec.horizon, 1), spec.outputs)
        out = {
            "scores": np.full(shape, np.nan, np.float32),
            "probabilities": np.full(shape, np.nan, np.float32),
            "prediction": np.full(shape, np.nan),
            "h_n": np.full(h_0.shape, np.nan, np.float32),
        }
        given = [np.ascontiguousarray(numbers, np.float64), np.ascontiguousarray(codes, np.int32)]
        state = np.ascontiguousarray(h_0, np.float32)

        def at(array: np.ndarray) -> ctypes.c_void_p:
            return ctypes.c_void_p(array.ctypes.data)

        steps_, piece_ = ctypes.c_int32(steps), ctypes.c_int32(piece)
        core: Any = run.model.core
        start = core.initial_state(1)[:, 0].detach().numpy()
        given_state = None if np.array_equal(state, start) else at(state)  # then it is reset() that has to begin there
        getattr(self.c, f"{name}_drive")(*map(at, given), steps_, piece_, given_state, *map(at, out.values()))
        return out

    def find(self, name: str, column: int, text: bytes | None) -> int:
        return getattr(self.c, f"{name}_find")(ctypes.c_int(column), ctypes.c_char_p(text))

    def class_text(self, name: str, place: int) -> str:
        function = getattr(self.c, f"{name}_class_text")
        function.restype = ctypes.c_char_p
        return function(ctypes.c_int(place)).decode()

    def state_size(self, name: str) -> int:
        return getattr(self.c, f"{name}_state_size")()
