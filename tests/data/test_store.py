"""A table that is larger than the memory allowed trains from disk, to the same weights."""

from __future__ import annotations

import dataclasses
import datetime as dt
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.helpers.runs import FEATURES, ROLES, sensors
from tests.helpers.tables import QUICK, signal_table
from tidegate.data.store import chunks as chunks_module
from tidegate.data.store.folder import open_store
from tidegate.errors import DataError, RunError, SettingsError, UserError
from tidegate.files import DiskError
from tidegate.run import Run, load, prepare, train

TINY = "16kB"  # some 20 rows at a time
CASES: dict[str, dict[str, Any]] = {
    "a class a step": {"target": "label", "features": FEATURES},
    "whole-number classes": {"target": "number", "features": FEATURES, "categories": ["level"]},
    "yes/no": {"target": "on", "features": ["x", "level"]},
    "a class that training never saw": {"target": "colour", "features": ["x", "kind"], "split": "split"},
    "labels": {"target": ["alarm", "door"], "features": FEATURES, "label_thresholds": "f1"},
    "a number": {"target": "y", "features": FEATURES},
    "numbers with a horizon": {"target": ["y", "y2"], "features": ["y", "y2", "x", "kind"], "horizon": 3},
    "a class ahead": {"target": "label", "features": ["x", "label"], "horizon": 2},
    "a class a sequence": {"target": "whole", "per": "sequence", "features": FEATURES},
    "parts by time": {"target": "label", "features": FEATURES, "split_by": "time", "window": 4},
    "parts by a column that names none to validate on": {"target": "label", "features": FEATURES, "split": "part"},
    "all columns": {"target": "label", "exclude": ["whole", "part"], "split": "split"},
    "weights of classes, other seeds": {
        "target": "label",
        "features": FEATURES,
        "class_weights": "balanced",
        "seed": 3,
        "split_seed": 1,
    },
}


def table() -> pl.DataFrame:
    """Of the classes of `colour` that training doesn't see, the first that occurs is the rarest."""
    frame = sensors().with_columns(nothing=pl.lit(None, dtype=pl.Float64))
    device = pl.col("device")
    return frame.with_columns(
        far=pl.when(pl.col("t") == 3).then(None).otherwise(pl.col("far")),
        part=pl.when(device == "d3").then(pl.lit("test")).otherwise(pl.lit("train")),
        colour=pl.when((device == "d20") & (pl.col("t") == 0)).then(pl.lit("teal"))
        .when(device == "d20").then(pl.lit("cyan"))
        .when(device.is_in(["d21", "d22"])).then(pl.lit("violet"))
        .otherwise(pl.col("colour")),
    )  # fmt: skip


