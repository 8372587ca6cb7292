"""Runs Tidegate while processes are killed, disks fill and cables are pulled, and checks that nothing is lost.

    python tools/faults.py                              # every case that this machine allows, three rounds each
    python tools/faults.py train workers --rounds 100   # some of them
    python tools/faults.py workers --seed 7 --rounds 1  # one round again: the same table and choices, though never the same microsecond
    python tools/faults.py --save --seconds 240 --until 100
                                                        # four minutes of rounds of the cases that have had fewer than a hundred faults;
                                                        # each round joins benchmarks/results/faults.csv, for docs/scale.md

In each round something goes wrong, at random moments, until the work is done all the same. Then its results have to be those of the
same work left alone: weights and figures to the bit. After each fault all that bears a file's name has to open. A round that ends
otherwise leaves its folder in build/faults, and a line that says why.

Most commands are forks of a process that has imported PyTorch (tests/helpers/forking.py), which makes a round several times shorter; one
in ten is started as anybody starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: threads don't survive a fork

from tests.helpers import forking  # noqa: E402

RESULTS = ROOT / "benchmarks/results/faults.csv"
FOLDER = ROOT / f"build/faults/{os.getpid()}"  # another one may run beside this
PATIENCE = 150  # seconds after which whatever is still there is taken for stuck: twice what workers wait for each other
NOBODY = 65534  # a user without rights, for what root may do anyhow
AFRESH = 0.1  # of the commands: those that are no forks
SILENCE = 10  # seconds that workers wait for each other after most pulled cables, instead of 60
OTHERS = 30  # seconds for all workers to end after one of them was killed
TABLES: list[list[str]] = [  # settings of a training
    ["--target", "label"],
    ["--target", "y", "--horizon", "1", "--dropout", "0.2"],
    ["--target", "whole", "--per", "sequence"],
    ["--target", "label", "--carry-state", "--window", "4"],
    ["--target", "alarm,door", "--cell", "mingru", "--features", "x,far,level"],
]
COMMON = [
    "--group",
    "device",
    "--time",
    "t",
    "--hidden-size",
    "8",
    "--batch-size",
    "8",
    "--epochs",
    "30",
    "--patience",
    "0",
    "--shards",
    "4",
]


class Wrong(Exception):
    """What may not be after a fault."""


class Group:
    """A command that runs, with all processes that it starts."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        environment: dict[str, str],
        files: list[IO[bytes]],
        name: str = "said",
        start: Callable[..., Any] = subprocess.Popen,
    ):
        self.folder, self._files = folder, files
        self.said, self.out = folder / f"{name}.txt", folder / f"{name}-out.txt"
        with self.said.open("wb") as said, self.out.open("wb") as out:
            stdin = files.pop() if files else subprocess.DEVNULL
            self.process = start(
                words, cwd=folder, env=environment, stdin=stdin, stdout=out, stderr=said, start_new_session=True
            )  # fmt: skip
        self.known: set[int] = set()

    def all(self) -> list[int]:
        """The processes that are there: the command's own, and what it or they started, also where that made a session of its own."""
        parents, groups = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
                if state not in "ZX":
                    parents[int(path.parent.name)], groups[int(path.parent.name)] = int(parent), int(group)
        mine = {p for p, group in groups.items() if group == self.process.pid or p in self.known}
        while more := {p for p, parent in parents.items() if parent in mine} - mine:
            mine |= more
        self.known = mine  # (one whose parent has gone is still ours)
        return sorted(mine)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once all its processes have ended. Raises Wrong where they don't."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        while self.process.poll() is None or self.all():
            if time.monotonic() > until:
                raise Wrong(
                    f"processes {self.all()} are still there after {seconds:.0f} s. Said: {self.words()[-300:]}"
                )
            time.sleep(0.05)
        return self.process.returncode

    def words(self) -> str:
        return self.said.read_text(errors="replace")

    def end(self) -> None:
        for process in self.all():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


