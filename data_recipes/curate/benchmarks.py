"""The images and questions of benchmarks, in whatever folders they come.

    images      every image file below the folder, and images embedded in Parquet files (Hugging Face `Image` columns: structs with
                `bytes`; plain bytes in a column that is named for images)
    questions   texts under `query`, `question`, `problem` or `prompt`: in .jsonl and .json files, however deep, and in Parquet files

Dataset folders and image folders of this package are such folders, too. What cannot be read is told, never passed over: so is a .jsonl,
.json or Parquet file that holds neither, and a file of a type that may hold some (`UNREAD_SUFFIXES`).

Left out: images as arrays (.npy) and inside archives, questions in tables (.csv, .tsv).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError, first_line
from vlm_contextrl.foreign.formats import TEXT_KEYS
from vlm_contextrl.images import IMAGE_SUFFIXES, read_image_file
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.pairs import EncodedImage
from vlm_contextrl.storage import MANIFEST_NAME, REJECTS_NAME

UNREAD_IMAGES = frozenset((".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".ppm", ".svg"))
UNREAD_SUFFIXES = UNREAD_IMAGES | {
    ".tsv",
    ".csv",
    ".npy",
    ".npz",
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
    ".zst",
    ".arrow",
    ".feather",
}
OURS = frozenset((MANIFEST_NAME, REJECTS_NAME))  # beside the rows of a dataset folder
_IMAGE_COLUMN = re.compile("image|img|picture|photo|jpe?g|png|bytes", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"<image[ _]?\d*>", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where an image is: a file below `root`, or in a Parquet file the entry `index` of a column in row `row` of row group `group`."""

    file: Path
    root: Path
    group: int = -1
    row: int = -1
    column: str = ""
    index: int = 0

    def __str__(self) -> str:
        name = str(self.file.relative_to(self.root.parent))
        return name if self.group < 0 else f"{name}: row group {self.group}, row {self.row}: {self.column}"


@dataclass
class Benchmarks:
    """questions: (where, text). unread: (where, reason) of files that cannot be read."""

    images: list[Place] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)

    @property
    def content_hash(self) -> str:
        """Of the names, sizes and times of the image files and of the questions."""
        files = {place.file: place.file.stat() for place in self.images}
        known = [(str(file), status.st_size, status.st_mtime_ns) for file, status in files.items()]
        return hashlib.sha256(json.dumps([known, self.questions]).encode()).hexdigest()


def find_benchmarks(folders: Sequence[Path]) -> Benchmarks:
    """What is below `folders`; DataError when one of them is no folder or holds neither an image nor a question."""
    found = Benchmarks()
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder, expected one of benchmark images (`against`)")
        root = folder.resolve()
        before = len(found.images) + len(found.questions)
        for file in sorted(Path(parent) / name for parent, _, names in os.walk(root) for name in names):
            _look_into(file, root, found)
        if len(found.images) + len(found.questions) == before:
            raise DataError(
                f"{folder}: holds no image and no question, expected a folder of a benchmark (`against`)"
            )
    return found


def _look_into(file: Path, root: Path, found: Benchmarks) -> None:
    suffix, name = file.suffix.lower(), str(file.relative_to(root.parent))
    try:
        if suffix in IMAGE_SUFFIXES:
            found.images.append(Place(file, root))
        elif suffix in UNREAD_SUFFIXES:
            expected = (
                sorted(IMAGE_SUFFIXES)
                if suffix in UNREAD_IMAGES
                else ("images", ".jsonl", ".json", ".parquet")
            )
            found.unread.append(
                (name, f"files of type {suffix} are not read, expected {', '.join(expected)}")
            )
        elif suffix in (".jsonl", ".json", ".parquet") and file.name not in OURS:
            before = len(found.images) + len(found.questions)
            if suffix == ".parquet":
                _look_into_parquet(file, root, name, found)
            else:
                found.questions.extend(_questions(file, name))
            if len(found.images) + len(found.questions) == before:
                found.unread.append((name, f"holds no image and no text under {', '.join(TEXT_KEYS)}"))
    except DataError as error:
        found.unread.append((name, str(error)))


def _questions(file: Path, name: str) -> Iterator[tuple[str, str]]:
    """Texts of all objects of a file, in whatever objects and lists they stand."""
    left, number = [_json_values(file)], 0
    while left:
        value = left.pop()
        if isinstance(value, dict):
            asked = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), "")
            if asked.strip():
                number += 1
                yield f"{name}: row {number}", _PLACEHOLDER.sub(" ", asked)
            value = list(value.values())
        if isinstance(value, list):
            left += [each for each in reversed(value) if isinstance(each, (dict, list))]


def _json_values(file: Path) -> Any:
    """What a file holds: one JSON value, or the list of those on its lines, whatever its name ends in."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            with contextlib.suppress(ValueError):
                return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]  # no other mark ends a line
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"not readable as JSON ({first_line(error)}), its questions are not compared"
        ) from error


def _look_into_parquet(file: Path, root: Path, name: str, found: Benchmarks) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            columns = [column.name for column in schema if _holds_images(column.type, column.name)]
            asked = next(
                (key for key in TEXT_KEYS if key in schema.names and _is_text(schema.field(key).type)), None
            )
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[*columns, *([asked] if asked else [])])
                for column in columns:
                    for row, value in enumerate(table.column(column)):
                        entries = value.as_py()
                        n = len(entries) if isinstance(entries, list) else int(entries is not None)
                        found.images.extend(
                            Place(file, root, group, row, column, index) for index in range(n)
                        )
                texts = table.column(asked).to_pylist() if asked else ()
                found.questions.extend(
                    (f"{name}: row group {group}, row {row}", _PLACEHOLDER.sub(" ", text))
                    for row, text in enumerate(texts)
                    if text
                )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a readable Parquet file ({first_line(error)})") from error


def _holds_images(column: Any, name: str) -> bool:
    import pyarrow as pa

    if pa.types.is_list(column) or pa.types.is_large_list(column):
        return _holds_images(column.value_type, name)
    if pa.types.is_binary(column) or pa.types.is_large_binary(column):
        return bool(_IMAGE_COLUMN.search(name))
    return bool(pa.types.is_struct(column) and column.get_field_index("bytes") >= 0)


def _is_text(column: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(column):
        column = column.value_type
    return bool(
        pa.types.is_string(column) or pa.types.is_large_string(column) or pa.types.is_string_view(column)
    )


@dataclass(frozen=True)
class BenchmarkImages(LazyRows[EncodedImage]):
    """Images at places, read when asked for; DataError for one that cannot be read. Picklable."""

    places: Sequence[Place]

    def __len__(self) -> int:
        return len(self.places)

    def _row(self, index: int) -> EncodedImage:
        place = self.places[index]
        if place.group < 0:
            return EncodedImage(read_image_file(place.file, place.root, str(place)), str(place))
        value = _column(place.file, place.group, place.column)[place.row].as_py()
        value = value[place.index] if isinstance(value, list) else value
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise DataError(f"{place}: no embedded bytes, expected those of an image")
        return EncodedImage(data, str(place))


@lru_cache(maxsize=2)
def _column(file: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(column)
