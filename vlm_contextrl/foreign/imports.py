"""Rows of any format that can be read (`formats`, or a dataset folder) become a dataset folder: `pairs import`.

One pass: a row is read, checked and written, or goes to rejects.jsonl as `code: file: row: what was found, what was expected`. Codes:
unreadable (a key is missing or no such row), image (not in the folder, damaged, too large), no_licence, duplicate_id, other_kind (a
question among pairs, or the other way round), invalid.

Left out: resuming. A stopped import leaves nothing behind and is begun anew.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.rows import Reject, Sieve, usable_rows
from vlm_contextrl.pairs import Row
from vlm_contextrl.row_schema import Kind
from vlm_contextrl.storage import content_hash, foreign_files, read_rows, write_rows


def import_rows(
    path: Path,
    out: Path,
    *,
    kind: Kind | None = None,
    licence: str = "",
    watch: Callable[[Iterable[Row]], Iterable[Row]] = iter,
) -> dict[str, Any]:
    """Write what is usable at `path` as the dataset folder `out`; a summary in JSON values, with kept + rejects = inputs.

    kind: of the rows to take; None takes the kind of the first. licence: of rows that name none. watch: sees the rows pass (a progress
    bar). A row that names no source gets the name of the folder or file. Raises DataError, with nothing left behind, when nothing
    can be read or no row is usable.
    """
    path = Path(path)
    sieve = Sieve(kind)
    files = foreign_files(path)
    rows = usable_rows(files, sieve, licence=licence) if files else _own_rows(path, sieve)
    source = path.resolve().name
    started_s = time.perf_counter()
    manifest = write_rows(
        (_with_source(row, source) for row in watch(rows)),
        out,
        recipe="import",
        config={"input": str(path), "input_hash": content_hash(path), "kind": kind, "licence": licence},
        rejects=_reasons(sieve),
    )
    seconds = time.perf_counter() - started_s
    refused = [*sieve.rejects, *sieve.others]
    assert manifest.rejects == len(refused), f"{manifest.rejects} rejects written, {len(refused)} found"
    inputs = manifest.rows + len(refused)
    return {
        "out": str(out),
        "kind": manifest.kind,
        "inputs": inputs,
        "kept": manifest.rows,
        "rejects": len(refused),
        "rows": manifest.rows,
        "rejected": dict(Counter(reject.code for reject in refused).most_common()),
        "domains": manifest.domains,
        "licences": manifest.licences,
        "content_hash": manifest.content_hash,
        "seconds": seconds,
        "rows_per_s": inputs / seconds,
    }


def _own_rows(path: Path, sieve: Sieve) -> Iterator[Row]:
    manifest, rows = read_rows(path)
    if sieve.kind not in (None, manifest.kind):
        raise DataError(f"{path}: holds {manifest.kind}, expected {sieve.kind}")
    sieve.kind = manifest.kind
    for index in range(len(rows)):
        try:
            yield rows[index]
        except DataError as error:
            sieve.rejects.append(Reject(f"{path.name}-{index}", str(error), "invalid"))


def _reasons(sieve: Sieve) -> Iterator[tuple[str, str]]:
    """Read by `write_rows` after the rows, when the sieve is full."""
    for reject in (*sieve.rejects, *sieve.others):
        yield reject.id, f"{reject.code}: {reject.reason}"


def _with_source(row: Row, source: str) -> Row:
    return replace(row, provenance={"source": source, **row.provenance})
