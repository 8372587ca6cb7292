"""Classes that no training row has: they are told, scored as missed, and never taken for another class."""

from __future__ import annotations

import json
import warnings

import numpy as np
import polars as pl
import pytest

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, same_weights
from tidegate.cli import main
from tidegate.data.tables import read_table, write_table
from tidegate.errors import DataError, DataWarning
from tidegate.training import train

PARTS = {f"d{g}": "train" if g < 16 else "valid" if g < 20 else "test" for g in range(24)}


def parted(**labels: str) -> pl.DataFrame:
    """Signals with a split column; some devices have another label throughout."""
    frame = signal_table().with_columns(s=pl.col("device").replace_strict(PARTS))
    for device, label in labels.items():
        frame = frame.with_columns(
            label=pl.when(pl.col("device") == device).then(pl.lit(label)).otherwise(pl.col("label"))
        )
    return frame


def accuracy(run, frame: pl.DataFrame, target: str = "label") -> float:
    """Counted here, by the names of the classes."""
    predicted = run.predict(frame)
    return float((predicted["prediction"] == predicted[target]).mean())


def told(run) -> list[str]:
    return [note for note in run.resolved["notes"] if "no training row has" in note]


def test_a_class_in_validation_and_test_rows_alone_is_told_once_and_counts_as_missed(tmp_path):
    frame = parted(d17="sideways", d22="sideways")
    counts = {d: frame.filter(device=d).height for d in ("d17", "d22")}
    run = train(frame, out=tmp_path / "run", split="s", **(QUICK | ROLES))
    assert told(run) == [
        f"Column 'label': {sum(counts.values())} rows ({counts['d17']} valid, {counts['d22']} test) hold a class that no training "
        "row has: 'sideways'. It counts as missed in every figure, and the loss leaves it out."
    ]
    assert run.preprocessing.target.classes == ("down", "up")
    test = frame.filter(s="test")
    assert run.results.model.count == test.height
    assert run.results.model.summary["accuracy"] == pytest.approx(accuracy(run, test))
    majority = run.results.baselines["majority class"]
    most = frame.filter(s="train")["label"].mode()[0]
    assert majority.count == test.height
    assert majority.summary["accuracy"] == pytest.approx(float((test["label"] == most).mean()))
    valid = frame.filter(s="valid")
    best = run.history[run.resolved.best_epoch - 1]
    assert best["valid_accuracy"] == pytest.approx(accuracy(run, valid))
    row = next(row for row in run.results.model.rows if row["class"] == "sideways")
    assert row == {"class": "sideways", "precision": 0.0, "recall": 0.0, "f1": 0.0, "count": counts["d22"]}


def test_the_loss_leaves_such_rows_out_so_the_weights_are_those_without_them(tmp_path):
    frame = parted(d17="sideways", d22="sideways")
    emptied = frame.with_columns(
        label=pl.when(pl.col("label") == "sideways").then(None).otherwise(pl.col("label")).alias("label")
    )
    with_them = train(frame, out=tmp_path / "a", split="s", **(QUICK | ROLES))
    without = train(emptied, out=tmp_path / "b", split="s", **(QUICK | ROLES))
    assert same_weights(with_them, without)
    assert [r["valid_loss"] for r in with_them.history] == [r["valid_loss"] for r in without.history]
    assert with_them.results.loss == without.results.loss
    assert (tmp_path / "a/preprocessing.json").read_text() == (tmp_path / "b/preprocessing.json").read_text()


def test_at_most_five_such_classes_are_named(tmp_path):
    frame = parted(**{f"d{g}": f"new{g}" for g in range(16, 23)})
    run = train(frame, out=tmp_path / "run", split="s", **(QUICK | ROLES))
    (note,) = told(run)
    assert note.count("'new") == 5
    assert " and 2 more. They count as missed" in note
    report = (tmp_path / "run/report.md").read_text()
    assert "that no training row has" in report


def test_a_part_without_a_class_that_training_saw_is_told_and_not_scored(tmp_path):
    valid = parted(**dict.fromkeys(("d16", "d17", "d18", "d19"), "new"))
    run = train(valid, out=tmp_path / "valid", split="s", **(QUICK | ROLES))
    assert any(
        "No validation row has a class that training saw: the weights of the last" in n for n in run.resolved.notes
    )
    assert run.resolved.best_epoch == run.resolved.epochs_run
    test = parted(**dict.fromkeys(("d20", "d21", "d22", "d23"), "new"))
    run = train(test, out=tmp_path / "test", split="s", **(QUICK | ROLES))
    assert any("No test row has a class that training saw: other rows are scored" in n for n in run.resolved.notes)
    assert run.results.what.startswith("the valid rows")


