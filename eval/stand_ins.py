"""Models that know the answers: a check of data and scoring that needs no model, `vlm-contextrl eval --model oracle`.

Behaviours: `oracle` is always right, `wrong` never, `first` takes the first option whatever is asked. Each can answer in the forms that
models are seen to use; the chain of thought names options that it then does not take. For an open question the forms
are those of its value; the two that are forms of a letter give the bare value.
"""

from __future__ import annotations

from string import ascii_uppercase

from vlm_contextrl.eval.questions import Question
from vlm_contextrl.matching import quantity

BEHAVIOURS = ("oracle", "wrong", "first")

_THOUGHT = (
    "The picture shows several shapes, so I compare them one by one.\n"
    "Option A looks close at first, yet B is closer; I check {other}."
)
STYLES: dict[str, str] = {
    "letter": "{answer}",
    "bracketed": "({answer})",
    "option": "{option}",
    "sentence": "The answer is {answer}.",
    "label": "Answer: {answer}",
    "boxed": r"\boxed{{{answer}}}",
    "thought_boxed": _THOUGHT + "\n\n" + r"So the final answer is \boxed{{{answer}}}.",
    "answer_tag": "<think>" + _THOUGHT + "</think><answer>{answer}</answer>",
    "thought_sentence": _THOUGHT + "\n\nTherefore, the correct option is {answer}.",
}
"""Name -> form of a completion."""

_FORMS_OF_A_LETTER = ("bracketed", "option")

OPEN_GUESS = "unknown"
_WRONG_FORMULA = "0.123456789"
_WRONG_WORDS = "none of these"


def reply(question: Question, behaviour: str, style: str) -> str:
    """The completion. Raises KeyError for an unknown behaviour or style."""
    answer = _ANSWERS[behaviour](question)
    bare = question.answer_type != "choice" and style in _FORMS_OF_A_LETTER
    template = STYLES["letter" if bare else style]
    index = ascii_uppercase.find(answer)
    text = question.options[index] if 0 <= index < len(question.options) else ""
    return template.format(
        answer=answer, option=" ".join(f"{answer}. {text}".split()), other=_other(question, answer)
    )


def _right(question: Question) -> str:
    return ", ".join(question.several) or question.answer


def _wrong(question: Question) -> str:
    if question.answer_type == "choice":
        return _other(question, *(question.answer, *question.alternatives))
    if question.answer_type == "exact":
        return _WRONG_WORDS
    if question.answer_type == "boolean":
        return "no" if question.answer.casefold() in ("yes", "true") else "yes"
    found = quantity(question.answer)
    if question.several or found is None:
        return _WRONG_FORMULA
    return f"{float(found[0] + abs(found[0]) + 1):.10g}"


def _first(question: Question) -> str:
    return "A" if question.answer_type == "choice" else OPEN_GUESS


def _other(question: Question, *taken: str) -> str:
    """The next letter behind the first of `taken` that is none of them, around the options."""
    letters = ascii_uppercase[: len(question.options) or 4]
    start = letters.find(taken[0]) + 1
    return next(letter for letter in letters[start:] + letters[:start] if letter not in taken)


_ANSWERS = {"oracle": _right, "wrong": _wrong, "first": _first}
