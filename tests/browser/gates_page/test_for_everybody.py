"""The page of the gates for everybody: by keyboard, by name, in contrast, on a phone, without a script; and its size."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tidegate.inspection.page import DEFINITIONS

if TYPE_CHECKING:
    pass
from tests.helpers.gates_page import EVIL, WORSE, fake, read, step

# --- for everybody -----------------------------------------------------------------------------------------------


def test_the_keyboard_alone_reaches_everything_in_order_and_shows_where_it_is(show, page):
    show("steps")
    everything = "() => [...document.querySelectorAll('a, button, select, input, [tabindex=\"0\"]')].filter((e) => e.checkVisibility())"
    count = page.evaluate(f"() => ({everything})().length")
    visited = []
    for _ in range(count):
        page.keyboard.press("Tab")
        at = page.evaluate(f"() => ({everything})().indexOf(document.activeElement)")
        ring = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", at
        visited.append(at)
    assert visited == list(range(count))
    assert count > 20


def test_the_slider_is_worked_by_keys(show, page):
    shown = show("steps")
    order = shown.layers[0].statistics.order.tolist()
    page.locator("[type=range]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert step(page) == 2
    unit = read(page).unit
    page.keyboard.press("ArrowDown")
    assert (step(page), read(page).unit) == (2, order[order.index(unit) + 1])
    page.keyboard.press("End")
    assert read(page).said == f"step {len(shown.drawn)} of {shown.length}"


def test_every_term_tells_its_definition_on_focus_and_on_hover_until_escape(show, page):
    shown = show("steps")
    note = page.locator(".note")
    told = set()
    for term in page.locator("dfn").all():
        term.focus()
        assert note.is_visible()
        assert note.inner_text() == term.get_attribute("aria-description")
        told.add(note.inner_text())
        box = note.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1200
        page.keyboard.press("Escape")
        assert not note.is_visible()
    assert {*DEFINITIONS.values()} <= told
    assert {definition for _, definition in shown.sentences["l0"]} <= told
    page.mouse.move(0, 0)
    term = page.locator(".said dfn").first
    term.hover()
    assert note.is_visible()
    box = note.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5, steps=4)  # onto the note itself, which must not flee
    page.wait_for_timeout(300)
    assert note.is_visible()
    page.mouse.move(1100, 5)
    note.wait_for(state="hidden")


@pytest.mark.parametrize("name", ["steps", "words", "whole", "forecast", "one"])
def test_every_control_and_picture_has_a_name(show, page, name):
    show(name)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", "").strip())
    assert {"button", "combobox", "slider", "region", "table"} <= found.keys()
    named = "button|combobox|slider|option|table|columnheader|rowheader|image|group|region|complementary"
    assert [role for role, names in found.items() if re.fullmatch(named, role) and not all(names)] == []
    described = [n for n in nodes if n["role"]["value"] == "term"]
    assert described
    assert all(n.get("description", {}).get("value") for n in described)
    levels = [int(h.evaluate("h => h.tagName[1]")) for h in page.locator("h1, h2, h3").all()]
    assert levels == [1] + [2] * (len(levels) - 1)


CONTRASTS = """() => {
  const parse = (text) => {
    const v = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number), unit = text.startsWith("color(") ? 255 : 1;
    return [v[0] * unit, v[1] * unit, v[2] * unit, v[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (e) => {
    if (!e) return [255, 255, 255];
    const colour = parse(getComputedStyle(e).backgroundColor);
    return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(e.parentElement));
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.checkVisibility() || e.closest("script, noscript, option")) continue;
    const box = e.closest(".cell g"), below = box ? parse(getComputedStyle(box.querySelector("rect")).fill).slice(0, 3) : behind(e);
    const own = getComputedStyle(e), a = light(over(parse(e.closest("svg") ? own.fill : own.color), below)), b = light(below);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out[text] = ratio;
  }
  return out;
}"""


@pytest.mark.parametrize("name", ["steps", "words", "forecast"])
def test_all_text_has_the_contrast_that_wcag_asks_for(show, page, name):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        show(name)
        assert page.evaluate(CONTRASTS) == {}, scheme


@pytest.mark.parametrize("name", ["steps", "words", "labels", "whole", "forecast", "one", "evil", "thinned"])
def test_nothing_sticks_out_of_a_narrow_window(show, page, shot, name):
    page.set_viewport_size({"width": 360, "height": 740})
    show(name)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    for term in page.locator("dfn").all()[:6]:
        term.focus()
        box = page.locator(".note").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] >= 0
    page.keyboard.press("Escape")
    if name in ("words", "forecast", "evil"):
        shot(page, f"gates/{name}-360")


def test_the_pictures_fit_the_window_after_it_was_resized(show, page):
    show("words")
    fitting = "() => [...document.querySelectorAll('.row:not(.map) canvas')].every((c) => c.width === c.clientWidth && c.height === c.clientHeight)"
    assert page.evaluate(fitting)
    wide = page.locator("canvas").first.bounding_box()
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function(fitting)
    narrow = page.locator("canvas").first.bounding_box()
    assert narrow["width"] < wide["width"] - 100
    assert narrow["height"] > wide["height"]  # the words now stand upright


def test_names_that_are_html_stay_text(show, page, made):
    shown = show("evil")
    whole = page.locator("body").inner_text()
    assert page.locator("h1").inner_text().endswith(shown.sequence)
    assert f"{EVIL}{WORSE}" in shown.sequence
    assert shown.run in whole
    assert page.title().startswith(shown.run)
    facts = read(page).facts
    assert {EVIL, WORSE} <= {row[0] for row in facts}
    output = shown.outputs[0]
    for p in range(len(shown.drawn)):
        page.keyboard.press("Home" if not p else "ArrowRight")
        facts = dict(read(page).facts)
        assert facts[WORSE] == shown.columns[1].values[p]
        assert facts["true"].rsplit(" ", 1)[0] == output.truth[p]
        assert facts["prediction"].strip().startswith(output.values[p])
    assert {*shown.columns[1].values} == {*output.truth} == {EVIL, WORSE}
    assert page.locator("body img, .view script, h1 *:not(.soft)").count() == 0
    assert made("evil").path.read_text().count("<script") == 2  # the page's own: its numbers and its program


def test_without_a_script_the_page_says_what_was_found(browser, made):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(made("words").url)
    text = page.locator("main").inner_text()
    for sentences in made("words").inspection.sentences.values():
        for sentence, _ in sentences:
            assert sentence in text
    assert "this browser doesn't run" in text
    context.close()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, "light") for name in ("steps", "words", "labels", "whole", "forecast", "one", "no target")),
     *((name, "dark") for name in ("words", "forecast"))],
)  # fmt: skip
def test_pictures_of_every_kind_of_run_are_kept_for_people_to_look_at(show, page, shot, name, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 1400, "height": 900})
    show(name)
    shot(page, f"gates/{name.replace(' ', '-')}-{scheme}")
    for canvas in page.locator("canvas").all():  # no row is empty, and none is bitmap noise of size 0
        assert canvas.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)")


# --- size and speed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("directions", "most"), [(("",), 1.0), (("", "_reverse"), 2.0)])
def test_a_page_of_200_steps_and_128_units_is_small(made, directions, most):
    size = len(fake(made("steps").inspection, 200, 128, directions).html().encode())
    print(f"200 steps x 128 units, {len(directions)} direction(s): {size / 1e6:.2f} MB")
    assert size < most * 1e6


def test_a_page_of_10_000_steps_and_512_units_stays_fluid(show, page, made):
    made("big")  # not part of the time
    begun = time.perf_counter()
    show("big")
    loaded = time.perf_counter() - begun
    longest = page.evaluate(
        "() => new Promise((done) => { new PerformanceObserver((list) => done(Math.max(...list.getEntries().map((e) => e.duration)))).observe({ type: 'longtask', buffered: true }); setTimeout(() => done(0), 500); })"
    )
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def spent() -> dict[str, float]:
        return {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}

    page.keyboard.press("Home")
    before, begun = spent(), time.perf_counter()
    for _ in range(100):
        page.keyboard.press("ArrowRight")
    moved, after = time.perf_counter() - begun, spent()
    assert read(page).slider == 100
    script, layout = (10 * (after[name] - before[name]) for name in ("ScriptDuration", "LayoutDuration"))  # ms a move
    print(
        f"10,000 steps x 512 units: {made('big').path.stat().st_size / 1e6:.2f} MB, loaded in {loaded:.2f} s (longest task {longest:.0f} ms); "
        f"100 moves in {moved:.2f} s, each {script:.1f} ms of script and {layout:.1f} ms of layout"
    )
    assert made("big").path.stat().st_size < 4e6  # times are printed, not asserted: machines are noisy
