"""``python -m tools.browser``: Chromium and its driver, which ``make test-app`` needs.

They are installed by apt-get where they are absent and may be; elsewhere this says what is missing,
and the tests that need them are skipped.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

NAMES = {
    "browser": ("chromium", "chromium-browser", "google-chrome"),
    "driver": ("chromedriver", "chromium.chromedriver"),
}
PACKAGES = ("chromium", "chromium-driver")


def main() -> int:
    """Install what is absent, or say that it is; the exit code is 0."""
    if missing() and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            command = ["apt-get", "-qq", *command]
            done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
            if done.returncode:
                print(f"{' '.join(command)} failed with exit code {done.returncode}")
                break
    if missing():
        said = f"THE PAGE IS NOT TESTED: this machine has no {' and no '.join(missing())}."
        print(f"{said}\nOn Debian: apt-get install {' '.join(PACKAGES)}", file=sys.stderr)
    return 0


def found(part: str) -> str | None:
    """The path of the browser or of its driver, where there is one."""
    return next(filter(None, map(shutil.which, NAMES[part])), None)


def missing() -> list[str]:
    """What is not here, in words."""
    words = {"browser": "Chromium", "driver": "chromedriver"}
    return [word for part, word in words.items() if found(part) is None]


@contextlib.contextmanager
def opened(width: int = 1280, height: int = 900, downloads: Path | None = None) -> Iterator:
    """A headless browser, selenium's driver of it, with a window of this size in pixels."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found("browser")
    for flag in (
        "--headless=new",
        "--no-sandbox",  # Chromium has none when it is run by root.
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--force-color-profile=srgb",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options=options, service=Service(found("driver")))
        try:
            # Windows may not be as narrow as a telephone; what the page sees may.
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            yield driver
        finally:
            driver.quit()


@contextlib.contextmanager
def served(arguments: Sequence[str]) -> Iterator[str]:
    """The address of a page that ``nerve-fast app`` serves in a process of its own."""
    command = [sys.executable, "-m", "nerve_fast", "app", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if "http://" not in line:
                raise RuntimeError(f"{' '.join(command)} did not open a page")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
