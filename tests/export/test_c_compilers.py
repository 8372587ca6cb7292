"""Every exported header through other compilers, for other machines and under sanitizers: `make test-c`.

The headers' own self-tests are what runs. Debian: clang gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-user qemu-system-arm gcc-s390x-linux-gnu
libc6-dev-s390x-cross gcc-avr avr-libc simavr.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.compiling import STRICT, compile_c, headers, measured_errors, name_of, need, run_program
from tests.helpers.runs import CASES

pytestmark = pytest.mark.c

HERE = Path(__file__).parent
STRICTER = ("-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Wdouble-promotion", "-Wundef", "-Wcast-qual")
OPTIONS = {
    "O0": ("-O0",),
    "O2": ("-O2",),
    "Os": ("-Os",),
    "native": ("-O3", "-march=native"),
    "native, no math": ("-O3", "-march=native", "-DTIDEGATE_NO_MATH"),
    "fast": ("-O3", "-ffast-math", "-march=native"),
    "fast, no math": ("-O3", "-ffast-math", "-DTIDEGATE_NO_MATH"),
    "fast, float": ("-O3", "-ffast-math", "-DTIDEGATE_FLOAT_INPUT"),
    "float": ("-O2", "-DTIDEGATE_FLOAT_INPUT"),
    "float, no math": ("-O2", "-DTIDEGATE_FLOAT_INPUT", "-DTIDEGATE_NO_MATH"),
}
SANITIZE = (
    "-O1",
    "-g1",
    "-fsanitize=address,undefined,float-divide-by-zero,float-cast-overflow",
    "-fno-sanitize-recover=all",
)
# Four quarters, since a compiler run for each case, each kind of weights and each option would take half an hour: an even turn
# has one half of the cases, an odd one the other, and every other case of a half has 8-bit weights, by turns.
SOURCES = [
    [Path(("", "8")[(k // 2 + turn // 2) % 2], f"{name_of(c)}_test.c") for k, c in enumerate(CASES) if (k + turn) % 2]
    for turn in range(4)
]
ARM = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wdouble-promotion", "--specs=rdimon.specs")


def hold(tmp_path: Path, compiler: str, package: str, *flags: str, before: tuple[str, ...] = (), turn: int = 0) -> None:
    """The self-tests of a turn, compiled and run; all that fail are named together."""
    failed = []
    for source in SOURCES[turn % 4]:
        program = compile_c(headers() / source, tmp_path / "a", *flags, compiler=compiler, package=package)
        done = run_program(*before, program)
        if done.returncode != 0 or not done.stdout.endswith("as in Python\n"):
            failed.append(f"{source}: {done.returncode} {done.stdout} {done.stderr[:500]}")
    assert failed == []


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_self_test_passes_without_a_warning(tmp_path: Path, compiler: str, option: str) -> None:
    # With each option one compiler has the cases that the other one leaves.
    turn = list(OPTIONS).index(option) + (compiler == "clang")
    hold(tmp_path, compiler, compiler, *STRICT, *STRICTER, *OPTIONS[option], turn=turn)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("standard", ["c++98", "c++17"])
def test_every_self_test_passes_as_cpp(tmp_path: Path, compiler: str, standard: str) -> None:
    flags = (f"-std={standard}", *STRICT[1:], *STRICTER, "-O1", "-x", "c++")
    hold(tmp_path, compiler, "g++ clang", *flags, turn=(standard == "c++98") + 3 * (compiler == "g++"))


@pytest.mark.parametrize(
    ("options", "turns"), [((), (0, 1)), (("-DTIDEGATE_NO_MATH",), (2,)), (("-DTIDEGATE_FLOAT_INPUT",), (3,))]
)
def test_no_self_test_leaves_its_memory_or_what_c_defines(
    tmp_path: Path, options: tuple[str, ...], turns: tuple[int, ...]
) -> None:
    for turn in turns:
        hold(tmp_path, "gcc", "gcc", *STRICT, *SANITIZE, *options, turn=turn)


@pytest.mark.parametrize("options", [(), ("-DTIDEGATE_NO_MATH",), ("-DTIDEGATE_NO_MATH", "-DTIDEGATE_FLOAT_INPUT")])
@pytest.mark.parametrize(
    "machine", [("-mcpu=cortex-a9", "-mfpu=neon", "-mfloat-abi=hard"), ("-mcpu=cortex-a7", "-marm", "-mfloat-abi=soft")]
)
def test_every_self_test_passes_on_32_bit_arm(
    tmp_path: Path, machine: tuple[str, ...], options: tuple[str, ...]
) -> None:
    emulator = need("qemu-arm", "qemu-user")
    hold(tmp_path, "arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi", *ARM, "-O2", *machine, *options,
         before=(emulator,), turn=len(options) + (machine[-1] == "-mfloat-abi=soft"))  # fmt: skip


@pytest.mark.parametrize("options", [(), ("-DTIDEGATE_NO_MATH", "-DTIDEGATE_FLOAT_INPUT")])
@pytest.mark.parametrize(
    ("board", "machine"),
    [
        ("mps2-an385", ("-mcpu=cortex-m3",)),
        ("mps2-an386", ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")),
    ],
)
def test_every_self_test_passes_on_a_bare_cortex_m(
    tmp_path: Path, board: str, machine: tuple[str, ...], options: tuple[str, ...]
) -> None:
    emulator = need("qemu-system-arm", "qemu-system-arm")
    start = ("-Os", "-mthumb", *machine, "-T", str(HERE / "cortex_m.ld"), str(HERE / "cortex_m.c"))
    quiet = ("-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native")
    hold(tmp_path, "arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi", *ARM, *start, *options,
         before=(emulator, "-M", board, *quiet, "-kernel"), turn=bool(options) + 3 * (board == "mps2-an386"))  # fmt: skip


def test_the_self_tests_pass_where_bytes_have_the_other_order(tmp_path: Path) -> None:
    emulator = need("qemu-s390x", "qemu-user")
    hold(tmp_path, "s390x-linux-gnu-gcc", "gcc-s390x-linux-gnu libc6-dev-s390x-cross", "-std=c99", "-O1", "-static",
         before=(emulator,), turn=2)  # fmt: skip


@pytest.mark.parametrize("source", ["one_number_test.c", "8/words_test.c"])
def test_a_self_test_passes_where_int_has_16_bits(tmp_path: Path, source: str) -> None:
    emulator = need("simavr", "simavr")
    start = HERE / "avr.c"
    flags = (
        "-std=c99",
        "-mmcu=atmega2560",
        "-Os",
        "-DTIDEGATE_NO_MATH",
        "-DTIDEGATE_FLOAT_INPUT",
        f'-DSELF_TEST="{source}"',
    )
    printf = ("-I", str(headers()), "-I", str((headers() / source).parent), "-Wl,-u,vfprintf", "-lprintf_flt")
    shutil.copy(start, tmp_path)
    program = compile_c(
        tmp_path / "avr.c", tmp_path / "a", *flags, *printf, compiler="avr-gcc", package="gcc-avr avr-libc"
    )
    said = run_program(emulator, "-m", "atmega2560", "-f", "16000000", program)
    assert "int has 16 bits" in said.stdout + said.stderr
    assert "as in Python" in said.stdout + said.stderr
    assert "status 0" in said.stdout + said.stderr


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [("-O2",), ("-O3", "-march=native")])
def test_the_built_in_exp_and_tanh_keep_their_bounds_everywhere(
    tmp_path: Path, compiler: str, flags: tuple[str, ...]
) -> None:
    assert measured_errors(headers() / "class.h", "class", tmp_path, 127, *flags, compiler=compiler) == []


def test_a_self_test_that_fails_on_the_bare_cortex_m_says_so(tmp_path: Path) -> None:
    """That the emulator hands on a status at all."""
    emulator = need("qemu-system-arm", "qemu-system-arm")
    for file in ("class.h", "class_test.c"):
        shutil.copy(headers() / file, tmp_path)
    header = tmp_path / "class.h"
    header.write_text(header.read_text(encoding="utf-8").replace("1.0f - z", "0.9f - z"), encoding="utf-8")
    flags = ("-mthumb", "-mcpu=cortex-m3", "-T", str(HERE / "cortex_m.ld"), str(HERE / "cortex_m.c"))
    program = compile_c(tmp_path / "class_test.c", tmp_path / "a", *ARM, *flags, compiler="arm-none-eabi-gcc")
    quiet = ("-nographic", "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native")
    done = run_program(emulator, "-M", "mps2-an385", *quiet, "-kernel", program)
    assert done.returncode == 1
    assert "WRONG" in done.stdout
