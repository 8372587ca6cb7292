"""Codes and notes beside an ONNX file, and files that are not written or stay as they were."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import EncodeError

from tests.helpers import runs
from tests.helpers.onnx_files import CLOSE, answers, assert_same, batch_for, exported, file_of, session_of
from tidegate.errors import SettingsError, TidegateError
from tidegate.export import onnx as target
from tidegate.export import take_apart
from tidegate.export.onnx import graph
from tidegate.export.probe import Runtime, compared
from tidegate.files import DiskError

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("code", [-1, -(2**62), "size", 2**62])
@pytest.mark.parametrize("name", ["class", "words both ways"])
def test_a_code_of_no_entry_counts_as_unknown(name, code):
    batch = copy.deepcopy(batch_for(name, 3, False))
    sizes = [c.size for c in runs.run_of(name).preprocessing.tokens]
    session = session_of(name, codes=True)
    batch.codes[:] = 0
    right = answers(session, batch)
    batch.codes[:] = sizes if code == "size" else code
    for key, value in answers(session, batch).items():
        np.testing.assert_array_equal(value, right[key], err_msg=key)


@pytest.mark.parametrize("name", runs.CASES)
def test_codes_give_the_same_as_text_and_the_json_beside_them_tells_both(name):
    run = runs.run_of(name)
    path = file_of(name, codes=True)
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert told == json.loads(take_apart(run).to_json())
    batch = copy.deepcopy(batch_for(name, 24, False))
    for k, column in enumerate(told["tokens"]):
        entries = {text: code for code, text in enumerate(column["vocabulary"], 1)}
        batch.codes[..., k] = [[entries.get(text, 0) for text in row] for row in batch.tokens[..., k]]
    found = answers(session_of(name, codes=True), batch)
    assert_same(run, batch, found, codes=True)


def test_what_was_written_is_told_with_the_json_beside_it(tmp_path):
    result, _ = exported(runs.run_of("class"), tmp_path, codes=True)
    assert result.beside == [tmp_path / "model.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.onnx"]
    said = str(result)
    assert "codes         int64 [B, T, 2]: kind, colour" in said
    assert "far (1e-03)" in said.split("OpenVINO computes in float32")[1]
    assert ".json" not in str(exported(runs.run_of("class"), tmp_path)[0])


def test_a_file_that_computes_something_else_is_not_written(tmp_path):
    parts = take_apart(runs.run_of("number"))
    said = target.write(parts, tmp_path / "right.onnx").notes[-1]
    assert said.startswith(f"Checked with ONNX Runtime {onnxruntime.__version__}: ")
    assert float(said.split("at most ")[1].rstrip(".")) <= CLOSE
    for by in (0.5, 0.01, np.nan):
        wrong = dataclasses.replace(parts, head_bias=parts.head_bias + np.float32(by))
        with pytest.raises(
            TidegateError, match=rf"differ .* up to {by:.1g}, more than 0.001\. .*pip install --upgrade"
        ) as told:
            target.write(wrong, tmp_path / "wrong.onnx", codes=True)
        assert not isinstance(told.value, SettingsError)
    assert [p.name for p in tmp_path.iterdir()] == ["right.onnx"]


def test_a_file_that_onnx_runtime_reads_but_cant_run_is_not_written(tmp_path):
    parts = take_apart(runs.run_of("categories alone"))
    short = [table[:1] for table in parts.embeddings]  # codes lead out of these
    with pytest.raises(TidegateError, match=r"Nothing was written: ONNX Runtime .* stopped: .*pip install --upgrade"):
        target.write(dataclasses.replace(parts, embeddings=short), tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())


def test_a_run_whose_own_scores_are_no_numbers_is_refused(tmp_path):
    run = runs.run_of("number")
    with torch.no_grad():
        run.model.head.bias.fill_(torch.nan)
    with pytest.raises(SettingsError, match="already in Tidegate"):
        run.export("onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_where_the_model_itself_makes_much_of_rounding_so_may_the_file():
    expected = np.array([1.0, -2.0])
    for found, exact, fails in ((1.01, 1.0, True), (1.01, 1.001, False), (1.1, 1.001, True)):
        given = (Runtime("it", "it"), np.array([found, -2.0]), expected, np.array([exact, -2.0]))
        if fails:
            with pytest.raises(TidegateError, match="Nothing was written"):
                compared(*given)
        else:
            assert "at most 0.01" in compared(*given)


def test_without_onnx_runtime_the_notes_say_that_nothing_was_checked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = runs.run_of("class").export("onnx", tmp_path / "model.onnx")
    assert result.notes[-1].startswith("Not checked: ONNX Runtime is not installed")
    assert result.path.is_file()


@pytest.mark.parametrize("blocked", ["model.onnx", "model.json"])
def test_where_one_file_cant_be_written_neither_is_there(tmp_path, blocked):
    (tmp_path / blocked).mkdir()
    with pytest.raises(DiskError if blocked == "model.onnx" else SettingsError):
        target.write(take_apart(runs.run_of("class")), tmp_path / "model.onnx", codes=True)
    assert [p.name for p in tmp_path.iterdir()] == [blocked]


def test_an_earlier_json_file_stays_as_it_was_where_the_onnx_file_cant_be_written(tmp_path):
    runs.run_of("class").export("onnx", tmp_path / "model.onnx", codes=True)
    before = (tmp_path / "model.json").read_bytes()
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(DiskError):
        target.write(take_apart(runs.run_of("labels")), tmp_path / "model.onnx", codes=True)
    assert (tmp_path / "model.json").read_bytes() == before


def test_a_json_file_that_is_not_ours_is_not_replaced_and_one_of_ours_is(tmp_path):
    mine = tmp_path / "model.json"
    mine.write_text('{"format": "mine"}')
    with pytest.raises(SettingsError, match=r"model\.json is there and was not written by an export.* Name another"):
        runs.run_of("class").export("onnx", tmp_path / "model.onnx", codes=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"model.json": '{"format": "mine"}'}
    runs.run_of("class").export("onnx", tmp_path / "model.onnx")  # has none beside it
    mine.unlink()
    for name in ("class", "labels"):
        runs.run_of(name).export("onnx", tmp_path / "model.onnx", codes=True)
    assert json.loads(mine.read_text()) == take_apart(runs.run_of("labels")).description


def test_a_file_that_is_there_outlives_an_export_that_fails(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("before")
    (tmp_path / "model.json").write_text('{"format": "tidegate-export"}')
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    parts = take_apart(runs.run_of("class"))
    weights = sum(w.nbytes for layer in parts.layers for way in layer for w in way)
    for most in (weights, 2 * weights):  # the constants alone are too large; the file with all its texts is
        monkeypatch.setattr(graph, "LARGEST", most)
        with pytest.raises(SettingsError, match="2 GiB that an ONNX file holds"):
            target.write(parts, path, codes=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "error", [EncodeError("Failed to serialize proto"), ValueError("exceeds maximum protobuf size")]
)
def test_what_protobuf_itself_says_of_a_file_that_is_too_large_is_said_in_the_same_sentence(
    tmp_path, monkeypatch, error
):
    class Model:
        def SerializeToString(self):
            raise error

    monkeypatch.setattr(onnx.helper, "make_model", lambda *_, **__: Model())
    monkeypatch.setattr(onnx.helper, "set_model_props", lambda *_: None)
    with pytest.raises(SettingsError, match="2 GiB that an ONNX file holds"):
        runs.run_of("class").export("onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["learned start", "learned start both ways"])
def test_a_learned_start_stands_in_the_metadata_and_h_0_says_so(name):
    told = json.loads(session_of(name).get_modelmeta().custom_metadata_map["initial_h"])
    initial = runs.run_of(name).model.core.initial_h.detach().numpy()
    np.testing.assert_array_equal(np.array(told, np.float32), initial)
    (said,) = (value.doc_string for value in onnx.load(file_of(name)).graph.input if value.name == "h_0")
    ahead = "" if "both ways" in name else ", or an earlier h_n"
    assert said == f"the state to begin with: initial_h of the metadata{ahead}"
    assert "initial_h" not in session_of("class").get_modelmeta().custom_metadata_map
