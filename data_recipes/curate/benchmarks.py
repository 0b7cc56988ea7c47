"""The images and questions of benchmarks, in whatever folders they come.

    images      every image file below the folder, and images embedded in Parquet files (Hugging Face `Image` columns: structs with `bytes`)
    questions   texts under `query`, `question`, `problem` or `prompt`: in the rows of .jsonl, .json and Parquet files below the folder

Dataset folders and image folders of this package are such folders, too. What cannot be read is told, never passed over.

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

UNREAD_SUFFIXES = frozenset((".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".ppm", ".svg"))
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
            found.unread.append(
                (name, f"images of type {suffix} are not read, expected {', '.join(sorted(IMAGE_SUFFIXES))}")
            )
        elif suffix in (".jsonl", ".json"):
            found.questions.extend(_questions(file, name))
        elif suffix == ".parquet":
            _look_into_parquet(file, root, name, found)
    except DataError as error:
        found.unread.append((name, str(error)))


def _questions(file: Path, name: str) -> Iterator[tuple[str, str]]:
    values = _json_values(file)
    values = list(values.values()) if isinstance(values, dict) else values if isinstance(values, list) else []
    if values and all(isinstance(value, list) for value in values):  # {"questions": [...]}
        values = [value for some in values for value in some]
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            asked = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), "")
            if asked:
                yield f"{name}: row {number}", _PLACEHOLDER.sub(" ", asked)


def _json_values(file: Path) -> Any:
    """What a file holds: one JSON value, or the list of those on its lines, whatever its name ends in."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            with contextlib.suppress(ValueError):
                return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
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
            columns = [column.name for column in schema if _holds_images(column.type)]
            asked = next(
                (
                    key
                    for key in TEXT_KEYS
                    if key in schema.names and str(schema.field(key).type) in ("string", "large_string")
                ),
                None,
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


def _holds_images(column: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_list(column) or pa.types.is_large_list(column):
        return _holds_images(column.value_type)
    return bool(pa.types.is_struct(column) and column.get_field_index("bytes") >= 0)


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
        data = (value[place.index] if isinstance(value, list) else value or {}).get("bytes")
        if not data:
            raise DataError(f"{place}: no embedded bytes, expected those of an image")
        return EncodedImage(data, str(place))


@lru_cache(maxsize=2)
def _column(file: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(column)
