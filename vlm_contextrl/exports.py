"""A dataset folder in the formats of others: `pairs export`. All of them are read back (`foreign`) as equal rows; `kind` says what a row
is, so that nothing is guessed.

imagefolder  metadata.jsonl and images/: context_file_name and confounder_file_name, or context_text and confounder_text; file_name or
             image_file_names; `datasets.load_dataset("imagefolder", data_dir=...)` reads it, too
official     train.jsonl and images/: two images in a random order (settled by the seed and the row's id), a candidate answer, and the
             letter A or B of the image that supports it; a question as it is; `problem` holds the prompt with <image> in it
trl          train-*.parquet: `prompt` (one user message), `images` and `solution`, as `trl.GRPOTrainer` takes them. A pair is asked
             with the selection prompt, its contexts in a random order as above; a question as `prompts.vqa_messages` asks it
parquet      train-*.parquet: the columns of a dataset folder, and licence and source as columns of their own

Image files keep their bytes. What a reader takes for markup does not come back as it was: blanks around a query or an answer, <image>
in a query, \\boxed{} around an answer.

Left out: the prefilled assistant turn for text contexts (`prompts.SELECTION_PREFILL`), which a prompt column has no room for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from vlm_contextrl.errors import InputError
from vlm_contextrl.exported_rows import (
    folder_record,
    official_record,
    parquet_record,
    parquet_schema,
    trl_record,
    trl_schema,
)
from vlm_contextrl.images import IMAGE_FORMATS
from vlm_contextrl.pairs import EncodedImage, Row
from vlm_contextrl.prompts import Style
from vlm_contextrl.shards import GROUP_BYTES, GROUP_ROWS, SHARD_BYTES
from vlm_contextrl.storage import Manifest, new_folder, read_rows, write_dataset_card

Format = Literal["imagefolder", "official", "trl", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES = {"JPEG": "jpg"}  # of the others: the name in lower case
_FOLDER_ROWS = 1000  # of one folder of images


def export_rows(
    path: Path,
    out: Path,
    to: Format,
    *,
    seed: int = 0,
    style: Style = "reasoning",
    watch: Callable[[Iterable[Row]], Iterable[Row]] = iter,
) -> dict[str, Any]:
    """Write the dataset folder `path` as the new folder `out`, whole or not at all; a summary in JSON values.

    style: how questions ask for the answer in `trl` prompts. watch: sees the rows pass (a progress bar). Raises DataError for a folder
    that cannot be read, and for text contexts in the official format, which has none.
    """
    if to not in FORMATS:
        raise InputError(f"--to: found {to!r}, expected one of {', '.join(FORMATS)}")
    manifest, rows = read_rows(path)
    with new_folder(out) as folder:
        watched = watch(rows)
        if to == "imagefolder":
            lines = (folder_record(row, partial(_save, folder, n)) for n, row in enumerate(watched))
            _write_jsonl(folder / "metadata.jsonl", lines)
        elif to == "official":
            lines = (official_record(row, partial(_save, folder, n), seed) for n, row in enumerate(watched))
            _write_jsonl(folder / "train.jsonl", lines)
        elif to == "trl":
            column = "context" if manifest.kind == "pairs" else "images"
            with_images = any(record[column] for record in rows.records([column]))
            records = (trl_record(row, seed, style, with_images) for row in watched)
            _write_parquet(folder, records, trl_schema(manifest.kind, with_images))
        else:
            _write_parquet(folder, map(parquet_record, watched), parquet_schema(manifest.kind))
        _write_card(folder, Path(out).resolve().name, to, manifest)
    return {
        "out": str(out),
        "format": to,
        "kind": manifest.kind,
        "rows": manifest.rows,
        "licences": manifest.licences,
        "content_hash": manifest.content_hash,
    }


def _save(folder: Path, number: int, image: EncodedImage, name: str) -> str:
    with Image.open(io.BytesIO(image.data), formats=IMAGE_FORMATS) as opened:
        suffix = _SUFFIXES.get(str(opened.format), str(opened.format).lower())
    file = Path("images") / f"{number // _FOLDER_ROWS:03d}" / f"{number:06d}-{name}.{suffix}"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(image.data)
    return file.as_posix()


def _write_jsonl(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _write_parquet(folder: Path, records: Iterable[dict[str, Any]], schema: Any) -> None:
    """Files of about `SHARD_BYTES` in row groups of about `GROUP_BYTES`, of which one is in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: list[Path] = []
    groups = _groups(records)
    group = next(groups, None)
    while group is not None:
        files.append(folder / f"unfinished-{len(files)}.parquet")
        written = 0
        with pq.ParquetWriter(files[-1], schema, compression="zstd") as writer:
            while group is not None and written < SHARD_BYTES:
                table = pa.Table.from_pylist(group, schema=schema)
                writer.write_table(table)
                written += table.nbytes
                group = next(groups, None)
    for index, file in enumerate(files):
        file.rename(folder / f"train-{index:05d}-of-{len(files):05d}.parquet")


def _groups(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for record in records:
        group.append(record)
        size += _size(record)
        if size >= GROUP_BYTES or len(group) >= GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(value: object) -> int:
    """Bytes of the images and characters of the texts in a value."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 0


def _write_card(folder: Path, title: str, to: Format, manifest: Manifest) -> None:
    licences = ", ".join(f"{licence} ({count})" for licence, count in manifest.licences.items())
    text = f"""{manifest.rows} {manifest.kind}, made by the recipe `{manifest.recipe}` of vlm_contextrl and exported as {to}.
Licences of the sources (rows): {licences}.
Content hash of the dataset folder: {manifest.content_hash}.
"""
    if to in ("trl", "parquet"):
        write_dataset_card(folder, title, {"train": "train-*.parquet"}, text)
    else:
        (folder / "README.md").write_text(f"# {title}\n\n{text}", encoding="utf-8")
