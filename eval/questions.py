"""What every benchmark becomes: a question about images, its options, its answer; and when a completion is right.

Scoring is that of training (`answers.py`, `matching.py`, `expressions.py`). Added for benchmarks that need it: further right
answers, several answers that are all asked for, and the unit of a measured value. A unit may stay away or be the row's own, in
any spelling with the same letters (`5 \\mathrm{~m}/\\mathrm{s}` for m/s); another unit makes the answer wrong, there is no conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_contextrl.answers import extract_answer, is_correct
from vlm_contextrl.matching import plain, quantity
from vlm_contextrl.pairs import AnswerType

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Question:
    """One sample of a benchmark.

    text: the question without options and without instruction.
    images: RGB, in the order in which the text refers to them.
    answer: the option's letter for a choice. tolerance: relative, for numbers.
    options: empty for a choice whose options stand in the image; letters count then.
    category: what the benchmark reports by, e.g. the subtask.
    alternatives: answers that are as right as `answer`.
    several: when more than one answer is asked for, each of them; a completion gives all, in any order, separated by commas.
    tolerances: one per answer of `several`, as `tolerance`.
    unit: of a numeric answer, as one writes it: "m/s".
    """

    id: str
    text: str
    images: tuple[Image.Image, ...]
    answer: str
    answer_type: AnswerType
    options: tuple[str, ...] = ()
    tolerance: float | None = None
    category: str = ""
    alternatives: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    tolerances: tuple[float | None, ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the extractor found in a completion, and whether it is right."""

    extracted: str | None
    correct: bool


def judge_by_rules(question: Question, completion: str) -> Verdict:
    """Score with the extractor that training rewards with (answers.py)."""
    extracted = extract_answer(completion, question.answer_type, question.options)
    if extracted is not None and question.several:
        return Verdict(extracted, _names_all(question, extracted))
    rights = (question.answer, *question.alternatives)
    return Verdict(
        extracted, any(_is_right(question, extracted, right, question.tolerance) for right in rights)
    )


def listed(text: str) -> Iterator[str]:
    """The items of "3, $(1,2)$ and 4": split at commas, semicolons and "and" outside brackets; not within 1,000."""
    depth, start = 0, 0
    for mark in re.finditer(r"[(\[{]|[)\]}]|[,;](?!\d{3}(?!\d))|\band\b", text):
        if mark[0] in "([{":
            depth += 1
        elif mark[0] in ")]}":
            depth -= 1
        elif not depth:
            if text[start : mark.start()].strip():
                yield text[start : mark.start()].strip()
            start = mark.end()
    if text[start:].strip():
        yield text[start:].strip()


def _names_all(question: Question, extracted: str) -> bool:
    tolerances = question.tolerances or (question.tolerance,) * len(question.several)
    missing = list(zip(question.several, tolerances, strict=True))
    items = list(listed(extracted))
    if len(items) != len(missing):
        return False
    for item in items:
        found = next((m for m in missing if _is_right(question, item, *m)), None)
        if found is None:
            return False
        missing.remove(found)
    return True


def _is_right(question: Question, extracted: str | None, right: str, tolerance: float | None) -> bool:
    if extracted is not None and question.unit:
        extracted = _without_unit(extracted, question.unit)
        found = quantity(extracted)
        if found and found[1]:
            right = f"{right} {question.unit}"
    return is_correct(extracted, right, question.answer_type, question.options, tolerance)


def _without_unit(text: str, unit: str) -> str:
    """`text` up to where the same letters as in `unit` begin, if it ends with them."""
    right = _letters(unit)
    ends = (position for position in range(1, len(text)) if _letters(text[position:]) == right)
    return text[: next(ends, len(text))]


def _letters(unit: str) -> str:
    named = plain(unit).replace(r"\Omega", "\u03a9").replace(r"\mu", "\u03bc")
    return re.sub(r"[\s{}~*]|\\cdot", "", named)
