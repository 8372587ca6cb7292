"""`make test` has no Optuna: what then is said, and that nothing but a search needs it."""

from __future__ import annotations

import pytest

import tidegate
from tidegate.cli import main
from tidegate.errors import PackageMissingError, SettingsError
from tidegate.tuning import open_study
from tidegate.tuning.search import seconds_of


def test_a_search_without_it_says_which_command_brings_it(capsys: pytest.CaptureFixture[str]) -> None:
    message = r"tidegate tune needs optuna, which is not installed: pip install 'tidegate\[tune\]'"
    with pytest.raises(PackageMissingError, match=message):
        tidegate.tune("nothing.csv", target="y")
    with pytest.raises(PackageMissingError, match=message):
        open_study("nothing.study")
    for arguments in (["t.csv", "--target", "y", "--study", "s"], ["--report", "--study", "s"]):
        assert main(["tune", *arguments]) == 1
        assert "pip install 'tidegate[tune]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["t.csv", "--target", "y"],
            "No study: name the file in which the trials are kept, such as --study tune.study.",
        ),
        (["--report"], "--report needs the study: --study FILE."),
        (["--report", "--study", "s", "t.csv"], "--report trains nothing, so it takes no TABLE."),
        (["--report", "--study", "s", "--lr", "0.1"], "--report trains nothing, so it takes no lr."),
    ],
)
def test_what_is_missing_or_too_much_on_the_command_line_is_said(arguments, message, capsys):
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5h", 5400), ("2h30", 7230), ("1d 2h", 93_600), ("2M", 120), (0.5, 0.5)]
)
def test_a_time_is_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "0s", "-5m", "h", "1m2h", 0, -1, float("inf"), True, [], "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SettingsError, match=r"expected a time above 0, such as 2h, 90m, 1h30m or 45s"):
        seconds_of(text)
