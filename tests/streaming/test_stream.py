"""A stream gives row by row what `predict` gives for the table, and its state is a value."""

from __future__ import annotations

import json
import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.runs import CASES, ROLES, folder_of, run_of, sensors, table_of
from tests.helpers.tables import QUICK
from tidegate.errors import DataError, SettingsError, ShapeError
from tidegate.files import DiskError
from tidegate.ops.gru import native
from tidegate.streaming import StreamState
from tidegate.training import load, train

FORWARDS = [name for name in CASES if "both ways" not in name]


def added(run, frame: pl.DataFrame) -> pl.DataFrame:
    """What predict adds, with a row an item of the lists; of a target a sequence only the last row of each counts."""
    found = run.predict(frame, probabilities=run.preprocessing.target.task != "number")
    columns = [c for c in found.columns if c.startswith(("prediction", "p_"))]
    found = found.select(columns)
    return found.explode(columns) if run.preprocessing.lists else found


def rows_and_keys(run, frame: pl.DataFrame) -> tuple[list[dict], list]:
    if run.preprocessing.lists:
        pairs = [({"words": w}, k) for k, words in enumerate(frame["words"]) for w in words]
        return [row for row, _ in pairs], [key for _, key in pairs]
    return frame.rows(named=True), frame["device"].to_list()


def last_of_each(keys: list) -> list[int]:
    return sorted({key: k for k, key in enumerate(keys)}.values())


def new_stream(name: str, **options):
    run = run_of(name)
    return run.stream(probabilities=run.preprocessing.target.task != "number", **options)


@pytest.mark.parametrize("name", FORWARDS)
def test_rows_one_by_one_get_the_bits_that_predict_gives_them(name):
    run, frame = run_of(name), table_of(name)
    rows, keys = rows_and_keys(run, frame)
    expected = added(run, frame).to_dicts()
    stream = new_stream(name)
    found = [stream.push(row, key) for row, key in zip(rows, keys, strict=True)]
    which = last_of_each(keys) if run.preprocessing.per == "sequence" else range(len(keys))
    assert [found[k] for k in which] == [expected[k] for k in which]
    assert stream.keys() == list(dict.fromkeys(keys))


@pytest.mark.parametrize("name", FORWARDS)
def test_many_rows_at_once_get_the_same_bits_and_leave_the_same_states(name):
    run, frame = run_of(name), table_of(name)
    rows, keys = rows_and_keys(run, frame)
    one, many = new_stream(name), new_stream(name)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()  # keys mixed, several rows of a key in a call
    found = []
    for first in range(0, len(order), 50):
        some = order[first : first + 50]
        found += many.push_many([rows[k] for k in some], [keys[k] for k in some])
    assert found == [one.push(rows[k], keys[k]) for k in order]
    for key in one:
        a, b = one.state(key), many.state(key)
        assert a.rows == b.rows
        assert a.parts.keys() == b.parts.keys()
        assert all(np.array_equal(a.parts[part], b.parts[part]) for part in a.parts)


def test_the_mean_of_a_long_sequence_has_the_bits_that_predict_gives_it():
    run = run_of("sequence mean")
    frame = pl.concat([sensors()] * 2).with_columns(device=pl.lit("d"), t=pl.int_range(pl.len()))
    stream = run.stream(probabilities=True)
    answers = [stream.push(row) for row in frame.rows(named=True)]
    for length in (1, 63, 64, 65, 200, frame.height):
        expected = run.predict(frame[:length], probabilities=True)
        assert answers[length - 1] == expected.select("prediction", "p_down", "p_up").row(-1, named=True)


