"""A C header by itself: its arithmetic, its names, and every text that it may have to hold."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.compiling import FAST, STRICT, Library, compile_c, errors_of, measured_errors, need, run_program
from tests.helpers.runs import run_of
from tests.helpers.tables import QUICK
from tidegate.export import c as target
from tidegate.export import take_apart
from tidegate.training import train


@pytest.mark.long
def test_the_built_in_exp_and_tanh_keep_the_bounds_that_the_header_states(folder: Path, tmp_path: Path) -> None:
    assert measured_errors(folder / "class.h", "class", tmp_path, 4093, "-O2") == []


def test_the_tanh_that_is_made_of_expf_keeps_its_bound(folder: Path, tmp_path: Path) -> None:
    header = folder / "class.h"
    (bound,) = re.findall(
        r"At most (\d) units in the last\s+\* place off where expf", header.read_text(encoding="utf-8")
    )
    ulps, tiny = errors_of(header, "class", tmp_path, 1009, "-O2")["tanh"]
    assert 0.4 < ulps <= float(bound)
    assert tiny <= 2e-38


def test_without_math_nothing_of_a_library_is_needed(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "both_ways.h", tmp_path)
    (tmp_path / "m.c").write_text('#include "both_ways.h"\nvoid *use(void) { return (void *)both_ways_run; }\n')
    flags = ("-std=c99", "-O2", "-ffreestanding", "-DTIDEGATE_NO_MATH", "-nostdlib", "-c")
    out = compile_c(tmp_path / "m.c", tmp_path / "m.o", *flags)
    undefined = subprocess.run([need("nm", "binutils"), "-u", out], capture_output=True, text=True, check=True).stdout
    known = {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_"}  # that compilers ask of every environment
    assert {line.split()[-1] for line in undefined.splitlines()} <= known


ODD = ['"', "\\", "??/", "ü🙂", "a\nb", "\t1", "*/ /*", "%s", "\u202e", "'", "l" * 5000, "7"]


def test_any_text_survives_as_a_class_a_category_and_a_name(tmp_path: Path) -> None:
    groups = 20
    columns: dict[str, Any] = {"*/ \\ ??/\n": ODD * groups, 'num"ber': np.arange(len(ODD) * groups) * 1.0}
    columns |= {"the ??/ target": [*ODD[1:], ODD[0]] * groups, "g": np.repeat(range(groups), len(ODD))}
    frame = pl.DataFrame(columns)
    run = train(frame, out=tmp_path / "run", target="the ??/ target", group="g", **QUICK | {"epochs": 1})
    exported = run.export("c", tmp_path / "3 Ödd-name.h")
    source = exported.path.read_text(encoding="utf-8")
    assert "\u202e" not in source
    name = target.identifier("3 Ödd-name")
    assert re.fullmatch("model_3_dd_name_[0-9a-f]{6}", name)
    (tmp_path / f"{name}.h").write_text(source, encoding="utf-8")
    library = Library(tmp_path, {name: run})
    classes = run.preprocessing.target.classes
    assert sorted(classes) == sorted(ODD)
    assert [library.class_text(name, k) for k in range(len(ODD))] == list(classes)
    for k, text in enumerate(run.preprocessing.tokens[0].vocabulary):
        assert library.find(name, 0, text.encode()) == k + 1
    assert run_program(compile_c(exported.beside[0], tmp_path / "a", *STRICT)).returncode == 0


def test_all_symbols_begin_with_the_name(folder: Path) -> None:
    for name in ("both_ways", "two_numbers", "words"):
        header = (folder / f"{name}.h").read_text(encoding="utf-8")
        defined = re.findall(r"^#define (\w+)", header, re.M)
        defined += re.findall(
            r"^}? ?(?:static|typedef|[A-Z_]+_INLINE|[A-Z_]+_UNUSED) .*?(\w+)(?:\[|\(|;| =)", header, re.M
        )
        assert len(defined) > 30
        assert [d for d in defined if not d.lower().startswith(f"{name}_")] == []


def test_no_name_of_a_header_can_be_one_of_another_headers(folder: Path) -> None:
    ends: set[str] = set()
    for path in [*folder.glob("*.h"), *(folder / "8").glob("*.h")]:
        name = path.stem
        ends |= {s[len(name) + 1 :] for s in re.findall(rf"\b{name}_\w+", path.read_text(encoding="utf-8"), re.I)}
    assert {"target_mean", "means", "exp", "l0_w_ih", "t0_texts", "IS"} <= ends | {e.split("_")[0] for e in ends}
    # Those of pump.h and pump_rest.h are the same where pump_END = pump_rest_END.
    assert [end for end in ends for other in ends if end.endswith(f"_{other}")] == []


def including(tmp_path: Path, *names: str, before: str = "") -> str:
    """What the compiler says of a program that includes these."""
    lines = "".join(f'#include "{name}"\n' for name in names)
    (tmp_path / "p.c").write_text(f"{before}{lines}int main(void) {{ return 0; }}\n", encoding="utf-8")
    command = ["gcc", "-std=c99", "-DTIDEGATE_NO_MATH", "-c", str(tmp_path / "p.c"), "-o", str(tmp_path / "p.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.long
def test_headers_whose_names_begin_alike_live_in_one_program_or_say_that_they_cant(tmp_path: Path) -> None:
    need("gcc", "gcc")
    for case, name in (
        ("number", "pump"),
        ("class", "pump_target"),
        ("class", "pump_exp"),
        ("class", "a-b"),
        ("number", "a_b"),
    ):
        run_of(case).export("c", tmp_path / f"{name}.h")
    run_of("class").export("c", tmp_path / "8" / "a-b.h", int8=True)
    for name in ("模型", "機械"):
        run_of("class").export("c", tmp_path / f"{name}.h")
    assert including(tmp_path, "pump.h", "pump_target.h", "pump_exp.h", "pump.h") == ""
    assert including(tmp_path, "模型.h", "機械.h") == ""
    for names in (("a-b.h", "a_b.h"), ("a-b.h", "8/a-b.h")):
        said = including(tmp_path, *names)
        assert said.count("error") >= 1
        assert "begin with a_b_, and so do those of another one. Export one of them" in said


def test_what_windows_h_defines_is_no_name_of_ours(tmp_path: Path) -> None:
    need("gcc", "gcc")
    run_of("sequence mean").export("c", tmp_path / "m.h")
    words = ("far", "near", "small", "interface", "IN", "OUT", "min(a, b) 0", "max(a, b) 0")
    before = "".join(f"#define {word}\n" for word in words)
    for flag in ("", "#undef TIDEGATE_NO_MATH\n"):
        assert including(tmp_path, "m.h", before=before + flag) == ""


def test_a_target_that_no_float_holds_is_refused_where_numbers_are_floats(tmp_path: Path) -> None:
    need("gcc", "gcc")
    run = run_of("number")
    for pre in (
        run.preprocessing,
        dataclasses.replace(run.preprocessing, target=dataclasses.replace(run.preprocessing.target, means=(1e300,))),
    ):
        parts = dataclasses.replace(take_apart(run), preprocessing=pre)
        target.write(parts, tmp_path / "m.h")
        said = including(tmp_path, "m.h", before="#define TIDEGATE_FLOAT_INPUT\n")
        assert ("a float can't hold the mean or the spread" in said) == (pre is not run.preprocessing)


@pytest.mark.parametrize("name", ["-m.h", "a b/m 'n.h", "m;true.h"])
def test_the_command_of_the_note_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    need("cc", "gcc")
    monkeypatch.chdir(tmp_path)
    command = run_of("one number").export("c", Path(name)).notes[-1].split("run: ", 1)[1]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


LONG_SUM = """
#include <math.h>
#include <stdio.h>
#include "{name}.h"
#define STEPS 200000
static {name}_input rows[STEPS];
static double sums[2 * {NAME}_HIDDEN];
static {name}_output output;
{declare}
int main(void) {{
  double most = 0.0, score;
  int t, u, k, c, o = 0;
  for (t = 0; t < STEPS; ++t)
    for (k = 0; k < {NAME}_NUMBERS; ++k) rows[t].numbers[k] = {name}_means[k] + {name}_stds[k] * (t % 7 - 2);
  {run}
  for (k = 0; k < {NAME}_AHEAD; ++k)
    for (c = 0; c < {NAME}_OUTPUTS; ++c, ++o) {{
      score = {name}_head_b[o];
      for (u = 0; u < {NAME}_DIRECTIONS * {NAME}_HIDDEN; ++u)
        score += sums[u] / STEPS * {name}_head_w[u * {NAME}_AHEAD * {NAME}_OUTPUTS + o];
      most = fmax(most, fabs(score - output.scores[k][c]));
    }}
  printf("%.3g", most);
  return 0;
}}
"""
ONE_WAY = (
    "static {name}_state state;",
    """{name}_reset(&state);
  for (t = 0; t < STEPS; ++t) {{
    {name}_step(&state, rows + t, t == STEPS - 1 ? &output : 0);
    for (u = 0; u < {NAME}_HIDDEN; ++u) sums[u] += state.hidden[{NAME}_LAYERS - 1][u];
  }}""",
)
BOTH_WAYS = (
    "static float scratch[{NAME}_SCRATCH(STEPS)];",
    """{name}_run(rows, STEPS, &output, scratch);
  for (t = 0; t < STEPS; ++t)
    for (u = 0; u < 2 * {NAME}_HIDDEN; ++u) sums[u] += scratch[t * 2 * {NAME}_HIDDEN + u];""",
)


@pytest.mark.parametrize("flags", [("-O2",), FAST], ids=str)
@pytest.mark.parametrize(("name", "parts"), [("sequence_mean", ONE_WAY), ("sequence_mean_both_ways", BOTH_WAYS)])
def test_the_mean_of_a_long_sequence_is_exact_to_rounding(
    folder: Path, tmp_path: Path, name: str, parts: tuple[str, str], flags: tuple[str, ...]
) -> None:
    words = {"name": name, "NAME": name.upper()}
    declare, go = (part.format(**words) for part in parts)
    shutil.copy(folder / f"{name}.h", tmp_path)
    (tmp_path / "m.c").write_text(LONG_SUM.format(**words, declare=declare, run=go), encoding="utf-8")
    away = float(run_program(compile_c(tmp_path / "m.c", tmp_path / "a", "-std=c99", *flags)).stdout)
    assert 0 < away < 1e-6  # a plain sum: some 1e-4


FADING = """
#include <math.h>
#include <stdio.h>
#include "fading.h"
static fading_state state;
static fading_input row;
int main(void) {
  double least = 1.0, last = 0.0;
  int t, u;
  fading_reset(&state);
  for (u = 0; u < FADING_HIDDEN; ++u) state.hidden[0][u] = u % 2 ? 1e-3f : -1e-3f;
  for (t = 0; t < 4000; ++t) {
    fading_step(&state, &row, 0);
    for (u = 0; u < FADING_HIDDEN; ++u) {
      last = fabs(state.hidden[0][u]);
      if (last > 0.0 && last < least) least = last;
    }
  }
  printf("%.9g %.9g", least, last);
  return 0;
}
"""


@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-DTIDEGATE_NO_MATH"), FAST], ids=str)
def test_a_state_that_fades_ends_at_zero_before_its_numbers_are_denormal(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    frame = pl.DataFrame({"g": [0] * 4 + [1] * 4, "x": np.arange(8.0), "y": ["a", "b"] * 4})
    run = train(frame, out=tmp_path / "run", target="y", group="g", **QUICK | {"epochs": 1})
    H = run.model.spec.hidden_size
    with torch.no_grad():
        for weight in run.model.core.parameters():
            weight.zero_()
            if weight.dim() == 1:
                weight[H : 2 * H] = 1.5  # twice: the update gate is .95, and there is no candidate
    run.export("c", tmp_path / "fading.h")
    (tmp_path / "m.c").write_text(FADING, encoding="utf-8")
    found = run_program(compile_c(tmp_path / "m.c", tmp_path / "a", "-std=c99", *flags)).stdout
    least, last = (float(number) for number in found.split())
    assert 2.0**-60 <= least < 2.0**-59
    assert last == 0
