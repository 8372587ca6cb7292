"""The pictures of the pages, made by the commands that stand under them.

Trains what is not there yet in build/pictures (some minutes), runs the page's own commands there, and takes a screenshot of the
SNIPS page with the system's Chromium (`make test-browser` sets up what is needed; Pillow, which makes the files small, comes with matplotlib).

    .venv/bin/python tools/make_pictures.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, IMAGES, PLACE = ROOT / "docs" / "how-a-gru-works.md", ROOT / "docs" / "images", ROOT / "build" / "pictures"
WIDTH, HEIGHT = 1400, 1078
LOOK_AT = "#step=7&unit=16"  # the step and the unit that the text speaks of


def commands() -> list[str]:
    """The commands of the page up to those for the reader's own table."""
    text = PAGE.read_text(encoding="utf-8").split("## On your own table")[0]
    return re.findall(r"^    (tidegate .*)$", text, re.MULTILINE)


def done(command: str) -> bool:
    if command == "tidegate demo":
        return (PLACE / "tidegate-demo/run/report.html").exists()
    run = re.search(r"train .*--out (\S+)", command)
    return run is not None and (PLACE / run[1] / "report.html").exists()


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from tests.helpers.browser import FLAGS, find_chromium

    PLACE.mkdir(parents=True, exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands():
        if done(command):
            continue
        print(command, flush=True)
        subprocess.run(
            command.split(), cwd=PLACE, check=True, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(f"file://{PLACE / 'gates.html'}{LOOK_AT}")
        page.wait_for_timeout(500)
        page.screenshot(path=PLACE / "inspect-snips.png")
        browser.close()
    for name in ("gates-occupancy.png", "gradients-vowels.png", "inspect-snips.png"):
        Image.open(PLACE / name).convert("RGB").quantize(256).save(IMAGES / name, optimize=True)  # a third of the size


if __name__ == "__main__":
    main()
