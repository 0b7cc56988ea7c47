"""Reads image folders and the official release's jsonl (formats: see `foreign_formats`).

Rows of the other kind are left to the other reader. A row that cannot be used, because of a name that leads
outside the folder for instance, becomes a reject with its id and the reason. Every row is checked, and so
decoded, when the file is opened; read a large release once and keep it as a dataset folder (`write_rows`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign_formats import Draft, as_text, draft_folder_row, draft_official_row
from vlm_contextrl.images import read_image_file
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.row_schema import Kind, check_row

METADATA_NAME = "metadata.jsonl"


class ForeignRows(LazyRows[Row]):
    """The usable rows of a foreign file, made when asked for.

    rejects: (id, reason) of the unusable ones; hand them to `write_rows`.
    """

    def __init__(self, root: Path, drafts: list[Draft], rejects: list[tuple[str, str]]) -> None:
        self._root, self._drafts = root, drafts
        self.rejects = rejects

    def __len__(self) -> int:
        return len(self._drafts)

    def _row(self, index: int) -> Row:
        return _build(self._drafts[index], self._root)


def report_rejects(rows: Sequence[Row], folder: Path) -> int:
    """How many rows of a foreign format could not be used; says so on stderr. 0 for one of our datasets."""
    refused: Sequence[tuple[str, str]] = getattr(rows, "rejects", ())
    if refused:
        row_id, reason = refused[0]
        print(f"{folder}: {len(refused)} rows not used, first {row_id}: {reason}", file=sys.stderr)
    return len(refused)


def find_foreign(path: Path) -> Path | None:
    """The jsonl file to read when `path` is one or is a folder in a foreign format, else None."""
    if path.is_file():
        return path if path.suffix == ".jsonl" else None
    if (path / METADATA_NAME).is_file():
        return path / METADATA_NAME
    if any(path.glob("*.parquet")):
        return None  # one of our folders, incomplete
    found = sorted(path.glob("*.jsonl"))
    return found[0] if len(found) == 1 else None


def read_foreign(file: Path, kind: Kind, *, licence: str = "") -> ForeignRows:
    """The rows of one kind in a jsonl file; DataError when there is no usable one.

    licence: for rows that name none.
    """
    draft_row = draft_folder_row if file.name == METADATA_NAME else draft_official_row
    drafts: list[Draft] = []
    rejects: list[tuple[str, str]] = []
    other_count = 0
    for line, value in _read_lines(file):
        where = f"{file}: line {line}"
        row_id = f"{file.parent.name if file.name == METADATA_NAME else file.stem}-{line}"
        try:
            if not isinstance(value, dict):
                raise DataError(f"{where}: {value!r} is not a JSON object")
            if value.get("id") is not None:
                row_id = as_text(value["id"])
            draft = draft_row(value, row_id, where, licence)
        except DataError as error:
            rejects.append((row_id, str(error)))
            continue
        if draft.kind == kind:
            drafts.append(draft)
        else:
            other_count += 1
    usable = _check_drafts(drafts, file.parent, rejects)
    if not usable:
        found = f"{len(rejects)} unusable rows, {other_count} of the other kind"
        first = f"; the first unusable one is {rejects[0][0]!r}: {rejects[0][1]}" if rejects else ""
        raise DataError(f"{file}: no usable {kind} ({found}){first}")
    return ForeignRows(file.parent, usable, rejects)


def _check_drafts(drafts: list[Draft], root: Path, rejects: list[tuple[str, str]]) -> list[Draft]:
    def check(draft: Draft) -> str | None:
        try:
            row = _build(draft, root)
        except DataError as error:
            return str(error)
        reason = check_row(row)
        if reason is None or reason.startswith(draft.where):
            return reason
        return f"{draft.where}: {reason}"

    usable: list[Draft] = []
    ids: set[str] = set()
    # Reading and decoding release the interpreter lock, so threads help.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for draft, reason in zip(drafts, threads.map(check, drafts), strict=True):
            row_id = draft.fields["id"]
            if reason:
                rejects.append((row_id, reason))
            elif row_id in ids:
                rejects.append((row_id, f"{draft.where}: duplicate id, an earlier row has it"))
            else:
                ids.add(row_id)
                usable.append(draft)
    return usable


def _build(draft: Draft, root: Path) -> Row:
    images = [
        EncodedImage(read_image_file(Path(name), root, draft.where), origin=f"{draft.where}: image {name}")
        for name in draft.images
    ]
    arguments: dict[str, Any] = dict(draft.fields)
    if draft.kind == "questions":
        return QuestionRow(images=tuple(images), **arguments)
    if images:
        arguments["context"], arguments["confounder"] = images
    return ContrastivePair(**arguments)


def _read_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, JSON value) of every line that is not empty; the text where it is no JSON."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line, text in enumerate(lines, start=1):
                if not text.strip():
                    continue
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError):
                    value = text.strip()[:80]
                yield line, value
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error
