"""Commands that don't import PyTorch again: this process has imported all that they need, and forks. Linux.

They are processes of their own, with the numbers, parents, files and signals that they would have, and so are the workers that they start.
What they leave out is the first two seconds of a command, in which Python imports. The process that forks must not have used polars,
nor more than one thread of PyTorch: threads don't survive a fork.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

_popen = subprocess.Popen
COMMAND = (sys.executable, "-m", "tidegate")


class Forked:
    """A command that runs, with what is used here of `subprocess.Popen`."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Any = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        start_new_session: bool = False,
        user: int | None = None,
    ) -> None:
        self.args, self.returncode = [*words], None
        self.pid = os.fork()
        if self.pid == 0:
            _be(words[len(COMMAND) :], env, cwd, (stdin, stdout, stderr), start_new_session, user)

    def poll(self) -> int | None:
        if self.returncode is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(words: Sequence[str], **how: Any) -> Any:
    """What `subprocess.Popen` would start, by a fork where it is a command of Tidegate."""
    return Forked(words, **how) if tuple(words[: len(COMMAND)]) == COMMAND else _popen(words, **how)


def preload(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
    """Import all that these commands of Tidegate import, without running them here. They run one after the other in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        for words in commands:
            code = (
                "import sys, json, os\nfrom tidegate.cli import main\nstatus = main(json.loads(sys.argv[1]))\n"
                "print('\\n' + json.dumps([status, [n for n, m in sys.modules.items() if getattr(m, '__spec__', None)]]))"
            )
            done = subprocess.run(
                [sys.executable, "-c", code, json.dumps([*words])],
                cwd=folder, env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            status, names = json.loads(done.stdout.splitlines()[-1])
            if status:
                raise RuntimeError(f"tidegate {' '.join(words)}: {done.stderr}")
            for name in names:
                with suppress(ImportError):
                    importlib.import_module(name)


def _be(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: Any,
    files: tuple[Any, Any, Any],
    new_session: bool,
    user: int | None,
) -> None:
    """Become the command. Never returns."""
    status = 1
    try:
        if new_session:
            os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for number, file in enumerate(files):
            if file == subprocess.DEVNULL:
                file = os.open(os.devnull, os.O_RDWR)
            if file is not None:
                os.dup2(file if isinstance(file, int) else file.fileno(), number)
        os.closerange(3, 4096)  # as exec does
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        if cwd is not None:
            os.chdir(cwd)
        for name in {*os.environ} - {*env}:
            del os.environ[name]
        os.environ.update(env)
        sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w")
        sys.argv = ["tidegate", *arguments]
        subprocess.Popen = start  # type: ignore[assignment, misc]
        status = _main([*arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _main(arguments: list[str]) -> int:
    """tidegate/__main__.py"""
    from tidegate.cli import main

    try:
        return main(arguments)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _text(number: int, mode: str) -> IO[str]:
    """Standard input or output, as Python opens them."""
    raw = open(number, mode + "b", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=number == 2, line_buffering=number == 2)