class Round:
    """One round: a folder, the random choices of its seed, and what has happened so far."""

    def __init__(self, case: str, seed: int):
        self.random, self.seed = random.Random(f"{case} {seed}"), seed
        self.folder = FOLDER / f"{case}-{seed}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.settings = self.random.choice(TABLES)
        self.table = table()
        self.starts = self.faults = 0
        self.groups: list[Group] = []
        self.user: list[str] = []  # words before a command, which make it another user's

    def start(
        self, *words: object, stdin: Path | None = None, name: str = "said", afresh: float = AFRESH, **more: str
    ) -> Group:
        """`tidegate WORDS`, in the folder of this round. afresh: how likely it is no fork."""
        self.starts += 1
        command = [*forking.COMMAND, *map(str, words)]
        how: Callable[..., Any] = forking.start
        if self.random.random() < afresh:
            command, how = [*self.user, *command], subprocess.Popen
        elif self.user:
            how = functools.partial(forking.start, user=NOBODY)
        return self.run(command, stdin, name, how, **more)

    def run(
        self,
        command: Sequence[str],
        stdin: Path | None = None,
        name: str = "said",
        how: Callable[..., Any] = subprocess.Popen,
        **more: str,
    ) -> Group:
        environment = (
            os.environ
            | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *path_of_others()]), "OMP_NUM_THREADS": "1"}
            | more
        )
        group = Group(command, self.folder, environment, [stdin.open("rb")] if stdin else [], name, how)
        self.groups.append(group)
        return group

    def whole(self, *words: object, **more: Any) -> Group:
        """A command that nothing happens to."""
        group = self.start(*words, **more)
        if group.wait():
            raise Wrong(f"`tidegate {' '.join(map(str, words))}` failed: {group.words()[-400:]}")
        return group

    def kill(self, process: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            self.faults += 1

    def moment(self, group: Group, seconds: float, writes: Path) -> bool:
        """Wait for a random moment: some time within `seconds`, or just as a file is being written in a folder or one in it. False where the
        command ended before.
        """
        until, left = time.monotonic() + self.random.uniform(0, seconds), sys.maxsize
        if self.random.random() < 0.5:
            until, left = time.monotonic() + PATIENCE, self.random.choice([1, 2, 3, self.random.randint(4, 60)])
        seen: set[str] = set()
        while len(seen) < left and time.monotonic() < until:
            if group.process.poll() is not None:
                return False
            seen |= {p.name for p in leftovers(writes)}
            time.sleep(0.0005 if left < sys.maxsize else 0.01)
        return group.process.poll() is None

    def close(self, *, keep: bool) -> None:
        for group in self.groups:
            group.end()
        if not keep:
            shutil.rmtree(self.folder)


def path_of_others() -> list[str]:
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []


@functools.cache
def table() -> Path:
    path = FOLDER / "sensors.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a process of its own, as polars must not compute in one that forks.
    code = "import sys; from tests.helpers.runs import sensors; sensors().write_csv(sys.argv[1])"
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *path_of_others()])}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=where)
    return path


# --- what has to be true --------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[Path]:
    """Files that are being written, or were, in a folder and those in it."""
    found = []
    for path, folders, files in os.walk(folder):
        found += [Path(path, name) for name in (*folders, *files) if re.fullmatch(r"\..*\.(tmp|old)", name)]
    return found


def check_whole(run: Path) -> None:
    """Whatever has the name of a file of a run is one. Raises Wrong."""
    import yaml

    from tidegate.errors import TidegateError
    from tidegate.trained.weights import load_model
    from tidegate.training.checkpoint import load_checkpoint

    readers: dict[str, Callable[[Path], Any]] = {
        "model.safetensors": load_model,
        "last.safetensors": load_checkpoint,
        ".yaml": lambda path: yaml.safe_load(path.read_text())["resolved"],
        ".json": lambda path: json.loads(path.read_text()),
        ".csv": lambda path: _rectangular(path),
        ".html": lambda path: path.read_text().rstrip().endswith("</html>") or _fail("it doesn't end in </html>"),
    }
    for path in run.rglob("*"):
        reader = readers.get(path.name) or readers.get(path.suffix)
        if reader is not None and not path.name.startswith("."):
            try:
                reader(path)
            except (TidegateError, ValueError, KeyError, TypeError, OSError) as error:
                raise Wrong(f"{path.name} is not whole: {error}") from error


def _rectangular(path: Path) -> None:
    with path.open(newline="") as file:
        if len({len(row) for row in csv.reader(file)}) != 1:
            _fail("its rows differ in length")


def _fail(why: str) -> bool:
    raise ValueError(why)


