"""The facets of a catalogue as HTML: a bar per value, a histogram per measure. Every bar is a button that a filter is set with.

Buttons carry the place of their value (`data-facet`, `data-at`), never the value itself; `clicked` turns a place back into a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from vlm_contextrl.app.catalogue import CATEGORIES, MEASURES, Catalogue
from vlm_contextrl.app.decisions import STATES
from vlm_contextrl.app.filters import Filter, Mask, States, all_of, masks
from vlm_contextrl.dataset_report.charts import value_edges
from vlm_contextrl.report.chart_parts import number

LABELS = {
    "state": "Decision",
    "domain": "Domain",
    "recipe": "Recipe",
    "verdict": "Verdict",
    "score": "Verifier's score",
    "similarity": "Similarity",
    "changed_fraction": "Changed area, share of pixels",
}
MAX_VALUES = 30


def facets_html(catalogue: Catalogue, states: States, asked: Filter) -> str:
    """All facets. Counts are of the pairs that meet the other conditions."""
    conditions = masks(catalogue, states, asked)
    parts = []
    for facet in ("state", *CATEGORIES):
        kept = all_of(conditions, len(catalogue), but=facet)
        parts.append(_values(facet, _names(catalogue, facet), _codes(catalogue, states, facet), kept, asked))
    for measure in MEASURES:
        parts.append(_histogram(catalogue, measure, all_of(conditions, len(catalogue), but=measure), asked))
    return f'<div class="facets">{"".join(parts)}</div>'


def clicked(catalogue: Catalogue, asked: Filter, facet: object, at: object) -> Filter:
    """The filter after a click on the bar at a place; unchanged when there is no such bar (it comes from a browser)."""
    if not isinstance(facet, str) or not isinstance(at, int) or isinstance(at, bool):
        return asked
    if facet in MEASURES:
        edges = _edges(catalogue, facet)
        if 0 <= at < len(edges) - 1:
            return asked.within(facet, edges[at], edges[at + 1], at == len(edges) - 2)
    elif facet in LABELS and 0 <= at < len(names := _names(catalogue, facet)):
        return asked.toggle(facet, names[at])
    return asked


def filter_words(asked: Filter) -> str:
    """The conditions in words; empty without any."""
    said = [
        f"{LABELS[facet]}: {' or '.join(sorted(values))}" for facet, values in sorted(asked.chosen.items())
    ]
    said += [
        f"{LABELS[facet]}: {number(low, 3)} to {number(high, 3)}"
        for facet, (low, high, _) in sorted(asked.ranges.items())
    ]
    return "; ".join([*said, *([f"words: {asked.words}"] if asked.words else [])])


def _names(catalogue: Catalogue, facet: str) -> Sequence[str]:
    return STATES if facet == "state" else catalogue.names[facet]


def _codes(catalogue: Catalogue, states: States, facet: str) -> States:
    return states if facet == "state" else catalogue.codes[facet]


def _edges(catalogue: Catalogue, measure: str) -> list[float]:
    """Edges over all pairs, so that bars stay where they are while other conditions change; none without a value."""
    values = catalogue.measures[measure]
    known = values[~np.isnan(values)]
    return value_edges(float(known.min()), float(known.max())) if len(known) else []


def _values(facet: str, names: Sequence[str], codes: States, kept: Mask, asked: Filter) -> str:
    counts = np.bincount(codes[kept], minlength=len(names))
    pressed = asked.chosen.get(facet, frozenset())
    present = [at for at, name in enumerate(names) if (codes == at).any() or name in pressed]
    if len(present) < 2 and not pressed:
        return ""
    most = max(1, int(counts.max()))
    shown = present[:MAX_VALUES]
    bars = "".join(
        f'<button type="button" class="bar" data-facet="{facet}" data-at="{at}" aria-pressed="{_bool(names[at] in pressed)}">'
        f'<span class="fill" style="width:{100 * counts[at] / most:.1f}%"></span>'
        f'<span class="name">{escape(names[at])}</span><span class="n">{counts[at]:,}</span></button>'
        for at in shown
    )
    rest = (
        f'<p class="more">{len(present) - len(shown)} more: search for them</p>'
        if len(present) > len(shown)
        else ""
    )
    return _group(facet, bars + rest)


def _histogram(catalogue: Catalogue, measure: str, kept: Mask, asked: Filter) -> str:
    edges = _edges(catalogue, measure)
    if not edges:
        return ""
    values = catalogue.measures[measure]
    counts, _ = np.histogram(values[kept & ~np.isnan(values)], edges)
    pressed = asked.ranges.get(measure)
    most = max(1, int(counts.max()))
    bins = []
    for at, n in enumerate(counts):
        is_pressed = pressed is not None and pressed[:2] == (edges[at], edges[at + 1])
        if n == 0 and not is_pressed:
            bins.append('<span class="bin"></span>')
            continue
        words = f"{number(edges[at], 3)} to {number(edges[at + 1], 3)}: {n:,} pairs"
        bins.append(
            f'<button type="button" class="bin" data-facet="{measure}" data-at="{at}" aria-pressed="{_bool(is_pressed)}" '
            f'aria-label="{words}" title="{words}"><span class="fill" style="height:{max(4, 100 * n / most):.1f}%"></span></button>'
        )
    ends = f'<span class="ends"><span>{number(edges[0], 2)}</span><span>{number(edges[-1], 2)}</span></span>'
    return _group(measure, f'<div class="bins">{"".join(bins)}</div>{ends}')


def _group(facet: str, content: str) -> str:
    return f'<div role="group" class="facet" aria-label="{LABELS[facet]}"><h2>{LABELS[facet]}</h2>{content}</div>'


def _bool(value: bool) -> str:
    return "true" if value else "false"
