"""Extracting a final answer from a completion and scoring it. The one place for it, shared by training and
evaluation.

`extract_answer` looks for, in this order, and the first kind that is present decides:
  1. the last ``<answer>...</answer>``;
  2. the last ``\\boxed{...}``, braces balanced;
  3. the text after the last "answer is" / "Answer:" (also option, choice), to the end of its sentence;
  4. for a choice, a last line that is one option letter, alone or with the text of this option;
  5. a completion that is one line of at most 12 words.
What stands before ``</think>`` is not looked at; a ``<think>`` that is never closed has no answer.

Whatever names several answers is worth nothing: "A or B", "A/B", boxes joined by "or" with different
contents, an option letter beside the text of another option. The comparison rules stand in `matching.py`
and `expressions.py`. Left out: judges, answers in the middle of a long text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from vlm_contextrl import expressions, matching
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import AnswerType
from vlm_contextrl.prompts import SELECTION_PREFILL, Style

SHORT_ANSWER_WORDS = 12
MAX_ANSWER_CHARS = 1000

_BRACE = re.compile(r"\\\\|\\boxed\s*\{|\\[{}]|[{}]")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
# Between two boxes: only this means that they are one answer in several parts.
_JOINT = re.compile(
    r"(?:[\s,;/&|${}]|\\(?:quad|text|[,;() ])|\b(?:and|or|maybe|perhaps|possibly|alternatively|vs)\b)*"
)
_MARKER = re.compile(
    r"\b(?:answer(?:\s+to\s+(?:the|this)\s+question)?|option|choice)[*_\"]*"
    r"\s*(?:(?:is|would be|should be|must be)\b\s*:?|[:=])(?=\s*\S)\s*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\w)(?P<word>\w*)[.!?](?=\s)")
_ABBREVIATIONS = frozenset({"st", "dr", "mr", "mrs", "ms", "vs", "no", "mt"})
_CLAUSE = re.compile(r"(?<!\s)\s+(?:because|since)\b|,\s+(?:because|since|as|so)\b", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\s*(?:or|and|maybe|perhaps)\b", re.IGNORECASE)


def extract_answer(completion: str, answer_type: AnswerType, options: Sequence[str] = ()) -> str | None:
    """The final answer: an upper-case option letter for a choice, else the text as written; None when there
    is none to be had."""
    text = _visible(completion)
    if text is None:
        return None
    marked = _marked(text)
    if marked is not None:
        return _read(marked, answer_type, options)
    said = _after_marker(text)
    if said is not None:
        return _read_sentence(said, answer_type, options)
    if answer_type == "choice":
        echoed = [matching.echoed_option(line, options) for line in text.splitlines()]
        if echoed and echoed[-1] is not None:
            return echoed[-1] if {*echoed} <= {None, echoed[-1]} else None
    return _read(text, answer_type, options) if _short(text) else None


def is_correct(
    extracted: str | None,
    answer: str,
    answer_type: AnswerType,
    options: Sequence[str] = (),
    tolerance: float | None = None,
) -> bool:
    """Whether the extracted answer is the right one; rules per answer type in `matching.py`.

    tolerance: relative, for numeric and math; None compares integers exactly and other numbers within 1e-6.
    Raises DataError when a choice row's own answer names no option.
    """
    if answer_type == "choice":
        right = matching.choice_letter(answer, options)
        if right is None:
            raise DataError(
                f"answer {answer!r} is none of the {len(options)} options {list(options)}; correct the row"
            )
        return extracted is not None and matching.choice_letter(extracted, options) == right
    if extracted is None or not extracted.strip():
        return False
    if answer_type == "boolean":
        found = matching.truth(extracted)
        return found is not None and found == matching.truth(answer)
    if answer_type == "numeric":
        return matching.numbers_equal(extracted, answer, tolerance)
    if answer_type == "math":
        return expressions.expressions_equal(extracted, answer, tolerance)
    return matching.words_equal(extracted, answer)


def score_answer(
    completion: str,
    answer: str,
    answer_type: AnswerType = "exact",
    options: Sequence[str] = (),
    tolerance: float | None = None,
) -> bool:
    """Whether the completion's final answer is the right one: `extract_answer`, then `is_correct`."""
    extracted = extract_answer(completion, answer_type, options)
    return is_correct(extracted, answer, answer_type, options, tolerance)