@pytest.mark.parametrize("cell", ["lstm", "rnn", "none"])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_other_cells_stream_too(tmp_path, cell, per):
    frame = sensors()
    target = "whole" if per == "sequence" else "y"
    run = train(frame, out=tmp_path / "r", target=target, per=per, bidirectional=False, pooling="mean", cell=cell, num_layers=2, **(QUICK | ROLES))  # fmt: skip
    stream, again = run.stream(), run.stream()
    keys = frame["device"].to_list()
    found = [stream.push(row, key) for row, key in zip(frame.rows(named=True), keys, strict=True)]
    for a, b in zip(again.push_many(frame.rows(named=True), keys), found, strict=True):
        assert a["prediction"] == (pytest.approx(b["prediction"], rel=1e-5) if per == "step" else b["prediction"])
    expected = run.predict(frame)["prediction"].to_list()
    which = last_of_each(keys) if per == "sequence" else range(len(keys))
    if per == "step":
        assert [found[k]["prediction"] for k in which] == pytest.approx([expected[k] for k in which], rel=1e-5)
    else:
        assert [found[k]["prediction"] for k in which] == [expected[k] for k in which]
    stream.put(StreamState.from_bytes(stream.state("d3").to_bytes()), "copy")
    assert stream.push(frame.row(0, named=True), "copy") == stream.push(frame.row(0, named=True), "d3")


def test_the_layer_steps_in_the_native_back_end(monkeypatch):
    stream, row = new_stream("class"), sensors().row(0, named=True)
    for _ in range(3):
        stream.push(row)
    calls = []
    quick = native.quick_step
    monkeypatch.setattr(native, "quick_step", lambda *a: calls.append(quick(*a)) or calls[-1])
    stream.push(row)
    assert len(calls) == 1
    assert calls[0] is not None


def test_without_the_kernels_a_stream_gives_the_same_to_rounding(monkeypatch):
    rows = sensors().rows(named=True)[:40]
    stream = new_stream("number")
    expected = [stream.push(row)["prediction"] for row in rows]
    monkeypatch.setattr(native.kernels, "_MISSING", "not here")
    other = new_stream("number")
    found = [other.push(row)["prediction"] for row in rows]
    assert found == pytest.approx(expected, abs=2e-4)
    assert found != expected


# ------------------------------------------------------------------------------------------------ keys and states


def test_keys_do_not_see_each_other_and_begin_anew_when_reset():
    stream, row = new_stream("number"), sensors().row(0, named=True)
    first = stream.push(row, "a")
    second = stream.push(row, "a")
    assert second != first
    assert stream.push(row, "b") == first
    assert stream.push(row, ("a", 1)) == first
    stream.reset("a")
    assert "a" not in stream
    assert stream.push(row, "a") == first
    stream.reset("never there")
    assert len(stream) == 3
    stream.clear()
    assert (len(stream), stream.push(row, "b")) == (0, first)


@pytest.mark.parametrize("name", ["number", "sequence mean", "sequence max", "labels"])
def test_a_state_is_a_value_that_can_be_kept_moved_and_put_back(name):
    rows = sensors().rows(named=True)[:30]
    stream, other = new_stream(name), new_stream(name)
    for row in rows[:10]:
        stream.push(row, "a")
    kept = stream.state("a")
    data = kept.to_bytes()
    after = [stream.push(row, "a") for row in rows[10:]]
    assert kept.rows == 10
    assert kept.to_bytes() == data  # later rows don't change it
    moved = StreamState.from_bytes(data)
    other.put(moved, "elsewhere")
    assert [other.push(row, "elsewhere") for row in rows[10:]] == after
    assert moved.to_bytes() == data
    other.put(moved, "elsewhere")
    assert other.push(rows[10], "elsewhere") == after[0]
    for part in [*moved.parts.values(), *other.state("elsewhere").parts.values()]:
        part[:] = 0.5  # whoever writes on a value writes on a copy
    assert other.push(rows[11], "elsewhere") == after[1]
    assert stream.state("never there") is None


@pytest.mark.parametrize("name", ["labels", "sequence mean", "categories alone"])
def test_a_saved_stream_goes_on_where_it_stood(tmp_path, name):
    rows = sensors().rows(named=True)[:60]
    keys = [None, "a", 7, ("b", 2), 1.5]
    stream, other = new_stream(name), new_stream(name)
    for k, row in enumerate(rows[:23]):
        stream.push(row, keys[k % 5])
    stream.save(tmp_path / "s", more={"note": ["ä", 1]})
    other.push(rows[0], "gone")
    assert other.restore(tmp_path / "s") == {"note": ["ä", 1]}
    assert other.keys() == stream.keys()
    assert [type(key) for key in other] == [type(key) for key in stream]
    for k, row in enumerate(rows[23:]):
        assert other.push(row, keys[k % 5]) == stream.push(row, keys[k % 5])


