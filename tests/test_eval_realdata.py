"""Real benchmark rows, renamed to the published columns, are read, and the model that knows the answers is right in every style.

Where the folder has a row without its picture, a blank one stands in.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.fixture_features import features
from vlm_contextrl.eval.fixtures import fixture_file
from vlm_contextrl.eval.questions import Question, judge_by_rules
from vlm_contextrl.eval.readers import read_question
from vlm_contextrl.eval.registry import BENCHMARKS, Part
from vlm_contextrl.eval.settings import EvalSettings
from vlm_contextrl.eval.stand_ins import BEHAVIOURS, STYLES, reply

pytestmark = pytest.mark.realdata

BLANK = Image.new("RGB", (32, 32), "white")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()  # which knows no path, so that datasets embeds it


def read_all(benchmark: str, rows: Iterable[tuple[Part, dict[str, Any]]]) -> list[Question]:
    """Every question; the number read is printed, and a row that cannot be read fails the test with its line."""
    questions, unread = [], []
    for part, row in rows:
        try:
            questions.append(read_question(benchmark, part, row))
        except DataError as error:
            unread.append(str(error))
    print(f"{benchmark}: {len(questions)} rows read, {len(unread)} not")
    assert unread == []
    return questions


def check_stand_ins(questions: list[Question]) -> None:
    """oracle is right, wrong is wrong, first is right where the first option is, in every style."""
    misjudged = []
    for question in questions:
        first_is_right = question.answer_type == "choice" and "A" in (question.answer, *question.alternatives)
        for style in STYLES:
            found = [
                judge_by_rules(question, reply(question, behaviour, style)).correct
                for behaviour in BEHAVIOURS
            ]
            if found != [True, False, first_is_right]:
                misjudged.append((question.id, style, reply(question, "oracle", style), found))
    assert misjudged == []


def check_tasks(benchmark: str, rows: Iterable[tuple[Part, dict[str, Any]]], folder: Path) -> None:
    """As a data root in the published schema, through the harness's tasks: who knows the answers has all of them."""
    pytest.importorskip("lmms_eval")
    from datasets import Dataset

    from vlm_contextrl.eval.benchmark_run import run_benchmark

    by_part: dict[Part, list[dict[str, Any]]] = {}
    for part, row in rows:
        by_part.setdefault(part, []).append({name: row.get(name) for name in features(benchmark, part)})
    for part, values in by_part.items():
        file = fixture_file(folder / "root", part)
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(values, features=features(benchmark, part)).to_parquet(file)
    settings = EvalSettings(model="oracle", data_root=folder / "root", batch_size=64)
    asked = replace(BENCHMARKS[benchmark], parts=tuple(by_part))
    run_benchmark(asked, folder / "run", settings, {"model": "oracle", "adapter": None})
    result = json.loads((folder / "run" / "result.json").read_text())
    n = sum(map(len, by_part.values()))
    assert (result["accuracy"]["value"], result["accuracy"]["n"], result["rejects"]) == (1.0, n, 0)


def kinds(questions: list[Question]) -> Counter[str]:
    return Counter(question.answer_type for question in questions)


def test_blink(realdata: Path, tmp_path: Path) -> None:
    """The choices are in the text there; the published rows have them in a column too."""
    folder = realdata / "bench_blink"
    parts = {part.config: part for part in BENCHMARKS["blink"].parts}

    def published(row: dict[str, Any]) -> tuple[Part, dict[str, Any]]:
        config = row["id"].removeprefix("val_").rpartition("_")[0]
        images = {f"image_{i}": opened(folder / path) for i, path in enumerate(row["images"], 1)}
        choices = re.findall(r"^\([A-Z]\) (.*)$", row["question"], re.MULTILINE)
        return parts[config], {
            "idx": row["id"], "prompt": row["question"], "question": "", "answer": row["answer"], "choices": choices,
            "sub_task": config, **images,
        }  # fmt: skip

    rows = list(map(published, lines(folder / "rows.jsonl")))
    questions = read_all("blink", rows)
    assert Counter(q.category for q in questions) == {
        "Jigsaw": 150,
        "Spatial_Relation": 143,
        "Relative_Depth": 124,
    }
    assert {(q.category, len(q.images), len(q.options)) for q in questions} == {
        ("Jigsaw", 3, 2), ("Spatial_Relation", 1, 2), ("Relative_Depth", 1, 2),
    }  # fmt: skip
    assert not any("(A)" in q.text or "<image>" in q.text for q in questions)
    check_stand_ins(questions)
    check_tasks("blink", rows, tmp_path)


def test_mathvision(realdata: Path, tmp_path: Path) -> None:
    """304 rows: 190 with options, and one whose answer is a letter of drawn options."""
    folder, (part,) = realdata / "bench_mathvision_testmini", BENCHMARKS["mathvision"].parts
    rows = [
        (part, {**row, "decoded_image": opened(folder / row["image"])})
        for row in lines(folder / "data" / "testmini.jsonl")
    ]
    questions = read_all("mathvision", rows)
    assert kinds(questions) == {"choice": 191, "numeric": 112, "math": 1}
    check_stand_ins(questions)
    check_tasks("mathvision", rows, tmp_path)


def test_mathvista(realdata: Path, tmp_path: Path) -> None:
    """All 1,000 questions, 109 with their picture. Row 781 has its right text twice among the options: both count."""
    folder, (part,) = realdata / "bench_mathvista_geo", BENCHMARKS["mathvista"].parts
    pictures = {row["id"]: opened(folder / row["images"][0]) for row in lines(folder / "rows.jsonl")}
    published = json.loads((folder / "data" / "testmini.json").read_text(encoding="utf-8"))
    rows = [(part, {**row, "decoded_image": pictures.get(pid, BLANK)}) for pid, row in published.items()]
    questions = read_all("mathvista", rows)
    assert len(pictures) == 109
    assert kinds(questions) == {"choice": 540, "numeric": 458, "exact": 2}
    assert [q.id for q in questions if q.alternatives] == ["781"]
    check_stand_ins(questions)
    check_tasks("mathvista", rows, tmp_path)


def test_mmmu_pro(realdata: Path, tmp_path: Path) -> None:
    """21 rows with their pictures, and the text of all 1,730 without."""
    folder, part = realdata / "bench_mmmu_pro", BENCHMARKS["mmmu_pro"].parts[0]

    def published(row: dict[str, Any]) -> tuple[Part, dict[str, Any]]:
        images = {f"image_{i}": opened(folder / path) for i, path in enumerate(row["images"], 1)}
        return part, {**row, **images, "options": str(row["options"]), "subject": "?"}

    rows = list(map(published, lines(folder / "rows.jsonl")))
    with_pictures = read_all("mmmu_pro", rows)
    assert len(with_pictures) == 21
    check_stand_ins(with_pictures)
    check_tasks("mmmu_pro", rows, tmp_path)
    blanks = {f"image_{i}": BLANK for i in range(1, 8)}
    (texts,) = (folder / "mmmu-pro" / "output").glob("*standard*.jsonl")
    questions = read_all("mmmu_pro", ((part, {**row, **blanks}) for row in lines(texts)))
    assert len(questions) == 1730
    assert max(len(q.images) for q in questions) == 7
    check_stand_ins(questions)
