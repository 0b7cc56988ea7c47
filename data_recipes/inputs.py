"""What recipes read, and what every row they make tells about its making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlm_contextrl import __version__
from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.rows import NoUsableRowError, Sieve, usable_rows
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.pairs import ContrastivePair, QuestionRow, Row
from vlm_contextrl.splits import SCENE, scenes_of
from vlm_contextrl.storage import content_hash, foreign_files, read_manifest, read_pairs, read_questions

RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Input(Generic[RowT]):
    """rows: read lazily, picklable; refused: (id, reason) of rows that cannot be read; content_hash: of all of it."""

    rows: Sequence[RowT]
    refused: list[tuple[str, str]]
    content_hash: str


def question_input(path: Path, licence: str = "") -> Input[QuestionRow]:
    """Questions in any format that `read_questions` takes; licence: for rows that name none. Pairs beside them are refused."""
    return _input(read_questions(path, licence=licence), path)


def pair_input(path: Path, licence: str = "") -> Input[ContrastivePair]:
    """Pairs in any format that `read_pairs` takes. Questions beside them are refused."""
    return _input(read_pairs(path, licence=licence), path)


def row_input(path: Path, licence: str = "") -> Input[Any]:
    """Pairs or questions, whichever `path` holds; DataError when a foreign file holds usable rows of both, or of neither.

    refused: rows of either kind, each with what is wrong with it.
    """
    if not (files := foreign_files(path)):
        return pair_input(path) if read_manifest(path).kind == "pairs" else question_input(path)
    found: list[Sequence[Any]] = []
    refused: list[tuple[str, str]] = []
    for read in (read_questions, read_pairs):
        try:
            rows: Any = read(path, licence=licence)
            found.append(rows)
            refused += rows.rejects
        except NoUsableRowError as error:
            refused += error.rejects
    if not found:
        sieve = Sieve()  # of the kind of the first row, whose problem is the one to tell
        list(usable_rows(files, sieve, licence=licence))
        raise NoUsableRowError(files, sieve)
    if len(found) == 2:
        counts = f"{len(found[0])} questions and {len(found[1])} pairs"
        raise DataError(f"{path}: holds {counts}, expected rows of one kind; give them in two folders")
    # A row of no kind is refused by either reader, in the same words: they name its line.
    rows = _Sourced(found[0], Path(path).resolve().name)
    return Input(rows, list(dict.fromkeys(refused)), content_hash(path))


def _input(rows: Sequence[RowT], path: Path) -> Input[RowT]:
    refused = [reject for name in ("rejects", "others") for reject in getattr(rows, name, ())]
    return Input(_Sourced(rows, Path(path).resolve().name), refused, content_hash(path))


@dataclass(frozen=True)
class _Sourced(LazyRows[RowT]):
    """The same rows; one that names no source has the name of what it was read from."""

    rows: Sequence[RowT]
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def _row(self, index: int) -> RowT:
        row = self.rows[index]
        return replace(row, provenance={"source": self.source, **row.provenance})


def provenance(*rows: Row, **made: Any) -> dict[str, Any]:
    """Provenance of a row that was made from `rows`: theirs (several values of a key are joined; several scenes are a list, each of which a
    split holds together), their ids, what was done, by which version. Keys whose value is None are left out."""
    told: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row.provenance):
        values = [row.provenance[key] for row in rows if key in row.provenance]
        distinct = {str(value): value for value in values}
        if len(distinct) == 1:
            told[key] = values[0]
        elif key == SCENE:
            told[key] = [scene for value in distinct.values() for scene in scenes_of(value)]
        else:
            told[key] = "; ".join(distinct)
    made = {key: value for key, value in made.items() if value is not None}
    return {**told, "made_from": [row.id for row in rows], **made, "version": __version__}