def test_a_stream_without_keys_is_saved_and_restored(tmp_path):
    new_stream("class").save(tmp_path / "s")
    stream = new_stream("class")
    stream.restore(tmp_path / "s")
    assert len(stream) == 0


def test_the_state_of_another_run_is_refused(tmp_path):
    row = sensors().row(0, named=True)
    stream, other = new_stream("number"), new_stream("two numbers")
    stream.push(row, "a")
    other.push(row, "b")
    stream.save(tmp_path / "s")
    with pytest.raises(DataError, match=r"s is of another run: it was written for [0-9a-f]{12}, and .*two-numbers is"):
        other.restore(tmp_path / "s")
    with pytest.raises(DataError, match="The state is of another run"):
        other.put(stream.state("a"), "a")
    assert other.keys() == ["b"]


def test_the_fingerprint_is_of_weights_and_preprocessing(tmp_path):
    run, same = run_of("number"), load(folder_of("number"))
    assert run.fingerprint == same.fingerprint
    with torch.no_grad():
        same.model.head.bias += 1e-6
    assert run.fingerprint != same.fingerprint
    assert run.fingerprint != run_of("two numbers").fingerprint


@pytest.mark.parametrize(
    "damage",
    [
        {"keys": None},
        {"keys": b"{"},
        {"keys": b'["a", {"b": 1}]'},
        {"keys": b'["a", "a"]'},
        {"keys": b'["a"]'},
        {"rows": np.array([1])},
        {"seen": None},
        {"h of": np.array([0, 7])},
        {"h of": np.array([0])},
        {"h": np.zeros((2, 1, 33))},
        {"h": np.zeros((2, 1, 33), dtype=np.int32)},
        {"h": np.zeros((2, 1, 5), dtype=np.float32)},
        {"c": np.zeros((2, 1, 33), dtype=np.float32), "c of": np.array([0, 1])},
        {"header": {"run": None}},
        {"more": None},
        {"more": b"[1]"},
    ],
    ids=lambda damage: " ".join(f"{k}={v!r:.20}" for k, v in damage.items()),
)
def test_a_file_whose_parts_do_not_fit_is_refused_and_nothing_has_changed(tmp_path, damage):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    stream, row = new_stream("number"), sensors().row(0, named=True)
    stream.push_many([row, row], ["a", "b"])
    path = tmp_path / "s"
    stream.save(path)
    with safe_open(str(path), "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        header = json.loads(file.metadata()["tidegate"])
    for name, value in damage.items():
        if name == "header":
            header = {k: v for k, v in (header | value).items() if v is not None}
        elif value is None:
            del tensors[name]
        else:
            tensors[name] = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
    save_file(tensors, str(path), {"tidegate": json.dumps(header)})
    with pytest.raises(DataError, match=r"s: not the state of a stream, or damaged|is of another run"):
        stream.restore(path)
    assert stream.keys() == ["a", "b"]


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "another kind", "shape"])
def test_a_damaged_state_is_refused_and_nothing_has_changed(tmp_path, damage):
    stream, row = new_stream("number"), sensors().row(0, named=True)
    stream.push(row, "a")
    path = tmp_path / "s"
    stream.save(path)
    good = path.read_bytes()
    state = stream.state("a")
    data = {
        "cut": good[:-5],
        "text": b"Hello, this is no state at all.",
        "empty": b"",
        "another kind": state.to_bytes(),
        "shape": b"",
    }[damage]
    path.write_bytes(data)
    if damage == "shape":
        wrong = StreamState(state.run, 1, {"h": state.parts["h"][:, :5]})
        with pytest.raises(DataError, match=r"The state: not the state of a stream, or damaged .it holds"):
            stream.put(wrong, "a")
    else:
        with pytest.raises(DataError, match="s: not the state of a stream, or damaged"):
            stream.restore(path)
    with pytest.raises(DataError, match=r"nowhere: can't be read"):
        stream.restore(tmp_path / "nowhere")
    assert stream.keys() == ["a"]
    assert stream.state("a").to_bytes() == state.to_bytes()


