"""A training repeats, stops and goes on, to the same bits."""

from __future__ import annotations

import math
import os
import re
import signal
import threading

import pytest
import torch

from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES, DieAfter, StopAfter, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import RunError, SettingsError
from tidegate.training import Interrupted, load, train
from tidegate.training.progress import Silent

pytestmark = pytest.mark.usefixtures("ctrl_c")


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path, signals):
    a = train(signals, out=tmp_path / "a", **(QUICK | ROLES))
    torch.manual_seed(99)  # the caller's own random state is not what a run depends on
    b = train(signals, out=tmp_path / "b", **(QUICK | ROLES))
    other = train(signals, out=tmp_path / "c", seed=1, **(QUICK | ROLES))
    assert same_weights(a, b)
    assert not same_weights(a, other)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_training_leaves_the_global_random_state_alone(tmp_path, signals):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_ended_before_its_report_was_written_goes_on_and_writes_it(tmp_path, signals, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    whole = train(path, out=tmp_path / "whole", **(QUICK | ROLES))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("tidegate.training.journal.write_report", lambda trained: 1 / 0)
        train(path, out=tmp_path / "cut", **(QUICK | ROLES))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    assert (tmp_path / "cut/report.html").exists()
    assert resumed.resolved.finished
    assert same_weights(whole, resumed)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("batches", [1, 3, 4, 6, 9])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, signals, batches):
    assert threading.current_thread() is threading.main_thread()
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4, "baselines": True}
    whole = train(path, out=tmp_path / "whole", **settings)
    steps = len(whole.history) * math.ceil(whole.resolved["parts"]["train"]["sequences"] / 4)
    assert steps > 9
    with pytest.raises(Interrupted, match=r"Go on with: tidegate train --resume --out"):
        train(path, out=tmp_path / "cut", **(settings | {"progress": StopAfter(batches)}))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    assert same_weights(whole, resumed)
    drop = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]  # noqa: E731
    assert drop(resumed.history) == drop(whole.history)
    assert resumed.results.to_dict()["model"] == whole.results.to_dict()["model"]
    with pytest.raises(RunError, match="is finished; there is nothing to resume"):
        train(out=tmp_path / "cut", resume=True, progress=False)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("batches", [2, 7, 10])
def test_a_killed_run_goes_on_from_its_last_epoch_to_the_same_bits(tmp_path, signals, batches):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4}
    whole = train(path, out=tmp_path / "whole", **settings)
    with pytest.raises(ZeroDivisionError):
        train(path, out=tmp_path / "cut", **(settings | {"progress": DieAfter(batches)}))
    assert same_weights(whole, train(out=tmp_path / "cut", resume=True, progress=False))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(tmp_path, signals, number):
    class Ask(StopAfter):
        def step(self, loss: float) -> None:
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_IGN)
    try:
        run = train(signals, out=tmp_path / "run", **(QUICK | ROLES | {"progress": Ask(1)}))
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert run.resolved.finished


def test_resume_refuses_other_settings_another_table_and_a_folder_that_is_no_run(tmp_path, signals):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "run", **(QUICK | ROLES | {"progress": StopAfter(1)}))
    with pytest.raises(SettingsError, match="hidden_size can't change on resume"):
        train(out=tmp_path / "run", resume=True, hidden_size=9)
    write_table(signals.head(50), path)
    with pytest.raises(RunError, match=r"t\.parquet has changed since"):
        train(out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(RunError, match="There is no run folder"):
        train(out=tmp_path / "none", resume=True)
    with pytest.raises(SettingsError, match="resume needs the run folder"):
        train(resume=True)


@pytest.fixture
def two_threads():
    """As many as torch took when the run began."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_that_an_lstm_began_with_can_be_said_on_resume_and_another_one_not(
    tmp_path, signals, two_threads
):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    for name in ("a", "b"):
        with pytest.raises(Interrupted):
            train(path, out=tmp_path / name, cell="lstm", **(QUICK | ROLES | {"progress": StopAfter(1)}))
    message = (
        r"threads can't change on resume of a run with cell=lstm: it began with 2, and on a CPU another number rounds some sums.*"
        r"Say threads=2 \(--threads\), leave it out"
    )
    with pytest.raises(SettingsError, match=message):
        train(out=tmp_path / "a", resume=True, threads=3)
    with pytest.raises(SettingsError, match="hidden_size can't change on resume"):
        train(out=tmp_path / "a", resume=True, threads=2, hidden_size=9)
    assert train(out=tmp_path / "a", resume=True, threads=2, progress=False).resolved.threads == 2
    torch.set_num_threads(1)
    assert train(out=tmp_path / "b", resume=True, progress=False).resolved.threads == 2
    assert torch.get_num_threads() == 1


def test_where_a_machine_has_fewer_threads_than_the_run_began_with_that_is_told(tmp_path, signals, monkeypatch):
    class Notes(Silent):
        text = ""

        def note(self, text: str) -> None:
            self.text += text

    path = tmp_path / "t.parquet"
    write_table(signals, path)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "run", cell="lstm", **(QUICK | ROLES | {"progress": StopAfter(1)}))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(re.sub(r"^  threads: \d+$", "  threads: 99", config.read_text(), flags=re.MULTILINE))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    notes = Notes()
    run = train(out=tmp_path / "run", resume=True, progress=notes)
    assert (
        f"began with 99 threads, more than this machine has, and goes on with {run.resolved.threads}: its last"
        in notes.text
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_learns_stops_and_goes_on(tmp_path, signals):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4, "device": "cuda"}
    whole = train(path, out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "cut", **(settings | {"progress": StopAfter(6)}))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    for (_, a), (_, b) in zip(whole.results.table(), resumed.results.table(), strict=True):
        assert a.summary == pytest.approx(b.summary, abs=0.05)
    assert load(tmp_path / "whole").predict(signals)["prediction"].is_in(["up", "down"]).all()
