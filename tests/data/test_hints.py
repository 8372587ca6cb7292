"""Columns that are hardly features are left out or told of, all of a kind in one note."""

from __future__ import annotations

import polars as pl
import pytest

from tests.helpers.tables import QUICK
from tidegate.cli import main
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.errors import DataError
from tidegate.run import train

N = 60
FRAME = pl.DataFrame({"t": range(N), "x": [((k * 7) % 13) / 4 for k in range(N)], "y": ["p", "q"] * (N // 2)})


def prepare(source, **settings):
    chosen = DataSettings.make(**({"target": "y", "time": "t", "split": (1.0, 0.0, 0.0)} | settings))
    return fit_preprocessing(read_table(source, **chosen.reading), chosen, 0)


def names_and_notes(source, **settings):
    pre, data = prepare(source, **settings)
    return [c.name for c in pre.features], "\n".join(data.notes)


def test_a_good_table_is_told_nothing_but_its_split():
    assert len(prepare(FRAME)[1].notes) == 1


@pytest.mark.parametrize("name", ["__index_level_0__", "__index_level_12__", "Unnamed: 0"])
def test_a_row_number_without_a_name_is_left_out_unless_it_is_asked_for(name):
    frame = FRAME.with_columns(pl.int_range(N).alias(name))
    names, notes = names_and_notes(frame)
    assert names == ["x"]
    assert f"Left out, as a row number without a name (pandas writes its index so): {name!r}." in notes
    assert names_and_notes(frame, features=["x", name])[0] == ["x", name]


def test_the_index_that_pandas_writes_into_csv_is_left_out(tmp_path):
    path = tmp_path / "t.csv"
    lines = FRAME.write_csv().splitlines()
    path.write_text("\n".join(["," + lines[0], *(f"{k},{line}" for k, line in enumerate(lines[1:]))]))
    names, notes = names_and_notes(path)
    assert names == ["x"]
    assert "Left out, as a row number without a name" in notes
    path.write_text("\n".join([",," + lines[0], *(f"a,{k},{line}" for k, line in enumerate(lines[1:]))]))
    names, notes = names_and_notes(path)
    assert names == ["x"]
    assert "'Unnamed: 0', 'Unnamed: 1'." in notes
    named = FRAME.with_columns(pl.int_range(N).alias(""))  # in memory somebody has called it so
    assert names_and_notes(named)[0] == ["x", ""]
    run = train(path, target="y", time="t", out=False, **QUICK)
    assert run.predict(FRAME)["prediction"].to_list() == run.predict(path)["prediction"].to_list()


def test_columns_without_a_value_are_left_out_in_one_note(tmp_path):
    empty = {f"e{k:02d}": pl.lit(None, dtype=pl.Float64 if k % 2 else pl.String) for k in range(37)}
    names, notes = names_and_notes(FRAME.with_columns(**empty))
    assert names == ["x"]
    assert "Left out, as no row has a value: e00, e01, e02, e03, e04, e05, e06, e07, e08, e09 and 27 more." in notes
    path = tmp_path / "t.csv"
    FRAME.with_columns(e=pl.lit("n/a"), f=pl.lit(None, dtype=pl.String)).write_csv(path)
    names, notes = names_and_notes(path)
    assert names == ["x"]
    assert "as no row has a value: e, f." in notes
    with pytest.raises(DataError, match="column 'e01' is empty in every training row"):
        prepare(FRAME.with_columns(**empty), features=["x", "e01"])


def test_identifiers_are_told_of():
    frame = FRAME.with_columns(row=pl.int_range(N) + 1000, uid=pl.format("u-{}", pl.int_range(N)))
    names, notes = names_and_notes(frame)
    assert names == ["x", "row", "uid"]
    assert (
        "Each row has another value in row, uid, as an identifier has. If they are some, leave them out with" in notes
    )
    assert '(--exclude "row,uid")' in notes
    assert "identifier" not in names_and_notes(frame, exclude=["row", "uid"])[1]
    few = frame.with_columns(pl.col("row") % 50, uid=pl.lit("a"))
    assert "identifier" not in names_and_notes(few)[1]


def test_a_text_whose_values_hardly_repeat_is_told_of():
    frame = FRAME.with_columns(code=pl.format("c{}", pl.int_range(N) % 57), few=pl.format("c{}", pl.int_range(N) % 9))
    names, notes = names_and_notes(frame)
    assert names == ["x", "code", "few"]
    assert (
        "Read as a category, although almost every value is another one: code (57 in 60 rows, such as 'c0')." in notes
    )


def test_columns_that_stay_the_same_are_told_of_in_one_note():
    one = names_and_notes(FRAME.with_columns(c=pl.lit(2.5)))[1]
    assert one.endswith("Column 'c' is 2.5 in every training row: it can't help.")
    one = names_and_notes(FRAME.with_columns(c=pl.lit("a")))[1]
    assert one.endswith("Column 'c' is 'a' in every training row: it can't help.")
    many = names_and_notes(FRAME.with_columns(**{f"c{k:02d}": pl.lit(k) for k in range(37)}))[1]
    assert "37 columns are the same in every training row, so they can't help: c00 (0), c01 (1)," in many
    assert many.endswith("c09 (9) and 27 more.")


def test_sentences_get_the_hint_to_cut_them():
    words = ["will", "it", "snow", "in", "oslo", "today", "or", "not"]
    frame = FRAME.with_columns(note=pl.Series([" ".join(words[k % 5 :] + words[: k % 7]) + f" {k}" for k in range(N)]))
    notes = names_and_notes(frame)[1]
    assert "The cells of note hold sentences, and each is read as one category." in notes
    assert "text='note' (--text note)" in notes
    assert "sentences" not in names_and_notes(frame.with_columns(note=pl.lit("same words in every single row")))[1]
    assert "sentences" not in names_and_notes(frame.drop("t"), time=None, text="note", per="sequence")[1]


def test_no_line_lists_hundreds_of_columns(tmp_path, capsys):
    wide = {f"d{k:03d}": pl.lit("2026-01-01").str.to_date() for k in range(300)}
    notes = names_and_notes(FRAME.with_columns(**wide))[1]
    assert "d009 (Date) and 290 more." in notes
    path, out = tmp_path / "t.csv", tmp_path / "p.csv"
    frame = FRAME.with_columns(
        **{f"o{k:03d}": pl.col("x") + k for k in range(40)}, **{f"k{k:02d}": pl.lit("ab"[k % 2]) for k in range(40)}
    )
    frame.write_csv(path)
    targets = [word for k in range(40) for word in ("--target", f"o{k:03d}")]
    quick = ["--hidden-size", "8", "--epochs", "1", "--no-baselines", "--device", "cpu"]
    assert main(["train", str(path), *targets, "--time", "t", "--out", str(tmp_path / "run"), *quick]) == 0
    assert "k08 (1 known value) and 31 more" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "run"), str(path), "-o", str(out)]) == 0
    assert capsys.readouterr().out.endswith("prediction_o008, prediction_o009 and 30 more.\n")