def check_same(run: Path, whole: Path) -> None:
    """Raises Wrong where a finished run isn't the undisturbed one to the bit, or has more than that in it."""
    for name in ("model.safetensors", "no_memory/model.safetensors", "results.json", "preprocessing.json"):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            raise Wrong(f"{name} is not that of the undisturbed run")
    history = [
        [row["valid_loss"] for row in csv.DictReader((folder / "metrics.csv").open())] for folder in (run, whole)
    ]
    if history[0] != history[1]:
        raise Wrong("the history is not that of the undisturbed run")
    mine, others = ({str(p.relative_to(f)) for p in f.rglob("*")} for f in (run, whole))
    if mine != others:
        raise Wrong(f"the folder has other files than the undisturbed run: {sorted(mine ^ others)}")


@functools.cache
def undisturbed(settings: tuple[str, ...]) -> tuple[Path, float]:
    """The run of these settings to which nothing happened, and the seconds it took."""
    one = Round("undisturbed", TABLES.index([*settings]))
    began = time.monotonic()
    one.whole("train", one.table, *settings, *COMMON, "--out", "run", afresh=0)
    return one.folder / "run", time.monotonic() - began


def go_on(run: Path) -> bool:
    """Whether there is a run to go on with; else the command is repeated. This is all that a person looks at."""
    return (run / "config.yaml").exists()


def training(one: Round, run: Path, *more: object) -> list[object]:
    """The command line with which a training begins, or goes on."""
    if go_on(run):
        return ["train", "--resume", run, *more]
    return ["train", one.table, *one.settings, *COMMON, "--out", run, *more]


# --- cases ----------------------------------------------------------------------------------------------------------


def train(one: Round, counts: Sequence[int] = (1,)) -> None:
    """tidegate train, one process, killed and resumed up to eight times"""
    whole, seconds = undisturbed(tuple(one.settings))
    run = one.folder / "run"
    for last in [False] * one.random.randint(3, 8) + [True]:
        count = one.random.choice(counts)
        group = one.start(*training(one, run, *(["--workers", count] if count > 1 else [])))
        if not last and one.moment(group, seconds * (1 + count / 2), run):
            launcher = group.process.pid
            victim = one.random.choice(group.all() or [launcher])
            one.kill(victim)
            status = group.wait(OTHERS if victim != launcher else PATIENCE)
            if count > 1 and victim != launcher and status:
                _check_sentence(group.words())
        elif status := group.wait():
            raise Wrong(f"status {status}, and nobody was killed: {group.words()[-400:]}")
        check_whole(run)
        if _finished(run):
            break
    check_same(run, whole)


def _check_sentence(said: str) -> None:
    if (
        said.count("Error:") != 1
        or not re.search(r"Worker \d of \d .*(is gone|was killed)", said)
        or "--resume" not in said
    ):
        raise Wrong(f"no sentence that says which worker is gone and how to go on: {said[-400:]}")
    if "Traceback" in said:
        raise Wrong(f"a traceback: {said[-400:]}")


def workers(one: Round) -> None:
    """the same on 1, 2 or 4 workers, another number each time; a worker or the launcher is killed"""
    train(one, (2, 4, 1, 2, 4))


def disk(one: Round) -> None:
    """tidegate train on a disk of its own, which is filled at random moments"""
    whole, seconds = undisturbed(tuple(one.settings))
    mount, run = one.folder / "disk", one.folder / "disk/run"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], check=True)
    ballast = mount / "ballast"
    try:
        for last in [False] * one.random.randint(3, 6) + [True]:
            count = one.random.choice((1, 1, 2))
            early = not last and one.random.random() < 0.3
            if early:
                _fill(ballast, one.random.randint(0, 40_000))
            group = one.start(*training(one, run, *(["--workers", count] if count > 1 else [])))
            if not last and not early and one.moment(group, seconds * (1 + count / 2), run):
                _fill(ballast, one.random.randint(0, 10_000))
            status = group.wait()
            if status and (last or not ballast.exists()):
                raise Wrong(f"status {status}, and the disk wasn't full: {group.words()[-400:]}")
            if status:
                one.faults += 1
                said = group.words()
                if said.count("Error:") != 1 or "the disk is full" not in said or "Traceback" in said:
                    raise Wrong(f"not one sentence on a full disk: {said[-600:]}")
                if leftovers(mount):
                    raise Wrong(f"half-written files stayed: {leftovers(mount)}")
            ballast.unlink(missing_ok=True)
            check_whole(run)
            if not status:
                break
        check_same(run, whole)
    finally:
        for group in one.groups:
            group.end()
        subprocess.run(["umount", str(mount)], check=True)


