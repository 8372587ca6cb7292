"""How many threads a command takes where nobody says: no more than it has processors to run them on.

In a container, the processors that are seen and those that may be used differ: a CPU quota (docker --cpus 1.5, limits of Kubernetes)
lets all of them run, and stops every thread of the group for the rest of each tenth of a second once its share is used up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # in the order in which PyTorch looks at them
# Where they are usually mounted, should /proc/self/mountinfo not say.
_USUAL = {
    "cgroup2": ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
    "cgroup": ("/sys/fs/cgroup/{controller}", "/sys/fs/cgroup/cpu,cpuacct"),
}


@dataclass(frozen=True)
class DefaultThreads:
    """count: how many threads; decided_by: what said so, in words. The others are what was found: None where there is none.

    processors: of the machine. affinity: those that this process may run on. quota: processors' worth of time that its control group
    grants, such as 1.5; quota_of: the file that says so. asked: an environment variable and its number. torch: what PyTorch took by
    itself, where it was asked.
    """

    count: int
    decided_by: str
    processors: int
    affinity: int | None
    quota: float | None
    quota_of: str
    asked: tuple[str, int] | None
    torch: int | None

    def __str__(self) -> str:
        """The line of `tidegate doctor`.

        >>> str(DefaultThreads(1, "the CPU quota", 8, 4, 1.5, "/sys/fs/cgroup/cpu.max", None, 4))
        '1, decided by the CPU quota (processors: 8; affinity: 4; CPU quota: 1.5, by /sys/fs/cgroup/cpu.max; OMP_NUM_THREADS: not set; PyTorch alone: 4)'
        """
        name, number = self.asked or (ASKED[0], "not set")
        told = [
            f"processors: {self.processors}",
            f"affinity: {self.affinity or 'not known'}",
            "CPU quota: none" if self.quota is None else f"CPU quota: {self.quota:g}, by {self.quota_of}",
            f"{name}: {number}",
            *([f"PyTorch alone: {self.torch}"] if self.torch else []),
        ]
        return f"{self.count}, decided by {self.decided_by} ({'; '.join(told)})"


def default_threads(
    torch: int | None = None, *, root: Path | None = None, environment: Mapping[str, str] = os.environ
) -> DefaultThreads:
    """What decides, and the rest of what was found.

    A number that the user asks for (OMP_NUM_THREADS, MKL_NUM_THREADS) wins. Otherwise it is the smallest of: the processors, those that
    the process may run on, the CPU quota rounded down (at least 1), and `torch`, PyTorch's own choice, which may be a thread a core.
    root: where /proc and /sys are; None: where they always are.
    """
    processors, affinity = os.cpu_count() or 1, _affinity()
    quota, quota_of = cpu_quota(root)
    asked = _asked(environment)
    if asked is not None:
        count, decided_by = asked[1], asked[0]
    else:
        # Rounded down: a team of two that has one and a half processors is stopped in the middle of its work, ten times a second.
        limits = [
            ("the processors", processors),
            ("the affinity", affinity),
            ("the CPU quota", None if quota is None else max(1, int(quota))),
            ("PyTorch", torch),
        ]
        decided_by, count = min(((name, n) for name, n in limits if n is not None), key=lambda limit: limit[1])
    return DefaultThreads(count, decided_by, processors, affinity, quota, quota_of, asked, torch)


def _affinity() -> int | None:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        found: int | None = os.process_cpu_count()
        return found
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _asked(environment: Mapping[str, str]) -> tuple[str, int] | None:
    for name in ASKED:
        first = environment.get(name, "").split(",")[0].strip()  # 4,2: of nested teams
        if first.isascii() and first.isdigit() and int(first):
            return name, int(first)
    return None


def cpu_quota(root: Path | None = None) -> tuple[float | None, str]:
    """How many processors' worth of time the control group of this process grants, and the file that says so; None where there is
    no limit. Of nested groups it is the least: each has a limit for all that is in it.
    """
    root = root or ROOT
    found: list[tuple[float, str]] = []
    for kind, folder in control_groups(root, "cpu"):
        path = root / folder.relative_to("/")
        if kind == "cgroup2":
            quota, period = first_words(path / "cpu.max", 2)
            name = "cpu.max"
        else:
            name = "cpu.cfs_quota_us"
            (quota,), (period,) = first_words(path / name, 1), first_words(path / "cpu.cfs_period_us", 1)
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):  # else max or -1: no limit
            found.append((int(quota) / int(period), str(folder / name)))
    return min(found, default=(None, ""))


def first_words(path: Path, count: int) -> list[str]:
    """What a file holds, as so many words; empty ones where it isn't there or holds less."""
    try:
        words = path.read_text(encoding="ascii").split()[:count]
    except (OSError, UnicodeDecodeError):
        words = []
    return words + [""] * (count - len(words))


def control_groups(root: Path, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """The folders of the groups that this process is in, from its own up to the outermost one, with the kind of their file system:
    cgroup2, or cgroup, of which there is one for each controller ("cpu", "memory").
    """
    mounts = _mounts(root, controller)
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        kind = (
            "cgroup2" if number == "0" and not controllers else "cgroup" if controller in controllers.split(",") else ""
        )
        for mounted, top in mounts.get(kind, []):
            # In a container, what is mounted may be the container's own group, and its path the one of the machine: /docker/1a2b.
            inside = PurePosixPath(own)
            below = inside.relative_to(mounted) if inside.is_relative_to(mounted) else PurePosixPath()
            parts = () if ".." in below.parts else tuple(part for part in below.parts if part != "/")
            for depth in range(len(parts), -1, -1):
                yield kind, top.joinpath(*parts[:depth])


def _mounts(root: Path, controller: str) -> dict[str, list[tuple[str, PurePosixPath]]]:
    """By the kind of file system: which group is mounted, and where."""
    found: dict[str, list[tuple[str, PurePosixPath]]] = {}
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) > 4 and (kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[-1].split(","))):
            found.setdefault(kind[0], []).append((fields[3], PurePosixPath(fields[4])))
    return found or {
        kind: [("/", PurePosixPath(path.format(controller=controller))) for path in paths]
        for kind, paths in _USUAL.items()
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