def test_the_classes_are_named_in_the_order_of_their_scored_rows(tmp_path, signals):
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    new = signals.head(12).with_columns(
        label=pl.Series(["c", "b", "b", "z", "up", "a", "z", "z", "up", "up", "d", "e"])
    )
    with pytest.warns(DataWarning, match="never saw: 'z', 'b', 'a', 'c', 'd' and 1 more"):
        run.evaluate(new)


def test_a_later_table_with_a_new_class_is_evaluated_with_a_warning(tmp_path, signals, capsys):
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    new = signals.with_columns(
        label=pl.when(pl.col("device").is_in(["d3", "d4"])).then(pl.lit("new")).otherwise(pl.col("label"))
    )
    rows = int((new["label"] == "new").sum())
    with pytest.warns(DataWarning) as caught:
        evaluation = run.evaluate(new)
    (warning,) = caught
    assert str(warning.message) == (
        f"Column 'label': {rows} of {new.height} scored targets of all rows of the table are of a class that training never "
        "saw: 'new'. They count as missed in every figure, and the loss leaves them out."
    )
    assert evaluation.model.count == new.height
    assert evaluation.model.summary["accuracy"] == pytest.approx(accuracy(run, new))
    known = run.evaluate(new.filter(pl.col("label") != "new"))
    assert evaluation.loss == pytest.approx(known.loss)
    write_table(new, tmp_path / "new.csv")
    assert main(["evaluate", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("Warning:") == 1
    assert f"Warning: Column 'label': {rows} of {new.height} scored targets of all rows of new.csv" in shown.err
    assert json.loads(shown.out)["model"]["count"] == new.height
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.evaluate(signals)


def test_a_table_without_any_class_that_training_saw_gets_a_sentence(tmp_path, signals):
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    upper = signals.with_columns(pl.col("label").str.to_uppercase())
    with pytest.raises(DataError) as error:
        run.evaluate(upper)
    assert str(error.value) == (
        "Nothing to score: no target among all rows of the table is of a class that training saw ('down' and 'up'). They are "
        + ("'UP' and 'DOWN'." if (upper["label"] == "UP").mean() >= 0.5 else "'DOWN' and 'UP'.")
    )


def test_one_prediction_a_sequence_misses_the_sequences_of_a_new_class(tmp_path):
    frame = parted().with_columns(label=pl.col("label").last().over("device"))
    frame = frame.with_columns(label=pl.when(pl.col("device") == "d22").then(pl.lit("rare")).otherwise(pl.col("label")))
    run = train(frame, out=tmp_path / "run", split="s", per="sequence", **(QUICK | ROLES))
    assert told(run)[0].startswith(
        "Column 'label': 1 sequence (1 test) holds a class that no training row has: 'rare'. It counts"
    )
    each = run.predict(frame.filter(s="test")).group_by("device").first()
    assert run.results.model.count == 4
    assert run.results.model.summary["accuracy"] == pytest.approx((each["prediction"] == each["label"]).mean())
    with pytest.warns(DataWarning, match=r"1 of 4 scored targets of the test rows .* is of a class .* It counts"):
        run.evaluate(frame)


def sessions() -> pl.DataFrame:
    """Items of sessions; the test sessions hold items of their own, the validation sessions too."""
    rng = np.random.default_rng(0)
    rows = []
    for s in range(30):
        part = "train" if s < 20 else "valid" if s < 25 else "test"
        for k in range(6):
            item = rng.choice(["a", "b", "c"]) if part == "train" or k % 3 else f"{part}{s % 2}"
            rows.append((s, k, str(item), part))
    return pl.DataFrame(rows, schema=["s", "k", "item", "part"], orient="row")


@pytest.mark.parametrize("horizon", [1, 2])
def test_next_items_that_training_never_saw_are_missed(tmp_path, horizon):
    frame = sessions()
    settings = {"target": "item", "group": "s", "time": "k", "split": "part", "horizon": horizon}
    run = train(frame, out=tmp_path / "run", **(QUICK | settings))
    test = frame.filter(part="test")
    predicted = run.predict(test)
    hits = []
    for ahead in range(1, horizon + 1):
        name = "prediction" if horizon == 1 else f"prediction_{ahead}"
        truth = predicted.select(pl.col("item").shift(-ahead).over("s"))["item"]
        hits += [p == t for p, t in zip(predicted[name], truth, strict=True) if t is not None]
    assert run.results.model.count == len(hits)
    assert run.results.model.summary["accuracy"] == pytest.approx(np.mean(hits))
    # A rule that repeats what it read can name such an item, so it is right where that comes again.
    last = [
        test["item"][i] == test["item"][i + ahead]
        for ahead in range(1, horizon + 1)
        for i in range(test.height - ahead)
        if test["s"][i] == test["s"][i + ahead]
    ]
    assert run.results.baselines["last value"].summary["accuracy"] == pytest.approx(np.mean(last))


def test_a_span_of_a_kind_that_training_never_saw_is_a_missed_span(tmp_path):
    sentences = [(["play", "one", "song"], ["O", "B-x", "I-x"])] * 20
    new = [(["play", "new", "song", "one"], ["O", "B-y", "I-y", "B-x"]), (["play", "one", "song"], ["O", "B-x", "odd"])]
    frame = pl.DataFrame(
        [(*row, "train") for row in sentences] + [(*row, part) for part in ("valid", "test") for row in new],
        schema=["word", "tag", "part"],
        orient="row",
    )
    run = train(frame, target="tag", split="part", out=tmp_path / "run", **(QUICK | {"epochs": 12}))
    figures = run.results.model
    assert {"span_f1", "span_recall", "accuracy"} <= set(figures.summary)
    rows = {row["class"]: row for row in figures.rows}
    assert rows["y"]["count"] == 1
    assert rows["y"]["recall"] == 0.0
    assert rows["x"]["count"] == 2  # a word of no kind ends the span before it
    assert figures.count == 7


def test_whole_numbers_and_yes_no_take_no_new_class_for_another(tmp_path):
    frame = parted().with_columns(label=(pl.col("label") == "up").cast(pl.Int64))
    frame = frame.with_columns(label=pl.when(pl.col("device") == "d22").then(7).otherwise(pl.col("label")))
    run = train(frame, out=tmp_path / "numbers", split="s", **(QUICK | ROLES))
    assert told(run)[0].endswith("If the values are amounts, say task='number' (--task number).")
    test = frame.filter(s="test")
    assert run.results.model.summary["accuracy"] == pytest.approx(accuracy(run, test))
    with pytest.warns(DataWarning, match="a class that training never saw: 7"):
        assert run.evaluate(test.with_columns(pl.col("label").cast(pl.Float64)), rows="all").model.count == test.height
    with pytest.warns(DataWarning, match="a class that training never saw: 7"):
        run.evaluate(test.with_columns(pl.col("label").cast(pl.UInt8)), rows="all")
    yes_no = parted().with_columns(label=pl.col("label") == "up")
    run = train(yes_no, out=tmp_path / "yes_no", split="s", **(QUICK | ROLES))
    with pytest.warns(DataWarning, match="a class that training never saw: 7"):
        found = run.evaluate(frame.filter(s="test"), rows="all")
    predicted = run.predict(test)
    right = [int(p) == t for p, t in zip(predicted["prediction"], predicted["label"], strict=True)]
    assert found.model.summary["accuracy"] == pytest.approx(np.mean(right))


def test_whole_numbers_of_a_narrower_type_are_the_classes_that_they_were(tmp_path):
    frame = parted().with_columns(label=pl.when(pl.col("label") == "up").then(300).otherwise(2))
    run = train(frame, out=tmp_path / "run", split="s", **(QUICK | ROLES))
    small = frame.filter(pl.col("label") == 2).with_columns(pl.col("label").cast(pl.UInt8)).drop("s")
    assert run.evaluate(small).model.summary["accuracy"] == pytest.approx(accuracy(run, small))


@pytest.mark.parametrize(
    ("table", "options"),
    [
        ("words.csv", ["--target", "word", "--horizon", "1"]),
        ("words.csv", ["--target", "word", "--horizon", "1", "--group", "line"]),
        ("lines.csv", ["--target", "line", "--horizon", "1", "--text", "line"]),
    ],
)
def test_the_next_word_can_be_one_that_training_never_saw(tmp_path, capsys, table, options):
    rng = np.random.default_rng(1)
    lines = [[f"w{v}" for v in rng.zipf(1.5, size=8).clip(max=4000)] for _ in range(120)]
    rows = [(k, word) for k, line in enumerate(lines) for word in line]
    write_table(pl.DataFrame(rows, schema=["line", "word"], orient="row"), tmp_path / "words.csv")
    write_table(pl.DataFrame({"line": [" ".join(line) for line in lines]}), tmp_path / "lines.csv")
    quick = ["--hidden-size", "8", "--epochs", "1", "--no-baselines", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / table), *options, *quick]) == 0
    shown = capsys.readouterr().err
    assert shown.count("that no training row has") == 1
    assert "majority class" in shown
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / table), "-o", str(tmp_path / "p.parquet")]) == 0
    assert read_table(tmp_path / "p.parquet").frame["prediction"].null_count() == 0