def shuffled(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sample(fraction=1, shuffle=True, seed=5)


ORDERS = {
    "in order": lambda frame: frame,
    "shuffled": shuffled,
    "sorted by time": lambda frame: frame.sort("t", maintain_order=True),
}


def both(source: Path, tmp_path: Path, store_memory: str = TINY, **settings: Any) -> tuple[Run, Run]:
    """The run in memory, and the one from disk."""
    asked = ROLES | QUICK | settings
    return train(source, out=False, **asked), train(
        source, out=False, store=str(tmp_path / "store"), memory=store_memory, **asked
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_a_table_on_disk_trains_to_the_weights_of_the_same_table_in_memory(tmp_path, case, order):
    frame = ORDERS[order](table())
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=20)
    memory, disk = both(tmp_path / "t.parquet", tmp_path, **CASES[case])
    assert disk.preprocessing.to_json() == memory.preprocessing.to_json()
    assert disk.fingerprint == memory.fingerprint
    assert disk.results.to_dict() == memory.results.to_dict()
    assert disk.resolved.parts == memory.resolved.parts
    data = open_store(tmp_path / "store").data
    assert len(data.part) == frame.height
    assert frame["device"].gather(data.rows).rle_id().n_unique() == frame["device"].n_unique()


@pytest.mark.parametrize("order", ORDERS)
def test_two_group_columns_times_as_dates_and_categorical_columns_train_the_same(tmp_path, order):
    frame = table()
    day = dt.date(2026, 1, 1)
    frame = frame.with_columns(
        day=pl.lit(day) + pl.duration(days=pl.col("device").str.slice(1).cast(pl.Int32) // 3),
        site=(pl.col("device").str.slice(1).cast(pl.Int32) % 3).cast(pl.String).cast(pl.Categorical),
        t=pl.lit(dt.datetime(2026, 1, 1)) + pl.duration(hours=pl.col("t")),
        kind=pl.col("kind").cast(pl.Categorical),
        label=pl.col("label").cast(pl.Enum(["up", "down"])),
    )
    ORDERS[order](frame).write_parquet(tmp_path / "t.parquet", row_group_size=20)
    asked = {"group": ["day", "site"], "target": "label", "features": ["x", "kind", "label"], "horizon": 1}
    memory, disk = both(tmp_path / "t.parquet", tmp_path, **asked)
    assert disk.fingerprint == memory.fingerprint
    assert disk.results.to_dict() == memory.results.to_dict()


def test_many_pieces_are_read_and_many_buckets_are_made(tmp_path, monkeypatch):
    seen = []
    read = chunks_module.Chunks.read

    def counted(self, columns, first, end):
        seen.append(end - first)
        return read(self, columns, first, end)

    monkeypatch.setattr(chunks_module.Chunks, "read", counted)
    shuffled(table()).write_parquet(tmp_path / "t.parquet")
    prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)
    assert len(seen) > 20
    assert max(seen[2:]) < table().height / 5


@pytest.mark.parametrize("kind", ["csv", "arrow", "parquet", "csv.gz"])
def test_files_of_every_kind_are_arranged(tmp_path, kind, monkeypatch):
    (tmp_path / "data").mkdir()
    frame = signal_table()
    for k in range(8):
        rows = frame[30 * k : 30 * (k + 1) if k < 7 else None]
        path = tmp_path / "data" / f"{k}.{kind}"
        if kind == "csv.gz":
            import gzip

            path.write_bytes(gzip.compress(rows.write_csv().encode()))
        else:
            getattr(rows, {"csv": "write_csv", "arrow": "write_ipc", "parquet": "write_parquet"}[kind])(path)
    monkeypatch.setattr(chunks_module, "SAMPLED", 10)
    memory, disk = both(tmp_path / "data", tmp_path, target="label", store_memory="8kB")
    assert disk.fingerprint == memory.fingerprint


@pytest.mark.parametrize("per", ["step", "sequence"])
def test_rows_that_lie_in_order_are_read_as_they_lie_and_others_are_sorted_first(tmp_path, per, monkeypatch):
    from tidegate.data.store import pieces

    made = []
    monkeypatch.setattr(pieces.Bucketed, "__init__", lambda *a, **k: made.append(1) or 1 / 0)
    table().write_parquet(tmp_path / "t.parquet")
    asked = ROLES | {"target": "label" if per == "step" else "whole", "per": per, "memory": TINY, "progress": False}
    prepare(tmp_path / "t.parquet", tmp_path / "s", **asked)
    shuffled(table()).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "t.parquet", tmp_path / "s2", **asked)
    assert made == [1]


def one_sequence() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame({"t": np.arange(400), "y": np.cumsum(rng.standard_normal(400)), "x": rng.standard_normal(400)})


@pytest.mark.parametrize("horizon", [0, 2])
def test_one_sequence_is_cut_where_the_memory_ends_and_trains_the_same(tmp_path, horizon):
    one_sequence().write_parquet(tmp_path / "t.parquet", row_group_size=50)
    asked = {"group": (), "target": "y", "horizon": horizon, "window": 32}
    memory, disk = both(tmp_path / "t.parquet", tmp_path, **asked)
    assert disk.fingerprint == memory.fingerprint


def test_one_sequence_that_is_not_sorted_is_refused_with_the_row(tmp_path):
    frame = one_sequence()
    pl.concat([frame[:200], frame[250:], frame[200:250]]).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet, row 351, column 't': the time is before that of the row before"):
        prepare(tmp_path / "t.parquet", tmp_path / "s", "y", time="t", memory=TINY, progress=False)
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_a_long_sequence_among_others_that_are_sorted_trains_the_same(tmp_path):
    long = one_sequence().with_columns(id=pl.lit(1))
    short = pl.concat([one_sequence()[:20].with_columns(id=pl.lit(k)) for k in range(2, 9)])
    pl.concat([short[:60], long, short[60:]]).write_parquet(tmp_path / "t.parquet")
    memory, disk = both(tmp_path / "t.parquet", tmp_path, group="id", target="y", horizon=1)
    assert disk.fingerprint == memory.fingerprint


