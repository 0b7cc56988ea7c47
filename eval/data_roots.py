"""Where a part's rows come from: the hub, or with a data root `ROOT/<hub id>/` (`root_files.py` says which files there).

    source        keys of an lmms-eval task configuration that make it load these rows
    load_part     the same rows
    fingerprint   a hash of the files' bytes; on the hub, the revision
    fetch         fills a root on a machine with a network

Pictures come out as PIL images, also where the files do not say that a column holds pictures (a struct of bytes and path).
Without a root everything is left to `datasets`; with one, nothing is fetched. Left out: pinned revisions.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError, first_line
from vlm_contextrl.eval.registry import Part
from vlm_contextrl.eval.root_files import (
    BUILDERS,
    RowFiles,
    card_patterns,
    described,
    find_files,
    how_to_fetch,
    name_patterns,
)


class NoHubError(DataError):
    """Fetching failed in a way that the next set would fail too."""


def source(part: Part, data_root: Path | None) -> dict[str, Any]:
    """dataset_path, dataset_name, dataset_kwargs and test_split of an lmms-eval task. Raises DataError when the files cannot be used."""
    if data_root is None:
        return _keys(part.dataset, part.config, {}, part.split)
    rows = find_files(part, data_root)
    features = _features(rows)
    _check_pictures(rows, features)
    kwargs: dict[str, Any] = {"data_files": {part.split: [glob.escape(str(file)) for file in rows.files]}}
    if features is not None and rows.builder in ("parquet", "arrow"):
        kwargs["features"] = features
    return _keys(rows.builder, None, kwargs, part.split)


def load_part(part: Part, data_root: Path | None) -> Any:
    """The rows as a `datasets.Dataset`. Raises DataError, one line, when they cannot be had."""
    from datasets import load_dataset

    keys = source(part, data_root)
    try:
        return load_dataset(
            keys["dataset_path"], keys["dataset_name"], split=part.split, **keys["dataset_kwargs"]
        )
    except _load_errors() as error:
        raise _unusable(part, data_root, error) from error


def fingerprint(part: Part, data_root: Path | None) -> str:
    """The same for the same rows: sha256 over the files of a root, in order, or the revision on the hub. Raises DataError."""
    if data_root is not None:
        content = hashlib.sha256()
        for file in find_files(part, data_root).files:
            content.update(_file_hash(file).encode())
        return content.hexdigest()
    from datasets import load_dataset_builder

    try:
        return f"{part.dataset}@{load_dataset_builder(part.dataset, part.config).hash}"
    except _load_errors() as error:
        raise _unusable(part, None, error) from error


def fetch(parts: Sequence[Part], data_root: Path, progress: Callable[[str], None]) -> None:
    """Fill a root with the files of these parts; what is there already is not fetched again, and a broken fetch goes on.

    progress: told one line per part. Raises DataError without a network, and at the end for the sets that could not be had.
    """
    failures = []
    for part in parts:
        try:
            rows = _fetch(part, data_root)
        except NoHubError:
            raise
        except DataError as error:
            failures.append(str(error))
            progress(f"failed: {error}")
            continue
        size_mib = sum(file.stat().st_size for file in rows.files) / 2**20
        progress(f"{described(part)}: {len(rows.files)} files, {size_mib:.1f} MiB")
    if failures:
        raise DataError(f"{len(failures)} of {len(parts)} parts could not be fetched: {'; '.join(failures)}")


def _keys(path: str, name: str | None, kwargs: dict[str, Any], split: str) -> dict[str, Any]:
    return {"dataset_path": path, "dataset_name": name, "dataset_kwargs": kwargs, "test_split": split}


def _fetch(part: Part, data_root: Path) -> RowFiles:
    try:
        return find_files(part, data_root)
    except DataError:
        pass  # not there or not whole
    folder = data_root / part.dataset
    _download(part, folder, ["README.md"])
    patterns = card_patterns(part, folder)
    if not patterns:
        patterns = [name + ending for name in name_patterns(part) for ending in BUILDERS]
    _download(part, folder, patterns)
    try:
        return find_files(part, data_root)
    except DataError as error:
        raise DataError(
            f"{described(part)}: not there after fetching ({error}); is the hub reachable, and does the split exist at "
            f"https://huggingface.co/datasets/{part.dataset} ?"
        ) from error


def _download(part: Part, folder: Path, patterns: list[str]) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{part.dataset}"
    try:
        huggingface_hub.snapshot_download(
            part.dataset, repo_type="dataset", local_dir=folder, allow_patterns=patterns
        )
    except errors.GatedRepoError as error:
        raise DataError(
            f"{described(part)}: accept its terms at {page} and set HF_TOKEN ({first_line(error)})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{described(part)}: no set of this name on the hub, or a private one ({first_line(error)})"
        ) from error
    except _load_errors() as error:
        raise NoHubError(
            f"{described(part)}: fetching failed ({first_line(error)}); give the command again to go on, or run it where there "
            "is a network and copy the folder"
        ) from error


def _features(rows: RowFiles) -> Any:
    """Columns of Parquet or Arrow files with pictures as `datasets.Image`; None for other files."""
    from datasets import Features

    if rows.builder not in ("parquet", "arrow"):
        return None
    features = Features.from_arrow_schema(_schema(rows.files[0]))
    return Features({name: _with_images(feature) for name, feature in features.items()})


def _with_images(feature: Any) -> Any:
    from datasets import Image, List

    if isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return Image()
    if isinstance(feature, List):
        return List(_with_images(feature.feature), length=feature.length)
    return feature


def _check_pictures(rows: RowFiles, features: Any) -> None:
    """DataError when a row has a path in place of a picture: it would be opened wherever it leads."""
    from datasets import Image, List

    columns = []
    for name, feature in (features or {}).items():
        while isinstance(feature, List):
            feature = feature.feature
        if isinstance(feature, Image):
            columns.append(name)
    for file in rows.files if columns else ():
        for first_row, batch in _batches(file, columns):
            for name in columns:
                if len(lacking := _lacking_bytes(batch.column(name))):
                    raise DataError(
                        f"{file}: rows from {first_row}: column {name!r} has no picture but {lacking[0].as_py()}; embed the pictures"
                    )


def _lacking_bytes(column: Any) -> Any:
    """The entries of a column of pictures that have no bytes: structs of a path at most, or bare paths."""
    from pyarrow import compute, types

    while types.is_list(column.type) or types.is_large_list(column.type):
        column = column.flatten()
    if types.is_struct(column.type):
        return column.filter(compute.and_(column.is_valid(), column.field("bytes").is_null()))
    return (
        column.drop_null()
        if types.is_string(column.type) or types.is_large_string(column.type)
        else column[:0]
    )


def _schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".arrow":
            return pa.ipc.open_stream(file).schema
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        kind = "Arrow" if file.suffix == ".arrow" else "Parquet"
        raise DataError(
            f"{file}: not a readable {kind} file ({first_line(error)}); fetch it again"
        ) from error


def _batches(file: Path, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """(number of the first row, rows) of those groups of a file in which a picture may lack its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    if file.suffix == ".arrow":
        for batch in pa.ipc.open_stream(pa.memory_map(str(file))):
            yield first, batch
            first += batch.num_rows
        return
    with pq.ParquetFile(file) as parquet:
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            if not all(_has_all_bytes(group.column(i), columns) for i in range(group.num_columns)):
                start = first
                for batch in parquet.iter_batches(64, row_groups=[number], columns=columns):
                    yield start, batch
                    start += batch.num_rows
            first += group.num_rows


def _has_all_bytes(column: Any, columns: list[str]) -> bool:
    """Whether the statistics of one leaf of a row group rule out a picture without bytes."""
    name, _, leaf = column.path_in_schema.partition(".")
    if name not in columns or (leaf and not leaf.endswith("bytes")):
        return True
    statistics = column.statistics
    return statistics is not None and statistics.has_null_count and statistics.null_count == 0 and bool(leaf)


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load_errors() -> tuple[type[Exception], ...]:
    import httpx
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    return OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException, httpx.HTTPError


def _unusable(part: Part, data_root: Path | None, error: BaseException) -> DataError:
    cause = first_line(error.__cause__ or error)
    if data_root is None:
        way = f"get it with `{how_to_fetch(part, 'DIR')}` where there is a network, and give --data-root DIR"
        return DataError(f"{described(part)}: cannot be had from the hub ({cause}); {way}")
    return DataError(f"{described(part)}: the files in {data_root / part.dataset} cannot be read ({cause})")
