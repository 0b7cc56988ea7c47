"""Images: what comes out of `decode_image`, and what is refused before it can do harm."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vlm_contextrl import images
from vlm_contextrl.errors import DataError
from vlm_contextrl.images import changed_fraction, decode_image, encode_png, pixel_hash, read_image_file


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(size_px: int = 24) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def bomb_png(width_px: int, height_px: int) -> bytes:
    """A valid PNG header with hardly any data behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "WEBP"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    picture = Image.new("RGB", (5, 3), (255, 0, 0))
    picture.putpixel((4, 2), (0, 0, 255))
    options = {"lossless": True} if image_format == "WEBP" else {}
    decoded = decode_image(encode(picture, image_format, **options), "x")
    assert decoded.mode == "RGB"
    assert decoded.tobytes() == picture.tobytes()


def test_jpeg_is_read() -> None:
    decoded = decode_image(encode(Image.new("RGB", (8, 8), (200, 10, 10)), "JPEG"), "x")
    assert decoded.size == (8, 8)
    assert np.abs(np.asarray(decoded, dtype=int) - [200, 10, 10]).max() <= 3


def test_exif_orientation_is_applied_and_metadata_dropped() -> None:
    """Orientation 6 says: turn clockwise by 90 degrees. The left of two pixels then comes out on top."""
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((0, 0), (255, 0, 0))
    picture.putpixel((1, 0), (0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encode(picture, "PNG", exif=exif), "x")
    assert decoded.size == (1, 2)
    assert [decoded.getpixel((0, 0)), decoded.getpixel((0, 1))] == [(255, 0, 0), (0, 255, 0)]
    assert decoded.info == {}
    assert not decoded.getexif()


def test_transparency_lies_on_white() -> None:
    """A fully transparent black pixel is white; half transparent black is (1 - 128/255) * 255 = 127."""
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (0, 0, 0, alpha))
    decoded = decode_image(encode(picture, "PNG"), "x")
    assert np.asarray(decoded)[0, :, 0].tolist() == [255, 127, 0]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    """65535 -> 255, 32768 -> 128, 256 -> 1."""
    grey = Image.fromarray(np.array([[65535, 32768, 256, 0]], dtype=np.uint16))
    decoded = decode_image(encode(grey, "PNG"), "x")
    assert np.asarray(decoded)[0, :, 0].tolist() == [255, 128, 1, 0]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, "x").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"^row 3: no image bytes \(0 bytes\), expected a whole PNG, JPEG, WEBP, GIF or BMP file$"),
        (
            b"not an image at all",
            r"^row 3: 19 bytes starting with b'not an i' are no image, expected a whole",
        ),
        (encode(noise(), "TIFF"), r"^row 3: \d+ bytes starting with b'II.* are no image, expected"),
        (encode(noise(), "PPM"), r"^row 3: \d+ bytes .* are no image, expected"),
    ],
    ids=["empty", "text", "tiff", "ppm"],
)
def test_what_is_no_image_or_another_format_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(data, "row 3")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_refused(image_format: str) -> None:
    data = encode(noise(), image_format)
    with pytest.raises(DataError, match=r"^row 3: .*(damaged or truncated|are no image).*expected a whole"):
        decode_image(data[: len(data) // 2], "row 3")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_corrupt_image_data_is_refused() -> None:
    data = bytearray(encode(noise(), "PNG"))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    with pytest.raises(DataError, match=r"^row 3: damaged or truncated \(.+\), expected a whole PNG"):
        decode_image(bytes(data), "row 3")


@pytest.mark.parametrize(
    ("width_px", "height_px"),
    [(10_000, 5_001), (10_000, 10_000), (60_000, 60_000)],
    ids=["above our limit", "where Pillow warns", "where Pillow raises"],
)
def test_decompression_bomb_is_refused_from_its_header(width_px: int, height_px: int) -> None:
    """Warnings are errors in these tests, so the middle case also shows that Pillow's warning ends well."""
    with pytest.raises(DataError, match=r"^row 3: .*pixels.*expected at most 50000000 pixels"):
        decode_image(bomb_png(width_px, height_px), "row 3")


def test_the_pixel_limit_is_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 x 4 = 24 pixels pass a limit of 24; 5 x 5 = 25 do not."""
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 24)
    assert decode_image(encode_png(Image.new("RGB", (6, 4))), "x").size == (6, 4)
    with pytest.raises(DataError, match="x: 5 x 5 pixels, expected at most 24 pixels"):
        decode_image(encode_png(Image.new("RGB", (5, 5))), "x")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about damaged EXIF blocks, and reads on
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damage_anywhere_gives_a_picture_or_a_one_line_data_error(image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if image_format in ("PNG", "JPEG", "WEBP") else {}
    whole = encode(noise(), image_format, **options)
    chance = random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 3, 10])):
            data[chance.randrange(min(len(data), chance.choice([40, len(data)])))] = chance.randrange(256)
        message = "row 3: a picture"
        try:
            decode_image(bytes(data), "row 3")
        except DataError as error:
            message = str(error)
        assert message.startswith("row 3: ")
        assert "\n" not in message


def test_read_image_file_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(b"abc")
    for name in ("sub/a.png", "sub/../sub/a.png", str(folder / "sub" / "a.png")):
        assert read_image_file(Path(name), folder, "x") == b"abc"


def test_read_image_file_refuses_to_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (folder / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "data_too").mkdir()  # a sibling whose name starts like the folder's
    (tmp_path / "data_too" / "a.png").write_bytes(b"x")
    names = ("../secret.png", str(secret), "link.png", "up/secret.png", "../data_too/a.png", "/etc/hostname")
    for name in names:
        with pytest.raises(
            DataError, match=r"^row 3: .* is outside the data folder .*expected a file inside"
        ):
            read_image_file(Path(name), folder, "row 3")


def test_read_image_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "large.png").write_bytes(bytes(11))
    monkeypatch.setattr(images, "MAX_IMAGE_FILE_BYTES", 10)
    for name, message in {
        "gone.png": r"^row 3: image file gone.png not found in ",
        "large.png/a.png": r"^row 3: image file large.png/a.png not found in ",
        "folder.png": r"^row 3: folder.png in .* is not a regular file, expected an image file$",
        "loop.png": r"^row 3: image file 'loop.png' cannot be read",
        "nul\0.png": r"^row 3: image file 'nul\\x00.png' cannot be read",
        "large.png": r"^row 3: large.png has 11 bytes, expected at most 10; make the image smaller$",
    }.items():
        with pytest.raises(DataError, match=message):
            read_image_file(Path(name), tmp_path, "row 3")


def test_encode_png_keeps_pixels_and_nothing_else() -> None:
    picture = noise()
    data = encode_png(picture)
    assert decode_image(data, "x").tobytes() == picture.tobytes()
    marked = decode_image(data, "x")
    marked.info = {"icc_profile": b"profile", "Comment": "me", "transparency": (0, 0, 0)}
    assert encode_png(marked) == data


def test_pixel_hash_by_hand() -> None:
    """A 2 x 1 image, red then green: sha256 of "2x1:" and the six bytes."""
    picture = Image.new("RGB", (2, 1), (255, 0, 0))
    picture.putpixel((1, 0), (0, 255, 0))
    assert pixel_hash(picture) == hashlib.sha256(b"2x1:\xff\x00\x00\x00\xff\x00").hexdigest()
    assert pixel_hash(decode_image(encode(picture, "BMP"), "x")) == pixel_hash(picture)


def test_pixel_hash_knows_the_shape() -> None:
    """Six equal pixels as 3 x 2 and as 2 x 3 have the same bytes and are different pictures."""
    assert pixel_hash(Image.new("RGB", (3, 2))) != pixel_hash(Image.new("RGB", (2, 3)))


def test_changed_fraction_by_hand() -> None:
    """3 of 4 x 3 = 12 pixels differ, one of them in the blue channel by 1 only: 0.25."""
    a = Image.new("RGB", (4, 3), (10, 20, 30))
    b = a.copy()
    b.putpixel((0, 0), (10, 20, 31))
    b.putpixel((1, 1), (0, 0, 0))
    b.putpixel((3, 2), (255, 20, 30))
    assert changed_fraction(a, b) == 0.25
    assert changed_fraction(a, a) == 0.0
    assert changed_fraction(a, Image.new("RGB", (3, 4))) == 1.0


def test_importing_rows_loads_nothing_heavy() -> None:
    code = (
        "import sys, vlm_contextrl.pairs, vlm_contextrl.storage, vlm_contextrl.splits;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
