"""A square drawing surface in unit coordinates (0..1, y down).

It is drawn at twice the size and averaged down, which is the anti-aliasing. The face is the one that Pillow
ships (Aileron), so pictures are the same on every machine with the same Pillow and FreeType.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "red": (215, 25, 30),
    "green": (25, 150, 50),
    "blue": (30, 70, 215),
    "yellow": (245, 205, 0),
    "purple": (135, 40, 165),
    "orange": (250, 125, 10),
    "cyan": (0, 190, 210),
}
COLOURS = tuple(PALETTE)
BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "grey": (222, 222, 222),
    "pink": (252, 226, 230),
    "beige": (243, 234, 214),
}
BLACK: Colour = (25, 25, 25)
MIDDLE: Colour = (130, 130, 130)
PALE: Colour = (190, 190, 190)
WHITE: Colour = (255, 255, 255)
OVERSAMPLE = 2
CAP_HEIGHT = 0.7  # height of a capital or digit in ems


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def on_circle(centre: Point, radius: float, degrees: float) -> Point:
    """The point at `degrees` clockwise from twelve o'clock."""
    angle = math.radians(degrees)
    return centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle)


class Canvas:
    """Thick, plain drawing operations; every length is a share of the canvas side."""

    def __init__(self, size_px: int, background: str) -> None:
        self.side = size_px * OVERSAMPLE
        self.image = Image.new("RGB", (self.side, self.side), BACKGROUNDS[background])
        self.pen = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]

    def _px(self, length: float) -> int:
        return max(1, round(length * self.side))

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self.pen.polygon(self._scaled(points), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """A filled upright rectangle."""
        self.pen.rectangle([round(edge * self.side) for edge in (left, top, right, bottom)], fill=fill)

    def disc(self, centre: Point, radius: float, fill: Colour) -> None:
        """A filled circle."""
        x, y, r = centre[0] * self.side, centre[1] * self.side, radius * self.side
        self.pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    def ring(self, centre: Point, radius: float, width: float, colour: Colour) -> None:
        """A circle's outline, inside `radius`."""
        x, y, r = centre[0] * self.side, centre[1] * self.side, radius * self.side
        self.pen.ellipse([x - r, y - r, x + r, y + r], outline=colour, width=self._px(width))

    def arc(
        self, centre: Point, radius: float, start: float, end: float, width: float, colour: Colour
    ) -> None:
        """Part of a ring, degrees clockwise from twelve o'clock."""
        x, y, r = centre[0] * self.side, centre[1] * self.side, radius * self.side
        self.pen.arc([x - r, y - r, x + r, y + r], start - 90, end - 90, fill=colour, width=self._px(width))

    def slice(self, centre: Point, radius: float, start: float, end: float, fill: Colour) -> None:
        """A slice of pie, degrees clockwise from twelve o'clock."""
        x, y, r = centre[0] * self.side, centre[1] * self.side, radius * self.side
        self.pen.pieslice([x - r, y - r, x + r, y + r], start - 90, end - 90, fill=fill)

    def line(self, points: Sequence[Point], width: float, colour: Colour, *, round_ends: bool = True) -> None:
        """A thick polyline."""
        self.pen.line(self._scaled(points), fill=colour, width=self._px(width), joint="curve")
        if round_ends:
            for point in (points[0], points[-1]):
                self.disc(point, (self._px(width) - 1) / 2 / self.side, colour)

    def spoke(
        self, centre: Point, inner: float, outer: float, degrees: float, width: float, colour: Colour
    ) -> None:
        """A straight stroke along a radius, degrees clockwise from twelve o'clock."""
        self.line(
            [on_circle(centre, inner, degrees), on_circle(centre, outer, degrees)],
            width,
            colour,
            round_ends=False,
        )

    def arrow(self, start: Point, end: Point, width: float, head: float, colour: Colour) -> None:
        """A thick arrow whose tip is at `end`."""
        length = math.dist(start, end)
        ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
        neck = end[0] - ux * head, end[1] - uy * head
        self.line([start, neck], width, colour, round_ends=False)
        half = head * 0.6
        self.polygon(
            [end, (neck[0] - uy * half, neck[1] + ux * half), (neck[0] + uy * half, neck[1] - ux * half)],
            colour,
        )

    def text(
        self, centre: Point, string: str, height: float, colour: Colour = BLACK, max_width: float = 1.0
    ) -> None:
        """Bold text of the given capital height, centred; shrunk to `max_width` where it would be wider."""
        size = max(1, round(height / CAP_HEIGHT * self.side))
        width = _font(size).getlength(string) / self.side
        if width > max_width:
            size = max(1, int(size * max_width / width))
        # A capital's middle lies below the middle of ascender and descender: anchor at the baseline instead.
        baseline = centre[1] * self.side + size * CAP_HEIGHT / 2
        self.pen.text(
            (centre[0] * self.side, baseline),
            string,
            fill=colour,
            font=_font(size),
            anchor="ms",
            stroke_width=max(1, size // 28),
        )

    def finish(self) -> Image.Image:
        """The picture at its own size."""
        return self.image.reduce(OVERSAMPLE)
