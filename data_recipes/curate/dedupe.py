"""Rows that repeat an earlier one: the first in order stays, the others become rejects that name it.

With `key: image_and_query` a row repeats another when both ask the same (words of the query and of the options) about the same images or
texts; two questions about one picture are two rows. A pair may repeat another the other way round, context for confounder. With
`key: image` it is enough that the images or texts are the same.

    duplicate_image      pixel for pixel
    near_duplicate       the same picture after rescaling, compression or a little cropping (near.py)
    duplicate_text       word for word, or with most w-grams in common (near_text.py)
    conflicting_answer   the same question about the very same images or texts, with another answer: one of both must be wrong

Nearly equal images are no duplicates when the same question has two answers for them: that is how context and confounder differ, which
are never compared with one another.

A row nearly repeats only a row that stays: what is near a reject, but not near that, stays too. Left out: paraphrased queries.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.curate.facts import Facts, Sides, all_facts
from vlm_contextrl.data_recipes.curate.near import Adjacency, NearSettings, candidates, compare_all
from vlm_contextrl.data_recipes.curate.near_text import alike, jaccard, shingles, words
from vlm_contextrl.data_recipes.features import ImagesOf, image_features
from vlm_contextrl.data_recipes.inputs import row_input
from vlm_contextrl.data_recipes.pipeline import Engine, unreadable, work_folder, write_result
from vlm_contextrl.pairs import Row
from vlm_contextrl.row_schema import texts_of
from vlm_contextrl.storage import free_place

RECIPE = "dedupe"

Neighbours = Mapping[int, Mapping[int, str]]  # side -> sides that are nearly the same, and how nearly


class Near(Protocol):
    """Sides that are, or may be, nearly the same as one."""

    def get(self, number: int, default: Sequence[int], /) -> Collection[int]:
        """Those of a side."""


class DedupeConfig(Record):
    """What counts as a repetition."""

    key: Literal["image_and_query", "image"] = Field(
        "image_and_query",
        description="what must be repeated: images (or texts) and query, or images (or texts) alone",
    )
    near: NearSettings = NearSettings()
    near_images: bool = Field(True, description="look for nearly equal images, too")
    words: int = Field(8, ge=1, description="w: words per shingle of a text")
    jaccard: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of common shingles from which on two texts are the same; 1 turns it off",
    )
    licence: str = Field("", description="licence of rows that name none")


class Match(NamedTuple):
    """A row that another one nearly repeats: its sides, and the sides that they stand for."""

    earlier: int
    pairs: tuple[tuple[int, int], ...]


def run(config: DedupeConfig, input_folder: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Writes the rows that repeat no earlier one; what it found, with `found`: id and reason of every reject."""
    out = free_place(out)
    started_s = time.perf_counter()
    source = row_input(input_folder, config.licence)
    settings = config.model_dump(mode="json")
    work, plan = work_folder(out), {"recipe": RECIPE, "config": settings, "input": source.content_hash}
    facts = all_facts(source.rows, config.words, work / "facts", plan=plan, engine=engine, label="hashes")
    sides = Sides(facts)
    reasons = exact_repeats(facts, sides, config.key)
    finder = _Finder(facts, sides, config.key)
    left = [row for row in range(len(facts)) if row not in reasons]
    near: dict[int, dict[int, str]] = defaultdict(dict)
    if config.jaccard < 1:
        _add_near_texts(near, source.rows, left, finder, config)
    if config.near_images and sides.images:
        _add_near_images(near, source.rows, left, finder, config.near, work, plan, engine)
    reasons |= near_repeats(left, finder, near)
    rejects = unreadable(source.refused) + [
        (facts[row].id, reason) for row, reason in sorted(reasons.items())
    ]
    kept = (row for number, row in enumerate(source.rows) if number not in reasons)
    inputs = len(facts) + len(source.refused)
    summary = write_result(kept, out, recipe=RECIPE, config=settings, inputs=inputs, rejects=rejects)
    assert summary["kept"] == summary["rows"]
    return {
        **summary,
        "rows_per_s": inputs / (time.perf_counter() - started_s),
        "found": [{"id": row_id, "reason": reason} for row_id, reason in rejects],
    }


def exact_repeats(facts: Sequence[Facts], sides: Sides, key: str) -> dict[int, str]:
    """Rows whose sides are those of an earlier row, and why they go."""
    first: dict[tuple[object, ...], int] = {}
    reasons: dict[int, str] = {}
    for row, fact in enumerate(facts):
        numbers = sides.numbers[row]
        if key == "image" and not numbers:
            continue
        ordered = tuple(sorted(numbers)) if _is_pair(fact) else numbers
        earlier = first.setdefault((fact.asked if key == "image_and_query" else "", ordered), row)
        if earlier == row:
            continue
        swapped = numbers != sides.numbers[earlier]
        said = f"{', sides swapped,' if swapped else ''} as in row {facts[earlier].id!r}"
        if fact.asked == facts[earlier].asked and not same_answers(fact, facts[earlier], swapped):
            answers = f"{_reading(fact, swapped)!r} here, {_reading(facts[earlier], False)!r} in row {facts[earlier].id!r}"
            reasons[row] = (
                f"conflicting_answer: {answers} for the same question about the same; expected one answer"
            )
        elif any(side.startswith("image ") for side in fact.sides):
            reasons[row] = f"duplicate_image: every pixel{said}, expected images that are not there yet"
        else:
            reasons[row] = f"duplicate_text: every word{said}, expected a text that is not there yet"
    return reasons


def _is_pair(fact: Facts) -> bool:
    return len(fact.answers) == 2


