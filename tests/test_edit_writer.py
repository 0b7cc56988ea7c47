"""The writer's text word for word, and how its replies are read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_editors import blank_question
from vlm_contextrl.data_recipes.edit import Proposal, read_proposal, writer_prompt
from vlm_contextrl.data_recipes.edit.writer import MAX_REPLY_CHARS, first_object

NUMBER = blank_question(0)
CHOICE = blank_question(
    1, "Which colour?", answer="B", answer_type="choice", options=("red", "green", "blue")
)
TRUTH = blank_question(2, "Is it red?", answer="yes", answer_type="boolean")
WORDS = blank_question(3, "Which animal?", answer="a dog", answer_type="exact")


def test_what_the_writer_is_asked() -> None:
    """The text is part of a dataset's provenance: it changes on purpose only."""
    assert (
        writer_prompt(NUMBER)
        == """\
Above is a picture. Propose one change to it after which the right answer to this question is another one.

Question: How many?
Right answer now: 7

The change must be small, visible and plausible. Everything else in the picture stays as it is, and the question must still make sense. \
Give the change as an order to an image editor who sees the picture but not the question, for example "make the car red".
The new answer must be another number, in the same unit.
Reply with one JSON object and nothing else:
{"instruction": "...", "answer": "..."}"""
    )


def test_options_and_the_box_are_asked_for_where_there_are_any() -> None:
    text = writer_prompt(CHOICE, ask_box=True)
    assert "Question: Which colour?\nA. red\nB. green\nC. blue\nRight answer now: B\n" in text
    assert "the letter of another option" in text
    assert '"box": [left, top, right, bottom]}\nThe box encloses' in text
    assert "box" not in writer_prompt(CHOICE)


def test_braces_in_a_question_are_text() -> None:
    row = blank_question(4, "What is {x} in \\frac{1}{2}?", answer_type="math")
    assert "Question: What is {x} in \\frac{1}{2}?\n" in writer_prompt(row)


@pytest.mark.parametrize(
    ("row", "reply", "answer"),
    [
        (NUMBER, '{"instruction": "add one", "answer": "8"}', "8"),
        (NUMBER, '{"instruction": " add one ", "answer": 8}', "8"),
        (NUMBER, 'Sure!\n```json\n{"instruction": "add one", "answer": "8 "}\n```\nIt works because {of this}.', "8"),
        (NUMBER, '<think>{"instruction": "no"}</think>{"instruction": "add one", "answer": "8"}', "8"),
        (NUMBER, 'x = {y}; {"instruction": "add one", "answer": "8", "why": {"deep": [1]}} {"answer": "9"}', "8"),
        (CHOICE, '{"instruction": "add one", "answer": "(C)"}', "C"),
        (CHOICE, '{"instruction": "add one", "answer": "red"}', "A"),
        (TRUTH, '{"instruction": "add one", "answer": "No."}', "No."),
        (TRUTH, '{"instruction": "add one", "answer": false}', "false"),
        (WORDS, '{"instruction": "add one", "answer": "a cat"}', "a cat"),
    ],
)  # fmt: skip
def test_usable_replies(row: Any, reply: str, answer: str) -> None:
    """The first JSON object after a thought counts; an option's text becomes its letter."""
    assert read_proposal(reply, row) == Proposal("add one", answer)


@pytest.mark.parametrize(
    ("row", "reply", "code"),
    [
        (NUMBER, "", "writer_no_object"),
        (NUMBER, "I cannot do that.", "writer_no_object"),
        (NUMBER, "{'instruction': 'add one', 'answer': 8}", "writer_no_object"),
        (NUMBER, '{"instruction": "add one", "answer": "8"', "writer_no_object"),
        (NUMBER, '["instruction", "answer"]', "writer_no_object"),
        (NUMBER, '{"answer": "8"}', "writer_instruction"),
        (NUMBER, '{"instruction": "  ", "answer": "8"}', "writer_instruction"),
        (NUMBER, '{"instruction": ["add"], "answer": "8"}', "writer_instruction"),
        (NUMBER, '{"instruction": "' + "a" * 1001 + '", "answer": "8"}', "writer_instruction"),
        (NUMBER, '{"instruction": "add one"}', "writer_answer"),
        (NUMBER, '{"instruction": "add one", "answer": ""}', "writer_answer"),
        (NUMBER, '{"instruction": "add one", "answer": ["8"]}', "writer_answer"),
        (NUMBER, '{"instruction": "add one", "answer": "many"}', "writer_answer"),
        (NUMBER, '{"instruction": "add one", "answer": NaN}', "writer_answer"),
        (CHOICE, '{"instruction": "add one", "answer": "D"}', "writer_answer"),
        (CHOICE, '{"instruction": "add one", "answer": "A or C"}', "writer_answer"),
        (TRUTH, '{"instruction": "add one", "answer": "perhaps"}', "writer_answer"),
        (NUMBER, '{"instruction": "add one", "answer": "7.0"}', "same_answer"),
        (NUMBER, '{"instruction": "add one", "answer": "seven"}', "same_answer"),
        (CHOICE, '{"instruction": "add one", "answer": "green"}', "same_answer"),
        (TRUTH, '{"instruction": "add one", "answer": "True"}', "same_answer"),
        (WORDS, '{"instruction": "add one", "answer": "The Dog."}', "same_answer"),
    ],
)
def test_replies_that_cannot_be_used(row: Any, reply: str, code: str) -> None:
    """One line each: a code, what was found, what was expected."""
    reason = read_proposal(reply, row)
    assert isinstance(reason, str)
    assert reason.startswith(f"{code}: ")
    assert "expected" in reason
    assert "\n" not in reason
    assert len(reason) < 250


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ("[0.25, 0, 1, 0.5]", (0.25, 0.0, 1.0, 0.5)),
        ("null", None),
        ("[10, 20, 200, 300]", "writer_box"),
        ("[0.5, 0, 0.5, 1]", "writer_box"),
        ("[0, 0, 1]", "writer_box"),
        ("[0, 0, NaN, 1]", "writer_box"),
        ("[0, 0, true, 1]", "writer_box"),
        ('"left"', "writer_box"),
    ],
)
def test_boxes(box: str, expected: object) -> None:
    """Shares of the picture, or the reply is refused; where no box was asked for, it is not looked at."""
    reply = f'{{"instruction": "add one", "answer": "8", "box": {box}}}'
    found = read_proposal(reply, NUMBER, ask_box=True)
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert found.startswith(f"{expected}: ")
    else:
        assert found == Proposal("add one", "8", expected)  # type: ignore[arg-type]
    assert read_proposal(reply, NUMBER) == Proposal("add one", "8")


@pytest.mark.parametrize("hostile", ["{" * 100_000, '{"a":' * 100_000, "[" * 100_000, "\x00{", "{\ud800}"])
def test_hostile_replies_are_no_object(hostile: str) -> None:
    """Nesting beyond the parser's depth, and texts longer than `MAX_REPLY_CHARS`, end soon and quietly."""
    assert first_object(hostile) is None
    assert first_object(" " * MAX_REPLY_CHARS + '{"a": 1}') is None
