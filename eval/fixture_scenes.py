"""Drawn scenes for `fixtures.py`: some shapes of one colour, and options for that colour."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from PIL import Image, ImageDraw

from vlm_contextrl.images import encode_png

COLOURS = ("red", "green", "blue", "orange", "purple", "brown", "black", "pink", "gray", "cyan")


@dataclass(frozen=True)
class Scene:
    """A picture of some shapes of one colour, and options for that colour. turn: at which of A to D the right one stands."""

    index: int
    turn: int

    @property
    def count(self) -> int:
        return 2 + self.index % 5

    @property
    def colour(self) -> str:
        return COLOURS[self.index % len(COLOURS)]

    @property
    def other(self) -> Scene:
        return Scene(self.index + 1, self.turn)

    def picture(self) -> Image.Image:
        width_px, height_px = 84 + 28 * (self.index % 4), 84 + 28 * (self.index % 3)
        image = Image.new("RGB", (width_px, height_px), "white")
        drawing = ImageDraw.Draw(image)
        for i in range(self.count):
            left, top = 6 + 26 * (i % 3), 8 + 34 * (i // 3)
            draw = (drawing.ellipse, drawing.rectangle)[self.index % 2]
            draw((left, top, left + 20, top + 20), fill=self.colour, outline="black")
        return image

    def picture_of_question(self, lines: Sequence[str]) -> Image.Image:
        """The picture below the lines of its question."""
        picture = self.picture()
        head_px = 14 * len(lines) + 8
        page = Image.new(
            "RGB",
            (max(picture.width, 8 + max(7 * len(line) for line in lines)), head_px + picture.height),
            "white",
        )
        ImageDraw.Draw(page).text((4, 4), "\n".join(lines), fill="black")
        page.paste(picture, (0, head_px))
        return page

    def encoded(self) -> str:
        return base64.b64encode(encode_png(self.picture())).decode()

    def options(self, count: int = 4) -> list[str]:
        """Colours, the right one at place `turn`."""
        place = ascii_uppercase.index(self.letter(count))
        wrong = [colour for colour in COLOURS if colour != self.colour][: count - 1]
        return [*wrong[:place], self.colour, *wrong[place:]]

    def letter(self, count: int = 4) -> str:
        return ascii_uppercase[self.turn % min(count, 4)]


ASKED_COLOUR = "Which colour do the shapes have?"
ASKED_UNLIKE = "Which colour do the shapes in <image 1> have, unlike those in <image 2>?"
ASKED_COUNT = "How many shapes are there?"


def labelled(options: list[str], form: str) -> list[str]:
    """Options in the form of a benchmark, such as "{}: {}" or "({}) {}"."""
    return [form.format(letter, option) for letter, option in zip(ascii_uppercase, options, strict=False)]
