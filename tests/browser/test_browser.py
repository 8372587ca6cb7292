"""The watch over every page is awake: whatever a page must not do, and does, is noticed."""

from __future__ import annotations

import pytest

from tests.helpers.browser import find_chromium

OFFENCES = {
    "console: wrong": "console.error('wrong')",
    "uncaught: late": "setTimeout(() => { throw new Error('late') })",
    "uncaught: promised": "void Promise.reject(new Error('promised'))",
    "dialog: hello": "setTimeout(() => alert('hello'))",
    "request: https://example.invalid/picture": "new Image().src = 'https://example.invalid/picture'",
    "request: https://example.invalid/data": "void fetch('https://example.invalid/data').catch(() => 0)",
    "request: wss://example.invalid/": "void new WebSocket('wss://example.invalid/')",
}


@pytest.mark.parametrize(("fault", "script"), OFFENCES.items(), ids=lambda text: text.split(":")[0])
def test_a_page_that_does_what_it_must_not_is_noticed(open_page, fault, script):
    watch = open_page()  # not `page`: a failed request is told once more, later, as a console error
    watch.page.evaluate(script)
    with pytest.raises(pytest.fail.Exception, match="not clean") as told:
        watch.check()
    watch.page.context.close()
    assert any(line.startswith(fault) for line in str(told.value).splitlines())


def test_a_page_that_keeps_to_itself_has_no_faults(watch, page):
    page.goto(
        "data:text/html,<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='><script>console.log('fine')</script>"
    )
    assert watch.settle() == []


def test_a_picture_of_a_page_is_kept_for_people_to_look_at(page, shot):
    page.set_content("<h1 style='width: 300px'>Tidegate</h1>")
    whole, part = shot(page, "self-test/page"), shot(page.locator("h1"), "self-test/element")
    sizes = [int.from_bytes(path.read_bytes()[16:20], "big") for path in (whole, part)]  # the width in a PNG's header
    assert sizes == [1200, 300]


def test_without_chromium_the_group_fails_with_a_sentence_that_helps(monkeypatch):
    monkeypatch.setenv("TIDEGATE_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(pytest.fail.Exception, match=r"TIDEGATE_CHROMIUM=/nowhere/chromium is no program\. Install it"):
        find_chromium()
    monkeypatch.delenv("TIDEGATE_CHROMIUM")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        pytest.fail.Exception, match=r"no Chromium found\. Install it \(Debian: apt-get install chromium"
    ):
        find_chromium()
