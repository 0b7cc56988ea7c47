"""Splits dataset folders so that nothing is seen on two sides.

Rows that share an image (equal pixels), a text context or a scene (`provenance["scene"]`, one or a list) belong to one
group, also across folders: questions made from the images of some pairs go where these pairs go. A row with
none of these is grouped by its query. A group is assigned by a hash of the seed and its smallest key, so rows
that are added later move no other group, and sizes follow the fractions only on average.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import Row
from vlm_contextrl.row_schema import images_of, texts_of
from vlm_contextrl.storage import new_folder, read_rows, write_dataset_card, write_rows

SCENE = "scene"  # key of the provenance


def split_rows(
    folders: Mapping[str, Sequence[Row]], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, dict[str, list[int]]]:
    """For each folder and split the row indices, ascending.

    fractions: share of the groups per split; must be positive and sum to 1. Raises DataError when they do
    not, or when a split of some folder stays empty.
    """
    _check_fractions(fractions)
    groups = _Groups()
    row_keys = {name: [groups.join(_keys(row)) for row in rows] for name, rows in folders.items()}
    smallest = groups.smallest_keys()
    splits: dict[str, dict[str, list[int]]] = {}
    for name, keys in row_keys.items():
        splits[name] = {split: [] for split in fractions}
        for index, key in enumerate(keys):
            splits[name][_assign(smallest[groups.root(key)], fractions, seed)].append(index)
        for split, indices in splits[name].items():
            if not indices:
                count = len({groups.root(key) for key in keys})
                raise DataError(
                    f"{name}: split {split!r} (fraction {fractions[split]}) is empty, {len(keys)} rows form "
                    f"{count} groups that share images, texts or scenes; give more rows, a larger fraction "
                    f"or another seed than {seed}"
                )
    return splits


def run_split(
    inputs: Mapping[str, Path], out: Path, fractions: Mapping[str, float], seed: int = 0
) -> dict[str, Any]:
    """Writes `out`/NAME/SPLIT dataset folders (`out`/SPLIT when there is one input); says what it wrote.

    All or nothing: `out` must be new or empty and appears only when every split is written. Raises DataError.
    """
    for name in [*inputs, *fractions]:
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise DataError(f"{name!r} is no name for a folder, expected one without slashes")
    for split in fractions:
        if not re.fullmatch(r"[A-Za-z_]\w*", split, re.ASCII):  # what `datasets` takes as a split
            raise DataError(
                f"{split!r} is no name for a split, expected letters, digits and _, not a digit first"
            )
    opened = {name: read_rows(path) for name, path in inputs.items()}
    with new_folder(out) as folder:
        splits = split_rows({name: rows for name, (_, rows) in opened.items()}, fractions, seed)
        summary: dict[str, Any] = {"seed": seed, "fractions": dict(fractions), "inputs": {}}
        for name, (manifest, rows) in opened.items():
            parts = summary["inputs"][name] = {}
            top = Path() if len(inputs) == 1 else Path(name)
            for split, indices in splits[name].items():
                place = top / split
                config = {
                    "split": split,
                    "fractions": dict(fractions),
                    "seed": seed,
                    "jointly_with": sorted(set(inputs) - {name}),
                    "input_content_hash": manifest.content_hash,
                    "input_config": manifest.config,
                }
                chosen = (rows[index] for index in indices)
                written = write_rows(chosen, folder / place, recipe=manifest.recipe, config=config)
                parts[split] = {
                    "rows": written.rows,
                    "folder": str(Path(out) / place),
                    "content_hash": written.content_hash,
                }
            text = f"{manifest.rows} {manifest.kind} (seed {seed}); no image and no scene is in two splits.\n"
            patterns = {split: f"{split}/data-*.parquet" for split in fractions}
            write_dataset_card(folder / top, name, patterns, text)
    return summary


class _Groups:
    """Union-find over keys."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, keys: list[str]) -> str:
        """Puts the keys into one group and returns one of them."""
        first = self.root(keys[0])
        for key in keys[1:]:
            self._parents[self.root(key)] = first
        return first

    def root(self, key: str) -> str:
        parent = self._parents.setdefault(key, key)
        while parent != key:
            grandparent = self._parents[parent]
            self._parents[key] = grandparent
            key, parent = parent, grandparent
        return key

    def smallest_keys(self) -> dict[str, str]:
        """The smallest key of every group, by the group's root."""
        smallest: dict[str, str] = {}
        for key in list(self._parents):
            root = self.root(key)
            smallest[root] = min(key, smallest.get(root, key))
        return smallest


def scenes_of(told: Any) -> list[Any]:
    """The scenes that a row's provenance names: one, or a list of those that it was made from."""
    return [
        scene for scene in (told if isinstance(told, list) else [told]) if scene is not None and scene != ""
    ]


def _keys(row: Row) -> list[str]:
    keys = [f"image {image.pixel_hash()}" for image in images_of(row)]
    keys += [f"text {_sha256(' '.join(text.split()))}" for text in texts_of(row)]
    keys += [
        f"scene {_sha256(json.dumps(scene, sort_keys=True))}"
        for scene in scenes_of(row.provenance.get(SCENE))
    ]
    return keys or [f"query {_sha256(' '.join(row.query.split()))}"]


def _assign(key: str, fractions: Mapping[str, float], seed: int) -> str:
    position = int(_sha256(f"{seed} {key}")[:13], 16) / 16**13
    upper = 0.0
    for split, fraction in fractions.items():
        upper += fraction
        if position < upper:
            return split
    return split  # the fractions sum to 1 only up to rounding


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for split, fraction in fractions.items():
        if not 0 < fraction <= 1:
            raise DataError(f"fraction of split {split!r} is {fraction}, expected more than 0 and at most 1")
    total = math.fsum(fractions.values())
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise DataError(f"fractions {dict(fractions)} sum to {total:g}, expected 1")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
