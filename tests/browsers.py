"""Headless Chromium driven through ChromeDriver, for tests of pages."""

import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on PATH"),
]
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--lang=en"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
]


def chromium(profile: Path, resolved: str = "") -> Any:
    """A browser that resolves no address, or none but `resolved`; to be left with `quit`."""
    from selenium import webdriver

    rules = "MAP * ~NOTFOUND" + (f" , EXCLUDE {resolved}" if resolved else "")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--host-resolver-rules={rules}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
