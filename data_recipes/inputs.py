"""What recipes read, and what every row they make tells about its making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlm_contextrl import __version__
from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign_rows import Sieve, find_foreign, nothing_usable, usable_rows
from vlm_contextrl.pairs import ContrastivePair, QuestionRow, Row
from vlm_contextrl.storage import MANIFEST_NAME, content_hash, read_manifest, read_pairs, read_questions

RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Input(Generic[RowT]):
    """rows: read lazily, picklable; refused: (id, reason) of rows that cannot be read; content_hash: of all of it."""

    rows: Sequence[RowT]
    refused: list[tuple[str, str]]
    content_hash: str


def question_input(path: Path, licence: str = "") -> Input[QuestionRow]:
    """Questions in any format that `read_questions` takes; licence: for rows that name none."""
    rows = read_questions(path, licence=licence)
    return Input(rows, list(getattr(rows, "rejects", ())), content_hash(path))


def pair_input(path: Path, licence: str = "") -> Input[ContrastivePair]:
    """Pairs in any format that `read_pairs` takes."""
    rows = read_pairs(path, licence=licence)
    return Input(rows, list(getattr(rows, "rejects", ())), content_hash(path))


def row_input(path: Path, licence: str = "") -> Input[Any]:
    """Pairs or questions, whichever `path` holds; DataError when a foreign file holds both, or neither."""
    if (path / MANIFEST_NAME).is_file():
        return pair_input(path) if read_manifest(path).kind == "pairs" else question_input(path)
    found: list[Input[Any]] = []
    problems: list[DataError] = []
    files = find_foreign(path)
    for read in (question_input, pair_input) if files else (question_input,):
        try:
            found.append(read(path, licence))
        except DataError as error:
            problems.append(error)
    if not found and files:
        sieve = Sieve()  # of the kind of the first row, whose problem is the one to tell
        list(usable_rows(files, sieve, licence=licence))
        raise nothing_usable(files, sieve)
    if not found:
        raise problems[0]
    if len(found) == 2:
        counts = f"{len(found[0].rows)} questions and {len(found[1].rows)} pairs"
        raise DataError(f"{path}: holds {counts}, expected rows of one kind; give them in two folders")
    return found[0]


def provenance(*rows: Row, **made: Any) -> dict[str, Any]:
    """Provenance of a row that was made from `rows`: theirs (several values of a key are joined), their ids, what was done, by which
    version. Keys whose value is None are left out."""
    told: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row.provenance):
        values = [row.provenance[key] for row in rows if key in row.provenance]
        distinct = list(dict.fromkeys(map(str, values)))
        told[key] = values[0] if len(distinct) == 1 else "; ".join(distinct)
    made = {key: value for key, value in made.items() if value is not None}
    return {**told, "made_from": [row.id for row in rows], **made, "version": __version__}
