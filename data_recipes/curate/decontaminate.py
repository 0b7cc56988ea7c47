"""Rows that a benchmark holds, too: they become rejects that name the benchmark's file and row.

    benchmark_image        pixel for pixel
    near_benchmark_image   the same picture after rescaling, compression or a little cropping (near.py)
    benchmark_question     the same words, or a share `overlap` of the w-grams of the shorter question in the other one

Numbers count as words. With `same_numbers`, questions of which one holds a number that the other one lacks are two questions, as the
variants of a template are. Questions of fewer than `words_min` words ("Find x.") say too little and are not compared; how many of the
benchmark's are so short is told.

Left out: paraphrases and translations, and answers: benchmarks often come without.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vlm_contextrl.config import Record
from vlm_contextrl.data_recipes.curate.benchmarks import BenchmarkImages, Benchmarks, Place, find_benchmarks
from vlm_contextrl.data_recipes.curate.facts import Sides, all_facts
from vlm_contextrl.data_recipes.curate.near import NearSettings, candidates, compare_all
from vlm_contextrl.data_recipes.curate.near_text import numbers, shingles, words
from vlm_contextrl.data_recipes.features import ImagesOf, image_features
from vlm_contextrl.data_recipes.inputs import row_input
from vlm_contextrl.data_recipes.pipeline import Engine, compute_parts, unreadable, work_folder, write_result
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import Row
from vlm_contextrl.storage import free_place

RECIPE = "decontaminate"
HASHES_NAME = "hashes.jsonl"
IMAGES_PER_PART = 256


class DecontaminateConfig(Record):
    """Which benchmarks, and what counts as theirs."""

    against: list[Path] = Field(
        min_length=1, description="folders of benchmark images and questions; everything below them counts"
    )
    near: NearSettings = NearSettings()
    near_images: bool = Field(True, description="look for nearly equal images, too")
    questions: bool = Field(True, description="compare questions, too")
    words: int = Field(5, ge=1, description="w: words per w-gram")
    overlap: float = Field(
        0.8, gt=0, le=1, description="share of common w-grams from which on two questions are the same"
    )
    words_min: int = Field(8, ge=1, description="shorter questions are not compared")
    same_numbers: bool = Field(True, description="questions with different numbers are different ones")
    licence: str = Field("", description="licence of rows that name none")


def run(config: DecontaminateConfig, input_folder: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Writes the rows that no benchmark holds; what it found, with `found`: id and reason of every reject."""
    out = free_place(out)
    started_s = time.perf_counter()
    source = row_input(input_folder, config.licence)
    benchmarks = find_benchmarks(config.against)
    settings = config.model_dump(mode="json")
    work = work_folder(out)
    plan = {
        "recipe": RECIPE,
        "config": settings,
        "input": source.content_hash,
        "against": benchmarks.content_hash,
    }
    facts = all_facts(source.rows, config.words, work / "facts", plan=plan, engine=engine, label="hashes")
    sides = Sides(facts)
    readable, hashes, unread = _hashed(benchmarks, work / "benchmark", plan, engine)
    known = {
        f"image {value}": place for place, value in zip(reversed(readable), reversed(hashes), strict=True)
    }
    reasons: dict[int, str] = {}
    for number in sides.images:
        if (place := known.get(sides.keys[number])) is not None:
            reasons[number] = (
                f"benchmark_image: every pixel is as in {place}, expected an image that is in no benchmark"
            )
    if config.near_images:
        reasons |= _near_images(source.rows, sides, reasons, readable, config.near, work, plan, engine)
    asked = Questions(benchmarks.questions, config) if config.questions else None
    found_rows: dict[int, str] = {}
    for row, (fact, own) in enumerate(zip(facts, sides.numbers, strict=True)):
        reason = next((reasons[number] for number in own if number in reasons), "") or (
            asked.find(fact.query) if asked else ""
        )
        if reason:
            found_rows[row] = reason
    rejects = unreadable(source.refused) + [(facts[row].id, reason) for row, reason in found_rows.items()]
    kept = (row for number, row in enumerate(source.rows) if number not in found_rows)
    inputs = len(facts) + len(source.refused)
    summary = write_result(kept, out, recipe=RECIPE, config=settings, inputs=inputs, rejects=rejects)
    assert summary["kept"] == summary["rows"]
    if unread:
        print(
            f"{len(unread)} files of benchmarks not compared, first {': '.join(unread[0])}", file=sys.stderr
        )
    return {
        **summary,
        "rows_per_s": inputs / (time.perf_counter() - started_s),
        "benchmark_images": len(readable),
        "benchmark_questions": asked.compared if asked else 0,
        "benchmark_questions_too_short": asked.too_short if asked else 0,
        "benchmark_unread": len(unread),
        "unread": [{"id": where, "reason": reason} for where, reason in unread],
        "found": [{"id": row_id, "reason": reason} for row_id, reason in rejects],
    }


