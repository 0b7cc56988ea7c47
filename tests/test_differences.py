"""Differences of pictures against numbers worked out by hand and, for SSIM, against its definition by two-dimensional convolution."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.tiny_models import noise_image
from vlm_contextrl.data_recipes.curate.differences import C1, C2, SIGMA_PX, WINDOW_PX, difference, ssim


def flat(width: int, height: int, colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def grey(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8)).convert("RGB")


def with_rectangle(
    image: Image.Image, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> Image.Image:
    """box: right and bottom outside."""
    image = image.copy()
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return image


def test_a_rectangle_by_hand() -> None:
    """20 x 5 of 100 x 50 px are 0.02 of the picture; 40 levels of green there are 0.8 on average. Around the corners of the rectangle 9 of
    25 px differ, 14.4 levels on average."""
    picture = flat(100, 50, (60, 60, 60))
    found = difference(picture, with_rectangle(picture, (10, 20, 30, 25), (60, 100, 60)), tolerance_levels=13)
    assert (found.changed_fraction, found.changed_box_share) == (0.02, 0.02)
    assert found.changed_box_px == (10, 20, 30, 25)
    assert found.channel_difference == pytest.approx((0.0, 0.8, 0.0))
    assert found.largest_levels == 40


def test_tolerance() -> None:
    """All of the 5 x 5 px around differ in 16 px of the middle row; a pixel that differs by exactly the tolerance has not changed."""
    picture = flat(100, 50, (60, 60, 60))
    other = with_rectangle(picture, (10, 20, 30, 25), (60, 100, 60))
    found = difference(other, picture, 39)
    assert (found.changed_fraction, found.changed_box_px) == (16 / 5000, (12, 22, 28, 23))
    found = difference(picture, other, 40)
    assert (found.changed_fraction, found.changed_box_px, found.changed_box_share) == (0, None, 0)


def test_noise_that_averages_out_is_no_change() -> None:
    """A chequerboard of +20 and -20 levels: every pixel differs by 20, the average around by 20 / 25, in the corners, where the border
    counts thrice along either side, by 20 * (3 - 1 + 1)^2 / 25 = 7.2."""
    chequered = grey((np.indices((40, 40)).sum(axis=0) % 2 * 40 + 80).tolist())
    found = difference(chequered, flat(40, 40, (100, 100, 100)), 8)
    assert (found.changed_fraction, found.largest_levels) == (0, 20)


def test_two_corners_fill_the_box() -> None:
    """Two pixels of 5000, but the box around them is the picture: a share of pixels alone, or a box alone, tells half."""
    picture = flat(100, 50, (60, 60, 60))
    other = with_rectangle(with_rectangle(picture, (0, 0, 1, 1), (200, 0, 0)), (99, 49, 100, 50), (200, 0, 0))
    found = difference(picture, other)
    assert found.changed_fraction == 2 / 5000
    assert (found.changed_box_px, found.changed_box_share) == ((0, 0, 100, 50), 1.0)


def test_equal_pictures() -> None:
    found = difference(noise_image(0), noise_image(0))
    assert found.ssim == pytest.approx(1.0, abs=1e-12)
    assert (found.changed_fraction, found.changed_box_px, found.largest_levels) == (0.0, None, 0)
    assert found.as_json()["channel_difference"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("size", [(40, 30), (11, 11), (5, 3), (1, 1), (700, 600)])
def test_ssim_of_constants_by_hand(size: tuple[int, int]) -> None:
    """Without variance (2 * 100 * 150 + C1) / (100^2 + 150^2 + C1) = 30006.5025 / 32506.5025 = 0.923092; black against white
    C1 / (255^2 + C1) = 6.5025 / 65031.5025 = 0.0001. Red alone turned from 0 to 255: (0.0001 + 1 + 1) / 3.
    """
    dark, light = flat(*size, (100, 100, 100)), flat(*size, (150, 150, 150))
    assert ssim(dark, light) == pytest.approx(30006.5025 / 32506.5025, abs=1e-9)
    black, white = flat(*size, (0, 0, 0)), flat(*size, (255, 255, 255))
    assert ssim(black, white) == pytest.approx(6.5025 / 65031.5025, abs=1e-9)
    assert ssim(black, flat(*size, (255, 0, 0))) == pytest.approx((6.5025 / 65031.5025 + 2) / 3, abs=1e-9)


def test_ssim_of_stripes_by_hand() -> None:
    """2 x 2 px are one window with weights 1/4. Stripes of 0 and 200 have mean 100 and variance 100^2. Across each other: E[xy] is
    200^2 / 4 = 100^2, covariance 0, C2 / (20000 + C2). Exchanged: E[xy] = 0, covariance -100^2, (C2 - 20000) / (C2 + 20000).
    """
    upright, lying = grey([[0, 200], [0, 200]]), grey([[0, 0], [200, 200]])
    assert ssim(upright, lying) == pytest.approx(58.5225 / 20058.5225, abs=1e-9)
    assert ssim(upright, grey([[200, 0], [200, 0]])) == pytest.approx(-19941.4775 / 20058.5225, abs=1e-9)


def test_ssim_is_its_definition() -> None:
    """Against one 11 x 11 kernel through torch's convolution, on noise and on a picture with a little noise added."""
    import torch
    from torch.nn.functional import conv2d

    at = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    kernel = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * SIGMA_PX**2))
    kernel = (kernel / kernel.sum())[None, None]

    def reference(a: Image.Image, b: Image.Image) -> float:
        x, y = (torch.tensor(np.asarray(i), dtype=torch.float64).permute(2, 0, 1)[:, None] for i in (a, b))
        m_x, m_y = conv2d(x, kernel), conv2d(y, kernel)
        v_x = conv2d((x - 128) ** 2, kernel) - (m_x - 128) ** 2
        v_y = conv2d((y - 128) ** 2, kernel) - (m_y - 128) ** 2
        c = conv2d((x - 128) * (y - 128), kernel) - (m_x - 128) * (m_y - 128)
        similarity = (2 * m_x * m_y + C1) * (2 * c + C2) / ((m_x**2 + m_y**2 + C1) * (v_x + v_y + C2))
        return float(similarity.mean())

    a, b = noise_image(1, 60, 45), noise_image(2, 60, 45)
    near = Image.blend(a, b, 0.2)
    assert ssim(a, b) == pytest.approx(reference(a, b), abs=1e-12)
    assert ssim(a, near) == pytest.approx(reference(a, near), abs=1e-12)
    assert abs(ssim(a, b)) < 0.05 < 0.9 < ssim(a, near)


def test_large_pictures_are_made_smaller() -> None:
    """Every pixel of 256 x 300 made 2 x 2: the short side of 512 px goes back to 256, and the similarity is the same."""
    a, b = noise_image(3, 300, 256), Image.blend(noise_image(3, 300, 256), noise_image(4, 300, 256), 0.3)
    twice = [image.resize((600, 512), Image.Resampling.NEAREST) for image in (a, b)]
    assert ssim(*twice) == pytest.approx(ssim(a, b), abs=1e-12)


def test_a_change_of_hue_is_seen() -> None:
    """Red (200, 0, 0) and green (0, 102, 0) are equally bright (0.299 * 200 = 0.587 * 102 = 59.8), so luminance alone says that all is
    the same."""
    picture = flat(64, 64, (230, 230, 230))
    red, green = (with_rectangle(picture, (20, 20, 40, 40), colour) for colour in ((200, 0, 0), (0, 102, 0)))
    in_grey = [image.convert("L").convert("RGB") for image in (red, green)]
    assert ssim(*in_grey) > 0.999
    assert ssim(red, green) < 0.96
    assert difference(red, green).changed_fraction == 400 / 4096
