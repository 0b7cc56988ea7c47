"""Rows of published sets as drafts of contrastive pairs, one reader per set; pictures are told by place.

    naturalbench     two questions about two images each, answers alternate: a candidate per question
    vismin           two images and their captions: which caption is right is the answer
    hallusionbench   visual dependent questions: the original figure and every edited one; originals without one and other rows too
    mmvp             rows 1 and 2, 3 and 4, ... by index: one question, two images, two answers

What is a candidate and no pair becomes a reject with its reason. Left out: pairs of two edited figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, ParamSpec

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.registry import Part
from vlm_contextrl.eval.row_fields import Row
from vlm_contextrl.pairs import AnswerType

P = ParamSpec("P")

CAPTION_QUERY = "Which description fits the image?"
# "Which one? Option: A: left; B: right;" and the like.
_TWO_OPTIONS = re.compile(
    r"(?P<stem>.+?)\s*(?:\bOptions?\s*:)?\s*\(?\bA\s*[:.)]\s*(?P<a>.+?)\s*[;,]?\s*\(?\bB\s*[:.)]\s*(?P<b>.+?)[;\s]*",
    re.DOTALL,
)
_LETTERED = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.IGNORECASE | re.DOTALL)


class Place(NamedTuple):
    """Where a picture is: number of the row, name of the column."""

    row: int
    column: str


@dataclass(frozen=True)
class Draft:
    """A pair before its pictures are read. scene: what pairs with pictures in common share."""

    id: str
    query: str
    answer: str
    confounder_answer: str
    context: Place
    confounder: Place
    scene: str
    domain: str
    options: tuple[str, ...] = ()
    answer_type: AnswerType = "exact"


class Reject(NamedTuple):
    """What could have been a pair and is none."""

    id: str
    reason: str


Drafts = Iterator[Draft | Reject]


def naturalbench(rows: Sequence[Mapping[str, Any]], part: Part) -> Drafts:
    """Two candidates per row, one for each question."""
    for number, values in enumerate(rows):
        row = Row(part.name, part.split, str(values.get("Index", number)), values)
        for q in (0, 1):
            yield _drafted(f"{row.id}-q{q}", _naturalbench, row, number, q)


def _naturalbench(row: Row, number: int, q: int) -> Draft:
    kind = row.text("Question Type" if "Question Type" in row.values else "Question_Type")  # renamed once
    query = row.text(f"Question_{q}")
    of_images = (f"Image_0_Question_{q}", f"Image_1_Question_{q}")
    draft = Draft(
        id=f"{row.id}-q{q}", query=query, answer=row.text(of_images[0]), confounder_answer=row.text(of_images[1]),
        context=Place(number, "Image_0"), confounder=Place(number, "Image_1"), scene=row.id, domain=kind, answer_type="boolean",
    )  # fmt: skip
    if kind == "yes_no":
        return draft
    if kind != "multiple_choice":
        raise row.error("Question_Type", kind, "yes_no or multiple_choice")
    found = _TWO_OPTIONS.fullmatch(query)
    if not found:
        raise row.error(f"Question_{q}", query, "a question that ends with its options, A: ...; B: ...")
    options = (found["a"], found["b"])
    answer, confounder_answer = (row.letter(field, options) for field in of_images)
    return replace(
        draft, query=found["stem"], answer=answer, confounder_answer=confounder_answer, options=options, answer_type="choice"
    )  # fmt: skip


def vismin(rows: Sequence[Mapping[str, Any]], part: Part) -> Drafts:
    """One candidate per row."""
    for number, values in enumerate(rows):
        row = Row(part.name, part.split, str(values.get("id", number)), values)
        yield _drafted(row.id, _vismin, row, number)


def _vismin(row: Row, number: int) -> Draft:
    return Draft(
        id=row.id, query=CAPTION_QUERY, answer=row.text("text_0"), confounder_answer=row.text("text_1"),
        context=Place(number, "image_0"), confounder=Place(number, "image_1"), scene=row.id,
        domain=str(row.values.get("category") or ""),
    )  # fmt: skip


def hallusionbench(rows: Sequence[Mapping[str, Any]], part: Part) -> Drafts:
    """A candidate for each edited figure of a question, for each original without one and for each row of another kind."""
    originals: dict[str, tuple[int, Row]] = {}
    edited = []
    for number, values in enumerate(rows):
        keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
        row = Row(part.name, part.split, "-".join(str(values.get(key)) for key in keys), values)
        if values.get("category") != "VD":
            yield Reject(row.id, f"category is {values.get('category')!r}, expected 'VD', visual dependent")
        elif str(values.get("figure_id")) == "0":
            originals[_asked_of(row)] = number, row
        else:
            edited.append((number, row))
    alone = dict(originals)
    for number, row in edited:
        alone.pop(_asked_of(row), None)
        yield _drafted(row.id, _hallusionbench, row, number, originals.get(_asked_of(row)))
    for _, row in alone.values():
        yield Reject(row.id, "no edited figure has this question")


def _asked_of(row: Row) -> str:
    """The same for the same question about figures of one set."""
    asked = [str(row.values.get(key)) for key in ("subcategory", "set_id", "question")]
    return " ".join(" ".join(asked).casefold().split())


def _hallusionbench(row: Row, number: int, original: tuple[int, Row] | None) -> Draft:
    if original is None:
        found = row.values.get("question")
        raise row.error("question", found, "one that is also asked of the set's original, figure_id 0")
    answers = []
    for figure in (original[1], row):
        answer = figure.text("gt_answer")
        if answer not in ("0", "1"):
            raise figure.error("gt_answer", answer, "0 or 1")
        answers.append("Yes" if answer == "1" else "No")
    return Draft(
        id=row.id, query=row.text("question"), answer=answers[0], confounder_answer=answers[1], context=Place(original[0], "image"),
        confounder=Place(number, "image"), scene=f"{row.text('subcategory')}-{row.text('set_id')}", domain=row.text("subcategory"),
        answer_type="boolean",
    )  # fmt: skip


def mmvp(rows: Sequence[Mapping[str, Any]], part: Part) -> Drafts:
    """One candidate for each two indices, 1 and 2, 3 and 4, ..."""
    twos: dict[str, list[tuple[int, Row]]] = {}
    for number, values in enumerate(rows):
        row = Row(part.name, part.split, str(values.get("Index", number + 1)), values)
        first = 2 * ((int(row.id) - 1) // 2) + 1 if row.id.isdecimal() else row.id
        twos.setdefault(f"{first}", []).append((number, row))
    for id, two in twos.items():
        yield _drafted(id, _mmvp, two)


def _mmvp(two: list[tuple[int, Row]]) -> Draft:
    (number, row), *others = sorted(two, key=lambda numbered: numbered[1].id.zfill(9))
    if len(others) != 1:
        raise row.error("Index", row.id, f"two rows of a pair, found {len(two)}")
    other_number, other = others[0]
    asked = [r.text("Question") for r in (row, other)]
    if not _same_text(*asked):
        raise other.error("Question", asked[1], f"that of row {row.id}, {asked[0]!r}")
    options, other_options = (
        tuple(text for _, text in _LETTERED.findall(r.text("Options"))) for r in (row, other)
    )
    if len(options) < 2 or not all(options):
        raise row.error("Options", row.text("Options"), "options as in '(a) Open (b) Closed'")
    if not _same_text(str(options), str(other_options)):
        raise other.error("Options", other.text("Options"), f"those of row {row.id}")
    return Draft(
        id=row.id, query=asked[0], answer=row.letter("Correct Answer", options), options=options, answer_type="choice",
        confounder_answer=other.letter("Correct Answer", options), context=Place(number, "image"),
        confounder=Place(other_number, "image"), scene=row.id, domain="mmvp",
    )  # fmt: skip


def _same_text(left: str, right: str) -> bool:
    return left.casefold().split() == right.casefold().split()


def _drafted(id: str, draft: Callable[P, Draft], *args: P.args, **kwargs: P.kwargs) -> Draft | Reject:
    try:
        return draft(*args, **kwargs)
    except DataError as error:
        return Reject(id, str(error))
