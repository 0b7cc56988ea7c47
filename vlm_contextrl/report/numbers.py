"""The report's numbers before and after training: headline, table of all measures, charts per domain.

Everything here reads the demo's `report.json` (docs/results.md); what is missing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from vlm_contextrl.report.chart_parts import MISSING, finite, number
from vlm_contextrl.report.charts import bar_chart

Summary = Mapping[str, Any]


class Measure(NamedTuple):
    """How a measure is shown: its value times `scale`, then `unit`."""

    label: str
    meaning: str
    scale: float
    unit: str


MEASURES = {
    "vqa_accuracy": Measure("Question accuracy", "held-out questions answered correctly", 100, "%"),
    "selection_accuracy": Measure(
        "Selection accuracy", "the supporting image has the larger logit; both option orders count", 100, "%"
    ),
    "order_consistent_accuracy": Measure(
        "Right in both orders", "pairs right whichever image is shown first", 100, "%"
    ),
    "group_accuracy": Measure(
        "Right in both directions",
        "in both orders, also when the other image's answer is asked for",
        100,
        "%",
    ),
    "same_image_control": Measure(
        "Same-image control",
        "one image in both places: anything but 50% would be a leak of the probe",
        100,
        "%",
    ),
    "mean_margin": Measure(
        "Mean margin, logits", "how far the supporting image is ahead, mean over both option orders", 1, ""
    ),
    "position_bias": Measure(
        "Position bias, points", "how much more often than half the time the first image is chosen", 100, ""
    ),
}


def headline(summary: Summary) -> str:
    """The two results in large type, each with the interval of its gain."""
    cards = [
        _headline_card(
            "Picks the image that supports the answer", summary, "selection_accuracy", "selection_gain"
        ),
        _headline_card("Answers questions correctly", summary, "vqa_accuracy", "vqa_gain"),
    ]
    if not any(cards):
        return ""
    return f'<section class="grid headline" aria-label="Result">{"".join(cards)}</section>'


def verdict(gain: Mapping[str, Any]) -> str:
    """A paired gain in words; `better` or `worse` only when its interval does not hold zero."""
    value, low, high = (finite(gain.get(key)) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "No comparison was recorded."
    words = "better" if low > 0 else "worse" if high < 0 else "no clear change, the interval holds zero"
    points = "+" * (value > 0) + number(100 * value, 1)
    return f"{points} points (95% interval {number(100 * low, 1)} to {number(100 * high, 1)}): {words}"


def measure_table(summary: Summary) -> str:
    """All measures with intervals."""
    rows = [_row(summary, name, measure) for name, measure in MEASURES.items()]
    if not any(rows):
        return ""
    return (
        '<section><h2>All measures</h2><p class="note">On held-out pairs and questions: no image and no '
        "scene of them was trained on. Under each value its 95% interval (bootstrap over pairs or questions) "
        'and the number of pairs or questions.</p><div class="card scroll">'
        '<table class="measures"><thead><tr>'
        '<th scope="col">measure</th><th scope="col">before</th><th scope="col">after</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def domain_charts(summary: Summary) -> str:
    """Selection and question accuracy per visual domain; question accuracy with and without options."""
    per_domain: Mapping[str, Any] = summary.get("per_domain") or {}
    if not per_domain:
        return ""

    def rows(measure: str) -> list[tuple[str, Any, Any]]:
        def of(entry: Mapping[str, Any], side: str) -> Any:
            return (entry.get(side) or {}).get(measure)

        return [
            (name or "(no domain)", of(entry, "base"), of(entry, "final"))
            for name, entry in sorted(per_domain.items())
        ]

    selection = bar_chart(
        "selection-by-domain",
        "Selection accuracy by domain",
        rows("selection"),
        x_label="right choices, % (both option orders)",
        chance=0.5,
    )
    vqa = bar_chart(
        "questions-by-domain",
        "Question accuracy by domain",
        rows("vqa"),
        x_label="questions answered correctly, %",
    )
    forms = [
        (name, entry.get("base"), entry.get("final"))
        for name, entry in (summary.get("per_form") or {}).items()
    ]
    by_form = bar_chart(
        "questions-by-form",
        "Question accuracy by form",
        forms,
        x_label="questions answered correctly, %",
    )
    return (
        '<section><h2>Before and after, by visual domain and form of question</h2><p class="note">Whiskers are 95% intervals.</p>'
        f'<div class="grid charts">{selection}{vqa}{by_form if forms else ""}</div></section>'
    )


def overview_chart(summary: Summary) -> str:
    """The shares of the table as bars; empty without any."""
    rows = [
        (measure.label, entry_of(summary, "base", name), entry_of(summary, "final", name))
        for name, measure in MEASURES.items()
        if measure.unit == "%"
    ]
    if not any(before or after for _, before, after in rows):
        return ""
    return bar_chart("overview", "All shares at a glance", rows, x_label="%")


def entry_of(summary: Summary, side: str, measure: str) -> Mapping[str, Any] | None:
    """{value, n, low, high} of one side, None when it is not there."""
    found = (summary.get(side) or {}).get(measure)
    return found if isinstance(found, Mapping) and finite(found.get("value")) is not None else None


def _headline_card(title: str, summary: Summary, measure: str, gain: str) -> str:
    before, after = entry_of(summary, "base", measure), entry_of(summary, "final", measure)
    if before is None and after is None:
        return ""
    was, now = (MISSING if e is None else f"{number(100 * float(e['value']), 1)}%" for e in (before, after))
    return (
        f'<div class="card"><h3>{title}</h3><p class="big"><span class="was">{was}</span> &rarr; '
        f'<span class="now">{now}</span></p><p class="gain">{verdict(summary.get(gain) or {})}</p></div>'
    )


def _row(summary: Summary, name: str, measure: Measure) -> str:
    entries = [entry_of(summary, side, name) for side in ("base", "final")]
    if not any(entries):
        return ""
    cells = "".join(_cell(entry, measure) for entry in entries)
    return f'<tr><th scope="row">{measure.label}<small>{measure.meaning}</small></th>{cells}</tr>'


def _cell(entry: Mapping[str, Any] | None, measure: Measure) -> str:
    value, low, high = (finite((entry or {}).get(key)) for key in ("value", "low", "high"))
    if entry is None or value is None:
        return f"<td>{MISSING}</td>"
    scale, digits = measure.scale, 1 if measure.scale == 100 else 2
    below = f"<span>n = {escape(str(entry.get('n', MISSING)))}</span>"
    if low is not None and high is not None:
        below = f"<span>{number(scale * low, digits)} to {number(scale * high, digits)},</span> {below}"
    return f"<td>{number(scale * value, digits)}{measure.unit}<small>{below}</small></td>"
