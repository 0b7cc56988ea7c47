"""From a benchmark's row, in its published schema, to a Question; mathematics and science are in `readers_science.py`.

Sources: the datasets on the hub as lmms-eval 0.7.3 reads them. Deviations from its prompts, all for one prompt style over the twelve:
options leave the question's text and are shown as training shows them; instructions about the form of the answer leave it too (the
style asks for the form); pictures come first, references such as "<image 1>" stay in the text. Where options are part of a
text and cannot be told apart in a row, they stay in the text and letters alone count.

Left out: captions, hints at how to solve, few-shot examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from vlm_contextrl.eval import readers_science
from vlm_contextrl.eval.questions import Question
from vlm_contextrl.eval.registry import Part
from vlm_contextrl.eval.row_fields import Row
from vlm_contextrl.eval.row_texts import ASK_FOR_LETTER, labelled_options, partition_at

Reader = Callable[[Row], Question]


def read_question(benchmark: str, part: Part, row: Mapping[str, Any]) -> Question:
    """The question of a row of one part. Raises DataError, in one line, when a field is missing or cannot be used."""
    id_field, reader = READERS[benchmark]
    where = Row(benchmark, part.name, "?", row)
    return reader(Row(benchmark, part.name, where.text(id_field) if id_field else "?", row))


def read_vstar(row: Row) -> Question:
    text, options = labelled_options(row.text("text"), r"(?:^|\s)\({letter}\)")
    options = tuple(option.partition("\nAnswer with")[0].strip() for option in options)
    letter = row.letter("label", options)
    return Question(
        row.id,
        text,
        (row.image("image"),),
        letter,
        "choice",
        options,
        category=row.text("category", empty=True),
    )


def read_mmstar(row: Row) -> Question:
    text, letter = row.text("question"), row.letter("answer", ())
    head, _, tail = partition_at(re.compile(r"\b(?:Options|Choices)\s*:"), text)
    before, options = labelled_options(tail, r"(?:^|[,;]\s*)\(?{letter}[:.)]")
    if before or letter not in ascii_uppercase[: len(options)]:
        head, options = text, ()
    return Question(
        row.id, head, (row.image("image"),), letter, "choice", options, category=row.text("category")
    )


def read_blink(row: Row) -> Question:
    options = row.texts("choices")
    # `question` is a short title in some subtasks; what is asked stands in `prompt`, options included.
    text, shown = labelled_options(row.text("prompt"), r"^\s*\({letter}\)")
    if len(shown) != len(options):
        text = row.text("question")
    images = tuple(
        row.image(field) for field in (f"image_{i}" for i in range(1, 5)) if row.values.get(field) is not None
    )
    if not images:
        raise row.error("image_1", None, "an image")
    text = text.replace("<image>", "").strip()
    return Question(
        row.id, text, images, row.letter("answer", options), "choice", options, category=row.text("sub_task")
    )


def read_mme_realworld(row: Row) -> Question:
    text, shown = row.text("question"), row.texts("multi-choice options")
    labels = [re.match(r"\s*[(\uff08]([A-Z])[)\uff09]\s*", option) for option in shown]
    if "".join(label[1] if label else "?" for label in labels) == ascii_uppercase[: len(shown)]:
        options = tuple(option[label.end() :] for option, label in zip(shown, labels, strict=True) if label)
    else:
        text, options = "\n".join((text, *shown)), ()
    return Question(
        row.id, text, (row.image("bytes"),), row.letter("answer", options), "choice", options, category=row.text("category")
    )  # fmt: skip


def read_mmmu_pro(row: Row) -> Question:
    if "question" not in row.values:  # the part in which question and options are drawn in the picture
        return Question(
            row.id, ASK_FOR_LETTER, (row.image("image"),), row.letter("answer", row.texts("options")), "choice",
            category=row.text("subject"),
        )  # fmt: skip
    return readers_science.numbered_choice(row, category=row.text("subject"))


READERS: dict[str, tuple[str, Reader]] = {
    "mathvista": ("pid", readers_science.read_mathvista),
    "mathverse": ("sample_index", readers_science.read_mathverse),
    "mathvision": ("id", readers_science.read_mathvision),
    "mmmu_pro": ("id", read_mmmu_pro),
    "mmmu": ("id", readers_science.read_mmmu),
    "vstar": ("question_id", read_vstar),
    "mmstar": ("index", read_mmstar),
    "blink": ("idx", read_blink),
    "scienceqa": ("", readers_science.read_scienceqa),
    "phyx": ("index", readers_science.read_phyx),
    "olympiadbench": ("id", readers_science.read_olympiadbench),
    "mme_realworld_lite": ("index", read_mme_realworld),
}
"""Benchmark -> the column of its row id ("": it has none, its reader makes one) and its reader."""
