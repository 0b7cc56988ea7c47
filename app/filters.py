"""Which pairs of a catalogue a reviewer asked for: a frozen set of conditions, and the indices that meet all of them.

A facet's own counts leave its own condition out, so that the other values of it can still be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.app.catalogue import CATEGORIES, MEASURES, Catalogue
from vlm_contextrl.app.decisions import STATES

Mask = NDArray[np.bool_]
States = NDArray[np.int64]  # per pair the place of its state in STATES
FACETS = ("state", *CATEGORIES, *MEASURES)


@dataclass(frozen=True)
class Filter:
    """chosen: for a category (or `state`) the values to keep. ranges: for a measure low <= value < high, or <= where `high` closes
    the range. words: all of them must occur. A facet that is not named keeps everything."""

    chosen: Mapping[str, frozenset[str]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float, bool]] = field(default_factory=dict)
    words: str = ""

    def toggle(self, facet: str, value: str) -> Filter:
        """The value of a category in, or out when it was in."""
        kept = self.chosen.get(facet, frozenset()) ^ {value}
        others = {name: values for name, values in self.chosen.items() if name != facet}
        return replace(self, chosen={**others, facet: kept} if kept else others)

    def within(self, facet: str, low: float, high: float, closed: bool) -> Filter:
        """The range of a measure; none when it was this one."""
        asked = (low, high, closed)
        others = {name: found for name, found in self.ranges.items() if name != facet}
        return replace(self, ranges=others if self.ranges.get(facet) == asked else {**others, facet: asked})

    def searching(self, words: str) -> Filter:
        """The same with other words."""
        return replace(self, words=" ".join(words.split()))


def masks(catalogue: Catalogue, states: States, asked: Filter) -> dict[str, Mask]:
    """One mask per condition, by facet (`words` for the search)."""
    found: dict[str, Mask] = {}
    for facet, values in asked.chosen.items():
        names = STATES if facet == "state" else catalogue.names[facet]
        codes = states if facet == "state" else catalogue.codes[facet]
        found[facet] = np.isin(codes, [code for code, name in enumerate(names) if name in values])
    for facet, (low, high, closed) in asked.ranges.items():
        values_N = catalogue.measures[facet]
        found[facet] = (values_N >= low) & ((values_N <= high) if closed else (values_N < high))
    if asked.words:
        found["words"] = _holding(catalogue, asked.words.casefold())
    return found


def matching(catalogue: Catalogue, states: States, asked: Filter) -> NDArray[np.int64]:
    """Ascending indices of the pairs that meet every condition."""
    return np.flatnonzero(all_of(masks(catalogue, states, asked), len(catalogue)))


def all_of(conditions: Mapping[str, Mask], n: int, but: str = "") -> Mask:
    """Where every condition holds, one of them left out."""
    kept = np.ones(n, dtype=np.bool_)
    for facet, mask in conditions.items():
        if facet != but:
            kept &= mask
    return kept


@lru_cache(maxsize=32)
def _holding(catalogue: Catalogue, words: str) -> Mask:
    wanted = words.split()
    return np.array([all(word in text for word in wanted) for text in catalogue.texts], dtype=np.bool_)
