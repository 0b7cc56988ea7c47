"""Small pictures of questions, for people who look at results."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def side_by_side(images: Sequence[Image.Image], side_px: int) -> Image.Image:
    """All images in one row, the longer side of the row at most `side_px` per image and in height."""
    shrunk = [image.convert("RGB") for image in images]
    for image in shrunk:
        image.thumbnail((side_px, side_px), Image.Resampling.BICUBIC)
    gap_px = 4
    width = sum(image.width for image in shrunk) + gap_px * (len(shrunk) - 1)
    row = Image.new("RGB", (width, max(image.height for image in shrunk)), "white")
    left = 0
    for image in shrunk:
        row.paste(image, (left, 0))
        left += image.width + gap_px
    return row
