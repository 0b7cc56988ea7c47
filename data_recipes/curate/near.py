"""Near-duplicate pictures: one picture again after rescaling, compression, a slight change of brightness or a little cropping.

Candidates are near by embedding (features); pixels decide. Two pictures are compared in three steps.

1. Both are resampled to one grid, whose cells are `CELL_PX` pixels of the smaller picture, at most `MAX_CELLS` along a side.
2. One is a little cropped, perhaps: the part of picture p that shows what picture q shows is the box (l, t, r, b), in shares of p's sides,
   that makes the sum over cells (u, v) of

       (q(u, v) - p(l + u (r - l), t + v (b - t)) - o)^2

   least, in grey, with no more than `crop_max` of any side cut off and o a change of brightness; by Gauss-Newton steps (Lucas and
   Kanade, 1981), first on a coarse grid. Both pictures are tried as p. Pictures that differ much even so are not looked at more closely.
3. mean: of the absolute differences over cells and channels; largest: of any cell and channel, in grey levels of 255.

The mean is small for every edit of a small part, so that it alone would call context and confounder duplicates. The largest difference is
what tells a changed object from the traces of JPEG and rescaling: of rendered pairs of 112 px and more it is 50 levels or more, of copies
(3/4 of the size, JPEG 60, two levels brighter) 33 or less, of copies without 2% of each side 40 or less for 98 of 100. Edits of a few
pixels, such as a digit of 5 px, can stay below; `dedupe` therefore looks at answers, too.

Left out: rotated and mirrored pictures, stronger crops, changes of colour, and pictures inside other pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.features import EncoderSettings, neighbours
from vlm_contextrl.data_recipes.pipeline import Engine, compute_parts
from vlm_contextrl.pairs import EncodedImage

CELL_PX = 4
MIN_CELLS, MAX_CELLS = 8, 128
COARSE_CELLS = 32
STEPS = 8
CONVERGED = 1e-4  # of a side
PROGRESS = 0.98  # a step that leaves more of the difference is the last one
WHOLE = (0.0, 0.0, 1.0, 1.0)
CANDIDATES_PER_PART = 512
MEASURES_NAME = "measures.npy"

Levels = NDArray[np.float32]
Pairs = NDArray[np.int64]
Box = tuple[float, ...]  # left, top, right, bottom


class Measures(NamedTuple):
    """Grey levels of 255; see the module."""

    mean: float
    largest: float

    def __str__(self) -> str:
        return f"mean difference {self.mean:.1f}, largest {self.largest:.0f} grey levels"


class NearSettings(Record):
    """When two pictures are the same one."""

    encoder: EncoderSettings = EncoderSettings(encoder="pixels")
    cosine: float = Field(0.9, ge=-1, le=1, description="embeddings less alike than this are not looked at")
    candidates: int = Field(
        16, ge=1, description="most alike pictures that are compared by pixels, per picture"
    )
    index: Literal["exact", "faiss"] = Field(
        "exact", description="search for them; faiss needs the extra `search`"
    )
    mean_levels: float = Field(
        6.0, ge=0, description="largest mean difference over the picture, in grey levels of 255"
    )
    largest_levels: float = Field(
        40.0, ge=0, description="largest difference of any cell of 4 px or more, in grey levels of 255"
    )
    crop_max: float = Field(
        0.04,
        ge=0,
        le=0.2,
        description="share of a side that may be cut off at each edge; 0 turns aligning off",
    )

    def same(self, measures: Measures) -> bool:
        """Whether two pictures with these differences are one."""
        return measures.mean <= self.mean_levels and measures.largest <= self.largest_levels


class Picture:
    """A picture made ready to be compared with many: not larger than its finest grid needs, and in grey for aligning."""

    def __init__(self, image: Image.Image) -> None:
        self.rgb = _shrunk(image, CELL_PX * MAX_CELLS)
        self.grey = self.rgb.convert("L")
        self.coarse = _shrunk(self.grey, CELL_PX * COARSE_CELLS)


def _shrunk(image: Image.Image, side_px: int) -> Image.Image:
    size = min(image.width, side_px), min(image.height, side_px)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def compare(a: Picture, b: Picture, settings: NearSettings) -> Measures:
    """How two pictures differ; when they are not the same as they are, aligned as well as cropping allows."""
    size = _grid(a.rgb, b.rgb)
    whole = _view(a.rgb, size), _view(b.rgb, size)
    plain = _measures(*whole)
    if not settings.crop_max or settings.same(plain):
        return plain
    coarse = _grid(a.coarse, b.coarse)
    boxes = [_best_box(x.coarse, y.coarse, coarse, WHOLE, settings.crop_max) for x, y in ((a, b), (b, a))]
    other = int(boxes[1][1] < boxes[0][1])  # the one of which a part is seen
    if boxes[other][1] > 2 * settings.mean_levels:
        return plain  # another picture, as nearly all candidates are
    picture, target = (b, a) if other else (a, b)
    box, _ = _best_box(picture.grey, target.grey, size, boxes[other][0], settings.crop_max)
    return min(
        plain,
        _measures(_view(picture.rgb, size, box), whole[1 - other]),
        key=lambda measures: measures.largest,
    )


def _grid(a: Image.Image, b: Image.Image) -> tuple[int, int]:
    width, height = (max(min(sides) // CELL_PX, MIN_CELLS) for sides in zip(a.size, b.size, strict=True))
    return width, height


def _view(picture: Image.Image, size: tuple[int, int], box: Box = WHOLE) -> Levels:
    """Part of a picture on a grid; a triangular window, so that it follows the box smoothly."""
    (width, height), (left, top, right, bottom) = picture.size, box
    part = (left * width, top * height, right * width, bottom * height)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=part), dtype=np.float32)


def _measures(a: Levels, b: Levels) -> Measures:
    difference = np.abs(a - b)
    return Measures(float(difference.mean()), float(difference.max()))


def _best_box(
    picture: Image.Image, target: Image.Image, size: tuple[int, int], start: Box, crop_max: float
) -> tuple[Box, float]:
    """Of the boxes that Gauss-Newton steps visit the one whose view differs least from the target, and the standard deviation of the
    difference. Pictures are grey."""
    lowest = np.array([0, 0, 1 - crop_max, 1 - crop_max])
    u, v = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in size)
    u, v = u[None, :], v[:, None]
    wanted, box = _view(target, size), np.array(start)
    best, best_error = start, float("inf")
    for _ in range(STEPS):
        seen = _view(picture, size, tuple(box.tolist()))
        residual = wanted - seen
        error = float(residual.std())
        if error > PROGRESS * best_error:
            break
        best, best_error = tuple(box.tolist()), error
        by_y, by_x = np.gradient(seen)
        by_x, by_y = by_x * size[0], by_y * size[1]
        columns = (by_x * (1 - u), by_y * (1 - v), by_x * u, by_y * v, np.ones_like(seen))
        jacobian = np.stack(columns).reshape(len(columns), -1)
        step = np.linalg.lstsq(jacobian @ jacobian.T, jacobian @ residual.reshape(-1), rcond=None)[0]
        moved = np.clip(box + step[:4], lowest, lowest + crop_max)
        if np.abs(moved - box).max() < CONVERGED:
            break
        box = moved
    return best, best_error


def candidates(queries_ND: Levels, base_MD: Levels | None, settings: NearSettings) -> tuple[Pairs, Levels]:
    """[P, 2] indices (query, base) of embeddings near one another, and [P] their cosines; by query, then base.

    base_MD: None for the queries among themselves, each two once and the smaller index first.
    """
    base = queries_ND if base_MD is None else base_MD
    own = np.arange(len(queries_ND))
    exclude = (own, own) if base_MD is None else None
    found_NK, cosines_NK = neighbours(
        queries_ND, base, settings.candidates, low=settings.cosine, exclude=exclude, index=settings.index
    )
    there = found_NK >= 0
    pairs, cosines = np.stack([np.nonzero(there)[0], found_NK[there]], axis=-1), cosines_NK[there]
    if base_MD is None:
        pairs = np.sort(pairs, axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return pairs.astype(np.int64), cosines[first].astype(np.float32)


class Adjacency:
    """Who is near whom, from pairs: compact, for there may be millions."""

    def __init__(self, pairs_P2: Pairs) -> None:
        both = np.concatenate([pairs_P2, pairs_P2[:, ::-1]])
        both = both[np.lexsort(both.T[::-1])]
        self._from, self._to = both[:, 0], both[:, 1]

    def get(self, number: int, _: object = ()) -> list[int]:
        """Those near `number`, as `dict.get` would give them."""
        start, stop = np.searchsorted(self._from, (number, number + 1))
        found: list[int] = self._to[start:stop].tolist()
        return found


@dataclass(frozen=True)
class _Compare:
    left: Sequence[EncodedImage]
    right: Sequence[EncodedImage]
    settings: NearSettings

    def __call__(self, pairs: Sequence[tuple[int, int]], folder: Path) -> None:
        decoded: dict[tuple[bool, int], Picture] = {}

        def picture(images: Sequence[EncodedImage], index: int) -> Picture:
            key = images is self.left, index
            if key not in decoded:
                if len(decoded) >= 64:
                    decoded.pop(next(iter(decoded)))
                decoded[key] = Picture(images[index].decode())
            return decoded[key]

        measures = [compare(picture(self.left, a), picture(self.right, b), self.settings) for a, b in pairs]
        np.save(folder / MEASURES_NAME, np.array(measures, dtype=np.float32).reshape(-1, 2))


def compare_all(
    left: Sequence[EncodedImage],
    right: Sequence[EncodedImage],
    pairs_P2: Pairs,
    settings: NearSettings,
    folder: Path,
    *,
    plan: Mapping[str, Any],
    engine: Engine,
) -> dict[int, Measures]:
    """Which of the pairs (indices into left and right) are the same picture, by position, with their measures. Resumes in `folder`."""
    if not len(pairs_P2):
        return {}
    work, items = _Compare(left, right, settings), cast("Sequence[tuple[int, int]]", pairs_P2)
    parts = compute_parts(
        work, items, folder, plan=plan, batch_size=CANDIDATES_PER_PART, engine=engine, label="compare"
    )
    measured = (
        Measures(*values) for part in parts.folders for values in np.load(part / MEASURES_NAME).tolist()
    )
    return {position: measures for position, measures in enumerate(measured) if settings.same(measures)}
