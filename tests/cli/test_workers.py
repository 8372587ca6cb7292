"""Several processes on one machine: one training, one voice, the bits of one process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import PrefixStore, TCPStore

from tests.helpers import hosts as two
from tests.helpers.runs import sensors
from tidegate import train
from tidegate import workers as together
from tidegate.cli import _workers
from tidegate.data.tables import write_table
from tidegate.errors import RunError, SettingsError, WorkerLost
from tidegate.processes import me
from tidegate.training import trainer
from tidegate.training.checkpoint import load_checkpoint
from tidegate.workers import LASTING, SPOKEN, Alone, Partial, _gathered

OPTIONS = ["--hidden-size", "8", "--epochs", "3", "--batch-size", "6", "--shards", "4"]
LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers in /proc")
SENSORS = ["--target", "label", "--group", "device", "--time", "t", *OPTIONS]


def tidegate(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidegate", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    sensors().write_csv(folder / "sensors.csv")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The run of one process."""
    names = [name.removeprefix("--").replace("-", "_") for name in SENSORS[::2]]
    settings = dict(zip(names, SENSORS[1::2], strict=True))
    return train(folder / "sensors.csv", out=folder / "alone", progress=False, **settings)


def same_run(folder: Path, one: str, other: str) -> bool:
    names = ["model.safetensors", "no_memory/model.safetensors", "results.json"]
    return all((folder / one / name).read_bytes() == (folder / other / name).read_bytes() for name in names)


def test_two_workers_train_what_one_process_does_and_speak_with_one_voice(folder, alone):
    trained = tidegate("train", "sensors.csv", *SENSORS, "--workers", 2, "--out", "two", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert same_run(folder, "alone", "two")
    assert len(re.findall(r"^epoch 1/3", trained.stderr, re.M)) == 2  # of the model and of its baseline
    assert trained.stderr.count("Whole time") == 1


@pytest.mark.long
def test_a_program_that_torchrun_starts_trains_on_all_its_workers_twice(folder, alone):
    settings = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(SENSORS[::2], SENSORS[1::2], strict=True)
    }
    program = folder / "program.py"
    program.write_text(
        "import tidegate\nfor name in ('program', 'again'):\n"
        f"    run = tidegate.train('sensors.csv', out=name, **{settings!r})\n    print(len(run.history))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Whole time") == 2
    assert same_run(folder, "alone", "program")
    assert same_run(folder, "alone", "again")


