"""The app for people who see, point or read otherwise: axe finds nothing in any tab, light or dark; the keyboard reaches every control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.app_browser import serving, watched_page
from tests.app_data import break_picture, colour_pair, write_pairs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
TABS = ("Review", "Selection", "Dataset", "Run")
CONTROLS = "button, a[href], input:not([type=file]), textarea, select, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from vlm_contextrl.app.server import application, open_room
    from vlm_contextrl.app.settings import AppSettings

    place = tmp_path_factory.mktemp("accessible")
    folder = write_pairs(place / "pairs", [colour_pair(n) for n in range(4)])
    break_picture(folder, "n3")
    run = place / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "reward_mean": 0.5}\n{"step": 2, "reward_mean": 0.6}\n')
    room = open_room(AppSettings(pairs=folder, model="tinyvl", run=run))
    room.catalogue.examine()
    with serving(application(room)) as opened:
        yield opened
    room.close()


def unfolded(page: Page, address: str, tab: str, query: str = "") -> None:
    """A tab with everything open that can be opened."""
    from playwright.sync_api import expect

    page.goto(address + query)
    expect(page.locator("#card h2")).to_be_visible()
    page.get_by_role("tab", name=tab).click()
    if tab == "Review":
        for accordion in ("#bulk", "#export"):
            page.locator(accordion).get_by_role("button").first.click()
        page.locator("#annotator input, #annotator textarea").fill("ada")
        page.locator("#accept-all").click()
        expect(page.locator("#confirm")).to_be_visible()
    elif tab == "Selection":
        expect(page.locator("#selection-pair input, #selection-pair textarea")).to_have_value("n0")
        page.locator("#own").get_by_role("button").first.click()
        page.locator("#ask").click()
        expect(page.locator("#ask-status")).to_contain_text("asked in both orders", timeout=60_000)
    else:
        expect(page.locator(f"#{tab.lower()}-frame iframe")).to_be_visible()
    page.wait_for_timeout(400)  # transitions of colour


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_nothing(browser: Browser, address: str, tab: str, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with watched_page(browser, color_scheme=scheme) as page:
        unfolded(page, address, tab, f"?__theme={scheme}")
        found = [
            f"{one['id']}: {node['html'][:200]}"
            for one in axe.Axe().run(page).response["violations"]
            for node in one["nodes"]
        ]
        page.goto("about:blank")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("tab", ["Review", "Selection"])
def test_every_control_is_reached_by_the_tabulator_key_and_shows_it(
    browser: Browser, address: str, tab: str
) -> None:
    """Radio buttons are one stop per group, and a tab list is one stop (arrow keys move inside)."""
    with watched_page(browser) as page:
        unfolded(page, address, tab)
        page.evaluate(
            """controls => {
              document.activeElement?.blur();
              window.wanted = [...document.querySelectorAll(controls)].filter(c => c.checkVisibility({visibilityProperty: true})
                && c.offsetWidth && !c.disabled && c.tabIndex >= 0 && !(c.type === 'radio' && !c.checked));
            }""",
            CONTROLS,
        )
        unseen: list[str] = []
        for _ in range(page.evaluate("wanted.length") + 25):
            page.keyboard.press("Tab")
            unseen += page.evaluate(
                """() => {
                  const now = document.activeElement;
                  wanted = wanted.filter(c => c !== now);
                  if (!now || now === document.body || now.type === 'file' || now.type === 'radio') return [];
                  const styles = [now, now.parentElement].map(e => getComputedStyle(e));
                  const seen = styles.some(s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 || s.boxShadow !== 'none');
                  return seen ? [] : [now.outerHTML.slice(0, 160)];
                }"""
            )
        left = page.evaluate("wanted.map(c => c.outerHTML.slice(0, 160))")
        page.goto("about:blank")
    assert not left, "not reached: " + "\n".join(left)
    assert not unseen, "no focus seen: " + "\n".join(unseen)


def test_a_telephone_shows_the_review_without_scrolling_sideways(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    with watched_page(browser, viewport={"width": 390, "height": 844}) as page:
        page.goto(address)
        expect(page.locator("#card h2")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.goto("about:blank")