@dataclass(frozen=True)
class _Hash:
    def __call__(self, images: Sequence[Place], folder: Path) -> None:
        lines = []
        for place in images:
            try:
                value = {"hash": BenchmarkImages([place])[0].pixel_hash()}
            except DataError as error:
                value = {"error": str(error)}
            lines.append(json.dumps(value) + "\n")
        (folder / HASHES_NAME).write_text("".join(lines), encoding="utf-8")


def _hashed(
    benchmarks: Benchmarks, folder: Path, plan: Mapping[str, Any], engine: Engine
) -> tuple[list[Place], list[str], list[tuple[str, str]]]:
    """Readable images and their pixel hashes, and what cannot be read."""
    places = benchmarks.images
    parts = compute_parts(
        _Hash(),
        places,
        folder,
        plan=plan,
        batch_size=IMAGES_PER_PART,
        engine=engine,
        label="benchmark hashes",
    )
    lines = [
        line
        for part in parts.folders
        for line in (part / HASHES_NAME).read_text(encoding="utf-8").splitlines()
    ]
    values = [json.loads(line) for line in lines]
    unread = [
        (str(place), value["error"]) for place, value in zip(places, values, strict=True) if "error" in value
    ]
    read = [(place, value["hash"]) for place, value in zip(places, values, strict=True) if "hash" in value]
    return [place for place, _ in read], [value for _, value in read], [*benchmarks.unread, *unread]


def _near_images(
    rows: Sequence[Row], sides: Sides, exact: Mapping[int, str], readable: Sequence[Place], settings: NearSettings,
    work: Path, plan: Mapping[str, Any], engine: Engine,
) -> dict[int, str]:  # fmt: skip
    left = [number for number in sides.images if number not in exact]
    if not left or not readable:
        return {}
    own, theirs = ImagesOf(rows, [sides.places[number] for number in left]), BenchmarkImages(readable)
    own_ND = image_features(own, settings.encoder, work / "features", engine, "features")
    their_MD = image_features(
        theirs, settings.encoder, work / "benchmark_features", engine, "benchmark features"
    )
    pairs_P2, cosines_P = candidates(own_ND, their_MD, settings)
    same = compare_all(own, theirs, pairs_P2, settings, work / "compared", plan=plan, engine=engine)
    reasons: dict[int, str] = {}
    for at in sorted(same, key=lambda at: same[at].largest):
        place, measures = readable[pairs_P2[at, 1]], f"cosine {cosines_P[at]:.4f}, {same[at]}"
        reason = (
            f"near_benchmark_image: nearly as {place} ({measures}), expected an image that is in no benchmark"
        )
        reasons.setdefault(left[pairs_P2[at, 0]], reason)
    return reasons


class Questions:
    """The questions of benchmarks that are long enough to tell; compared, too_short: how many are, and are not."""

    def __init__(self, questions: Sequence[tuple[str, str]], config: DecontaminateConfig) -> None:
        self._config = config
        self._where: dict[str, str] = {}
        self.compared = self.too_short = 0
        for where, text in questions:
            asked = words(text)
            if len(asked) < config.words_min:
                self.too_short += 1
                continue
            self.compared += 1
            self._where.setdefault(" ".join(asked), where)
        self._texts = list(self._where)
        self._grams = [shingles(text.split(), config.words) for text in self._texts]
        self._numbers = [numbers(text.split()) for text in self._texts]
        self._with: dict[int, list[int]] = defaultdict(list)
        for index, grams in enumerate(self._grams):
            for gram in grams:
                self._with[gram].append(index)

    def find(self, query: str) -> str:
        """Why a query (words, joined by spaces) is a benchmark's; "" when it is not."""
        config, asked = self._config, query.split()
        if len(asked) < config.words_min:
            return ""
        if query in self._where:
            return f"benchmark_question: asks word for word as {self._where[query]}, expected a question that is in no benchmark"
        grams, own_numbers = shingles(asked, config.words), numbers(asked)
        common = Counter(index for gram in grams for index in self._with.get(gram, ()))
        shares = [
            (n / min(len(grams), len(self._grams[index])), -index)
            for index, n in common.items()
            if not config.same_numbers
            or own_numbers <= self._numbers[index]
            or self._numbers[index] <= own_numbers
        ]
        share, index = max(shares, default=(0.0, 0))
        if share < config.overlap:
            return ""
        where = self._where[self._texts[-index]]
        return f"benchmark_question: shares {share:.2f} of its {config.words}-grams with {where}, expected less than {config.overlap:g}"
