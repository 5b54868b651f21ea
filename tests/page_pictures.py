"""The pictures of docs/demo.md, from a page that runs: ``PYTHONPATH=tests:. python -m page_pictures URL``.

URL is what ``bash scripts/demo.sh --browser False`` says; Playwright and Chromium as in test_demo.py.
"""

import math
import sys
from typing import Any

from test_demo import CHROMIUM, ROOT, complaint, fill, press, settled, stroke

WIDTH = 1180


def umbrella() -> list[list[tuple[float, float]]]:
    """Lines in shares of the drawing area: the dome with its scalloped edge, and the stick with its handle."""
    dome = [(0.5 - 0.3 * math.cos(math.pi * k / 16), 0.42 - 0.28 * math.sin(math.pi * k / 16)) for k in range(17)]
    edge = [(0.8 - 0.1 * k, 0.42 - 0.03 * (k % 2)) for k in range(7)]
    handle = [(0.5 - 0.06 + 0.06 * math.cos(a), 0.76 + 0.07 * math.sin(a)) for a in (0, 0.8, 1.6, 2.4, 3.1)]
    return [dome + edge, [(0.5, 0.4), (0.5, 0.76), *handle]]


def draw(page: Any, area: str, lines: list[list[tuple[float, float]]]) -> None:
    box = settled(page, area)
    for line in lines:
        stroke(page, [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in line], steps=6)


def shoot(page: Any, name: str, height: int) -> None:
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
    page.wait_for_timeout(800)
    path = ROOT / "docs" / f"demo-{name}.png"
    page.screenshot(path=str(path), clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def main(address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1400})
        page.goto(address)
        page.wait_for_selector("#prompt textarea, #prompt input")
        fill(page, "prompt", "an umbrella")
        fill(page, "num", 16)
        page.click("#enlarge input")
        page.get_by_role("option", name="256 pixels").click()
        press(page, "draw", 16)
        shoot(page, "prompt", 740)
        fill(page, "times", "0, 0.6, 0.3, 1")
        complaint(page, "draw")
        shoot(page, "message", 420)
        fill(page, "times", "")
        fill(page, "num", 12)
        page.get_by_role("tab", name="Sketch").click()
        draw(page, "#pad canvas", umbrella())
        fill(page, "sketch-prompt", "an umbrella")
        press(page, "sketch", 12)
        shoot(page, "sketch", 900)
        page.get_by_role("tab", name="Prompt").click()
        fill(page, "prompt", "a house")
        press(page, "draw", 12)
        page.get_by_role("tab", name="Inpaint").click()
        fill(page, "which", 1)
        page.click("#take")
        page.wait_for_timeout(1500)
        draw(page, "#editor canvas", [[(0.7, 0.25 + 0.08 * k) for k in range(7)]])
        fill(page, "inpaint-prompt", "a house")
        fill(page, "steps", 4)
        press(page, "inpaint", 12)
        shoot(page, "inpaint", 1110)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