def test_a_long_sequence_whose_rows_are_not_sorted_is_refused_with_its_name(tmp_path):
    long = one_sequence().with_columns(id=pl.lit(7))
    short = one_sequence()[:20].with_columns(id=pl.lit(8))
    shuffled(pl.concat([long, short])).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"the sequence id=7 has 400 rows, and about \d+ are the most .* sort the table"
    ):
        prepare(tmp_path / "t.parquet", tmp_path / "s", "y", group="id", time="t", memory=TINY, progress=False)


@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_a_time_that_occurs_twice_is_named_with_both_files(tmp_path, order):
    frame = signal_table()
    rows = pl.concat([frame[:31], frame[30:]]) if order == "in order" else shuffled(pl.concat([frame, frame[30:31]]))
    (tmp_path / "d").mkdir()
    rows[:31].write_parquet(tmp_path / "d/1.parquet")
    rows[31:].write_parquet(tmp_path / "d/2.parquet")
    where = r"1\.parquet, row 31 and 2\.parquet, row 1" if order == "in order" else r"\.parquet, row \d+ and "
    with pytest.raises(DataError, match=where + r".*the time \d+ of device=.* occurs twice"):
        prepare(tmp_path / "d", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)


# --- the store as a thing -------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A store of tmp_path/t.parquet."""
    table().write_parquet(tmp_path / "t.parquet")
    return prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)


def test_a_store_trains_by_itself_with_the_settings_that_it_was_made_with(tmp_path, stored):
    run = train(stored, out=tmp_path / "run", **QUICK)
    alone = train(tmp_path / "t.parquet", "label", out=False, **ROLES, **QUICK)
    assert run.fingerprint == alone.fingerprint
    assert load(tmp_path / "run").source == str(stored)
    assert run.settings.split_seed == 0
    train(stored, out=False, window=4, **QUICK)  # which has nothing to do with how rows lie
    other = train(stored, out=False, seed=1, **QUICK)
    assert other.fingerprint != run.fingerprint
    assert other.resolved.parts == run.resolved.parts


def test_it_is_used_again_for_the_same_table_and_settings(tmp_path, stored, monkeypatch):
    from tidegate.training import prepared

    monkeypatch.setattr(prepared, "prepare_store", lambda *a, **k: 1 / 0)
    train(tmp_path / "t.parquet", "label", out=False, store=str(stored), memory=TINY, **ROLES, **QUICK)
    os.utime(tmp_path / "t.parquet", (1, 1))  # touched, but the same
    assert prepare(tmp_path / "t.parquet", stored, "label", memory=TINY, progress=False, **ROLES) == stored


def test_other_settings_and_another_seed_are_told_with_the_way_out(tmp_path, stored):
    with pytest.raises(
        SettingsError, match=r"was made with horizon=0, and now it is horizon=1\. Leave horizon out, or"
    ):
        train(stored, out=False, horizon=1, **QUICK)
    with pytest.raises(
        SettingsError, match=r"divided into train, valid and test with seed 0, and now it is 5.*split_seed=0"
    ):
        prepare(tmp_path / "t.parquet", stored, "label", seed=5, memory=TINY, progress=False, **ROLES)


def test_an_input_that_changed_is_named(tmp_path, stored):
    table()[:-1].write_parquet(tmp_path / "t.parquet")
    for source in (stored, tmp_path / "t.parquet"):
        with pytest.raises(DataError, match=r"t\.parquet has changed since .*s was made of it\. Make the store anew"):
            train(source, "label", out=False, store=str(stored), memory=TINY, **ROLES, **QUICK)
    (tmp_path / "t.parquet").unlink()
    assert train(stored, out=False, **QUICK).resolved.rows == table().height  # it has all that it needs


