"""Example pairs and sampled completions for the report: which ones, and their HTML.

Examples are drawn at random (seeded) inside four outcomes, so that failures are shown as well as successes;
the counts of all pairs per outcome go with them. A pair counts as right when the margin is above zero in both
option orders.
"""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
from PIL import Image

from vlm_contextrl.images import encode_png
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.prompts import option_lines, shown_answer
from vlm_contextrl.report.chart_parts import number

Outcome = Literal["learned", "still wrong", "lost", "right throughout"]
Box = tuple[float, float, float, float]

OUTCOMES: dict[Outcome, str] = {
    "learned": "wrong before, right in both orders now",
    "still wrong": "wrong in at least one order, before and now",
    "lost": "right before, wrong now",
    "right throughout": "right in both orders, before and now",
}
SHOWN: dict[Outcome, int] = {"learned": 4, "still wrong": 4, "lost": 2, "right throughout": 2}
MAX_SIDE_PX = 448  # of an embedded picture


@dataclass(frozen=True)
class Example:
    """A pair with its margins (context shown as A, context shown as B), in logits."""

    pair: ContrastivePair
    before: tuple[float, float]
    after: tuple[float, float]

    @property
    def outcome(self) -> Outcome:
        return outcome(self.before, self.after)


@dataclass(frozen=True)
class Sample:
    """What a model answered while training: one prompt, G completions."""

    step: int
    query: str
    answer: str
    completions: Sequence[str]
    rewards: Sequence[float]
    options: Sequence[str] = ()
    image: EncodedImage | None = None


def outcome(before: Sequence[float], after: Sequence[float]) -> Outcome:
    """Which of the four outcomes the margins of both orders make."""
    if min(after) > 0:
        return "right throughout" if min(before) > 0 else "learned"
    return "lost" if min(before) > 0 else "still wrong"


def choose(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seed: int = 0
) -> tuple[dict[Outcome, int], list[int]]:
    """Pairs per outcome, and the indices to show: at most `SHOWN` per outcome, domains as mixed as they come.

    before, after: `per_pair` records of the probe, the same pairs in the same order.
    """
    at: dict[Outcome, list[int]] = {name: [] for name in OUTCOMES}
    for index, (first, last) in enumerate(zip(before, after, strict=True)):
        at[outcome(first["margins"], last["margins"])].append(index)
    rng = random.Random(f"gallery:{seed}")
    chosen = []
    for name, indices in at.items():
        rng.shuffle(indices)
        seen: Counter[str] = Counter()
        turn = {}
        for index in indices:
            turn[index] = seen[before[index]["domain"]]
            seen[before[index]["domain"]] += 1
        chosen += sorted(indices, key=lambda i: turn[i])[: SHOWN[name]]
    return {name: len(indices) for name, indices in at.items()}, chosen


def changed_box(first: Image.Image, second: Image.Image) -> Box | None:
    """Bounding box of the pixels that differ, as shares of width and height (left, top, right, bottom), a
    little wider; None when the sizes differ or nothing does."""
    if first.size != second.size:
        return None
    changed = (np.asarray(first.convert("RGB")) != np.asarray(second.convert("RGB"))).any(axis=-1)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if len(rows) == 0:
        return None
    return _shares((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), first.size)


def pair_box(pair: ContrastivePair, first: Image.Image, second: Image.Image) -> Box | None:
    """`changed_box` of a pair's pictures; the box that the exact checks found where there is one, which is free of an editor's noise."""
    match pair.verdicts.get("exact"):
        case {"changed_box_px": [int(), int(), int(), int()] as edges}:
            return _shares(edges, first.size)
    return changed_box(first, second)


def _shares(edges_px: Sequence[int], size: tuple[int, int]) -> Box:
    """A box in shares of width and height, a little wider."""
    width, height = size
    pad = 0.02
    left, top, right, bottom = (float(edge) for edge in edges_px)
    return (
        max(0.0, left / width - pad), max(0.0, top / height - pad),
        min(1.0, right / width + pad), min(1.0, bottom / height + pad),
    )  # fmt: skip