def _fill(ballast: Path, free: int) -> None:
    """Fill a disk up to so many bytes."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    with contextlib.suppress(OSError):
        os.truncate(ballast, max(0, ballast.stat().st_size - free))


def readonly(one: Round) -> None:
    """tidegate train, whose folder may no longer be written to from a random moment on"""
    whole, seconds = undisturbed(tuple(one.settings))
    run = one.folder / "run"
    if os.geteuid() == 0:
        os.chown(one.folder, NOBODY, NOBODY)
        one.user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    for last in [False] * one.random.randint(3, 6) + [True]:
        count = one.random.choice((1, 1, 2))
        group = one.start(
            *training(one, run, *(["--workers", count] if count > 1 else [])),
            HOME=str(one.folder),
            TMPDIR=str(one.folder),
            afresh=0 if count > 1 else AFRESH,  # the other user may not be able to start Python where it is installed
        )
        closed: list[Path] = []
        if not last and one.moment(group, seconds * (1 + count / 2), run):
            closed = [Path(path) for path, _, _ in os.walk(run)]
            closed = closed if one.random.random() < 0.7 else [path for path in closed if path.name == "checkpoints"]
            for path in closed:
                path.chmod(0o555)
        status = group.wait()
        for path in closed:
            path.chmod(0o755)
        if status:
            one.faults += 1
            said = group.words()
            if not closed or said.count("Error:") != 1 or "Permission denied" not in said or "Traceback" in said:
                raise Wrong(f"status {status}, and not one sentence on permissions: {said[-600:]}")
        check_whole(run)
        if not status:
            break
    check_same(run, whole)


def tune(one: Round) -> None:
    """two processes of tidegate tune share a study; one of them is killed, and another takes its place"""
    trials, study = 8, one.folder / "tune.study"
    words = [
        "tune",
        one.table,
        "--target",
        "label",
        *COMMON[:4],
        "--epochs",
        "20",
        "--batch-size",
        "8",
        "--search",
        "hidden_size=4..16",
    ]
    words += ["--search", "lr=0.001..0.02:log", "--trials", trials, "--study", study]
    groups = [one.start(*words, name=f"said{k}") for k in range(2)]
    kills = one.random.randint(3, 6)
    while groups:
        group = one.random.choice(groups)
        if kills and one.moment(group, 3, one.folder):
            one.kill(group.process.pid)
            group.wait()
            kills -= 1
            groups[groups.index(group)] = one.start(*words, name=f"said{one.starts}")
        else:
            kills = 0 if group.process.poll() is None else kills
            if group.wait():
                raise Wrong(f"tidegate tune failed: {group.words()[-400:]}")
            groups.remove(group)
    from tidegate.tuning import open_study

    tuned = open_study(str(study))
    ended = [t for t in tuned.trials if t.state in ("finished", "pruned")]
    left = [t.number for t in tuned.trials if t.state == "running"]
    if len(ended) != trials or left:
        raise Wrong(f"{len(ended)} trials have ended well, not {trials}; {left} still run")
    if sum(t.defaults for t in ended) != 1:
        raise Wrong("not one trial with the defaults")
    if len(tuned.trials) - trials > one.faults:
        raise Wrong(f"{len(tuned.trials) - trials} trials failed of {one.faults} processes that were killed")
    for path in leftovers(one.folder):  # ... as if a minute had gone by, in which nobody touched them
        os.utime(path, (time.time() - 61,) * 2)
    one.whole("tune", "--report", "--study", study)
    if leftovers(one.folder):
        raise Wrong(f"half-written files stayed: {leftovers(one.folder)}")
    best = tuned.best
    if best is None or best.settings is None or best.figure is None:
        raise Wrong("no trial is the best one")
    settings = [*words[2:10], "--seed", best.seed, "--split-seed", 0, "--no-baselines"]
    settings += [word for k, v in best.settings.items() for word in (f"--{k.replace('_', '-')}", v)]
    one.whole("train", one.table, *settings, "--out", "best")
    figures = [
        float(row[f"valid_{tuned.definition.chosen_by}"])
        for row in csv.DictReader((one.folder / "best/metrics.csv").open())
    ]
    if best.figure not in figures:
        raise Wrong(f"the best trial's {best.figure} is none of those of its own training: {figures}")


def predict(one: Round) -> None:
    """tidegate predict, killed: its file is whole or not there"""
    run, _ = undisturbed(tuple(one.settings))
    (large, whole, seconds), out = predictions(tuple(one.settings)), one.folder / "out.csv"
    for last in [False] * one.random.randint(3, 6) + [True]:
        count = one.random.choice((1, 1, 2))
        group = one.start("predict", run, large, "-o", out, *(["--workers", count] if count > 1 else []))
        if not last and one.moment(group, seconds * count, one.folder):
            one.kill(one.random.choice(group.all() or [group.process.pid]))
            group.wait()
        elif group.wait():
            raise Wrong(f"predict failed: {group.words()[-400:]}")
        if out.exists() and out.read_bytes() != whole:
            raise Wrong("the file of predictions is there, and not whole")
        for path in leftovers(one.folder):  # ... as if a minute had gone by, in which nobody touched them
            os.utime(path, (time.time() - 61,) * 2)
        if one.random.random() < 0.7:
            out.unlink(missing_ok=True)
    if not out.exists():
        one.whole("predict", run, large, "-o", out)
    if out.read_bytes() != whole:
        raise Wrong("other predictions than those of the undisturbed run")
    if leftovers(one.folder):
        raise Wrong(f"half-written files stayed: {leftovers(one.folder)}")


@functools.cache
def predictions(settings: tuple[str, ...]) -> tuple[Path, bytes, float]:
    """Rows to predict, their predictions, and the seconds they took."""
    one = Round("undisturbed", 100 + TABLES.index([*settings]))
    rows = one.folder / "rows.csv"
    head, *lines = table().read_text().splitlines(keepends=True)
    rows.write_text(head + "".join(f"{k}{line}" for k in range(60) for line in lines))  # the device is the first column
    began = time.monotonic()
    one.whole("predict", undisturbed(settings)[0], rows, "-o", "out.csv", afresh=0)
    return rows, (one.folder / "out.csv").read_bytes(), time.monotonic() - began


def stream(one: Round) -> None:
    """tidegate stream with a state file, killed: answers are a beginning, and none is missing after it goes on"""
    one.settings = TABLES[one.random.choice((0, 1, 3))]
    run, _ = undisturbed(tuple(one.settings))
    rows, whole = answers(tuple(one.settings))
    words = ["stream", run, "--state", "states", "--save-every", one.random.choice((1, 7, 100))]
    found = b""
    lines = whole.splitlines(keepends=True)
    for last in [False] * one.random.randint(3, 8) + [True]:
        group = one.start(*words, stdin=rows)
        if not last:
            enough = one.random.randint(0, len(whole)) if one.random.random() < 0.8 else 0
            until = time.monotonic() + (PATIENCE if enough else one.random.uniform(0, 2))
            while (
                group.process.poll() is None and time.monotonic() < until and not 0 < enough <= group.out.stat().st_size
            ):
                time.sleep(0.0005)
            one.kill(group.process.pid)
            group.wait()
        elif group.wait():
            raise Wrong(f"stream failed: {group.words()[-400:]}")
        told = group.out.read_bytes()
        begins = _begins(told, whole, lines, len(found), last)
        found = max(found, whole[: begins + len(told)], key=len)
        for path in leftovers(one.folder):
            os.utime(path, (time.time() - 61,) * 2)
    if found != whole:
        raise Wrong("answers are missing")
    one.whole(*words, stdin=rows)  # all is taken in: nothing is answered twice
    if one.groups[-1].out.read_bytes():
        raise Wrong("rows that were taken in were answered again")
    if leftovers(one.folder):
        raise Wrong(f"half-written files stayed: {leftovers(one.folder)}")


def _begins(told: bytes, whole: bytes, lines: list[bytes], known: int, last: bool) -> int:
    """Where in the undisturbed answers these begin: no later than where those so far end. Raises Wrong where nowhere."""
    if last:
        begins = [len(whole) - len(told)]
    else:
        begins, at = [], 0
        for line in lines:
            begins.append(at)
            at += len(line)
        begins.append(at)
    for begin in begins:
        if 0 <= begin <= known and whole[begin : begin + len(told)] == told:
            return begin
    raise Wrong(f"answers that are no piece of the undisturbed ones, or come too late: {told[:200]!r}")


@functools.cache
def answers(settings: tuple[str, ...]) -> tuple[Path, bytes]:
    """Rows for a stream, and the answers to them."""
    one = Round("undisturbed", 200 + TABLES.index([*settings]))
    head, *rows = table().read_text().splitlines(keepends=True)
    path = one.folder / "rows.csv"
    path.write_text(head + "".join(f"{k}{row}" for k in range(20) for row in rows))
    return path, one.whole("stream", undisturbed(settings)[0], stdin=path).out.read_bytes()


def network(one: Round) -> None:
    """torchrun on two hosts; one's cable is pulled at any moment: both workers end in time, and one process goes on"""
    from tests.helpers.hosts import NAMES, two_hosts

    whole, seconds = undisturbed(tuple(one.settings))
    run = one.folder / "run"
    silence = 60 if one.random.random() < AFRESH else SILENCE
    with two_hosts() as hosts:
        groups = torchrun(one, hosts, run, 0, silence)
        workers = _workers_of(groups)
        if one.random.random() < 0.5:
            while not (run / "checkpoints/last.safetensors").exists():  # until they train
                _all_run(groups)
                time.sleep(0.01)
            time.sleep(one.random.uniform(0, seconds / 2))
        else:
            time.sleep(one.random.uniform(0, 6))  # they import, meet, read their tables
        hosts.plug(one.random.choice(NAMES), False)
        one.faults += any(map(_trains, workers))
        # As long as the others may need to come, and to answer.
        _ended(workers, 3 * silence + 30)
        said = "".join(group.words() for group in groups.values())
        if not _finished(run):
            for rank in range(2):
                if not re.search(LOST.format(me=rank, other=1 - rank), said):
                    raise Wrong(f"worker {rank} doesn't say what went wrong: {said[-1500:]}")
        for group in groups.values():
            group.end()
    check_whole(run)
    if (run / ".lock").exists():
        raise Wrong("the folder is still locked")
    if not _finished(run):
        one.whole(*training(one, run))
    check_same(run, whole)