def test_a_file_that_was_added_or_is_gone_is_named(tmp_path):
    (tmp_path / "d").mkdir()
    for k, frame in enumerate((table()[:100], table()[100:])):
        frame.write_parquet(tmp_path / "d" / f"{k}.parquet")
    stored = prepare(tmp_path / "d", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)
    table()[:0].write_parquet(tmp_path / "d" / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet was not there when .*s was made"):
        train(stored, out=False, **QUICK)
    (tmp_path / "d" / "2.parquet").unlink()
    (tmp_path / "d" / "1.parquet").unlink()
    with pytest.raises(DataError, match=r"was made of 1\.parquet, too, which isn't there any more"):
        train(stored, out=False, **QUICK)


@pytest.mark.parametrize("name", ["numbers", "codes", "y", "part", "rows", "offsets"])
def test_an_array_with_a_flipped_bit_or_a_missing_end_is_named(stored, name):
    path = stored / f"{name}.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=rf"{name}\.npy is damaged or cut off"):
            train(stored, out=False, **QUICK)


def test_a_store_of_another_version_and_a_damaged_manifest_are_told(stored):
    text = (stored / "store.json").read_text()
    (stored / "store.json").write_text(text.replace('"version": 1', '"version": 7'))
    with pytest.raises(RunError, match=r"is a store of version 7, written by Tidegate .*; this one reads version 1"):
        train(stored, out=False, **QUICK)
    (stored / "store.json").write_text(text[:100])
    with pytest.raises(RunError, match=r"store\.json is damaged"):
        train(stored, out=False, **QUICK)
    values = json.loads(text)
    (stored / "store.json").write_text(json.dumps(values | {"rows": "many"}))
    with pytest.raises(RunError, match=r"store\.json is damaged"):
        train(stored, out=False, **QUICK)


def test_files_that_do_not_belong_to_one_store_are_told(tmp_path, stored):
    asked = ROLES | {"memory": TINY, "progress": False, "features": ["x"]}
    other = prepare(tmp_path / "t.parquet", tmp_path / "other", "label", **asked)
    shutil.copy(other / "preprocessing.json", stored / "preprocessing.json")
    with pytest.raises(RunError, match=r"store\.json, preprocessing\.json and the arrays don't belong together"):
        train(stored, out=False, **QUICK)


@pytest.mark.parametrize("how", ["full", "ctrl-c"])
@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_a_full_disk_and_ctrl_c_leave_nothing(tmp_path, monkeypatch, how, at):
    from tidegate.data.store import folder, pieces
    from tidegate.data.store import prepare as prepare_module

    shuffled(table()).write_parquet(tmp_path / "t.parquet")

    def fail(*_: Any, **__: Any) -> None:
        if how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise KeyboardInterrupt

    place: tuple[Any, str] = {
        "first": (pieces.Bucketed, "_append"),
        "middle": (folder.ArrayWriter, "add"),
        "last": (prepare_module, "inputs_of"),
    }[at]
    monkeypatch.setattr(*place, fail)
    with pytest.raises(
        DiskError if how == "full" else KeyboardInterrupt, match="the disk is full" if how == "full" else None
    ):
        prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_too_little_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    table().write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 7, 3))
    with pytest.raises(DiskError, match=r"takes about \d+ kB of disk, and 3 bytes are free there"):
        prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_where_no_place_is_named_it_lies_beside_the_run_and_resume_finds_it(tmp_path, capsys, monkeypatch):
    from tidegate.training.loop import Loop

    table().write_parquet(tmp_path / "t.parquet")
    asked = ROLES | QUICK | {"target": "label", "memory": TINY}
    whole = train(tmp_path / "t.parquet", out=tmp_path / "whole", **(asked | {"progress": True}))
    said = capsys.readouterr().err
    assert "The table takes about" in said
    assert "more than the 16 kB allowed. It is arranged in" in said
    assert "whole.store, about" in said
    assert (tmp_path / "whole.store" / "store.json").is_file()
    epochs = Loop.close_epoch
    monkeypatch.setattr(Loop, "close_epoch", lambda self: (epochs(self), (_ for _ in ()).throw(MemoryError)))
    with pytest.raises(UserError):
        train(tmp_path / "t.parquet", out=tmp_path / "cut", **asked)
    monkeypatch.undo()
    again = train(out=tmp_path / "cut", resume=True, progress=False)
    assert again.fingerprint == whole.fingerprint


