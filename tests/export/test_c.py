"""The C header against the model in Python: the machine's `cc` compiles it, ctypes calls it."""

from __future__ import annotations

import copy
import dataclasses
import errno
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.compiling import (
    STRICT,
    Library,
    compile_c,
    errors_of,
    headers,
    measured_errors,
    name_of,
    need,
    run_program,
)
from tests.helpers.runs import CASES, WORDS, batch_of, folder_of, run_of, sentences, table_of
from tests.helpers.tables import QUICK, signal_table
from tidegate.errors import DataError, SettingsError
from tidegate.export import c as target
from tidegate.export import take_apart
from tidegate.files import DiskError
from tidegate.nn import GRU
from tidegate.run import Run
from tidegate.training import load, train

# By their names: to open the runs here would train them while pytest collects.
FAST = ("-O3", "-ffast-math")
FORWARD = [name for name in CASES if "both ways" not in name]
WITH_TEXT = [name for name in CASES if name not in ("numbers alone", "one number", "forecast", "forecast of two")]


@pytest.fixture(scope="module")
def folder() -> Path:
    need("cc", "gcc")
    return headers()


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name_of(case): run_of(case) for case in CASES}


@pytest.fixture(scope="module")
def library(folder: Path, runs: dict[str, Run]) -> Library:
    return Library(folder, runs, "-O1")


@pytest.fixture(scope="module")
def without_math(folder: Path, runs: dict[str, Run]) -> Library:
    return Library(folder, runs, "-O0", "-DTIDEGATE_NO_MATH")


@pytest.fixture(scope="module")
def library_8(folder: Path, runs: dict[str, Run]) -> Library:
    return Library(folder / "8", runs, "-O0")


def hold_against_python(library: Library, case: str, run: Run, most: float, h_0: bool = False) -> None:
    """Every sequence of the case's table, one by one."""
    spec, task = run.model.spec, run.preprocessing.target.task
    layers, H = spec.num_layers * (2 if spec.bidirectional else 1), spec.hidden_size
    frame = table_of(case)
    count = batch_of(run, frame).numbers.shape[0]
    state = np.random.default_rng(3).uniform(-1, 1, (layers, count, H)).astype(np.float32) if h_0 else None
    batch = batch_of(run, frame, h_0=state)
    for b, length in enumerate(batch.lengths):
        got = library.drive(name_of(case), run, batch.numbers[b, :length], batch.codes[b, :length], batch.h_0[:, b])
        at = (b, slice(0, length)) if spec.per == "step" else (slice(b, b + 1),)
        scores = batch.scores[at]
        np.testing.assert_allclose(got["scores"], scores, rtol=0, atol=most)
        if not spec.bidirectional:
            np.testing.assert_allclose(got["h_n"], batch.h_n[:, b], rtol=0, atol=most)
        if batch.probabilities is not None:
            np.testing.assert_allclose(got["probabilities"], batch.probabilities[at], rtol=0, atol=most)
        if task == "class":
            sure = np.abs(np.diff(np.sort(scores, axis=-1)[..., -2:], axis=-1)[..., 0]) > 4 * most
            assert sure.mean() > 0.5
            np.testing.assert_array_equal(got["prediction"][..., 0][sure], batch.prediction[at][sure])
        elif task == "labels":
            sure = np.abs(scores) > 4 * most
            np.testing.assert_array_equal(got["prediction"][sure], batch.prediction[at][sure])
        else:
            apart = np.abs(got["prediction"] - batch.prediction[at]) / np.array(run.preprocessing.target.stds)
            assert apart.max() <= most