LOST = (
    "Error: Worker {me} of 2 .*(can't reach worker {other} of 2|couldn't meet the others|waited .* for the others)"
    "|Error: Worker {other} of 2 .* is gone"
)


def _finished(run: Path) -> bool:
    return go_on(run) and "finished: true" in (run / "config.yaml").read_text()


def _workers_of(groups: dict[str, Group]) -> list[int]:
    """The processes of both hosts' workers, once they are there."""
    found: dict[str, int] = {}
    while len(found) < len(groups):
        _all_run(groups)
        found |= {host: p for host, group in groups.items() for p in group.all() if _trains(p)}
        time.sleep(0.1)
    return [*found.values()]


def _all_run(groups: dict[str, Group]) -> None:
    if any(group.process.poll() is not None for group in groups.values()):
        raise Wrong(f"torchrun ended: {[group.words()[-300:] for group in groups.values()]}")


def _ended(workers: Sequence[int], seconds: float) -> None:
    began = time.monotonic()
    while any(map(_trains, workers)):
        if time.monotonic() - began > seconds:
            raise Wrong(f"workers are still there {seconds:.0f} s after the cable was pulled")
        time.sleep(0.1)


def _trains(process: int) -> bool:
    """Whether a process is a worker that is there."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return (
        b"tidegate" in words
        and b"train" in words
        and b"torch.distributed.run" not in words
        and b"unshare" not in words
        and b"ip" not in words[:1]
        and b"sh" not in words[:1]
    )


def restart(one: Round) -> None:
    """torchrun --max-restarts on two hosts; workers are killed, and all go on by themselves"""
    from tests.helpers.hosts import two_hosts

    whole, seconds = undisturbed(tuple(one.settings))
    run = one.folder / "run"
    with two_hosts() as hosts:
        kills = one.random.randint(2, 5)
        groups = torchrun(one, hosts, run, kills)
        for _ in range(kills):
            workers = _workers_of_now(groups)
            until = time.monotonic() + one.random.uniform(0, 5 + seconds)  # they import, meet and train
            while time.monotonic() < until and any(map(_trains, workers)):
                time.sleep(0.02)
            if there := [p for p in workers if _trains(p)]:
                victim = one.random.choice(there)
                one.kill(victim)
                _ended([victim], 5)
            else:
                break
        for host, group in groups.items():
            if status := group.wait():
                raise Wrong(f"torchrun on {host}: status {status}: {group.words()[-1500:]}")
    check_whole(run)
    check_same(run, whole)


def _workers_of_now(groups: dict[str, Group]) -> list[int]:
    """The workers of both hosts, once they are there; none where torchrun ended."""
    while all(group.process.poll() is None for group in groups.values()):
        workers = [p for group in groups.values() for p in group.all() if _trains(p)]
        if len(workers) == len(groups):
            return workers
        time.sleep(0.1)
    return []


def torchrun(one: Round, hosts: Any, run: Path, restarts: int, silence: int = 60) -> dict[str, Group]:
    from tests.helpers.hosts import NAMES

    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NAMES[0]}:29500", "--rdzv-id", "1"]
    words += ["--max-restarts", str(restarts), "-m", "tidegate", *map(str, training(one, run))]
    one.starts += 1
    return {host: one.run(hosts.command(host, words), name=host, TIDEGATE_WAIT=str(silence)) for host in NAMES}


SETS: dict[str, tuple[int, list[str]]] = {  # rows, or sequences where a row is one; settings
    "snips": (600, ["--epochs", "3", "--batch-size", "16"]),
    "occupancy": (1500, ["--epochs", "6", "--window", "32"]),
    "cheetah": (3000, ["--epochs", "6", "--batch-size", "4"]),
    "japanese_vowels": (2000, ["--epochs", "8", "--batch-size", "16"]),
    "mnist1d": (600, ["--epochs", "6", "--batch-size", "32"]),
}


def bits(one: Round) -> None:
    """the five data sets with --shards 4 on 1, 2 and 4 workers, killed or interrupted, and on with another number"""
    name = [*SETS][one.seed % len(SETS)]
    begin, (whole, seconds) = part_of(name), of_set(name)
    run, count = one.folder / "run", 0
    for last in [False] * one.random.randint(2, 5) + [True]:
        count = one.random.choice([n for n in (1, 2, 4) if n != count])
        more = ["--workers", count] if count > 1 else []
        group = one.start(*(["train", "--resume", run] if go_on(run) else [*begin, "--out", run]), *more)
        if not last and one.moment(group, seconds * (1 + count / 2), run):
            if one.random.random() < 0.5:
                one.kill(one.random.choice(group.all() or [group.process.pid]))
            else:
                os.killpg(group.process.pid, signal.SIGINT)  # Ctrl-C
                one.faults += 1
            group.wait()
        elif status := group.wait():
            raise Wrong(f"status {status}, and nobody was killed: {group.words()[-400:]}")
        check_whole(run)
        if _finished(run):
            break
    check_same(run, whole)


@functools.cache
def part_of(name: str) -> list[object]:
    """The command line that trains on a part of a data set, as far as --out."""
    rows, settings = SETS[name]
    folder = FOLDER / name
    code = (
        "import sys, polars as pl\nfrom tidegate import datasets\nframe, roles = datasets.read(sys.argv[1]), datasets.describe(sys.argv[1]).train\n"
        "n = int(sys.argv[2])\nheads = [part.head(max(8, int(n * share))) for name, share in (('train', .7), ('valid', .15), ('test', .15))\n"
        "         for part in [frame.filter(pl.col('split') == name)]]\npl.concat(heads).write_parquet(sys.argv[3])\n"
        "print(*[f'--{k.replace(chr(95), chr(45))}={v if isinstance(v, (str, int)) else chr(44).join(v)}' for k, v in roles.items()])"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *path_of_others()])}
    told = subprocess.run(
        [sys.executable, "-c", code, name, str(rows), str(path)], check=True, env=where, capture_output=True, text=True
    )
    return ["train", path, *told.stdout.split(), *settings, "--hidden-size", 12, "--patience", 0, "--shards", 4]


@functools.cache
def of_set(name: str) -> tuple[Path, float]:
    """The undisturbed run on a data set, by one process, and its seconds."""
    one = Round("undisturbed", 300 + [*SETS].index(name))
    began = time.monotonic()
    one.whole(*part_of(name), "--out", "run", afresh=0)
    return one.folder / "run", time.monotonic() - began


CASES: dict[str, Callable[[Round], None]] = {
    f.__name__: f for f in (train, workers, bits, tune, predict, stream, disk, readonly, network, restart)
}


def missing(case: str) -> str | None:
    """Why a case can't be tried here; None where it can."""
    import importlib.util

    from tests.helpers import hosts

    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not Path("/proc").is_dir():
        return "processes are found in /proc, which Linux has"
    if case in ("network", "restart"):
        return hosts.missing()
    if case == "disk" and not root:
        return "a disk of its own needs root"
    if case == "readonly" and root and not shutil.which("setpriv"):
        return "root may write anywhere, and setpriv (util-linux) isn't there to be another user"
    if case == "tune" and importlib.util.find_spec("optuna") is None:
        return "optuna isn't installed"
    return None


