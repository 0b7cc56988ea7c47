"""Dataset folders: written whole or not at all, read lazily, readable by anything that reads Parquet.

    data-00000-of-0000N.parquet   the rows, columns as in `row_schema`, images embedded; about 256 MiB each
    rejects.jsonl                 {"id", "reason"} of every row that could not be used, when there are any
    README.md                     a dataset card; tells `datasets.load_dataset(FOLDER)` which files are data
    manifest.json                 what the folder holds (`Manifest`); written last: without it, incomplete

A folder is built beside its final place and renamed, and rows stream through in groups of about 4 MiB.
Every row is checked on the way in (unusable rows become rejects) and, when it is first asked for, on the way
out (an unusable row is a DataError that names file and row). Provenance and verdicts travel as JSON, so
tuples in them come back as lists.

`read_pairs` and `read_questions` also take what others wrote, see `foreign`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.rows import find_foreign, foreign_hash, read_foreign
from vlm_contextrl.pairs import ContrastivePair, QuestionRow, Row
from vlm_contextrl.row_schema import Kind, check_row, kind_of, row_digest
from vlm_contextrl.shards import ShardRows, ShardWriter

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset folder holds.

    rows, rejects: counts. content_hash: sha256 over the rows in order, see `row_digest`; the same for the
    same content, whatever the shards look like. domains: rows per domain. licences: rows per licence.
    config: the resolved configuration that made the rows.
    """

    kind: Kind
    rows: int
    rejects: int
    content_hash: str
    recipe: str
    config: dict[str, Any]
    shards: list[str]
    domains: dict[str, int] = field(default_factory=dict)
    licences: dict[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def write_rows(
    rows: Iterable[Row],
    out: Path,
    *,
    recipe: str,
    config: Mapping[str, Any],
    rejects: Iterable[tuple[str, str]] = (),
) -> Manifest:
    """Writes pairs or questions (one kind) as a new dataset folder `out`.

    rejects: (id, reason) of candidates that the caller dropped; read after the rows, so it may be a list that
    grows while `rows` is consumed. Rows that break an invariant or repeat an id are added to them.
    Raises DataError, with nothing left behind, when `out` exists and is not empty or no row is usable.
    """
    out = Path(out).resolve()
    resolved_config = _as_json(config, f"{out}: config")
    with new_folder(out) as folder:
        writer: ShardWriter | None = None
        intake = _Intake(folder / REJECTS_NAME)
        try:
            for row in rows:
                kind = kind_of(row)
                if intake.accept(row, kind):
                    writer = writer or ShardWriter(folder, kind)
                    writer.write(row)
            for reject_id, reason in rejects:
                intake.reject(reject_id, reason)
            if writer is None or intake.kind is None:
                raise DataError(f"{out}: nothing to write, {intake.describe_rejects()}")
            shards = writer.finish()
        finally:
            intake.close()
            if writer is not None:
                writer.close()
        manifest = Manifest(
            kind=intake.kind,
            rows=len(intake.ids),
            rejects=intake.reject_count,
            content_hash=intake.content.hexdigest(),
            recipe=recipe,
            config=resolved_config,
            shards=shards,
            domains=dict(sorted(intake.domains.items())),
            licences=dict(sorted(intake.licences.items())),
        )
        licences = ", ".join(f"{licence} ({count})" for licence, count in manifest.licences.items())
        text = f"""{manifest.rows} {manifest.kind}, made by the recipe `{recipe}` of vlm_contextrl.
Licences of the sources (rows): {licences}.
`{MANIFEST_NAME}` holds the configuration and a hash of the content.
"""
        write_dataset_card(folder, out.name, {"train": "data-*.parquet"}, text)
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest of a dataset folder; DataError when there is none or it cannot be understood."""
    file = Path(path) / MANIFEST_NAME
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except NotADirectoryError as error:
        raise DataError(
            f"{path}: is a file, expected a dataset folder or a .jsonl file, or .parquet"
        ) from error
    except FileNotFoundError as error:
        if not Path(path).exists():
            raise DataError(f"{path}: no such folder, expected a dataset") from error
        patterns = (MANIFEST_NAME, "metadata.jsonl", "*.parquet")
        choices = sorted({str(found.parent) for name in patterns for found in Path(path).glob(f"*/{name}")})
        if not choices and (foreign := find_foreign(Path(path))):
            advice = f"make a dataset of {foreign[0].name} with `vlm-contextrl pairs import`"
        elif choices := choices or [
            str(f) for f in sorted(Path(path).glob("*.jsonl")) if not f.name.endswith(REJECTS_NAME)
        ]:
            advice = f"name one of {', '.join(choices)}"
        elif Path(path).is_dir() and not any(Path(path).glob("*.parquet")):
            raise DataError(
                f"{path}: holds no dataset; expected {MANIFEST_NAME} with its Parquet files, metadata.jsonl or rows.jsonl beside images, "
                "one other .jsonl, or Parquet"
            ) from error
        else:
            advice = "it is written last, so make the dataset again"
        raise DataError(f"{path}: incomplete dataset, no {MANIFEST_NAME} ({advice})") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected a JSON object") from error
    names = {entry.name for entry in fields(Manifest)}
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        version = value.get("format_version") if isinstance(value, dict) else value
        raise DataError(f"{file}: format_version is {version!r}, expected {FORMAT_VERSION}")
    if missing := sorted(names - value.keys()):
        raise DataError(f"{file}: no {', '.join(missing)}; make the dataset again")
    if value["kind"] not in ("pairs", "questions"):
        raise DataError(f"{file}: kind is {value['kind']!r}, expected 'pairs' or 'questions'")
    manifest = Manifest(**{name: value[name] for name in names})
    if not isinstance(manifest.shards, list):
        raise DataError(f"{file}: shards is {manifest.shards!r}, expected a list of file names")
    for shard in manifest.shards:
        if not isinstance(shard, str) or shard != Path(shard).name:
            raise DataError(f"{file}: shard {shard!r}, expected the name of a file in the folder")
    return manifest


def content_hash(path: Path) -> str:
    """A hash of what a dataset holds: the manifest's, or that of the jsonl or Parquet files of a foreign format."""
    foreign = foreign_files(path)
    return foreign_hash(foreign) if foreign else read_manifest(path).content_hash


def read_pairs(path: Path, *, licence: str = "") -> Sequence[ContrastivePair]:
    """The pairs of a dataset folder, made and checked when asked for.

    Also takes an image folder, the official release's jsonl or Parquet of others (`foreign`; `licence` is for their rows that
    name none, and the sequence then has `rejects`). Raises DataError when there is no complete dataset of pairs at `path`.
    """
    return cast("Sequence[ContrastivePair]", _read(Path(path), "pairs", licence))


def read_questions(path: Path, *, licence: str = "") -> Sequence[QuestionRow]:
    """The questions of a dataset folder; otherwise as `read_pairs`."""
    return cast("Sequence[QuestionRow]", _read(Path(path), "questions", licence))


def read_rows(path: Path) -> tuple[Manifest, ShardRows[Row]]:
    """The manifest of a dataset folder of either kind and its rows."""
    manifest = read_manifest(path)
    files = [Path(path) / name for name in manifest.shards]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: missing, expected the {len(files)} files that {MANIFEST_NAME} lists")
    rows: ShardRows[Row] = ShardRows(files, manifest.kind)
    if len(rows) != manifest.rows:
        raise DataError(f"{path}: {len(rows)} rows, expected the {manifest.rows} of {MANIFEST_NAME}")
    ids = Counter(record["id"] for record in rows.records(["id"]))
    for row_id, count in ids.most_common(1):
        if count > 1:
            raise DataError(f"{path}: id {row_id!r} occurs {count} times, expected unique ids")
    return manifest, rows


def verify_folder(path: Path) -> Manifest:
    """Reads and checks every row and compares the content hash; the manifest, or the first DataError."""
    manifest, rows = read_rows(path)
    content = hashlib.sha256()
    for row in rows:
        content.update(row_digest(row))
    if content.hexdigest() != manifest.content_hash:
        found = f"content hash {content.hexdigest()}, expected {manifest.content_hash}"
        raise DataError(f"{path}: {found} as in {MANIFEST_NAME}; the rows were changed after writing")
    return manifest


def free_place(out: Path) -> Path:
    """The resolved `out`; DataError when it is there and is not an empty folder. For asking before long work."""
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: already exists, expected a new or empty folder; remove it or choose another")
    return out


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when the block ends, and vanishes when the block raises.

    Raises DataError when `out` exists and is not an empty folder.
    """
    out = free_place(out)
    unfinished = out.parent / f".{out.name}.{secrets.token_hex(4)}.unfinished"
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be created ({error}); choose another place") from error
    try:
        yield unfinished
        try:
            os.replace(unfinished, out)
        except OSError as error:
            raise DataError(f"{out}: cannot be put in place ({error}); was it made meanwhile?") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_dataset_card(folder: Path, title: str, data_files: Mapping[str, str], text: str) -> None:
    """Writes README.md; its head tells `datasets.load_dataset(folder)` which files belong to which split."""
    files = "".join(f"  - split: {split}\n    path: {pattern}\n" for split, pattern in data_files.items())
    head = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (folder / "README.md").write_text(f"{head}# {title}\n\n{text}", encoding="utf-8")


def foreign_files(path: Path) -> list[Path]:
    """The files of a foreign format at `path`; none for a dataset folder. DataError when there is nothing at `path`."""
    if not path.exists():
        raise DataError(
            f"{path}: not found, expected a dataset folder, an image folder or a .jsonl or .parquet file"
        )
    return [] if (path / MANIFEST_NAME).is_file() else find_foreign(path)


def _read(path: Path, kind: Kind, licence: str) -> Sequence[Row]:
    if files := foreign_files(path):
        return read_foreign(files, kind, licence=licence)
    manifest = read_manifest(path)
    if manifest.kind != kind:
        raise DataError(f"{path}: holds {manifest.kind}, expected {kind}")
    return read_rows(path)[1]


class _Intake:
    """What `write_rows` has taken in so far: which rows it took, which it rejected and why."""

    def __init__(self, rejects_file: Path) -> None:
        self.kind: Kind | None = None
        self.ids: set[str] = set()
        self.domains: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.content = hashlib.sha256()
        self.reject_count = 0
        self._first_reject = ""
        self._rejects_file = rejects_file
        self._rejects: Any = None

    def accept(self, row: Row, kind: Kind) -> bool:
        if self.kind not in (None, kind):
            raise DataError(f"row {row.id!r} is of kind {kind}, expected {self.kind} like the rows before it")
        self.kind = kind
        reason = check_row(row)
        if reason is None and row.id in self.ids:
            reason = "duplicate id, an earlier row has it"
        if reason:
            self.reject(row.id, reason)
            return False
        self.ids.add(row.id)
        self.domains[row.domain] += 1
        self.licences[row.provenance["licence"]] += 1
        self.content.update(row_digest(row))
        return True

    def reject(self, row_id: object, reason: str) -> None:
        if self._rejects is None:
            self._first_reject = f"{row_id!r}: {reason}"
            self._rejects = self._rejects_file.open("w", encoding="utf-8")
        self._rejects.write(json.dumps({"id": str(row_id), "reason": reason}) + "\n")
        self.reject_count += 1

    def describe_rejects(self) -> str:
        if not self.reject_count:
            return "there were no rows"
        return f"all {self.reject_count} rows were rejected, the first was {self._first_reject}"

    def close(self) -> None:
        if self._rejects is not None:
            self._rejects.close()


def _as_json(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(dict(config), default=str, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} cannot be written as JSON ({error})") from error
