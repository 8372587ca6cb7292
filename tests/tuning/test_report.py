"""The page about a study, in HTML and Markdown."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.helpers.tuning import definition, finished, tuned
from tidegate.errors import RunError
from tidegate.tuning.pictures import pictures
from tidegate.tuning.record import Trial, Tuned
from tidegate.tuning.report import write_report


def some() -> list[Trial]:
    trials = [finished(0, 0.9, defaults=True), finished(1, 0.95, lr=0.01, seed=9), finished(2, 0.85, reset="after")]
    pruned = Trial(3, "pruned", 0.7, 0.9, {"reset": "after", "layer_norm": True, "lr": 0.02}, 4, epochs=3, seconds=0.5)
    return [*trials, pruned, Trial(4, "pruned", why="The loss became nan | <b>.", settings={"lr": 0.02})]


def test_both_pages_stand_beside_the_study_with_the_verdict_the_command_and_the_trials(tmp_path: Path) -> None:
    result = Tuned(definition(), some(), str(tmp_path / "a.study"))
    page = write_report(result)
    assert page == tmp_path / "a.study.html"
    for path in (page, tmp_path / "a.study.md"):
        text = path.read_text(encoding="utf-8").replace("&#39;", "'")
        assert "The best is trial 1" in text
        assert result.command() in text
        assert result.command(result.defaults) in text
        assert "0 (defaults)" in text
        assert "5 trials: 3 finished, 1 pruned, 1 that could not be trained" in text
        assert "0.001..0.02:log" in text
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert not re.search(r"<script|https?://(?!www.w3.org/2000/svg)", html)
    markdown = (tmp_path / "a.study.md").read_text(encoding="utf-8")
    for file in re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown):
        ET.parse(tmp_path / file)
    assert len(re.findall(r"!\[", markdown)) == 1 + len(definition().space)
    assert {p.name for p in tmp_path.iterdir()} == {"a.study.html", "a.study.md", "a.study.pictures"}


def test_it_goes_into_a_folder_and_needs_one_where_the_study_is_in_no_file(tmp_path: Path) -> None:
    assert write_report(tuned(*some()), tmp_path / "new") == tmp_path / "new/x.study.html"
    database = Tuned(definition(), some(), "sqlite:///a.db")
    with pytest.raises(RunError, match="Name a folder for it"):
        write_report(database)
    assert write_report(database, tmp_path) == tmp_path / "tune.html"
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file; the report needs a folder"):
        write_report(database, tmp_path / "file")


def test_a_study_without_a_finished_trial_has_a_page_too(tmp_path: Path) -> None:
    page = write_report(Tuned(definition(), [Trial(0, "failed")], None), tmp_path)
    assert "No trial is finished yet." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("more_is_better", [True, False])
def test_the_line_of_the_best_so_far_never_gets_worse_and_ends_at_the_best(more_is_better: bool) -> None:
    figures = [0.5, 0.3, 0.7, 0.6, 0.1]
    trials = [finished(k, f) for k, f in enumerate(figures)]
    (_, svg), *_ = pictures(tuned(*trials, chosen_by="accuracy" if more_is_better else "rmse"))
    heights = [float(point.split(",")[1]) for point in re.search(r'<polyline[^>]*points="([^"]+)"', svg)[1].split()]
    rising = heights if more_is_better else heights[::-1]
    assert rising == sorted(rising, reverse=True)
    dots = [float(y) for y in re.findall(r'<circle class="l0 f" cx="[\d.]+" cy="([\d.]+)"', svg)]
    assert heights[-1] == (min(dots) if more_is_better else max(dots))


def test_numbers_that_are_none_and_values_outside_of_the_space_are_drawn_all_the_same() -> None:
    trials = [*some(), finished(5, math.nan), finished(6, 0.8, lr=0.5, reset="elsewhere")]
    for _, svg in pictures(tuned(*trials)):
        ET.fromstring(svg)
        assert "nan" not in svg
