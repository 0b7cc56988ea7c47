"""Encoders: pictures to vectors.

histogram   Square roots of colour shares, of the whole picture (6 x 6 x 6 colours) and of each of 4 x 4 cells (3 x 3 x 3), so that the
            cosine of two pictures is half the Bhattacharyya coefficient of their colours plus half the mean one of their cells (a
            spatial pyramid, Lazebnik et al. 2006, of joint RGB histograms). Pictures over 256 px are shrunk first.
pixels      A thumbnail of 16 x 16 RGB pixels in [-1, 1].
others      See `towers`.

Shapes: B pictures, D values of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_contextrl.data_recipes.features.settings import DRAWN, EncoderSettings

Vectors = NDArray[np.float32]

COLOURS, CELL_COLOURS = 6, 3  # per channel
CELLS = 4  # per side
HISTOGRAM_PX = 256
THUMBNAIL_PX = 16


class Encoder(Protocol):
    """Turns pictures into vectors."""

    def encode(self, pictures: Sequence[Image.Image]) -> Vectors:
        """[B, D] of B RGB pictures, of any length."""


def load_encoder(settings: EncoderSettings) -> Encoder:
    """The encoder that settings name; CheckpointError or MissingExtraError when it cannot be loaded."""
    if settings.encoder in DRAWN:
        return HistogramEncoder() if settings.encoder == "histogram" else PixelEncoder()
    from vlm_contextrl.data_recipes.features import towers

    encoders: dict[str, Any] = {
        "transformers": towers.TransformersEncoder,
        "open_clip": towers.OpenClipEncoder,
        "qwen3_vl_embedding": towers.Qwen3VLEmbeddingEncoder,
    }
    encoder: Encoder = encoders[settings.encoder](settings)
    return encoder


class HistogramEncoder:
    """Colours, and where they are."""

    def encode(self, pictures: Sequence[Image.Image]) -> Vectors:
        """[B, 648]."""
        return np.stack([self._encode(picture) for picture in pictures])

    def _encode(self, picture: Image.Image) -> Vectors:
        picture = picture.copy()
        picture.thumbnail((HISTOGRAM_PX, HISTOGRAM_PX), Image.Resampling.BOX)
        rgb_HW3 = np.asarray(picture)
        cells = [
            colour_shares(cell, CELL_COLOURS)
            for band in np.array_split(rgb_HW3, CELLS, axis=0)
            for cell in np.array_split(band, CELLS, axis=1)
        ]
        whole = np.sqrt(colour_shares(rgb_HW3, COLOURS) / 2)
        return np.concatenate([whole, np.sqrt(np.concatenate(cells) / (2 * len(cells)))]).astype(np.float32)


def colour_shares(rgb_HW3: NDArray[np.uint8], n: int) -> NDArray[np.float64]:
    """Share of the pixels in each of n * n * n colours; zeros when there are no pixels."""
    levels = rgb_HW3.reshape(-1, 3).astype(np.int64) * n // 256
    counts = np.bincount(levels @ np.array([n * n, n, 1]), minlength=n**3)
    return counts / max(1, len(levels))


class PixelEncoder:
    """A small thumbnail."""

    def encode(self, pictures: Sequence[Image.Image]) -> Vectors:
        """[B, 768]."""
        size = (THUMBNAIL_PX, THUMBNAIL_PX)
        small = [np.asarray(picture.resize(size, Image.Resampling.BOX)) for picture in pictures]
        return np.stack(small).reshape(len(small), -1).astype(np.float32) / 127.5 - 1