def test_a_folder_that_is_no_store_is_not_touched(tmp_path):
    table().write_parquet(tmp_path / "t.parquet")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(RunError, match=r"mine exists and is not a store; nothing in it is touched"):
        prepare(tmp_path / "t.parquet", tmp_path / "mine", "label", memory=TINY, progress=False, **ROLES)
    assert os.listdir(tmp_path / "mine") == ["x"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split_by": "date"}, r"split_by='date' needs the whole table in memory"),
        ({"fold": "1/3"}, r"fold='1/3' needs the whole table in memory"),
        ({"text": ["kind"]}, r"text=.* needs the whole table in memory"),
    ],
)
def test_what_needs_the_table_in_memory_says_so(tmp_path, settings, words):
    table().write_parquet(tmp_path / "t.parquet")
    with pytest.raises(SettingsError, match=words + r".*Allow more memory"):
        train(tmp_path / "t.parquet", "label", out=tmp_path / "r", memory=TINY, **ROLES, **QUICK, **settings)


def test_lists_texts_of_numbers_and_uneven_times_say_so(tmp_path):
    frame = table()
    for column, more, words in (
        (pl.Series("l", [[1.0]] * frame.height), {}, r"column 'l' holds lists"),
        (
            pl.Series("n", [f"{k}.5" for k in range(frame.height)]),
            {},
            r"the text column 'n' holds numbers \(t\.parquet, row 1",
        ),
        (frame["t"] ** 2, {"horizon": 1}, r"column 't': the times are not evenly spaced.*across_gaps"),
        (frame["t"].cast(pl.String), {}, r"the time column 't' holds text"),
    ):
        frame.with_columns(column).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(DataError, match=words):
            prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES, **more)


def test_an_uneven_step_between_two_chunks_is_seen(tmp_path):
    frame = one_sequence()[:60]
    for place in range(15, 26):
        frame.with_columns(t=pl.col("t") + (pl.col("t") >= place)).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(DataError, match="the times are not evenly spaced"):
            prepare(tmp_path / "t.parquet", tmp_path / "s", "y", horizon=1, time="t", memory="4kB", progress=False)
    frame.write_parquet(tmp_path / "t.parquet")
    prepare(tmp_path / "t.parquet", tmp_path / "s", "y", horizon=1, time="t", memory="4kB", progress=False)


def test_seeds_folds_and_a_warm_start_say_that_they_need_the_table_in_memory(tmp_path, stored):
    run = train(stored, out=tmp_path / "run", **QUICK)
    for more in ({"seeds": [1, 2]}, {"folds": 3}, {"from_run": run.folder}):
        asked = QUICK | ROLES | {"target": "label", "memory": TINY, "out": tmp_path / "other"} | more
        with pytest.raises(
            SettingsError, match=r"more than the 16 kB allowed\. With .* a table can't be arranged on disk"
        ):
            train(tmp_path / "t.parquet", **asked)
        with pytest.raises(SettingsError, match=r"needs the table in memory, and .*s is a store"):
            train(stored, **asked)


def test_other_commands_say_what_a_store_is(tmp_path, stored):
    run = train(stored, out=tmp_path / "run", **QUICK)
    with pytest.raises(DataError, match=r"s is a store that tidegate prepare made, and only training reads it"):
        run.predict(stored)


