"""Scoring that goes beyond one answer: units, absolute errors, several answers. The rows are those of OlympiadBench."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.questions import Question, judge_by_rules, listed
from vlm_contextrl.eval.readers import read_question
from vlm_contextrl.eval.registry import BENCHMARKS

RED = Image.new("RGB", (4, 3), "red")


def olympiad(**changes: Any) -> Question:
    row = {
        "id": 12, "question": "Give it. <image_1>", "context": None, "image_1": RED, "final_answer": ["$5.0$"], "unit": None,
        "error": None, "is_multiple_answer": False, "answer_type": "Numerical", "subfield": "Mechanics",
    }  # fmt: skip
    return read_question("olympiadbench", BENCHMARKS["olympiadbench"].parts[0], row | changes)


def verdicts(question: Question, *completions: str) -> list[bool]:
    return [judge_by_rules(question, completion).correct for completion in completions]


def test_olympiadbench_shows_the_context_first() -> None:
    assert olympiad(context="A ball rolls.").text == "A ball rolls.\n\nGive it. <image_1>"
    assert (olympiad().id, olympiad().answer_type, olympiad().category) == ("12", "numeric", "Mechanics")


def test_olympiadbench_errors_are_absolute() -> None:
    """5.0 with an error of 0.1 is anything from 4.9 to 5.1; without one, 5.0 is 5."""
    assert verdicts(olympiad(error="0.1"), "5.1", "4.9", "5.11", "4.89") == [True, True, False, False]
    assert verdicts(olympiad(), "5", "5.01") == [True, False]


def test_units_may_be_missing_or_the_same_in_any_spelling() -> None:
    question = olympiad(unit=r"$\mathrm{m} / \mathrm{s}$")
    assert question.unit == "m/s"
    same = (
        "5",
        "5 m/s",
        "5.0m/s",
        r"\boxed{5 \mathrm{~m}/\mathrm{s}}",
        r"$5\ \text{m/s}$",
        "The answer is 5 m/s.",
    )
    assert verdicts(question, *same) == [True] * len(same)
    other = ("5 km/s", "5 m", "6 m/s", "m/s", "5 m/s^2")
    assert verdicts(question, *other) == [False] * len(other)
    assert verdicts(olympiad(unit=r"$\Omega$"), "5 Ω", r"5 \Omega", "5", "5 V") == [True, True, True, False]


def test_several_answers_are_all_asked_for_in_any_order() -> None:
    question = olympiad(final_answer=["$3$, $-4.0$"], is_multiple_answer=True, error="0.1,0.5")
    assert question.several == ("3", "-4.0")
    assert question.text.endswith("give all of them, separated by commas.")
    assert question.tolerances == pytest.approx((0.1 / 3, 0.125))
    assert verdicts(question, "3, -4", "-4.4 and 3", r"\boxed{$3.05$; $-4$}") == [True] * 3
    assert verdicts(question, "3", "3, 3", "3, -4, 5", "3.2, -4") == [False] * 4


def test_a_tuple_is_one_answer() -> None:
    question = olympiad(final_answer=["$(1,2)$"], is_multiple_answer=True, answer_type="Tuple")
    assert question.several == ()
    assert verdicts(question, "(1, 2)", "(2, 1)") == [True, False]
    assert list(listed("(1,2), 1,000 and {3, 4}; x")) == ["(1,2)", "1,000", "{3, 4}", "x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error": "small"}, "'error': found 'small', expected numbers separated by commas"),
        ({"error": "1,2"}, "'error': found '1,2', expected one number, or one for each of 1 answers"),
        ({"final_answer": []}, r"'final_answer': found \[\], expected at least one answer"),
    ],
)
def test_faults(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(
        DataError, match=f"^olympiadbench, olympiadbench_OE_MM_physics_en_COMP, row 12, field {message}$"
    ):
        olympiad(**changes)
