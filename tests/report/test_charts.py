"""Line charts: what is drawn is what was given, and every line can be told from the others."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from tidegate.report.charts import DASHES, LABEL_HEIGHT, LIGHT, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def parsed(*arguments, **options) -> ET.Element:
    return ET.fromstring(line_chart(*arguments, **options))


def polylines(svg: ET.Element) -> list[list[tuple[float, float]]]:
    lines = (p.attrib["points"].split() for p in svg.iter(f"{SVG}polyline"))
    return [[tuple(map(float, p.split(","))) for p in line] for line in lines]


def texts(svg: ET.Element) -> list[str]:
    return [t.text or "" for t in svg.iter(f"{SVG}text")]


def test_names_and_titles_are_escaped_and_all_is_one_element():
    svg = parsed("<a> & b", {"<script>": [(1, 1.0), (2, 2.0)]}, x_name="<x>")
    assert {"<a> & b", "<script>", "<x> 1"} <= set(texts(svg))
    assert svg.attrib["aria-label"] == "<a> & b"
    assert not list(svg.iter(f"{SVG}script"))


def test_a_gap_stays_a_gap_and_infinity_is_marked_on_the_upper_edge():
    svg = parsed("t", {"a": [(1, 1.0), (2, 2.0), (3, math.nan), (4, math.inf), (5, 1.0), (6, 2.0)]})
    first, second = polylines(svg)
    assert (len(first), len(second)) == (2, 2)
    assert first[0][1] == second[0][1] > first[1][1] == second[1][1]  # up is up, on one scale
    assert texts(svg).count("∞") == 1
    assert line_chart("t", {"a": [(1, math.nan), (2, math.inf)]}) == ""


def test_equal_ratios_are_equal_distances_on_a_log_scale_and_lines_end_on_its_floor():
    line = [(k, 10.0**-k) for k in range(12)]
    (points,) = polylines(parsed("t", {"a": line}, log=True, floor=1e-6))
    steps = [b[1] - a[1] for a, b in itertools.pairwise(points)]
    assert len(points) == 8  # ten to minus 0 ... 6, and the one step onto the edge
    assert steps[:6] == pytest.approx([steps[0]] * 6, abs=0.11)
    assert steps[0] > 20
    assert steps[6] == pytest.approx(0, abs=0.11)
    labels = texts(parsed("t", {"a": line}, log=True, floor=1e-6))
    assert {"1", "0.1", "10⁻⁶"} <= set(labels)
    assert "10⁻⁷" not in labels
    assert not any("nan" in text or "inf" in text for text in labels)
    zero = line_chart("t", {"a": [(0, 1.0), (1, 0.5), (2, 0.0)]}, log=True)  # a gradient may be gone altogether
    assert "nan" not in zero


def test_a_band_runs_along_its_upper_and_back_along_its_lower_edge():
    svg = parsed("t", {"a": [(0, 2.0), (1, 3.0)]}, bands={"a": [(0, 1.0, 3.0), (1, 2.0, 5.0)]})
    (band,) = svg.iter(f"{SVG}polygon")
    places = [tuple(map(float, p.split(","))) for p in band.attrib["points"].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places[:2]) + sorted((x for x, _ in places[2:]), reverse=True)
    ((_, at_2), (_, at_3)) = polylines(svg)[0]
    assert places[0][1] == pytest.approx(at_3)  # 3.0, the upper end at x = 0
    assert places[2][1] == pytest.approx(at_2)  # 2.0, the lower end at x = 1


def test_lines_are_told_apart_by_dashes_and_names_that_do_not_overlap():
    lines = {f"line {k}": [(0, 1.0), (1, 1.0 + k / 1000), (2, 9.0 if k == 0 else 1.0)] for k in range(8)}
    svg = parsed("t", lines)
    drawn = [(p.attrib["class"], p.attrib.get("stroke-dasharray", "")) for p in svg.iter(f"{SVG}polyline")]
    assert len(set(drawn)) == 8
    assert len({dash for _, dash in drawn[: len(LIGHT)]}) == len(DASHES)
    named = {t.text: float(t.attrib["y"]) for t in svg.iter(f"{SVG}text") if t.text in lines}
    heights = sorted(named.values())
    assert len(heights) == 8
    assert all(b - a >= LABEL_HEIGHT - 0.11 for a, b in itertools.pairwise(heights))
    assert heights[-1] <= 250
    assert named["line 0"] == heights[0]


def test_labels_of_the_x_axis_keep_their_distance_and_the_best_epoch_is_named():
    for last in (2, 3, 7, 45, 150, 199):
        svg = parsed("t", {"a": [(k, k % 3 + 1.0) for k in range(1, last + 1)]}, mark=2)
        bottom = max(float(t.attrib["y"]) for t in svg.iter(f"{SVG}text"))
        labels = [t for t in svg.iter(f"{SVG}text") if float(t.attrib["y"]) == bottom]
        at = sorted(float(t.attrib["x"]) for t in labels)
        assert labels[0].text == "epoch 1"
        assert str(last) in [t.text for t in labels]
        assert all(b - a >= 30 for a, b in itertools.pairwise(at))
        assert "best" in texts(svg)


def test_colours_can_be_read_on_white_and_on_black():
    def contrast(colour: str, paper: float) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        own = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
        return (max(own, paper) + 0.05) / (min(own, paper) + 0.05)

    css = line_chart("t", {"a": [(1, 1.0)]})
    light, dark = css.split("@media (prefers-color-scheme:dark)")
    for part, paper in ((light, 1.0), (dark, 0.0)):
        found = re.findall(r"\.l\d\{color:(#\w{6})\}", part)
        assert len(found) == len(LIGHT)
        assert all(contrast(colour, paper) >= 4.5 for colour in found)


def test_ticks_of_tiny_values_are_not_all_zero():
    from tidegate.report.charts import nice_ticks

    assert nice_ticks(1e-120, 3e-120) == [1e-120, 1.5e-120, 2e-120, 2.5e-120, 3e-120]
    assert nice_ticks(2e15, 9e15)[-1] >= 9e15
    assert "<svg" in line_chart("loss", {"gru": [(1, 1e-120), (2, 3e-121)]}, None)
