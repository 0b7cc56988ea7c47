"""The review in a real browser: by keyboard, by mouse, by link; nothing asked of the outside, nothing wrong in the console."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.app_browser import serving, watched_page
from tests.app_data import break_picture, colour_pair, square, write_pairs
from tests.killed_runs import wait_until
from vlm_contextrl.app.decisions import DecisionLog
from vlm_contextrl.app.server import Room, application, open_room
from vlm_contextrl.app.settings import AppSettings
from vlm_contextrl.storage import content_hash, verify_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
EVIL = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script> ${1+1} {{value}}"


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[tuple[Room, str]]:
    room = open_room(AppSettings(pairs=folder, **settings))
    with serving(application(room)) as address:
        yield room, address
    room.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pairs; the row n5 is broken, and the texts of n6 are an attack."""
    pairs = [colour_pair(n) for n in range(6)]
    pairs.append(
        colour_pair(
            6, id="n6/<b>", query=EVIL, answer=EVIL, confounder_answer=f"not {EVIL}", domain=EVIL, recipe=EVIL
        )
    )
    write_pairs(tmp_path / "pairs", pairs)
    break_picture(tmp_path / "pairs", "n5")
    return tmp_path / "pairs"


@pytest.fixture
def app(folder: Path) -> Iterator[tuple[Room, str]]:
    with served(folder) as opened:
        opened[0].catalogue.examine()
        yield opened


