"""Where trajectories lie: files of one (`.traj`, `.traj.json`) and files of many (`.jsonl`, `.parquet`) in a folder, or one such file.

A scan notes places and hashes what it reads; values are read when they are asked for, in any process. Rows of a jsonl or Parquet file
without messages describe tasks (`instance_id`, `repo`, `base_commit`, `problem_statement`, `resolved`, `licence`) and are joined to
trajectories by instance. Other files are left alone. Links that lead out of the folder are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vlm_contextrl.data_recipes.trajectories.formats import Trajectory, read_trajectory, with_instance
from vlm_contextrl.errors import DataError, first_line
from vlm_contextrl.storage import read_manifest

_SINGLE = (".traj.json", ".traj")
_MANY = (".jsonl", ".parquet")
_BLOCK_BYTES = 1 << 20


class Place(NamedTuple):
    """file: relative to the root. start: byte of a line, or row of a table; -1 for a whole file. number: of the line or row, from 1."""

    file: str
    start: int = -1
    number: int = 0


@dataclass(frozen=True)
class Found:
    """What a scan found: places of trajectories, files that describe tasks, (id, reason) of what was refused, a hash of all content."""

    root: Path
    places: list[Place]
    descriptions: list[Path]
    refused: list[tuple[str, str]]
    content_hash: str


@dataclass(frozen=True)
class Reader:
    """Reads places below `root`, with what the descriptions tell about their tasks; picklable."""

    root: Path
    descriptions: tuple[Path, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "descriptions": self.descriptions}

    def __call__(self, place: Place) -> Trajectory:
        """The trajectory at a place; DataError when it cannot be read."""
        file = self.root / place.file
        where = f"{place.file}: line {place.number}" if place.start >= 0 else place.file
        name = file.name
        for suffix in (*_SINGLE, *_MANY):
            name = name.removesuffix(suffix)
        name = f"{name}-{place.number}" if place.start >= 0 else name
        found = read_trajectory(_value(file, place, where), name, where)
        told = self._instances.get(found.instance)
        return with_instance(found, told) if told else found

    @cached_property
    def _instances(self) -> dict[str, Mapping[str, Any]]:
        rows = [row for file in self.descriptions for row in read_descriptions(file)]
        return {str(row.get("instance_id") or row.get("id")): row for row in rows}


def scan(path: Path, instances: Path | None = None) -> Found:
    """Everything at `path`, a folder or a file; instances: one more file that describes tasks. DataError when there is none."""
    if not path.exists():
        raise DataError(f"{path}: not found, expected a folder of trajectories, or a .jsonl or .parquet file")
    root = (path if path.is_dir() else path.parent).resolve()
    files, refused = _files(root) if path.is_dir() else ([path.resolve()], [])
    places: list[Place] = []
    descriptions: list[Path] = []
    content = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            found, digest = _scan_file(file, name)
        except (OSError, UnicodeDecodeError) as error:
            refused.append((name, f"cannot be read ({error})"))
            continue
        content.update(f"{name}\0{digest}\n".encode())
        if found is None:
            descriptions.append(file)
        else:
            places += found
    if instances is not None:
        next(iter(read_descriptions(instances)), None)
        descriptions.append(instances.resolve())
        content.update(hashlib.sha256(instances.read_bytes()).digest())
    if not places and not refused:
        expected = ", ".join((*_SINGLE, *_MANY))
        raise DataError(f"{path}: no trajectories; expected files that end in {expected}, with messages")
    return Found(root, places, descriptions, refused, content.hexdigest())


def read_descriptions(file: Path) -> Iterator[Mapping[str, Any]]:
    """Task descriptions in a JSON list, jsonl or Parquet file; only the columns that are used. DataError when it is none."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.ParquetFile(file)
            kept = [name for name in table.schema_arrow.names if name in _DESCRIBED]
            rows: Iterator[Any] = (
                row for batch in table.iter_batches(columns=kept) for row in batch.to_pylist()
            )
        elif file.suffix == ".jsonl":
            rows = _lines(file)
        else:
            value = json.loads(file.read_text(encoding="utf-8-sig"))
            rows = iter(value if isinstance(value, list) else [value])
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not (row.get("instance_id") or row.get("id")):
                raise DataError(f"{file}: row {number} has no instance_id, expected task descriptions")
            yield {key: row[key] for key in _DESCRIBED if key in row}
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read as task descriptions ({first_line(error)})") from error


def _lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


_DESCRIBED = (
    "instance_id",
    "id",
    "repo",
    "base_commit",
    "problem_statement",
    "resolved",
    "licence",
    "license",
)


def _files(root: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    files, refused = [], []
    for folder, folders, names in os.walk(root):
        # Neither unfinished work nor a dataset that was written below the logs is a log.
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _is_dataset(Path(folder, f)))
        names = [name for name in names if not name.startswith(".")]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*names, *links]):
            file = Path(folder, name)
            if name not in links and not name.endswith((*_SINGLE, *_MANY)):
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                refused.append(
                    (file.relative_to(root).as_posix(), "is a link out of the folder, expected a file in it")
                )
            elif name not in links:
                files.append(file)
    return files, refused


def _is_dataset(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except DataError:
        return False
    return True


def _scan_file(file: Path, name: str) -> tuple[list[Place] | None, str]:
    """Places in a file (None: it describes tasks), and the hash of its content."""
    content = hashlib.sha256()
    places: list[Place] = []
    described = False
    with file.open("rb") as stream:
        if file.suffix != ".jsonl":
            while block := stream.read(_BLOCK_BYTES):
                content.update(block)
        else:
            start = 0
            for number, line in enumerate(stream, start=1):
                content.update(line)
                if line.strip():
                    described = _describes_task(line) if not places else described
                    places.append(Place(name, start, number))
                start += len(line)
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise OSError(first_line(error)) from error
        described = not {"messages", "trajectory"} & set(table.schema_arrow.names)
        places = [Place(name, row, row + 1) for row in range(table.metadata.num_rows)]
    elif file.suffix != ".jsonl":
        places = [Place(name)]
    return None if described else places, content.hexdigest()


def _describes_task(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or "messages" in value or "trajectory" in value:
        return False
    return bool(value.get("instance_id") or value.get("id")) and any(key in value for key in _DESCRIBED[2:])


def _value(file: Path, place: Place, where: str) -> object:
    try:
        if file.suffix == ".parquet":
            return _row(file, place.start)
        with file.open("rb") as stream:
            stream.seek(max(place.start, 0))
            data = stream.readline() if place.start >= 0 else stream.read()
        return json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read as JSON ({first_line(error)})") from error


def _row(file: Path, row: int) -> object:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    group = 0
    while row >= metadata.row_group(group).num_rows:
        row -= metadata.row_group(group).num_rows
        group += 1
    return _row_group(file, group).slice(row, 1).to_pylist()[0]


@lru_cache(maxsize=2)
def _row_group(file: Path, group: int) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).read_row_group(group)
