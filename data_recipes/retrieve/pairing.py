"""Which candidates become pairs, and why a row is in none.

Greedy in rounds, the most similar candidate first: in round n no image is in more than n pairs, up to the cap, and images that are in none
yet are served before the others. Refused are equal pixels, equal answers, and the same two pictures again for the same question (two rows
may share a picture).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from vlm_contextrl.data_recipes.retrieve.candidates import Candidates
from vlm_contextrl.data_recipes.retrieve.facts import Facts, same_answer
from vlm_contextrl.data_recipes.retrieve.settings import RetrieveConfig

# Refusals of a candidate, the most telling first.
_REFUSALS = ("cap", "repeats", "identical_pixels", "same_answers")


class Match(NamedTuple):
    """Two rows that make a pair, by number, first < second."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class Choice:
    """matches: in the order of the input. refusals: of each row without a pair, the code of its most telling refused candidate."""

    matches: list[Match]
    refusals: dict[int, str]


def choose(candidates: Candidates, facts: Sequence[Facts], block_of: Sequence[int], cap: int) -> Choice:
    """The pairs. block_of: the number of each row's block."""
    similarities = np.round(
        candidates.cosines_E.astype(np.float64), 6
    )  # the last digits differ between machines
    order = np.lexsort((candidates.rows_E2[:, 1], candidates.rows_E2[:, 0], -similarities))
    edges = [
        Match(first, second, s)
        for (first, second), s in zip(
            candidates.rows_E2[order].tolist(), similarities[order].tolist(), strict=True
        )
    ]
    used: Counter[str] = Counter()
    seen: set[tuple[int, frozenset[str]]] = set()
    matches: list[Match] = []
    refused: dict[int, int] = {}
    for most, alone_first in product(range(1, cap + 1), (True, False)):
        for edge in edges:
            left, right = facts[edge.first], facts[edge.second]
            if alone_first and used[left.pixels] and used[right.pixels]:
                continue
            pictures = frozenset((left.pixels, right.pixels))
            if len(pictures) == 1:
                code = "identical_pixels"
            elif same_answer(left, right):
                code = "same_answers"
            elif (block_of[edge.first], pictures) in seen:
                code = "repeats"
            elif max(used[left.pixels], used[right.pixels]) >= most:
                code = "cap"
            else:
                used.update(pictures)
                seen.add((block_of[edge.first], pictures))
                matches.append(edge)
                continue
            if most == cap and not alone_first:
                for row in edge[:2]:
                    refused[row] = min(refused.get(row, len(_REFUSALS)), _REFUSALS.index(code))
    kept = {row for match in matches for row in match[:2]}
    return Choice(sorted(matches), {row: _REFUSALS[code] for row, code in refused.items() if row not in kept})


def explain(code: str, row: Facts, config: RetrieveConfig) -> str:
    """The reason of a row whose candidates were refused."""
    cap = config.max_pairs_per_image
    told = {
        "cap": f"its possible partners, or its own image, are in {cap} pairs already, expected a free one (max_pairs_per_image)",
        "repeats": "another row with the same picture and question is in a pair",
        "identical_pixels": f"the only images with another answer than {row.answer!r} have the same pixels, expected another image",
        "same_answers": f"all near images have an answer that says the same as {row.answer!r}, expected another",
    }
    return f"{code}: {told[code]}"
