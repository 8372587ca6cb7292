"""How much memory a table may take: what is said, what a container grants, and what the command tells."""

from __future__ import annotations

import pytest

from tests.cli.test_default_threads import machine
from tests.helpers.tables import signal_table
from tidegate.cli import main
from tidegate.default_memory import SHARE, bytes_of, default_memory, memory_of_machine
from tidegate.errors import SettingsError
from tidegate.trained.settings import TrainSettings

V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
ALL = {"proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n"}
MACHINES = {
    "no group": (ALL, 16_384_000_000),
    "no limit": (
        ALL | {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/a/memory.max": "max\n"},
        16_384_000_000,
    ),
    "a limit": (
        ALL | {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/a/memory.max": "2000000\n"},
        2_000_000,
    ),
    "of nested groups the least": (
        ALL
        | {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2}
        | {"sys/fs/cgroup/a/memory.max": "3000000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"},
        3_000_000,
    ),
    "version 1": (
        ALL
        | {"proc/self/cgroup": "4:cpu:/c\n3:memory:/a\n", "proc/self/mountinfo": V1}
        | {
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000000\n",
            "sys/fs/cgroup/cpu/c/memory.limit_in_bytes": "1\n",
        },
        5_000_000,
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_limit_is_that_of_the_machine_or_of_the_group_whichever_is_less(tmp_path, name):
    files, expected = MACHINES[name]
    root = machine(tmp_path, files)
    assert memory_of_machine(root) == expected
    assert default_memory(root) == int(SHARE * expected)


@pytest.mark.parametrize("size", ["2 parsecs", "", "-1GB", "0", "1e3", "GB"])
def test_what_is_no_size_is_told(size):
    with pytest.raises(SettingsError, match=r"memory=.*: expected a size such as 2GB"):
        TrainSettings.make(target="x", memory=size)


def test_sizes_are_read_as_people_write_them():
    assert [bytes_of(s) for s in ("2GB", "2g", "1.5 GiB", "300MB", 7)] == [
        2 * 10**9,
        2 * 10**9,
        3 * 2**29,
        3 * 10**8,
        7,
    ]


def test_prepare_and_train_are_commands_that_say_what_they_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    frame = signal_table()
    frame[:100].write_parquet("data/1.parquet")
    frame[100:].write_parquet("data/2.parquet")
    columns = ["--target", "label", "--group", "device", "--time", "t"]
    prepare = ["prepare", "data/*.parquet", "-o", "data.store", *columns, "--memory", "4kB"]
    assert main(prepare) == 0
    said = capsys.readouterr().err
    assert f"data/*.parquet: {frame.height} rows, about" in said
    for title in ("Finding the sequences", "Fitting", "Writing the store"):
        assert f"{title}: " in said
    assert said.splitlines()[-1].startswith(f"data.store: {frame.height} rows in 24 sequences, ")
    assert main(prepare) == 0
    assert "is there already" in capsys.readouterr().err
    quick = ["--epochs", "1", "--hidden-size", "8", "--no-baselines"]
    assert main(["train", "data.store", "--out", "run", *quick]) == 0
    assert f"Trained from data.store, a store of {frame.height} rows." in capsys.readouterr().err
    assert main(["train", "data.store", "--target", "x", "--out", "run2", *quick]) == 2
    assert "was made with target=('label',)" in capsys.readouterr().err
    assert not (tmp_path / "run2").exists()


def test_the_help_of_prepare_names_the_memory_and_the_store(capsys):
    assert main(["prepare", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("--memory", "--target", "--seed", "--split", "STORE", "TABLES"):
        assert word in said