def test_a_truncated_file_is_named_and_nothing_is_left(tmp_path):
    table().write_parquet(tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.parquet is not a whole Parquet file"):
        prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)
    assert os.listdir(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize("horizon", [0, 3])
@pytest.mark.parametrize("part", [None, 2])
def test_batches_that_are_read_from_files_are_those_of_the_arrays(tmp_path, horizon, part):
    from tidegate.data.batches import BatchSource

    table().write_parquet(tmp_path / "t.parquet")
    asked = ROLES | {"memory": TINY, "progress": False, "horizon": horizon, "split_by": "time"}
    data = open_store(prepare(tmp_path / "t.parquet", tmp_path / "s", "y", **asked)).data
    files = BatchSource(data, per_sequence=False, horizon=horizon)
    arrays = BatchSource(dataclasses.replace(data, mapped=None), per_sequence=False, horizon=horizon)
    batches = [
        (s.training_batch(a) for a in s.training_batches(0, 4, 5, np.random.default_rng(0))) for s in (files, arrays)
    ]
    chunks = [(b for some in s.whole_sequences(part, None, 4) for b in some) for s in (files, arrays)]
    for one, other in [*zip(*batches, strict=True), *zip(*chunks, strict=True)]:
        for name in ("numbers", "codes", "steps", "inside", "y"):
            assert torch.equal(*(getattr(b, name).nan_to_num(nan=-1e9) for b in (one, other))), name


def test_pages_of_mapped_arrays_are_given_back_block_by_block(stored, monkeypatch):
    from tidegate.data import sequences

    released = []
    monkeypatch.setattr(sequences, "BLOCK", 50)
    monkeypatch.setattr(sequences.Mapped, "release", lambda self: released.append(1))
    open_store(stored).data.segments(0)
    assert len(released) == -(-table().height // 50)


def test_a_store_that_is_cut_off_while_it_trains_is_told(stored):
    from tidegate.data.batches import BatchSource

    source = BatchSource(open_store(stored).data, per_sequence=False, horizon=0)
    arguments = source.training_batches(0, 4, None, np.random.default_rng(0))
    with (stored / "numbers.npy").open("rb+") as file:
        file.truncate(200)
    with pytest.raises(DataError, match=r"was cut off while it was in use: numbers ends too early"):
        for some in arguments:
            source.training_batch(some)


def test_the_arrays_of_a_store_cant_be_written_and_torch_doesnt_warn_of_that(stored, recwarn):
    assert not open_store(stored).data.numbers.flags.writeable
    train(stored, out=False, **QUICK)
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_a_store_that_is_made_anew_takes_the_place_of_the_old_one(tmp_path, stored):
    table()[:100].write_parquet(tmp_path / "t.parquet")
    asked = ROLES | {"memory": TINY, "progress": False}
    with pytest.raises(DataError, match="has changed since"):
        prepare(tmp_path / "t.parquet", stored, "label", **asked)
    prepare(tmp_path / "t.parquet", stored, "label", overwrite=True, **asked)
    assert len(open_store(stored).data.part) == 100
    assert sorted(os.listdir(tmp_path)) == ["s", "t.parquet"]


def test_an_input_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    from tidegate.data.store import prepare as passes

    table().write_parquet(tmp_path / "t.parquet")
    write = passes._Passes._write

    def changed(self, *arguments):
        write(self, *arguments)
        os.utime(tmp_path / "t.parquet", (1, 1))

    monkeypatch.setattr(passes._Passes, "_write", changed)
    with pytest.raises(DataError, match=r"t\.parquet has changed while it was read"):
        prepare(tmp_path / "t.parquet", tmp_path / "s", "label", memory=TINY, progress=False, **ROLES)
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_what_a_killed_preparation_left_is_removed_by_the_next_one(tmp_path, stored):
    import subprocess
    import sys

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".s.{gone.pid}-0123abcd.tmp"
    left.mkdir()
    (left / "numbers.npy").touch()
    os.utime(left, (1, 1))
    prepare(tmp_path / "t.parquet", stored, "label", overwrite=True, memory=TINY, progress=False, **ROLES)
    assert sorted(os.listdir(tmp_path)) == ["s", "t.parquet"]


def test_on_another_device_batches_are_cut_where_the_arrays_lie_and_then_moved(stored):
    from tidegate.data.batches import BatchSource

    source = BatchSource(open_store(stored).data, per_sequence=False, horizon=1, device="meta")
    assert source.numbers.device.type == "cpu"
    (arguments, *_) = source.training_batches(0, 4, None, np.random.default_rng(0))
    batch = source.training_batch(arguments)
    assert {t.device.type for t in (batch.numbers, batch.codes, batch.steps, batch.inside, batch.y)} == {"meta"}


def test_where_a_new_store_cant_take_its_place_the_old_one_stays(tmp_path, stored, monkeypatch):
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(DiskError, match=r"s could not be written \(Permission denied\)"):
        prepare(tmp_path / "t.parquet", stored, "label", overwrite=True, memory=TINY, progress=False, **ROLES)
    assert len(open_store(stored).data.part) == table().height
    assert sorted(os.listdir(tmp_path)) == ["s", "t.parquet"]
