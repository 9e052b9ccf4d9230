"""Debian's Chromium under Playwright: a fresh browser for a test, and screenshots of what it shows.

Which pages are opened, and what they have to show, stays out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, sync_playwright

# Read while tests are collected: the fixture that hides the developer's own settings comes later.
SCREENSHOTS = os.environ.get("ROLLUP_SCREENSHOTS")
"""Folder for screenshots; a temporary one unless given."""
WIDTH, HEIGHT = 1280, 800
PATIENCE = 60_000
"""Milliseconds until something has to be on the screen that only a page has to be loaded for."""

# Without a sandbox, which root may not use; quiet, since a test has no business with servers other than its own.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Path of the browser; a test that needs it is skipped where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    return found


@contextmanager
def browser(profile: Path) -> Iterator[BrowserContext]:
    """A headless browser with an empty profile, until the block ends. Times on the screen are UTC, as partition keys are."""
    executable = chromium()
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            headless=True,
            args=ARGUMENTS,
            viewport={"width": WIDTH, "height": HEIGHT},
            locale="en-US",
            timezone_id="UTC",
            reduced_motion="reduce",
        )
        try:
            context.set_default_timeout(PATIENCE)
            yield context
        finally:
            context.close()


def screenshot_folder(otherwise: Path) -> Path:
    """Where screenshots go: ``ROLLUP_SCREENSHOTS``, or ``otherwise``."""
    folder = Path(SCREENSHOTS) if SCREENSHOTS else otherwise
    folder.mkdir(parents=True, exist_ok=True)
    return folder
