"""Parquet shards: a streaming writer and a lazy, random-access reader.

Random access to Parquet means reading a row group, so groups are small (about 4 MiB), the files are
memory-mapped and the last 256 MiB of groups stay in memory, from where later epochs of a small dataset come.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from vlm_contextrl.errors import DataError
from vlm_contextrl.lazy_rows import LazyRows, RowT_co
from vlm_contextrl.pairs import Row
from vlm_contextrl.row_schema import (
    COLUMNS,
    Kind,
    arrow_schema,
    check_row,
    from_record,
    images_of,
    texts_of,
    to_record,
)

SHARD_BYTES = 256 * 1024 * 1024
GROUP_BYTES = 4 * 1024 * 1024
GROUP_ROWS = 1000
CACHE_BYTES = 256 * 1024 * 1024
_DICTIONARY_COLUMNS = ["query", "answer", "answer_type", "domain", "recipe"]


class ShardWriter:
    """Writes rows into `folder` as data-*.parquet; memory stays at one row group."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder = folder
        self._schema = arrow_schema(kind)
        self._records: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._shard_bytes = 0
        self._shard_count = 0
        self._parquet: Any = None

    def write(self, row: Row) -> None:
        """Adds a row."""
        record = to_record(row)
        self._records.append(record)
        image_bytes = sum(len(image.data) for image in images_of(row))
        text_bytes = sum(map(len, (*texts_of(row), row.query, record["provenance"], record["verdicts"])))
        self._pending_bytes += image_bytes + text_bytes
        if self._pending_bytes >= GROUP_BYTES or len(self._records) >= GROUP_ROWS:
            self._flush()
        if self._shard_bytes >= SHARD_BYTES:
            self._close_shard()

    def finish(self) -> list[str]:
        """Writes what is pending and gives the shards their final names, which it returns in order."""
        self._flush()
        self._close_shard()
        names = [f"data-{i:05d}-of-{self._shard_count:05d}.parquet" for i in range(self._shard_count)]
        for index, name in enumerate(names):
            self._unfinished(index).rename(self._folder / name)
        return names

    def close(self) -> None:
        """Closes an unfinished file; for giving up."""
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None

    def _flush(self) -> None:
        if not self._records:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._parquet is None:
            self._parquet = pq.ParquetWriter(
                self._unfinished(self._shard_count),
                self._schema,
                compression="zstd",
                use_dictionary=_DICTIONARY_COLUMNS,
                write_statistics=False,
            )
        self._parquet.write_table(pa.Table.from_pylist(self._records, schema=self._schema))
        self._shard_bytes += self._pending_bytes
        self._records, self._pending_bytes = [], 0

    def _close_shard(self) -> None:
        if self._parquet is not None:
            self.close()
            self._shard_count += 1
            self._shard_bytes = 0

    def _unfinished(self, index: int) -> Path:
        return self._folder / f"unfinished-{index:05d}.parquet"


class ShardRows(LazyRows[RowT_co]):
    """The rows of some shards. DataErrors name the file and the row in it (counted from 0).

    A row is checked when it is first asked for; the pixel hashes from that check are kept for later.
    Safe to use from several threads; pickles as the list of files.
    """

    def __init__(self, paths: Sequence[Path], kind: Kind) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._paths, self._kind = list(paths), kind
        self._metadata: list[Any] = []
        self._groups: list[tuple[int, int, int]] = []  # shard, group in the shard, the shard's rows before it
        self._starts: list[int] = []  # rows of the dataset before each group
        self._length = 0
        self._hashes: dict[int, tuple[str, ...]] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._cache_bytes = 0
        self._lock = threading.Lock()
        for shard, path in enumerate(self._paths):
            try:
                metadata = pq.read_metadata(path)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error
            _check_columns(path, kind, metadata.schema.to_arrow_schema())
            self._metadata.append(metadata)
            before = 0
            for group in range(metadata.num_row_groups):
                self._groups.append((shard, group, before))
                self._starts.append(self._length)
                before += metadata.row_group(group).num_rows
                self._length += metadata.row_group(group).num_rows

    def __len__(self) -> int:
        return self._length

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._paths, self._kind)

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The values of some columns, row by row, unchecked and without touching the other columns."""
        for position in range(len(self._groups)):
            yield from self._read_group(position, columns).to_pylist()

    def _row(self, index: int) -> RowT_co:
        position = bisect_right(self._starts, index) - 1
        shard, _, rows_before = self._groups[position]
        offset = index - self._starts[position]
        record = self._cached_group(position).slice(offset, 1).to_pylist()[0]
        where = f"{self._paths[shard]}: row {rows_before + offset}"
        known = self._hashes.get(index)
        row = from_record(self._kind, record, where, known or ())
        if known is None:
            reason = check_row(row)
            if reason:
                raise DataError(reason if reason.startswith(where) else f"{where} (id {row.id!r}): {reason}")
            self._hashes[index] = tuple(image.pixel_hash() for image in images_of(row))
        return cast("RowT_co", row)

    def _cached_group(self, position: int) -> Any:
        with self._lock:
            if position in self._cache:
                self._cache.move_to_end(position)
                return self._cache[position]
        table = self._read_group(position, list(COLUMNS[self._kind]))
        with self._lock:
            if position not in self._cache:
                self._cache[position] = table
                self._cache_bytes += table.nbytes
            while self._cache_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes
        return table

    def _read_group(self, position: int, columns: Sequence[str]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        shard, group, rows_before = self._groups[position]
        path = self._paths[shard]
        try:
            with pq.ParquetFile(path, memory_map=True, metadata=self._metadata[shard]) as parquet:
                return parquet.read_row_group(group, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            place = f"rows from {rows_before} on"
            raise DataError(f"{path}: {place} cannot be read ({_first_line(error)})") from error


def _check_columns(path: Path, kind: Kind, found: Any) -> None:
    for expected in arrow_schema(kind):
        index = found.get_field_index(expected.name)
        if index < 0:
            raise DataError(f"{path}: no column {expected.name!r}, expected the columns of {kind}")
        if not found.field(index).type.equals(expected.type):
            types = f"{found.field(index).type}, expected {expected.type}"
            raise DataError(f"{path}: column {expected.name!r} is {types}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
