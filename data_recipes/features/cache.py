"""Features kept by content: an image is encoded once per encoder, whatever dataset it is in and however often work is stopped.

    CACHE/ENCODER/encoder.json          what settles the vectors (settings.identity)
    CACHE/ENCODER/vectors-NAME.npz      pixel hashes and vectors of up to 128 images; renamed into place when it is whole

ENCODER is a hash of the first file. Files are only ever added, so runs may share a folder. A killed run leaves a small hidden folder
`.run-*` behind, which is of no use to anybody.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.data_recipes.features.encoders import Encoder, Vectors, load_encoder
from vlm_contextrl.data_recipes.features.settings import EncoderSettings, identity
from vlm_contextrl.data_recipes.pipeline import Engine, compute_parts
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import EncodedImage

PART_IMAGES = 128
_KEYS_NAME = "keys.json"


def image_features(
    images: Sequence[EncodedImage], settings: EncoderSettings, cache: Path, engine: Engine, label: str
) -> Vectors:
    """[N, D] float32 unit vectors of N images; [0, 0] of none.

    images: read lazily, pickled to the workers (`row_images`). What the cache holds is not encoded again, so more images or a new
    start after a kill cost only what is missing. Raises DataError for an image that cannot be read, CheckpointError and
    MissingExtraError for an encoder that cannot be loaded.
    """
    if not len(images):
        return np.zeros((0, 0), np.float32)
    store = _open_store(cache, settings)
    run = store / f".run-{secrets.token_hex(4)}"
    try:
        encode = _EncodeNew(settings, store)
        parts = compute_parts(
            encode, images, run, plan={}, batch_size=PART_IMAGES, engine=engine, label=label
        )
        keys = [
            key
            for part in parts.folders
            for key in json.loads((part / _KEYS_NAME).read_text(encoding="utf-8"))
        ]
    finally:
        shutil.rmtree(run, ignore_errors=True)
    return _gather(store, keys)


@dataclass(frozen=True)
class _EncodeNew:
    """Writes the pixel hashes of a batch to its part, and the vectors of new images to the store."""

    settings: EncoderSettings
    store: Path

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "store": self.store}

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded in the worker, when there is something to encode."""
        return load_encoder(self.settings)

    @cached_property
    def known(self) -> set[str]:
        """Pixel hashes in the store."""
        return {key for keys, _ in _vectors(self.store, with_vectors=False) for key in keys}

    def __call__(self, images: Sequence[EncodedImage], folder: Path) -> None:
        keys = [image.pixel_hash() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self.known}
        if new:
            _add(self.store, list(new), self._encode(list(new.values())))
            self.known.update(new)
        (folder / _KEYS_NAME).write_text(json.dumps(keys), encoding="utf-8")

    def _encode(self, images: Sequence[EncodedImage]) -> Vectors:
        batch = self.settings.batch_size
        found = [
            self.encoder.encode([image.decode() for image in images[start : start + batch]])
            for start in range(0, len(images), batch)
        ]
        vectors_ND = np.concatenate(found)
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        if not np.isfinite(norms_N1).all():
            bad = images[int(np.flatnonzero(~np.isfinite(norms_N1[:, 0]))[0])]
            raise DataError(
                f"{bad.origin or 'image'}: {self.settings.name} gives features that are no finite numbers; try dtype=float32"
            )
        unit: Vectors = (vectors_ND / np.maximum(norms_N1, 1e-12)).astype(np.float32)
        return unit


def _open_store(cache: Path, settings: EncoderSettings) -> Path:
    text = json.dumps(identity(settings), indent=2, sort_keys=True)
    store = cache.resolve() / hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        store.mkdir(parents=True, exist_ok=True)
        (store / "encoder.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{store}: features cannot be kept here ({error}); name another cache folder"
        ) from error
    return store


def _add(store: Path, keys: Sequence[str], vectors_ND: Vectors) -> None:
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
    unfinished = store / f".{name}-{secrets.token_hex(4)}.unfinished"
    with unfinished.open("wb") as file:
        np.savez(file, keys=np.array(keys, "S64"), vectors=vectors_ND)
    os.replace(unfinished, store / f"vectors-{name}.npz")


def _vectors(store: Path, *, with_vectors: bool = True) -> Iterator[tuple[list[str], Vectors | None]]:
    """(pixel hashes, vectors) of every file, in the order of names."""
    for file in sorted(store.glob("vectors-*.npz")):
        try:
            with file.open("rb") as data, np.load(data) as arrays:
                keys = [key.decode() for key in arrays["keys"].tolist()]
                yield keys, arrays["vectors"] if with_vectors else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{file}: damaged ({error}); remove it, and its images are encoded again"
            ) from error


def _gather(store: Path, keys: Sequence[str]) -> Vectors:
    wanted: dict[str, int] = {}
    row_N: NDArray[np.int64] = np.array([wanted.setdefault(key, len(wanted)) for key in keys])
    found_UD: Vectors | None = None
    for names, vectors in _vectors(store):
        assert vectors is not None
        at = [i for i, name in enumerate(names) if name in wanted]
        if at:
            found_UD = np.empty((len(wanted), vectors.shape[1]), np.float32) if found_UD is None else found_UD
            found_UD[[wanted[names[i]] for i in at]] = vectors[at]
    assert found_UD is not None
    return found_UD if len(wanted) == len(keys) else found_UD[row_N]
