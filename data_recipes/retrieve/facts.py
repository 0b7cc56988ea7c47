"""What pairing must know of a row, without its pixels, and the blocks of rows that are asked the same."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from vlm_contextrl.data_recipes.pipeline import Engine, compute_parts
from vlm_contextrl.data_recipes.retrieve.settings import RetrieveConfig
from vlm_contextrl.matching import answers_equal, truth, words
from vlm_contextrl.pairs import QuestionRow

FACTS_NAME = "facts.jsonl"


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one row. asked: what must be equal within a block. answer: of a choice the option's text. said: equal for answers that plainly
    say the same (`same_answer` decides about the rest). group: the row's `pair_group`. reason: why the row cannot be paired at all, ""
    when it can."""

    id: str
    asked: str = ""
    options: tuple[str, ...] = ()
    answer_type: str = ""
    answer: str = ""
    said: str = ""
    pixels: str = ""
    group: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ReadFacts:
    """Facts of a batch of rows, into its part."""

    config: RetrieveConfig

    def __call__(self, rows: Sequence[QuestionRow], folder: Path) -> None:
        lines = [json.dumps(asdict(facts_of(row, self.config))) + "\n" for row in rows]
        (folder / FACTS_NAME).write_text("".join(lines), encoding="utf-8")


def read_facts(
    rows: Sequence[QuestionRow], config: RetrieveConfig, folder: Path, input_hash: str, engine: Engine
) -> list[Facts]:
    """Facts of all rows, in order; goes on where a killed run was."""
    shaping = config.model_dump(include={"block_by", "same_question", "options_in_any_order", "licence"})
    parts = compute_parts(
        ReadFacts(config),
        rows,
        folder,
        plan={"input": input_hash, **shaping},
        batch_size=config.batch_size,
        engine=engine,
        label="retrieve: questions",
    )
    texts = ((part / FACTS_NAME).read_text(encoding="utf-8") for part in parts.folders)
    return [_facts(json.loads(line)) for text in texts for line in text.splitlines()]


def _facts(value: dict[str, object]) -> Facts:
    texts = {name: sys.intern(text) if isinstance(text, str) else text for name, text in value.items()}
    options = texts.pop("options")
    assert isinstance(options, list)
    return Facts(options=tuple(map(sys.intern, options)), **texts)  # type: ignore[arg-type]


def facts_of(row: QuestionRow, config: RetrieveConfig) -> Facts:
    """The facts of one row."""
    if len(row.images) != 1:
        return Facts(row.id, reason=f"images: {len(row.images)}, expected exactly one")
    if row.context_text:
        return Facts(row.id, reason="context_text: the question has one, expected an image alone")
    if config.block_by == "query":
        asked = " ".join(words(row.query)) if config.same_question == "words" else " ".join(row.query.split())
    elif config.block_by in row.provenance:
        asked = json.dumps(row.provenance[config.block_by], sort_keys=True)
    else:
        return Facts(
            row.id, reason=f"no_block_key: no {config.block_by!r} in the provenance, expected one (block_by)"
        )
    options = tuple(" ".join(option.split()) for option in row.options)
    answer = options[ord(row.answer) - ord("A")] if row.answer_type == "choice" else row.answer
    return Facts(
        id=row.id,
        asked=asked,
        options=tuple(sorted(options)) if config.options_in_any_order else options,
        answer_type=row.answer_type,
        answer=answer,
        said=_said(answer, row.answer_type),
        pixels=row.images[0].pixel_hash(),
        group=str(row.provenance.get("pair_group", "")),
    )


def blocks_of(facts: Sequence[Facts], asked_as: dict[str, str]) -> list[list[int]]:
    """Row numbers of every block, in the order of the input. asked_as: what a question counts as, itself when it is not named."""
    blocks: dict[object, list[int]] = defaultdict(list)
    for number, row in enumerate(facts):
        if not row.reason:
            blocks[asked_as.get(row.asked, row.asked), row.options, row.answer_type].append(number)
    return list(blocks.values())


def _said(answer: str, answer_type: str) -> str:
    if answer_type == "boolean":
        return str(truth(answer))
    return answer if answer_type == "choice" else " ".join(words(answer)) or answer


def same_answer(left: Facts, right: Facts) -> bool:
    """Whether two rows of one block have the same answer."""
    return _same_answer(*sorted((left.answer, right.answer)), left.answer_type)


@lru_cache(maxsize=1 << 16)
def _same_answer(left: str, right: str, answer_type: str) -> bool:
    if answer_type == "choice":
        return left == right
    # Tolerances are relative to the second.
    return answers_equal(left, right, answer_type) or answers_equal(right, left, answer_type)
