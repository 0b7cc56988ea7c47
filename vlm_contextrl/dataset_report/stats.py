"""Counts over a dataset folder, from its columns without the images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError
from vlm_contextrl.row_schema import json_object
from vlm_contextrl.storage import MANIFEST_NAME, REJECTS_NAME, read_rows

TOP_ANSWERS = 20
MEASURES = ("changed_fraction", "similarity")
_CODE = re.compile(r"[\w-]{1,60}")
_QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def stats(path: Path) -> dict[str, Any]:
    """What a dataset folder holds, as JSON values; counts are ordered from the most frequent on.

    answers: the `TOP_ANSWERS` most frequent ones. question_types: by `provenance["question_type"]`.
    changed_fraction, similarity: quantiles of what the provenance says over the `n` rows that say it; None when
    no row does. rejected: rejects by `reject_code`. Raises DataError as `read_rows` does.
    """
    manifest, rows = read_rows(path)
    counts: dict[str, Counter[str]] = {
        name: Counter()
        for name in ("domains", "recipes", "answer_types", "question_types", "answers", "licences")
    }
    measured: dict[str, list[float]] = {name: [] for name in MEASURES}
    columns = ["answer", "answer_type", "domain", "recipe", "provenance"]
    for row, record in enumerate(rows.records(columns)):
        provenance = json_object(record["provenance"], f"{path}: row {row}: provenance")
        counts["domains"][record["domain"]] += 1
        counts["recipes"][record["recipe"] or manifest.recipe] += 1
        counts["answer_types"][record["answer_type"]] += 1
        counts["question_types"][str(provenance.get("question_type", ""))] += 1
        counts["answers"][record["answer"]] += 1
        counts["licences"][str(provenance.get("licence", ""))] += 1
        for name, values in measured.items():
            if isinstance(provenance.get(name), int | float):
                values.append(float(provenance[name]))
    rejected = Counter(reject_code(reason) for _, reason in read_rejects(path))
    if rejected.total() != manifest.rejects:
        file = Path(path) / REJECTS_NAME
        raise DataError(
            f"{file}: {rejected.total()} rejects, expected the {manifest.rejects} of {MANIFEST_NAME}"
        )
    return {
        "path": str(path),
        "kind": manifest.kind,
        "rows": manifest.rows,
        "rejects": manifest.rejects,
        "content_hash": manifest.content_hash,
        **{name: dict(_ordered(counter)) for name, counter in counts.items() if name != "answers"},
        "distinct_answers": len(counts["answers"]),
        "answers": dict(_ordered(counts["answers"])[:TOP_ANSWERS]),
        **{
            name: {"n": len(found), **_quantiles(found)} if found else None
            for name, found in measured.items()
        },
        "rejected": dict(_ordered(rejected)),
    }


def read_rejects(path: Path) -> Iterator[tuple[str, str]]:
    """(id, reason) of every row that did not make it into a dataset folder."""
    file = Path(path) / REJECTS_NAME
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
                yield str(value["id"]), str(value["reason"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{file}: line {number} is no reject (expected an object with id and reason)"
                ) from error


def reject_code(reason: str) -> str:
    """What a reason begins with, up to its first colon, when that is one word; else `other`."""
    code = reason.partition(":")[0]
    return code if _CODE.fullmatch(code) else "other"


def _ordered(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Quantiles with linear interpolation between the two nearest values."""
    ordered = sorted(values)
    found = {}
    for name, quantile in _QUANTILES.items():
        position = quantile * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        found[name] = ordered[low] + (ordered[high] - ordered[low]) * (position - low)
    return found
