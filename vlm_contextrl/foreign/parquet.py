"""The rows of Parquet files that others wrote, as plain values; what they mean, `formats` says.

Taken are the columns whose names it knows, and those of numbers or texts (for the provenance); nested columns of other names are not
read. Files are streamed while they are iterated over; a single row costs reading its row group, of which one is held.

Left out: columns of pictures under other names than `image`, `images`, `context` and `confounder`: such a file is refused, since a
question about a picture is none without it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError, first_line
from vlm_contextrl.foreign.formats import (
    ANSWER_KEYS,
    CANDIDATE_KEYS,
    IMAGE_KEYS,
    KNOWN_KEYS,
    SIDES,
    TEXT_KEYS,
)
from vlm_contextrl.row_schema import COLUMNS, arrow_schema

_BATCH_ROWS = 32


def is_ours(file: Path) -> bool:
    """Whether a file has exactly the columns of a dataset folder of this package."""
    schema = _metadata(file).schema.to_arrow_schema()
    return any(schema.equals(arrow_schema(kind)) for kind in COLUMNS)


class ParquetValues:
    """(where, default id, values by column) of every row of some files, counted over all of them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._columns: list[list[str]] = []
        self._groups: list[tuple[int, int, int]] = []  # file, group in it, the file's rows before it
        self._starts: list[int] = []  # rows before each group
        self._length = 0
        for index, file in enumerate(self._files):
            metadata = _metadata(file)
            self._columns.append(_columns(file, metadata.schema.to_arrow_schema()))
            before = 0
            for group in range(metadata.num_row_groups):
                self._groups.append((index, group, before))
                self._starts.append(self._length)
                before += metadata.row_group(group).num_rows
                self._length += metadata.row_group(group).num_rows
        self._held: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._files,)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file, columns in zip(self._files, self._columns, strict=True):
            number = 0
            try:
                # Buffered ahead, or mapped into memory, a file would pile up: a group at a time stays at two of them.
                with pq.ParquetFile(file, pre_buffer=False) as parquet:
                    for group in range(parquet.num_row_groups):
                        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                            for value in batch.to_pylist():
                                yield self._named(file, number, value)
                                number += 1
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, number, error) from error

    def __getitem__(self, number: int) -> tuple[str, str, dict[str, Any]]:
        position = bisect_right(self._starts, number) - 1
        index, _, before = self._groups[position]
        offset = number - self._starts[position]
        with self._lock:
            if self._held[0] != position:
                self._held = (position, self._read_group(position))
            table = self._held[1]
        return self._named(self._files[index], before + offset, table.slice(offset, 1).to_pylist()[0])

    def _named(self, file: Path, number: int, value: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        return f"{file}: row {number}", f"{file.stem}-{number}", value

    def _read_group(self, position: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        index, group, before = self._groups[position]
        try:
            with pq.ParquetFile(self._files[index], pre_buffer=False) as parquet:
                return parquet.read_row_group(group, columns=self._columns[index])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self._files[index], before, error) from error


def _metadata(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({first_line(error)})") from error


def _columns(file: Path, schema: Any) -> list[str]:
    """The columns to read; DataError when the file cannot hold questions or pairs."""
    for keys in (TEXT_KEYS, (*ANSWER_KEYS, *CANDIDATE_KEYS)):
        if not set(keys) & set(schema.names):
            found = f"found {', '.join(schema.names)}"
            raise DataError(f"{file}: no column {' or '.join(keys)}, expected one of them; {found}")
    pictures = {column.name for column in schema if _holds_pictures(column.type)}
    if pictures and not set(IMAGE_KEYS) & set(schema.names) and not set(SIDES) & pictures:
        expected = f"expected {', '.join(IMAGE_KEYS)} or {', '.join(SIDES)}"
        found = f"pictures in column {', '.join(sorted(pictures))}"
        raise DataError(f"{file}: {found}, {expected}; rename the column")
    return [column.name for column in schema if column.name in KNOWN_KEYS or _is_plain(column.type)]


def _is_plain(column_type: Any) -> bool:
    from pyarrow import types

    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    if types.is_dictionary(column_type):
        return _is_plain(column_type.value_type)
    return any(test(column_type) for test in plain)


def _holds_pictures(column_type: Any) -> bool:
    from pyarrow import types

    if types.is_list(column_type) or types.is_large_list(column_type):
        return _holds_pictures(column_type.value_type)
    if types.is_struct(column_type):
        return {"bytes", "path"} <= {column.name for column in column_type}
    return bool(types.is_binary(column_type) or types.is_large_binary(column_type))


def _unreadable(file: Path, number: int, error: BaseException) -> DataError:
    return DataError(f"{file}: rows from {number} on cannot be read ({first_line(error)})")