def test_a_state_that_can_not_be_written_leaves_the_old_one(tmp_path):
    stream = new_stream("number")
    stream.push(sensors().row(0, named=True), "a")
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(DiskError):
        stream.save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_beyond_max_keys_the_one_not_heard_of_for_longest_goes():
    gone = []
    stream = new_stream("number", max_keys=2, on_forget=gone.append)
    row = sensors().row(0, named=True)
    first = stream.push(row, "a")
    stream.push(row, "b")
    stream.push(row, "a")
    stream.push(row, "c")
    assert (gone, stream.keys()) == (["b"], ["a", "c"])
    assert stream.push(row, "b") == first
    assert gone == ["b", "a"]
    assert [a == first for a in stream.push_many([row] * 4, ["d", "e", "f", "d"])] == [True, True, True, True]
    assert len(stream) == 2
    stream.put(stream.state("d"), "g")
    assert len(stream) == 2


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=1, max_size=5),
    most=st.sampled_from([None, 1, 2, 3]),
    ttl=st.sampled_from([None, 2.5]),
)
def test_push_many_is_push_one_after_the_other_whatever_goes_on_the_way(calls, most, ttl):
    rows = sensors().rows(named=True)
    clock, gone = [0.0], ([], [])
    one, many = (
        new_stream("one number", max_keys=most, ttl=ttl, clock=lambda: clock[0], on_forget=told.append) for told in gone
    )
    for k, keys in enumerate(calls):
        clock[0] += 1
        some = rows[k * 6 : k * 6 + len(keys)]
        assert many.push_many(some, keys) == [one.push(row, key) for row, key in zip(some, keys, strict=True)]
        assert many.keys() == one.keys()
    assert gone[0] == gone[1]


def test_whoever_is_told_of_a_key_that_goes_may_ask_the_stream():
    seen = []
    stream = new_stream("number", max_keys=1, on_forget=lambda key: seen.append((key, key in stream, stream.keys())))
    row = sensors().row(0, named=True)
    stream.push(row, "a")
    stream.push(row, "b")
    stream.push_many([row], ["c"])
    stream.put(stream.state("c"), "d")
    assert seen == [("a", False, ["b"]), ("b", False, ["c"]), ("c", False, ["d"])]


def test_a_state_from_a_stream_without_limits_keeps_its_order_and_times_for_one_with_them(tmp_path):
    now, row = [100.0], sensors().row(0, named=True)
    stream = new_stream("number", clock=lambda: now[0])
    first = stream.push(row, "a")
    stream.push(row, "b")
    now[0] = 105
    stream.push(row, "a")
    stream.save(tmp_path / "s")
    later = new_stream("number", ttl=10, clock=lambda: now[0])
    later.restore(tmp_path / "s")
    now[0] = 111
    assert later.push(row, "a") != first
    assert later.keys() == ["a"]
    fewer = new_stream("number", max_keys=1)
    fewer.restore(tmp_path / "s")
    assert fewer.keys() == ["a"]


def test_a_stream_is_true_and_iterates_over_its_keys():
    stream = new_stream("number")
    assert stream
    assert len(stream) == 0
    stream.push(sensors().row(0, named=True), "a")
    assert list(stream) == ["a"]


def test_a_key_that_rested_for_longer_than_ttl_begins_anew():
    now, gone = [100.0], []
    stream = new_stream("number", ttl=10, clock=lambda: now[0], on_forget=gone.append)
    row = sensors().row(0, named=True)
    first = stream.push(row, "a")
    now[0] = 105
    stream.push(row, "b")
    now[0] = 110
    assert stream.push(row, "a") != first
    assert gone == []
    now[0] = 119
    stream.push(row, "c")
    assert (gone, stream.keys()) == (["b"], ["a", "c"])
    now[0] = 130
    assert stream.push(row, "a") == first
    assert gone == ["b", "a", "c"]


