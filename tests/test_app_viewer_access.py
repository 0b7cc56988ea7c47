"""The pair viewer for everybody: by keyboard, without motion, on a telephone, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.app_browser import watched_page
from tests.viewer_page import MODES, choose, show, viewer_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with viewer_page() as running:
        yield running


def test_views_by_keyboard(page: Page, address: str) -> None:
    """Arrow keys in the row of views; b and d from anywhere but a text field, and back by the same key."""
    viewer = show(page, address, "noise")
    viewer.locator("[value=side]").focus()
    for mode in (*MODES[1:], "side"):
        page.keyboard.press("ArrowRight")
        assert viewer.get_attribute("data-mode") == mode
    for key, mode in (("b", "blink"), ("d", "difference"), ("d", "blink"), ("d", "difference")):
        page.keyboard.press(key)
        assert viewer.get_attribute("data-mode") == mode
    page.keyboard.press("Control+b")
    page.locator("#reason textarea, #reason input").first.focus()
    page.keyboard.type("b")
    assert viewer.get_attribute("data-mode") == "difference"
    page.evaluate(
        "() => { document.body.append(document.createElement('dialog')); document.querySelector('dialog').showModal(); }"
    )
    page.keyboard.press("b")
    assert viewer.get_attribute("data-mode") == "difference"
    page.keyboard.press("Escape")
    page.locator("#show-none").focus()
    page.keyboard.press("d")
    assert viewer.get_attribute("data-mode") == "blink"


def flips(viewer: Locator) -> int:
    """How often another picture is shown within 1.5 s."""
    counted: int = viewer.evaluate(
        """async (viewer) => {
          let count = 0;
          new MutationObserver((changes) => { count += changes.length; })
            .observe(viewer, { attributeFilter: ['data-seen'] });
          await new Promise((done) => setTimeout(done, 1500));
          return count;
        }"""
    )
    return counted


def test_blink_shows_each_picture_and_pauses(page: Page, address: str) -> None:
    viewer = show(page, address, "noise")
    page.keyboard.press("b")
    for seen in "ba":
        visible = page.wait_for_function(  # in one look: the next flip comes soon
            """(seen) => {
              const figures = document.querySelectorAll(`[data-key=noise][data-seen=${seen}] figure`);
              const visible = [...figures].filter((figure) => figure.checkVisibility({ visibilityProperty: true }));
              return figures.length && visible.map((figure) => figure.className);
            }""",
            arg=seen,
        )
        assert visible.json_value() == [seen]
    pause = viewer.locator("[data-blink=play]")
    pause.focus()
    page.keyboard.press("Enter")
    assert pause.inner_text() == "Play"
    at_rest = viewer.get_attribute("data-seen")
    assert flips(viewer) == 0
    page.keyboard.press("Enter")
    page.locator(f"[data-key=noise][data-seen={'b' if at_rest == 'a' else 'a'}]").wait_for()


def test_reduced_motion_stops_blinking(browser: Browser, address: str) -> None:
    with watched_page(browser, reduced_motion="reduce") as page:
        viewer = show(page, address, "noise")
        choose(viewer, "blink")
        assert flips(viewer) == 0
        assert viewer.locator("[data-blink=play]").is_hidden()
        viewer.get_by_role("button", name="Other picture").press("Enter")
        assert viewer.get_attribute("data-seen") == "b"


def test_keys_that_move_nothing_are_left_to_the_page(page: Page, address: str) -> None:
    viewer = show(page, address, "noise")
    page.evaluate(
        "() => { window.heard = []; document.addEventListener('keydown', (e) => heard.push(e.key)); }"
    )
    viewer.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("j")
    assert page.evaluate("() => heard") == ["ArrowRight", "j"]
    page.evaluate("() => scrollTo(0, 0)")


def test_two_viewers_do_not_share_their_views(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#show-two").click()
    first, second = (page.locator(f"[data-key={key}]") for key in ("noise", "equal"))
    second.wait_for()
    choose(first, "swipe")
    choose(second, "onion")
    assert first.locator("[value=swipe]").is_checked()
    assert first.get_attribute("data-mode") == "swipe"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible_in_every_view(page: Page, address: str, theme: str) -> None:
    """No violation of axe's rules (WCAG 2.2 AA contrast, names and roles, and best practice), in any view."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python"
    ).Axe()
    viewer = show(page, address, "noise", theme)
    assert page.evaluate("() => document.body.classList.contains('dark')") == (theme == "dark")
    for mode in MODES:
        choose(viewer, mode)
        found = axe.run(page, context=".pair-viewer")
        assert not found.response["violations"], (mode, found.generate_report())
        undecided = [
            node["html"]
            for rule in found.response["incomplete"]
            for node in rule["nodes"]
            if rule["id"] == "color-contrast"
        ]
        # axe takes the minus sign for no text; the colours are those of the other buttons
        assert [html for html in undecided if "Zoom out" not in html] == [], mode


def test_every_control_is_reached_by_tab_and_shows_it(page: Page, address: str) -> None:
    """Tab order in swipe: the view, four zoom buttons, divider, outline, pictures."""
    viewer = show(page, address, "noise")
    viewer.locator("[value=side]").focus()
    page.keyboard.press("ArrowRight")
    reached = []
    for _ in range(8):
        found = page.evaluate(
            """() => {
              const it = document.activeElement, mark = it.type === 'radio' ? it.nextElementSibling : it;
              const style = getComputedStyle(mark);
              return [it.value || it.getAttribute('aria-label') || it.textContent.trim(), style.outlineStyle, style.outlineWidth];
            }"""
        )
        reached.append(found[0])
        assert found[1:] == ["solid", "3px"], found
        page.keyboard.press("Tab")
    assert reached[:5] == ["swipe", "Zoom out", "Zoom in", "One picture pixel per screen pixel", "Fit"]
    assert reached[5:7] == ["50", "on"]
    assert reached[7].startswith("Pictures.")


def test_a_telephone_shows_all_of_it(browser: Browser, address: str, tmp_path: Path) -> None:
    """390 px: nothing sticks out, every control is at least 44 px high or a slider, the pictures stand below each other."""
    with watched_page(
        browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    ) as page:
        viewer = show(page, address, "noise")
        for mode in MODES:
            choose(viewer, mode)
            assert page.evaluate("() => document.scrollingElement.scrollWidth") <= 390
            boxes = viewer.locator(":is(button, .modes label, [type=range], [type=checkbox], .view):visible")
            for place in boxes.all():
                box = place.bounding_box()
                assert box is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 390
            for button in viewer.locator(":is(button, .modes label):visible").all():
                box = button.bounding_box()
                assert box is not None
                assert box["height"] >= 44
            page.screenshot(path=tmp_path / f"{mode}.png", full_page=True)
        choose(viewer, "side")
        first, second = (viewer.locator(f"{side} .view").bounding_box() for side in (".a", ".b"))
        assert first is not None
        assert second is not None
        assert second["y"] > first["y"] + first["height"]
        assert first["width"] > 300