PROGRAM = """
import sys, tidegate
from tidegate import shared_memory
where = dict(shared=0, sent=0)
exchange, shared_memory.available = shared_memory.Neighbours.exchange, lambda: {memory}
def counted(*given):
    where["shared"] += 1
    return exchange(*given)
shared_memory.Neighbours.exchange = counted
tidegate.train('sensors.csv', out={out!r}, progress=False, **{settings!r})
print("shared" if where["shared"] else "sent")
"""


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize(("workers", "hidden"), [(2, 8), (4, 96)])  # (so large that each worker adds up a part)
def test_what_workers_exchange_by_memory_and_by_gloo_is_the_same(folder, memory, workers, hidden):
    settings = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(SENSORS[::2], SENSORS[1::2], strict=True)
    } | {"hidden_size": hidden}
    program, out = folder / f"exchange-{workers}-{memory}.py", f"exchange-{workers}-{memory}"
    program.write_text(PROGRAM.format(memory=memory, out=out, settings=settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    done = subprocess.run([*command, program], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["shared" if memory else "sent"] * workers
    if hidden == 8:
        assert same_run(folder, "alone", out)
    elif not (folder / f"alone-{hidden}").exists():
        train(folder / "sensors.csv", out=folder / f"alone-{hidden}", progress=False, **settings)
    assert same_run(folder, "alone" if hidden == 8 else f"alone-{hidden}", out)


@pytest.mark.long
def test_two_workers_predict_and_score_what_one_process_does(folder, alone):
    options = ["predict", "alone", "sensors.csv", "-o", "predicted.csv", "--probabilities"]
    said = tidegate(*options, "--batch-size", 3, "--workers", 2, cwd=folder)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("rows with") == 1
    rounded = tidegate(*options, "--weights", "int8", "--workers", 2, cwd=folder)
    assert rounded.stderr.count("The core's weights") == 1, rounded.stderr
    said = tidegate(*options, "--batch-size", 3, "--workers", 2, cwd=folder)
    expected = alone.predict(folder / "sensors.csv", probabilities=True)
    write_table(expected, folder / "expected.csv")
    assert (folder / "predicted.csv").read_bytes() == (folder / "expected.csv").read_bytes()
    figures = tidegate("evaluate", "alone", "sensors.csv", "--batch-size", 3, "--workers", 2, cwd=folder)
    assert figures.stdout.strip() == str(alone.evaluate(folder / "sensors.csv", batch_size=3)).strip()


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "more"),
    [
        (4, ["--hidden-size", 96]),  # so many gradients that each worker adds up a part of them
        (3, ["--carry-state", "--window", 4, "--hidden-size", 96]),
    ],
)
def test_more_workers_train_the_same(folder, workers, more):
    options = ["train", "sensors.csv", *SENSORS, "--shards", 12, "--batch-size", 12, *more, "--out"]
    for name, shared in (("one", []), ("many", ["--workers", workers])):
        done = tidegate(*options, f"{name}{workers}", *shared, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert same_run(folder, f"one{workers}", f"many{workers}")


def test_a_program_that_has_set_up_torch_distributed_itself_is_told_so(folder, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(SettingsError, match=r"has called torch\.distributed\.init_process_group"):
            train(folder / "sensors.csv", target="label", out=False)
        assert torch.distributed.is_initialized()  # it is the program's own
    finally:
        torch.distributed.destroy_process_group()


class Anew(Alone):
    """Workers that torchrun started anew, after others that had begun, or hadn't."""

    restarted = True

    def __init__(self, begun: bool):
        self.begun = begun

    def noted(self, what: str) -> bool:
        return self.begun


@pytest.mark.parametrize("begun", [True, False])
def test_workers_anew_replace_the_run_that_was_to_be_replaced_unless_it_is_their_own(
    folder, tmp_path, monkeypatch, begun
):
    settings = {
        "target": "label",
        "group": "device",
        "epochs": 1,
        "hidden_size": 4,
        "baselines": False,
        "progress": False,
    }
    old = train(folder / "sensors.csv", out=tmp_path / "run", **settings)
    monkeypatch.setattr(trainer, "here", lambda: Anew(begun))
    if begun:  # it is theirs, and finished
        with pytest.raises(RunError, match="is finished; there is nothing to resume"):
            train(folder / "sensors.csv", out=tmp_path / "run", overwrite=True, **settings)
    else:
        new = train(folder / "sensors.csv", out=tmp_path / "run", overwrite=True, **settings | {"hidden_size": 5})
        assert (old.settings.hidden_size, new.settings.hidden_size) == (4, 5)


@pytest.mark.long
def test_a_mistake_is_said_once(folder):
    wrong = tidegate("train", "sensors.csv", "--target", "lable", "--workers", 2, cwd=folder)
    assert wrong.returncode == 2
    assert wrong.stderr.count("Error:") == 1
    assert "Did you mean 'label'?" in wrong.stderr


@pytest.mark.long
def test_slices_that_cannot_be_dealt_out_are_refused(folder):
    wrong = tidegate("train", "sensors.csv", *SENSORS, "--shards", 3, "--workers", 2, "--out", "three", cwd=folder)
    assert wrong.returncode == 2
    assert "shards=3 can't be dealt out evenly to 2 workers" in wrong.stderr
    assert "(1, 3)" in wrong.stderr
    assert not (folder / "three").exists()


def worker_of(rank: int, run: str) -> int:
    """The process of a worker that trains into the folder of that name."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if run.encode() in words and f"RANK={rank}".encode() in environment:
            return int(process.name)
    raise AssertionError(f"no worker {rank}")


def begun(folder: Path, run: str, *more: object, resume: bool = False) -> subprocess.Popen[str]:
    """A training on workers that has written a checkpoint of its own."""
    path = folder / run / "checkpoints/last.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else 0
    rest = ["--resume"] if resume else ["sensors.csv", *SENSORS, "--epochs", 400, "--patience", 0, "--no-baselines"]
    command = [sys.executable, "-m", "tidegate", "train", *rest, "--out", run, *more]
    process = subprocess.Popen([*map(str, command)], cwd=folder, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@LINUX
@pytest.mark.long
@pytest.mark.parametrize(("rank", "count"), [(0, 2), (1, 2), (0, 4)])
def test_the_death_of_a_worker_ends_the_others_with_a_sentence_and_all_can_go_on(folder, rank, count):
    run = f"killed{rank}of{count}"
    process = begun(folder, run, "--workers", count)
    os.kill(worker_of(rank, run), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.count("Error:") == 1
    assert re.search(rf"Error: Worker {rank} of {count} \(host [^)]*\) is gone: it was killed", said)
    assert f"tidegate train --resume {run}" in said


@LINUX
@pytest.mark.long
def test_a_worker_that_dies_before_it_has_met_the_others_is_named(folder):
    command = [sys.executable, "-m", "tidegate", "train", "sensors.csv", *SENSORS, "--out", "early", "--workers", "2"]
    process = subprocess.Popen([*map(str, command)], cwd=folder, stderr=subprocess.PIPE, text=True)
    victim = None
    while victim is None:
        with contextlib.suppress(AssertionError):
            victim = worker_of(1, "early")
    os.kill(victim, signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert re.fullmatch(rf"Error: Worker 1 of 2 \(process {victim}\) was killed by signal 9, .*\n", said)


ENDS = """
import os, signal, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
if {spoke}:
    dist.PrefixStore("{lasting}", store).set("{spoken}", "")
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.long
@pytest.mark.parametrize("spoke", [True, False])
def test_the_launcher_speaks_only_where_no_worker_did_before_it_was_ended(monkeypatch, spoke):
    program = ENDS.format(spoke=spoke, lasting=LASTING, spoken=SPOKEN)
    start = subprocess.Popen
    monkeypatch.setattr(_workers.subprocess, "Popen", lambda _, env: start([sys.executable, "-c", program], env=env))
    with contextlib.nullcontext() if spoke else pytest.raises(WorkerLost, match="was killed by signal 15"):
        assert _workers._start(2) == 1


@LINUX
@pytest.mark.long
def test_workers_end_with_their_launcher_and_have_saved(folder):
    process = begun(folder, "orphans", "--workers", "2")
    workers = [worker_of(rank, "orphans") for rank in range(2)]
    process.kill()
    said = process.communicate(timeout=60)[1]  # until the last one that could still speak has ended
    assert said.count("Interrupted") == 1
    assert not any(Path(f"/proc/{worker}/cmdline").exists() and is_there(worker) for worker in workers)
    done = tidegate("train", "--resume", "orphans", cwd=folder)
    assert done.returncode == 0, done.stderr


def is_there(process: int) -> bool:
    """Whether it runs, and hasn't only left its number."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_workers_that_are_started_anew_find_each_other_and_not_those_before_them():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def gathered(rank, restarts):
        return _gathered(TCPStore("127.0.0.1", store.port, wait_for_workers=False), rank, 2, restarts)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gathered, 0, 0)
        place, again = gathered(1, 0)
        assert (place, again) == first.result(60) == (place, False)
        # Only the machine on which one failed counts it, and the names of those before are still there.
        late = pool.submit(gathered, 0, 0)
        with pytest.raises(TimeoutError):
            late.result(0.5)
        anew = gathered(1, 1)
        assert anew == late.result(60)
    assert anew[0] != place
    assert anew[1]


@LINUX
@pytest.mark.long
def test_interrupted_on_two_workers_and_resumed_on_four_and_one_it_ends_in_the_same_weights(folder):
    options = [*SENSORS, "--epochs", 400, "--patience", 0, "--no-baselines"]
    whole = tidegate("train", "sensors.csv", *options, "--out", "whole", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    for workers in (2, 4):
        process = begun(folder, "stopped", "--workers", workers, resume=workers > 2)
        told = range(2) if workers == 2 else [3]  # as Ctrl-C on a terminal reaches all, and one that hears it alone
        for process_id in [worker_of(rank, "stopped") for rank in told]:
            os.kill(process_id, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        assert said.count("Interrupted") == 1
    end = tidegate("train", "--resume", "stopped", cwd=folder)
    assert end.returncode == 0, end.stderr
    ends = [load_checkpoint(folder / name / "checkpoints/last.safetensors") for name in ("stopped", "whole")]
    assert ends[0].state["epoch"] == 400
    assert all(torch.equal(weight, ends[1].weights[name]) for name, weight in ends[0].weights.items())
    assert (folder / "stopped/model.safetensors").read_bytes() == (folder / "whole/model.safetensors").read_bytes()


# --- signs of life ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(monkeypatch):
    """Two workers of a group that has a place to meet, and no network between them. They wait 0.5 s for each other."""
    for name, value in (("WAIT", timedelta(seconds=0.5)), ("BEAT", 0.05), ("GRACE", 0.1)):
        monkeypatch.setattr(together, name, value)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    both = []
    for rank in range(2):
        own = PrefixStore("own", TCPStore("127.0.0.1", store.port, wait_for_workers=False))
        group = together.Group(rank, 2, own, own, restarted=False, hosts=False)
        group._people = [me() | {"boot": "another machine"}] * 2
        own.set(f"beat/{rank}", "first")
        both.append(group)
    yield both
    for group in both:
        group._left.set()


def test_a_worker_waits_for_one_that_is_late_as_long_as_it_shows_signs_of_life(pair):
    threading.Thread(target=pair[1]._beat, daemon=True).start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pair[0].meet)
        with pytest.raises(TimeoutError):
            waiting.result(1.5)
        pair[1].meet()
        waiting.result(10)


def what_it_hears(group) -> str:
    """With what a meeting of this worker ends, within ten seconds."""
    heard = []

    def meet() -> None:
        try:
            group.meet()
        except WorkerLost as error:
            heard.append(str(error))

    meeting = threading.Thread(target=meet, daemon=True)
    meeting.start()
    meeting.join(10)
    return heard[0] if heard else f"nothing: {'it still waits' if meeting.is_alive() else 'all met'}"


def test_a_worker_that_is_silent_is_lost(pair):
    assert re.match(r"Worker 1 of 2 .* is gone", what_it_hears(pair[0]))


@LINUX
def test_a_worker_whose_process_has_ended_is_lost_at_once(pair, monkeypatch):
    monkeypatch.setattr(together, "WAIT", timedelta(minutes=10))
    pair[0]._people = [me(), me() | {"began": 0}]
    assert re.match(r"Worker 1 of 2 .* is gone", what_it_hears(pair[0]))


def test_who_waits_hears_why_another_one_ended(pair, monkeypatch):
    monkeypatch.setattr(together, "WAIT", timedelta(minutes=10))
    pair[1].end("The disk is full.")
    assert re.match(r"Worker 1 of 2 .* stopped: The disk is full\.$", what_it_hears(pair[0]))


def test_the_first_worker_says_when_a_checkpoint_is_due_and_any_when_it_was_told_to_stop(pair, monkeypatch):
    stopped = [threading.Event(), threading.Event()]
    for k, group in enumerate(pair):
        group.watch(stopped[k], lambda: True)
    stopped[1].set()
    wishes = [[np.array([0.0, group._wishes()])] for group in pair]
    parts = [torch.zeros(1, 1), torch.zeros(1, 1)]
    for numbers, expected in ((wishes[0] + wishes[1], (True, True)), (wishes[0] * 2, (False, True))):
        monkeypatch.setattr(pair[0], "_by_gathering", lambda *_, numbers=numbers: (parts, numbers))
        pair[0].total(2, lambda first, last: Partial(torch.zeros(1), np.zeros(1)))
        assert (pair[0].stopping, pair[0].saving) == expected


def test_workers_that_do_not_come_are_waited_for_no_longer_than_was_said(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(WorkerLost, match="couldn't meet the others"), together.joined(timedelta(seconds=0.5)):
        pass


# A command, one of whose functions sleeps before it does what it does.
SLOW = """
import importlib, os, sys, time
from tidegate.cli import main
module, name, rank, seconds, *arguments = sys.argv[1:]
module = importlib.import_module(module)
before = getattr(module, name)
def late(*given, **more):
    print("late", file=sys.__stdout__, flush=True)
    time.sleep(float(seconds))
    return before(*given, **more)
if os.environ["RANK"] == rank:
    setattr(module, name, late)
sys.exit(main(arguments))
"""


def slowly(folder: Path, place: str, rank: int, seconds: float, run: str, host: str, port: int, hosts=None):
    """Two workers of a training, one of which takes so long for the function at `place`. hosts: on which they are."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": str(port), "TIDEGATE_WAIT": "2"}
    common["GLOO_SOCKET_IFNAME"] = "lo" if hosts is None else "eth0"
    command = [sys.executable, "-c", SLOW, *place.split(":"), str(rank), str(seconds)]
    command += ["train", "sensors.csv", *SENSORS, "--no-baselines", "--out", run]
    return [
        subprocess.Popen(
            command if hosts is None else hosts.command(two.NAMES[k], command),
            cwd=folder, env=os.environ | common | {"RANK": str(k)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for k in range(2)
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    "place",
    [
        "tidegate.training.trainer:prepared",
        "tidegate.training.journal:save_checkpoint",
        "tidegate.trained.evaluation:scored_pieces",
    ],
)
def test_a_worker_may_take_longer_than_the_others_wait_for_one_that_is_silent(folder, place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = f"late-{place.rpartition(':')[2]}"
    both = slowly(folder, place, 0, 3, run, "127.0.0.1", port)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said


@pytest.mark.long
@pytest.mark.skipif(two.missing() is not None, reason=str(two.missing()))
def test_a_network_that_fails_while_a_table_is_read_ends_all_workers(folder):
    with two.two_hosts() as hosts:
        both = slowly(folder, "tidegate.training.trainer:prepared", 1, 20, "cut", "node1", 29500, hosts)
        assert both[1].stdout.readline() == "late\n"
        hosts.plug("node2", False)
        both[0].wait(timeout=60)
        assert both[1].poll() is None  # it still reads: nobody told the first one
        said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1], said
    assert re.search(r"^Error: Worker 1 of 2 \(host node2, .* is gone", said[0], re.MULTILINE)
    assert re.search(r"^Error: Worker 1 of 2 .* can't reach worker 0 of 2 \(host node1", said[1], re.MULTILINE)
