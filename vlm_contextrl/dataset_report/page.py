"""`pairs stats --html`: what a dataset folder holds, as one self-contained HTML file.

Counts, similarity and changed area, what was rejected and why, whether something simple gives the answer away, and a contact sheet of
rows drawn at random (seeded), domains and recipes as mixed as they come. The page needs no script and fetches nothing; texts of the
data are escaped. Style and parts are those of the training report.

Left out: pictures larger than `gallery.MAX_SIDE_PX`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_contextrl.dataset_report.cards import choose_rows, row_card, shortened
from vlm_contextrl.dataset_report.charts import count_chart, share_chart, value_chart
from vlm_contextrl.dataset_report.stats import read_rejects, reject_code, stats
from vlm_contextrl.report.chart_parts import finite, number
from vlm_contextrl.report.page import CONTENT_SECURITY_POLICY
from vlm_contextrl.report.style import CSS
from vlm_contextrl.row_schema import json_object
from vlm_contextrl.storage import read_rows

SHOWN = 24
_GROUPS = {
    "domains": "Domains",
    "recipes": "Recipes",
    "question_types": "Question types",
    "answer_types": "Answer types",
    "answers": "Answers",
    "licences": "Licences",
}
_MEASURES = {
    "changed_fraction": ("Changed area", "share of the pixels that differ"),
    "similarity": ("Similarity of context and confounder", "similarity"),
}


def dataset_page(
    path: Path, *, balance: Mapping[str, Any] | None = None, shown: int = SHOWN, seed: int = 0
) -> str:
    """The page of a dataset folder. balance: what `data_recipes.curate.balance` found. DataError as of `read_rows`."""
    found = stats(path)
    manifest, rows = read_rows(path)
    groups: list[tuple[str, str]] = []
    values: dict[str, list[float]] = {name: [] for name in _MEASURES}
    for index, record in enumerate(rows.records(["domain", "recipe", "provenance"])):
        groups.append((record["domain"], record["recipe"]))
        provenance = json_object(record["provenance"], f"{path}: row {index}: provenance")
        for name, of_rows in values.items():
            if (value := finite(provenance.get(name))) is not None:
                of_rows.append(value)
    title = escape(Path(path).resolve().name)
    cards = "".join(row_card(rows[index]) for index in choose_rows(groups, shown, seed))
    sections = [
        _headline(found, balance),
        _counts(found),
        _measures(values, found["kind"]),
        _balance(balance),
        _rejects(path, found),
        _contact_sheet(cards, found) if cards else "",
        _making(found, manifest.recipe, manifest.config),
    ]
    body = "\n".join(section for section in sections if section)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{CSS}</style></head>
<body><main><header><h1>{title}</h1><p class="lead">{escape(_lead(found, manifest.recipe))}</p></header>
{body}
<footer>Made by vlm_contextrl. This file is complete in itself.</footer></main></body></html>
"""


# ---------------------------------------------------------------- figures


def _lead(found: Mapping[str, Any], recipe: str) -> str:
    rejects = f", {found['rejects']:,} candidates rejected" if found["rejects"] else ""
    return f"{found['rows']:,} {found['kind']}{rejects}; made by the recipe {recipe}."


def _headline(found: Mapping[str, Any], balance: Mapping[str, Any] | None) -> str:
    candidates = found["rows"] + found["rejects"]
    frequent = next(iter(found["answers"].items()), ("", 0))
    licences = [name or "(none)" for name in found["licences"]]
    cards = [
        (
            found["kind"].capitalize(),
            f"{found['rows']:,}",
            f"{number(100 * found['rows'] / candidates, 1)}% of rows and rejects",
        ),
        (
            "Distinct answers",
            f"{found['distinct_answers']:,}",
            f"most frequent: {frequent[0]}, {number(100 * frequent[1] / found['rows'], 1)}%",
        ),
    ]
    if balance is None:
        cards.append(("Licences", str(len(licences)), ", ".join(licences[:4])))
    else:
        findings = balance.get("unbalanced") or []
        said = (
            "; ".join(finding["name"] for finding in findings)
            or "nothing simple tells context from confounder"
        )
        cards.append(("Unbalanced", str(len(findings)), said))
    drawn = "".join(
        f'<div class="card"><h3>{escape(name)}</h3><p class="big">{escape(value)}</p><p class="note">{escape(shortened(note))}</p></div>'
        for name, value, note in cards
    )
    return f'<section class="grid headline" aria-label="Overview">{drawn}</section>'


