"""Candidate pairs: for every row the nearest images of its block that have another answer, within the cosine window.

The search runs in parts of about 4,096 rows through the engine, so it is spread over workers, shows its progress and survives a kill.

Shapes: R rows, E candidate pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.data_recipes.features import neighbours
from vlm_contextrl.data_recipes.pipeline import Engine, compute_parts
from vlm_contextrl.data_recipes.retrieve.settings import RetrieveConfig

PART_ROWS = 4096
_EDGES_NAME = "edges.npz"
Rows = NDArray[np.int64]


class Piece(NamedTuple):
    """Queries start to stop of a block."""

    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class Candidates:
    """rows_E2: row numbers, the smaller first, each pair once; cosines_E; nearest: of rows without a candidate, the cosine of the nearest
    image with another answer."""

    rows_E2: Rows
    cosines_E: NDArray[np.float32]
    nearest: dict[int, float]


def find_candidates(
    features: Path,
    blocks: Sequence[Rows],
    labels_R: Rows,
    config: RetrieveConfig,
    folder: Path,
    plan: Mapping[str, Any],
    engine: Engine,
) -> Candidates:
    """Candidate pairs of all blocks. features: an .npy file [R, D]; labels_R: equal for equal answers of a block; plan: what else settles
    the result."""
    searched = config.model_dump(include={"low", "high", "neighbours", "index"})
    search = _Search(features, list(blocks), labels_R, config)
    plan = {**plan, **searched}
    parts = compute_parts(
        search,
        _pieces(blocks),
        folder / digest(plan),  # another window is another search, so that it can be widened
        plan=plan,
        batch_size=1,
        engine=engine,
        label="retrieve: search",
    )
    rows, cosines = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    nearest: dict[int, float] = {}
    for part in parts.folders:
        with np.load(part / _EDGES_NAME) as arrays:
            rows.append(arrays["rows"])
            cosines.append(arrays["cosines"])
            nearest.update(zip(arrays["lonely"].tolist(), arrays["nearest"].tolist(), strict=True))
    rows_E2, first = np.unique(np.concatenate(rows), axis=0, return_index=True)
    return Candidates(rows_E2, np.concatenate(cosines)[first], nearest)


def digest(plan: object) -> str:
    """A short name for what settles a result."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def _pieces(blocks: Sequence[Rows]) -> list[list[Piece]]:
    """Lists of pieces of together about `PART_ROWS` rows, or one piece of a large block."""
    parts: list[list[Piece]] = [[]]
    room = PART_ROWS
    for number, block in enumerate(blocks):
        for start in range(0, len(block), PART_ROWS):
            piece = Piece(number, start, min(start + PART_ROWS, len(block)))
            if piece.stop - piece.start > room and parts[-1]:
                parts.append([])
                room = PART_ROWS
            parts[-1].append(piece)
            room -= piece.stop - piece.start
    return parts if parts[0] else []


@dataclass(frozen=True)
class _Search:
    features: Path
    blocks: list[Rows]
    labels_R: Rows
    config: RetrieveConfig

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "blocks", "labels_R", "config")}

    @cached_property
    def vectors_RD(self) -> NDArray[np.float32]:
        """Mapped from the file in each worker."""
        vectors: NDArray[np.float32] = np.load(self.features, mmap_mode="r")
        return vectors

    def __call__(self, parts: Sequence[Sequence[Piece]], folder: Path) -> None:
        found = [self._search(piece) for pieces in parts for piece in pieces]
        names = ("rows", "cosines", "lonely", "nearest")
        arrays = {name: np.concatenate([each[i] for each in found]) for i, name in enumerate(names)}
        np.savez(folder / _EDGES_NAME, **arrays)  # type: ignore[arg-type]

    def _search(self, piece: Piece) -> tuple[Rows, NDArray[np.float32], Rows, NDArray[np.float32]]:
        rows = self.blocks[piece.block]
        base_MD, labels = self.vectors_RD[rows], self.labels_R[rows]
        queries = np.arange(piece.start, piece.stop)

        def ask(queries: Rows, k: int, low: float, high: float) -> tuple[Rows, NDArray[np.float32]]:
            config = self.config
            return neighbours(
                base_MD[queries],
                base_MD,
                k,
                low,
                high,
                exclude=(labels[queries], labels),
                device=config.device,
                index=config.index,
            )

        indices_NK, cosines_NK = ask(queries, self.config.neighbours, self.config.low, self.config.high)
        query, column = np.nonzero(indices_NK >= 0)
        pairs_E2 = np.stack([rows[queries[query]], rows[indices_NK[query, column]]], axis=1)
        pairs_E2.sort(axis=1)
        alone = queries[indices_NK[:, 0] < 0]
        nearest, cosines = ask(alone, 1, -1.0, 1.0)
        has_one = nearest[:, 0] >= 0
        return pairs_E2, cosines_NK[query, column], rows[alone[has_one]], cosines[has_one, 0]
