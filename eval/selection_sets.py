"""Published sets of two similar images and one question with two answers, read as contrastive pairs.

How rows become pairs stands in `selection_readers.py`. Every pair goes both ways (`confounder_answer`). What could be a pair and is none
becomes a reject with its reason: `len(pairs) + len(pairs.rejects) == pairs.inputs`. Pictures stay in their files until a pair is asked
for; each is decoded once beforehand, so that the rejects are known. Left out: the sets' own scores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.data_roots import load_part
from vlm_contextrl.eval.registry import Part
from vlm_contextrl.eval.selection_readers import (
    Draft,
    Drafts,
    Place,
    Reject,
    hallusionbench,
    mmvp,
    naturalbench,
    vismin,
)
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, check_pair

_BATCH_PAIRS = 64


@dataclass(frozen=True)
class SelectionSet:
    """A published set. images: the columns of pictures. source: the paper. note: what to know about its columns."""

    name: str
    title: str
    licence: str
    part: Part
    images: tuple[str, ...]
    drafts: Callable[[Sequence[Mapping[str, Any]], Part], Drafts]
    source: str
    note: str


class PublishedPairs(LazyRows[ContrastivePair]):
    """The usable pairs of a set, made when asked for. inputs: pairs and rejects together."""

    def __init__(self, chosen: SelectionSet, pictures: Any, drafts: Drafts, limit: int | None) -> None:
        self._set, self._pictures = chosen, pictures
        self._drafts: list[Draft] = []
        self.rejects: list[tuple[str, str]] = []
        self._take(drafts, limit)

    @property
    def inputs(self) -> int:
        return len(self._drafts) + len(self.rejects)

    def __len__(self) -> int:
        return len(self._drafts)

    def _row(self, index: int) -> ContrastivePair:
        return self._pair(self._drafts[index])

    def _take(self, drafts: Drafts, limit: int | None) -> None:
        ids: set[str] = set()
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
            while batch := list(islice(drafts, _BATCH_PAIRS)):
                for draft, reason in zip(batch, threads.map(self._examine, batch), strict=True):
                    if limit is not None and len(self._drafts) == limit:
                        return
                    if reason is None and draft.id in ids:
                        reason = "duplicate id, an earlier pair has it"
                    if reason is None and isinstance(draft, Draft):
                        ids.add(draft.id)
                        self._drafts.append(draft)
                    else:
                        self.rejects.append((draft.id, str(reason)))

    def _examine(self, draft: Draft | Reject) -> str | None:
        if isinstance(draft, Reject):
            return draft.reason
        try:
            return check_pair(self._pair(draft))
        except DataError as error:
            return str(error)

    def _pair(self, draft: Draft) -> ContrastivePair:
        return ContrastivePair(
            id=draft.id, query=draft.query, answer=draft.answer, confounder_answer=draft.confounder_answer, options=draft.options,
            answer_type=draft.answer_type, context=self._image(draft.context), confounder=self._image(draft.confounder),
            domain=draft.domain, recipe=self._set.name,
            provenance={"licence": self._set.licence, "source": self._set.part.dataset, "scene": draft.scene},
        )  # fmt: skip

    def _image(self, place: Place) -> EncodedImage:
        where = f"{self._set.name}, row {place.row}, field {place.column!r}"
        value = self._pictures[place.row][place.column]
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if data is None and isinstance(value, Mapping) and value.get("path"):  # of an image folder
            try:
                data = Path(value["path"]).read_bytes()
            except OSError as error:
                raise DataError(f"{where}: {value['path']} cannot be read ({error.strerror})") from error
        if not isinstance(data, bytes):
            raise DataError(f"{where}: found {type(value).__name__}, expected an image as file bytes")
        return EncodedImage(data, where)


def read_selection_set(
    chosen: SelectionSet, data_root: Path | None = None, limit: int | None = None
) -> PublishedPairs:
    """The pairs of a set from a data root, else from the hub. limit: stop after so many pairs.

    Raises DataError when the rows cannot be had and when none of them gives a pair.
    """
    from datasets import Image

    rows = load_part(chosen.part, data_root)
    pictures = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    texts = rows.remove_columns([name for name in rows.column_names if name in {*pictures, *chosen.images}])
    for name in pictures:
        rows = rows.cast_column(name, Image(decode=False))
    pairs = PublishedPairs(chosen, rows, chosen.drafts(texts, chosen.part), limit)
    if not pairs:
        first = "; ".join(pairs.rejects[0]) if pairs.rejects else "there are no rows"
        raise DataError(f"{chosen.name}: none of {pairs.inputs} candidates is a pair; the first: {first}")
    return pairs


def _part(name: str, dataset: str, split: str, n: int) -> Part:
    return Part(name, "", dataset, None, split, n)


_TABLE = (
    SelectionSet(
        "naturalbench", "NaturalBench", "Apache-2.0", _part("naturalbench", "BaiqiL/NaturalBench", "train", 1900),
        ("Image_0", "Image_1"), naturalbench, "arXiv 2410.14669",
        "Options of a multiple-choice question stand in its text.",
    ),
    SelectionSet(
        "vismin", "VisMin", "CC-BY-4.0", _part("vismin", "mair-lab/vismin-bench", "test", 2084), ("image_0", "image_1"), vismin,
        "arXiv 2407.16772", "An early version had captions and images mixed up (discussion 1 of the set on the hub).",
    ),
    SelectionSet(
        "hallusionbench", "HallusionBench (visual dependent)", "BSD-3-Clause",
        _part("hallusionbench", "lmms-lab-encoder/HallusionBench", "image", 951), ("image",), hallusionbench, "arXiv 2310.14566",
        "figure_id 0 is the original, the others are edits of it; rows of category VS make no pair.",
    ),
    SelectionSet(
        "mmvp", "MMVP", "MIT", _part("mmvp", "lmms-lab-eval/MMVP", "train", 300), ("image",), mmvp, "arXiv 2401.06209",
        "MMVP/MMVP itself loads without its questions; this copy has them, and the answers of two pairs corrected.",
    ),
)  # fmt: skip

SELECTION_SETS: dict[str, SelectionSet] = {chosen.name: chosen for chosen in _TABLE}