@pytest.mark.parametrize("case", CASES)
def test_the_header_computes_what_the_run_computes(library: Library, case: str) -> None:
    hold_against_python(library, case, run_of(case), 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_so_does_the_header_with_its_own_exp_and_tanh(without_math: Library, case: str) -> None:
    hold_against_python(without_math, case, run_of(case), 1e-5)


def rounded(case: str) -> Run:
    """The run with the weights that the 8-bit header has."""
    run = run_of(case)
    run.model = target._Weights(take_apart(run), int8=True).model
    return run


@pytest.mark.parametrize("case", CASES)
def test_8_bit_weights_compute_what_a_model_with_these_weights_computes(library_8: Library, case: str) -> None:
    hold_against_python(library_8, case, rounded(case), 1e-5)


# Where a pool is part of the state, hidden[] alone does not go on: the next test cuts such sequences.
@pytest.mark.parametrize("case", [name for name in FORWARD if name not in ("sequence max", "sequence mean")])
def test_a_sequence_can_go_on_from_a_state_that_was_kept(library: Library, case: str) -> None:
    hold_against_python(library, case, run_of(case), 1e-5, h_0=True)


@pytest.mark.parametrize("case", FORWARD)
def test_a_sequence_in_pieces_gives_what_it_gives_whole(library: Library, case: str) -> None:
    run = run_of(case)
    batch = batch_of(run, table_of(case))
    b = int(batch.lengths.argmax())
    numbers, codes = batch.numbers[b, : batch.lengths[b]], batch.codes[b, : batch.lengths[b]]
    whole = library.drive(name_of(case), run, numbers, codes, batch.h_0[:, b])
    for piece in (1, 3):
        pieces = library.drive(name_of(case), run, numbers, codes, batch.h_0[:, b], piece)
        for key in whole:
            np.testing.assert_allclose(pieces[key], whole[key], rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("case", WITH_TEXT)
def test_texts_get_the_codes_that_python_gives_them(library: Library, case: str) -> None:
    tokens = run_of(case).preprocessing.tokens
    assert tokens
    for column, token in enumerate(tokens):
        for k, text in enumerate(token.vocabulary):
            assert library.find(name_of(case), column, text.encode()) == k + 1
            assert library.find(name_of(case), column, text.encode() + b"!") == 0
            assert library.find(name_of(case), column, text.encode()[:-1]) == 0
        for nothing in (b"", b"\xff", b"\x01", None):
            assert library.find(name_of(case), column, nothing) == 0


def test_words_are_found_in_capitals_and_categories_only_as_they_are(library: Library) -> None:
    words = run_of("words").preprocessing.tokens[0]
    code = words.vocabulary.index("song") + 1
    assert {library.find("words", 0, text) for text in (b"song", b"Song", b"SONG")} == {code}
    assert library.find("words", 0, "Größe".encode()) == words.vocabulary.index("größe") + 1
    assert library.find("class", 0, b"B b") > 0
    assert library.find("class", 0, b"b b") == 0


def test_a_value_that_is_no_number_counts_as_missing(library: Library) -> None:
    run = run_of("class")
    batch = batch_of(run, table_of("class"))
    numbers, codes, state = batch.numbers[0, :4].copy(), batch.codes[0, :4], batch.h_0[:, 0]
    out = []
    for value in (np.nan, -np.nan, np.inf, -np.inf, 1e300):
        numbers[1, :] = value
        out.append(library.drive("class", run, numbers, codes, state)["scores"])
    assert np.isfinite(out[0]).all()
    for other in out[1:]:
        np.testing.assert_array_equal(other, out[0])
    numbers[1, :] = [c.mean for c in run.preprocessing.numbers]  # the same zeros, but not said to be missing
    assert np.abs(library.drive("class", run, numbers, codes, state)["scores"] - out[0]).max() > 1e-3


def test_a_code_that_is_none_counts_as_unknown(library: Library) -> None:
    run = run_of("class")
    batch = batch_of(run, table_of("class"))
    codes = batch.codes[0, :3].copy()
    out = []
    for code in (0, -1, 7, 10**9, -(2**31)):
        codes[:, 0] = code
        out.append(library.drive("class", run, batch.numbers[0, :3], codes, batch.h_0[:, 0])["scores"])
    for other in out[1:]:
        np.testing.assert_array_equal(other, out[0])


@pytest.mark.parametrize(("case", "classes"), [("class", ["down", "up"]), ("whole-number classes", ["3", "4", "5"])])
def test_classes_have_their_names(library: Library, case: str, classes: list[str]) -> None:
    assert [library.class_text(name_of(case), k) for k in range(len(classes))] == classes


def test_yes_and_no_are_true_and_false(library: Library) -> None:
    assert [library.class_text("yes_no", k) for k in (0, 1)] == ["false", "true"]


# --------------------------------------------------------------------------------------------------- the self-test


SELF_TESTS = [
    ("forecast of two", ""),
    ("two numbers", ""),
    ("labels", ""),
    ("sequence mean", ""),
    ("sequence max both ways", ""),
    ("words both ways", "8"),
    ("class", "8"),
]  # a kind of each; all of them in test_c_compilers.py


@pytest.mark.parametrize(("case", "bits"), SELF_TESTS)
def test_the_self_test_passes_and_says_how_far_apart_it_is(folder: Path, tmp_path: Path, case: str, bits: str) -> None:
    source = folder / bits / f"{name_of(case)}_test.c"
    done = run_program(compile_c(source, tmp_path / "a", *STRICT, "-O1"))
    assert done.returncode == 0, done.stdout
    line = re.fullmatch(
        r"(\w+): biggest difference (\S+), allowed (\S+), 32 rows in 3 sequences: as in Python\n", done.stdout
    )
    assert line is not None, done.stdout
    assert line[1] == name_of(case)
    assert 0 < float(line[2]) < float(line[3]) <= 1e-4


@pytest.mark.parametrize(
    "flags",
    [
        FAST,
        ("-DTIDEGATE_NO_MATH", *FAST),
        ("-DTIDEGATE_FLOAT_INPUT", "-Wdouble-promotion"),
        ("-DTIDEGATE_FLOAT_INPUT", *FAST),
        ("-O0",),
    ],
)
def test_the_self_test_passes_with_every_option(folder: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    # far, a column of "class", lies at 1 000 000 +- 50 and x has missing values.
    done = run_program(compile_c(folder / "class_test.c", tmp_path / "a", *STRICT, *flags))
    assert done.returncode == 0, done.stdout


ARRAYS = ["l0_w_ih", "l0_w_hh", "l0_b_ih", "l0_b_hh", "head_w", "head_b", "t0_vectors", "t0_codes", "means", "stds"]


def test_the_self_test_fails_where_any_part_of_the_header_is_changed(folder: Path, tmp_path: Path) -> None:
    header = (folder / "two_numbers.h").read_text(encoding="utf-8")
    shutil.copy(folder / "two_numbers_test.c", tmp_path)
    broken = {array: broken_array(header, f"two_numbers_{array}") for array in [*ARRAYS, "target_mean"]}
    broken["mask"] = header.replace("? 0.0f : 1.0f", "? 0.0f : 0.5f")
    broken["gate"] = header.replace("(1.0f - z) * n + z * h[u]", "z * n + (1.0f - z) * h[u]")
    broken["reset"] = header.replace("state->hidden[l][u] = 0.0f", "(void)state")
    for what, text in broken.items():
        assert text != header, what
        (tmp_path / "two_numbers.h").write_text(text, encoding="utf-8")
        done = run_program(compile_c(tmp_path / "two_numbers_test.c", tmp_path / "a", "-O0", "-w"))
        assert done.returncode == 1, what
        assert "WRONG" in done.stdout


def broken_array(header: str, array: str) -> str:
    """The header with a value of an array a little larger."""
    found = re.search(rf"{array}\[[^;]*?= \{{(?:\s*/\*.*?\*/)?[^;]*?(-?\d+\.?\d*(?:e[+-]\d+)?)", header)
    assert found is not None, array
    value = found[1]
    more = str(int(value) + 1) if value.isdigit() else f"{float(value) * 1.01 + 0.01:.9g}"
    return header[: found.start(1)] + more + header[found.end(1) :]


# --------------------------------------------------------------------------------------------------- by itself


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


# --------------------------------------------------------------------------------------------------- what is said


SIZES = {
    "too many weights": "size not measured (so many weights take a compiler long)",
    "slow": "size unknown (cc failed here: TimeoutExpired)",
    "no -A": "size unknown (the program size here has no -A)",
    "no .text": "size unknown (size -A names no .text here)",
}


@pytest.mark.parametrize("what", SIZES)
def test_where_the_code_cant_be_measured_the_note_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        assert options["timeout"] <= 30
        if what == "slow":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if "-A" not in command:
            return real(command, **options)
        if what == "no -A":
            raise subprocess.CalledProcessError(64, command)
        return subprocess.CompletedProcess(command, 0, "section size\n__TEXT 5\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    if what == "too many weights":
        monkeypatch.setattr(target, "MEASURED", 1000)
    assert f"Code: {SIZES[what]}. " in str(run_of("one number").export("c", tmp_path / "m.h"))


def test_the_notes_give_the_bytes_of_code_weights_and_state(tmp_path: Path) -> None:
    run = run_of("sequence mean")
    exported = run.export("c", tmp_path / "m.h")
    weights = 4 * sum(p.numel() for p in run.model.parameters())
    note = re.fullmatch(
        r"Code: ([\d,]+) bytes \(cc -Os, \S+\)\. Weights: ([\d,]+) bytes\. State: ([\d,]+) bytes\.", exported.notes[0]
    )
    assert note is not None, exported.notes
    assert 500 < int(note[1].replace(",", "")) < 5000
    assert int(note[2].replace(",", "")) == weights
    assert int(note[3].replace(",", "")) == Library(tmp_path, {"m": run}).state_size("m")


def test_8_bit_weights_take_a_byte_each_and_their_scales(tmp_path: Path) -> None:
    run = run_of("sequence last")
    note = run.export("c", tmp_path / "m.h", int8=True).notes[0]
    matrices = [p for p in run.model.parameters() if p.dim() == 2]
    biases = [p for p in run.model.parameters() if p.dim() == 1]
    count = sum(p.numel() + 4 * len(p) for p in matrices) + sum(4 * p.numel() for p in biases)
    assert f"Weights: {count:,} bytes" in note


def test_without_a_compiler_the_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target.shutil, "which", lambda program: None)
    assert "Code: size unknown (no cc" in run_of("one number").export("c", tmp_path / "m.h").notes[0]


def test_quantised_weights_are_the_nearest_that_a_scale_a_row_allows() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32) * np.logspace(-6, 3, 7)[:, None].astype(
        np.float32
    )
    rows[3] = 0
    numbers, scales = target.quantise(rows)
    assert numbers.dtype == np.int8
    assert np.abs(numbers.astype(int)).max(axis=1).tolist() == [127, 127, 127, 0, 127, 127, 127]
    assert (np.abs(numbers * scales[:, None] - rows) <= scales[:, None] * 0.5001).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on a CSV file, with test rows."""
    folder = tmp_path_factory.mktemp("trained")
    signal_table(groups=30).write_csv(folder / "signals.csv")
    train(folder / "signals.csv", out=folder / "run", target="label", group="device", time="t", **QUICK)
    return folder


def figure_of(run: Run, table: Any) -> float:
    return run.evaluate(table).model.summary["accuracy"]


def test_8_bit_weights_say_what_they_cost_on_the_test_rows(trained: Path, tmp_path: Path) -> None:
    run = load(trained / "run")
    before = copy.deepcopy(run.model.state_dict())
    note = run.export("c", tmp_path / "m.h", int8=True).notes[1]
    exact = figure_of(run, trained / "signals.csv")
    assert all(torch.equal(before[k], v) for k, v in run.model.state_dict().items())
    run.model = target._Weights(take_apart(run), int8=True).model
    less = figure_of(run, trained / "signals.csv")
    assert note == (
        f"Accuracy on the test rows of signals.csv: {exact:.4g} as 32-bit, {less:.4g} as 8-bit ({less - exact:+.2g})."
    )


def test_the_cost_of_8_bit_weights_shows_in_the_note(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse: Callable[..., Any] = lambda rows: (np.zeros(rows.shape, np.int8), np.zeros(len(rows), np.float32))  # noqa: E731
    monkeypatch.setattr(target, "quantise", coarse)
    note = load(trained / "run").export("c", tmp_path / "m.h", int8=True).notes[1]
    before, after = map(float, re.findall(r"(\d\.\d+) as", note))
    assert after < before - 0.1


def test_a_named_table_is_scored_instead(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    signal_table(groups=8, seed=5).write_csv(other)
    run = load(trained / "run")
    note = run.export("c", tmp_path / "m.h", int8=True, table=str(other)).notes[1]
    assert note.startswith(f"Accuracy on all rows of other.csv: {figure_of(run, other):.4g} as 32-bit")


def test_where_there_are_no_test_rows_all_are_scored(tmp_path: Path) -> None:
    halves = signal_table(groups=12).with_columns(
        split=pl.when(pl.col("device") < "d5").then(pl.lit("train")).otherwise(pl.lit("valid"))
    )
    halves.write_csv(tmp_path / "halves.csv")
    roles = {"target": "label", "group": "device", "time": "t", "split": "split"}
    run = train(tmp_path / "halves.csv", out=tmp_path / "run", **QUICK, **roles)
    note = run.export("c", tmp_path / "m.h", int8=True).notes[1]
    assert note.startswith("Accuracy on all rows of halves.csv: ")


def test_a_named_table_without_the_target_is_refused(trained: Path, tmp_path: Path) -> None:
    signal_table(groups=3).drop("label").write_csv(tmp_path / "bare.csv")
    with pytest.raises(DataError, match="label"):
        load(trained / "run").export("c", tmp_path / "m.h", int8=True, table=str(tmp_path / "bare.csv"))
    assert not (tmp_path / "m.h").exists()


def test_without_its_table_the_note_says_how_to_name_one(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    run = load(tmp_path / "moved" / "run")
    run.source = str(tmp_path / "moved" / "signals.csv")
    signal_table(groups=3).write_csv(run.source)
    assert "has changed since the training. Name the table with table= (--table)" in str(
        run.export("c", tmp_path / "m.h", int8=True)
    )
    Path(run.source).write_bytes(b"\xff\xfe\x00")  # and no table at all: what was asked for is written all the same
    assert "is unknown: " in str(run.export("c", tmp_path / "m.h", int8=True))
    Path(run.source).unlink()
    assert "is not there any more. Name the table with table= (--table)" in str(
        run.export("c", tmp_path / "m.h", int8=True)
    )
    run.source = None
    assert "a table in memory. Name the table with table= (--table)" in str(
        run.export("c", tmp_path / "m.h", int8=True)
    )


# --------------------------------------------------------------------------------------------------- what is refused


def test_a_table_without_8_bit_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"int8=True \(--int8\)"):
        run_of("class").export("c", tmp_path / "m.h", table="signals.csv")


def test_nothing_is_written_where_the_named_table_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run_of("class").export("c", tmp_path / "m.h", int8=True, table=str(tmp_path / "none.csv"))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    run = run_of("class")
    with torch.no_grad():
        run.model.head.weight[0, 0] = float("nan")
    with pytest.raises(SettingsError, match="NaN or infinity"):
        run.export("c", tmp_path / "m.h")
    assert list(tmp_path.iterdir()) == []


def test_a_zero_character_is_refused_by_the_name_of_its_column(tmp_path: Path) -> None:
    frame = sentences().with_columns(words=pl.col("words").list.eval(pl.element() + "\0"))
    run = train(frame, out=tmp_path / "run", **QUICK | {"epochs": 1} | WORDS["words"])
    with pytest.raises(SettingsError, match=r"column 'words': .* zero character"):
        run.export("c", tmp_path / "out" / "m.h")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ['a"b.h', "a\\b.h", "a\nb.h"])
def test_a_file_name_that_no_include_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="can't include"):
        run_of("one number").export("c", tmp_path / name)


def test_a_folder_in_the_place_of_the_self_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m_test.c").mkdir()
    with pytest.raises(SettingsError, match=r"m_test\.c is a folder"):
        run_of("one number").export("c", tmp_path / "m.h")
    assert not (tmp_path / "m.h").exists()


def test_a_file_that_has_the_self_tests_name_and_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m_test.c").write_text("int main(void) { return 0; } /* mine */")
    with pytest.raises(SettingsError, match=r"m_test\.c is there and was not written by an export.* Name another"):
        run_of("one number").export("c", tmp_path / "m.h")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "m_test.c": "int main(void) { return 0; } /* mine */"
    }
    (tmp_path / "m_test.c").unlink()
    for name in ("one number", "labels"):
        run_of(name).export("c", tmp_path / "m.h")
    assert run_of("labels").fingerprint in (tmp_path / "m_test.c").read_text(encoding="utf-8")


def test_a_full_disk_leaves_both_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of("one number").export("c", tmp_path / "m.h")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"m.h", "m_test.c"}
    write_text = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if "m.h" in path.name:
            write_text(path, text[:100], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskError, match="the disk is full"):
        run_of("labels").export("c", tmp_path / "m.h")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_where_no_temporary_file_can_be_written_the_size_is_unknown(tmp_path: Path) -> None:
    need("cc", "gcc")
    run_of("number")  # made before the limit
    command = f"ulimit -f 8; exec {shlex.quote(sys.executable)} -m tidegate export {folder_of('number')} --to c -o m.h"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "m.h could not be written: the disk is full" in done.stderr
    assert "should not happen" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (load(folder_of("class")).export("c", tmp_path / d / "m.h") for d in "ab")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.beside[0].read_bytes() == second.beside[0].read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reset": "before"}, "reset='before'"),
        ({"layer_norm": True}, "layer_norm=True"),
        ({"zoneout": 0.1}, "zoneout=0.1"),
        ({"learn_initial_state": True}, "learn_initial_state=True"),
        ({"bias": False}, "bias=False"),
    ],
)
def test_a_core_that_computes_something_else_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    run = load(folder_of("numbers alone"))
    core = run.model.core
    run.model.core = GRU(core.input_size, core.hidden_size, **options)
    with pytest.raises(
        SettingsError, match=rf"the core of .*: what is written in C has no {said}. Train a run without"
    ):
        run.export("c", tmp_path / "m.h")
    assert list(tmp_path.iterdir()) == []
