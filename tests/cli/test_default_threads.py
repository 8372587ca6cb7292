"""Default threads obey the CPU quota of control groups, affinity and OMP_NUM_THREADS, and doctor says which decided."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import tidegate
from tidegate import default_threads as module
from tidegate.cli import main
from tidegate.default_threads import cpu_quota, default_threads
from tidegate.model import SequenceModel

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)


def machine(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def v2(limits: dict[str, str], own: str, root: str = "/") -> dict[str, str]:
    files = {f"sys/fs/cgroup/{group}/cpu.max": text + "\n" for group, text in limits.items()}
    return files | {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": V2.format(root=root)}


def v1(limits: dict[str, tuple[int, int]], own: str, root: str = "/") -> dict[str, str]:
    files = {"proc/self/cgroup": f"5:cpuset:/elsewhere\n4:cpu,cpuacct:{own}\n0::/\n"}
    files["proc/self/mountinfo"] = V1.format(root=root)
    for group, (quota, period) in limits.items():
        files[f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_quota_us"] = f"{quota}\n"
        files[f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_period_us"] = f"{period}\n"
    return files


MACHINES = {
    "no limit": (v2({"": "max 100000", "a": "max 100000"}, "/a"), None),
    "one and a half": (v2({"": "150000 100000"}, "/"), 1.5),
    "another period": (v2({"": "100000 50000"}, "/"), 2.0),
    "of nested groups the least": (v2({"a": "300000 100000", "a/b": "150000 100000", "a/b/c": "max 100000"}, "/a/b/c"), 1.5),
    "an outer group's": (v2({"a": "50000 100000", "a/b": "200000 100000"}, "/a/b"), 0.5),
    "not that of another group": (v2({"a": "max 100000", "b": "100000 100000"}, "/a"), None),
    "a container that sees its own group alone": (v2({"": "250000 100000"}, "/docker/1a2b", "/docker/1a2b"), 2.5),
    "a group within it": (v2({"": "max 100000", "x": "100000 100000"}, "/docker/1a2b/x", "/docker/1a2b"), 1.0),
    "a path from outside": (v2({"": "250000 100000"}, "/../other"), 2.5),
    "version 1": (v1({"": (-1, 100000), "a": (150000, 100000)}, "/a"), 1.5),
    "version 1, no limit": (v1({"": (-1, 100000), "a": (-1, 100000)}, "/a"), None),
    "version 1, nested": (v1({"a": (100000, 100000), "a/b": (400000, 100000)}, "/a/b"), 1.0),
    "version 1 in a container": (v1({"": (350000, 100000)}, "/docker/1a2b", "/docker/1a2b"), 3.5),
    "nothing to read": ({}, None),
    "no groups": ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2.format(root="/")}, None),
    "a damaged limit": (v2({"": "oops"}, "/"), None),
    "mounts that are not told": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_the_cpu_quota_is_that_of_the_groups_of_this_process(tmp_path, name):
    files, expected = MACHINES[name]
    quota, file = cpu_quota(machine(tmp_path, files))
    assert quota == expected
    assert bool(file) == (expected is not None)
    if file:
        assert (tmp_path / file.lstrip("/")).is_file()


@pytest.mark.parametrize(
    ("quota", "affinity", "environment", "torch_takes", "count", "decided_by"),
    [
        (None, 8, {}, 8, 8, "the processors"),
        (None, 3, {}, 8, 3, "the affinity"),
        ("150000 100000", 8, {}, 8, 1, "the CPU quota"),
        ("50000 100000", 8, {}, 8, 1, "the CPU quota"),
        ("390000 100000", 8, {}, 8, 3, "the CPU quota"),
        ("390000 100000", 2, {}, 8, 2, "the affinity"),
        ("600000 100000", 8, {}, 4, 4, "PyTorch"),
        ("150000 100000", 8, {"OMP_NUM_THREADS": "6"}, 6, 6, "OMP_NUM_THREADS"),
        ("150000 100000", 8, {"OMP_NUM_THREADS": "4,2"}, 4, 4, "OMP_NUM_THREADS"),
        ("150000 100000", 8, {"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "5"}, 6, 6, "OMP_NUM_THREADS"),
        (None, 8, {"MKL_NUM_THREADS": "5"}, 5, 5, "MKL_NUM_THREADS"),
        ("150000 100000", 8, {"OMP_NUM_THREADS": "many"}, 8, 1, "the CPU quota"),
        ("150000 100000", 8, {"OMP_NUM_THREADS": "0"}, 8, 1, "the CPU quota"),
    ],
)
def test_the_smallest_limit_decides_unless_the_user_asks_for_a_number(
    tmp_path, monkeypatch, quota, affinity, environment, torch_takes, count, decided_by
):
    root = machine(tmp_path, v2({"": quota or "max 100000"}, "/"))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(module, "_affinity", lambda: affinity)
    found = default_threads(torch_takes, root=root, environment=environment)
    assert (found.count, found.decided_by) == (count, decided_by)
    for word in (
        f"{count}, decided by {decided_by}",
        "processors: 8",
        f"affinity: {affinity}",
        f"alone: {torch_takes}",
    ):
        assert word in str(found)


def test_the_affinity_is_that_of_this_process():
    assert default_threads().affinity == len(os.sched_getaffinity(0))


@pytest.fixture
def quota_of_one(tmp_path, monkeypatch):
    """A container that grants one and a half processors; torch has taken three threads."""
    root = machine(tmp_path / "container", v2({"": "150000 100000"}, "/"))
    for name in module.ASKED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "ROOT", root)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_commands_take_no_more_threads_than_the_quota_and_a_program_keeps_its_own(tmp_path, monkeypatch, quota_of_one):
    frame = pl.DataFrame({"id": np.repeat(np.arange(8), 5), "x": np.arange(40.0), "y": np.arange(40) % 2})
    frame.write_csv(tmp_path / "t.csv")
    seen, recur = [], SequenceModel.recur
    monkeypatch.setattr(SequenceModel, "recur", lambda *a, **k: seen.append(torch.get_num_threads()) or recur(*a, **k))
    table, run = str(tmp_path / "t.csv"), str(tmp_path / "run")
    how = ["--target", "y", "--group", "id", "--epochs", "1", "--no-baselines", "--quiet"]
    for command, threads in (
        (["train", table, *how, "--out", run], {1}),
        (
            ["train", table, *how, "--out", str(tmp_path / "asked"), "--threads", "2"],
            {1, 2},
        ),  # an update may take fewer
        (["evaluate", run, table, "--rows", "all"], {1}),
        (["predict", run, table, "--out", str(tmp_path / "p.csv")], {1}),
    ):
        seen.clear()
        assert main(command) == 0
        assert seen
        assert {*seen} <= threads, command
        assert torch.get_num_threads() == 3
    seen.clear()
    tidegate.load(run).predict(frame)
    assert {*seen} == {3}


def test_who_asks_for_threads_gets_them_whatever_the_quota(tmp_path, monkeypatch, quota_of_one, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["doctor"]) == 0
    assert "threads: 3, decided by OMP_NUM_THREADS" in capsys.readouterr().out


def test_doctor_says_what_decided_the_number_of_threads(quota_of_one, capsys):
    assert main(["doctor"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("threads:")]
    assert line.startswith("threads: 1, decided by the CPU quota (processors: ")
    assert "CPU quota: 1.5, by /sys/fs/cgroup/cpu.max; OMP_NUM_THREADS: not set; PyTorch alone: 3)" in line


def test_a_benchmark_takes_no_more_threads_than_the_quota(quota_of_one, monkeypatch):
    from tidegate.bench import machine as of_bench
    from tidegate.cli.bench import _threads

    monkeypatch.setattr(of_bench, "cores", lambda: 4)
    assert _threads(None) == [1]
