"""Tables to sequences: groups, order, splits, columns of every kind, targets of every kind."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from tidegate.data.fitting import fit_preprocessing
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS, TEST, TRAIN, VALID
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table, read_table
from tidegate.errors import RunError


def prepare(frame, seed=0, **settings):
    return fit_preprocessing(read_table(frame), DataSettings.make(**settings), seed)


ALL_TRAIN = (1.0, 0.0, 0.0)


def test_rows_of_a_group_are_gathered_and_ordered_by_time():
    frame = pl.DataFrame(
        {"g": ["b", "a", "b", "a", "b"], "t": [2, 9, 1, 8, 3], "x": [20.0, 90.0, 10.0, 80.0, 30.0], "y": list("pqpqp")}
    )
    pre, data = prepare(frame, target="y", group="g", time="t", split=ALL_TRAIN)
    column = pre.numbers[0]
    assert (data.numbers[:, 0] * column.std + column.mean).round().tolist() == [10, 20, 30, 80, 90]
    assert data.rows.tolist() == [2, 0, 4, 3, 1]
    assert data.offsets.tolist() == [0, 3, 5]


def test_without_time_the_order_of_the_file_is_kept():
    frame = pl.DataFrame({"g": [1, 2, 1, 2], "x": [4.0, 3.0, 2.0, 1.0], "y": list("pqqp")})
    assert prepare(frame, target="y", group="g", split=ALL_TRAIN)[1].rows.tolist() == [0, 2, 1, 3]


def test_several_group_columns_name_a_sequence_together():
    frame = pl.DataFrame({"a": [1, 1, 2, 1], "b": [1, 2, 1, 1], "x": [1.0, 2, 3, 4], "y": list("pqpq")})
    assert prepare(frame, target="y", group=["a", "b"], split=ALL_TRAIN)[1].lengths.tolist() == [2, 1, 1]


def test_a_row_with_list_columns_is_a_sequence_and_empty_ones_are_kept_apart():
    frame = pl.DataFrame({"w": [["A", "b"], [], ["a"]], "k": [1.0, 2.0, 4.0], "y": [["p", "q"], [], ["p"]]})
    pre, data = prepare(frame, target="y", split=ALL_TRAIN)
    assert data.lengths.tolist() == [2, 1]
    assert data.rows.tolist() == [0, 0, 2]
    assert pre.tokens[0].kind == "words"
    assert data.codes[:, 0].tolist() == [1, 2, 1]  # compared in lower case
    assert data.numbers[0] == data.numbers[1]  # a plain cell holds for every step


def test_a_sentence_is_cut_into_words():
    frame = pl.DataFrame({"text": ["It's good, really!", "bad"], "y": ["pos", "neg"]})
    pre, data = prepare(frame, target="y", per="sequence", text="text", split=ALL_TRAIN)
    assert set(pre.tokens[0].vocabulary) == {"it's", "good", ",", "really", "!", "bad"}
    assert data.lengths.tolist() == [5, 1]
    assert data.y.tolist() == [1, 0]


def test_a_sentence_with_a_label_a_word_lines_up():
    frame = pl.DataFrame({"text": ["play b-sides now", "stop"], "tags": ["O B-x O", "O"]})
    pre, data = prepare(frame, target="tags", text=["text", "tags"], split=ALL_TRAIN)
    assert pre.tokens[0].vocabulary == ("b-sides", "now", "play", "stop")
    assert [pre.target.classes[k] for k in data.y] == ["O", "B-x", "O", "O"]


def test_numbers_are_standardised_on_the_training_rows_alone():
    frame = pl.DataFrame(
        {"g": [1, 1, 2, 2, 3, 3], "s": ["train"] * 2 + ["valid"] * 2 + ["test"] * 2, "x": [0.0, 2.0, 50, 50, 99, 99], "y": list("pqpqpq")}
    )  # fmt: skip
    pre, data = prepare(frame, target="y", group="g", split="s")
    assert (pre.numbers[0].mean, pre.numbers[0].std) == (1.0, 1.0)
    assert data.numbers[:, 0].tolist() == [-1, 1, 49, 49, 98, 98]


@pytest.mark.parametrize("unit", [1e-15, 1.0, 1e15])
def test_the_unit_of_a_column_does_not_matter(unit):
    x = np.array([1.0, 2.0, 3.0, 4.0])
    frame = pl.DataFrame({"x": x * unit, "c": np.full(4, 0.1 * unit), "y": list("pqpq")})
    pre, data = prepare(frame, target="y", split=ALL_TRAIN)
    np.testing.assert_allclose(data.numbers[:, 0], (x - 2.5) / x.std(), rtol=1e-6)
    assert pre.numbers[1].std == 1.0  # constant but for rounding
    assert "Column 'c'" in data.notes[-1]


def test_missing_numbers_become_the_mean_with_a_mask_beside_it():
    frame = pl.DataFrame({"x": [1.0, None, 3.0], "z": [1.0, 2.0, 3.0], "y": list("pqp")})
    pre, data = prepare(frame, target="y", split=ALL_TRAIN)
    assert [c.mask for c in pre.numbers] == [True, False]
    assert data.numbers[1].tolist() == [0, 0, 1]
    assert data.numbers[0, 2] == 0


def test_words_and_categories_that_training_never_saw_are_the_unknown_entry():
    frame = pl.DataFrame(
        {"g": [1, 1, 2, 2], "s": ["train"] * 2 + ["test"] * 2, "c": ["u", "v", "w", None], "y": list("pqpq")}
    )
    pre, data = prepare(frame, target="y", group="g", split="s", split_by="time")
    assert pre.tokens[0].vocabulary == ("u", "v")
    assert data.codes[-2:, 0].tolist() == [0, 0]


def test_whole_numbers_can_be_categories():
    frame = pl.DataFrame({"c": [7, 9, 7, None], "y": list("pqpq")})
    pre, data = prepare(frame, target="y", categories="c", split=ALL_TRAIN)
    assert pre.tokens[0].vocabulary == ("7", "9")
    assert data.codes[:, 0].tolist() == [1, 2, 1, 0]


def test_truth_values_are_numbers_as_features_and_classes_as_target():
    frame = pl.DataFrame({"x": [True, False, True], "y": [True, False, False]})
    pre, data = prepare(frame, target="y", split=ALL_TRAIN)
    assert pre.target.classes == (False, True)
    assert data.y.tolist() == [1, 0, 0]
    assert pre.numbers[0].mean == pytest.approx(2 / 3)


def test_dates_that_have_no_role_are_left_out_with_a_note():
    frame = pl.DataFrame(
        {"when": pl.Series(["2026-01-01", "2026-01-02"]).str.to_date(), "x": [1.0, 2.0], "y": list("pq")}
    )
    pre, data = prepare(frame, target="y", split=ALL_TRAIN)
    assert [c.name for c in pre.features] == ["x"]
    assert any("when (Date)" in note for note in data.notes)
    assert any(
        "rows are in the order of the table. If when says" in note and "--time when" in note for note in data.notes
    )
    other = frame.with_columns(t=pl.Series([1, 2]))
    assert not any(
        "order of the table" in note for note in prepare(other, target="y", time="t", split=ALL_TRAIN)[1].notes
    )


@pytest.mark.parametrize(
    ("columns", "settings", "task"),
    [
        ({"y": ["a", "b", "a"]}, {"target": "y"}, "class"),
        ({"y": [3, 5, 3]}, {"target": "y"}, "class"),
        ({"y": [3, 5, 3]}, {"target": "y", "task": "number"}, "number"),
        ({"y": [3.0, 5.0, 3.0]}, {"target": "y", "task": "class"}, "class"),
        ({"y": [0.5, 1.5, 2.5]}, {"target": "y"}, "number"),
        ({"y": [0.5, 1.5, 2.5], "w": [1, 2, 3]}, {"target": ["y", "w"]}, "number"),
        ({"y": [0, 1, 1], "w": [1, 0, None]}, {"target": ["y", "w"]}, "labels"),
    ],
)
def test_the_task_follows_from_the_target(columns, settings, task):
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], **columns})
    assert prepare(frame, split=ALL_TRAIN, **settings)[0].target.task == task


def test_a_missing_target_is_marked_and_not_scored():
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": ["a", None, "b"], "v": [1.5, None, 2.5]})
    assert prepare(frame, target="y", split=ALL_TRAIN, features="x")[1].y.tolist() == [0, MISSING_CLASS, 1]
    assert np.isnan(prepare(frame, target="v", split=ALL_TRAIN, features="x")[1].y[:, 0]).tolist() == [
        False,
        True,
        False,
    ]


def test_a_target_a_sequence_takes_what_the_group_agrees_on():
    frame = pl.DataFrame({"g": [1, 1, 2, 2, 3], "x": [1.0, 2, 3, 4, 5], "y": [None, "b", "a", None, None]})
    data = prepare(frame, target="y", group="g", per="sequence", split=ALL_TRAIN)[1]
    assert data.y.tolist() == [1, 0, MISSING_CLASS]


def test_fractions_are_drawn_by_whole_groups_and_repeat_with_the_seed(signals):
    settings = {"target": "label", "group": "device", "time": "t", "split": (0.5, 0.25, 0.25)}
    _, data = prepare(signals, **settings)
    for s in range(len(data)):
        assert len(set(data.part[data.offsets[s] : data.offsets[s + 1]])) == 1
    of_sequence = data.part[data.offsets[:-1]]
    assert [(of_sequence == p).sum() for p in (TRAIN, VALID, TEST)] == [12, 6, 6]
    assert (prepare(signals, **settings)[1].part == data.part).all()
    assert (prepare(signals, seed=1, **settings)[1].part != data.part).any()


def test_one_sequence_is_cut_by_time():
    frame = pl.DataFrame({"t": range(10), "x": [float(i) for i in range(10)], "y": list("pq" * 5)})
    data = prepare(frame, target="y", time="t", split=(0.6, 0.2, 0.2))[1]
    assert data.part.tolist() == [TRAIN] * 6 + [VALID] * 2 + [TEST] * 2


def test_a_split_column_without_valid_rows_takes_them_from_the_training_rows(signals):
    ids = signals["device"].unique(maintain_order=True).to_list()
    frame = signals.with_columns(
        pl.when(pl.col("device").is_in(ids[:20])).then(pl.lit("train")).otherwise(pl.lit("test")).alias("s")
    )
    data = prepare(frame, target="label", group="device", split="s")[1]
    of_sequence = data.part[data.offsets[:-1]]
    assert [(of_sequence == p).sum() for p in (TRAIN, VALID, TEST)] == [17, 3, 4]


def test_with_few_training_sequences_their_last_rows_validate():
    frame = pl.DataFrame(
        {
            "g": [1] * 20 + [2] * 5,
            "s": ["train"] * 20 + ["test"] * 5,
            "x": [float(i) for i in range(25)],
            "y": list("pqpqp" * 5),
        }
    )
    data = prepare(frame, target="y", group="g", split="s")[1]
    assert data.part.tolist() == [TRAIN] * 17 + [VALID] * 3 + [TEST] * 5
    assert any("the last 15% of each training sequence validate" in note for note in data.notes)


def test_the_fitted_preprocessing_is_json_and_comes_back_equal(signals):
    frame = signals.with_columns(pl.when(pl.col("t") == 2).then(None).otherwise(pl.col("x")).alias("x"))
    pre, _ = prepare(frame, target="label", group="device", time="t")
    again = Preprocessing.from_json(pre.to_json())
    assert again == pre
    assert json.loads(pre.to_json())["features"][0]["name"] == "x"
    with pytest.raises(RunError, match="damaged or was not written by Tidegate"):
        Preprocessing.from_json('{"format": "other"}')


def test_another_table_is_encoded_as_the_training_table_was(signals):
    pre, data = prepare(signals, target="label", group="device", time="t")
    shuffled = signals.sample(fraction=1.0, shuffle=True, seed=3)
    again = pre.apply(read_table(shuffled), with_target=True)
    names = shuffled["device"].to_list()
    for s in range(len(again)):
        rows = again.rows[again.offsets[s] : again.offsets[s + 1]]
        assert len({names[r] for r in rows}) == 1
    order = np.argsort(again.rows)
    original = {(d, t): k for k, (d, t) in enumerate(zip(signals["device"], signals["t"], strict=True))}
    where = [original[key] for key in zip(shuffled["device"], shuffled["t"], strict=True)]
    assert (again.numbers[order] == data.numbers[np.argsort(data.rows)][where]).all()
    assert (again.codes[order] == data.codes[np.argsort(data.rows)][where]).all()
    assert (again.y[order] == data.y[np.argsort(data.rows)][where]).all()


def test_the_place_of_a_row_is_that_of_the_file():
    table = Table(pl.DataFrame({"x": [1]}), "t.parquet")
    assert table.where(0) == "t.parquet, row 1"


def test_a_number_between_two_codes_is_neither_of_them():
    frame = pl.DataFrame({"code": [0.0, 1.0, None, 1.0], "y": list("pqpq")})
    pre, data = prepare(frame, target="y", categories="code", split=ALL_TRAIN)
    assert data.codes[:, 0].tolist() == [2, 1, 0, 1]  # the more frequent one first
    other = pre.apply(read_table(frame.with_columns(pl.col("code") + 0.5)), with_target=False)
    assert other.codes[:, 0].tolist() == [0, 0, 0, 0]
