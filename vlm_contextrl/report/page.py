"""The report page: records of a run in, one self-contained HTML string out.

Pure: reads and writes no file. The page needs no script and fetches nothing (its content security policy
forbids both); pictures are embedded, charts are inline SVG (`charts`), text from data is escaped. Parts whose
records are missing say so or are left out, so that an unfinished run has a page, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from vlm_contextrl.prompts import shown_answer
from vlm_contextrl.report.chart_parts import finite
from vlm_contextrl.report.charts import Dot, Point, Series, histogram, line_chart
from vlm_contextrl.report.gallery import (
    OUTCOMES,
    Example,
    Outcome,
    Sample,
    example_card,
    pictures,
    question_lines,
    sample_card,
)
from vlm_contextrl.report.numbers import domain_charts, headline, measure_table, overview_chart
from vlm_contextrl.report.style import CSS

PAPER = "Context-Aware RL for Agentic and Multimodal LLMs, arXiv 2606.17053"
CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Diagonal lines for "before": told apart from the solid "after" without seeing colours.
HATCH = """<svg class="defs" aria-hidden="true"><defs>
<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="5" height="5" fill="var(--card)"/><rect width="2.4" height="5" fill="var(--before)"/>
</pattern></defs></svg>"""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page shows.

    summary: the demo's report.json (docs/results.md). metrics, evals: records of the run's metrics.jsonl and
    evals.jsonl. margins_*: per held-out pair the margin averaged over both option orders, in logits.
    outcomes: pairs per outcome (`gallery.OUTCOMES`). config: the resolved run configuration. facts: versions,
    hardware, times.
    """

    title: str
    lead: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    evals: Sequence[Mapping[str, Any]] = ()
    margins_before: Sequence[float] = ()
    margins_after: Sequence[float] = ()
    examples: Sequence[Example] = ()
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def render_report(data: ReportData) -> str:
    """The whole page."""
    title = escape(data.title)
    lead = f'<p class="lead">{escape(data.lead)}</p>' if data.lead else ""
    sections = [
        headline(data.summary),
        _explanation(data),
        measure_table(data.summary),
        _confidence(data),
        domain_charts(data.summary),
        _curves(data),
        _gallery(data),
        _samples(data),
        _details(data),
    ]
    body = "\n".join(section for section in sections if section)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{CSS}</style></head>
<body>{HATCH}<main><header><h1>{title}</h1>{lead}</header>
{body}
<footer>Method: {PAPER}. Made by vlm_contextrl. This file is complete in itself.</footer></main></body></html>
"""


def _explanation(data: ReportData) -> str:
    term = _selection_term(data.config)
    if term is None:
        used = "This run measures selection and does not train it"
    else:
        names = {"weight": "&lambda; =", "clip_value": "<var>c</var> =", "orders": "option orders:"}
        used = "In this run: " + ", ".join(
            f"{name} {escape(str(term.get(key)))}" for key, name in names.items()
        )
    return f"""<section class="prose"><h2>What you are seeing</h2>
<p>A vision-language model can answer fluently and still miss the one detail that decides. ContextRL trains it
on two things at once. It answers questions about pictures and is rewarded for right answers (reinforcement
learning, GRPO). And it is shown a question, an answer and two pictures that look almost the same, and learns
which of them supports the answer (context selection). Nothing is sampled for this second part: the logits of
the letters A and B are compared in one forward pass.</p></section>
{_what_is_asked(data)}
<section class="prose"><p class="formula">
<var>D</var> = logit of the supporting picture&rsquo;s letter &minus; logit of the other letter<br>
<var>L</var> = <var>L</var><sub>GRPO</sub> + &lambda; &middot; mean over pairs of
[ &minus;log &sigma;( clip( <var>D</var>, &minus;<var>c</var>, <var>c</var> ) ) ]</p>
<p><var>D</var> is the <em>margin</em>: above zero the model picks the right picture, at zero it cannot tell.
{used}. Outside &plusmn;<var>c</var> a pair has no gradient in the paper&rsquo;s form, whether it is
confidently right or confidently wrong; both are counted below.</p>
<p class="note">Source: {PAPER}. Another paper, arXiv 2602.22623, carries the same short name and is
unrelated.</p></section>"""


def _what_is_asked(data: ReportData) -> str:
    """The selection prompt with the first example's pictures, the context as A."""
    if not data.examples:
        return ""
    pair = data.examples[0].pair
    answer = escape(shown_answer(pair.answer, pair.options))
    return (
        '<section class="ask" aria-label="What the model is asked"><div class="prompt">'
        f'<p class="note">The model is asked:</p>{question_lines(pair.query, pair.options)}'
        f"<p>Answer: <strong>{answer}</strong></p>"
        "<p>Which image supports the answer? Output A or B directly.</p>"
        f'<p class="note">Here the right letter is A.</p></div>'
        f"{pictures(pair, ('Image A', 'Image B'), outlined=False)}</section>"
    )


