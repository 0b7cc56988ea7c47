"""The four filters of arXiv 2606.17053 over all trajectories: same repository and commit -> same file -> same function -> related issues.

Trajectories are compared within blocks of one repository (and commit), so what is held is one block's candidates. Two trajectories of
one task are never candidates: they have the same issue. A fifth filter keeps labels clear: the two patches share few lines. What passes
is ranked by the likeness of the issues, and taken from the top: each two issues once, each trajectory in a set number of pairs.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

from vlm_contextrl.data_recipes.trajectories.facts import Facts
from vlm_contextrl.data_recipes.trajectories.issues import Similarity
from vlm_contextrl.data_recipes.trajectories.patches import MODULE
from vlm_contextrl.data_recipes.trajectories.settings import TrajectoriesConfig


@dataclass(frozen=True)
class Planned:
    """A pair to be made. first, second: positions of its trajectories; files and functions: what both edit."""

    first: int
    second: int
    files: tuple[str, ...]
    functions: tuple[str, ...]
    similarity: float


@dataclass
class Stage:
    """What is left after a filter: trajectories that are in a candidate pair, and these pairs; applied: or only counted."""

    name: str
    trajectories: int = 0
    pairs: int = 0
    applied: bool = True


@dataclass
class Plan:
    """pairs: chosen. reasons: why each other trajectory is in none. stages: what each filter left."""

    pairs: list[Planned] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)


def plan_pairs(facts: Sequence[Facts], similarity: Similarity, config: TrajectoriesConfig) -> Plan:
    """Choose pairs among usable trajectories (those without `refused`)."""
    code_filters = [
        "same repository and commit" if config.match == "commit" else "same repository",
        "same file",
        "same function",
    ]
    applied = 1 + ["repository", "file", "function"].index(config.same)
    plan = Plan(stages=[Stage(name, applied=at < applied) for at, name in enumerate(code_filters)])
    plan.stages += [Stage(name) for name in ("related issues", "different patches", "chosen")]
    blocks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, fact in enumerate(facts):
        if not fact.refused:
            blocks[fact.repository, fact.commit if config.match == "commit" else ""].append(position)
    candidates: list[Planned] = []
    for _, block in sorted(blocks.items()):
        candidates += _candidates(block, facts, similarity, config, plan)
    _choose(candidates, facts, config, plan)
    return plan


def _candidates(
    block: Sequence[int],
    facts: Sequence[Facts],
    similarity: Similarity,
    config: TrajectoriesConfig,
    plan: Plan,
) -> list[Planned]:
    """Candidates of one block; counts what each filter leaves, and notes the filter that a trajectory did not pass."""
    first_stage, file_stage, function_stage, issue_stage, patch_stage = plan.stages[:5]
    tasks = Counter(facts[i].instance for i in block)
    place = " at ".join(
        filter(None, (facts[block[0]].repository, facts[block[0]].commit if config.match == "commit" else ""))
    )
    if len(tasks) == 1:
        code = "no_same_commit" if config.match == "commit" else "no_same_repository"
        plan.reasons.update(dict.fromkeys(block, f"{code}: no trajectory with another issue in {place}"))
        return []
    first_stage.trajectories += len(block)
    first_stage.pairs += (len(block) ** 2 - sum(n * n for n in tasks.values())) // 2
    plan.reasons.update(
        dict.fromkeys(block, f"no_same_file: no other issue's patch in {place} edits one of its files")
    )

    same_file = _sharing(block, facts, lambda fact: fact.edits)
    _count(file_stage, same_file)
    _note(plan, same_file, "no_same_function: no other issue's patch edits one of its functions")
    same_function = {pair for pair in same_file if shared_functions(facts[pair[0]], facts[pair[1]])}
    _count(function_stage, same_function)
    close = {"repository": None, "file": same_file, "function": same_function}[config.same]
    pairs = sorted(close) if close is not None else list(_different(block, facts))

    low, high = config.min_issue_similarity, config.max_issue_similarity
    expected = f"expected {low:g} to {high:g}"
    likeness = cache(similarity)  # runs of the same two tasks ask again
    related = [(pair, likeness(facts[pair[0]].instance, facts[pair[1]].instance)) for pair in pairs]
    _note(plan, pairs, f"unrelated_issues: no candidate's issue is as alike as asked, {expected}")
    related = [(pair, alike) for pair, alike in related if low <= alike <= high]
    _count(issue_stage, [pair for pair, _ in related])
    _note(
        plan,
        [pair for pair, _ in related],
        f"same_patch: shares over {config.max_patch_overlap:g} of the lines with each candidate",
    )
    clear = [
        (pair, alike)
        for pair, alike in related
        if patch_overlap(facts[pair[0]], facts[pair[1]]) <= config.max_patch_overlap
    ]
    _count(patch_stage, [pair for pair, _ in clear])
    _note(plan, [pair for pair, _ in clear], "not_chosen: its candidates were taken by other pairs")
    return [
        Planned(i, j, _shared_files(facts[i], facts[j]), tuple(shared_functions(facts[i], facts[j])), alike)
        for (i, j), alike in clear
    ]


def _choose(
    candidates: Sequence[Planned], facts: Sequence[Facts], config: TrajectoriesConfig, plan: Plan
) -> None:
    def rank(pair: Planned) -> tuple[float, float]:
        tie = random.Random(f"{config.seed}:{facts[pair.first].id}:{facts[pair.second].id}").random()
        return -round(pair.similarity, 9), tie

    used: Counter[int] = Counter()
    joined: set[frozenset[str]] = set()
    for pair in sorted(candidates, key=rank):
        tasks = frozenset((facts[pair.first].instance, facts[pair.second].instance))
        if tasks in joined or max(used[pair.first], used[pair.second]) >= config.pairs_per_trajectory:
            continue
        joined.add(tasks)
        used.update((pair.first, pair.second))
        plan.pairs.append(pair)
    plan.pairs.sort(key=lambda pair: (pair.first, pair.second))  # neighbours on disk are read together
    _count(plan.stages[5], [(pair.first, pair.second) for pair in plan.pairs])
    for position in used:
        plan.reasons.pop(position, None)


def _sharing(
    block: Sequence[int], facts: Sequence[Facts], keys: Callable[[Facts], Iterable[str]]
) -> set[tuple[int, int]]:
    by_key: dict[str, list[int]] = defaultdict(list)
    for position in block:
        for key in keys(facts[position]):
            by_key[key].append(position)
    return {pair for members in by_key.values() for pair in _different(members, facts)}


def _different(members: Sequence[int], facts: Sequence[Facts]) -> Iterable[tuple[int, int]]:
    """Pairs of two tasks, each in the order of the input."""
    return (pair for pair in combinations(members, 2) if facts[pair[0]].instance != facts[pair[1]].instance)


def _shared_files(first: Facts, second: Facts) -> tuple[str, ...]:
    return tuple(sorted(first.edits.keys() & second.edits.keys()))


def shared_functions(first: Facts, second: Facts) -> list[str]:
    """`file:function` of what both edit. A name from a hunk (no class before it) is the same as any dotted name that ends in it."""
    shared = []
    for path in _shared_files(first, second):
        for name in first.edits[path]:
            same = [
                other
                for other in second.edits[path]
                if name == other or name.endswith(f".{other}") or other.endswith(f".{name}")
            ]
            if same and name != MODULE:
                shared.append(f"{path}:{max([name, *same], key=len)}")
    return sorted(set(shared))


def patch_overlap(first: Facts, second: Facts) -> float:
    """Shared changed lines over all changed lines (Jaccard)."""
    a, b = set(first.lines), set(second.lines)
    return len(a & b) / max(len(a | b), 1)


def _count(stage: Stage, pairs: Iterable[tuple[int, int]]) -> None:
    pairs = list(pairs)
    stage.pairs += len(pairs)
    stage.trajectories += len({position for pair in pairs for position in pair})


def _note(plan: Plan, pairs: Iterable[tuple[int, int]], reason: str) -> None:
    """The reason why trajectories that came this far would go no further."""
    for pair in pairs:
        plan.reasons[pair[0]] = plan.reasons[pair[1]] = reason