def test_memory_stays_flat_over_many_rows_of_ever_new_keys():
    stream, row = new_stream("number", max_keys=50), sensors().row(0, named=True)

    def some(first: int) -> None:
        for k in range(2000):
            stream.push(row, f"key {first + k}")
            stream.push(row, "always")
        stream.push_many([row] * 100, list(range(first, first + 100)))

    tracemalloc.start()
    for k in range(4):  # until free lists are filled
        some(k * 10_000)
    before = tracemalloc.get_traced_memory()[0]
    for k in range(4, 8):
        some(k * 10_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 10_000  # of 16,400 rows: a pointer kept of each would be 131,200
    assert len(stream) == 50


def test_a_lone_survivor_of_a_batch_does_not_keep_the_batch_in_memory():
    stream, row = new_stream("number"), sensors().row(0, named=True)
    stream.push_many([row] * 64, list(range(64)))
    state = stream._places.find(0).state
    assert state.untyped_storage().nbytes() == state.numel() * 4


def test_threads_may_push_at_the_same_time():
    rows = sensors().rows(named=True)[:50]
    one = new_stream("number")
    expected = [one.push(row) for row in rows]
    stream = new_stream("number")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda key: [stream.push(row, key) for row in rows], range(8)))
    assert found == [expected] * 8


# ------------------------------------------------------------------------------------------------ bad rows

