"""Installs what a `make` target needs into .venv, and says what pip does while it takes its minutes.

    .venv/bin/python tools/set_up.py ARGUMENTS OF pip install

pip gets the arguments as they are. Its own output is shown where it fails.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence

WORTH_TELLING_MB = 20
CPU_BUILD = "https://download.pytorch.org/whl/cpu"
FETCHED = re.compile(r"\s*(?:Downloading|Using cached) \S*?([\w.]+)-([\w.+!]+)-\S+\.whl \((\d+(?:\.\d+)?) (MB|GB)\)")


def news(line: str) -> str | None:
    """What a line of pip's output says to somebody who waits; None for most of them.

    >>> news("  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (888.1 MB)")
    'torch 2.13.0 (888.1 MB)'
    >>> news("  Downloading numpy-2.3.5-cp311-cp311-manylinux_2_27_x86_64.whl (16.9 MB)")
    >>> news("  Building editable for tidegate (pyproject.toml): started")
    'compiling the C++ kernels'
    >>> news("Installing collected packages: mpmath, sympy, torch")
    'unpacking 3 packages'
    """
    if found := FETCHED.match(line):
        name, version, size, unit = found.groups()
        large = unit == "GB" or float(size) >= WORTH_TELLING_MB
        return f"{name.replace('_', '-')} {version} ({size} {unit})" if large else None
    if re.match(r"\s*Building \w+ for tidegate .*started", line):
        return "compiling the C++ kernels"
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"unpacking {count} package{'s' * (count != 1)}"
    return None


def large_torch(arguments: Sequence[str]) -> str | None:
    """What to know before pip fetches PyTorch: on Linux without a GPU, that its usual build is far larger than it need be."""
    without_gpu = "-c" in arguments  # as the Makefile says it
    if not sys.platform.startswith("linux") or not without_gpu or importlib.util.find_spec("torch") is not None:
        return None
    return (
        "This machine shows no GPU, and on Linux PyPI's torch is a CUDA build: some 3 GB with its libraries. For the CPU build, of some "
        f"200 MB, press Ctrl-C now, say\n    .venv/bin/python -m pip install -c constraints.txt torch --index-url {CPU_BUILD}\n"
        "and start again. (Where pip is set up to find a CPU build anyway, there is nothing to do.)"
    )


def main(arguments: Sequence[str]) -> int:
    began = time.monotonic()
    print(
        "Setting up .venv: pip fetches the packages and compiles the C++ kernels. Once; one to five minutes, most of it downloads."
    )
    if told := large_torch(arguments):
        print(told)
    sys.stdout.flush()
    pip = subprocess.Popen(
        [sys.executable, "-u", "-m", "pip", "install", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert pip.stdout is not None
    lines = []
    try:
        for line in pip.stdout:
            lines.append(line)
            if what := news(line):
                print(f"  {time.monotonic() - began:3.0f} s  {what}", flush=True)
        status = pip.wait()
    except KeyboardInterrupt:
        pip.wait()
        print("Interrupted.")
        return 130
    if status:
        print("".join(lines), "pip failed; its output stands above.", sep="\n", file=sys.stderr)
    else:
        print(f"Ready after {time.monotonic() - began:.0f} s.")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
