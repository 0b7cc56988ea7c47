"""A page with nothing but pair viewers, and how tests work and read it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.app_browser import serving
from vlm_contextrl.app.viewer import Side, changed_region, pair_viewer, shown
from vlm_contextrl.images import encode_png

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TIMES = "\N{MULTIPLICATION SIGN}"
MODES = ("side", "swipe", "onion", "blink", "difference")
NASTY = "<img src=x onerror=\"document.title='run'\"> ${1+1} {{value}}"
Pixels = NDArray[np.uint8]


def picture(width_px: int, height_px: int, *spots: tuple[int, int, tuple[int, int, int]]) -> Image.Image:
    """Grey (100, 100, 100) with single pixels (x, y, colour)."""
    image = Image.new("RGB", (width_px, height_px), (100, 100, 100))
    for x, y, colour in spots:
        image.putpixel((x, y), colour)
    return image


def noise(seed: int, width_px: int = 300, height_px: int = 200) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(levels)


PAIRS: dict[str, tuple[Image.Image, Image.Image]] = {
    # |a - b|: 1 and 100 and 255 grey levels at three pixels, 0 elsewhere
    "small": (
        picture(4, 4, (3, 2, (255, 0, 255))),
        picture(4, 4, (1, 1, (101, 100, 100)), (2, 1, (100, 0, 100)), (3, 2, (0, 255, 255))),
    ),
    "noise": (noise(1), noise(1)),
    "unlike": (noise(2), noise(3, 120, 240)),
    "equal": (noise(4), noise(4)),
    "nasty": (noise(5), noise(6)),
}
PAIRS["noise"][1].paste(noise(7, 60, 40), (30, 150))  # noise on noise: 1 / 256^3 of a pixel stays


def value_of(key: str) -> dict[str, Any]:
    context, confounder = PAIRS[key]
    sides = [
        Side(f"/image/{key}/{name}", NASTY if key == "nasty" else f"The {name}", image.width, image.height)
        for name, image in (("context", context), ("confounder", confounder))
    ]
    return shown(key, sides, changed_region(context, confounder))


def broken_value() -> dict[str, Any]:
    sides = [Side("data:image/png;base64,AAAA", f"side {n}", 4, 4) for n in range(2)]
    return shown("broken", sides, None)


@contextmanager
def viewer_page() -> Iterator[str]:
    """The address of a page with two viewers and a button per pair."""
    gr = pytest.importorskip("gradio", reason="the app needs gradio")
    fastapi = pytest.importorskip("fastapi")
    application = fastapi.FastAPI()

    def image(key: str, side: str) -> Any:
        return fastapi.Response(encode_png(PAIRS[key][side == "confounder"]), media_type="image/png")

    application.get("/image/{key}/{side}")(image)
    with gr.Blocks(title="Viewer", analytics_enabled=False) as demo:
        viewer, second = pair_viewer(), pair_viewer()
        gr.Textbox(label="Reason", elem_id="reason")
        for key in PAIRS:
            value = value_of(key)
            gr.Button(key, elem_id=f"show-{key}").click(
                lambda value=value: value, None, viewer, api_visibility="private"
            )
        gr.Button("broken", elem_id="show-broken").click(broken_value, None, viewer, api_visibility="private")
        gr.Button("none", elem_id="show-none").click(lambda: None, None, viewer, api_visibility="private")
        gr.Button("two", elem_id="show-two").click(
            lambda: (value_of("noise"), value_of("equal")), None, [viewer, second], api_visibility="private"
        )
    mounted = gr.mount_gradio_app(application, demo, path="/", run_history=False)
    with serving(mounted) as running:
        yield running


def show(page: Page, address: str, key: str, theme: str = "light") -> Locator:
    """Open the page unless it is, show a pair, and wait until both pictures are there."""
    if not page.url.startswith(address):
        page.goto(f"{address}/?__theme={theme}")
    page.locator(f"#show-{key}").click()
    viewer = page.locator(f".pair-viewer[data-key={key}]")
    viewer.wait_for()
    page.wait_for_function(
        "key => [...document.querySelectorAll(`[data-key=${key}] img`)].every(i => i.complete && !i.style.visibility)",
        arg=key,
    )
    return viewer


def choose(viewer: Locator, mode: str) -> None:
    viewer.locator(f"[type=radio][value={mode}]").check(force=True)
    assert viewer.get_attribute("data-mode") == mode


def one_to_one(viewer: Locator) -> None:
    viewer.get_by_role("button", name="One picture pixel").click()
    assert viewer.locator(".zoom output").inner_text() == "100 %"


def array(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def read_back(locator: Locator) -> Pixels:
    """RGB of an <img> or <canvas>, through a canvas of its own size."""
    width, height, values = locator.evaluate(
        """async (shown) => {
          if (shown.decode) await shown.decode();
          const [width, height] = [shown.naturalWidth || shown.width, shown.naturalHeight || shown.height];
          const context = new OffscreenCanvas(width, height).getContext('2d');
          context.drawImage(shown, 0, 0);
          return [width, height, [...context.getImageData(0, 0, width, height).data]];
        }"""
    )
    rgba = np.array(values, dtype=np.uint8).reshape(height, width, 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3]


def on_screen(page: Page, side: str) -> Pixels:
    """The screen where one picture lies; Chromium draws boxes on whole screen pixels."""
    box = page.locator(f".pair-viewer {side} :is(img, canvas)").first.bounding_box()
    assert box is not None
    left, top, width, height = (math.floor(box[name] + 0.5) for name in ("x", "y", "width", "height"))
    screen = array(Image.open(io.BytesIO(page.screenshot())))
    return screen[top : top + height, left : left + width]


def places(viewer: Locator) -> list[list[float]]:
    """Left, top and width of both pictures, in px inside their views."""
    found: list[list[float]] = viewer.evaluate(
        """viewer => [...viewer.querySelectorAll('img')].map((image) => {
          const [at, view] = [image, image.closest('.view')].map((each) => each.getBoundingClientRect());
          return [at.left - view.left, at.top - view.top, at.width];
        })"""
    )
    return found


def set_slider(page: Page, viewer: Locator, name: str, key: str) -> None:
    viewer.locator(f"[name={name}]").focus()
    page.keyboard.press(key)
