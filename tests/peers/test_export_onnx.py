"""ONNX files give in ONNX Runtime what the run gives, from text and from codes."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import polars as pl
import pytest
import torch

import tidegate
from tests.helpers import runs
from tests.helpers.onnx_files import (
    CLOSE,
    FOLDER,
    a_run,
    a_state,
    answers,
    assert_same,
    batch_for,
    exported,
    file_of,
    openvino_answers,
    read_as_missing,
    session_of,
    some_sequences,
)
from tidegate.errors import SettingsError
from tidegate.export import take_apart

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("count", [1, 3, 24])
@pytest.mark.parametrize("name", runs.CASES)
def test_every_output_is_the_models_from_no_state_and_from_a_given_one(name, count):
    for with_state in (False, True):
        batch = batch_for(name, count, with_state)
        assert_same(runs.run_of(name), batch, answers(session_of(name), batch))


@pytest.mark.parametrize("name", runs.CASES)
def test_a_single_step_gives_what_the_model_gives(name):
    run, frame = runs.run_of(name), runs.table_of(name)
    if name in runs.WORDS:
        frame = frame.with_columns(pl.col("words", "tags").list.head(1))
    else:
        frame = frame.group_by("device", maintain_order=True).head(1)
    batch = runs.batch_of(run, frame, h_0=a_state(run, frame.height))
    assert batch.numbers.shape[1] == 1
    assert_same(run, batch, answers(session_of(name), batch))


STREAMS = [name for name in runs.CASES if "sequence" not in name and "both ways" not in name]


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("name", STREAMS)
def test_chunks_that_hand_on_the_state_give_what_one_call_gives(name, chunk):
    run = runs.run_of(name)
    batch = runs.batch_of(run, runs.table_of(name), some_sequences(name, 24))
    assert (
        1 <= batch.lengths.min() < batch.lengths.max()
    )  # some end in an early chunk, and keep their state from there on
    parts, state = [], batch.h_0
    for first in range(0, batch.numbers.shape[1], chunk):
        steps = slice(first, first + chunk)
        given = {n: getattr(batch, n)[:, steps] for n in ("numbers", "tokens")}
        there = given["numbers"].shape[1]
        lengths = np.clip(batch.lengths - first, 0, there)
        parts.append(answers(session_of(name), given | {"lengths": lengths, "h_0": state}))
        state = parts[-1]["h_n"]
    joined = {n: np.concatenate([part[n] for part in parts], axis=1) for n in parts[0] if n != "h_n"}
    assert_same(run, batch, joined | {"h_n": state})


@pytest.mark.parametrize("name", runs.CASES)
def test_what_comes_after_a_length_changes_nothing(name):
    run = runs.run_of(name)
    batch = copy.deepcopy(batch_for(name, 24, True))
    outside = ~batch.inside
    assert outside.any()
    clean = answers(session_of(name), batch)
    for number, token in ((np.nan, "colour"), (np.inf, "ä"), (-1e300, "the")):
        batch.numbers[outside], batch.tokens[outside] = number, token
        dirty = answers(session_of(name), batch)
        inside = batch.inside if run.preprocessing.per == "step" else slice(None)
        np.testing.assert_array_equal(dirty["h_n"], clean["h_n"])
        for each in ("prediction", "scores"):
            np.testing.assert_array_equal(dirty[each][inside], clean[each][inside])


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("name", runs.CASES)
def test_inputs_and_outputs_have_the_names_types_and_open_axes_of_the_contract(name, codes):
    run = runs.run_of(name)
    pre, spec = run.preprocessing, run.model.spec
    session = session_of(name, codes)
    layers = spec.num_layers * (2 if spec.bidirectional else 1)
    state = ("tensor(float)", [layers, "B", spec.hidden_size])
    expected = {"lengths": ("tensor(int64)", ["B"]), "h_0": state}
    if pre.numbers:
        expected["numbers"] = ("tensor(double)", ["B", "T", len(pre.numbers)])
    if pre.tokens:
        what = ("codes", "tensor(int64)") if codes else ("tokens", "tensor(string)")
        expected[what[0]] = (what[1], ["B", "T", len(pre.tokens)])
    assert {v.name: (v.type, v.shape) for v in session.get_inputs()} == expected
    shape = [*(["B", "T"] if pre.per == "step" else ["B"]), max(pre.horizon, 1), pre.target.width]
    outputs = {v.name: (v.type, v.shape) for v in session.get_outputs()}
    if pre.target.task == "class":
        kinds = {str: "tensor(string)", int: "tensor(int64)", bool: "tensor(bool)"}
        kind = "tensor(int64)" if codes else kinds[type(pre.target.classes[0])]
        prediction = (kind, shape[:-1])
    else:
        prediction = ("tensor(double)" if pre.target.task == "number" else "tensor(int64)", shape)
    assert outputs.pop("prediction") == prediction
    assert outputs.pop("scores") == ("tensor(float)", shape)
    assert outputs.pop("h_n") == state
    assert outputs == ({} if pre.target.task == "number" else {"probabilities": ("tensor(float)", shape)})


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("name", runs.CASES)
def test_files_pass_onnxs_own_checks_and_everything_in_them_has_a_name(name, codes):
    model = onnx.load(file_of(name, codes))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    versions = {opset.domain: opset.version for opset in model.opset_import}
    has_text = bool(runs.run_of(name).preprocessing.tokens) and not codes
    assert versions == {"": 17} | ({"ai.onnx.ml": 2} if has_text else {})
    assert (model.producer_name, model.producer_version) == ("tidegate", tidegate.__version__)
    assert ", ".join(runs.run_of(name).preprocessing.target.names) in model.doc_string
    assert ("Scan" if name in runs.SCANS else "GRU") in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", runs.CASES)
def test_metadata_say_what_goes_in_and_what_comes_out(name):
    run = runs.run_of(name)
    pre = run.preprocessing
    metadata = session_of(name).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["tidegate"]) == json.loads(take_apart(run).to_json())
    assert json.loads(metadata["columns"]) == [c.label for c in (*pre.numbers, *pre.tokens)]
    assert json.loads(metadata["classes"]) == list(pre.target.classes)
    assert json.loads(metadata["group"]) == list(pre.group)
    assert json.loads(metadata["time"]) == pre.time
    assert metadata["version"] == tidegate.__version__
    assert metadata["missing_text"] == ""


def test_infinities_are_missing_where_training_took_them_so(tmp_path):
    frame = runs.sensors()
    x = frame["x"].to_list()
    x[3:9] = [float("inf"), float("-inf"), float("nan"), 1.0, float("inf"), 2.0]
    frame = frame.with_columns(x=pl.Series(x, dtype=pl.Float64))
    run = a_run(tmp_path, frame, target="label", features=["far", "x"], non_finite="missing")
    _, session = exported(run, tmp_path)
    batch = runs.batch_of(run, frame)
    assert np.isinf(batch.numbers).sum() == 3
    assert_same(run, batch, answers(session, batch))


def test_infinities_and_what_float32_cant_hold_read_as_missing(tmp_path):
    assert runs.run_of("class").preprocessing.non_finite == "error"
    read_as_missing(lambda batch: answers(session_of("class"), batch)["scores"], runs.run_of("class"))


def test_openvino_reads_infinities_as_missing_too(openvino):
    read_as_missing(lambda batch: openvino_answers(file_of("class", codes=True), batch)["scores"], runs.run_of("class"))


@pytest.mark.parametrize("name", ["class", "both ways"])
def test_h_0_of_a_run_that_reads_both_ways_is_not_said_to_go_on(name):
    (said,) = (value.doc_string for value in onnx.load(file_of(name)).graph.input if value.name == "h_0")
    assert said == "the state to begin with: zeros" + (", or an earlier h_n" if name == "class" else "")


def test_an_empty_text_that_training_knew_as_a_category_is_not_the_missing_one(tmp_path):
    frame = runs.sensors().with_columns(
        kind=pl.when(pl.col("x") > 0.5).then(pl.lit("")).when(pl.col("x") > 0).then(pl.lit("<missing>")).otherwise(None)
    )
    run = a_run(tmp_path, frame, target="label", features=["kind"])
    assert set(run.preprocessing.tokens[0].vocabulary) == {"", "<missing>"}
    result, session = exported(run, tmp_path)
    missing = session.get_modelmeta().custom_metadata_map["missing_text"]
    assert missing not in ("", "<missing>")
    assert repr(missing) in str(result)
    batch = runs.batch_of(run, frame)
    batch.tokens[..., 0][batch.inside & (batch.codes[..., 0] == 0)] = missing
    assert_same(run, batch, answers(session, batch))


def test_columns_may_be_called_anything(tmp_path):
    names = ["a", "a/text", "a/embedding", "tokens", "scores", " ", "head/weight", "Ü🙂", "0_a"]
    frame = runs.sensors()
    rng = np.random.default_rng(3)
    frame = frame.with_columns(pl.Series(name, rng.choice(["u", "v", "w"], frame.height)) for name in names)
    run = a_run(tmp_path, frame, target="label", features=names)
    _, session = exported(run, tmp_path)
    batch = runs.batch_of(run, frame)
    assert_same(run, batch, answers(session, batch))


def test_a_column_that_training_never_saw_filled_is_unknown_throughout(tmp_path):
    frame = runs.sensors().with_columns(kind=pl.when(pl.col("split") == "train").then(None).otherwise(pl.col("kind")))
    run = a_run(tmp_path, frame, target="label", features=["x", "kind"], split="split")
    assert run.preprocessing.tokens[0].vocabulary == ()
    _, session = exported(run, tmp_path)
    batch = runs.batch_of(run, frame)
    assert_same(run, batch, answers(session, batch))


def test_words_are_known_in_lower_case_alone_and_the_notes_say_so():
    run = runs.run_of("words")
    batch = runs.batch_of(run, runs.table_of("words"))
    upper = np.vectorize(str.upper, otypes=[object])(batch.tokens)
    unknown = answers(session_of("words"), vars(batch) | {"tokens": np.full_like(upper, "never seen")})
    found = answers(session_of("words"), vars(batch) | {"tokens": upper})
    same = batch.tokens[..., 0] == "7"  # has no upper case
    np.testing.assert_array_equal(found["h_n"][:, ~same.any(1)], unknown["h_n"][:, ~same.any(1)])
    assert "in lower case: words" in str(run.export("onnx", FOLDER / "words.onnx"))


@pytest.mark.parametrize("codes", [False, True])
def test_the_mean_of_a_long_sequence_is_exact_to_rounding(codes):
    run, T = runs.run_of("sequence mean"), 100_000
    session, pre = session_of("sequence mean", codes), run.preprocessing
    means, stds = (np.array([getattr(c, key) for c in pre.numbers]) for key in ("mean", "std"))
    drift = np.linspace(-1, 1, T)[:, None] + 0.3 * np.random.default_rng(1).standard_normal((T, len(means)))
    scaled, code = drift.astype(np.float32), np.ones((T, len(pre.tokens)), np.int64)
    mask = np.zeros((T, sum(c.mask for c in pre.numbers)), np.float32)
    encoded = torch.from_numpy(np.concatenate([scaled, mask], axis=1))[:, None]
    with torch.no_grad():
        right = run.model(encoded, torch.from_numpy(code)[:, None], torch.tensor([T]))[0].numpy()
    spec = run.model.spec
    given = {
        "lengths": np.array([T]),
        "h_0": np.zeros((spec.num_layers, 1, spec.hidden_size), np.float32),
        "codes": code[None],
    }
    given["tokens"] = np.array([[c.vocabulary[0] for c in pre.tokens]] * T, object)[None]
    found = answers(session, given | {"numbers": (means + stds * drift)[None]})["scores"]
    np.testing.assert_allclose(found, right, rtol=0, atol=CLOSE)


def test_classes_beyond_64_bits_are_named_and_their_numbers_can_be_had(tmp_path):
    frame = runs.sensors().with_columns(id=pl.Series([2**63, 2**63 + 1], dtype=pl.UInt64).sample(
        runs.sensors().height, with_replacement=True, seed=1))  # fmt: skip
    run = a_run(tmp_path, frame.with_columns(pl.col("id")), target="id", features=["x"], task="class")
    with pytest.raises(SettingsError, match=r"classes of id hold 9223372036854775808, .* codes=True"):
        exported(run, tmp_path)
    assert exported(run, tmp_path, codes=True)[0].path.is_file()


def test_names_with_line_ends_stay_on_the_line_of_their_note(tmp_path):
    odd = {"x": "x\nInput  evil\x1b[31m", "kind": "kind\r\n", "label": "la\nbel"}
    run = a_run(tmp_path, runs.sensors().rename(odd), target=odd["label"], features=[odd["x"], odd["kind"]])
    said = str(exported(run, tmp_path)[0])
    assert said.splitlines() == said.split("\n")
    assert len([line for line in said.splitlines() if line.startswith("Input")]) == 4
    assert r"x\nInput  evil\x1b[31m" in said
    assert "\x1b" not in said
