"""How many of the possible pairs were found, and how many of the found join what belongs together.

Belonging together is told by the rows' `pair_group`; without any, rows of one block belong together. A row is possible when another row of
its group has another answer and other pixels; a group is possible when it has a possible row.

    recall.rows            possible rows that are in a pair / possible rows
    recall.groups          possible groups with a pair between two of their rows / possible groups
    same_group_precision   pairs of two rows with the same pair_group / pairs; none when no row has one
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from vlm_contextrl.data_recipes.retrieve.facts import Facts, same_answer
from vlm_contextrl.data_recipes.retrieve.pairing import Match


def found_of_possible(
    facts: Sequence[Facts], blocks: Sequence[Sequence[int]], matches: Sequence[Match]
) -> dict[str, Any]:
    """`possible`, `recall` and `same_group_precision`. blocks: row numbers."""
    grouped = any(row.group for row in facts)
    groups: dict[object, list[int]] = defaultdict(list)
    for block, rows in enumerate(blocks):
        for row in rows:
            if not grouped or facts[row].group:
                groups[facts[row].group or block].append(row)
    group_of = {row: group for group, rows in groups.items() for row in rows}
    possible = {group: found for group, rows in groups.items() if (found := _possible_rows(facts, rows))}
    paired = {row for match in matches for row in match[:2]}
    within = [m for m in matches if m.first in group_of and group_of[m.first] == group_of.get(m.second)]
    possible_rows = {row for rows in possible.values() for row in rows}
    hit = {group_of[match.first] for match in within}
    return {
        "possible": {"groups": len(possible), "rows": len(possible_rows)},
        "recall": {
            "groups": len(hit & possible.keys()) / len(possible) if possible else None,
            "rows": len(paired & possible_rows) / len(possible_rows) if possible_rows else None,
        },
        "same_group_precision": len(within) / len(matches) if grouped and matches else None,
    }


def _possible_rows(facts: Sequence[Facts], rows: Sequence[int]) -> list[int]:
    """Those with a partner."""
    pictures: dict[tuple[str, str], dict[str, Facts]] = defaultdict(dict)
    for row in rows:
        pictures[facts[row].answer_type, facts[row].said].setdefault(facts[row].pixels, facts[row])

    def has_partner(mine: Facts) -> bool:
        others = (found for (kind, _), found in pictures.items() if kind == mine.answer_type)
        return any(
            pixels != mine.pixels
            for found in others
            if not same_answer(mine, next(iter(found.values())))
            for pixels in found
        )

    return [row for row in rows if has_partner(facts[row])]
