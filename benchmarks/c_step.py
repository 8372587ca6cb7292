"""A step of an exported C header beside a step of the layer that it came from: microseconds a step, batch of one.

All are called in turn in one run on one thread, so that a busy machine slows all alike; the medians are printed, and their
ratios to the native kernel alone (C++ calling C++) and to `layer.step` from Python. The kernel alone needs its library:
`make bench` builds it. Before anything is timed, every header's scores are held against the model's.

Then the same headers with weights under which a state fades (update gate .999, no candidate, silence): a step while it is
lively beside one at its end, where floats left to themselves would be denormal numbers; CPU time, in turns.

    python benchmarks/c_step.py [--hidden 64] [--inputs 40] [--rounds 300] [--cc gcc] [--flags "-O3 -march=native"] [--save]

--save writes benchmarks/results/c_step.csv and c_step_faded.csv.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import machine, markdown, save

import tidegate

ROOT = Path(__file__).parents[1]
STEPS = 64  # in a row between two looks at the clock
# What is measured of a header, by name: which one, and with what defined.
VARIANTS = {
    "C": ("full", []),
    "C, TIDEGATE_NO_MATH": ("full", ["-DTIDEGATE_NO_MATH"]),
    "C, 8-bit weights": ("eight", []),
    "C, 8-bit weights, TIDEGATE_NO_MATH": ("eight", ["-DTIDEGATE_NO_MATH"]),
}
DRIVER = """
#include <time.h>
#include "model.h"
static model_state state;
static model_input rows[{steps}];
static model_output output;
static double now(void) {{ struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3; }}
void give(const double *numbers) {{
  int t, k;
  for (t = 0; t < {steps}; ++t) for (k = 0; k < MODEL_NUMBERS; ++k) rows[t].numbers[k] = *numbers++;
}}
double steps(int with_output) {{ /* microseconds a step */
  double start;
  int t;
  model_reset(&state);
  start = now();
  for (t = 0; t < {steps}; ++t) model_step(&state, rows + t, with_output ? &output : 0);
  return (now() - start) / {steps};
}}
double faded(int before) {{ /* CPU microseconds a step without input, after so many others */
  struct timespec from, to;
  static model_input silence;
  int t, u, k;
  for (k = 0; k < MODEL_NUMBERS; ++k) silence.numbers[k] = model_means[k];
  model_reset(&state);
  for (u = 0; u < MODEL_HIDDEN; ++u) state.hidden[0][u] = u % 2 ? 0.5f : -0.25f;
  for (t = 0; t < before; ++t) model_step(&state, &silence, 0);
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
  for (t = 0; t < {steps}; ++t) model_step(&state, &silence, 0);
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
  return ((double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3) / {steps};
}}
void scores(float *to) {{ to[0] = output.scores[0][0]; to[1] = output.scores[0][1]; }}
"""
KERNEL = """
#include <ctime>
#include <cstdlib>
#include <vector>
#include "gru.h"
using namespace tidegate;
static double now() {{ timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return double(t.tv_sec) * 1e6 + double(t.tv_nsec) / 1e3; }}
extern "C" double steps(int) {{
  constexpr int64_t I = {inputs}, H = {hidden};
  static std::vector<float> w(3 * H * (I + H + 2)), x({steps} * I), h(H), y(H);
  static const Packed<float>* packed = nullptr;
  if (!packed) {{
    for (auto* v : {{&w, &x}}) for (float& e : *v) e = float(rand()) / float(RAND_MAX) * 0.2f - 0.1f;
    const float* b = w.data() + 3 * H * (I + H);
    packed = new Packed<float>({{w.data(), w.data() + 3 * H * I, b, b + 3 * H, nullptr, nullptr, I, H}}, I, H, Reset::after, false, 1);
  }}
  Sizes sizes{{}};
  sizes.T = sizes.B = 1; sizes.I = I; sizes.H = H; sizes.reset = Reset::after; sizes.threads = 1;
  const double start = now();
  for (int t = 0; t < {steps}; ++t) {{
    Forward<float> f{{}};
    f.x = x.data() + t * I; f.x_step = f.x_row = I; f.weights = packed; f.h_0 = h.data(); f.h_0_row = H;
    f.output = y.data(); f.output_row = H; f.h_n = h.data();
    forward(sizes, &f, 1);
  }}
  return (now() - start) / {steps};
}}
"""


def build(folder: Path, source: str, out: str, compiler: str, *flags: str) -> ctypes.CDLL:
    file = folder / f"{out}.{'cpp' if compiler == 'g++' else 'c'}"
    file.write_text(source, encoding="utf-8")
    library = folder / f"{out}.so"
    subprocess.run(
        [compiler, *flags[:1], str(file), *flags[1:], "-shared", "-fPIC", "-o", str(library), "-lm"], check=True
    )
    found = ctypes.CDLL(str(library))
    found.steps.restype = ctypes.c_double
    if compiler != "g++":
        found.faded.restype = ctypes.c_double
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--cc", default="gcc")
    parser.add_argument("--flags", default="-O3 -march=native")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {"g": np.repeat(range(8), 64), "y": rng.choice(["a", "b"], 512)}
        | {f"x{k}": rng.standard_normal(512) for k in range(args.inputs)}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = tidegate.train(
            table,
            target="y",
            group="g",
            out=folder / "run",
            hidden_size=args.hidden,
            epochs=1,
            baselines=False,
            progress=False,
            device="cpu",
        )
        names = [c.name for c in run.preprocessing.numbers]
        numbers = np.ascontiguousarray(table[names].to_numpy()[:STEPS])
        libraries: dict[str, ctypes.CDLL] = {}
        faded: list[dict[str, object]] = []
        for what, (kind, defined) in VARIANTS.items():
            (folder / kind).mkdir(exist_ok=True)
            run.export("c", folder / kind / "model.h", int8=kind == "eight")
            flags = ["-std=gnu99", f"-I{folder / kind}", *args.flags.split(), *defined]
            libraries[what] = build(folder, DRIVER.format(steps=STEPS), f"c{len(libraries)}", args.cc, *flags)
            libraries[what].give(ctypes.c_void_p(numbers.ctypes.data))
        x = torch.from_numpy(numbers - [c.mean for c in run.preprocessing.numbers]) / torch.tensor(
            [c.std for c in run.preprocessing.numbers]
        )
        x = x.float().unsqueeze(1)
        gate(run, x, libraries)
        core = ROOT / "build" / "native" / "libtidegate_core.a"
        if core.exists():
            text = KERNEL.format(steps=STEPS, inputs=args.inputs, hidden=args.hidden)
            flags = ["-O2", "-std=c++17", f"-I{ROOT / 'csrc'}", str(core), "-lpthread", "-ldl"]
            libraries["native kernel alone"] = build(folder, text, "kernel", "g++", *flags)
        else:
            print(f"{core} is not there (make bench builds it): without the kernel alone")
        rows = measure(run, x, libraries, args.rounds)
        fade(run)
        for what, (kind, defined) in VARIANTS.items():
            run.export("c", folder / kind / "model.h", int8=kind == "eight")
            for flags in [args.flags, "-O2"]:
                options = ["-std=gnu99", f"-I{folder / kind}", *flags.split(), *defined]
                library = build(folder, DRIVER.format(steps=STEPS), f"f{len(faded)}", args.cc, *options)
                faded.append({"step": what, "compiled with": flags, **measure_faded(library)})
    print(
        f"{machine()}\n{args.cc} {args.flags}, I {args.inputs}, H {args.hidden}, {args.rounds} rounds of {STEPS} steps\n\n{markdown(rows)}\n{markdown(faded)}"
    )
    if args.save:
        save("c_step", rows)
        save("c_step_faded", faded)


def fade(run: tidegate.run.Run) -> None:
    """Update gates of .999, no candidates: a state of this run fades."""
    H, core = run.model.spec.hidden_size, run.model.core
    assert core is not None
    with torch.no_grad():
        for weight in core.parameters():
            if weight.dim() == 1:
                weight.zero_()
                weight[H : 2 * H] = 3.5


def measure_faded(library: ctypes.CDLL) -> dict[str, object]:
    turns = [(library.faded(0), library.faded(150_000)) for _ in range(7)]
    lively, faded = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(b / a for a, b in turns)
    return {"lively, us": round(lively, 3), "faded, us": round(faded, 3), "faded over lively": round(ratio, 2)}


def gate(run: tidegate.run.Run, x: torch.Tensor, libraries: dict[str, ctypes.CDLL]) -> None:
    """After STEPS steps the scores must be the model's; to 8 bits' rounding where there are 8."""
    with torch.no_grad():
        truth = run.model(x, torch.zeros(STEPS, 1, 0, dtype=torch.long), torch.tensor([STEPS]))[0][-1, 0, 0].numpy()
    for what, library in libraries.items():
        got = np.zeros(2, np.float32)
        library.steps(1)
        library.scores(ctypes.c_void_p(got.ctypes.data))
        assert np.abs(got - truth).max() < (0.05 if "8-bit" in what else 1e-5), (
            f"{what}: {got}, not {truth}: nothing to time"
        )


def measure(
    run: tidegate.run.Run, x: torch.Tensor, libraries: dict[str, ctypes.CDLL], rounds: int
) -> list[dict[str, object]]:
    layer = run.model.core
    assert isinstance(layer, tidegate.GRU)
    times: dict[str, list[float]] = {}
    with torch.no_grad():
        for i in range(rounds + rounds // 10):
            state = torch.zeros(layer.num_layers, 1, layer.hidden_size)
            start = time.perf_counter_ns()
            for x_t in x:
                _, state = layer.step(x_t, state)
            took = {"layer.step, Python": (time.perf_counter_ns() - start) / 1000 / STEPS}
            for what, library in libraries.items():
                took[what] = library.steps(0)
                if what.startswith("C"):
                    took[f"{what}, with scores and probabilities"] = library.steps(1)
            if i >= rounds // 10:  # the first tenth warms up
                for what, value in took.items():
                    times.setdefault(what, []).append(value)
    median = {what: statistics.median(values) for what, values in times.items()}
    kernel = median.get("native kernel alone")
    return [
        {
            "step": what,
            "us": round(us, 3),
            "over layer.step": round(us / median["layer.step, Python"], 2),
            "over the kernel alone": "" if kernel is None else round(us / kernel, 2),
        }
        for what, us in median.items()
    ]


if __name__ == "__main__":
    main()
