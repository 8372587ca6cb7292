"""The folder of a run: what is in it, what it refuses, and that nothing half-written stays."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, same_weights
from tidegate.data.tables import write_table
from tidegate.errors import RunError
from tidegate.files import DiskError
from tidegate.trained.weights import write_tensors
from tidegate.training import TrainSettings, load, train


def test_a_run_folder_holds_what_the_design_names_and_no_pickle(tmp_path, signals):
    path = tmp_path / "t.csv"
    write_table(signals, path)
    r = train(path, out=tmp_path / "run", **(QUICK | ROLES | {"baselines": True}))
    names = {p.name for p in r.folder.iterdir()}
    assert {
        "config.yaml",
        "model.safetensors",
        "preprocessing.json",
        "metrics.csv",
        "report.html",
        "report.md",
        "checkpoints",
    } <= names
    for file in r.folder.rglob("*"):
        if file.is_file():
            assert file.suffix in {".yaml", ".safetensors", ".json", ".csv", ".html", ".md", ".svg"}
            assert not file.name.endswith(".tmp")
    config = yaml.safe_load((r.folder / "config.yaml").read_text())
    assert set(TrainSettings.model_fields) <= set(config)
    assert config["resolved"]["finished"] is True
    html = (r.folder / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    assert "<svg" in html
    assert "majority class" in html
    markdown = (r.folder / "report.md").read_text()
    for text in ("majority class", "same head, no recurrence", "![Loss](loss.svg)", "| hidden_size | 8 |"):
        assert text in markdown


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_every_file_of_a_run_can_be_read_by_those_whom_the_umask_lets(tmp_path, signals):
    before = os.umask(0o022)
    try:
        r = train(signals, out=tmp_path / "run", **(QUICK | ROLES | {"baselines": True}))
    finally:
        os.umask(before)
    modes = {str(p.relative_to(r.folder)): oct(p.stat().st_mode & 0o777) for p in r.folder.rglob("*") if p.is_file()}
    assert "no_memory/model.safetensors" in modes
    assert set(modes.values()) == {"0o644"}, modes


def test_a_folder_of_runs_is_no_run_and_the_message_names_those_inside(tmp_path, signals):
    for name in ("runs/b", "runs/a", "demo/run"):
        train(signals, out=tmp_path / name, **(QUICK | ROLES | {"epochs": 1}))
    runs = tmp_path / "runs"
    with pytest.raises(RunError) as caught:
        load(runs)
    assert (
        str(caught.value)
        == f"{runs} is not a run: it has no config.yaml. It holds runs: {runs}/a, {runs}/b. Name one of them."
    )
    with pytest.raises(RunError, match=r"It holds the run: .*/demo/run\. Name that\."):
        load(tmp_path / "demo")
    with pytest.raises(RunError, match=r"config\.yaml is not a run: it is a file, and a run is a folder"):
        load(runs / "a" / "config.yaml")


def test_a_runs_own_configuration_repeats_it(tmp_path, signals):
    path = tmp_path / "t.csv"
    write_table(signals, path)
    first = train(path, out=tmp_path / "a", **(QUICK | ROLES))
    again = train(config=tmp_path / "a/config.yaml", out=tmp_path / "b", progress=False)
    assert same_weights(first, again)


def test_a_loaded_run_predicts_as_the_trained_one(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    assert load(tmp_path / "run").predict(signals, probabilities=True).equals(r.predict(signals, probabilities=True))


def test_an_existing_folder_is_never_overwritten_unasked(tmp_path, signals):
    train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    before = (tmp_path / "run/model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"already holds a run.*resume.*overwrite"):
        train(signals, out=tmp_path / "run", seed=3, **(QUICK | ROLES))
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    train(signals, out=tmp_path / "run", seed=3, overwrite=True, **(QUICK | ROLES))
    assert (tmp_path / "run/model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    with pytest.raises(RunError, match="is not a run; nothing in it is touched"):
        train(signals, out=tmp_path / "mine", overwrite=True, **(QUICK | ROLES))
    assert (tmp_path / "mine/thesis.txt").read_text() == "dear"


def test_without_a_name_runs_are_numbered(tmp_path, signals, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(signals, tmp_path / "t.csv")
    assert [str(train("t.csv", **(QUICK | ROLES)).folder) for _ in range(2)] == ["runs/t", "runs/t-2"]


def test_a_damaged_or_foreign_run_is_refused(tmp_path, signals):
    r = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    model = r.folder / "model.safetensors"
    good = model.read_bytes()
    model.write_bytes(good[: len(good) // 2])
    with pytest.raises(RunError, match="was cut off"):
        load(r.folder)
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, model)
    with pytest.raises(RunError, match="was not written by Tidegate"):
        load(r.folder)
    model.unlink()
    with pytest.raises(RunError, match="is missing"):
        load(r.folder)
    model.write_bytes(good)
    (r.folder / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="damaged"):
        load(r.folder)
    with pytest.raises(RunError, match="There is no run folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is not a run"):
        load(tmp_path)


@pytest.mark.long
def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path):
    # RLIMIT_FSIZE makes every write beyond the limit fail as a full disk does: the kernel says "File too large".
    write_table(signal_table(), tmp_path / "t.csv")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import torch; from tidegate.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1));"
        f"sys.exit(main(['train', r'{tmp_path}/t.csv', '--target', 'label', '--group', 'device', '--time', 't',"
        f"'--out', r'{tmp_path}/run' + sys.argv[1], '--epochs', '1', '--quiet']))"
    )
    for limit in ("100", "6000"):
        done = subprocess.run([sys.executable, "-c", code, limit], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "run100").exists()
    assert not (tmp_path / "run6000/model.safetensors").exists()


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    from tidegate.files import replacing

    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        1 / 0  # noqa: B018
    with pytest.raises(DiskError, match="could not be written"), replacing(tmp_path / "f" / "g"):
        pass
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_weights_are_written_under_one_temporary_name_and_where_they_may_not_be_that_is_a_sentence(
    tmp_path, monkeypatch
):
    written = []

    def refuse(path, data):
        written.append(path.name)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)  # (as root, nothing is refused)
    with pytest.raises(DiskError, match=r"w\.safetensors could not be written \(Permission denied\)"):
        write_tensors({"w": torch.zeros(1)}, {}, tmp_path / "w.safetensors")
    assert re.fullmatch(r"\.w\.safetensors\.\d+-\w+\.tmp", *written)
    assert not list(tmp_path.iterdir())
