"""The self-test beside a C header: it passes with every option, and fails where any part of the header is changed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.compiling import FAST, STRICT, compile_c, name_of, run_program

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