def _confidence(data: ReportData) -> str:
    charts = overview_chart(data.summary)
    if data.margins_before or data.margins_after:
        charts += histogram(
            "margins",
            "Margins of the held-out pairs",
            data.margins_before,
            data.margins_after,
            x_label="margin, mean over both option orders, logits",
            y_label="pairs",
            clip=finite((_selection_term(data.config) or {}).get("clip_value")),
        )
    return f'<section class="grid charts" aria-label="Overview">{charts}</section>' if charts else ""


def _curves(data: ReportData) -> str:
    if not data.metrics and not data.evals:
        return '<section><h2>Training</h2><p class="note">No step was recorded.</p></section>'
    reward = [Series("reward of sampled answers, training questions", "after", _points(data, "reward_mean"))]
    if dots := _dots(data, "vqa_accuracy"):
        reward.append(Series("greedy accuracy, held-out questions", "wrong", dots=dots))
    selection = [Series("pairs trained on", "after", _points(data, "selection_accuracy"))]
    if dots := _dots(data, "selection_accuracy"):
        selection.append(Series("held-out pairs", "wrong", dots=dots))
    margin = [Series("pairs trained on", "after", _points(data, "margin"))]
    outside = [
        Series("confidently right, D > c", "right", _points(data, "outside_clip_right")),
        Series("confidently wrong, D < \N{MINUS SIGN}c", "wrong", _points(data, "outside_clip_wrong")),
    ]
    step, share = "training step", "share of pairs"
    charts = [line_chart("reward", "Reward", reward, x_label=step, y_label="reward or accuracy")]
    if any(y is not None for _, y in margin[0].points):
        even, zero = {"chance": 0.5}, {"cannot tell": 0.0}
        charts += [
            line_chart(
                "selection",
                "Selection accuracy",
                selection,
                x_label=step,
                y_label=share,
                y_range=(0, 1),
                references=even,
            ),
            line_chart("margin", "Mean margin", margin, x_label=step, y_label="logits", references=zero),
            line_chart(
                "outside", "Pairs outside the clip", outside, x_label=step, y_label=share, y_range=(0, 1)
            ),
        ]
    note = '<p class="note">Dots are measured on held-out data, with 95% intervals.</p>' if data.evals else ""
    grid = f'<div class="grid charts">{"".join(charts)}</div>'
    return f"<section><h2>Training, step by step</h2>{note}{grid}</section>"


def _points(data: ReportData, key: str) -> list[Point]:
    return [(float(m["step"]), finite(m.get(key))) for m in data.metrics if finite(m.get("step")) is not None]


def _dots(data: ReportData, key: str) -> list[Dot]:
    found = []
    for record in data.evals:
        entry = record.get(key) or {}
        step, *measured = (
            finite(v) for v in (record.get("step"), *(entry.get(k) for k in ("value", "low", "high")))
        )
        if step is not None and None not in measured:
            found.append(Dot(step, *(float(v) for v in measured if v is not None)))
    return found


def _gallery(data: ReportData) -> str:
    if not data.examples:
        return ""
    counts = "".join(
        f"<li><strong>{name}</strong>: {data.outcomes[name]} {'pair' if data.outcomes[name] == 1 else 'pairs'}, {meaning}</li>"
        for name, meaning in OUTCOMES.items()
        if name in data.outcomes
    )
    cards = "".join(example_card(example) for example in data.examples)
    toggle = "Outline what differs (the model does not see the outline)"
    return (
        '<section><h2>Pairs to look at</h2><p class="note">Drawn at random inside each outcome, failures '
        "included. Question and answer are given; the model picks the picture.</p>"
        f'<ul class="outcomes">{counts}</ul><input type="checkbox" id="outlines" checked> '
        f'<label for="outlines">{toggle}</label><div class="grid">{cards}</div></section>'
    )


def _samples(data: ReportData) -> str:
    if not data.samples:
        return ""
    cards = "".join(sample_card(sample) for sample in data.samples)
    note = "Each card is one group: several answers sampled for one question, equal ones counted."
    return (
        f'<section><h2>Answers sampled while training</h2><p class="note">{note}</p>'
        f'<div class="grid">{cards}</div></section>'
    )


def _details(data: ReportData) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in data.facts.items()
    )
    parts = (
        f'<div class="card scroll"><table class="facts"><tbody>{rows}</tbody></table></div>' if rows else ""
    )
    if data.config:
        text = escape(json.dumps(data.config, indent=2, ensure_ascii=False, default=str))
        parts += f'<details><summary>Resolved configuration</summary><pre tabindex="0">{text}</pre></details>'
    return f"<section><h2>How it was made</h2>{parts}</section>" if parts else ""


def _selection_term(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    terms = config.get("objective") or []
    return next((t for t in terms if isinstance(t, Mapping) and t.get("term") == "selection_loss"), None)
