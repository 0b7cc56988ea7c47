"""The pair viewer: two nearly equal pictures side by side or over each other, and what differs between them.

A `gr.HTML` component of its own, because Gradio's picture components send WebP with loss, blend colours over what they mark and
cannot be worked by keyboard. The page (pages/viewer.*) has five views: side by side, swipe, onion skin, blink, and the difference
|context - confounder| per channel times a sensitivity, which the browser computes from the pictures that it shows. Zoom and
position are one for both pictures.

The markup holds no template expressions: what comes from a dataset reaches the page as attributes and text, never as markup.

Left out: pictures of unlike sizes are fitted into one frame, but get neither a region nor a difference, since their pixels
do not correspond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image, ImageChops

from vlm_contextrl.images import changed_fraction

if TYPE_CHECKING:
    import gradio as gr


@dataclass(frozen=True)
class Side:
    """One picture as the browser gets it. url: a path on the app's own server to a PNG, or a data URL; alt: also its caption."""

    url: str
    alt: str
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        is_own = address.scheme in ("", "data") and not address.netloc
        assert is_own, f"{self.url[:80]}: outside the app's own server"


@dataclass(frozen=True)
class Region:
    """The smallest box around all pixels that differ, right and bottom outside; share: of the picture's pixels, in (0, 1]."""

    left_px: int
    top_px: int
    right_px: int
    bottom_px: int
    share: float


def pair_viewer() -> gr.HTML:
    """The component. Its value is `shown(...)`, or None for no pair; view, sensitivity and outline stay when it changes."""
    import gradio as gr

    return gr.HTML(
        html_template=_page("viewer.html"),
        css_template=_page("viewer.css"),
        js_on_load=_page("viewer.js"),
        apply_default_css=False,
    )


def shown(key: str, sides: Sequence[Side], region: Region | None) -> dict[str, Any]:
    """The component's value for one pair: context first, confounder second, and `changed_region` of the two."""
    assert len(sides) == 2, f"{len(sides)} sides: expected context and confounder"
    return {
        "key": key,
        "sides": [asdict(side) for side in sides],
        "region": None if region is None else asdict(region),
    }


def changed_region(context: Image.Image, confounder: Image.Image) -> Region | None:
    """Where two RGB pictures differ, in any channel by any amount; None when they do not, or when their sizes differ."""
    if context.size != confounder.size:
        return None
    box = ImageChops.difference(context, confounder).getbbox()
    return Region(*box, share=changed_fraction(context, confounder)) if box else None


def _page(name: str) -> str:
    return (resources.files("vlm_contextrl.app") / "pages" / name).read_text(encoding="utf-8")
