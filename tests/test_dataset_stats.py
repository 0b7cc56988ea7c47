"""Counts and quantiles over dataset folders, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.dataset_report.stats import stats
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.storage import read_manifest, write_rows


def picture(*rgb: int) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", (4, 3), rgb))


def pair(number: int, **changes: Any) -> ContrastivePair:
    fields: dict[str, Any] = {
        "id": f"p{number}",
        "query": "How many?",
        "answer": str(number),
        "context": picture(number, 0, 0),
        "confounder": picture(number, 255, 0),
        "confounder_answer": str(number + 1),
        "answer_type": "numeric",
        "domain": "objects" if number % 2 else "dials",
        "recipe": "render",
        "provenance": {"licence": "CC0-1.0", "scene": [number, {"x": 1.5}], "seed": number},
        "verdicts": {"human": {"keep": True}},
    }
    return ContrastivePair(**{**fields, **changes})


def test_stats(tmp_path: Path) -> None:
    """changed_fraction 0.1 0.2 0.4 0.8: the median lies half-way, 0.3; p25 is 0.1 + 0.75 * 0.1 = 0.175."""
    rows = [
        pair(
            number,
            answer="red" if number < 3 else "blue",
            answer_type="exact",
            provenance={"licence": "MIT", "question_type": "colour", "changed_fraction": 0.1 * 2**number},
        )
        for number in range(4)
    ]
    rows.append(pair(4, recipe=""))
    write_rows(rows, tmp_path / "out", recipe="render", config={}, rejects=[("x", "y")])
    found = stats(tmp_path / "out")
    quantiles = found.pop("changed_fraction")
    assert (quantiles["n"], quantiles["min"], quantiles["max"]) == (4, 0.1, 0.8)
    assert quantiles["median"] == pytest.approx(0.3)
    assert quantiles["p25"] == pytest.approx(0.175)
    assert found == {
        "path": str(tmp_path / "out"),
        "kind": "pairs",
        "rows": 5,
        "rejects": 1,
        "content_hash": read_manifest(tmp_path / "out").content_hash,
        "domains": {"dials": 3, "objects": 2},
        "recipes": {"render": 5},
        "answer_types": {"exact": 4, "numeric": 1},
        "question_types": {"colour": 4, "": 1},
        "licences": {"MIT": 4, "CC0-1.0": 1},
        "distinct_answers": 3,
        "answers": {"red": 3, "4": 1, "blue": 1},
        "similarity": None,
        "rejected": {"y": 1},
    }


def test_stats_without_changed_fractions(tmp_path: Path) -> None:
    write_rows([pair(1)], tmp_path / "out", recipe="render", config={})
    assert stats(tmp_path / "out")["changed_fraction"] is None
