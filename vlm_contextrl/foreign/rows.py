"""Reads image folders, the official release's jsonl and Parquet of others (formats: see `formats`).

Rows of the other kind are left to the other reader. A row that cannot be used, because of a name that leads
outside the folder for instance, becomes a reject with its id and the reason. `ForeignRows` checks every row, and so
decodes it, when the data is opened, and makes rows anew when they are asked for; read a large release once and keep it as a dataset
folder (`pairs import`, which reads everything a single time with `usable_rows`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.formats import Draft, draft_folder_row, draft_official_row
from vlm_contextrl.foreign.parquet import ParquetValues, is_ours
from vlm_contextrl.foreign.values import as_text
from vlm_contextrl.images import IMAGE_SUFFIXES, read_image_file
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.row_schema import Kind, check_row

METADATA_NAME = "metadata.jsonl"
ROWS_NAME = "rows.jsonl"
_BATCH_ROWS = 64


class Reject(NamedTuple):
    """An input that cannot be used. code: unreadable, image, invalid, no_licence, duplicate_id or other_kind."""

    id: str
    reason: str
    code: str


@dataclass
class Sieve:
    """What `usable_rows` left out. kind: of the rows; None until the first one settles it."""

    kind: Kind | None = None
    rejects: list[Reject] = field(default_factory=list)
    others: list[Reject] = field(default_factory=list)


class NoUsableRowError(DataError):
    """No row can be used. rejects: as of `ForeignRows`."""

    def __init__(self, files: Sequence[Path], sieve: Sieve) -> None:
        found = f"{len(sieve.rejects)} unusable rows, {len(sieve.others)} of the other kind"
        first = next((f"; the first unusable one is {r.id!r}: {r.reason}" for r in sieve.rejects), "")
        super().__init__(f"{files[0]}: no usable {sieve.kind or 'rows'} ({found}){first}")
        self.rejects = _reasons(sieve.rejects)


class ForeignRows(LazyRows[Row]):
    """The usable rows of foreign files, made when asked for. Parquet is held one row group at a time: read it in order.

    rejects: (id, reason) of the unusable ones; hand them to `write_rows`. others: the same of rows of the other kind, used or not.
    """

    def __init__(self, source: _Source, numbers: list[int], sieve: Sieve) -> None:
        self._source, self._numbers = source, numbers
        self.rejects, self.others = _reasons(sieve.rejects), _reasons(sieve.others)

    def __len__(self) -> int:
        return len(self._numbers)

    def _row(self, index: int) -> Row:
        draft = self._source.draft(self._numbers[index])
        assert isinstance(draft, Draft), draft
        return _build(draft, self._source.root)


def report_rejects(rows: Sequence[Row], folder: Path) -> int:
    """How many rows of a foreign format could not be used; says so on stderr. 0 for one of our datasets."""
    refused: Sequence[tuple[str, str]] = getattr(rows, "rejects", ())
    if refused:
        row_id, reason = refused[0]
        print(f"{folder}: {len(refused)} rows not used, first {row_id}: {reason}", file=sys.stderr)
    return len(refused)


def find_foreign(path: Path) -> list[Path]:
    """The files to read when `path` is a file of, or a folder in, a foreign format: one jsonl, or Parquet; else none."""
    if path.is_file():
        return [path] if path.suffix in (".jsonl", ".parquet") else []
    for name in (METADATA_NAME, ROWS_NAME):
        if (path / name).is_file():
            return _inside([path / name], path)
    if found := sorted(path.glob("*.parquet")):
        _inside(found, path)
        return [] if any(map(is_ours, found)) else found  # else one of our folders, incomplete
    found = sorted(path.glob("*.jsonl"))
    return _inside(found, path) if len(found) == 1 else []


def foreign_hash(files: Sequence[Path]) -> str:
    """sha256 over the bytes of the files and of the images beside them that they name, each once."""
    digest = hashlib.sha256()
    for file in [*files, *_images_beside(files)]:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _images_beside(files: Sequence[Path]) -> list[Path]:
    """Image files that texts of a jsonl file name, in the order of the texts."""
    found: dict[Path, None] = {}
    for file in files:
        if file.suffix != ".jsonl":
            continue
        with file.open("rb") as lines:
            for line in lines:
                for name in _texts(line):
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                        found[file.parent / name] = None
    return [path for path in found if _is_file(path)]


def _texts(line: bytes) -> Iterator[str]:
    """All texts of a JSON value, in order; none when the line is no JSON, which the reader of rows tells."""
    try:
        left = [json.loads(line)]
    except (ValueError, RecursionError):
        return
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += reversed(list(value.values()))
        elif isinstance(value, list):
            left += reversed(value)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is no name
        return False


def read_foreign(files: Sequence[Path], kind: Kind, *, licence: str = "") -> ForeignRows:
    """The rows of one kind in a jsonl file or in Parquet files; NoUsableRowError when there is no usable one.

    licence: for rows that name none.
    """
    source, sieve = _Source(files, licence), Sieve(kind)
    numbers = [number for number, _ in _usable(source, sieve)]
    if not numbers:
        raise NoUsableRowError(files, sieve)
    return ForeignRows(source, numbers, sieve)


def usable_rows(files: Sequence[Path], sieve: Sieve, *, licence: str = "") -> Iterator[Row]:
    """Every usable row, in order, read once; `sieve` takes the rest as it comes."""
    return (row for _, row in _usable(_Source(files, licence), sieve))


def _reasons(rejects: Sequence[Reject]) -> list[tuple[str, str]]:
    return [(reject.id, reject.reason) for reject in rejects]


class _Source:
    """The values of foreign files by number, and what they mean."""

    def __init__(self, files: Sequence[Path], licence: str) -> None:
        self.root, self._licence = files[0].parent, licence
        self._is_folder = files[0].name == METADATA_NAME
        self._values: _Lines | ParquetValues
        self._values = ParquetValues(files) if files[0].suffix == ".parquet" else _Lines(files[0])

    def drafts(self) -> Iterator[tuple[int, Draft | Reject]]:
        """Number and meaning of every value, in order."""
        for number, (where, row_id, value) in enumerate(self._values):
            yield number, self._draft(where, row_id, value)

    def draft(self, number: int) -> Draft | Reject:
        return self._draft(*self._values[number])

    def _draft(self, where: str, row_id: str, value: object) -> Draft | Reject:
        draft_row = draft_folder_row if self._is_folder else draft_official_row
        try:
            if not isinstance(value, dict):
                raise DataError(f"{where}: {value!r} is not a JSON object")
            if value.get("id") is not None:
                row_id = as_text(value["id"])
            return draft_row(value, row_id, where, self._licence)
        except DataError as error:
            return Reject(row_id, str(error), "unreadable")


class _Lines:
    """(where, default id, JSON value) of every line of a jsonl file that is not empty; the text where a line is no JSON."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stem = file.parent.name if file.name == METADATA_NAME else file.stem
        try:
            with file.open(encoding="utf-8-sig") as lines:
                self._lines = [(n, line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error

    def __iter__(self) -> Iterator[tuple[str, str, Any]]:
        return (self[number] for number in range(len(self._lines)))

    def __getitem__(self, number: int) -> tuple[str, str, Any]:
        line, text = self._lines[number]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text[:80]
        return f"{self._file}: line {line}", f"{self._stem}-{line}", value


def _usable(source: _Source, sieve: Sieve) -> Iterator[tuple[int, Row]]:
    """Number and row of every value that can be used, in order. At most `_BATCH_ROWS` rows are in memory."""

    def examine(draft: Draft | Reject) -> Row | Reject:
        if isinstance(draft, Reject):
            return draft
        if draft.kind != sieve.kind:
            found = f"{draft.where}: one of the {draft.kind}, expected {sieve.kind}; read {draft.kind} by themselves"
            return Reject(draft.fields["id"], found, "other_kind")
        return _checked(draft, source.root)

    ids: set[str] = set()
    drafts = source.drafts()
    # Reading and decoding release the interpreter lock, so threads help.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        while batch := list(islice(drafts, _BATCH_ROWS)):
            sieve.kind = sieve.kind or next((d.kind for _, d in batch if isinstance(d, Draft)), None)
            examined = list(threads.map(examine, [draft for _, draft in batch]))
            for (number, draft), row in zip(batch, examined, strict=True):
                if not isinstance(row, Reject) and row.id in ids:
                    assert isinstance(draft, Draft)
                    row = Reject(
                        row.id, f"{draft.where}: duplicate id, an earlier row has it", "duplicate_id"
                    )
                if isinstance(row, Reject):
                    (sieve.others if row.code == "other_kind" else sieve.rejects).append(row)
                else:
                    ids.add(row.id)
                    yield number, row


def _checked(draft: Draft, root: Path) -> Row | Reject:
    row_id = draft.fields["id"]
    try:
        row = _build(draft, root)
    except DataError as error:
        return Reject(row_id, str(error), "image")
    reason = check_row(row)
    if reason is None:
        return row
    if reason.startswith(draft.where):
        return Reject(row_id, reason, "image")
    if reason.startswith("provenance['licence']"):
        advice = "name it in the row, or give one for all (--licence, licence=)"
        return Reject(row_id, f"{draft.where}: {reason}; {advice}", "no_licence")
    return Reject(row_id, f"{draft.where}: {reason}", "invalid")


def _build(draft: Draft, root: Path) -> Row:
    images = [
        EncodedImage(found, origin=f"{draft.where}: image {index}")
        if isinstance(found, bytes)
        else EncodedImage(
            read_image_file(Path(found), root, draft.where), origin=f"{draft.where}: image {found}"
        )
        for index, found in enumerate(draft.images)
    ]
    arguments: dict[str, Any] = dict(draft.fields)
    if draft.kind == "questions":
        return QuestionRow(images=tuple(images), **arguments)
    if images:
        arguments["context"], arguments["confounder"] = images
    return ContrastivePair(**arguments)


def _inside(files: list[Path], folder: Path) -> list[Path]:
    """The files; DataError when a link leads one of them out of the folder."""
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{file}: is a link out of its folder, expected a file inside it; copy the data (cp -rL)"
            )
    return files
