"""What scenes are made of: photographs, and cut-outs with labels. Each file is read once, before the work begins.

A cut-out is an image with transparency; what it shows is the first phrase of `STEM.txt` beside it or, without one, its file name (digits
and marks of variants dropped); its subfolder is its category. A photograph may have a `STEM.txt` too, a list or a caption: nothing that it
names is laid over this photograph or asked for. Nothing else is known about what a photograph shows.

A file that cannot be used is refused with one line. Pixels are read again when a scene is drawn, and must then be what they were.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image

from vlm_contextrl.data_recipes.compose.labels import alike, label_of_name, label_of_text, words_of
from vlm_contextrl.data_recipes.compose.licences import Licences, first_words, read_text
from vlm_contextrl.data_recipes.compose.settings import ComposeConfig
from vlm_contextrl.errors import DataError
from vlm_contextrl.images import IMAGE_SUFFIXES, decode_image, decode_rgba, image_size, read_image_file

MAX_ASPECT = 2.5
VISIBLE_ALPHA = 8  # below, an edge is nothing to look at
SOLID_ALPHA = 128

Refused = list[tuple[str, str]]
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Photograph:
    """file: named from its folder; shows: words of what is in it already."""

    file: str
    sha256: str
    licence: str
    width_px: int
    height_px: int
    shows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cutout:
    """box: of what is visible; fill: opaque share of the box."""

    file: str
    sha256: str
    licence: str
    label: str
    category: str
    box: Box
    fill: float

    @property
    def width_px(self) -> int:
        """Width of what is visible."""
        return self.box[2] - self.box[0]

    @property
    def height_px(self) -> int:
        """Height of what is visible."""
        return self.box[3] - self.box[1]


Source = TypeVar("Source", Photograph, Cutout)


@dataclass(frozen=True)
class Catalogue:
    """All usable files. same_category: objects of one category exclude each other."""

    photographs: tuple[Photograph, ...]
    cutouts: tuple[Cutout, ...]
    same_category: bool = False

    @cached_property
    def by_label(self) -> dict[str, tuple[int, ...]]:
        """Positions of the cut-outs of every label."""
        found: dict[str, list[int]] = {}
        for index, cutout in enumerate(self.cutouts):
            found.setdefault(cutout.label, []).append(index)
        return {label: tuple(found[label]) for label in sorted(found)}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label once, in alphabetical order."""
        return tuple(self.by_label)

    def told_apart(self, left: str, right: str) -> bool:
        """Whether nothing with one label may be called by the other."""
        if alike(left, right):
            return False
        if self.same_category:
            return True
        pairs = ((a, b) for a in self._categories(left) for b in self._categories(right))
        return not any((a or b) and (_inside(a, b) or _inside(b, a)) for a, b in pairs)

    def fits(self, label: str, others: Sequence[str]) -> bool:
        """Whether the label can stand in one scene with the others."""
        return all(self.told_apart(label, other) for other in others)

    def may_show(self, shows: Sequence[str], label: str) -> bool:
        """Whether one of a photograph's words is in the label."""
        return any(alike(word, label) for word in shows)

    def _categories(self, label: str) -> set[str]:
        return {self.cutouts[index].category for index in self.by_label[label]}

    def content_hash(self) -> str:
        """sha256 over everything that scenes depend on."""
        return hashlib.sha256(repr((self.photographs, self.cutouts)).encode()).hexdigest()


def _inside(folder: str, outer: str) -> bool:
    return f"{folder}/".startswith(f"{outer}/") if outer else not folder


def read_catalogue(config: ComposeConfig) -> tuple[Catalogue, Refused]:
    """Both folders, and (file, reason) of what cannot be used. Raises DataError when too little is left to make a scene."""
    photographs, cutouts = config.photographs, config.cutouts
    licences = Licences(photographs, config.photograph_licence)
    backgrounds, refused = _read_folder(photographs, licences, "photographs", _photograph, config)
    licences = Licences(cutouts, config.cutout_licence)
    objects, more = _read_folder(cutouts, licences, "cutouts", _cutout, config)
    catalogue = Catalogue(tuple(backgrounds), tuple(objects), config.same_category)
    if len(catalogue.labels) < 2:
        found = f"only the label {catalogue.labels[0]!r}" if catalogue.labels else "no label"
        raise DataError(f"{cutouts}: {found}, expected cut-outs of at least two labels{_why(more)}")
    if not any(catalogue.told_apart(a, b) for a in catalogue.labels for b in catalogue.labels):
        raise DataError(
            f"{cutouts}: no two of its {len(catalogue.labels)} labels are sure to differ (one category has them all, or they share words); "
            "set same_category=true if its labels exclude each other"
        )
    return catalogue, [*refused, *more]


