"""Reading the fields of one benchmark row; whatever is not as published is one line that names benchmark, part, row and field."""

from __future__ import annotations

import ast
import base64
import binascii
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from PIL import Image, ImageOps

from vlm_contextrl.errors import DataError


@dataclass(frozen=True)
class Row:
    """A row as `datasets` gives it, and where it stands."""

    benchmark: str
    part: str
    id: str
    values: Mapping[str, Any]

    def error(self, field: str, found: object, expected: str) -> DataError:
        """The error of a field that cannot be used."""
        shown = repr(found) if len(repr(found)) <= 80 else f"{repr(found)[:77]}..."
        return DataError(
            f"{self.benchmark}, {self.part}, row {self.id}, field {field!r}: found {shown}, expected {expected}"
        )

    def value(self, field: str, expected: str) -> Any:
        """The field, which must be there; it may be null."""
        if field not in self.values:
            raise self.error(field, "no such column", expected)
        return self.values[field]

    def text(self, field: str, *, empty: bool = False) -> str:
        """A text without outer white space; a number is written out, null is "" where a text may be `empty`."""
        value = self.value(field, "a text")
        if value is None and empty:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(field, value, "a text")
        if not str(value).strip() and not empty:
            raise self.error(field, value, "a text that is not empty")
        return str(value).strip()

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, also when it is written as a Python literal; empty for null."""
        value = self.value(field, "a list of texts")
        if isinstance(value, str):
            value = literal_list(value)
            if value is None:
                raise self.error(field, self.values[field], "a list of texts, written as in Python")
        if value is not None and not isinstance(value, list | tuple):
            raise self.error(field, value, "a list of texts")
        if value and len(value) == 1 and isinstance(value[0], list):  # so in a row of MMMU-Pro
            value = value[0]
        return tuple(str(item).strip() for item in value or ())

    def letter(self, field: str, options: tuple[str, ...]) -> str:
        """An option letter such as "B" or "(B)" that names one of the options, or any letter when none are given."""
        found = self.text(field)
        letter = found.strip("() .").upper()
        letters = ascii_uppercase[: len(options) or None]
        if len(letter) != 1 or letter not in letters:
            raise self.error(field, found, f"an option letter, {letters[0]} to {letters[-1]}")
        return letter

    def image(self, field: str) -> Image.Image:
        """The picture, RGB: decoded, as bytes or as base64 text."""
        value = self.value(field, "an image")
        if isinstance(value, Mapping):
            value = value.get("bytes")
        try:
            if isinstance(value, str) and value.strip():
                value = base64.b64decode(value, validate=True)
            if isinstance(value, bytes):
                value = _opened(value)
            if isinstance(value, Image.Image):
                return _rgb(value)
        except (
            binascii.Error,
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise self.error(
                field, f"{type(error).__name__}: {error}", "an image that can be decoded"
            ) from error
        raise self.error(field, value, "an image")


def literal_list(text: str) -> list[Any] | None:
    """The list that a text such as "['a', 'b']" spells; None when it spells none."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _opened(data: bytes) -> Image.Image:
    """Under Pillow's own limit of pixels: satellite pictures of MME-RealWorld are larger than training allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data))
        image.load()
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
