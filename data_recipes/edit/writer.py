"""What to change in a picture so that the answer to its question changes: the text that asks for it, and how the reply is read.

The writer sees picture, question and answer, and replies with a JSON object:

    {"instruction": an order to the image editor, "answer": the right answer after the change, "box": [left, top, right, bottom]}

The box says where, as shares of width and height; it is asked for only when the editor can confine itself to a place. A reply that
cannot be used becomes a reason: nothing is guessed or mended, except that the first object in a longer text counts and a thought in
front of it does not.

What it leaves out: a second try, and whether the proposal is a good one; that is for the verifier to find.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from vlm_contextrl.foreign.values import as_text
from vlm_contextrl.matching import answers_equal, choice_letter, quantity, truth
from vlm_contextrl.pairs import AnswerType, QuestionRow
from vlm_contextrl.prompts import option_lines

MAX_REPLY_CHARS = 20_000
MAX_INSTRUCTION_CHARS = 1000
MAX_ANSWER_CHARS = 200

Box = tuple[float, float, float, float]

_TASK = """\
Above is a picture. Propose one change to it after which the right answer to this question is another one.

Question: {question}
Right answer now: {answer}

The change must be small, visible and plausible. Everything else in the picture stays as it is, and the question must still make sense. \
Give the change as an order to an image editor who sees the picture but not the question, for example "make the car red".
{new_answer}
Reply with one JSON object and nothing else:
{form}"""

_NEW_ANSWER: dict[AnswerType, str] = {
    "choice": "The new answer must be the letter of another option.",
    "boolean": "The new answer must be the opposite of the present one.",
    "numeric": "The new answer must be another number, in the same unit.",
    "math": "The new answer must be another value, written like the present one.",
    "exact": "The new answer must be as short as the present one.",
}
_FORM = '{"instruction": "...", "answer": "..."}'
_FORM_WITH_BOX = '{"instruction": "...", "answer": "...", "box": [left, top, right, bottom]}'
_ABOUT_BOX = (
    "\nThe box encloses what changes, in shares of the picture's width and height from 0 to 1; leave it out when "
    "the change is everywhere."
)


@dataclass(frozen=True)
class Proposal:
    """instruction: for the editor; answer: the right one afterwards; box: (left, top, right, bottom) as shares of the picture."""

    instruction: str
    answer: str
    box: Box | None = None


def writer_prompt(row: QuestionRow, *, ask_box: bool = False) -> str:
    """The text that goes with the row's picture."""
    return _TASK.format(
        question=row.query + option_lines(row.options),
        answer=row.answer,
        new_answer=_NEW_ANSWER[row.answer_type],
        form=_FORM_WITH_BOX + _ABOUT_BOX if ask_box else _FORM,
    )


def read_proposal(reply: str, row: QuestionRow, *, ask_box: bool = False) -> Proposal | str:
    """What the writer proposes for a row, or the reason why its reply cannot be used. ask_box: whether a box counts."""
    found = first_object(reply)
    if found is None:
        return f"writer_no_object: {_shown(reply)}, expected a JSON object with instruction and answer"
    instruction, answer = found.get("instruction"), found.get("answer")
    if not isinstance(instruction, str) or not 0 < len(instruction.strip()) <= MAX_INSTRUCTION_CHARS:
        return f"writer_instruction: {_shown(instruction)}, expected a text of 1 to {MAX_INSTRUCTION_CHARS} characters"
    if not isinstance(answer, str | int | float) or not 0 < len(as_text(answer).strip()) <= MAX_ANSWER_CHARS:
        return f"writer_answer: {_shown(answer)}, expected a text of 1 to {MAX_ANSWER_CHARS} characters"
    box = _box(found.get("box")) if ask_box else None
    if isinstance(box, str):
        return box
    new = _as_answer(as_text(answer).strip(), row)
    if new is None:
        return f"writer_answer: {_shown(answer)}, expected {_expected(row)}"
    if answers_equal(row.answer, new, row.answer_type):
        return f"same_answer: {_shown(answer)} is the present answer, expected another"
    return Proposal(instruction.strip(), new, box)


def first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text, after its thought if it has one; None when there is none."""
    text = text[:MAX_REPLY_CHARS].rpartition("</think>")[2]
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        assert isinstance(value, dict)
        return value
    return None


def _as_answer(answer: str, row: QuestionRow) -> str | None:
    """The answer as a row of this type holds it; None when it is of another kind."""
    if row.answer_type == "choice":
        return choice_letter(answer, row.options)
    if row.answer_type == "boolean" and truth(answer) is None:
        return None
    if row.answer_type == "numeric" and quantity(row.answer) and not quantity(answer):
        return None
    return answer


def _expected(row: QuestionRow) -> str:
    if row.answer_type == "choice":
        return f"the letter of one of {len(row.options)} options"
    return "yes, no, true or false" if row.answer_type == "boolean" else "a number"


def _box(value: object) -> Box | str | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 4:
        sides = [
            float(v) if isinstance(v, int | float) and not isinstance(v, bool) else math.nan for v in value
        ]
        left, top, right, bottom = sides
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:  # false for NaN
            return left, top, right, bottom
    return f"writer_box: {_shown(value)}, expected [left, top, right, bottom] as shares of the picture, from 0 to 1"


def _shown(value: object) -> str:
    text = " ".join(str(value).split()) if isinstance(value, str) else as_text(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
