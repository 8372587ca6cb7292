"""`--workers N`: a command as several processes on this machine; and how one of several behaves, whoever started it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tidegate.cli._group import running
from tidegate.errors import DataWarning, Interrupted, SettingsError, TidegateError, UserError, WorkerLost

Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes on this machine that share the work. On several machines torchrun starts them; see docs/scale.md.",
    ),
]
PATIENCE = 15.0  # seconds for workers to end by themselves after one has failed
LAST = 5.0  # ... and after they were asked to
LAUNCHER = "TIDEGATE_LAUNCHER"  # the process that started a worker, in its environment


@contextlib.contextmanager
def shared_out(count: int | None) -> Iterator[bool]:
    """The block is run by `count` processes on this machine, or by those that torchrun started; True in the one that writes.

    The other ones print nothing, not even an error, unless those before them can't.
    """
    from tidegate import workers

    if not workers.asked():
        if count is not None and count > 1:
            raise SystemExit(_start(count))
        yield True
        return
    size = int(os.environ["WORLD_SIZE"])
    if count is not None and count != size:
        raise SettingsError(f"--workers {count}, and {size} processes were started. Leave --workers out.")
    group = workers.here()
    _end_with_the_launcher()
    try:
        with workers.joined(workers.SOON) as group, contextlib.ExitStack() as quiet:
            if not group.leads:
                quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
                quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
                quiet.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", DataWarning)
            yield group.leads
    except (TidegateError, KeyboardInterrupt) as error:
        if not group.another_speaks():
            group.speaks()
            raise
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        raise SystemExit(130 if interrupted else 2 if isinstance(error, UserError) else 1) from error
    finally:
        if not group.leads:  # one voice: Ctrl-C that comes late has nothing to end
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_the_launcher() -> None:
    """Once whoever started this worker has been killed, end it as SIGTERM does: a training saves where it stands. Else it would train
    on where nobody sees it, with its folder locked.
    """
    launcher = int(os.environ.get(LAUNCHER, "0")) or ("TORCHELASTIC_RUN_ID" in os.environ and os.getppid())
    if not launcher or os.name != "posix":  # (elsewhere a process keeps the number of its parent)
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="tidegate-launcher", daemon=True).start()


def _start(count: int) -> int:
    """The command line of this process, as so many workers; the exit status of the first one that failed, or 0. Raises WorkerLost where
    none of them could say why it ended.
    """
    import torch
    import torch.distributed as dist

    from tidegate.default_threads import default_threads
    from tidegate.workers import one_spoke

    # The place where they meet is here, so that it outlives each of them.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = max(1, default_threads(torch.get_num_threads()).count // count)
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL"),  # what goes wrong is said in a sentence
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0"),
    }
    command = [sys.executable, "-m", "tidegate", *running]
    workers: list[subprocess.Popen[bytes]] = []
    told_to_end = threading.Event()

    def end(*_: object) -> None:
        told_to_end.set()
        for worker in workers:
            worker.terminate()

    before: dict[signal.Signals, Any] = {}
    try:
        with contextlib.suppress(ValueError):  # signals are the main thread's
            # Ctrl-C reaches the workers as well, and it is they who save and say so.
            before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, end)
        for rank in range(count):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(command, env=os.environ | own))
        first = _watch(workers)
        codes = [w.returncode for w in workers if w.returncode]
        # Killed before they had met: nobody else knows.
        if first is not None and max(codes) < 0 and not told_to_end.is_set() and not one_spoke(store):
            one = workers[first]
            raise WorkerLost(
                f"Worker {first} of {count} (process {one.pid}) was killed by signal {-one.returncode}, and the others were ended. Repeat the "
                "command; a training that has begun goes on with tidegate train --resume."
            )
        # The status of one that ended by itself says more than that of one that was killed.
        return next((c for c in codes if c > 0), 1 if codes else 0)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(workers: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended; where one fails, the others get some time for it. Which failed first."""
    first, until = None, float("inf")
    while None in [w.poll() for w in workers]:  # (all are asked: who isn't keeps no status)
        if first is None and (first := _failed(workers)) is not None:
            until = time.monotonic() + PATIENCE
        if time.monotonic() > until:
            for worker in workers:
                worker.terminate()
            _wait(workers, LAST)
            break
        time.sleep(0.05)
    return _failed(workers) if first is None else first


def _failed(workers: list[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, w in enumerate(workers) if w.poll()), None)


def _wait(workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
