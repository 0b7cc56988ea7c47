"""Real benchmark rows, renamed to the published columns, are read, and the model that knows the answers is right in every style.

Where the folder has a row without its picture, a blank one stands in.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.questions import Question, judge_by_rules
from vlm_contextrl.eval.readers import read_question
from vlm_contextrl.eval.registry import BENCHMARKS, Part
from vlm_contextrl.eval.stand_ins import BEHAVIOURS, STYLES, reply

pytestmark = pytest.mark.realdata

BLANK = Image.new("RGB", (32, 32), "white")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


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


def kinds(questions: list[Question]) -> Counter[str]:
    return Counter(question.answer_type for question in questions)


def test_blink(realdata: Path) -> None:
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

    questions = read_all("blink", map(published, lines(folder / "rows.jsonl")))
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


def test_mathvision(realdata: Path) -> None:
    """304 rows: 190 with options, and one whose answer is a letter of drawn options."""
    folder, (part,) = realdata / "bench_mathvision_testmini", BENCHMARKS["mathvision"].parts
    rows = lines(folder / "data" / "testmini.jsonl")
    questions = read_all(
        "mathvision", ((part, {**row, "decoded_image": opened(folder / row["image"])}) for row in rows)
    )
    assert kinds(questions) == {"choice": 191, "numeric": 112, "math": 1}
    check_stand_ins(questions)


def test_mathvista(realdata: Path) -> None:
    """All 1,000 questions, 109 with their picture. Row 781 has its right text twice among the options: both count."""
    folder, (part,) = realdata / "bench_mathvista_geo", BENCHMARKS["mathvista"].parts
    pictures = {row["id"]: opened(folder / row["images"][0]) for row in lines(folder / "rows.jsonl")}
    rows = json.loads((folder / "data" / "testmini.json").read_text(encoding="utf-8"))
    questions = read_all(
        "mathvista", ((part, {**row, "decoded_image": pictures.get(pid, BLANK)}) for pid, row in rows.items())
    )
    assert len(pictures) == 109
    assert kinds(questions) == {"choice": 540, "numeric": 458, "exact": 2}
    assert [q.id for q in questions if q.alternatives] == ["781"]
    check_stand_ins(questions)


def test_mmmu_pro(realdata: Path) -> None:
    """21 rows with their pictures, and the text of all 1,730 without."""
    folder, part = realdata / "bench_mmmu_pro", BENCHMARKS["mmmu_pro"].parts[0]

    def published(row: dict[str, Any]) -> tuple[Part, dict[str, Any]]:
        images = {f"image_{i}": opened(folder / path) for i, path in enumerate(row["images"], 1)}
        return part, {**row, **images, "options": str(row["options"]), "subject": "?"}

    with_pictures = read_all("mmmu_pro", map(published, lines(folder / "rows.jsonl")))
    assert len(with_pictures) == 21
    check_stand_ins(with_pictures)
    blanks = {f"image_{i}": BLANK for i in range(1, 8)}
    (texts,) = (folder / "mmmu-pro" / "output").glob("*standard*.jsonl")
    questions = read_all("mmmu_pro", ((part, {**row, **blanks}) for row in lines(texts)))
    assert len(questions) == 1730
    assert max(len(q.images) for q in questions) == 7
    check_stand_ins(questions)
