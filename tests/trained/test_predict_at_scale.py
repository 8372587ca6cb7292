"""Predictions of tables larger than memory, in files and in parts, are those of the table in memory, to the bit; and nothing half-written stays."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.helpers.runs import CASES, WORDS, folder_of, sensors, table_of
from tests.helpers.tables import QUICK
from tidegate.data.tables import read_table
from tidegate.errors import DataError, DataWarning, RunError, SettingsError
from tidegate.files import DiskError
from tidegate.run import Run, load, train
from tidegate.trained import prediction_folder
from tidegate.trained.predict_at_scale import Predictor, sequences_of
from tidegate.trained.prediction_folder import Share

TINY = "16kB"  # some 15 rows at a time
EVERY = ["class", "forecast of two", "sequence mean", "words"]  # of the runs, those of the quick tests


def shuffled(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sample(fraction=1, shuffle=True, seed=5)


ORDERS = {
    "in order": lambda frame: frame,
    "shuffled": shuffled,
    "sorted by time": lambda frame: frame.sort("t", maintain_order=True),
}


def put(frame: pl.DataFrame, folder: Path, files: int = 4) -> Path:
    """The table in several files, which cut sequences and row groups anywhere."""
    folder.mkdir(exist_ok=True)
    borders = np.linspace(0, frame.height, files + 1).astype(int)
    for k, (a, b) in enumerate(itertools.pairwise(borders)):
        frame[a:b].write_parquet(folder / f"part-{k}.parquet", row_group_size=7)
    return folder


def rows_in(folder: Path) -> pl.DataFrame:
    """All rows of a folder of predictions, in the order of the names."""
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))])


def same(a: pl.DataFrame, b: pl.DataFrame) -> bool:
    return a.schema == b.schema and a.equals(b)


def write(run: Run, source: Path, out: Path, **more: Any) -> Path:
    return run.predict_to(source, f"{out}/", **({"memory": TINY, "progress": False} | more))


@pytest.fixture(scope="module")
def run() -> Run:
    return load(folder_of("class"))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return put(sensors(), tmp_path / "in")


# --- the same values -------------------------------------------------------------------------------------------


GRID = [(case, order) for case in CASES for order in (["in order"] if case in WORDS else ORDERS)]


@pytest.mark.parametrize(
    ("case", "order"), [one if one[0] in EVERY else pytest.param(*one, marks=pytest.mark.long) for one in GRID]
)
def test_predictions_by_the_piece_are_those_of_the_table_in_memory(tmp_path, case, order):
    frame, lists = table_of(case), case in WORDS
    source, run = put(ORDERS[order](frame), tmp_path / "in"), load(folder_of(case))
    chances = run.preprocessing.target.task != "number"
    whole = run.predict(source, probabilities=chances)
    write(run, source, tmp_path / "out", probabilities=chances, memory="4kB" if lists else TINY)
    assert same(rows_in(tmp_path / "out"), whole)
    assert len(list((tmp_path / "out").glob("*.parquet"))) > 5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("memory", [TINY, None])
@pytest.mark.parametrize("parts", [1, 3, pytest.param(40, marks=pytest.mark.long)])
def test_all_parts_together_are_one_predict(tmp_path, run, order, memory, parts):
    source = put(ORDERS[order](sensors()), tmp_path / "in")
    whole = run.predict(source)
    for k in range(1, parts + 1):
        write(run, source, tmp_path / "out", part=f"{k}/{parts}", memory=memory)
    rows = rows_in(tmp_path / "out")
    if order != "in order" and parts > 1:  # the parts follow each other
        rows, whole = (f.sort("device", "t") for f in (rows, whole))
    assert same(rows, whole)


def test_parts_are_of_whole_sequences_and_about_equal_and_the_same_by_the_piece_and_in_memory(tmp_path, run):
    source = put(shuffled(sensors()), tmp_path / "in")
    for out, memory in (("a", TINY), ("b", None)):
        for k in range(1, 4):
            write(run, source, tmp_path / out / str(k), part=f"{k}/3", memory=memory)
    parts = [rows_in(tmp_path / "a" / str(k)) for k in range(1, 4)]
    assert all(same(part, rows_in(tmp_path / "b" / str(k))) for k, part in enumerate(parts, 1))
    devices = [set(part["device"]) for part in parts]
    assert sum(map(len, devices)) == len(set.union(*devices)) == sensors()["device"].n_unique()
    longest = sensors().group_by("device").len()["len"].max()
    assert all(abs(part.height - sensors().height / 3) <= longest for part in parts)


@pytest.mark.parametrize("parts", [1, 2, 7, 100])
def test_every_sequence_falls_to_one_part(parts):
    offsets = np.cumsum([0, *np.random.default_rng(0).integers(1, 60, 50)])
    shares = [sequences_of(Share(k, parts), offsets) for k in range(1, parts + 1)]
    assert [s for first, end in shares for s in range(first, end)] == list(range(50))


def test_parts_of_sentences_are_of_rows(tmp_path):
    run, source = load(folder_of("words")), put(table_of("words"), tmp_path / "in")
    for k in (1, 2, 3):
        write(run, source, tmp_path / "out", part=f"{k}/3", memory=None if k == 2 else "4kB")
    assert same(rows_in(tmp_path / "out"), run.predict(source))


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "horizon": 2}, {"cell": "mingru"}])
def test_one_sequence_that_is_longer_than_a_piece_is_cut_with_its_state_carried(tmp_path, settings):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"t": np.arange(400), "y": np.cumsum(rng.standard_normal(400)), "x": rng.standard_normal(400)})
    run = train(
        frame, "y", time="t", out=False, features=["x", "y"] if "horizon" in settings else ["x"], **QUICK, **settings
    )
    source = put(frame, tmp_path / "in")
    whole = run.predict(source)
    out = write(run, source, tmp_path / "out")
    assert same(rows_in(out), whole)
    assert len(list(out.glob("*.parquet"))) > 5
    for name in ("predictions-00003.parquet", "predictions-00005.parquet"):
        (out / name).unlink()
    write(run, source, out)
    assert same(rows_in(out), whole)


def test_ensembles_and_rounded_weights_predict_the_same_by_the_piece(tmp_path):
    roles: dict[str, Any] = {"target": "label", "group": "device", "time": "t", "features": ["x", "kind"]}
    several = train(sensors(), seeds=[1, 2], split_seed=0, keep="ensemble", out=tmp_path / "e", **roles, **QUICK)
    long = sensors().with_columns(device=pl.lit("one"), t=pl.int_range(pl.len()))
    for name, frame in (("order", sensors()), ("not", shuffled(sensors())), ("long", long)):
        source = put(frame, tmp_path / name)
        for run, weights in ((several, None), (several.members[0], "int8")):
            whole = run.predict(source, probabilities=True, weights=weights)
            out = write(run, source, tmp_path / f"{name}-{weights}", probabilities=True, weights=weights)
            assert same(rows_in(out), whole)


def test_columns_keep_their_types_and_older_predictions_are_replaced(tmp_path, run):
    frame = sensors().with_columns(
        kind=pl.col("kind").cast(pl.Categorical),
        device=pl.col("device").cast(pl.Enum(sensors()["device"].unique(maintain_order=True))),
        prediction=pl.lit("old"),
    )
    for name, rows in (("order", frame), ("not", shuffled(frame))):
        source = put(rows, tmp_path / name)
        assert same(rows_in(write(run, source, tmp_path / f"{name}-out")), run.predict(source))


@pytest.mark.parametrize("kind", ["csv", "arrow", "jsonl"])
def test_a_folder_has_files_of_the_kind_of_the_tables(tmp_path, run, kind):
    frame = sensors()
    (tmp_path / "in").mkdir()
    for k in range(6):
        rows = frame[40 * k : 40 * (k + 1)]
        if rows.height:
            getattr(rows, {"csv": "write_csv", "arrow": "write_ipc", "jsonl": "write_ndjson"}[kind])(
                tmp_path / "in" / f"{k}.{kind}"
            )
    whole = run.predict(tmp_path / "in")
    out = write(run, tmp_path / "in", tmp_path / "out", memory="40kB")
    names = sorted(path.name for path in out.glob(f"*.{kind}"))
    assert names[0] == f"predictions-00000.{kind}"
    assert len(names) > 3
    assert read_table(out, as_named=()).frame.equals(whole)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".jsonl"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_single_file_is_written_by_the_piece(tmp_path, run, suffix, order):
    source = put(ORDERS[order](sensors()), tmp_path / "in")
    run.predict_to(source, tmp_path / f"whole{suffix}", progress=False)
    run.predict_to(source, tmp_path / f"pieces{suffix}", memory=TINY, progress=False)
    whole, pieces = (read_table(tmp_path / f"{name}{suffix}").frame for name in ("whole", "pieces"))
    assert same(pieces, whole)
    assert whole.equals(read_table(tmp_path / f"whole{suffix}").frame)
    assert sorted(os.listdir(tmp_path)) == ["in", f"pieces{suffix}", f"whole{suffix}"]


def test_a_table_that_fits_goes_the_way_it_always_went(tmp_path, run, tables, monkeypatch):
    from tidegate.trained import predict_at_scale

    monkeypatch.setattr(predict_at_scale, "_Pieces", lambda *a, **k: 1 / 0)
    run.predict_to(tables, tmp_path / "p.parquet", progress=False)
    run.predict_to(tables, tmp_path / "out", progress=False)
    assert same(rows_in(tmp_path / "out"), pl.read_parquet(tmp_path / "p.parquet"))
    with pytest.raises(ZeroDivisionError):
        write(run, tables, tmp_path / "other")


def test_never_more_than_some_rows_are_read_at_once(tmp_path, run, tables, monkeypatch):
    from tidegate.data.store.chunks import Chunks

    seen, read = [], Chunks.read
    monkeypatch.setattr(Chunks, "read", lambda self, columns, a, b: seen.append(b - a) or read(self, columns, a, b))
    write(run, tables, tmp_path / "out")
    assert len(seen) > 15
    assert max(seen[2:]) <= 15  # the first two say how large a row is, and which columns there are


def test_words_that_training_never_saw_are_told_of_once(tmp_path, run):
    source = put(sensors().with_columns(kind=pl.lit("new"), colour=pl.lit("new")), tmp_path / "in")
    with pytest.warns(DataWarning) as warned:
        write(run, source, tmp_path / "out")
    assert sorted(str(w.message).split(", column ")[1].split(":")[0] for w in warned) == ["'colour'", "'kind'"]


# --- going on ---------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_command_goes_on_behind_the_files_that_are_whole(tmp_path, run, order, monkeypatch):
    source = put(ORDERS[order](sensors()), tmp_path / "in")
    write_table, calls = prediction_folder.write_table, []

    def some(frame, path):
        if len(calls) == 4:
            raise Stopped
        calls.append(path.name)
        write_table(frame, path)

    monkeypatch.setattr(prediction_folder, "write_table", some)
    with pytest.raises(Stopped):
        write(run, source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "_predictions.json",
        *(f"predictions-0000{k}.parquet" for k in range(4)),
    ]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert not json.loads((tmp_path / "out/_predictions.json").read_text())["finished"]
    monkeypatch.undo()
    write(run, source, tmp_path / "out", memory="20kB")  # the files are cut as they were
    assert same(rows_in(tmp_path / "out"), run.predict(source))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((tmp_path / "out/_predictions.json").read_text())["finished"]


def test_what_is_finished_is_not_read_again_and_a_damaged_file_is_made_again(tmp_path, run, tables, monkeypatch):
    out = write(run, tables, tmp_path / "out")
    whole = rows_in(out)
    monkeypatch.setattr(Predictor, "__call__", lambda *a, **k: 1 / 0)
    write(run, tables, out)
    write(run, tables, out, memory=None)
    path = out / "predictions-00002.parquet"
    content = path.read_bytes()
    pl.read_parquet(path)[1:].write_parquet(path)
    with pytest.raises(ZeroDivisionError):
        write(run, tables, out)
    path.write_bytes(content[:-20])
    with pytest.raises(ZeroDivisionError):
        write(run, tables, out)
    monkeypatch.undo()
    write(run, tables, out)
    assert same(rows_in(out), whole)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_command_leaves_whole_files_and_the_next_one_goes_on(tmp_path, run):
    source = put(
        shuffled(pl.concat([sensors(k).with_columns(pl.col("device") + f"-{k}") for k in range(40)])), tmp_path / "in"
    )
    command = [
        sys.executable,
        "-m",
        "tidegate",
        "predict",
        str(run.folder),
        str(source),
        "-o",
        f"{tmp_path}/out/",
        "--memory",
        "50kB",
    ]
    out, killed = tmp_path / "out", 0
    for more in range(20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        there = len(list(out.glob("*.parquet")))
        while (
            process.poll() is None and len(list(out.glob("*.parquet"))) < there + 10 + more and time.monotonic() < until
        ):
            time.sleep(0.001)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
        for path in out.glob("*.parquet"):
            pl.read_parquet(path)
    assert process.returncode == 0
    assert killed > 2
    assert same(rows_in(out), run.predict(source))


@pytest.mark.long
def test_several_workers_write_the_same_files_once(tmp_path, run, tables):
    whole = run.predict(tables)
    arguments = [
        sys.executable,
        "-m",
        "tidegate",
        "predict",
        str(run.folder),
        str(tables),
        "-o",
        f"{tmp_path}/out/",
        "--memory",
        TINY,
    ]
    for _ in range(2):
        done = subprocess.run([*arguments, "--workers", "2"], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("193 rows with prediction") == 1
        assert same(rows_in(tmp_path / "out"), whole)
        (tmp_path / "out/predictions-00004.parquet").unlink()
    one = [*arguments[:-3], f"{tmp_path}/one.parquet", "--memory", TINY, "--workers", "2"]
    done = subprocess.run(one, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(pl.read_parquet(tmp_path / "one.parquet"), whole)


def test_what_reads_a_table_as_a_whole_refuses_one_that_no_memory_holds(tmp_path, run, tables, monkeypatch):
    from tidegate.data.store import prepare

    monkeypatch.setattr(prepare, "memory_of_machine", lambda: 16_000)
    for call in (run.evaluate, run.predict, run.inspect):
        with pytest.raises(
            DataError,
            match=r"in takes about \d+ kB, more than the memory of this machine, and this reads a table as a whole",
        ):
            call(tables)
    monkeypatch.setattr(prepare, "memory_of_machine", lambda: 160_000)
    run.evaluate(tables)


# --- what can't be done -----------------------------------------------------------------------------------------


def test_predictions_of_another_run_of_other_tables_or_other_parts_are_not_mixed(tmp_path, run, tables):
    out = write(run, tables, tmp_path / "out", part="1/2")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = load(folder_of("numbers alone"))
    for one, more, words in (
        (other, {"part": "2/2"}, "another run made"),
        (run, {}, "were made in 2 parts, and now no part is asked for"),
        (run, {"part": "1/3"}, "were made in 2 parts, and now parts of 3 are"),
        (run, {"part": "2/2", "probabilities": True}, "were made without probabilities"),
    ):
        with pytest.raises(
            RunError, match=words + r"\. Name another folder, or begin anew with overwrite=True \(--overwrite\)"
        ):
            write(one, tables, out, **more)
    os.utime(tables / "part-1.parquet", (1, 1))
    with pytest.raises(RunError, match=r"were made of other tables: part-1\.parquet has changed since"):
        write(run, tables, out, part="2/2")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    sensors().write_parquet(tables / "part-9.parquet")
    with pytest.raises(RunError, match=r"part-1\.parquet has changed|part-9\.parquet is new"):
        write(run, tables, out, part="2/2")
    (tables / "part-9.parquet").unlink()
    write(other, tables, out, overwrite=True)
    assert same(rows_in(out), other.predict(tables))
    assert not list(out.glob("*of-2*"))


def test_to_begin_anew_leaves_the_other_parts_alone(tmp_path, run, tables):
    for k in (1, 2):
        out = write(run, tables, tmp_path / "out", part=f"{k}/2")
    before = {path: path.stat().st_mtime_ns for path in sorted(out.iterdir())}
    write(run, tables, out, part="2/2", overwrite=True)
    after = {path: path.stat().st_mtime_ns for path in sorted(out.iterdir())}
    assert list(after) == list(before)
    assert {("1-of-2" in path.name) for path in before if before[path] == after[path]} == {True}
    assert {("2-of-2" in path.name) for path in before if before[path] != after[path]} == {True}


def test_a_folder_with_other_files_is_not_touched(tmp_path, run, tables):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.parquet").touch()
    with pytest.raises(RunError, match=r"holds other files \(mine\.parquet\), which would be taken for predictions"):
        write(run, tables, tmp_path / "out", overwrite=True)
    assert os.listdir(tmp_path / "out") == ["mine.parquet"]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:50],
        lambda t: t.replace('"rows": ', '"rows": "'),
        lambda t: t.replace("tidegate-p", "p"),
        lambda t: t.replace('"file_rows": ', '"file_rows": -'),
    ],
)
def test_a_damaged_manifest_is_told(tmp_path, run, tables, change):
    out = write(run, tables, tmp_path / "out")
    path = out / "_predictions.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(RunError, match=r"_predictions\.json is damaged .*Name another folder"):
        write(run, tables, out)
    path.write_text(json.dumps({"format": "tidegate-predictions", "version": 7}))
    with pytest.raises(RunError, match=r"is of version 7; this Tidegate reads version 1"):
        write(run, tables, out)


@pytest.mark.parametrize("part", ["0/3", "4/3", "2", "a/b", "1/0", "-1/3", "1.5/3"])
def test_a_part_that_there_isn_t_is_told(tmp_path, run, tables, part):
    with pytest.raises(SettingsError, match=r"expected which part of how many, counted from 1, such as 2/3"):
        write(run, tables, tmp_path / "out", part=part)
    assert not (tmp_path / "out").exists()


def test_where_to_write_is_told(tmp_path, run, tables):
    for out, more, words in (
        (
            tables,
            {},
            r"part-0\.parquet is one of the tables and lies in .*in\. Write the predictions to another folder",
        ),
        (
            tables / "part-0.parquet",
            {},
            r"part-0\.parquet is one of the tables\. Write the predictions to another file",
        ),
        (tmp_path / "x.xlsx", {}, r"can't write '\.xlsx'.*For several files name a folder"),
        (
            tmp_path / "x.csv",
            {"part": "1/2"},
            r"x\.csv is a file, and parts are written into one folder\. Name it: .*x/",
        ),
        (tmp_path / "out", {"memory": "much"}, r"memory='much': expected a size such as 2GB"),
    ):
        with pytest.raises((DataError, SettingsError), match=words):
            run.predict_to(tables, out, **({"memory": TINY, "progress": False} | more))
    with pytest.raises(SettingsError, match="predict_to reads a table in files"):
        run.predict_to(sensors(), tmp_path / "out")
    with pytest.raises(DataError, match=r"can't write 'a name with no suffix'"):
        run.predict_to(tables / "part-0.parquet", tmp_path / "out", progress=False)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file, and predictions in several files need a folder"):
        write(run, tables, tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "in"]


def test_files_that_are_unlike_or_cut_off_are_named(tmp_path, run, tables):
    path = tables / "part-2.parquet"
    whole, frame = path.read_bytes(), pl.read_parquet(path)
    for damage, words in (
        (lambda: path.write_bytes(whole[:-30]), r"part-2\.parquet is not a whole Parquet file"),
        (
            lambda: frame.drop("far").write_parquet(path),
            r"part-2\.parquet has no column 'far', which part-0\.parquet has",
        ),
        (
            lambda: frame.cast({"x": pl.String}).write_parquet(path),
            r"part-2\.parquet: column 'x' holds String, and in part-0\.parquet",
        ),
    ):
        damage()
        with pytest.raises(DataError, match=words):
            write(run, tables, tmp_path / "out")
        assert not list(tmp_path.glob("out/*"))
    for k in range(4):
        frame.drop("far").write_parquet(tables / f"part-{k}.parquet")
    with pytest.raises(DataError, match=r"in has no feature column 'far'"):
        write(run, tables, tmp_path / "out")


def test_a_row_that_can_t_be_read_is_named_and_whole_files_stay(tmp_path, run):
    for name, order in (("a", lambda f: f), ("b", shuffled)):
        frame = order(sensors()).with_columns(
            far=pl.when(pl.int_range(pl.len()) == 150).then(float("nan")).otherwise("far")
        )
        source = put(frame, tmp_path / name, files=2)
        where = rf"part-1\.parquet, row {150 - frame.height // 2 + 1}, column 'far': nan is not a finite number"
        with pytest.raises(DataError, match=where):
            write(run, source, tmp_path / f"{name}-out")
        assert not list(tmp_path.glob("*/.*"))


def test_what_has_to_be_read_as_a_whole_says_so(tmp_path):
    long = sensors().with_columns(device=pl.lit("one"), t=pl.int_range(pl.len()))
    for case in ("both ways", "sequence mean"):
        source = put(long.with_columns(whole=pl.lit("up")), tmp_path / "in")
        with pytest.raises(
            DataError, match=r"the sequence device='one' has 193 rows, and about \d+ are the most .* Allow more memory"
        ):
            write(load(folder_of(case)), source, tmp_path / "out")
    source = put(long.cast({"t": pl.String}), tmp_path / "in")
    with pytest.raises(DataError, match=r"the time column 't' holds text\. To be predicted by the piece"):
        write(load(folder_of("class")), source, tmp_path / "out")


def test_a_table_that_changes_while_it_is_read_is_told(tmp_path, run, tables, monkeypatch):
    call, times = Predictor.__call__, []

    def changing(self, *args, **kwargs):
        times.append(len(times))
        os.utime(tables / "part-3.parquet", (times[-1], times[-1]))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Predictor, "__call__", changing)
    for memory in (TINY, None):
        with pytest.raises(DataError, match="has changed while it was read"):
            write(run, tables, tmp_path / "out", memory=memory, overwrite=True)
        with pytest.raises(DataError, match="has changed while it was read"):
            run.predict_to(tables, tmp_path / "one.csv", memory=TINY, progress=False)
        assert not (tmp_path / "one.csv").exists()


@pytest.mark.parametrize("order", ["in order", "shuffled"])
@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, run, order, where, monkeypatch):
    source = put(ORDERS[order](sensors()), tmp_path / "in")
    calls = []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    if where == "folder":
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="the disk is full"):
            write(run, source, tmp_path / "out")
        assert sorted(os.listdir(tmp_path / "out")) == [
            "_predictions.json",
            "predictions-00000.parquet",
            "predictions-00001.parquet",
        ]
        monkeypatch.undo()
        write(run, source, tmp_path / "out")
        assert same(rows_in(tmp_path / "out"), run.predict(source))
    else:
        monkeypatch.setattr(
            prediction_folder.PredictionFile, "close", lambda self: full(0) or full(0) or full(0) or full(0)
        )
        with pytest.raises(DiskError, match="the disk is full"):
            run.predict_to(source, tmp_path / "p.parquet", memory=TINY, progress=False)
        assert os.listdir(tmp_path) == ["in"]


def test_the_rows_that_are_kept_at_once_are_told_in_the_docstring_and_the_help():
    from tests.helpers.pages import ROOT

    number = f"{prediction_folder.FILE_ROWS:,}"
    assert number in Run.predict_to.__doc__
    assert number in (ROOT / "src/tidegate/cli/predict.py").read_text()
