"""Reading, writing and comparing images safely.

Everything that enters the package as an image passes `decode_image`. It looks at the header first, so that
neither an unwanted format nor a decompression bomb is ever expanded; it refuses truncated files; and it
returns what a person would see: turned as EXIF says, transparent areas on white, the first frame of an
animation, RGB with 8 bits per channel. All errors are `DataError`s of one line that start with the caller's
`where` (file, row, column).

Left out: colour management (ICC profiles are dropped, not applied).
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vlm_contextrl.errors import DataError

MAX_IMAGE_PIXELS = 50_000_000
MAX_IMAGE_FILE_BYTES = 256 * 1024 * 1024  # more than the largest allowed picture takes uncompressed
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"))

# The fastest zlib level that still finds flat areas: 112 px take 0.2 ms and 1.2 kB drawn, 1.1 ms as noise.
_PNG_COMPRESS_LEVEL = 2
# What Pillow's parsers raise on damaged bytes, found by flipping and cutting bytes of every format.
_PARSER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
)  # fmt: skip
# Pillow decodes a whole PNG in search of EXIF behind the pixels; these are the chunks that can hold any.
_PNG_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_EXPECTED_FILE = f"expected a whole {', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]} file"


def decode_image(data: bytes, where: str) -> Image.Image:
    """The picture in `data` as a fully loaded RGB image without metadata.

    Raises DataError when `data` is not one of `IMAGE_FORMATS`, is damaged or cut short, or has more than
    `MAX_IMAGE_PIXELS` pixels. That limit lies below Pillow's, so what Pillow only warns about is an error.
    """
    with _opened(data, where) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def decode_rgba(data: bytes, where: str) -> Image.Image:
    """As `decode_image`, under the same limits, but transparency stays."""
    with _opened(data, where) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGBA")


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels of what `decode_image` would give, read from the header only; the same errors."""
    with _opened(data, where) as image:
        plain_png = image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF_MARKS)
        turned = not plain_png and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if turned else (image.width, image.height)


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Image.Image]:
    if not data:
        raise DataError(f"{where}: no image bytes (0 bytes), {_EXPECTED_FILE}")
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        _check_size(image, where)
        yield image
    except DataError:
        raise
    except _BOMB_ERRORS as error:
        raise DataError(f"{where}: {_one_line(error)}; {_expected_pixels()}") from error
    except UnidentifiedImageError as error:
        found = f"{len(data)} bytes starting with {data[:8]!r}"
        raise DataError(f"{where}: {found} are no image, {_EXPECTED_FILE}") from error
    except _PARSER_ERRORS as error:
        raise DataError(f"{where}: damaged or truncated ({_one_line(error)}), {_EXPECTED_FILE}") from error


def read_image_file(path: Path, root: Path, where: str) -> bytes:
    """The bytes of an image file that must lie inside `root`; a relative `path` is taken from `root`.

    Links are followed before the check, so neither a link nor a `..` leads outside. Raises DataError when
    the file is outside, missing, not a regular file or larger than `MAX_IMAGE_FILE_BYTES`.
    """
    try:
        root = root.resolve()
        resolved = (root / path).resolve()
        status = resolved.stat() if resolved.is_relative_to(root) else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{where}: image file {path} not found in {root}") from error
    except (OSError, RuntimeError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        raise DataError(f"{where}: image file {str(path)!r} cannot be read ({_one_line(error)})") from error
    if status is None:
        raise DataError(f"{where}: {path} is outside the data folder {root}, expected a file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: {path} in {root} is not a regular file, expected an image file")
    if status.st_size > MAX_IMAGE_FILE_BYTES:
        limit = f"expected at most {MAX_IMAGE_FILE_BYTES}; make the image smaller"
        raise DataError(f"{where}: {path} has {status.st_size} bytes, {limit}")
    try:
        return resolved.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: image file {path} cannot be read ({_one_line(error)})") from error


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes of the picture as RGB, without metadata: with one Pillow build, equal pixels, equal bytes."""
    buffer = io.BytesIO()
    _as_rgb(image).save(
        buffer, "PNG", compress_level=_PNG_COMPRESS_LEVEL, icc_profile=None, transparency=None
    )
    return buffer.getvalue()


def pixel_hash(image: Image.Image) -> str:
    """sha256 (hex) over size and RGB bytes: equal for equal pictures, whatever files they came from."""
    rgb = _as_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def changed_fraction(a: Image.Image, b: Image.Image) -> float:
    """Share of pixels that differ in any channel, in [0, 1]; 1.0 when the sizes differ."""
    if a.size != b.size:
        return 1.0
    return float((np.asarray(_as_rgb(a)) != np.asarray(_as_rgb(b))).any(axis=-1).mean())


def _check_size(image: Image.Image, where: str) -> None:
    width_px, height_px = image.size
    if width_px * height_px > MAX_IMAGE_PIXELS:
        raise DataError(f"{where}: {width_px} x {height_px} pixels, {_expected_pixels()}")


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greyscale: Pillow's own conversion clips at 255 instead of scaling, so all turns white.
        scaled = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")  # a copy, even of an RGB image
    rgb.info = {}  # metadata may hold a place, a name, a large profile: none of it belongs in a dataset
    return rgb


def _expected_pixels() -> str:
    return f"expected at most {MAX_IMAGE_PIXELS} pixels (a decompression bomb or an unscaled scan?)"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
