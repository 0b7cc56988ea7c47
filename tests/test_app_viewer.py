"""The pair viewer: what differs, worked out by hand, and what a real browser shows in every view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.viewer_page import (
    NASTY,
    PAIRS,
    TIMES,
    array,
    choose,
    on_screen,
    one_to_one,
    picture,
    places,
    read_back,
    set_slider,
    show,
    viewer_page,
)
from vlm_contextrl.app.viewer import Region, Side, changed_region, shown

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

PAGES = Path(__file__).parents[1] / "app" / "pages"


def test_changed_region_by_hand() -> None:
    """Two of 4 x 4 pixels differ, at (1, 0) and (2, 3): columns 1 to 2, rows 0 to 3, and 2 / 16 of the pixels."""
    confounder = picture(4, 4, (1, 0, (101, 100, 100)), (2, 3, (100, 100, 0)))
    assert changed_region(picture(4, 4), confounder) == Region(1, 0, 3, 4, share=2 / 16)


def test_no_region_where_nothing_differs_or_sizes_do() -> None:
    assert changed_region(picture(4, 4), picture(4, 4)) is None
    assert changed_region(picture(4, 4), picture(4, 5)) is None


def test_the_value_is_plain_json() -> None:
    sides = [Side("/image/k/context", "first", 4, 3), Side("/image/k/confounder", "second", 4, 3)]
    assert shown("k", sides, Region(1, 0, 3, 4, 0.125)) == {
        "key": "k",
        "sides": [
            {"url": "/image/k/context", "alt": "first", "width_px": 4, "height_px": 3},
            {"url": "/image/k/confounder", "alt": "second", "width_px": 4, "height_px": 3},
        ],
        "region": {"left_px": 1, "top_px": 0, "right_px": 3, "bottom_px": 4, "share": 0.125},
    }
    assert shown("k", sides, None)["region"] is None


@pytest.mark.parametrize("url", ["https://example.org/a.png", "//example.org/a.png", "file:///etc/passwd"])
def test_a_picture_from_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(AssertionError, match="outside the app's own server"):
        Side(url, "", 1, 1)


def test_the_page_has_no_template_expression_no_markup_from_data_and_no_address() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("viewer.*")}
    assert set(texts) == {"viewer.html", "viewer.css", "viewer.js"}
    for name in ("viewer.html", "viewer.css"):
        assert not [mark for mark in ("${", "{{", "`", "\\") if mark in texts[name]], name
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacent", "eval") if word in texts["viewer.js"]
    ]
    assert not [name for name, text in texts.items() if "//" in text.replace("// ", "")]


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with viewer_page() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("width_px", [1280, 1277])
def test_pixels_shown_are_the_pixels_stored(page: Page, address: str, width_px: int) -> None:
    """Of the loaded pictures, and of the screen at 1:1 in side by side, swipe, onion skin and blink; an odd width puts
    middles between pixels."""
    page.set_viewport_size({"width": width_px, "height": 900})
    viewer = show(page, address, "noise")
    context, confounder = (array(image) for image in PAIRS["noise"])
    assert np.array_equal(read_back(viewer.locator(".a img")), context)
    assert np.array_equal(read_back(viewer.locator(".b img")), confounder)
    viewer.get_by_label("Outline what differs").uncheck()
    one_to_one(viewer)
    assert np.array_equal(on_screen(page, ".a"), context)
    assert np.array_equal(on_screen(page, ".b"), confounder)

    choose(viewer, "swipe")
    one_to_one(viewer)
    half = on_screen(page, ".b")
    assert np.array_equal(half[:, :130], context[:, :130])  # the divider hides some pixels around the middle
    assert np.array_equal(half[:, 170:], confounder[:, 170:])
    set_slider(page, viewer, "divider", "Home")
    assert np.array_equal(on_screen(page, ".b")[:, 1:], confounder[:, 1:])
    set_slider(page, viewer, "divider", "End")
    assert np.array_equal(on_screen(page, ".b"), context)

    choose(viewer, "onion")
    mixed = on_screen(page, ".b").astype(float)
    assert np.abs(mixed - (context.astype(float) + confounder) / 2).max() <= 1.5
    set_slider(page, viewer, "opacity", "Home")
    assert np.array_equal(on_screen(page, ".b"), context)
    set_slider(page, viewer, "opacity", "End")
    assert np.array_equal(on_screen(page, ".b"), confounder)

    choose(viewer, "blink")
    viewer.get_by_role("button", name="Pause").click()
    for _ in range(2):
        seen = {"a": context, "b": confounder}[str(viewer.get_attribute("data-seen"))]
        assert np.array_equal(on_screen(page, ".a"), seen)
        viewer.get_by_role("button", name="Other picture").click()


@pytest.mark.slow
def test_difference_by_hand(page: Page, address: str) -> None:
    """|a - b| times the sensitivity, at most 255: 1 and 100 and 255 grey levels at three pixels of 4 x 4."""
    viewer = show(page, address, "small")
    choose(viewer, "difference")
    canvas, caption = viewer.locator("canvas"), viewer.locator(".c figcaption")
    caption.get_by_text("the largest is 255 of 255").wait_for()
    expected = np.zeros((4, 4, 3), dtype=int)
    expected[1, 1], expected[1, 2], expected[2, 3] = (1, 0, 0), (0, 100, 0), (255, 255, 0)
    assert np.array_equal(read_back(canvas), (expected * 4).clip(max=255))
    for key, factor in (("Home", 1), ("ArrowRight", 2), ("End", 256)):
        set_slider(page, viewer, "sensitivity", key)
        assert np.array_equal(read_back(canvas), (expected * factor).clip(max=255)), factor
        assert caption.inner_text().startswith(f"Difference {TIMES} {factor};")
    assert canvas.get_attribute("aria-label") == caption.inner_text()
    choose(show(page, address, "noise"), "difference")
    set_slider(page, page.locator("[data-key=noise]"), "sensitivity", "Home")
    page.locator("[data-key=noise] .c figcaption").get_by_text(f"Difference {TIMES} 1;").wait_for()
    context, confounder = (array(image).astype(int) for image in PAIRS["noise"])
    assert np.array_equal(read_back(page.locator("[data-key=noise] canvas")), np.abs(context - confounder))


@pytest.mark.slow
def test_zoom_and_position_are_one_for_both(page: Page, address: str) -> None:
    viewer = show(page, address, "noise")
    start = places(viewer)

    def places_now() -> list[float]:
        first, second = places(viewer)
        assert first == pytest.approx(second, abs=0.01)
        return first

    view = viewer.locator(".b .view").bounding_box()
    assert view is not None
    # The point under the pointer stays: a quarter in, picture and view fill each other, so left = (1 - scale) * quarter.
    page.mouse.move(view["x"] + view["width"] / 4, view["y"] + view["height"] / 2)
    page.mouse.wheel(0, -300)
    page.locator(".stage.zoomed").wait_for()
    left, _, width = places_now()
    assert width > 1.5 * start[0][2]
    assert left == pytest.approx((1 - width / start[0][2]) * view["width"] / 4, abs=1)
    assert viewer.locator(".a img").evaluate("image => image.style.imageRendering") == "pixelated"

    page.mouse.down()
    page.mouse.move(view["x"] + view["width"] / 4 + 30, view["y"] + view["height"] / 2 - 20)
    page.mouse.up()
    assert places_now()[0] == pytest.approx(left + 30, abs=1)

    viewer.locator(".stage").focus()
    before = places_now()
    page.keyboard.press("ArrowRight")
    assert places_now()[0] == pytest.approx(before[0] - view["width"] / 10, abs=1.1)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("+")
    assert places_now()[2] == pytest.approx(width * 1.5, abs=0.1)
    page.keyboard.press("-")
    assert places_now()[2] == pytest.approx(width, abs=0.1)
    page.keyboard.press("0")
    assert places(viewer) == start
    viewer.get_by_role("button", name="Zoom in").click()
    assert places_now()[2] == pytest.approx(1.5 * start[0][2], abs=0.1)
    for _ in range(9):
        page.keyboard.press("Enter")
    assert places_now()[2] <= 32 * 300 + 0.1
    viewer.locator(".a .view").dblclick()
    assert places(viewer) == start
    viewer.get_by_role("button", name="Zoom in").click()
    viewer.get_by_role("button", name="Fit").click()
    assert places(viewer) == start


@pytest.mark.slow
def test_the_divider_can_be_dragged(page: Page, address: str) -> None:
    viewer = show(page, address, "noise")
    choose(viewer, "swipe")
    view = viewer.locator(".b .view").bounding_box()
    assert view is not None
    middle = view["y"] + view["height"] / 2
    page.mouse.move(view["x"] + view["width"] / 2 + 4, middle)
    page.mouse.down()
    page.mouse.move(view["x"] + view["width"] / 5, middle, steps=4)
    page.mouse.up()
    assert viewer.locator("[name=divider]").input_value() == "20"
    assert (
        viewer.locator(".b .layer").evaluate("layer => getComputedStyle(layer).clipPath")
        == "inset(0px 0px 0px 20%)"
    )


@pytest.mark.slow
def test_the_region_is_outlined_and_told(page: Page, address: str) -> None:
    """60 x 40 of 300 x 200 px are other noise: 2,400 pixels of 60,000, 4 %."""
    viewer = show(page, address, "noise")
    words = f"4 % of the pixels differ (2,400), in a box of 60 {TIMES} 40 px at (30, 150)."
    assert viewer.locator(".region").inner_text() == words
    for side in (".a", ".b"):
        image, outline = (viewer.locator(f"{side} {name}").bounding_box() for name in ("img", ".outline"))
        assert image is not None
        assert outline is not None
        scale = image["width"] / 300
        assert outline["x"] == pytest.approx(image["x"] + 30 * scale - 3, abs=0.6)
        assert outline["y"] == pytest.approx(image["y"] + 150 * scale - 3, abs=0.6)
        assert outline["width"] == pytest.approx(60 * scale + 6, abs=0.6)
        assert outline["height"] == pytest.approx(40 * scale + 6, abs=0.6)
    box = viewer.get_by_label("Outline what differs")
    box.focus()
    page.keyboard.press("Space")
    assert viewer.locator(".outline:visible").count() == 0
    viewer = show(page, address, "equal")
    box = viewer.get_by_label("Outline what differs")
    assert viewer.locator(".region").inner_text() == "No pixel differs."
    assert not box.is_checked()  # settings stay from pair to pair


@pytest.mark.slow
def test_pictures_of_unlike_sizes_and_broken_ones(page: Page, address: str) -> None:
    """300 x 200 and 120 x 240 px share a frame of 300 x 240: the second fills its height and 120 / 300 of its width."""
    viewer = show(page, address, "unlike")
    frame = viewer.locator(".a .view").bounding_box()
    assert frame is not None
    assert frame["width"] / frame["height"] == pytest.approx(300 / 240, abs=0.01)
    first, second = (viewer.locator(f"{side} img").bounding_box() for side in (".a", ".b"))
    assert first is not None
    assert second is not None
    assert first["width"] == pytest.approx(frame["width"], abs=1.1)
    assert first["width"] / first["height"] == pytest.approx(300 / 200, abs=0.01)
    assert second["height"] == pytest.approx(frame["height"], abs=1.1)
    assert second["width"] / second["height"] == pytest.approx(120 / 240, abs=0.01)
    assert viewer.locator(".region").inner_text() == "The pictures have different sizes."
    assert viewer.locator(".b figcaption").inner_text() == f"The confounder (120 {TIMES} 240 px)"
    choose(viewer, "difference")
    viewer.get_by_text("No difference: the sizes differ").wait_for()
    assert viewer.locator(".outline:visible").count() == 0

    page.locator("#show-broken").click()
    page.get_by_text("No difference: a picture did not load.").wait_for()
    choose(page.locator("[data-key=broken]"), "side")
    assert page.locator(".a figcaption").first.inner_text() == "side 0: the picture did not load"
    page.locator("#show-none").click()
    page.locator(".pair-viewer").first.wait_for(state="hidden")


@pytest.mark.slow
def test_a_late_picture_says_nothing_of_the_next_pair(page: Page, address: str) -> None:
    """The next pair is shown while the first one's pictures are still on their way."""
    viewer = show(page, address, "equal")
    choose(viewer, "difference")
    held: list[Route] = []
    # playwright takes no built-in method for a handler
    page.route("**/image/noise/*", lambda route: held.append(route))
    page.locator("#show-noise").click()
    page.locator("[data-key=noise] .c").get_by_text("Loading").wait_for()
    assert page.locator("[data-key=noise] img").first.evaluate("image => image.style.visibility") == "hidden"
    viewer = show(page, address, "unlike")
    assert len(held) == 2
    for route in held:
        route.continue_()
    page.wait_for_timeout(300)
    assert viewer.locator(".c figcaption").inner_text().startswith("No difference: the sizes differ")


@pytest.mark.slow
def test_text_from_a_dataset_is_text(page: Page, address: str) -> None:
    viewer = show(page, address, "nasty")
    assert viewer.locator(".a figcaption").inner_text() == NASTY
    assert viewer.locator(".a img").get_attribute("alt") == NASTY
    assert viewer.locator("img").count() == 2
    assert page.title() == "Viewer"
