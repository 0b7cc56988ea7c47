"""Readers of the mathematical and scientific benchmarks; see `readers.py`."""

from __future__ import annotations

import hashlib
import re
from string import ascii_uppercase

from vlm_contextrl.eval.questions import Question, listed
from vlm_contextrl.eval.row_fields import Row, literal_list
from vlm_contextrl.eval.row_texts import (
    ASK,
    ASK_FOR_ALL,
    ASK_FOR_LETTER,
    labelled_options,
    numbered_images,
    open_answer_type,
    partition_at,
    relative_tolerance,
)
from vlm_contextrl.images import pixel_hash
from vlm_contextrl.matching import plain, quantity

_PHYX_INSTRUCTION = re.compile(r"\s*Please directly answer the question\b.*?\bOPTION:", re.DOTALL)


def read_mathvista(row: Row) -> Question:
    text, answer = row.text("question"), row.text("answer")
    images = (row.image("decoded_image"),)
    metadata = row.value("metadata", "a record with the task")
    category = str(metadata.get("task", "")) if isinstance(metadata, dict) else ""
    if row.text("question_type") == "multi_choice":
        options = row.texts("choices")
        letters = [
            letter for letter, option in zip(ascii_uppercase, options, strict=False) if option == answer
        ]
        if not letters:
            raise row.error("answer", answer, f"one of the choices {list(options)}")
        return Question(
            row.id,
            text,
            images,
            letters[0],
            "choice",
            options,
            category=category,
            alternatives=tuple(letters[1:]),
        )
    if unit := row.text("unit", empty=True):
        text = f"{text} (Unit: {unit})"
    if row.text("answer_type") == "list":
        return Question(row.id, text, images, answer, "exact", category=category)
    precision = row.values.get("precision")
    rounding = None if precision is None else 0.5 * 10.0 ** -float(precision)
    return Question(
        row.id, text, images, answer, open_answer_type(answer), tolerance=relative_tolerance(answer, rounding),
        category=category,
    )  # fmt: skip


def read_mathverse(row: Row) -> Question:
    images = () if row.values.get("image") in (None, "") else (row.image("image"),)
    category, whole = row.text("problem_version"), row.text("question", empty=True)
    if row.text("question_type") == "multi-choice":
        text, options = labelled_options(whole, r"^\s*\(?{letter}\s*[:.)]")
        letter = row.letter("answer", options)
        text = re.sub(r"\s*\bChoices\s*:\s*$", "", text)
        return Question(row.id, text or ASK_FOR_LETTER, images, letter, "choice", options, category=category)
    answer = row.text("answer")
    return Question(row.id, whole or ASK, images, answer, open_answer_type(answer), category=category)


def read_mathvision(row: Row) -> Question:
    text, images = row.text("question"), (row.image("decoded_image"),)
    options, answer = row.texts("options"), row.text("answer")
    category = row.text("subject", empty=True)
    if options or re.fullmatch("[A-E]", answer):  # a letter without options: they are drawn
        return Question(
            row.id, text, images, row.letter("answer", options), "choice", options, category=category
        )
    return Question(row.id, text, images, answer, open_answer_type(answer), category=category)


def numbered_choice(row: Row, category: str) -> Question:
    """A row of MMMU or MMMU-Pro with options; a list of letters as answer means that each is right."""
    text, options = row.text("question"), row.texts("options")
    images = numbered_images(row, "\n".join((text, *options)))
    listed_letters = literal_list(row.text("answer"))
    if listed_letters:
        rights = [
            Row(row.benchmark, row.part, row.id, {"answer": x}).letter("answer", options)
            for x in listed_letters
        ]
    else:
        rights = [row.letter("answer", options)]
    return Question(
        row.id, text, images, rights[0], "choice", options, category=category, alternatives=tuple(rights[1:])
    )


def read_mmmu(row: Row) -> Question:
    named = re.fullmatch(r"[^_]+_(.+)_\d+", row.id)
    category = named[1] if named else ""
    if row.text("question_type") == "multiple-choice":
        return numbered_choice(row, category)
    text, answer = row.text("question"), row.text("answer")
    rights = [str(item).strip() for item in literal_list(answer) or [answer]]
    kinds = {open_answer_type(right) for right in rights}
    return Question(
        row.id, text, numbered_images(row, text), rights[0], kinds.pop() if len(kinds) == 1 else "math",
        # The published scorer rounds both sides to two decimals.
        tolerance=relative_tolerance(rights[0], None if re.fullmatch(r"[-\d,]+", rights[0]) else 0.005),
        category=category, alternatives=tuple(rights[1:]),
    )  # fmt: skip


def read_scienceqa(row: Row) -> Question:
    question, hint, options = row.text("question"), row.text("hint", empty=True), row.texts("choices")
    images = () if row.values.get("image") is None else (row.image("image"),)
    index = row.value("answer", "the number of an option, from 0")
    if not isinstance(index, int) or not 0 <= index < len(options):
        raise row.error("answer", index, f"the number of an option, 0 to {len(options) - 1}")
    contents = "\n".join((question, hint, *options, *map(pixel_hash, images)))
    return Question(
        hashlib.sha256(contents.encode()).hexdigest()[:16],
        f"Context: {hint}\n{question}" if hint else question,
        images, ascii_uppercase[index], "choice", options, category=row.text("subject", empty=True),
    )  # fmt: skip


def read_phyx(row: Row) -> Question:
    text = row.text("question")
    head, instruction, tail = partition_at(_PHYX_INSTRUCTION, text)
    before, options = labelled_options(tail, r"(?:^|\s){letter}\s*:", last="D")
    if instruction and options and not before:
        text = head
    else:
        options = ()
    return Question(
        row.id, text, (row.image("image"),), row.letter("answer", options), "choice", options,
        category=row.text("category"),
    )  # fmt: skip


def read_olympiadbench(row: Row) -> Question:
    text = "\n\n".join(part for part in (row.text("context", empty=True), row.text("question")) if part)
    images = tuple(
        row.image(field)
        for field in (f"image_{i}" for i in range(1, 10))
        if row.values.get(field) is not None
    )
    published = row.texts("final_answer")
    if not published:
        raise row.error("final_answer", [], "at least one answer")
    answer = ", ".join(published)
    answers = tuple(item for part in published for item in listed(part.replace("$", "")))
    several = answers if row.values.get("is_multiple_answer") and len(answers) > 1 else ()
    if several:
        text = f"{text}\n{ASK_FOR_ALL}"
    errors = _errors(row, len(several) or 1)
    tolerances = tuple(map(relative_tolerance, several or (answer,), errors))
    numeric = all(quantity(item) for item in several or (answer,))
    return Question(
        row.id, text, images, answer, "numeric" if numeric else "math", tolerance=None if several else tolerances[0],
        category=row.text("subfield", empty=True), several=several, tolerances=tolerances if several else (),
        unit=" ".join(plain(row.text("unit", empty=True)).replace(" / ", "/").split()),
    )  # fmt: skip


def _errors(row: Row, count: int) -> list[float | None]:
    """The absolute error of each answer: one for all, or as many as there are answers, separated by commas."""
    value = row.text("error", empty=True)
    try:
        errors = [float(item) if item.strip() else None for item in value.split(",")]
    except ValueError:
        raise row.error("error", value, "numbers separated by commas") from None
    if len(errors) not in (1, count):
        raise row.error("error", value, f"one number, or one for each of {count} answers")
    return errors * count if len(errors) == 1 else errors
