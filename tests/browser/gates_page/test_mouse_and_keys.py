"""The page of the gates is worked by mouse and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tidegate.inspection import write_page

if TYPE_CHECKING:
    pass
from tests.helpers.gates_page import go, middle, read, step


@pytest.mark.parametrize("row", ["update gate z", "state h", "x", "colour", "prediction leans on", "true", "unit"])
def test_dragging_over_any_row_moves_the_cursor(show, page, row):
    P = len(show("steps").drawn)
    unit = read(page).unit
    if row in ("update gate z", "state h"):
        unit = None  # pressing on a map also picks the unit under the pointer
    for p in (2, 7, P - 1, 0):
        page.mouse.move(*middle(page, row, p, P))
        if p == 2:
            page.mouse.down()
        assert step(page) == p + 1
    x, y = middle(page, row, 0, P)
    page.mouse.move(x - 400, y)
    assert step(page) == 1
    page.mouse.move(x + 4000, y)
    assert step(page) == P
    page.mouse.up()
    page.mouse.move(*middle(page, row, 3, P))
    assert step(page) == P  # let go
    page.mouse.move(*middle(page, row, 5, P))
    page.mouse.down()
    page.mouse.up()
    page.locator("h1").hover()
    page.mouse.down()
    page.mouse.move(*middle(page, row, 3, P))
    page.mouse.up()
    assert step(page) == 6  # pressed elsewhere
    assert unit in (None, read(page).unit)


def test_the_cursor_stands_over_the_step(show, page):
    P = len(show("steps").drawn)
    for p in (0, 5, P - 1):
        go(page, show("steps"), p, 0)
        box = page.locator(".cursor").bounding_box()
        x, _ = middle(page, "state h", p, P)
        assert box["x"] + box["width"] / 2 == pytest.approx(x, abs=1.5)


def test_arrows_home_and_end_step_and_stop_at_the_ends(show, page):
    P = len(show("steps").drawn)
    for key, expected in [("Home", 1), ("ArrowLeft", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", P), ("ArrowRight", P)]:  # fmt: skip
        page.keyboard.press(key)
        assert step(page) == expected


def test_a_unit_is_picked_by_the_list_the_arrows_the_table_and_in_a_map(show, page):
    shown = show("steps")
    order = shown.layers[0].statistics.order.tolist()

    def all_agree(unit: int) -> None:
        now = read(page)
        assert (now.unit, now.chosen, int(now.row)) == (unit, unit, unit)
        assert page.locator(".row .name", has_text=f"unit {unit}").is_visible()
        marks = page.evaluate("() => [...document.querySelectorAll('.map')].map((row) => [row.querySelector('.mark').getBoundingClientRect(), row.querySelector('canvas').getBoundingClientRect()].map((box) => [box.y + box.height / 2, box.y, box.height]))")  # fmt: skip
        for (at, *_), (_, top, height) in marks:
            assert int((at - top) / height * len(order)) == order.index(unit)

    page.locator(".bar select").nth(1).select_option(str(order[3]))
    all_agree(order[3])
    page.locator("h1").click()  # away from the list, which has arrows of its own
    for key, row in [("ArrowDown", 4), ("ArrowDown", 5), ("ArrowDown", 5), ("ArrowUp", 4)]:
        page.keyboard.press(key)
        all_agree(order[row])
    page.keyboard.press("Home")
    page.locator(".units tbody tr").nth(1).click()
    all_agree(order[1])
    page.mouse.click(*middle(page, "candidate n", 6, 12, part=2.5 / 6))
    all_agree(order[2])
    assert step(page) == 7


def test_the_layer_and_direction_change_by_the_list_and_by_l(show, page):
    shown = show("words")
    names = [layer.title for layer in shown.layers]
    options = page.locator(".bar select").first.locator("option").all_inner_texts()
    assert [text.split(" (")[0] for text in options] == names
    sentences = list(shown.sentences.values())
    for k in (1, 2, 3, 0):
        page.keyboard.press("l")
        assert read(page).layer == str(k)
        assert page.locator(".said p").all_inner_texts() == [text for text, _ in sentences[k]]
    page.locator(".bar select").first.select_option("2")
    assert read(page).layer == "2"
    assert page.locator(".said p").first.inner_text() == sentences[2][0][0]


def test_in_a_comparison_one_cursor_moves_both_and_each_keeps_its_unit(made, page, tmp_path, shot):
    views = [made("wide").inspection, made("whole").inspection]
    write_page(tmp_path / "both.html", views)
    page.goto((tmp_path / "both.html").as_uri())
    titles = lambda: [text.split(",")[0] for text in page.locator(".panel > :first-child").all_inner_texts()]  # noqa: E731
    units = lambda: [int(box.input_value()) for box in page.locator(".bar label:nth-child(2) select").all()]  # noqa: E731
    page.keyboard.press("End")
    assert titles() == ["step 12 of 12"] * 2
    second = page.locator("section.view").nth(1)
    box = second.locator(".map canvas").first.bounding_box()
    was = units()
    page.mouse.click(box["x"] + 4.5 * box["width"] / 12, box["y"] + box["height"] - 2)
    assert titles() == ["step 5 of 12"] * 2
    assert units() == [was[0], int(views[1].layers[0].statistics.order[-1])]
    page.keyboard.press("ArrowUp")  # the view touched last
    assert units() == [was[0], int(views[1].layers[0].statistics.order[-2])]
    shot(page, "gates/compare")


def test_more_columns_are_drawn_when_asked_for_and_the_focus_stays(made, page, tmp_path):
    shown = made("steps").inspection
    many = [replace(shown.columns[0], name=f"column {k}") for k in range(11)]
    replace(shown, columns=many, lean=replace(shown.lean, columns=np.ones((12, 11)))).write_html(tmp_path / "many.html")
    page.goto((tmp_path / "many.html").as_uri())
    drawn = lambda: sum(text.startswith("column") for text in page.locator(".row .name").all_inner_texts())  # noqa: E731
    assert drawn() == 8
    page.get_by_role("button", name="3 more columns").press("Enter")
    assert drawn() == 11
    assert page.evaluate("() => document.activeElement.textContent") == "fewer columns"
    page.keyboard.press("Enter")
    assert drawn() == 8
