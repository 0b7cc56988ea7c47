"""The pictures that the app serves: PNG without loss, by the key of a pair or of an upload and the name of a side, and nothing else.

What is shown next is prepared while the reviewer looks at what is shown now.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm_contextrl.app.catalogue import Catalogue
from vlm_contextrl.app.viewer import Region, Side, changed_region, shown
from vlm_contextrl.errors import DataError
from vlm_contextrl.images import encode_png
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.prompts import shown_answer

SIDES = ("context", "confounder")
KEPT_PAIRS, KEPT_UPLOADS = 24, 16


@dataclass(frozen=True)
class Prepared:
    """Both pictures of a pair as PNG, their sizes in pixels, and where they differ."""

    pngs: tuple[bytes, bytes]
    sizes_px: tuple[tuple[int, int], tuple[int, int]]
    region: Region | None


class Pictures:
    """Prepared pictures by key, the latest `KEPT_PAIRS` of pairs and `KEPT_UPLOADS` of uploads."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._pairs: OrderedDict[str, Prepared] = OrderedDict()
        self._uploads: OrderedDict[str, Prepared] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        self._wanted: Future[None] | None = None

    def png(self, key: str, side: str) -> bytes | None:
        """One picture; None when there is no such key, side or picture."""
        if side not in SIDES:
            return None
        with self._lock:
            found = self._uploads.get(key)
        if found is None and key in self._catalogue.by_key:
            try:
                found = self.prepared(self._catalogue.by_key[key])
            except DataError:
                return None
        return found.pngs[SIDES.index(side)] if found else None

    def prepared(self, index: int) -> Prepared | None:
        """The pictures of a pair; None for a pair of texts. DataError when the pair cannot be used."""
        key = self._catalogue.keys[index]
        with self._lock:
            if key in self._pairs:
                self._pairs.move_to_end(key)
                return self._pairs[key]
        sides = _images(self._catalogue.pair(index))
        made = _prepare(*sides) if sides else None
        if made:
            self._keep(self._pairs, key, made, KEPT_PAIRS)
        return made

    def prepare_ahead(self, index: int) -> None:
        """Have a pair ready when it is asked for."""

        def prepare() -> None:
            with suppress(DataError):  # said when it is shown
                self.prepared(index)

        if self._wanted is not None:
            self._wanted.cancel()  # not begun: nobody waits for it any more
        self._wanted = self._ahead.submit(prepare)

    def value(self, index: int, pair: ContrastivePair) -> dict[str, Any] | None:
        """What the viewer shows of a pair; None for a pair of texts."""
        found = self.prepared(index)
        return viewer_value(self._catalogue.keys[index], found, captions(pair)) if found else None

    def upload(self, images: Sequence[Image.Image], names: Sequence[str]) -> dict[str, Any]:
        """Keep two pictures of a visitor for a while; what the viewer shows of them."""
        made = _prepare(*images)
        key = f"upload-{secrets.token_hex(16)}"
        self._keep(self._uploads, key, made, KEPT_UPLOADS)
        return viewer_value(key, made, names)

    def _keep(self, kept: OrderedDict[str, Prepared], key: str, made: Prepared, most: int) -> None:
        with self._lock:
            kept[key] = made
            while len(kept) > most:
                kept.popitem(last=False)

    def close(self) -> None:
        """End the thread that prepares."""
        self._ahead.shutdown(wait=False, cancel_futures=True)


def captions(pair: ContrastivePair) -> tuple[str, str]:
    """What the pictures are called, and what is read aloud for them."""
    answer, other = shown_answer(pair.answer, pair.options), pair.confounder_answer
    supports = "does not support it" if other is None else f"supports {shown_answer(other, pair.options)}"
    return f"Context C+, supports {answer}", f"Confounder C\N{MINUS SIGN}, {supports}"


def viewer_value(key: str, found: Prepared, names: Sequence[str]) -> dict[str, Any]:
    """The viewer's value for prepared pictures under a key."""
    sides = [
        Side(f"/image/{key}/{side}", name, width, height)
        for side, name, (width, height) in zip(SIDES, names, found.sizes_px, strict=True)
    ]
    return shown(key, sides, found.region)


def _images(pair: ContrastivePair) -> tuple[Image.Image, Image.Image] | None:
    if isinstance(pair.context, EncodedImage) and isinstance(pair.confounder, EncodedImage):
        return pair.context.decode(), pair.confounder.decode()
    return None


def _prepare(context: Image.Image, confounder: Image.Image) -> Prepared:
    pngs = encode_png(context), encode_png(confounder)
    return Prepared(pngs, (context.size, confounder.size), changed_region(context, confounder))