def _why(refused: Refused) -> str:
    return f" ({len(refused)} files were refused, the first: {refused[0][1]})" if refused else ""


def _read_folder(
    root: Path,
    licences: Licences,
    kind: str,
    read: Callable[[Path, PurePosixPath, str, ComposeConfig], Source],
    config: ComposeConfig,
) -> tuple[list[Source], Refused]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, expected the folder of {kind}")
    found: list[Source] = []
    refused: Refused = []
    for file, problem in _image_files(root):
        name = f"{kind}/{file}"
        if any(fnmatchcase(name, pattern) for pattern in config.exclude):
            continue
        try:
            if problem:
                raise DataError(f"{file}: {problem}")
            licence = licences.of(file)
            if not licence:
                places = f"licences.csv, {file.stem}.licence, LICENSE or {kind[:-1]}_licence"
                raise DataError(f"{file}: no licence, expected one in {places}")
            found.append(read(root, file, licence, config))
        except DataError as error:
            refused.append((name, str(error)))
    if not found:
        raise DataError(f"{root}: no usable file, expected {kind}{_why(refused)}")
    return found, refused


def _image_files(root: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """Image files below `root`, sorted, hidden ones left out; with the reason when one is a linked folder."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in folders:
            if (Path(folder) / name).is_symlink():
                yield place / name, "a link to a folder, expected a folder itself"
        for name in sorted(files):
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                yield place / name, ""


def _photograph(root: Path, file: PurePosixPath, licence: str, config: ComposeConfig) -> Photograph:
    data = read_image_file(Path(file), root, str(file))
    width, height = image_size(data, str(file))
    if max(width, height) < config.size_px or max(width, height) > MAX_ASPECT * min(width, height):
        expected = f"expected at least {config.size_px} on the longer side and at most {MAX_ASPECT:g}:1"
        raise DataError(f"{file}: {width} x {height} pixels, {expected}")
    shows = words_of(read_text(root / file.with_suffix(".txt"), root) or "")
    return Photograph(str(file), _sha256(data), licence, width, height, shows)


def _cutout(root: Path, file: PurePosixPath, licence: str, config: ComposeConfig) -> Cutout:
    data = read_image_file(Path(file), root, str(file))
    alpha = np.asarray(decode_rgba(data, str(file)))[..., 3]
    if alpha.min() >= SOLID_ALPHA:
        raise DataError(f"{file}: opaque, expected a cut-out with a transparent background")
    visible = alpha >= VISIBLE_ALPHA
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not len(rows) or not (alpha >= SOLID_ALPHA).any():
        raise DataError(f"{file}: transparent all over, expected an object")
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) < config.min_cutout_px:
        raise DataError(
            f"{file}: its object has {width} x {height} pixels, expected at least {config.min_cutout_px} on the longer side"
        )
    said = first_words(read_text(root / file.with_suffix(".txt"), root))
    label = label_of_text(said) or label_of_name(file.stem)
    if not label:
        raise DataError(f"{file}: no label, expected words in its name or in {file.stem}.txt")
    category = "" if file.parent == PurePosixPath() else str(file.parent)
    fill = float(alpha[box[1] : box[3], box[0] : box[2]].mean()) / 255
    return Cutout(str(file), _sha256(data), licence, label, category, box, fill)


@lru_cache(maxsize=64)
def photograph_pixels(root: Path, photograph: Photograph, width_px: int, height_px: int) -> Image.Image:
    """RGB at this size. Raises DataError when the file cannot be decoded or is another one by now."""
    image = decode_image(_bytes(root, photograph), photograph.file)
    return image.resize((width_px, height_px), Image.Resampling.LANCZOS, reducing_gap=3.0)


@lru_cache(maxsize=128)
def cutout_pixels(root: Path, cutout: Cutout, longest_px: int) -> Image.Image:
    """RGBA, cropped to what is visible and no longer than this. Raises DataError when the file is another one by now."""
    image = decode_rgba(_bytes(root, cutout), cutout.file).crop(cutout.box)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return image


def _bytes(root: Path, source: Photograph | Cutout) -> bytes:
    data = read_image_file(Path(source.file), root, source.file)
    if _sha256(data) != source.sha256:
        raise DataError(f"{source.file}: changed since the run began, expected the same bytes")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