def same_answers(a: Facts, b: Facts, swapped: bool) -> bool:
    """Whether no known answer of a differs from that of b; swapped: a's context is b's confounder."""
    answers = a.answers[::-1] if swapped else a.answers
    return all(x == y or not x or not y for x, y in zip(answers, b.answers, strict=True))


def _reading(fact: Facts, swapped: bool) -> str:
    return " / ".join(answer or "?" for answer in (fact.answers[::-1] if swapped else fact.answers))


class _Finder:
    """Earlier rows that a row may repeat, given which sides are nearly the same."""

    def __init__(self, facts: Sequence[Facts], sides: Sides, key: str) -> None:
        self.facts, self.sides, self.key = facts, sides, key
        self._rows: dict[tuple[str, int], list[int]] = defaultdict(list)

    def block(self, row: int) -> str:
        """Rows of two blocks are never compared."""
        return self.facts[row].asked if self.key == "image_and_query" else ""

    def add(self, row: int) -> None:
        """From now on others may repeat this row."""
        for number in self.sides.numbers[row][:1]:
            self._rows[self.block(row), number].append(row)

    def clear(self) -> None:
        """Forget the added rows."""
        self._rows.clear()

    def _agree(self, a: Facts, b: Facts, swapped: bool) -> bool:
        return a.asked != b.asked or same_answers(a, b, swapped)

    def matches(self, row: int, near: Near) -> Iterator[Match]:
        """Added rows with sides that are all the same as those of `row`, or near."""
        numbers, fact = self.sides.numbers[row], self.facts[row]
        for swapped in (False, True) if _is_pair(fact) else (False,):
            own = numbers[::-1] if swapped else numbers
            for first in (own[0], *near.get(own[0], ())) if own else ():
                for earlier in self._rows.get((self.block(row), first), ()):
                    theirs = self.sides.numbers[earlier]
                    if len(theirs) != len(own) or not self._agree(fact, self.facts[earlier], swapped):
                        continue
                    if all(a == b or b in near.get(a, ()) for a, b in zip(own, theirs, strict=True)):
                        yield Match(earlier, tuple(zip(own, theirs, strict=True)))


def near_repeats(rows: Sequence[int], finder: _Finder, near: Neighbours) -> dict[int, str]:
    """Of `rows`, those that nearly repeat one that stays."""
    reasons: dict[int, str] = {}
    finder.clear()
    for row in rows:
        found = min(finder.matches(row, near), default=None)
        if found is None:
            finder.add(row)
            continue
        measures = {near[a][b] for a, b in found.pairs if a != b}
        is_image = any(finder.sides.keys[a].startswith("image ") for a, b in found.pairs if a != b)
        code, what = (
            ("near_duplicate", "images that are") if is_image else ("duplicate_text", "a text that is")
        )
        earlier = finder.facts[found.earlier].id
        reasons[row] = (
            f"{code}: nearly as in row {earlier!r} ({'; '.join(sorted(measures))}), expected {what} not there yet"
        )
    return reasons


def _wanted(rows: Sequence[int], finder: _Finder, near: Near) -> set[tuple[int, int]]:
    """Sides to compare: those that decide whether one row repeats another."""
    wanted: set[tuple[int, int]] = set()
    finder.clear()
    for row in rows:
        for match in finder.matches(row, near):
            wanted.update((min(a, b), max(a, b)) for a, b in match.pairs if a != b)
        finder.add(row)
    return wanted


def _add_near_images(
    near: dict[int, dict[int, str]], rows: Sequence[Row], left: Sequence[int], finder: _Finder, settings: NearSettings,
    work: Path, plan: dict[str, Any], engine: Engine,
) -> None:  # fmt: skip
    sides = finder.sides
    images = ImagesOf(rows, [sides.places[number] for number in sides.images])
    features = image_features(images, settings.encoder, work / "features", engine, "features")
    pairs_P2, cosines_P = candidates(features, None, settings)
    numbers = np.array(sides.images)
    near_texts = [(a, b) for a, others in near.items() for b in others]
    maybe = Adjacency(
        np.concatenate([numbers[pairs_P2], np.array(near_texts, dtype=np.int64).reshape(-1, 2)])
    )
    wanted = _wanted(left, finder, maybe)
    chosen = [at for at, pair in enumerate(map(tuple, numbers[pairs_P2].tolist())) if pair in wanted]
    same = compare_all(
        images, images, pairs_P2[chosen], settings, work / "compared", plan=plan, engine=engine
    )
    for at, measures in same.items():
        a, b = numbers[pairs_P2[chosen[at]]].tolist()
        near[a][b] = near[b][a] = f"cosine {cosines_P[chosen[at]]:.4f}, {measures}"


def _add_near_texts(
    near: dict[int, dict[int, str]],
    rows: Sequence[Row],
    left: Sequence[int],
    finder: _Finder,
    config: DedupeConfig,
) -> None:
    sides = finder.sides
    blocks: dict[int, set[str]] = defaultdict(set)
    for row in left:
        for number in sides.numbers[row]:
            if sides.keys[number].startswith("text "):
                blocks[number].add(finder.block(row))
    texts = sorted(blocks)
    sketches = [finder.facts[sides.places[n][0]].sketches[sides.places[n][1]] for n in texts]

    @lru_cache(maxsize=512)
    def grams(number: int) -> frozenset[int]:
        row, side = sides.places[number]
        n_images = sum(key.startswith("image ") for key in finder.facts[row].sides)
        return shingles(words(texts_of(rows[row])[side - n_images]), config.words)

    for i, j in sorted(alike(sketches, [blocks[n] for n in texts], config.jaccard)):
        a, b = texts[i], texts[j]
        found = jaccard(grams(a), grams(b))
        if found >= config.jaccard:
            near[a][b] = near[b][a] = f"Jaccard {found:.2f} of {config.words}-grams"