def _counts(found: Mapping[str, Any]) -> str:
    """Charts of what differs between rows; what all rows share is said in a sentence."""
    charts: list[tuple[int, str]] = []
    same = []
    for key, caption in _GROUPS.items():
        counts = {name: n for name, n in found[key].items() if name or key != "question_types"}
        if len(counts) > 1:
            charts.append((len(counts), count_chart(key, caption, counts, found["rows"])))
        elif found["rows"] in counts.values():
            same.append(
                f"{caption.lower().removesuffix('s')} <strong>{escape(next(iter(counts)) or '(none)')}</strong>"
            )
    sentence = f'<p class="note">All rows have {", ".join(same)}.</p>' if same else ""
    tallest_first = [chart for _, chart in sorted(charts, key=lambda entry: -entry[0])]
    return f"<section><h2>What is in it</h2>{sentence}{_grid(tallest_first)}</section>"


def _measures(values: Mapping[str, Sequence[float]], kind: str) -> str:
    charts = [
        value_chart(name, caption, values[name], x_label=x_label, y_label=kind)
        for name, (caption, x_label) in _MEASURES.items()
        if values[name]
    ]
    return f"<section><h2>How alike the two sides are</h2>{_grid(charts)}</section>" if charts else ""


def _grid(charts: Sequence[str]) -> str:
    """Charts beside each other; a lonely one is no wider than the others."""
    return (
        f'<div class="grid charts">{"".join(charts)}{"<div></div>" if len(charts) == 1 else ""}</div>'
        if charts
        else ""
    )


def _balance(balance: Mapping[str, Any] | None) -> str:
    if balance is None:
        return ""
    wrong = [finding["name"] for finding in balance.get("unbalanced") or []]
    charts = []
    if cues := balance.get("cues"):
        charts.append(share_chart("cues", "The context is the larger one in", cues, wrong))
    if edited := balance.get("edited"):
        names = {
            "edited": edited,
            **{f"edited in {name}": found for name, found in (edited.get("domains") or {}).items()},
        }
        charts.append(share_chart("edited", "The context is the edited side in", names, wrong))
    said = ""
    if prior := balance.get("answers"):
        share = number(100 * prior["majority_share"], 1)
        said = (
            f'<p class="prose">Always giving the most frequent answer to a query is right in <strong>{share}%</strong> of '
            f"{prior['n']:,} rows ({prior['templates']:,} wordings of queries that are frequent enough to tell).</p>"
        )
    items = ""
    for finding in balance.get("unbalanced") or []:
        ids = escape(
            ", ".join(map(str, finding["ids"])) + (", ..." if finding["ids_n"] > len(finding["ids"]) else "")
        )
        summary = f"<summary>{finding['ids_n']:,} pairs</summary>"
        named = f'<details>{summary}<pre style="white-space:pre-wrap" tabindex="0">{ids}</pre></details>'
        items += f"<li><strong>{escape(finding['text'])}</strong>{named}</li>"
    findings = f'<ul class="outcomes">{items}</ul>' if items else ""
    grid = _grid(charts)
    return (
        f"<section><h2>What gives the answer away</h2>{said}{findings}{grid}</section>"
        if said or grid
        else ""
    )


def _rejects(path: Path, found: Mapping[str, Any]) -> str:
    if not found["rejects"]:
        return ""
    examples: dict[str, tuple[str, str]] = {}
    for row_id, reason in read_rejects(path):
        examples.setdefault(reject_code(reason), (row_id, reason))
    chart = count_chart("rejected", "Rejected, by reason", found["rejected"], found["rejects"], "wrong")
    rows = ""
    for code, (row_id, reason) in examples.items():
        detail = shortened(reason.removeprefix(code).removeprefix(": "), 300)
        said = f"<strong>{escape(shortened(row_id))}</strong> {escape(detail)}"
        rows += f'<tr><th scope="row">{escape(code)}</th><td>{said}</td></tr>'
    table = f'<div class="card scroll"><h3>The first of each</h3><table class="facts"><tbody>{rows}</tbody></table></div>'
    return f"<section><h2>What was rejected</h2>{_grid([chart, table])}</section>"


# ---------------------------------------------------------------- contact sheet


def _contact_sheet(cards: str, found: Mapping[str, Any]) -> str:
    note = "Drawn at random, domains and recipes in turn."
    toggle = ""
    if found["kind"] == "pairs":
        note += " Context on the left, confounder on the right."
    if 'class="outline"' in cards:
        toggle = (
            '<input type="checkbox" id="outlines" checked> <label for="outlines">Outline what differs</label>'
        )
    return f'<section><h2>Contact sheet</h2><p class="note">{note}</p>{toggle}<div class="grid">{cards}</div></section>'


def _making(found: Mapping[str, Any], recipe: str, config: Mapping[str, Any]) -> str:
    facts = {"recipe": recipe, "content hash": found["content_hash"], "folder": found["path"]}
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    text = escape(json.dumps(config, indent=2, ensure_ascii=False))
    return (
        f'<section><h2>How it was made</h2><div class="card scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
        f'<details><summary>Configuration</summary><pre tabindex="0">{text}</pre></details></section>'
    )