# --- rounds ---------------------------------------------------------------------------------------------------------


def one_round(case: str, seed: int) -> dict[str, Any]:
    """A round of a case; the row of its figures."""
    began, one, wrong = time.monotonic(), Round(case, seed), True
    try:
        CASES[case](one)
        wrong = False
    except Wrong as error:
        print(f"  {case} --seed {seed}: {error}", flush=True)
    finally:
        one.close(keep=wrong)
    print(f"{case} {seed}: {one.faults} faults, {one.starts} starts{', WRONG' * wrong}", file=sys.stderr, flush=True)
    return {
        "case": case,
        "first_seed": seed,
        "rounds": 1,
        "faults": one.faults,
        "starts": one.starts,
        "wrong": int(wrong),
        "seconds": time.monotonic() - began,
    }


def added(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a case."""
    sums: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = sums.setdefault(row["case"], row | dict.fromkeys(COUNTS, 0))
        sums[row["case"]] = before | {name: before[name] + row[name] for name in COUNTS}
    return [
        row | {"seconds": round(row["seconds"]), "about": " ".join((CASES[case].__doc__ or "").split())}
        for case, row in sums.items()
    ]


COUNTS = ("rounds", "faults", "starts", "wrong", "seconds")


def so_far() -> dict[str, dict[str, int]]:
    """Of each case the faults that were saved, and the seed after the last one."""
    found: dict[str, dict[str, int]] = {case: {"faults": 0, "seed": 0} for case in CASES}
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            file.readline()
            for row in csv.DictReader(file):
                one = found.setdefault(row["case"], {"faults": 0, "seed": 0})
                one["faults"] += int(row["faults"])
                one["seed"] = max(one["seed"], int(row["first_seed"]) + int(row["rounds"]))
    return found


def save(rows: list[dict[str, Any]]) -> None:
    from tidegate.bench.machine import machine

    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    new = not RESULTS.exists()
    about = {"date": f"{datetime.date.today():%Y-%m-%d}", "commit": told.stdout.strip()}
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator="\n")
        if new:
            file.write(f"# {machine()}\n")
            writer.writeheader()
        writer.writerows(row | about for row in rows)


def ready() -> None:
    """Import here all that the commands need; the first tables are made on the way."""
    words: list[object] = ["--target", "label", *COMMON[:4], "--hidden-size", 4, "--epochs", 1, "--batch-size", 8]
    commands: list[list[object]] = [
        *(["train", table(), *some, *COMMON, "--epochs", 1, "--out", f"run{k}"] for k, some in enumerate(TABLES)),
        ["train", table(), *words, "--shards", 4, "--out", "run"],
        ["predict", "run", table(), "-o", "out.csv"],
        ["stream", "run"],
    ]
    if missing("tune") is None:
        commands.append(["tune", table(), *words[:6], "--epochs", 1, "--trials", 1, "--study", "x.study"])
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *path_of_others()])}
    forking.preload([[str(word) for word in command] for command in commands], where)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; none: all that can be tried here")
    parser.add_argument("--rounds", type=int, default=3, help="of each case (default: 3)")
    parser.add_argument("--seconds", type=float, help="begin rounds of all cases in turns for so long, instead")
    parser.add_argument(
        "--until", type=int, metavar="FAULTS", help="with --seconds: of cases that have had fewer than so many"
    )
    parser.add_argument(
        "--seed", type=int, help="of the first round; the next ones count on (default: after those that were saved)"
    )
    parser.add_argument("--save", action="store_true", help=f"add the figures to {RESULTS.relative_to(ROOT)}")
    given = parser.parse_args()
    if unknown := [case for case in given.cases if case not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}. There are {', '.join(CASES)}.")
    able = []
    for case in given.cases or CASES:
        if why := missing(case):
            print(f"{case} is skipped: {why}.", flush=True)
        else:
            able.append(case)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clean up then, too
    before = so_far()
    seeds = {case: before[case]["seed"] if given.seed is None else given.seed for case in able}
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    ready()
    while able:
        if given.seconds is not None:
            faults = {c: before[c]["faults"] + sum(r["faults"] for r in rows if r["case"] == c) for c in able}
            able = [c for c in able if given.until is None or faults[c] < given.until]
            if not able or time.monotonic() - began > given.seconds:
                break
            case = min(able, key=lambda c: faults[c])
        else:
            able = [c for c in able if sum(r["case"] == c for r in rows) < given.rounds]
            if not able:
                break
            case = able[0]
        rows.append(one_round(case, seeds[case]))
        seeds[case] += 1
    if not rows:
        return 0
    from tidegate.bench.report import markdown

    print(markdown(added(rows)))
    if given.save:
        save(added(rows))
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
