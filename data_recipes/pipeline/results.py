"""The end of every recipe: the dataset is written, inputs are accounted for, and what was unfinished goes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path
from shutil import rmtree
from typing import Any

from vlm_contextrl.dataset_report.stats import reject_code
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import Row
from vlm_contextrl.storage import REJECTS_NAME, write_rows


def write_result(
    rows: Iterable[Row],
    out: Path,
    *,
    recipe: str,
    config: Mapping[str, Any],
    inputs: int,
    rejects: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Write the dataset folder `out` (resolved), remove its parts, and say what became of the inputs.

    rejects: (id, reason) of every input that gave no row. Raises DataError when there is no row; see `nothing_kept`.
    """
    if len(rejects) == inputs and rejects:
        rmtree(work_folder(out), ignore_errors=True)  # holds nothing else, and other settings may be tried
        raise nothing_kept(out, rejects)
    for killed in out.parent.glob(f".{escape(out.name)}.*.unfinished"):  # while it wrote
        rmtree(killed, ignore_errors=True)
    manifest = write_rows(rows, out, recipe=recipe, config=config, rejects=rejects)
    rejects_beside(out).unlink(missing_ok=True)  # of an earlier try
    repeated = manifest.rejects - len(rejects)  # rows with the id of an earlier one
    rmtree(work_folder(out), ignore_errors=True)
    return {
        "out": str(out),
        "kind": manifest.kind,
        "inputs": inputs,
        "kept": inputs - manifest.rejects,
        "rejects": manifest.rejects,
        "rows": manifest.rows,
        "rejected": reason_counts(rejects) | ({"duplicate_id": repeated} if repeated else {}),
        "domains": manifest.domains,
        "licences": manifest.licences,
        "content_hash": manifest.content_hash,
    }


def nothing_kept(out: Path, rejects: Sequence[tuple[str, str]], advice: str = "") -> DataError:
    """The error of a recipe that made no row. All reasons are written to a file beside `out`."""
    file = rejects_beside(out)
    lines = [json.dumps({"id": row_id, "reason": reason}) + "\n" for row_id, reason in rejects]
    file.write_text("".join(lines), encoding="utf-8")
    counts = reason_counts(rejects)
    counted = ", ".join(f"{code} {n}" for code, n in counts.items())
    row_id, reason = next((i, why) for i, why in rejects if reject_code(why) == next(iter(counts)))
    return DataError(
        f"{out}: nothing was kept, all {len(rejects)} inputs were rejected ({counted}), e.g. {row_id!r}: {reason}; every reason stands in "
        f"{file}{advice}"
    )


def rejects_beside(out: Path) -> Path:
    """Where reasons stand when there is no dataset to hold them."""
    return out.with_name(f"{out.name}.{REJECTS_NAME}")


def work_folder(out: Path) -> Path:
    """Where the parts of `out` are while it is made."""
    return out.parent / f".{out.name}.parts"


def unreadable(refused: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rejects of inputs that could not be read."""
    return [(row_id, f"unreadable: {reason}") for row_id, reason in refused]


def reason_counts(rejects: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Rejects per code, the most frequent first."""
    return dict(Counter(reject_code(reason) for _, reason in rejects).most_common())
