"""Whether pages fit their windows; run as `python pages_fit.py CHROMIUM URL...`, prints each width that all fit."""

import sys

from playwright.sync_api import expect, sync_playwright

SECONDS = 15_000  # milliseconds
NEEDED = "Math.max(...[...document.querySelectorAll('html, .wide')].map((box) => box.scrollWidth))"


def fits(page, url, width):
    page.goto(url)
    expect(page.get_by_text("scores", exact=True).first).to_be_visible(timeout=SECONDS)
    page.wait_for_load_state("networkidle")
    needed = page.evaluate(NEEDED)
    assert needed <= width, f"{url} is {needed} px wide in a window of {width}"


def main():
    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox"])
        for width in (1280, 800, 400, 360):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
            for url in sys.argv[2:]:
                fits(page, url, width)
            page.close()
            print(width, flush=True)
        browser.close()
    assert not faults, faults


if __name__ == "__main__":
    main()
