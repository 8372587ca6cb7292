"""Lists and patterns of columns, as a command line has them."""

from __future__ import annotations

import polars as pl
import pytest

from tidegate.cli import main
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table
from tidegate.errors import DataError, SettingsError
from tidegate.run import load, train

N = 40
COLUMNS = ["t", "g", "x1", "x2", "tmp_a", "tmp_b", "o1", "o2", "temp [C]"]
FRAME = pl.DataFrame(
    {name: [((k + 3) * (j + 7) % 11) / 4 for k in range(N)] for j, name in enumerate(COLUMNS)}
).with_columns(t=pl.int_range(N), g=pl.int_range(N) % 8, y=pl.Series(["p", "q"] * (N // 2)))


def columns(frame=FRAME, **settings):
    chosen = DataSettings.make(**({"target": "y", "split": (1.0, 0.0, 0.0)} | settings))
    pre, _ = fit_preprocessing(read_table(frame), chosen, 0)
    return pre


def features(frame=FRAME, **settings):
    return [c.name for c in columns(frame, **settings).features]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"features": "x1,x2"}, ["x1", "x2"]),
        ({"features": "x2, x1"}, ["x2", "x1"]),
        ({"features": ["x1,o1", "x2"]}, ["x1", "o1", "x2"]),
        ({"features": "x*"}, ["x1", "x2"]),
        ({"features": "x?,o2"}, ["x1", "x2", "o2"]),
        ({"features": ["x*", "x1"]}, ["x1", "x2"]),
        ({"features": "temp [C]"}, ["temp [C]"]),
        ({"features": "temp [*"}, ["temp [C]"]),
        ({"features": "*", "time": "t", "group": "g"}, COLUMNS[2:]),
        ({"features": "*", "exclude": "tmp_*,o?", "time": "t", "group": "g"}, ["x1", "x2", "temp [C]"]),
        ({"exclude": "tmp_*,o1,o2,temp*", "time": "t", "group": "g"}, ["x1", "x2"]),
        ({"features": "x1, g", "categories": "g*"}, ["x1", "g"]),
    ],
)
def test_a_list_and_a_pattern_are_the_columns_that_they_mean(settings, expected):
    assert features(**settings) == expected


def test_patterns_name_targets_and_groups_too():
    frame = FRAME.with_columns(g2=pl.lit("a"))
    for group in ("g,g2", "g*"):
        pre = columns(frame, target="o*", features="x*", group=group)
        assert pre.target.names == ("o1", "o2")
        assert pre.group == ("g", "g2")
    assert columns(target="o*", features="*", time="t", horizon=1).target.names == ("o1", "o2")


def test_a_column_whose_name_has_a_comma_or_a_star_is_that_column():
    frame = FRAME.rename({"x1": "a,b", "x2": "*"})
    assert features(frame, features="a,b") == ["a,b"]
    assert features(frame, features=["*"]) == ["*"]
    assert features(frame, exclude="*", time="t", group="g") == ["a,b", *COLUMNS[4:]]


def test_what_fits_nothing_is_named():
    with pytest.raises(DataError, match=r"the table has no feature column that fits 'z\*'. Its columns are: t, g, x1"):
        columns(features="z*")
    with pytest.raises(DataError, match=r"no feature column 'tmp_c'\. Did you mean 'tmp_[ab]'\?"):
        columns(features="x1,tmp_c")
    with pytest.raises(SettingsError, match="group and time both name the column 't'"):
        columns(group="g,t", time="t")


def test_two_fractions_are_train_and_test():
    assert DataSettings.make(split="0.8,0.2").split == pytest.approx((0.68, 0.12, 0.2))
    assert DataSettings.make(split=[0.8, 0.2]).split == pytest.approx((0.68, 0.12, 0.2))
    assert DataSettings.make(split="0.8,0.1,0.1").split == (0.8, 0.1, 0.1)
    assert DataSettings.make(split="0.8,x").split == "0.8,x"
    for wrong in ("0.8", "80,20", "0.5,0.2,0.2,0.1", [0.8, 0.1]):
        with pytest.raises(SettingsError, match=r"three fractions that sum to 1 \(train, valid, test\)"):
            DataSettings.make(split=wrong)


def test_the_command_line_takes_lists_patterns_and_two_fractions(tmp_path, capsys):
    path = tmp_path / "t.csv"
    FRAME.write_csv(path)
    quick = ["--hidden-size", "8", "--epochs", "1", "--no-baselines", "--device", "cpu", "--out", str(tmp_path / "run")]
    arguments = ["--target", "o*", "--features", "x*,tmp_a", "--exclude", "x2", "--group", "g", "--split", "0.8,0.2"]
    assert main(["train", str(path), *arguments, *quick]) == 0
    shown = capsys.readouterr().err
    assert "Reads 2 numbers" in shown
    assert "train 68%, valid 12%, test 20%" in shown
    run = load(tmp_path / "run")
    assert run.preprocessing.target.names == ("o1", "o2")
    assert run.evaluate(path).model.count
    again = train(path, config=tmp_path / "run/config.yaml", out=False, progress=False)
    assert again.fingerprint == run.fingerprint
