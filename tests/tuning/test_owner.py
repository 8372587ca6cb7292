"""Whether the process of a running trial is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.processes import me
from tidegate.tuning.owner import SILENT, gone

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux says when a process began")
CODE = "import json, sys; from tidegate.processes import me; print(json.dumps(me()), flush=True); sys.stdin.read()"


@linux
def test_a_process_that_runs_is_there_however_long_it_is_silent_and_gone_once_it_is_killed():
    process = subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    owner = json.loads(process.stdout.readline())
    assert not gone(owner, seen=0, now=10 * SILENT)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent hasn't asked how
    assert gone(owner, seen=100, now=100)
    process.wait()
    process.stdin.close()
    assert gone(owner, seen=100, now=100)


@linux
def test_another_process_with_the_same_number_is_not_the_same():
    assert not gone(me(), 0, 0)
    assert gone(me() | {"began": me()["began"] - 1}, 0, 0)


@pytest.mark.parametrize("other", [{"boot": "another"}, {"processes": "pid:[1]"}])
def test_on_another_machine_or_in_another_container_silence_counts(other):
    owner = me() | other
    assert not gone(owner, seen=1000, now=1000 + SILENT)
    assert gone(owner, seen=1000, now=1001 + SILENT)


def test_a_trial_that_nobody_claimed_is_judged_by_its_age():
    assert not gone(None, seen=1000, now=1000 + SILENT)
    assert gone(None, seen=1000, now=1001 + SILENT)
