"""Every mistake a table can hold gets a sentence with its place and the way out, before anything is written."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from tests.helpers.tables import QUICK, signal_table
from tidegate.errors import DataError, SettingsError, UserError
from tidegate.training import train

ROLES = {"target": "label", "group": "device", "time": "t"}


def complaint(tmp_path, frame, **settings) -> str:
    with pytest.raises(UserError) as error:
        train(frame, out=tmp_path / "run", **(QUICK | settings))
    assert not (tmp_path / "run").exists(), "nothing half-written stays"
    return str(error.value)


def change(frame: pl.DataFrame, row: int, **values) -> pl.DataFrame:
    """The frame with some cells of one row replaced."""
    index = pl.int_range(frame.height)
    return frame.with_columns(
        pl.when(index == row).then(pl.lit(v)).otherwise(pl.col(c)).alias(c) for c, v in values.items()
    )


@pytest.mark.parametrize(
    ("role", "name", "near"),
    [
        ("target", "lable", "label"),
        ("group", "Devices", "device"),
        ("time", "T", "t"),
        ("features", "colr", "colour"),
        ("split", "labl", "label"),
    ],
)
def test_an_unknown_column_is_answered_with_the_nearest_one(tmp_path, signals, role, name, near):
    message = complaint(tmp_path, signals, **(ROLES | {role: name}))
    assert f"no {role.rstrip('s')} column {name!r}" in message
    assert f"Did you mean {near!r}?" in message


def test_no_target_at_all_lists_the_columns(tmp_path, signals):
    assert "name the column to predict" in complaint(tmp_path, signals, group="device")


def test_a_target_with_one_class_is_refused(tmp_path, signals):
    frame = signals.with_columns(label=pl.lit("same"))
    assert "the target 'label' has one class: it holds only 'same'" in complaint(tmp_path, frame, **ROLES)


def test_a_constant_number_is_no_target(tmp_path, signals):
    frame = signals.with_columns(label=pl.lit(2.5))
    assert "is 2.5 in every training row" in complaint(tmp_path, frame, **ROLES)


def test_text_in_a_number_column_is_named_with_its_row(tmp_path, signals):
    frame = change(signals.with_columns(pl.col("x").cast(pl.String)), 6, x="broken")
    message = complaint(tmp_path, frame, **ROLES)
    assert "row 7, column 'x': 'broken' is not a number" in message
    assert "categories='x'" in message
    run = train(frame, out=tmp_path / "run", categories="x", **(QUICK | ROLES))
    assert "x" in run.resolved["categories"]


def test_numbers_with_a_decimal_comma_are_not_taken_for_categories(tmp_path, signals):
    path = tmp_path / "t.csv"
    frame = signals.with_columns(pl.col("x").round(2).cast(pl.String).str.replace(".", ",", literal=True))
    frame.write_csv(path, separator=";")
    for roles in (ROLES, ROLES | {"target": "x"}):
        message = complaint(tmp_path, path, **roles)
        assert f"t.csv, line 2, column 'x': {frame['x'][0]!r} looks like a number with a decimal comma" in message
        assert "--decimal-comma" in message
    run = train(path, out=tmp_path / "run", decimal_comma=True, **(QUICK | ROLES))
    assert run.resolved["numbers"] == ["x"]
    assert run.predict(path)["x"].to_list() == signals["x"].round(2).to_list()
    run = train(path, out=tmp_path / "codes", categories="x", **(QUICK | ROLES))
    assert "x" in run.resolved["categories"]


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_nan_and_infinity_are_named_with_their_row_and_can_be_taken_as_missing(tmp_path, signals, value, shown):
    frame = change(signals, 6, x=value)
    message = complaint(tmp_path, frame, **ROLES)
    assert f"row 7, column 'x': {shown} is not a finite number" in message.lower()
    assert "non_finite='missing'" in message
    train(frame, out=tmp_path / "run", non_finite="missing", **(QUICK | ROLES))


def test_a_time_stamp_that_occurs_twice_in_a_group_is_named(tmp_path, signals):
    frame = change(signals, 3, t=2)
    message = complaint(tmp_path, frame, **ROLES)
    assert "row 3 and row 4, column 't': the time 2 of device='d0' occurs twice" in message
    # In two groups the same time is no mistake.
    assert signals["t"].is_duplicated().any()


def test_a_missing_time_and_a_missing_group_are_named(tmp_path, signals):
    assert "row 4, column 't': the time is missing" in complaint(tmp_path, change(signals, 3, t=None), **ROLES)
    assert "row 4, column 'device': the group is missing" in complaint(
        tmp_path, change(signals, 3, device=None), **ROLES
    )


def test_values_beyond_what_can_be_squared_are_refused(tmp_path, signals):
    frame = signals.with_columns(x=pl.col("x") * 1e300)
    message = "the values of column 'x' are too large"
    assert message in complaint(tmp_path, frame, **ROLES)
    assert message in complaint(tmp_path, frame, **(ROLES | {"target": "x"}))


def test_a_target_of_lists_needs_a_feature_of_lists(tmp_path, signals):
    frame = pl.DataFrame({"x": [1.0, 2.0] * 8, "y": [["p", "q"], ["q"]] * 8})
    assert "the target 'y' holds lists and no feature does" in complaint(tmp_path, frame, target="y")


def test_columns_that_can_not_be_read_are_named_where_none_is_left(tmp_path, signals):
    frame = signals.select("label", when=pl.lit(dt.date(2026, 11, 23)))
    assert "neither numbers nor text: when (Date)" in complaint(tmp_path, frame, target="label")


def test_time_as_text_is_refused_as_it_would_sort_wrongly(tmp_path, signals):
    frame = signals.with_columns(t=pl.format("step {}", "t"))
    assert "column 't': 'step 0' is not a time" in complaint(tmp_path, frame, **ROLES)
    frame = frame.with_columns(pl.col("t").cast(pl.Categorical))
    assert "column 't': 'step 0' is not a time" in complaint(tmp_path, frame, **ROLES)


def test_a_group_in_two_splits_is_refused(tmp_path, signals):
    frame = signals.with_columns(s=pl.when(pl.int_range(pl.len()) < 2).then(pl.lit("test")).otherwise(pl.lit("train")))
    message = complaint(tmp_path, frame, split="s", **ROLES)
    assert "the group device='d0' is in two splits (test and train)" in message


def test_a_word_in_the_split_column_that_is_no_part_is_named(tmp_path, signals):
    frame = signals.with_columns(s=pl.lit("train"))
    assert "row 5, column 's': 'holdout' is not a part" in complaint(
        tmp_path, change(frame, 4, s="holdout"), split="s", **ROLES
    )


def test_groups_of_one_row_are_no_sequences(tmp_path, signals):
    frame = signals.with_columns(device=pl.int_range(pl.len()))
    assert "every group of 'device' has one row" in complaint(tmp_path, frame, **ROLES)


def test_one_group_of_one_row_is_told_of_and_does_not_stop_a_forecast(tmp_path, signals):
    extra = signals.head(1).with_columns(device=pl.lit("alone"))
    run = train(pl.concat([signals, extra]), out=tmp_path / "run", horizon=1, **(QUICK | ROLES | {"target": "x"}))
    assert any("1 of 25 sequences have at most 1 rows (the first: device='alone')" in n for n in run.resolved["notes"])


def test_a_horizon_beyond_every_sequence_is_refused(tmp_path, signals):
    message = complaint(tmp_path, signals, horizon=50, **(ROLES | {"target": "x"}))
    assert "horizon=50 needs sequences of at least 51 rows; the longest has 15" in message


def test_a_horizon_that_leaves_the_training_rows_nothing_to_learn_is_refused(tmp_path, signals):
    frame = signals.with_columns(s=pl.Series(["train", "test"] * signals.height).head(signals.height)).drop("device")
    message = complaint(tmp_path, frame.drop("t"), target="label", split="s", horizon=1)
    assert "no training row has a target to learn from: horizon=1" in message


@pytest.mark.parametrize("task", ["class", "labels", "number"])
@pytest.mark.parametrize("when", [dt.datetime(2026, 11, 23, 14, 5), dt.date(2026, 11, 23), dt.timedelta(hours=1)])
def test_a_time_is_no_target(tmp_path, signals, task, when):
    frame = signals.with_columns(label=pl.lit(when))
    assert "the target 'label' holds" in complaint(tmp_path, frame, task=task, **ROLES)


def test_a_window_longer_than_every_sequence_is_refused(tmp_path, signals):
    message = complaint(tmp_path, signals, window=100, **ROLES)
    assert "window=100 is longer than every training sequence (the longest has 15 rows)" in message


def test_a_target_that_changes_within_a_group_is_refused_per_sequence(tmp_path, signals):
    message = complaint(tmp_path, signals, per="sequence", **ROLES)
    assert "With per='sequence' the target must be constant within a group" in message
    assert "device='d" in message


def test_lists_of_different_lengths_in_a_row_are_named(tmp_path):
    frame = pl.DataFrame({"w": [["a", "b"], ["c"]], "y": [["p", "q"], ["p", "q"]]})
    message = complaint(tmp_path, frame, target="y")
    assert "row 2: 'w' has 1 items and 'y' has 2. The lists of a row must be equally long" in message


def test_a_mistyped_setting_is_answered_with_the_nearest_one(tmp_path, signals):
    assert "no setting 'hiden_size'. Did you mean 'hidden_size'?" in complaint(tmp_path, signals, hiden_size=3, **ROLES)
    config = tmp_path / "c.yaml"
    config.write_text("target: label\nlearning_rte: 0.1\nbatchsize: 3\n")
    message = complaint(tmp_path, signals, config=config)
    assert "c.yaml: there is no setting 'learning_rte'" in message
    config.write_text("target: label\nbatchsize: 3\n")
    assert "Did you mean 'batch_size'?" in complaint(tmp_path, signals, config=config)
    config.write_text("target: [label\n")
    assert "not YAML" in complaint(tmp_path, signals, config=config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0: expected at least 1."),
        ({"dropout": 1.0}, "dropout=1.0: expected less than 1."),
        ({"cell": "transformer"}, "cell='transformer': expected one of 'gru', 'mingru', 'lstm', 'rnn' or 'none'."),
        ({"lr": -1}, "lr=-1: expected more than 0."),
        ({"epochs": "many"}, "epochs='many':"),
        ({"split": (0.5, 0.5, 0.5)}, "three fractions that sum to 1"),
        ({"horizon": 2, "per": "sequence"}, "use one of them"),
        ({"horizon": 1, "bidirectional": True}, "would read the values it is to predict"),
        ({"features": ["x", "label"]}, "the model would read the answer"),
        ({"task": "number"}, "the target 'label' holds String; task='number' needs numbers"),
        ({"device": "abacus"}, "device='abacus' can't be used here"),
        ({"residual": True}, "residual=True needs a forecast of numbers"),
        ({"target": 3}, "target=3: expected a column's name or a list of them."),
        ({"device": "gpu"}, "PyTorch has no device of that name. Say cpu, cuda (an NVIDIA or AMD GPU"),
        ({"device": "meta"}, "This machine has: cpu"),
        ({"device": "meta"}, "device='meta' can't be used here"),
        ({"exclude": ["x", "colour"]}, "no column is left to read"),
        ({"group": ["device", "device"]}, "group names the column 'device' twice"),
        ({"target": ["label", "label"]}, "target names the column 'label' twice"),
        ({"time": "device"}, "group and time both name the column 'device'"),
        ({"text": "colour", "exclude": "colour"}, "text names the column 'colour', which isn't read"),
        ({"categories": "colour", "features": "x"}, "categories names the column 'colour', which isn't read"),
        ({"task": "labels"}, "the target 'label' holds text; task='labels' needs columns of 0 and 1"),
        ({"hidden_size": 10**7}, "The memory doesn't suffice for hidden_size=10000000"),
    ],
)
def test_an_impossible_setting_says_what_is_possible(tmp_path, signals, settings, message):
    assert message in complaint(tmp_path, signals, **(ROLES | settings))


def test_many_whole_numbers_as_a_target_ask_whether_they_are_amounts(tmp_path, signals):
    frame = signals.with_columns(label=pl.int_range(pl.len()))
    question = "Are they amounts (task='number', --task number) or classes (task='class', --task class)?"
    assert question in complaint(tmp_path, frame, **ROLES)


def counts(signals: pl.DataFrame, most: int) -> pl.DataFrame:
    return signals.with_columns(sold=pl.int_range(pl.len()) * 7 % (most + 1))


@pytest.mark.parametrize("most", [3, 30, 200])
def test_whole_numbers_several_steps_ahead_are_a_forecast_of_numbers(tmp_path, signals, most):
    roles = ROLES | {"target": "sold"}
    run = train(counts(signals, most), out=tmp_path / "run", horizon=3, **(QUICK | roles))
    assert run.preprocessing.target.task == "number"
    assert any(
        "The target 'sold' is taken as a number, as 3 values" in n and "--task class" in n for n in run.resolved.notes
    )
    run = train(counts(signals, most), out=tmp_path / "classes", horizon=3, task="class", **(QUICK | roles))
    assert run.preprocessing.target.task == "class"
    run = train(counts(signals, most), out=tmp_path / "no_horizon", **(QUICK | roles | {"task": "class"}))
    assert run.preprocessing.target.task == "class"


def test_the_next_whole_number_alone_is_asked_about_unless_it_is_a_code(tmp_path, signals):
    frame, roles = counts(signals, 30), ROLES | {"target": "sold"}
    message = complaint(tmp_path, frame, horizon=1, **roles)
    assert "holds 31 different whole numbers. Are they amounts (task='number', --task number) or classes" in message
    run = train(frame, out=tmp_path / "codes", horizon=1, categories="sold", **(QUICK | roles))
    assert run.preprocessing.target.task == "class"
    run = train(counts(signals, 1), out=tmp_path / "two", horizon=3, **(QUICK | roles))
    assert run.preprocessing.target.task == "class"


def test_a_column_that_is_empty_in_training_is_refused(tmp_path, signals):
    later = pl.col("device").is_in(["d22", "d23"])
    frame = signals.with_columns(
        x=pl.when(later).then(pl.col("x")), s=pl.when(later).then(pl.lit("test")).otherwise(pl.lit("train"))
    )
    assert "column 'x' is empty in every training row" in complaint(tmp_path, frame, split="s", **ROLES)


def test_labels_other_than_0_and_1_are_named(tmp_path, signals):
    frame = signals.with_columns(a=pl.lit(1), b=pl.int_range(pl.len()) % 2)
    message = complaint(tmp_path, change(frame, 4, b=7), target=["a", "b"], task="labels", group="device", time="t")
    assert "row 5, column 'b': 7 is no label; 0 or 1 is expected" in message


def test_a_new_table_is_held_to_the_same_standard(tmp_path, signals):
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    with pytest.raises(DataError, match="no feature column 'colour'"):
        run.predict(signals.drop("colour"))
    with pytest.raises(DataError, match="no target column 'label'"):
        run.evaluate(signals.drop("label"))
    with pytest.raises(DataError, match="row 3, column 'x': 'abc' is not a number"):
        run.predict(change(signals.with_columns(pl.col("x").cast(pl.String)), 2, x="abc"))
    with pytest.raises(DataError, match="the target 'label' holds Int64; in training it held text"):
        run.evaluate(signals.with_columns(label=pl.lit(1, dtype=pl.Int64)))
    with pytest.raises(DataError, match="hold no target value"):
        run.evaluate(signals.with_columns(label=pl.lit(None, dtype=pl.String)))
    with pytest.raises(DataError, match="hold no target value"):
        run.evaluate(signals.with_columns(label=pl.lit(None)))
    with pytest.raises(DataError, match=r"row 3, column 'x': 1e\+300 is too far from the training rows"):
        run.predict(change(signals, 2, x=1e300))
    with pytest.raises(DataError, match="column 'colour' holds Date; in training it held categories"):
        run.predict(signals.with_columns(colour=pl.lit(dt.date(2026, 11, 23))))
    for size in (0, -3, "3", 1.5):
        with pytest.raises(SettingsError, match=r"batch_size=.*expected a whole number of at least 1"):
            run.predict(signals, batch_size=size)
    with pytest.raises(SettingsError, match="this run predicts"):
        train(signals, out=tmp_path / "r2", **(QUICK | ROLES | {"target": "x"})).predict(signals, probabilities=True)


def test_the_smallest_tables_are_refused_or_work(tmp_path):
    frame = signal_table(groups=2, least=1, most=2)
    with pytest.raises(UserError):
        train(frame.head(1), out=tmp_path / "run", **(QUICK | ROLES))


def test_a_time_that_ends_one_group_may_begin_the_next(tmp_path):
    frame = pl.DataFrame({"g": [1, 1, 2, 2], "t": [0, 1, 1, 2], "x": [1.0, 2.0, 3.0, 4.0], "y": list("pqpq")})
    settings = {"target": "y", "group": "g", "time": "t", "split": (1.0, 0.0, 0.0)}
    assert train(frame, out=tmp_path / "run", **(QUICK | settings)).resolved["parts"]["train"]["sequences"] == 2


@pytest.mark.parametrize("values", [pl.lit(b"1"), pl.struct("t")])
def test_a_time_column_of_another_type_is_refused(tmp_path, signals, values):
    message = complaint(tmp_path, signals.with_columns(at=values), **(ROLES | {"time": "at"}))
    assert "column 'at' holds " in message


@pytest.mark.parametrize("values", [pl.duration(hours="t"), pl.struct("t"), pl.lit(b"\xff")])
def test_a_split_column_of_another_type_is_refused(tmp_path, signals, values):
    message = complaint(tmp_path, signals.with_columns(s=values), split="s", **ROLES)
    assert "column 's' holds " in message or "is not a part" in message
