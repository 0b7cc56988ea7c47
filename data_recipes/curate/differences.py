"""How two pictures of one size differ, from their pixels.

    changed fraction    share of pixels of which some channel differs by more than a tolerance (grey levels of 255), there and on average
                        over the 5 x 5 px around: saving a photograph again moves single pixels by much, but their averages by little
    changed box         the smallest box around those pixels, and its share of the picture
    channel difference  mean absolute difference per channel, in grey levels
    SSIM                structural similarity (Wang, Bovik, Sheikh and Simoncelli, 2004), for means m, variances v and covariance c
                        inside a Gaussian window of 11 x 11 pixels with sigma 1.5,

                            (2 m_x m_y + C1) (2 c + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2))

                        with C1 = (0.01 * 255)^2 and C2 = (0.03 * 255)^2, averaged over all windows that lie inside the picture. As its
                        authors advise, pictures are first made smaller by the whole factor that brings the short side nearest to 256 px.

Deviations: SSIM is of RGB, averaged over the channels, where the paper has luminance (a change of hue at one brightness would be lost);
a side shorter than 11 px shortens the window.

Left out: perceptual hashes, which give equal codes to a red and a blue square, and learned distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

AROUND_PX = 2
WINDOW_PX = 11
SIGMA_PX = 1.5
VIEWED_PX = 256
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2


@dataclass(frozen=True)
class Difference:
    """changed_box_px: left, top, right, bottom, the last two outside; None when nothing changed. largest_levels: of any channel."""

    changed_fraction: float
    changed_box_px: tuple[int, int, int, int] | None
    changed_box_share: float
    channel_difference: tuple[float, float, float]
    largest_levels: int
    ssim: float

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values, rounded to six digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def difference(a: Image.Image, b: Image.Image, tolerance_levels: int = 0) -> Difference:
    """The difference of two RGB pictures of one size."""
    assert a.size == b.size, f"{a.size} and {b.size}: expected one size"
    levels = ImageChops.difference(a, b)
    around = ImageChops.difference(*(image.filter(ImageFilter.BoxBlur(AROUND_PX)) for image in (a, b)))
    changed_HW = np.asarray(ImageChops.darker(levels, around)).max(axis=-1) > tolerance_levels
    levels_HWC = np.asarray(levels)
    box = changed_box(changed_HW)
    red, green, blue = levels_HWC.mean(axis=(0, 1)).tolist()
    return Difference(
        changed_fraction=float(changed_HW.mean()),
        changed_box_px=box,
        changed_box_share=(box[2] - box[0]) * (box[3] - box[1]) / changed_HW.size if box else 0.0,
        channel_difference=(red, green, blue),
        largest_levels=int(levels_HWC.max()),
        ssim=ssim(a, b),
    )


def changed_box(changed_HW: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the smallest box around what is true, right and bottom outside; None when nothing is."""
    rows, columns = (np.flatnonzero(changed_HW.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def ssim(a: Image.Image, b: Image.Image) -> float:
    """Mean structural similarity of two RGB pictures of one size, in [-1, 1]; 1 for equal ones."""
    factor = max(1, round(min(a.size) / VIEWED_PX))
    x, y = (np.asarray(image.reduce(factor), dtype=np.float64) for image in (a, b))
    m_x, m_y = _windowed(x), _windowed(y)
    squares = m_x**2 + m_y**2
    variances = _windowed(x * x + y * y) - squares
    covariance = _windowed(x * y) - m_x * m_y
    similarity = (2 * m_x * m_y + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return float(similarity.mean())


def _windowed(values_HWC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means over all windows inside the picture: one axis, then the other."""
    for _ in range(2):
        weights = _gaussian(min(WINDOW_PX, len(values_HWC)))
        windows = np.lib.stride_tricks.sliding_window_view(values_HWC, len(weights), axis=0)
        values_HWC = (windows @ weights).swapaxes(0, 1)
    return values_HWC


def _gaussian(length: int) -> NDArray[np.float64]:
    at = np.arange(length) - (length - 1) / 2
    heights = np.exp(-(at**2) / (2 * SIGMA_PX**2))
    weights: NDArray[np.float64] = heights / heights.sum()
    return weights


def _rounded(value: Any) -> Any:
    if isinstance(value, Sequence):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
