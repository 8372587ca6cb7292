"""What is read of a word beside which one it is: its shape and its suffix."""

from __future__ import annotations

import json

import polars as pl
import pytest

import tidegate
from tests.helpers.runs import run_of, sentences
from tests.helpers.streams import added, rows_and_keys
from tests.helpers.tables import QUICK
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.data.word_features import shape, suffix
from tidegate.errors import RunError

NAME = "words and their features"
TRAIN = [["Nina", "sings", "a", "song", "a", "day"], ["A", "GRU", "reads", "3.14", "or", None]]
TABLE = pl.DataFrame({"word": TRAIN, "tag": [["x", "y", "y", "x", "y", "x"], ["y", "x", "y", "x", "y", "x"]]})


def fitted(frame=TABLE, **settings):
    return fit_preprocessing(read_table(frame), DataSettings.make(target="tag", split=(1.0, 0.0, 0.0), **settings), 0)


def vocabularies(pre):
    return {column.label: column.vocabulary for column in pre.tokens}


def test_a_word_is_read_with_its_shape_and_its_suffix_each_with_a_vocabulary_of_the_training_rows():
    pre, data = fitted()
    found = vocabularies(pre)
    assert list(found) == ["word", "word (shape)", "word (suffix)"]
    assert set(found["word (shape)"]) == {"Xx", "x", "X", "d.d"}
    assert set(found["word (suffix)"]) == {"ina", "ngs", "a", "ong", "day", "gru", "ads", ".14", "or"}
    read = [[("unknown", *found[column])[code] for column, code in zip(found, row, strict=True)] for row in data.codes]
    assert read[0] == ["nina", "Xx", "ina"]
    assert read[7] == ["gru", "X", "gru"]
    assert read[11] == ["unknown"] * 3  # missing


def test_of_a_word_that_training_never_saw_the_shape_and_the_suffix_are_known():
    pre, _ = fitted()
    codes = pre.apply(read_table({"word": [["Martina", "Zzz"]]}), with_target=False).codes
    shape_of, suffix_of = (vocabularies(pre)[f"word ({kind})"] for kind in ("shape", "suffix"))
    assert codes.tolist() == [
        [0, shape_of.index("Xx") + 1, suffix_of.index("ina") + 1],
        [0, shape_of.index("Xx") + 1, 0],
    ]


def test_a_vocabulary_whose_words_training_saw_often_is_read_alone():
    pre, data = fitted(pl.DataFrame({"word": [["on", "off"] * 60 + ["idle"]], "tag": [["x", "y"] * 60 + ["x"]]}))
    assert list(vocabularies(pre)) == ["word"]  # 1 of 121 was seen once
    assert not any("Word features of" in note for note in data.notes)


def test_word_features_none_reads_the_word_alone_and_the_file_is_of_the_version_before():
    pre, data = fitted(word_features="none")
    assert list(vocabularies(pre)) == ["word"]
    assert data.codes.shape[1] == 1
    assert json.loads(pre.to_json())["version"] == 1


def test_a_note_says_what_is_read_and_how_to_leave_it_out():
    [note] = [note for note in fitted()[1].notes if note.startswith("Word features of word:")]
    assert "its shape and its suffix" in note
    assert "--word-features none" in note


def test_the_fitted_file_comes_back_equal_and_an_earlier_tidegate_would_refuse_it():
    pre, _ = fitted()
    assert Preprocessing.from_json(pre.to_json()) == pre
    assert (
        json.loads(pre.to_json())["version"] == 3
    )  # earlier ones read up to 2, and would take a suffix for a category
    with pytest.raises(RunError, match="written by a newer Tidegate"):
        Preprocessing.from_json(pre.to_json().replace('"version": 3', '"version": 4'))


def test_sentences_that_are_cut_into_words_have_them_too():
    frame = pl.DataFrame({"text": ["Nina sings", "a song", "Play it"], "tag": ["x", "y", "x"]})
    pre, _ = fit_preprocessing(
        read_table(frame), DataSettings.make(target="tag", per="sequence", text="text", split=(1.0, 0.0, 0.0)), 0
    )
    assert list(vocabularies(pre)) == ["text", "text (shape)", "text (suffix)"]
    assert pre.columns == ["text"]


@pytest.mark.parametrize(
    ("word", "shape_is", "suffix_is"),
    [("", "", ""), ("ΟΔΟΣ", "X", "δος"), ("日本", "x", "日本"), ("U.S.A.", "X.X.X.", ".a."), ("x1y22", "xdxd", "y22"), ("--", "--", "--")],
)  # fmt: skip
def test_shape_and_suffix_of_odd_words(word, shape_is, suffix_is):
    assert (shape(word), suffix(word)) == (shape_is, suffix_is)


def test_a_run_that_an_earlier_version_wrote_goes_on_to_read_words_alone(tmp_path):
    frame = sentences(rare=True)
    frame.write_parquet(tmp_path / "table.parquet")
    settings = QUICK | {"target": "tags", "features": ["words"], "epochs": 1}
    tidegate.train(tmp_path / "table.parquet", out=tmp_path / "run", word_features="none", **settings)
    config = tmp_path / "run" / "config.yaml"
    before = config.read_text()
    config.write_text("".join(line for line in before.splitlines(keepends=True) if "word_features" not in line))
    assert config.read_text() != before
    run = tidegate.load(tmp_path / "run")
    assert run.settings.word_features == "none"
    assert run.evaluate(tmp_path / "table.parquet", rows="train").model.count > 0
    again = tidegate.train(config=config, out=tmp_path / "again", progress=False)
    assert [column.kind for column in again.preprocessing.tokens] == ["words"]


def test_inspect_tells_how_a_prediction_leans_on_a_word_with_its_looks_as_one_column():
    run, frame = run_of(NAME), sentences(rare=True)
    found = run.inspect(frame)
    assert [column.name for column in found.columns] == ["words"]
    assert found.columns[0].features == tuple(range(run.model.spec.input_width))
    assert found.columns[0].values == frame["words"][0].to_list()


def test_a_stream_reads_words_with_their_looks_to_the_bit_as_predict_does():
    run, frame = run_of(NAME), sentences(rare=True)
    rows, keys = rows_and_keys(run, frame)
    stream = run.stream(probabilities=True)
    assert [stream.push(row, key) for row, key in zip(rows, keys, strict=True)] == added(run, frame).to_dicts()
    assert stream.columns == ["words"]
