"""Which rows of a dataset to show, and their cards for the page."""

from __future__ import annotations

import base64
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from vlm_contextrl.images import encode_png
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.prompts import shown_answer
from vlm_contextrl.report.gallery import MAX_SIDE_PX, pictures, question_lines


def choose_rows(groups: Sequence[tuple[str, str]], n: int, seed: int) -> list[int]:
    """n row indices at random, from each domain in turn, and there from each recipe in turn: so rare ones are seen as well.

    groups: (domain, recipe) of every row.
    """
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (domain, recipe) in enumerate(groups):
        members[domain][recipe].append(index)
    rng = random.Random(f"contact sheet:{seed}")
    for of_domain in members.values():
        for indices in of_domain.values():
            rng.shuffle(indices)
    return _in_turn([_in_turn(list(of_domain.values())) for of_domain in members.values()])[:n]


def _in_turn(lists: Sequence[Sequence[int]]) -> list[int]:
    """The first of each list, the second of each, and so on."""
    return [index for turn in zip_longest(*lists) for index in turn if index is not None]


def row_card(row: Row) -> str:
    """Question, answer and pictures or texts of a row, its verdicts and its provenance."""
    answer = shown_answer(row.answer, row.options)
    tags = "".join(f"<span>{escape(tag)}</span>" for tag in (row.domain, row.recipe, row.answer_type) if tag)
    if isinstance(row, ContrastivePair):
        other = row.confounder_answer
        said = "does not support it" if other is None else f"supports {shown_answer(other, row.options)}"
        body = pictures(row, (f"supports {answer}", said))
    else:
        body = _question_body(row)
    return (
        f'<article class="card"><p class="tags">{tags}</p>{question_lines(row.query, row.options)}'
        f'<p class="answer">Answer: <strong>{escape(answer)}</strong></p>{body}'
        f"{_facts('Verdicts', row.verdicts, is_open=True)}{_facts(f'Provenance of {row.id}', row.provenance)}</article>"
    )


def _question_body(row: QuestionRow) -> str:
    sides = "".join(
        f'<div class="side">{_picture(image, f"picture {n}")}</div>'
        for n, image in enumerate(row.images, start=1)
    )
    text = f'<pre tabindex="0">{escape(row.context_text)}</pre>' if row.context_text else ""
    return (f'<div class="sides">{sides}</div>' if sides else "") + text


def _picture(image: EncodedImage, alt: str) -> str:
    small = image.decode()
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    data = base64.b64encode(encode_png(small)).decode("ascii")
    size = f'width="{small.width}" height="{small.height}"'
    return f'<span class="picture"><img src="data:image/png;base64,{data}" {size} alt="{escape(alt, quote=True)}"></span>'


def _facts(name: str, facts: Mapping[str, Any], *, is_open: bool = False) -> str:
    if not facts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(shortened(_as_text(value), 300))}</td></tr>'
        for key, value in _flat(facts)
    )
    table = f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
    return f"<details{' open' if is_open else ''}><summary>{escape(name)}</summary>{table}</details>"


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is inside an object under the names of both."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}: {name}", inner) for name, inner in value.items())
        else:
            yield str(key), value


def _as_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shortened(text: str, limit: int = 120) -> str:
    """The text, cut with an ellipsis when it is longer."""
    return text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
