"""``python -m tools.app_pictures``: the pictures of the page that docs/guides/app.md shows.

They are taken in Chromium, of the models and scenes that ship, in a wide and in a narrow window.
"""

import io
import sys
import time
from pathlib import Path

from PIL import Image

from tools import browser

FOLDER = Path(__file__).parent.parent / "docs" / "assets"
WINDOWS = {"app-wide.png": (1280, 1010), "app-narrow.png": (420, 1500)}
SCENE = 1
"""The place, in the gallery, of the one that is shown."""

PATIENCE = 60.0
"""Seconds to wait for the page."""


def main() -> int:
    """Write the pictures; the exit code is 0, or 1 without a browser."""
    if browser.missing():
        print(f"This machine has no {' and no '.join(browser.missing())}.", file=sys.stderr)
        return 1
    with browser.served(["--models", "tiny", "--device", "cpu"]) as address:
        for name, size in WINDOWS.items():
            with browser.opened(*size) as driver:
                driver.get(address)
                _until(driver, "document.querySelectorAll('#gallery .thumbnail-item').length")
                driver.execute_script(
                    "document.querySelectorAll('#gallery .thumbnail-item')[arguments[0]].click()",
                    SCENE,
                )
                _until(driver, "document.querySelector('.nf-legend')")
                # Without the ring around what was clicked on, and when nothing moves any more.
                driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
                time.sleep(1)
                taken = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            taken.save(FOLDER / name, optimize=True)
            print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size // 1000} kB")
    return 0


def _until(driver, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not driver.execute_script(f"return {what}"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the page does not get to: {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