GOOD = {"x": 0.5, "far": 1e6, "level": 2, "on": True, "kind": "ä", "colour": "red"}
BAD = [
    ({"far": "x"}, "The row, column 'far': 'x' is not a number. Mend it, or give none"),
    ({"far": [1.0]}, r"The row, column 'far': \[1.0\] is not a number"),
    ({"far": math.nan}, "The row, column 'far': nan is not a finite number. Give a missing value as none"),
    ({"far": math.inf}, "column 'far': inf is not a finite number"),
    ({"far": 10**400}, "column 'far': 1000.* is not a number"),
    ({"far": 10**5000}, "column 'far': a value of type int is not a number"),
    ({"far": 1e300}, "column 'far': 1e[+]300 is too far from the training rows"),
    ({"colour": ["red"]}, "column 'colour': .* is neither text nor a number"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_value_is_told_with_its_column_and_changes_no_state(change, message):
    stream = new_stream("number")
    stream.push(GOOD, "a")
    before = stream.state("a").to_bytes()
    with pytest.raises(DataError, match=message):
        stream.push(GOOD | change, "a")
    with pytest.raises(DataError, match=message.replace("The row", "Row 2")):
        stream.push_many([GOOD, GOOD | change], ["a", "b"])
    with pytest.raises(DataError):
        stream.push(GOOD | change, "new")
    assert stream.keys() == ["a"]
    assert stream.state("a").to_bytes() == before


def test_an_absent_column_is_told_with_the_nearest_one_that_is_there():
    stream = new_stream("number")
    row = {("farr" if name == "far" else name): value for name, value in GOOD.items()}
    with pytest.raises(
        DataError, match=r"The row: there is no column 'far'. Did you mean 'farr'\? Where its value is missing"
    ):
        stream.push(row)
    del row["colour"], row["farr"]
    with pytest.raises(DataError, match=r"there is no column 'far'\. Where"):
        stream.push(row)
    with pytest.raises(DataError, match="there is no column 'colour'"):
        stream.push({name: value for name, value in GOOD.items() if name != "colour"})


def test_a_row_may_be_a_list_of_values_in_order():
    stream, other = new_stream("number"), new_stream("number")
    values = [GOOD[name] for name in stream.columns]
    assert stream.push(values) == other.push(GOOD)
    assert stream.push(tuple(values)) == other.push(GOOD)
    numbers = new_stream("numbers alone")
    assert numbers.push(np.array([1e6, 0.5])) == new_stream("numbers alone").push({"far": 1e6, "x": 0.5})
    with pytest.raises(DataError, match="The row: 5 values, expected 6: 'x', 'far'"):
        stream.push(values[:-1])
    with pytest.raises(DataError, match="The row: a value of type str; expected a dict"):
        stream.push("0.5,1,2")
    with pytest.raises(DataError, match="The row: a value of type float"):
        stream.push(0.5)


def test_values_are_read_as_predict_reads_them():
    frame = pl.DataFrame(
        {
            "device": ["a"] * 4,
            "t": range(4),
            "x": [None, 1.0, 2.0, None],
            "far": [1e6, 999_950.0, 1_000_070.0, 1e6],
            "level": [1, None, -2, 3],
            "on": [True, False, None, True],
            "kind": ["ä", None, "never seen", '"d"'],
            "colour": ["red", "violet", "", "blue"],
        }
    )
    for name in ("number", "class", "whole-number classes"):
        expected = added(run_of(name), frame).to_dicts()
        stream = new_stream(name)
        assert [stream.push(row) for row in frame.rows(named=True)] == expected
    floats = new_stream("number")
    same = new_stream("number").push(GOOD)
    assert floats.push(GOOD | {"far": np.float32(1e6), "level": np.int64(2), "on": 1, "x": np.float64(0.5)}) == same


def test_whole_number_categories_are_read_from_numbers_and_text():
    first = new_stream("yes/no").push({"x": 0.5, "level": 2})
    for value in (2.0, "2", np.int32(2), np.float64(2)):
        assert new_stream("yes/no").push({"x": 0.5, "level": value}) == first
    unknown = new_stream("yes/no").push({"x": 0.5, "level": None})
    assert unknown != first
    for value in (2.5, 77, "two", True):
        assert new_stream("yes/no").push({"x": 0.5, "level": value}) == unknown


def test_yes_and_no_are_categories_too(tmp_path):
    frame = sensors()
    settings = QUICK | ROLES | {"target": "label", "features": ["on"], "categories": "on"}
    run = train(frame, out=tmp_path / "r", **settings)
    stream = run.stream(probabilities=True)
    rows, keys = frame.rows(named=True), frame["device"].to_list()
    assert [stream.push(row, key) for row, key in zip(rows, keys, strict=True)] == added(run, frame).to_dicts()
    assert stream.push({"on": True}, 1) != stream.push({"on": False}, 2)


def test_words_are_compared_in_lower_case_and_come_one_a_row():
    stream = new_stream("words")
    assert stream.push({"words": "PLAY"}, 1) == stream.push({"words": "play"}, 2)
    # The run was trained on lists, whose items are words as they are, however they look.
    for word in ("foo-bar", "two words", "3.5", "U.K."):
        assert stream.push({"words": word}, word) == stream.push({"words": "never seen"}, ("other", word))


def test_of_sentences_a_row_is_one_word(tmp_path):
    frame = pl.DataFrame({"text": ["play a song", "don't stop", "U.K. now"] * 9, "mood": ["good", "bad", "so"] * 9})
    run = train(frame, out=tmp_path / "r", target="mood", text="text", per="sequence", bidirectional=False, **QUICK)
    stream = run.stream()
    for word in ("play", "don't", "unheard", "İ"):
        stream.push({"text": word})
    for several in ("play a song", "U.K.", "foo-bar"):
        with pytest.raises(DataError, match=r"holds several words. A stream reads one word a row"):
            stream.push({"text": several})


def test_nan_is_a_missing_value_where_the_run_was_trained_so(tmp_path):
    frame = sensors()
    settings = QUICK | ROLES | {"target": "label", "features": ["x"], "non_finite": "missing"}
    run = train(frame, out=tmp_path / "r", **settings)
    row = {"x": math.nan}
    assert run.stream(probabilities=True).push(row) == run.stream(probabilities=True).push({"x": None})
    assert run.stream(probabilities=True).push({"x": -math.inf}) == run.stream(probabilities=True).push({"x": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_keys": 0}, "max_keys=0: expected a whole number of at least 1"),
        ({"ttl": 0}, "ttl=0: expected seconds, more than 0"),
        ({"ttl": math.nan}, "ttl=nan"),
        ({"ttl": "5"}, "ttl='5'"),
        ({"max_keys": True}, "max_keys=True"),
        ({"probabilities": True}, "probabilities are for classes and labels"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        run_of("number").stream(**options)


def test_a_run_that_reads_both_ways_says_that_it_can_not_stream():
    with pytest.raises(SettingsError, match=r"reads each sequence in both directions.* Train with bidirectional=False"):
        run_of("both ways").stream()


def test_a_number_of_numpys_is_a_key_like_pythons(tmp_path):
    stream = new_stream("number")
    first = stream.push(GOOD, np.int64(3))
    assert stream.push(GOOD, 3) != first
    stream.push(GOOD, ("a", np.float32(0.5)))
    stream.save(tmp_path / "s")
    assert stream.keys() == [3, ("a", 0.5)]
    assert [type(key) for key in stream] == [int, tuple]


def test_a_clock_that_is_set_back_stands_still_until_it_is_right_again():
    now = [100.0]
    stream = new_stream("number", ttl=10, clock=lambda: now[0])
    for key, at in (("a", 100), ("b", 50), ("c", 105), ("a", 109)):
        now[0] = at
        stream.push(GOOD, key)
    assert stream.keys() == ["b", "c", "a"]  # b was heard of at 100
    now[0] = 111
    stream.push(GOOD, "d")
    assert stream.keys() == ["c", "a", "d"]


def test_another_default_dtype_changes_nothing():
    expected = new_stream("sequence mean").push(GOOD)
    torch.set_default_dtype(torch.float64)
    try:
        assert new_stream("sequence mean").push(GOOD) == expected
        assert new_stream("sequence mean").push_many([GOOD], ["a"]) == [expected]
    finally:
        torch.set_default_dtype(torch.float32)


def test_states_are_equal_where_they_hold_the_same():
    stream = new_stream("number")
    stream.push_many([GOOD, GOOD, GOOD], ["a", "b", "b"])
    again = StreamState.from_bytes(stream.state("a").to_bytes())
    assert again == stream.state("a")
    assert hash(again) == hash(stream.state("a"))
    assert again != stream.state("b")
    assert again != "a"


def test_a_link_to_a_state_file_stays_one(tmp_path):
    stream = new_stream("number")
    stream.push(GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "folder" / "real")
    stream.save(tmp_path / "s")
    assert (tmp_path / "s").is_symlink()
    assert (tmp_path / "folder" / "real").is_file()


def test_threads_may_save_to_the_same_file_at_once(tmp_path):
    stream = new_stream("number")
    stream.push_many([GOOD] * 100, list(range(100)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: stream.save(tmp_path / "s"), range(24)))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_more_than_a_header_can_hold_is_kept(tmp_path):
    stream = new_stream("number")
    stream.save(tmp_path / "s", more={"long": "x" * 101_000_000})
    assert len(stream.restore(tmp_path / "s")["long"]) == 101_000_000


def test_a_key_that_could_not_be_saved_is_refused():
    stream = new_stream("number")
    for key in ([1], {"a": 1}, object(), (1, None), math.nan, "\ud800", ("a", "\udfff")):
        with pytest.raises(SettingsError, match="a key is text, a finite number, a tuple of these, or None"):
            stream.push(GOOD, key)
        with pytest.raises(SettingsError, match=r"Row 2: key=.*; a key is text"):
            stream.push_many([GOOD, GOOD], ["a", key])
    with pytest.raises(ShapeError, match="push_many: 2 rows and 1 keys"):
        stream.push_many([GOOD, GOOD], ["a"])
    assert len(stream) == 0
    assert stream.push_many([], []) == []


def test_the_stream_leaves_gradients_as_they_were():
    stream = new_stream("number")
    stream.push(GOOD)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        stream.push(GOOD)
        assert not torch.is_grad_enabled()
