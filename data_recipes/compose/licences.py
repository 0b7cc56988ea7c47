"""The licence of each file of a folder. The most specific word counts:

1. its row in `licences.csv` (columns file, licence) or `licences.jsonl` ({"file", "licence"}) at the top of the folder;
2. `STEM.licence` or `STEM.license` beside it, the first line;
3. the first line of LICENSE, LICENCE or COPYING (.txt, .md) in its folder or the nearest one above;
4. the default that the user gave.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from vlm_contextrl.errors import DataError, first_line

FOLDER_FILES = tuple(name + end for name in ("LICENSE", "LICENCE", "COPYING") for end in ("", ".txt", ".md"))
MAX_LICENCE_CHARS = 100


def read_text(path: Path, root: Path) -> str | None:
    """The text of a file inside `root`; None when there is none. Raises DataError when a link leads outside or it is no UTF-8."""
    try:
        resolved = path.resolve()
        if not resolved.is_file():
            return None
        if not resolved.is_relative_to(root.resolve()):
            raise DataError(f"{path}: a link out of {root}, expected a file inside it")
        return resolved.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}), expected UTF-8 text") from error


def first_words(text: str | None) -> str:
    """The first line that says something, without marks of headings."""
    lines = (" ".join(line.strip("#*= \t").split()) for line in (text or "").splitlines())
    return next((line for line in lines if line), "")


class Licences:
    """Licences of the files below `root`. Raises DataError when a table cannot be read."""

    def __init__(self, root: Path, default: str) -> None:
        self.root, self.default = root, default.strip()
        self.table = dict(_table(root))
        self._of_folder = lru_cache(maxsize=None)(self._look_in_folder)

    def of(self, file: PurePosixPath) -> str:
        """The licence of a file, named from the root; empty when nobody names one."""
        beside = (self.root / file.with_suffix(end) for end in (".licence", ".license"))
        found = self.table.get(str(file)) or next(
            filter(None, (first_words(read_text(path, self.root)) for path in beside)), ""
        )
        return (found or self._of_folder(file.parent) or self.default)[:MAX_LICENCE_CHARS]

    def _look_in_folder(self, folder: PurePosixPath) -> str:
        for place in (folder, *folder.parents):
            for name in FOLDER_FILES:
                if said := first_words(read_text(self.root / place / name, self.root)):
                    return said
        return ""


def _table(root: Path) -> Iterator[tuple[str, str]]:
    for name in ("licences.csv", "licences.jsonl"):
        text = read_text(root / name, root)
        if text is None:
            continue
        for where, row in _records(root / name, text):
            file, licence = row.get("file"), row.get("licence")
            if not (isinstance(file, str) and isinstance(licence, str) and file and licence.strip()):
                raise DataError(f"{where}: {row!r}, expected a text under both `file` and `licence`")
            yield str(PurePosixPath(file)), " ".join(licence.split())


def _records(path: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    if path.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
            yield f"{path}: line {number}", dict(row)
        return
    for number, line in enumerate(text.split("\n"), 1):
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error}), expected an object") from error
        if value is not None and not isinstance(value, dict):
            raise DataError(f"{path}: line {number} is {value!r}, expected an object")
        if value:
            yield f"{path}: line {number}", value
