"""Similarity retrieval: pairs of look-alike images that are asked the same and answer differently (arXiv 2606.17053, METHOD "similarity
retrieval": 6,300 pairs of 200,000 candidates by Qwen3-VL-Embedding-8B).

Rows with exactly one image are blocked by question (facts.py), their images are encoded once (features), the nearest ones with another
answer within the cosine window are found (candidates.py), and the most similar become pairs (pairing.py). A fair coin decides which of
the two is the context, and the other one's answer is kept as the confounder's, so a pair can be turned round. Every row that is in no pair
is a reject with its reason.

Left out: approximate search by default, re-ranking by a second model, and any judgement whether the two labels are right: near
duplicates with different labels are often mistakes, which `pairs verify` is there to find.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from vlm_contextrl.data_recipes.features import ImagesOf, image_features
from vlm_contextrl.data_recipes.features.faiss_search import load_faiss
from vlm_contextrl.data_recipes.features.settings import identity
from vlm_contextrl.data_recipes.inputs import Input, provenance, question_input
from vlm_contextrl.data_recipes.pipeline import Engine, nothing_kept, unreadable, work_folder, write_result
from vlm_contextrl.data_recipes.retrieve.candidates import Candidates, digest, find_candidates
from vlm_contextrl.data_recipes.retrieve.facts import Facts, blocks_of, read_facts, same_answer
from vlm_contextrl.data_recipes.retrieve.pairing import Choice, Match, choose, explain
from vlm_contextrl.data_recipes.retrieve.recall import found_of_possible
from vlm_contextrl.data_recipes.retrieve.settings import RetrieveConfig
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.storage import free_place

RECIPE = "retrieve"


def run(config: RetrieveConfig, input: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Write a dataset folder of pairs and say what came of it. A killed run goes on where it was when it is called again.

    Raises DataError when `out` is not new or empty, and when no row found a partner.
    """
    out = free_place(out)
    encoder = identity(config.encoder)  # a model that is none is told before hours are spent
    if config.index == "faiss":
        load_faiss()
    started_s = time.perf_counter()
    questions, work = question_input(input, config.licence), work_folder(out)
    resumed = work.exists()
    facts = read_facts(questions.rows, config, work / "facts", questions.content_hash, engine)
    blocks = blocks_of(facts, _asked_as(facts, config))
    hopeful = [block for block in blocks if _answers_differ([facts[row] for row in block])]
    candidates = _candidates(questions, facts, hopeful, config, encoder, work, engine)
    block_of = {row: number for number, block in enumerate(blocks) for row in block}
    choice = choose(
        candidates, facts, [block_of.get(row, -1) for row in range(len(facts))], config.max_pairs_per_image
    )
    rejects = unreadable(questions.refused) + _rejects(facts, blocks, candidates, choice, config)
    if not choice.matches:
        raise nothing_kept(out, rejects, "; widen low and high, or look at block_by")
    inputs = len(facts) + len(questions.refused)
    summary = write_result(
        _pairs(questions.rows, facts, choice.matches, config, encoder.get("weights")),
        out,
        recipe=RECIPE,
        config=config.model_dump(mode="json"),
        inputs=inputs,
        rejects=rejects,
    )
    assert (summary["rows"], summary["rejects"]) == (len(choice.matches), len(rejects))
    seconds = time.perf_counter() - started_s
    similarities = [match.similarity for match in choice.matches]
    return {
        **summary,
        "pairs": summary["rows"],
        "blocks": {
            "all": len(blocks),
            "with two answers": len(hopeful),
            "largest": max(map(len, blocks), default=0),
        },
        "candidates": len(candidates.cosines_E),
        "similarity": {
            "least": min(similarities),
            "median": statistics.median(similarities),
            "largest": max(similarities),
        },
        **found_of_possible(facts, blocks, choice.matches),
        "seconds": seconds,
        "rows_per_s": None if resumed else inputs / seconds,
    }


def _asked_as(facts: Sequence[Facts], config: RetrieveConfig) -> dict[str, str]:
    if config.paraphrase is None:
        return {}
    from vlm_contextrl.data_recipes.retrieve.paraphrases import paraphrases

    questions = list(dict.fromkeys(row.asked for row in facts if not row.reason))
    return paraphrases(questions, config.paraphrase) if questions else {}


def _answers_differ(rows: Sequence[Facts]) -> bool:
    distinct = {row.said: row for row in rows}
    return any(not same_answer(rows[0], other) for other in distinct.values())


