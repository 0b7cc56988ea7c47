"""The images of rows as one lazy sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from vlm_contextrl.pairs import ContrastivePair, EncodedImage, Row
from vlm_contextrl.row_schema import images_of
from vlm_contextrl.shards import ShardRows


class ImagesOf(Sequence[EncodedImage]):
    """Images of rows, read when asked for; pickles as the rows do.

    places: (row index, side) of every image: side 0 is a question's first image or a pair's context, 1 the next or the confounder.
    hashes: their pixel hashes, where these are known; the images are then not decoded for it again.
    """

    def __init__(
        self, rows: Sequence[Row], places: Sequence[tuple[int, int]], hashes: Sequence[str] | None = None
    ) -> None:
        self.rows, self.places, self.hashes = rows, list(places), hashes

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> EncodedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedImage]: ...
    def __getitem__(self, index: int | slice) -> EncodedImage | list[EncodedImage]:
        if isinstance(index, slice):
            return list(self._read(range(*index.indices(len(self)))))
        return next(self._read([index]))

    def _read(self, numbers: Sequence[int]) -> Iterator[EncodedImage]:
        last = -1
        images: tuple[EncodedImage, ...] = ()
        for number in numbers:
            row, side = self.places[number]
            if row != last:
                last, images = row, images_of(self.rows[row])
            image = images[side]
            known = self.hashes[number] if self.hashes else ""
            yield EncodedImage.with_known_hash(image.data, image.origin, known) if known else image


def row_images(rows: Sequence[Row]) -> ImagesOf:
    """Every image of the rows, in order."""
    return ImagesOf(rows, [(row, side) for row, n in enumerate(_image_counts(rows)) for side in range(n)])


def _image_counts(rows: Sequence[Row]) -> Iterator[int]:
    if not isinstance(rows, ShardRows):
        yield from (len(images_of(row)) for row in rows)
    elif len(rows) and isinstance(rows[0], ContrastivePair):  # counting must not decode every picture
        yield from (2 if record["context_text"] is None else 0 for record in rows.records(["context_text"]))
    else:
        yield from (len(record["images"] or ()) for record in rows.records(["images"]))
