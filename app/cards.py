"""What stands beside the pictures, as HTML: the question, what was said about the pair, who decided what, how far everybody is.

All text comes from datasets or visitors and is escaped here, in the one place where it becomes markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np

from vlm_contextrl.app.decisions import STATES, Decision
from vlm_contextrl.app.filters import States
from vlm_contextrl.app.review import REASONS, Bulk
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.prompts import option_lines, shown_answer

_MAX_FACT_CHARACTERS = 600
_WORDS = {"accept": "Accept", "reject": "Reject", "skip": "Skip"}
HELP = (
    ("j, \N{RIGHTWARDS ARROW} / k, \N{LEFTWARDS ARROW}", "next / previous pair"),
    ("a", "accept"),
    ("1 to 6", "reject with that reason"),
    ("r", "write a reason; Enter rejects, Esc leaves"),
    ("s", "skip"),
    ("u", "undo the last decision of this window"),
    ("b, d", "blink, difference"),
    ("/", "search"),
    ("?", "this help; Esc closes it"),
)


def question_card(pair: ContrastivePair) -> str:
    """Question, options, both answers, and a link to the pair."""
    tags = "".join(
        f"<span>{escape(tag)}</span>" for tag in (pair.domain, pair.recipe, pair.answer_type) if tag
    )
    lines = "".join(f"<br>{escape(line)}" for line in option_lines(pair.options).splitlines() if line)
    other = pair.confounder_answer
    supports = "unknown" if other is None else escape(shown_answer(other, pair.options))
    return (
        f'<article class="question"><p class="tags">{tags}<a href="?pair={quote(pair.id, safe="")}">{escape(pair.id)}</a></p>'
        f'<h2>{escape(pair.query)}{lines}</h2><dl><dt>C+ supports</dt><dd class="answer">'
        f"{escape(shown_answer(pair.answer, pair.options))}</dd><dt>C\N{MINUS SIGN} supports</dt><dd>{supports}</dd></dl></article>"
    )


def broken_card(name: str, fault: str) -> str:
    """In place of the question of a row that cannot be used."""
    return (
        f'<article class="question broken" role="note"><p class="tags"><span>broken row</span></p><h2>{escape(name)}</h2>'
        f"<p>{escape(fault)}</p></article>"
    )


def empty_card(total: int) -> str:
    """When the filter leaves nothing."""
    said = "Nothing is left under this filter." if total else "The dataset has no pairs."
    return f'<article class="question"><h2>{said}</h2><p>Take a condition back on the left, or clear the filter.</p></article>'


def texts(pair: ContrastivePair) -> str:
    """Both contexts of a pair of texts, side by side."""
    sides = (("Context C+", pair.context), ("Confounder C\N{MINUS SIGN}", pair.confounder))
    boxes = "".join(
        f'<figure><figcaption>{name}</figcaption><pre tabindex="0" role="region" aria-label="{name}">{escape(str(text))}</pre></figure>'
        for name, text in sides
    )
    return f'<div class="texts">{boxes}</div>'


def details(pair: ContrastivePair, standing: Sequence[Decision]) -> str:
    """Decisions, verdicts and provenance as tables."""
    decided = [
        (
            one.annotator,
            f"{one.decision}{': ' + one.reason if one.reason else ''}, {one.time[:16].replace('T', ' ')} UTC",
        )
        for one in standing
    ]
    parts = (
        ("Decisions", decided),
        ("Verdicts", list(_flat(pair.verdicts))),
        ("Provenance", list(_flat(pair.provenance))),
    )
    return "".join(_table(name, rows) for name, rows in parts if rows)


def progress(states: States, place: int | None, left: int) -> str:
    """How many pairs are decided, and where in the queue the visitor is."""
    counts = dict(zip(STATES, np.bincount(states, minlength=len(STATES)).tolist(), strict=True))
    total = len(states) - counts["broken"]
    decided = total - counts["undecided"]
    said = ", ".join(f"{counts[state]:,} {state}" for state in STATES[1:] if counts[state])
    where = f"pair {place:,} of {left:,} under this filter" if place else f"{left:,} under this filter"
    return (
        f'<div class="progress"><progress max="{max(1, total)}" value="{decided}" aria-label="decided"></progress>'
        f"<span><b>{decided:,}</b> of {total:,} decided{': ' + said if said else ''}; {where}</span></div>"
    )


def status(message: str, failed: bool) -> str:
    """What the last action did, for eyes and screen readers."""
    return f'<p class="{"failed" if failed else "done"}">{escape(message)}</p>' if message else ""


def bulk_words(bulk: Bulk) -> str:
    """What a confirmation would do."""
    reason = f" because: {escape(bulk.reason)}" if bulk.reason else ""
    return (
        f'<p class="bulk"><b>{_WORDS[bulk.verdict]} {len(bulk.ids):,} pairs</b>{reason}?<br>'
        f"They match: {escape(bulk.words)}. One undo takes all of it back.</p>"
    )


def reason_buttons() -> str:
    """A button per usual reason, with its digit."""
    return (
        '<div class="reasons" role="group" aria-label="Reject with a reason">'
        + "".join(
            f'<button type="button" data-reason="{number}" aria-keyshortcuts="{number}"><kbd>{number}</kbd> {reason}</button>'
            for number, reason in enumerate(REASONS, start=1)
        )
        + "</div>"
    )


def help_dialog() -> str:
    """The keys; opened by the page's script."""
    rows = "".join(
        f"<tr><th scope='row'><kbd>{escape(keys)}</kbd></th><td>{escape(what)}</td></tr>"
        for keys, what in HELP
    )
    return (
        '<dialog id="help" aria-labelledby="help-title"><h2 id="help-title">Keys</h2>'
        f"<table><tbody>{rows}</tbody></table><form method='dialog'><button>Close</button></form></dialog>"
    )


def _table(name: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows
    )
    return f"<details open><summary>{name}</summary><table><tbody>{body}</tbody></table></details>"


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}: {name}", _text(inner)) for name, inner in value.items())
        else:
            yield str(key), _text(value)


def _text(value: object) -> str:
    written = (
        f"{value:.4g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
    )
    return (
        written
        if len(written) <= _MAX_FACT_CHARACTERS
        else f"{written[:_MAX_FACT_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    )