def _candidates(
    questions: Input[QuestionRow],
    facts: Sequence[Facts],
    blocks: Sequence[Sequence[int]],
    config: RetrieveConfig,
    encoder: dict[str, Any],
    work: Path,
    engine: Engine,
) -> Candidates:
    """Features of the rows that can have a partner, then the search; candidates by row number."""
    numbers = sorted(row for block in blocks for row in block)
    place = {row: at for at, row in enumerate(numbers)}
    if not numbers:
        return Candidates(np.empty((0, 2), np.int64), np.empty(0, np.float32), {})
    plan = {"input": questions.content_hash, "encoder": encoder, "rows": digest(blocks)}
    features = work / f"features-{digest(plan)}.npy"
    if not features.exists():
        images = ImagesOf(
            questions.rows, [(row, 0) for row in numbers], [facts[row].pixels for row in numbers]
        )
        cache = config.cache or work / "features"
        vectors = image_features(images, config.encoder, cache, engine, "retrieve: images")
        unfinished = features.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.save(file, vectors)
        unfinished.rename(features)
        del vectors
    labels: dict[str, int] = {}
    found = find_candidates(
        features,
        [np.array([place[row] for row in block]) for block in blocks],
        np.array([labels.setdefault(facts[row].said, len(labels)) for row in numbers]),
        config,
        work / "search",
        plan,
        engine,
    )
    return Candidates(
        np.array(numbers)[found.rows_E2],
        found.cosines_E,
        {numbers[at]: cosine for at, cosine in found.nearest.items()},
    )


def _rejects(
    facts: Sequence[Facts],
    blocks: Sequence[Sequence[int]],
    candidates: Candidates,
    choice: Choice,
    config: RetrieveConfig,
) -> list[tuple[str, str]]:
    """(id, reason) of every row that is in no pair, in the order of the input."""
    kept = {row for match in choice.matches for row in match[:2]}
    reasons = {number: row.reason for number, row in enumerate(facts) if row.reason}
    for block in blocks:
        for row in block:
            if row in kept:
                continue
            if len(block) == 1:
                reasons[row] = "no_partner: no other row is asked the same, expected at least two"
            elif row in choice.refusals:
                reasons[row] = explain(choice.refusals[row], facts[row], config)
            elif row in candidates.nearest:
                nearest, window = candidates.nearest[row], f"{config.low:g} to {config.high:g}"
                reasons[row] = (
                    f"outside_window: the nearest image with another answer has cosine {nearest:.4f}, expected {window}"
                )
            else:
                reasons[row] = (
                    f"same_answers: the {len(block)} rows that are asked the same all answer {facts[row].answer!r}, expected two"
                )
    return [(facts[row].id, reason) for row, reason in sorted(reasons.items())]


def _pairs(
    rows: Sequence[QuestionRow],
    facts: Sequence[Facts],
    matches: Sequence[Match],
    config: RetrieveConfig,
    weights: str | None,
) -> Iterator[ContrastivePair]:
    """weights: of the encoder, by content or commit."""
    for match in matches:
        left, right = sorted((match.first, match.second), key=lambda row: facts[row].id)
        ids = [facts[left].id, facts[right].id]
        if Random(f"{config.seed}:{json.dumps(ids)}").random() < 0.5:
            left, right = right, left
        images = ImagesOf(rows, [(left, 0), (right, 0)], [facts[left].pixels, facts[right].pixels])
        yield _pair(rows[left], rows[right], images[:], facts[right], match.similarity, config, weights)


def _pair(
    context: QuestionRow,
    confounder: QuestionRow,
    images: Sequence[EncodedImage],
    other: Facts,
    similarity: float,
    config: RetrieveConfig,
    weights: str | None,
) -> ContrastivePair:
    answer = confounder.answer
    if context.answer_type == "choice":  # the same text may have another letter here
        answer = chr(ord("A") + [" ".join(option.split()) for option in context.options].index(other.answer))
    return ContrastivePair(
        id=f"{RECIPE}-{digest([context.id, confounder.id])}",
        query=context.query,
        answer=context.answer,
        context=images[0],
        confounder=images[1],
        confounder_answer=answer,
        options=context.options,
        answer_type=context.answer_type,
        domain=context.domain,
        recipe=RECIPE,
        provenance=provenance(
            context,
            confounder,
            recipe=RECIPE,
            similarity=similarity,
            encoder=config.encoder.name,
            encoder_weights=weights,
            low=config.low,
            high=config.high,
            block_by=config.block_by,
            seed=config.seed,
        ),
        verdicts={},
    )
