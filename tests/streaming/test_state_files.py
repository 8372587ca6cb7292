"""A stream is saved and goes on where it stood; what doesn't fit or is damaged changes nothing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.helpers.runs import folder_of, run_of, sensors
from tests.helpers.streams import GOOD, new_stream
from tidegate.errors import DataError
from tidegate.files import DiskError
from tidegate.streaming import StreamState
from tidegate.training import load


@pytest.mark.parametrize("name", ["labels", "sequence mean", "sequence last+max+mean", "categories alone"])
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
        {"rows": np.array([1, -1])},
        {"rows": np.array([2**63 - 1, 1])},
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


@pytest.mark.long
def test_more_than_a_header_can_hold_is_kept(tmp_path):
    stream = new_stream("number")
    stream.save(tmp_path / "s", more={"long": "x" * 101_000_000})
    assert len(stream.restore(tmp_path / "s")["long"]) == 101_000_000
