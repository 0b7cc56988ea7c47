"""Headless Chromium for tests of the app: the fixtures `browser` and `page` (conftest.py lists this file as a plugin).

Chromium is taken from VLM_CONTEXTRL_CHROMIUM (a path), from PATH, or from what `playwright install chromium` downloaded; where there
is none, the tests are skipped. On a machine for continuous integration, `apt-get install -y chromium` is enough.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Read when Gradio is imported, or makes a queue: nothing sent to its makers; no summary of the queue after every event, which it makes by
# what pandas 3 calls deprecated.
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**9))

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# sRGB, so that pixels on the screen are those of the file.
FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--force-color-profile=srgb")  # fmt: skip
LOCAL_HOSTS = ("127.0.0.1", "localhost", "")  # "" of data: and blob:


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, one for the whole run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as started:
        executable = _executable(started.chromium.executable_path)
        as_root = hasattr(os, "geteuid") and os.geteuid() == 0
        chromium = started.chromium.launch(
            executable_path=executable, args=[*FLAGS, *(["--no-sandbox"] if as_root else [])]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of 1280 x 900 px. At the end no request may have left this machine and nothing may have failed in the console."""
    with watched_page(browser) as opened:
        yield opened


@contextmanager
def watched_page(browser: Browser, **context: Any) -> Iterator[Page]:
    """As `page`, with settings of Browser.new_context, e.g. another viewport or color_scheme."""
    opened = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    page = opened.new_page()
    outside: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if _is_outside(request.url) else None)
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        yield page
    finally:
        opened.close()
    assert not outside, f"requests to the outside: {outside}"
    assert not errors, f"errors in the console: {errors}"


def _is_outside(url: str) -> bool:
    return urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname not in LOCAL_HOSTS


def _executable(downloaded: str) -> str:
    named = os.environ.get("VLM_CONTEXTRL_CHROMIUM", "")
    if named:
        assert Path(named).is_file(), f"VLM_CONTEXTRL_CHROMIUM: no file {named}"
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found and Path(downloaded).is_file():
        found = downloaded
    if not found:
        pytest.skip("no Chromium: `apt-get install chromium`, or name one in VLM_CONTEXTRL_CHROMIUM")
    return found


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """The address of an ASGI application, served on a free port of the loopback by a thread of its own."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive(), "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
