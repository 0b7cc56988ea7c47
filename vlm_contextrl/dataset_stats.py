"""Counts over a dataset folder, from its columns without the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.row_schema import json_object
from vlm_contextrl.storage import read_rows

TOP_ANSWERS = 20
_QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def stats(path: Path) -> dict[str, Any]:
    """What a dataset folder holds, as JSON values; counts are ordered from the most frequent on.

    answers: the `TOP_ANSWERS` most frequent ones. question_types: by `provenance["question_type"]`.
    changed_fraction: quantiles of `provenance["changed_fraction"]` over the `n` rows that have one; None when
    no row has. Raises DataError as `read_rows` does.
    """
    manifest, rows = read_rows(path)
    counts: dict[str, Counter[str]] = {
        name: Counter()
        for name in ("domains", "recipes", "answer_types", "question_types", "answers", "licences")
    }
    changed: list[float] = []
    columns = ["answer", "answer_type", "domain", "recipe", "provenance"]
    for row, record in enumerate(rows.records(columns)):
        provenance = json_object(record["provenance"], f"{path}: row {row}: provenance")
        counts["domains"][record["domain"]] += 1
        counts["recipes"][record["recipe"] or manifest.recipe] += 1
        counts["answer_types"][record["answer_type"]] += 1
        counts["question_types"][str(provenance.get("question_type", ""))] += 1
        counts["answers"][record["answer"]] += 1
        counts["licences"][str(provenance.get("licence", ""))] += 1
        if isinstance(provenance.get("changed_fraction"), int | float):
            changed.append(float(provenance["changed_fraction"]))
    return {
        "path": str(path),
        "kind": manifest.kind,
        "rows": manifest.rows,
        "rejects": manifest.rejects,
        "content_hash": manifest.content_hash,
        **{name: dict(_ordered(counter)) for name, counter in counts.items() if name != "answers"},
        "distinct_answers": len(counts["answers"]),
        "answers": dict(_ordered(counts["answers"])[:TOP_ANSWERS]),
        "changed_fraction": {"n": len(changed), **_quantiles(changed)} if changed else None,
    }


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
