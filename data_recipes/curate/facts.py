"""What `dedupe` and `decontaminate` know of every row: what it asks, what it answers, and which images and texts it asks about.

Facts are small and stay in memory (about a kilobyte per row, and what its query takes); images and texts stay on disk and are read again
where they are compared.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_contextrl import matching
from vlm_contextrl.data_recipes.curate.near_text import shingles, sketch, words
from vlm_contextrl.data_recipes.pipeline import Engine, compute_parts
from vlm_contextrl.pairs import ContrastivePair, Row
from vlm_contextrl.row_schema import images_of, texts_of

FACTS_NAME = "facts.jsonl"
ROWS_PER_PART = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """query: its words. options: the words of each, sorted. answers: what the sides of a pair support ("" for unknown), or the one answer
    of a question. sides: `image HASH` or `text HASH` of what is asked about. sketches: of each side, empty for an image.
    """

    id: str
    query: str
    options: tuple[str, ...]
    answers: tuple[str, ...]
    sides: tuple[str, ...]
    sketches: tuple[tuple[int, ...], ...]

    @property
    def asked(self) -> str:
        """Equal for rows that ask the same, options in whatever order."""
        return "\n".join((self.query, *self.options))


def facts_of(row: Row, w: int) -> Facts:
    """The facts of a row; w: words per shingle of a text."""
    images = [f"image {image.pixel_hash()}" for image in images_of(row)]
    texts = [words(text) for text in texts_of(row)]
    hashes = [f"text {hashlib.sha256(' '.join(text).encode()).hexdigest()}" for text in texts]
    answers = (row.answer, row.confounder_answer) if isinstance(row, ContrastivePair) else (row.answer,)
    return Facts(
        id=row.id,
        query=" ".join(words(row.query)),
        options=tuple(sorted(" ".join(words(option)) for option in row.options)),
        answers=tuple("" if answer is None else _answer(answer, row) for answer in answers),
        sides=(*images, *hashes),
        sketches=(*((),) * len(images), *(tuple(sketch(shingles(text, w))) for text in texts)),
    )


def _answer(answer: str, row: Row) -> str:
    """An answer as words; that of an option is its text."""
    if row.answer_type == "choice":
        answer = row.options[string.ascii_uppercase.index(answer)]
    elif row.answer_type == "boolean":
        return str(matching.truth(answer))
    return " ".join(matching.words(answer)) or answer


@dataclass(frozen=True)
class _Describe:
    w: int

    def __call__(self, rows: Sequence[Row], folder: Path) -> None:
        lines = [json.dumps(asdict(facts_of(row, self.w)), ensure_ascii=False) + "\n" for row in rows]
        (folder / FACTS_NAME).write_text("".join(lines), encoding="utf-8")


def all_facts(
    rows: Sequence[Row], w: int, folder: Path, *, plan: dict[str, Any], engine: Engine, label: str
) -> list[Facts]:
    """The facts of all rows, in order. Resumes in `folder`."""
    parts = compute_parts(
        _Describe(w), rows, folder, plan=plan, batch_size=ROWS_PER_PART, engine=engine, label=label
    )
    found = []
    for part in parts.folders:
        with (part / FACTS_NAME).open(encoding="utf-8") as lines:
            for line in lines:
                value = json.loads(line)
                lists = {name: tuple(value[name]) for name in ("options", "answers", "sides")}
                found.append(Facts(**{**value, **lists, "sketches": tuple(map(tuple, value["sketches"]))}))
    return found


class Sides:
    """The different images and texts of some rows, numbered by first appearance.

    numbers: per row, those of its sides. images: numbers of those that are images, ascending.
    """

    def __init__(self, facts: Sequence[Facts]) -> None:
        number_of: dict[str, int] = {}
        self.places: list[tuple[int, int]] = []  # row and side where each was first
        self.numbers: list[tuple[int, ...]] = []
        for row, fact in enumerate(facts):
            for side, key in enumerate(fact.sides):
                if key not in number_of:
                    number_of[key] = len(self.places)
                    self.places.append((row, side))
            self.numbers.append(tuple(number_of[key] for key in fact.sides))
        self.keys = list(number_of)
        self.images = [number for number, key in enumerate(self.keys) if key.startswith("image ")]
