"""The report page of a study: one self-contained HTML string, no script, nothing fetched. Pure: reads and writes no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vlm_contextrl.report.chart_parts import number_table
from vlm_contextrl.report.page import CONTENT_SECURITY_POLICY, PAPER
from vlm_contextrl.report.style import CSS
from vlm_contextrl.study.charts import Spot, arm_css, cost_chart, curve_chart, difference_chart, scatter
from vlm_contextrl.study.curves import Curves
from vlm_contextrl.study.data import LEFT_OUT
from vlm_contextrl.study.results import HEADLINE
from vlm_contextrl.study.seed_intervals import over_seeds
from vlm_contextrl.study.tables import (
    LABELS,
    Result,
    accuracy_rows,
    cost_headers,
    cost_words,
    difference_rows,
)

PLACES = {
    "vqa_accuracy": "Questions against selection, held out",
    "left_out_domain_accuracy": "Questions on the left-out domain against selection",
}


def study_page(result: Result, curves: Sequence[Curves], facts: Mapping[str, str]) -> str:
    """The whole page. facts: what was run, where, how long."""
    title = escape(f"Study: {result['name']}")
    sections = [
        _lead(result),
        _result(result),
        _scatter(result),
        _differences(result),
        _curves(result, curves),
        _costs(result),
        _details(result, facts),
    ]
    body = "\n".join(sections)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{CSS}{arm_css()}</style></head>
<body><main><header><h1>{title}</h1></header>
{body}
<footer>Method: {PAPER}. Made by vlm_contextrl. This file is complete in itself.</footer></main></body></html>
"""


def _lead(result: Result) -> str:
    budget = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in result["budget"].items())
    n_seeds, arms = len(result["seeds"]), len(result["arms"])
    failed = "".join(
        f'<p class="bad">{escape(name)} failed: {escape(reason)}</p>'
        for name, reason in result["failed"].items()
    )
    return (
        f'<p class="lead">{arms} arms, {n_seeds} {"seed" if n_seeds == 1 else "seeds"} each, on the same data from the same model, with '
        f"the same budget: {budget}. An interval is a 95% t interval over seeds: where another seed would end, on these questions and "
        f"pairs. Of the model before training it is over questions or pairs.</p>{failed}"
    )


def _result(result: Result) -> str:
    table = number_table(("%", *LABELS.values()), accuracy_rows(result))
    return f'<section><h2>Result</h2><div class="card">{table}</div></section>'


def _order(result: Result) -> list[str]:
    return list(result["arms"])


def _differences(result: Result) -> str:
    order, key = _order(result), f"minus_{result['baseline']}"
    minus = {arm: found[key] for arm, found in result["arms"].items() if arm != result["baseline"]}
    asked = {LABELS[name]: {arm: found[name] for arm, found in minus.items()} for name in HEADLINE}
    asked["Selection, left-out domain"] = {
        arm: found["measures"].get(LEFT_OUT, {}).get("selection_accuracy", over_seeds({}))
        for arm, found in minus.items()
    }
    charts = [
        difference_chart(
            f"minus-{number}",
            f"{label}: minus {result['baseline']}",
            [(order.index(arm), arm, entry) for arm, entry in entries.items()],
            x_label="points",
        )
        for number, (label, entries) in enumerate(asked.items())
    ]
    table = number_table(("points", *LABELS.values()), difference_rows(result))
    return (
        f'<section><h2>Minus {escape(result["baseline"])}</h2><p class="note">Paired by seed, which decides the order of the data and the '
        f'random numbers of sampling.</p><div class="grid charts">{"".join(charts)}</div><div class="card">{table}</div></section>'
    )


def _scatter(result: Result) -> str:
    drawn = []
    for measure, caption in PLACES.items():
        spots = [
            Spot(
                arm,
                found["selection_accuracy"],
                found[measure],
                [
                    (seed["selection_accuracy"], seed[measure])
                    for seed in found["per_seed"].values()
                    if "selection_accuracy" in seed and measure in seed
                ],
            )
            for arm, found in result["arms"].items()
        ]
        before = result["untrained"]
        start = Spot("before training", before["selection_accuracy"], before[measure]) if before else None
        drawn.append(
            scatter(
                f"against-{measure}",
                caption,
                spots,
                start,
                x_label="selection accuracy, %",
                y_label="question accuracy, %",
            )
        )
    return (
        '<section><h2>Selecting and answering</h2><p class="note">As figure 5 of the paper: does an arm that learns to select answer '
        f'better, too?</p><div class="grid charts">{"".join(drawn)}</div></section>'
    )


def _curves(result: Result, curves: Sequence[Curves]) -> str:
    order = _order(result)
    drawn = "".join(
        curve_chart(
            f"curve-{i}", each, order, {"chance": 0.5} if each.caption.startswith("Selection,") else {}
        )
        for i, each in enumerate(curves)
    )
    note = (
        "Evaluations while training look at the first rows of the measured sets only. An arm whose rollouts hold selection prompts is "
        "rewarded for those, too, so rewards compare only between arms that sample the same prompts. A stage before the rollouts lies "
        "left of 0."
    )
    return f'<section><h2>Training, step by step</h2><p class="note">{note}</p><div class="grid charts">{drawn}</div></section>'


def _costs(result: Result) -> str:
    order, baseline = _order(result), result["baseline"]
    known = {arm: found["cost"] for arm, found in result["arms"].items() if found["cost"]}
    words = {arm: cost_words(cost) for arm, cost in known.items()}
    minutes = [
        (
            order.index(arm),
            arm,
            cost["train_s"]["value"] / 60,
            f"{words[arm][0]} min, {words[arm][1]} times {baseline}",
        )
        for arm, cost in known.items()
    ]
    tokens = [
        (order.index(arm), arm, cost["generated_tokens"]["value"] / 1000, words[arm][4])
        for arm, cost in known.items()
    ]
    charts = cost_chart("minutes", "Time of training, mean over seeds", minutes, x_label="minutes")
    charts += cost_chart("tokens", "Tokens sampled, mean over seeds", tokens, x_label="thousand tokens")
    table = number_table(cost_headers(baseline), [[arm, *cells] for arm, cells in words.items()])
    return (
        '<section><h2>Cost</h2><p class="note">Rollouts and their updates are equal by assertion; what differs is what an arm adds. '
        f'Times are of cells side by side.</p><div class="grid charts">{charts}</div><div class="card">{table}</div></section>'
    )


def _details(result: Result, facts: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    others = []
    for group in dict.fromkeys(g for found in result["arms"].values() for g in found["measures"]):
        by_arm = {arm: found["measures"].get(group, {}) for arm, found in result["arms"].items()}
        names = list(dict.fromkeys(name for measures in by_arm.values() for name in measures))
        table = number_table(
            (group.replace("_", " "), *by_arm),
            [[name, *(_value(measures.get(name)) for measures in by_arm.values())] for name in names],
        )
        others.append(
            f"<details><summary>All measures: {escape(group.replace('_', ' '))}</summary>{table}</details>"
        )
    return (
        f'<section><h2>How it was made</h2><div class="card scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
        f"{''.join(others)}</section>"
    )


def _value(entry: Mapping[str, Any] | None) -> str:
    return "" if entry is None else f"{entry['value']:.3f}"