def pictures(pair: ContrastivePair, names: tuple[str, str], *, outlined: bool = True) -> str:
    """Context and confounder side by side, the changed region outlined; texts in scrolling boxes."""
    contexts = (pair.context, pair.confounder)
    if isinstance(pair.context, EncodedImage) and isinstance(pair.confounder, EncodedImage):
        images = [side.decode(f"pair {pair.id}") for side in (pair.context, pair.confounder)]
        box = pair_box(pair, images[0], images[1]) if outlined else None
        bodies = [_picture(image, box, name) for image, name in zip(images, names, strict=True)]
    else:
        bodies = [f'<pre tabindex="0">{escape(str(side))}</pre>' for side in contexts]
    sides = "".join(
        f'<div class="side">{body}<span class="caption">{escape(name)}</span></div>'
        for body, name in zip(bodies, names, strict=True)
    )
    return f'<div class="sides">{sides}</div>'


def question_lines(query: str, options: Sequence[str]) -> str:
    """The query and its options."""
    lines = escape(query) + "".join(f"<br>{escape(o)}" for o in option_lines(options).splitlines() if o)
    return f'<p class="query">{lines}</p>'


def example_card(example: Example) -> str:
    """One pair with the model's margins before and after, in both orders."""
    pair = example.pair
    answer = shown_answer(pair.answer, pair.options)
    other = pair.confounder_answer
    supports = "does not support it" if other is None else f"supports {shown_answer(other, pair.options)}"
    rows = "".join(
        f'<tr><th scope="row">right picture is {letter}</th>{_margin_cell(before)}{_margin_cell(after)}</tr>'
        for letter, before, after in zip("AB", example.before, example.after, strict=True)
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("margin, logits", "before", "after"))
    tag = f'<span class="tag {example.outcome.replace(" ", "-")}">{example.outcome}</span>'
    return (
        f'<article class="card"><p class="tags">{tag}<span>{escape(pair.domain)}</span></p>'
        f"{question_lines(pair.query, pair.options)}"
        f'<p class="answer">Answer: <strong>{escape(answer)}</strong></p>'
        f"{pictures(pair, (f'supports {answer}', supports))}{_edit_note(pair)}"
        f'<table class="margins"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></article>'
    )


def sample_card(sample: Sample) -> str:
    """One question with its completions, equal ones counted."""
    counted = Counter(zip(sample.completions, sample.rewards, strict=True))
    items = ""
    for (text, reward), n in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        shown = escape(text) or "(empty)"
        css = "good" if reward > 0 else "bad"
        items += f'<li class="{css}"><span class="completion">{shown}</span>'
        items += f'<span class="count">{n} &times;, reward {number(reward)}</span></li>'
    answer = escape(shown_answer(sample.answer, sample.options))
    image = ""
    if sample.image is not None:
        image = _picture(
            sample.image.decode(f"sample of step {sample.step}"), None, "picture of the question"
        )
    return (
        f'<article class="card"><p class="tags"><span>step {sample.step}</span></p>'
        f'<div class="sampled">{image}<div>{question_lines(sample.query, sample.options)}'
        f'<p class="answer">Answer: <strong>{answer}</strong></p>'
        f'<ul class="completions">{items}</ul></div></div></article>'
    )


def _edit_note(pair: ContrastivePair) -> str:
    edit, edited = (str(pair.provenance.get(key) or "") for key in ("edit", "edited"))
    side = {"context": " (left picture)", "confounder": " (right picture)"}.get(edited, "")
    return f'<p class="note">Edit{side}: {escape(edit)}</p>' if edit else ""


def _picture(image: Image.Image, box: Box | None, alt: str) -> str:
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    encoded = base64.b64encode(encode_png(small)).decode("ascii")
    outline = ""
    if box is not None:
        left, top, right, bottom = (100 * edge for edge in box)
        place = f"left:{left:.1f}%;top:{top:.1f}%;width:{right - left:.1f}%;height:{bottom - top:.1f}%"
        outline = f'<span class="outline" style="{place}"></span>'
    size = f'width="{small.width}" height="{small.height}"'
    source = f"data:image/png;base64,{encoded}"
    return (
        f'<span class="picture"><img src="{source}" {size} alt="{escape(alt, quote=True)}">{outline}</span>'
    )


def _margin_cell(margin: float) -> str:
    mark, css, word = ("\N{CHECK MARK}", "good", "right") if margin > 0 else ("\N{BALLOT X}", "bad", "wrong")
    return f'<td class="{css}">{number(margin)} <span role="img" aria-label="{word}">{mark}</span></td>'
