"""`compare --html`: runs against a baseline as one self-contained page, the samples that changed with their pictures.

Left out: changed samples beyond the number asked for (all of them are in the JSON, by part and id).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vlm_contextrl.eval.compare import Change, Comparison
from vlm_contextrl.eval.interval_chart import Line, Mark, interval_chart
from vlm_contextrl.eval.pages import (
    Cells,
    answered,
    asked,
    facts,
    heading,
    interval,
    page,
    percent,
    points,
    table,
)
from vlm_contextrl.report.chart_parts import Look, number

_LOOKS: dict[str, Look] = {"better": "after", "worse": "wrong", "within noise": "before"}
_CUT_NOTED_FROM = 0.02
Result = Mapping[str, Any]


def compare_page(comparison: Comparison) -> str:
    """The page."""
    result = comparison.result
    others = [name for name in result["runs"] if name != result["baseline"]]
    sections = [_headline(result, others), _warnings(result)]
    for number_of_run, name in enumerate(others):
        sections += [_charts(result, name, number_of_run), _table(result, name)]
    sections += [_changes(comparison, name) for name in others]
    sections += [_how_to_read(result), _settings(result)]
    title = f"{', '.join(others)} against {result['baseline']}"
    model = result["runs"][result["baseline"]]["settings"].get("model")
    counts = [
        f"{len(entries)} {kind}{'s' * (len(entries) > 1)}, {sum(entry['n'] for entry in entries.values()):,} {units}"
        for kind, units, entries in (
            ("benchmark", "samples", result["benchmarks"]),
            ("selection probe", "pairs", result["probes"]),
        )
        if entries
    ]
    lead = f"{'; '.join(counts)} that all runs have answered. Baseline: {result['baseline']} ({model})."
    return page(title, lead, sections)


def p_words(p_value: float) -> str:
    """`p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _headline(result: Result, others: Sequence[str]) -> str:
    cards = ""
    for name in others if result["average"] else ():
        found = result["average"]["against_baseline"][name]
        accuracy = result["average"]["accuracy"]
        verdicts = Counter(
            entry["against_baseline"][name]["verdict"] for entry in result["benchmarks"].values()
        )
        counted = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in _LOOKS)
        css = {"better": "good", "worse": "bad"}.get(found["verdict"], "")
        cards += (
            f'<div class="card"><h3>{escape(name)}, average of the benchmarks</h3>'
            f'<p class="big"><span class="was">{percent(accuracy[result["baseline"]])}</span> &rarr; '
            f'<span class="now">{percent(accuracy[name])}</span></p>'
            f'<p class="gain">{points(found["difference"])} points (95% interval {interval(found["difference"])}, '
            f'{p_words(found["p_value"])}): <strong class="{css}">{found["verdict"]}</strong></p></div>'
            f'<div class="card"><h3>{escape(name)}, changed samples</h3><p class="big">'
            f'<span class="now">+{found["became_right"]:,}</span> <span class="was">\N{MINUS SIGN}{found["became_wrong"]:,}</span></p>'
            f'<p class="gain">Benchmarks: {counted}</p></div>'
        )
    return f'<section class="grid headline" aria-label="Result">{cards}</section>' if cards else ""


def _warnings(result: Result) -> str:
    """What a reader must know before the numbers: settings that differ, what was left out, answers that were cut."""
    said = [
        f"{d['benchmark']}: {d['setting']} differs, "
        + ", ".join(f"{value!r} in {run}" for run, value in d["values"].items())
        for d in result["different_settings"]
    ]
    said += [f"{name} is left out: {reason}" for name, reason in result["left_out"].items()]
    for name, entry in [*result["benchmarks"].items(), *result["probes"].items()]:
        for run, keys in entry["only_in"].items():
            if keys:
                first = ", ".join("/".join(key) for key in keys[:3])
                said.append(
                    f"{name}: {len(keys):,} samples of {run} are not in all runs and not compared: {first}, ..."
                )
        for run, share in entry.get("truncated", {}).items():
            if share >= _CUT_NOTED_FROM:
                said.append(
                    f"{name}: {number(100 * share, 1)}% of the answers of {run} were cut at the length limit"
                )
    if not said:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f'<section><h2>Before you read the numbers</h2><ul class="outcomes">{items}</ul></section>'


def _rows(result: Result) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, entry) of every benchmark, of their average, of every probe."""
    benchmarks, probes = (
        [(entry["benchmark"], entry) for entry in result[kind].values()] for kind in ("benchmarks", "probes")
    )
    return [*benchmarks, *([("average", result["average"])] if result["average"] else []), *probes]


def _charts(result: Result, name: str, number_of_run: int) -> str:
    baseline = result["baseline"]
    differences, accuracies = [], []
    for title, entry in _rows(result):
        found = entry["against_baseline"][name]
        difference = found["difference"]
        text = f"{points(difference)} ({interval(difference)}), {found['verdict']}"
        value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
        band = None if found["detectable"] is None else 100 * found["detectable"]
        mark = Mark(_LOOKS[found["verdict"]], value, text, low, high)
        differences.append(
            Line(title, f"{points(difference)} \N{MIDDLE DOT} {found['verdict']}", [mark], band)
        )
        marks = []
        for run, look in ((baseline, "before"), (name, "after")):
            accuracy = entry["accuracy"][run]
            value, low, high = (100 * accuracy[key] for key in ("value", "low", "high"))
            marks.append(Mark(look, value, f"{percent(accuracy)} ({interval(accuracy)})", low, high))  # type: ignore[arg-type]
        words = " \N{RIGHTWARDS ARROW} ".join(percent(entry["accuracy"][run]) for run in (baseline, name))
        accuracies.append(Line(title, words, marks))
    charts = interval_chart(
        f"difference-{number_of_run}",
        "Difference with its 95% interval",
        differences,
        x_label="difference, points",
        looks=list(_LOOKS.items()),
        note="Shaded: true differences this small are found in fewer than 80% of comparisons.",
    ) + interval_chart(
        f"accuracy-{number_of_run}",
        "Accuracy with its 95% interval",
        accuracies,
        x_label="accuracy, %",
        x_range=(0, 100),
        looks=[(baseline, "before"), (name, "after")],
    )
    return f'<section><h2>{escape(f"{name} against {baseline}")}</h2><div class="grid charts">{charts}</div></section>'


def _table(result: Result, name: str) -> str:
    source = result["published"]
    methods = source["methods"] if source else ()
    baseline = result["baseline"]
    rows: list[Cells] = []
    for title, entry in _rows(result):
        found = entry["against_baseline"][name]
        published = entry.get("published") or {}
        rows.append(
            (
                (title, f"n = {entry['n']:,}"),
                *(
                    (percent(entry["accuracy"][run]), interval(entry["accuracy"][run]))
                    for run in (baseline, name)
                ),
                (points(found["difference"]), interval(found["difference"])),
                (found["verdict"], p_words(found["p_value"])),
                (f"+{found['became_right']:,}", f"\N{MINUS SIGN}{found['became_wrong']:,}"),
                points(found["detectable"]).removeprefix("+"),
                *(number(100 * published[m], 1) if m in published else "" for m in methods),
            )
        )
    headers = [
        "benchmark", baseline, name, "difference, points", "verdict", "became right, wrong", "detectable", *methods,
    ]  # fmt: skip
    over = (source["mark"], len(methods)) if source else None
    return f'<section aria-label="Numbers">{table(headers, rows, over=over)}</section>'


def _changes(comparison: Comparison, name: str) -> str:
    parts = ""
    for benchmark, entry in comparison.result["benchmarks"].items():
        found = entry["against_baseline"][name]
        cards = "".join(
            _card(change, comparison.result["baseline"], name)
            for change in comparison.shown.get((benchmark, name), ())
        )
        if cards:
            counts = f"{found['became_right']:,} became right, {found['became_wrong']:,} became wrong"
            is_open = "" if parts else " open"
            summary = f"<summary><strong>{escape(entry['benchmark'])}</strong>: {counts}</summary>"
            parts += f'<details{is_open}>{summary}<div class="grid">{cards}</div></details>'
    if not parts:
        return ""
    note = "Drawn at random among the samples that one run has right and the other wrong; all of them are named in the JSON."
    return f'<section><h2>{escape(f"What changed in {name}")}</h2><p class="note">{note}</p>{parts}</section>'


def _card(change: Change, baseline: str, name: str) -> str:
    tag, css = ("became right", "learned") if change.after["correct"] else ("became wrong", "lost")
    both = answered(change.before, baseline) + answered(change.after, name)
    return (
        f'<article class="card">{heading(change.key, change.before, tag, css)}{asked(change.before, change.folders)}'
        f"{both}</article>"
    )


def _how_to_read(result: Result) -> str:
    source = result["published"]
    published = (
        f"<p><strong>{source['mark']}</strong>: {escape(source['source'])}. Harness, prompts and scorer differ from these runs, so a "
        "difference to those numbers says nothing about the model alone.</p>"
        if source
        else ""
    )
    return f"""<section class="prose"><h2>How to read this</h2>
<p>Every run is compared with the baseline <strong>sample by sample</strong>. The interval is a bootstrap over samples (2,000 resamples,
for the average within each benchmark). The p value is that of the exact sign test over the samples that changed; for the average its
samples carry the weight that they have in it. <strong>better</strong> and <strong>worse</strong> need both: an interval without 0 and
p &lt; 0.05. With twelve benchmarks and no difference at all, up to 46% of comparisons
(1 &minus; 0.95<sup>12</sup>) show such a verdict somewhere by chance, so the average is the number to quote.</p>
<p><strong>detectable</strong>: the smallest true difference, in points, that this test finds with a probability of 80%, given how many
samples changed. A smaller difference is not to be read as a gain. No number here holds the spread between training seeds.</p>
{published}</section>"""


def _settings(result: Result) -> str:
    settings = {name: {"folder": run["path"], **run["settings"]} for name, run in result["runs"].items()}
    return f"<section><h2>Settings</h2>{facts(settings)}</section>"
