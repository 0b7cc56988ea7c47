"""`pairs trajectories`: facts of every trajectory, the cascade over all of them, the chosen pairs, and what became of each trajectory.

Facts and pairs are computed in parts that survive a kill; between them the cascade looks at all facts at once, and decides the same
whenever and wherever it runs. A trajectory is kept when it is in a pair; every other one is a reject with the filter that it did not
pass. Memory holds the facts (not the messages) and the issue of every task.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.data_recipes.pipeline import (
    Engine,
    Parts,
    compute_parts,
    reason_counts,
    unreadable,
    work_folder,
    write_result,
)
from vlm_contextrl.data_recipes.trajectories.budget import TokenCounter
from vlm_contextrl.data_recipes.trajectories.cascade import Plan, Stage, plan_pairs
from vlm_contextrl.data_recipes.trajectories.facts import Facts, WriteFacts, read_facts
from vlm_contextrl.data_recipes.trajectories.funnel import funnel_lines, funnel_svg
from vlm_contextrl.data_recipes.trajectories.issues import encoder_similarity, tfidf_similarity
from vlm_contextrl.data_recipes.trajectories.pairing import MADE_NAME, RECIPE, Made, MakePairs, Task, pair_of
from vlm_contextrl.data_recipes.trajectories.settings import TrajectoriesConfig
from vlm_contextrl.data_recipes.trajectories.shortcuts import too_lexical
from vlm_contextrl.data_recipes.trajectories.sources import Reader, scan
from vlm_contextrl.intervals import bootstrap
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.storage import free_place

FUNNEL_NAME = "funnel.svg"
_JUDGED_AT_ONCE = 8


def run(config: TrajectoriesConfig, input: Path, out: Path, engine: Engine) -> dict[str, Any]:
    """Make the dataset `out` of the trajectories at `input` and say what came of it; DataError when no pair is left."""
    out = free_place(out)
    found = scan(Path(input), config.instances)
    read = Reader(found.root, tuple(found.descriptions))
    work = work_folder(out)
    plan = {"recipe": RECIPE, "config": config.model_dump(mode="json"), "input": found.content_hash}
    read_parts = compute_parts(
        WriteFacts(config, read), found.places, work / "facts", plan=plan, batch_size=config.batch_size, engine=engine,
        label="reading trajectories",
    )  # fmt: skip
    facts, issues = _take(read_parts)
    inputs = len(facts) + len(found.refused)
    similarity = (
        encoder_similarity(issues, config.issue_encoder) if config.issue_encoder else tfidf_similarity(issues)
    )
    chosen = plan_pairs(facts, similarity, config)
    tasks = [
        Task(
            facts[p.first].place,
            facts[p.second].place,
            p.files,
            p.functions,
            p.similarity,
            _told_by(facts[p.first], facts[p.second]),
        )
        for p in chosen.pairs
    ]
    judge = config.judge and config.judge.content
    settled = hashlib.sha256(json.dumps(tasks).encode()).hexdigest()
    made_parts = compute_parts(
        MakePairs(config, read, TokenCounter(config.tokenizer)), tasks, work / "pairs", plan={**plan, "pairs": settled, "judge": judge},
        batch_size=min(config.batch_size, _JUDGED_AT_ONCE) if config.judge else config.batch_size, engine=engine, label="making pairs",
    )  # fmt: skip
    verdicts = [_without_pair(made) for made in _made(made_parts)]
    before = [made.lexical[0] for made in verdicts if not made.reason]
    _reject_lexical(verdicts, config.max_lexical_accuracy)
    kept = [made for made in verdicts if not made.reason]

    rejects = unreadable(found.refused) + _rejects(facts, chosen, verdicts)
    usable = sum(not fact.refused for fact in facts)
    stages = [
        Stage("read", inputs),
        Stage("usable", usable),
        *chosen.stages,
        *_last_stages(chosen, verdicts, config),
    ]
    if usable:  # else the error below says it all
        print("\n".join(funnel_lines(stages)), file=sys.stderr)
    pairs = (pair for pair, made in zip(_pairs(made_parts), verdicts, strict=True) if not made.reason)
    summary = write_result(
        (pair for pair in pairs if pair),
        out,
        recipe=RECIPE,
        config=config.model_dump(mode="json"),
        inputs=inputs,
        rejects=rejects,
    )
    assert (summary["rows"], summary["rejects"]) == (len(kept), len(rejects)), (
        "pairs were checked when they were made"
    )
    (out / FUNNEL_NAME).write_text(funnel_svg(stages, summary["rejected"]), encoding="utf-8")
    seconds = read_parts.seconds + made_parts.seconds
    return {
        **summary,
        "rejected_pairs": reason_counts(("", made.reason) for made in verdicts if made.reason),
        "funnel_trajectories": {stage.name: stage.trajectories for stage in stages},
        "funnel_pairs": {stage.name: stage.pairs for stage in stages[2:]},
        "funnel": str(out / FUNNEL_NAME),
        "lexical_shortcut_accuracy": bootstrap([made.lexical[0] for made in kept]),
        "lexical_shortcut_accuracy_before": bootstrap(before),
        "length_shortcut_accuracy": bootstrap([made.longer for made in kept]),
        "mask_shortcut_accuracy": bootstrap([made.masks for made in kept]),
        "seconds": seconds,
        "reading_s": read_parts.seconds,
        "pairing_s": made_parts.seconds,
        "rows_per_s": inputs / seconds
        if seconds and not read_parts.resumed and not made_parts.resumed
        else None,
    }


def _take(parts: Parts) -> tuple[list[Facts], dict[str, str]]:
    """Facts of all trajectories, and the issue of each task, which is then kept once. The first of two with one id stays."""
    facts: list[Facts] = []
    issues: dict[str, str] = {}
    seen: dict[str, str] = {}
    for fact in read_facts(parts.folders):
        place = f"{fact.place.file}{f' line {fact.place.number}' if fact.place.start >= 0 else ''}"
        if fact.id in seen and not fact.refused.startswith("unreadable"):
            fact.refused = f"duplicate_id: {place} has the id of {seen[fact.id]}, expected unique ids"
        seen.setdefault(fact.id, place)
        if not fact.refused:
            issues.setdefault(fact.instance, fact.issue)
        fact.issue = ""
        fact.lines = array("L", fact.lines)
        facts.append(fact)
    return facts, issues


def _told_by(first: Facts, second: Facts) -> str:
    return ", ".join(dict.fromkeys((first.told_by, second.told_by)))


def _made(parts: Parts) -> Iterator[Made]:
    for folder in parts.folders:
        with (folder / MADE_NAME).open(encoding="utf-8") as lines:
            for line in lines:
                value = json.loads(line)
                yield Made(**{**value, "lexical": tuple(value["lexical"])})


def _without_pair(made: Made) -> Made:
    made.pair = None
    return made


def _pairs(parts: Parts) -> Iterator[ContrastivePair | None]:
    return (pair_of(made) if made.pair else None for made in _made(parts))


def _reject_lexical(verdicts: Sequence[Made], limit: float) -> None:
    """Gives a reason to the pairs that words alone solve most easily, until a bag of words solves at most `limit`."""
    left = [made for made in verdicts if not made.reason]
    for position in sorted(too_lexical([made.lexical for made in left], limit)):
        margin = left[position].lexical[1]
        left[
            position
        ].reason = f"lexical_shortcut: a bag of words solves it (margin {margin:.3f}); limit {limit:g} over all pairs"


def _rejects(facts: Sequence[Facts], chosen: Plan, verdicts: Sequence[Made]) -> list[tuple[str, str]]:
    """(id, reason) of trajectories in no pair: their own, the filter's, or that of their (last) pair."""
    reasons = {position: fact.refused for position, fact in enumerate(facts) if fact.refused} | chosen.reasons
    for pair, made in zip(chosen.pairs, verdicts, strict=True):
        for position in (pair.first, pair.second):
            reasons[position] = made.reason
    for pair, made in zip(chosen.pairs, verdicts, strict=True):
        if not made.reason:
            reasons[pair.first] = reasons[pair.second] = ""
    return [(fact.id, reasons[position]) for position, fact in enumerate(facts) if reasons[position]]


def _last_stages(chosen: Plan, verdicts: Sequence[Made], config: TrajectoriesConfig) -> list[Stage]:
    """Counts after masking and limits, after the judge, and after the balance of words."""
    lexical = [made.reason.startswith("lexical_shortcut") for made in verdicts]
    judged = [made.reason.startswith("judge_") for made in verdicts]
    fits = [
        not made.reason or words or by_judge
        for made, words, by_judge in zip(verdicts, lexical, judged, strict=True)
    ]
    stages = [("masked, within limits", fits)]
    if config.judge:
        stages.append(
            ("clear to the judge", [fit and not by_judge for fit, by_judge in zip(fits, judged, strict=True)])
        )
    stages.append(("kept: words do not solve it", [not made.reason for made in verdicts]))
    return [
        Stage(
            name,
            len(
                {
                    at
                    for pair, stays in zip(chosen.pairs, left, strict=True)
                    if stays
                    for at in (pair.first, pair.second)
                }
            ),
            sum(left),
        )
        for name, left in stages
    ]