def is_shown(page: Page, name: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#card .tags a")).to_have_text(name)


def opened(page: Page, address: str, query: str = "", name: str = "n0") -> None:
    page.goto(address + query)
    is_shown(page, name)
    page.locator("#annotator input, #annotator textarea").fill("ada")
    page.locator("#card").click()


def press(page: Page, key: str, name: str) -> None:
    """Press a key and wait for the pair that it leads to."""
    page.keyboard.press(key)
    is_shown(page, name)


def states(room: Room) -> list[str]:
    room.log.refresh()
    return [room.log.state(name) for name in room.catalogue.ids]


def test_review_by_keyboard(app: tuple[Room, str], page: Page) -> None:
    from playwright.sync_api import expect

    room, address = app
    opened(page, address)
    press(page, "j", "n1")
    press(page, "ArrowRight", "n2")
    press(page, "k", "n1")
    press(page, "ArrowLeft", "n0")
    press(page, "a", "n1")
    expect(page.locator("#status")).to_have_text("n0 accepted")
    press(page, "2", "n2")
    press(page, "s", "n3")
    page.keyboard.press("r")
    expect(page.locator("#reason textarea, #reason input")).to_be_focused()
    page.keyboard.type("jas")  # letters of keys are letters here
    page.keyboard.press("Enter")
    is_shown(page, "n4")
    expect(page.locator("#reason textarea, #reason input")).to_have_value("")
    assert states(room) == ["accepted", "rejected", "skipped", "rejected", *["undecided"] * 3]
    assert [one.reason for name in ("n1", "n3") for one in room.log.standing(name)] == [
        "both sides support the answer",
        "jas",
    ]
    assert {one.annotator for name in room.log.pairs() for one in room.log.standing(name)} == {"ada"}
    page.keyboard.press("Escape")
    press(page, "u", "n3")
    press(page, "u", "n2")
    assert states(room) == ["accepted", "rejected", *["undecided"] * 5]
    expect(page.locator("#progress")).to_contain_text("2 of 6 decided: 1 accepted, 1 rejected")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("a")  # not while the help is open
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    assert states(room)[2] == "undecided"
    page.keyboard.press("/")
    page.keyboard.type("n4")
    is_shown(page, "n4")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    expect(page.locator("#card h2")).to_contain_text("Nothing is left")
    assert states(room)[4] == "accepted"


def test_quick_presses_are_answered_one_by_one(
    app: tuple[Room, str], page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More presses come while the page of the first is drawn. They wait in the browser: else the answers could arrive in another order."""
    from playwright.sync_api import expect

    from vlm_contextrl.app import review_tab

    room, address = app
    opened(page, address)
    drawn, is_drawing, go_on = review_tab.rendered, threading.Event(), threading.Event()

    asked: list[int] = []

    def slow_at_first(*arguments: Any) -> list[Any]:
        asked.append(len(asked))
        found = drawn(*arguments)
        if not is_drawing.is_set():
            is_drawing.set()
            assert go_on.wait(30)
        return found

    monkeypatch.setattr(review_tab, "rendered", slow_at_first)
    page.keyboard.press("j")
    assert is_drawing.wait(30)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.wait_for_timeout(300)
    assert len(asked) == 1
    go_on.set()
    is_shown(page, "n3")
    assert len(asked) == 3
    is_drawing.clear()
    go_on.clear()
    page.keyboard.press("a")
    assert is_drawing.wait(30)
    page.keyboard.press("a")  # on a pair that nobody has seen yet
    go_on.set()
    expect(page.locator("#status .failed")).to_contain_text("the pair had changed")
    is_shown(page, "n4")
    assert states(room) == [*["undecided"] * 3, "accepted", *["undecided"] * 3]


def test_a_rejection_without_a_reason_is_not_made(app: tuple[Room, str], page: Page) -> None:
    from playwright.sync_api import expect

    room, address = app
    opened(page, address)
    page.locator("#reject").click()
    expect(page.locator("#status .failed")).to_contain_text("needs a reason")
    page.locator("#annotator input, #annotator textarea").fill("")
    page.locator("#accept").click()
    expect(page.locator("#status .failed")).to_contain_text("write your name")
    assert states(room) == ["undecided"] * 7


def test_pixels_on_the_page_are_pixels_stored(app: tuple[Room, str], page: Page) -> None:
    _, address = app
    opened(page, address)
    got = page.evaluate(
        """async () => {
          const sides = [...document.querySelectorAll('.pair-viewer img')];
          return Promise.all(sides.map(async image => {
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            return [...context.getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 < 3);
          }));
        }"""
    )
    assert [bytes(side) for side in got] == [square(colour).tobytes() for colour in ("red", "green")]
    assert page.locator(".pair-viewer img").nth(0).get_attribute("alt") == "Context C+, supports red"


def test_filter_by_a_click_on_a_histogram_and_by_keyboard(app: tuple[Room, str], page: Page) -> None:
    """Similarities are 0 to 0.6; the last bar holds n6 alone."""
    from playwright.sync_api import expect

    _, address = app
    opened(page, address)
    bars = page.get_by_role("group", name="Similarity").get_by_role("button")
    bars.nth(3).click()
    is_shown(page, "n3")
    expect(page.locator("#progress")).to_contain_text("pair 1 of 1 under this filter")
    expect(bars.nth(3)).to_have_attribute("aria-pressed", "true")
    expect(bars.nth(3)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_contain_text("of 6 under this filter")
    charts = page.get_by_role("group", name="Domain").get_by_role("button", name=re.compile("^charts"))
    charts.focus()
    page.keyboard.press("Space")
    expect(page.locator("#progress")).to_contain_text("pair 2 of 2 under this filter")
    page.locator("#clear").click()
    expect(page.locator("#progress")).to_contain_text("of 7 under this filter")


def test_bulk(app: tuple[Room, str], page: Page) -> None:
    from playwright.sync_api import expect

    room, address = app
    opened(page, address)
    page.locator("#search input, #search textarea").fill("colour")
    expect(page.locator("#progress")).to_contain_text("of 5 under this filter")
    page.get_by_role("button", name="All pairs under the filter").click()
    page.locator("#accept-all").click()
    expect(page.locator(".bulk")).to_contain_text("Accept 5 pairs")
    assert states(room) == ["undecided"] * 7
    page.locator("#cancel").click()
    expect(page.locator(".bulk")).to_have_count(0)
    page.locator("#accept-all").click()
    page.locator("#confirm").click()
    expect(page.locator("#status")).to_contain_text("5 pairs accepted")
    assert states(room) == [*["accepted"] * 5, "undecided", "undecided"]
    page.locator("#undo").click()
    expect(page.locator("#status")).to_contain_text("undone: 5 decisions")
    assert states(room) == ["undecided"] * 7


def test_link_broken_row_and_text_as_text(app: tuple[Room, str], page: Page) -> None:
    from playwright.sync_api import expect

    _, address = app
    opened(page, address, "?pair=n3", "n3")
    page.goto(f"{address}?pair=n5")
    expect(page.locator("#card .broken")).to_contain_text("row 5")
    expect(page.locator(".pair-viewer")).to_be_hidden()
    page.goto(f"{address}?pair=n6%2F%3Cb%3E")
    is_shown(page, "n6/<b>")
    expect(page.locator("#card h2")).to_have_text(EVIL)
    page.evaluate("window.old = 1")
    page.locator("#card .tags a").click()  # its link leads to itself
    page.wait_for_function("!window.old")
    is_shown(page, "n6/<b>")
    page.wait_for_timeout(300)
    assert "run" not in page.title()
    page.goto(f"{address}?pair=%3Cscript%3E")
    expect(page.locator("#status .failed")).to_contain_text("no pair '<script>'")
    is_shown(page, "n0")


def test_export_and_download(app: tuple[Room, str], page: Page) -> None:
    from playwright.sync_api import expect

    room, address = app
    opened(page, address)
    press(page, "a", "n1")
    page.locator("#export").get_by_role("button").first.click()
    page.locator("#export-button").click()
    expect(page.locator("#exported")).to_contain_text("1 pairs written to")
    assert verify_folder(room.log.file.parent / "reviewed-1").rows == 1
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the decisions").click()
    (line,) = Path(download.value.path()).read_text().splitlines()
    assert json.loads(line)["pair"] == "n0"


def test_two_reviewers_at_once(app: tuple[Room, str], browser: Browser) -> None:
    """In turn and on the same pairs: all decisions of both are there, each under its own name."""
    room, address = app
    with watched_page(browser) as one, watched_page(browser) as other:
        for page, name in ((one, "ada"), (other, "bob")):
            page.goto(address)
            is_shown(page, "n0")
            page.locator("#annotator input, #annotator textarea").fill(name)
            page.locator("#card").click()
        one.keyboard.press("a")
        other.keyboard.press("1")
        is_shown(one, "n1")
        is_shown(other, "n1")
        press(one, "a", "n2")
        press(other, "j", "n2")
        press(other, "a", "n3")
    room.log.refresh()
    said = {name: [(d.annotator, d.decision) for d in room.log.standing(name)] for name in ("n0", "n1", "n2")}
    assert sorted(said["n0"]) == [("ada", "accept"), ("bob", "reject")]
    assert said["n1"] == [("ada", "accept")]
    assert said["n2"] == [("bob", "accept")]


@contextmanager
def running(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a user starts it, once it answers."""
    said = folder.parent / "said"
    command = [sys.executable, "-m", "vlm_contextrl", "app", "--pairs", str(folder), "--port", str(port)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache")}
    with said.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr, env=environment)
    try:
        wait_until(lambda: b"http://127.0.0.1" in said.read_bytes(), process)
        yield process
    finally:
        process.kill()
        process.wait()


def test_nothing_acknowledged_is_lost_by_kill_9(browser: Browser, tmp_path: Path) -> None:
    """On 200 pairs; killed in the middle of decisions, and started again."""
    folder = write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(200)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with closing(browser.new_page()) as page:  # not watched: a server that was killed does not answer
        with running(folder, port) as process:
            opened(page, f"http://127.0.0.1:{port}")
            acknowledged = 0
            for n in range(12):
                page.keyboard.press("a")
                is_shown(page, f"n{n + 1}")
                acknowledged = n + 1
            page.keyboard.press("a")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            page.goto("about:blank")
        log = DecisionLog(tmp_path / "pairs-decisions", folder, content_hash(folder))
        assert all(log.state(f"n{n}") == "accepted" for n in range(acknowledged))
        with running(folder, port) as process:
            page.goto(f"http://127.0.0.1:{port}")
            is_shown(page, f"n{sum(log.state(f'n{n}') == 'accepted' for n in range(200))}")
            process.send_signal(signal.SIGINT)
            page.goto("about:blank")
            assert process.wait(timeout=120) in (0, 130, -signal.SIGINT)