def selection_letter(reply: str, kind: Literal["image", "text"]) -> str | None:
    """The context that a reply to a selection prompt names: A, B, or None when it names neither or both.

    kind: of the contexts, which the prompt calls "Image A" or "Context A". The words that open the assistant's turn belong to the reply.
    """
    name = "Image" if kind == "image" else "Context"
    return extract_answer(f"{SELECTION_PREFILL[kind]} {reply}".lstrip(), "choice", (f"{name} A", f"{name} B"))


def has_format(completion: str, style: Style) -> bool:
    """Whether the completion has the asked form, right or wrong.

    direct: one line of at most 12 words. reasoning: an answer in \\boxed{} or <answer>, not empty, not
    several joined ones. plain: any text. In all of them a ``<think>`` must be closed.
    """
    text = _visible(completion)
    if text is None:
        return False
    if style == "plain":
        return bool(text)
    return _short(text) if style == "direct" else bool(_marked(text))


def _visible(completion: str) -> str | None:
    """What follows the last </think>, stripped; None when a <think> stays open."""
    text = completion.rpartition("</think>")[2]
    return None if "<think>" in text else text.strip()


def _short(text: str) -> bool:
    return bool(text) and "\n" not in text and len(text.split()) <= SHORT_ANSWER_WORDS


def _marked(text: str) -> str | None:
    """Content of the last answer tag, else of the last box; "" when it is empty or several are joined; None
    when there is none."""
    tagged = _last_content(text, _tag_spans(text))
    if tagged is not None:
        boxed = _last_content(tagged, _boxed_spans(tagged))
        return tagged if boxed is None else boxed
    return _last_content(text, _boxed_spans(text))


def _last_content(text: str, spans: list[tuple[int, int, str]]) -> str | None:
    if not spans:
        return None
    start, _, content = spans[-1]
    for earlier_start, earlier_end, earlier in reversed(spans[:-1]):
        if not _JOINT.fullmatch(text, earlier_end, start):
            break
        if matching.plain(earlier).casefold() != matching.plain(content).casefold():
            return ""
        start = earlier_start
    return content.strip()


def _tag_spans(text: str) -> list[tuple[int, int, str]]:
    spans, opening = [], None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag[1]:
            opening = tag
        elif opening:
            spans.append((opening.start(), tag.end(), text[opening.end() : tag.start()]))
            opening = None
    return spans


def _boxed_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every closed \\boxed{...} that is not inside another one, in one pass."""
    open_braces: list[re.Match[str]] = []
    spans: list[tuple[int, int, str]] = []
    for brace in _BRACE.finditer(text):
        if brace[0].endswith("{") and brace[0] != "\\{":
            open_braces.append(brace)
        elif brace[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened[0] != "{":
                while spans and spans[-1][0] > opened.start():
                    spans.pop()
                spans.append((opened.start(), brace.end(), text[opened.end() : brace.start()]))
    return spans


def _after_marker(text: str) -> str | None:
    """The rest of the line after the last "answer is", "Answer:" and the like; None without such a phrase."""
    markers = list(_MARKER.finditer(text))
    return text[markers[-1].end() :].partition("\n")[0] if markers else None


def _read(value: str, answer_type: AnswerType, options: Sequence[str]) -> str | None:
    if len(value) > MAX_ANSWER_CHARS:
        return None
    return matching.choice_letter(value, options) if answer_type == "choice" else value.strip() or None


def _read_sentence(value: str, answer_type: AnswerType, options: Sequence[str]) -> str | None:
    whole = _read(value, answer_type, options) if answer_type == "choice" else None
    if whole:
        return whole
    end = len(value)
    for stop in _SENTENCE_END.finditer(value):
        if stop["word"].casefold() not in _ABBREVIATIONS:
            end = stop.end()
            break
    clause = _CLAUSE.search(value, 0, end)
    if _ALTERNATIVE.match(value, end):
        return None
    return _read(matching.plain(value[: clause.start() if clause else end]), answer_type, options)
