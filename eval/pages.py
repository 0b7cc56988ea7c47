"""What the pages of a run and of a comparison share: the frame, tables of facts, samples with pictures, numbers in words.

The pages need no script and fetch nothing; pictures are embedded, text from data is escaped. Style and parts are those of the training
report.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_contextrl.dataset_report.cards import shortened
from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.interval_chart import Mark
from vlm_contextrl.eval.run_folders import Key, Sample
from vlm_contextrl.images import image_size, read_image_file
from vlm_contextrl.prompts import shown_answer
from vlm_contextrl.report.chart_parts import MISSING, number
from vlm_contextrl.report.gallery import question_lines
from vlm_contextrl.report.page import CONTENT_SECURITY_POLICY, HATCH
from vlm_contextrl.report.style import CSS

_FOLDED_FROM = 320  # characters of a completion; of a longer one the end is shown, where the answer stands
_END_SHOWN = 160
Interval = Mapping[str, Any]  # {value, n, low, high}, shares
Cells = tuple[str | tuple[str, str], ...]  # of a row; (large, small)


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """The whole page; title and lead are plain text, sections are HTML."""
    body = "\n".join(section for section in sections if section)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{CSS}</style></head>
<body>{HATCH}<main><header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>
{body}
<footer>Made by vlm_contextrl. This file is complete in itself.</footer></main></body></html>
"""


def percent(entry: Interval | None) -> str:
    """`73.6%`."""
    return MISSING if entry is None or entry["value"] is None else f"{number(100 * entry['value'], 1)}%"


def interval(entry: Interval) -> str:
    """`70.9 to 76.2`, in percent."""
    return (
        MISSING
        if entry["value"] is None
        else f"{number(100 * entry['low'], 1)} to {number(100 * entry['high'], 1)}"
    )


def accuracy_mark(entry: Interval) -> Mark | None:
    """An accuracy in a chart of intervals, in percent; None when nothing was measured."""
    if entry["value"] is None:
        return None
    value, low, high = (100 * entry[key] for key in ("value", "low", "high"))
    return Mark("after", value, f"{percent(entry)} ({interval(entry)})", low, high)


def points(entry: Interval | float | None) -> str:
    """A difference in points with its sign."""
    value = entry["value"] if isinstance(entry, Mapping) else entry
    return MISSING if value is None else f"{'+' * (value > 0)}{number(100 * value, 1)}"


def table(
    headers: Sequence[str],
    rows: Iterable[Cells],
    css: str = "measures",
    over: tuple[str, int] | None = None,
) -> str:
    """A table of plain text. The first column names the rows. over: a name above the last n columns."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headers)
    if over:
        name, n = over
        above = (
            f'<td colspan="{len(headers) - n}"></td><th colspan="{n}" scope="colgroup">{escape(name)}</th>'
        )
        head = f"{above}</tr><tr>{head}"
    body = "".join(
        f'<tr><th scope="row">{_cell(first)}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="card scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings of one or more runs side by side; those that differ are marked."""
    names = list(dict.fromkeys(key for of_run in settings.values() for key in of_run))
    rows = []
    for key in names:
        values = [of_run.get(key) for of_run in settings.values()]
        differs = any(value != values[0] for value in values)
        rows.append((f"{key} \N{NOT EQUAL TO}" if differs else key, *(_as_text(value) for value in values)))
    return table(("", *settings), rows, "facts")


def heading(key: Key, sample: Sample, tag: str, css: str) -> str:
    """The line above a sample: what happened, where it is from."""
    part, sample_id = key
    names = [part, f"id {sample_id}", str(sample.get("category") or "")]
    tags = "".join(f"<span>{escape(shortened(name))}</span>" for name in names if name)
    return f'<p class="tags"><span class="tag {css}">{escape(tag)}</span>{tags}</p>'


def asked(sample: Sample, folders: Iterable[Path]) -> str:
    """Picture, question with options, right answer. folders: of the benchmark, the first that has the picture is taken."""
    answer = escape(shown_answer(sample["answer"], sample["options"]))
    return (
        f"{_picture(sample, folders)}{question_lines(sample['question'], sample['options'])}"
        f'<p class="answer">Answer: <strong>{answer}</strong></p>'
    )


def answered(sample: Sample, who: str) -> str:
    """What a model wrote, what was read out of it, whether that is right."""
    css, mark, word = (
        ("good", "\N{CHECK MARK}", "right") if sample["correct"] else ("bad", "\N{BALLOT X}", "wrong")
    )
    extracted = sample.get("extracted")
    read = "no answer found" if extracted is None else f"read as {shortened(str(extracted))}"
    cut = ", cut at the length limit" if sample.get("truncated") else ""
    text = sample["completion"]
    body = f'<span class="completion">{escape(text) or "(empty)"}</span>'
    if len(text) > _FOLDED_FROM:
        end = escape(text[-_END_SHOWN:])
        body = (
            f'<span class="completion">\N{HORIZONTAL ELLIPSIS}{end}</span><details><summary>all {len(text):,} characters</summary>'
            f'<pre style="white-space:pre-wrap" tabindex="0">{escape(text)}</pre></details>'
        )
    name = f"<strong>{escape(who)}:</strong> " if who else ""
    said = f'<p class="caption {css}">{name}{escape(read)}, {word} {mark}{cut}</p>'
    return f'<div class="side" style="font-size:.9rem">{said}{body}</div>'


def _picture(sample: Sample, folders: Iterable[Path]) -> str:
    name = sample.get("picture")
    if not name:
        return '<p class="note">No picture was kept.</p>'
    reason = ""
    for folder in folders:
        try:
            data = read_image_file(Path(str(name)), folder / "pictures", "picture")
            width, height = image_size(data, "picture")
        except DataError as error:
            reason = reason or str(error)
            continue
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
        size = f'width="{width}" height="{height}" style="max-width:{width}px"'
        return f'<span class="picture"><img src="{source}" {size} alt="picture of the question"></span>'
    return f'<p class="note">The picture is missing ({escape(reason)}).</p>'


def _cell(cell: tuple[str, str] | str) -> str:
    if isinstance(cell, str):
        return escape(cell)
    large, small = cell
    return f"{escape(large)}<small><span>{escape(small)}</span></small>"


def _as_text(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
