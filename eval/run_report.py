"""One run over all benchmarks as a self-contained page: accuracies, stock scores, categories, what failed, samples to look at.

Left out: samples beyond a few right and a few wrong ones per benchmark; all of them are in `RUN/NAME/samples.jsonl`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_contextrl.eval.interval_chart import Line, Mark, interval_chart
from vlm_contextrl.eval.other_sections import long_texts_section, probes_section
from vlm_contextrl.eval.pages import (
    Cells,
    accuracy_mark,
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
from vlm_contextrl.eval.registry import BENCHMARKS, Benchmark
from vlm_contextrl.eval.run_folders import Key, RunFolder, Sample, Samples, read_run
from vlm_contextrl.eval.scoring import equal_weights, groups, mean_of_groups
from vlm_contextrl.eval.statistics import detectable_unpaired
from vlm_contextrl.report.chart_parts import MISSING, number
from vlm_contextrl.result_files import write_text

SHOWN = 3  # samples of each kind per benchmark


def write_run_report(run: Path, out: Path) -> None:
    """Write the page of the run folder `run`. InputError when it is none, DataError for what cannot be read in it."""
    write_text(out, run_page(read_run(run)))


def run_page(run: RunFolder, seed: int = 0) -> str:
    """The page."""
    values: dict[str, list[list[float]]] = {}
    galleries: list[str] = []
    for name in run.results:
        benchmark, samples = BENCHMARKS[name], run.samples(name)
        values[name] = groups(benchmark, samples.values())
        galleries.append(_gallery(benchmark, samples, run.path / name, seed, is_open=not galleries))
    flat, weights = equal_weights(list(values.values()))
    average = mean_of_groups(flat, weights, seed)
    detectable = {name: _detectable(of_one) for name, of_one in values.items()}
    together = _detectable(flat, weights)
    sections = [
        _headline(run, average, together) if run.results else "",
        _failed(run),
        _accuracies(run, average) if run.results else "",
        _numbers(run, average, detectable, together) if run.results else "",
        probes_section(run),
        long_texts_section(run),
        _categories(run),
        _samples(galleries),
        f"<section><h2>Settings</h2>{facts({run.name: {'folder': str(run.path), **run.settings}})}</section>",
    ]
    adapter = f" + {run.settings['adapter']}" if run.settings.get("adapter") else ""
    lead = f"{run.settings.get('model')}{adapter}; {len(run.results)} of {len(BENCHMARKS)} benchmarks" + (
        f", {average['n']:,} samples, scored by rules; style {run.settings.get('style')}, answers of at most "
        f"{run.settings.get('max_new_tokens')} tokens."
        if run.results
        else "."
    )
    return page(run.name, lead, sections)


def _detectable(values: Sequence[Sequence[float]], weights: Sequence[float] = ()) -> float | None:
    return detectable_unpaired(
        [len(group) for group in values], [sum(group) / len(group) for group in values if group], weights
    )


def _headline(run: RunFolder, average: Mapping[str, Any], detectable: float | None) -> str:
    cut = [result["truncated"] for result in run.results.values() if result.get("truncated") is not None]
    worst = max(run.results, key=lambda name: run.results[name].get("truncated") or 0.0, default="")
    limit = run.settings.get("limit")
    cards = [
        (
            "Average of the benchmarks",
            percent(average),
            f"95% interval {interval(average)}; n = {average['n']:,}"
            + (f"; only the first {limit} samples of each task" if limit else ""),
        ),
        (
            "Answers cut at the length limit",
            f"{number(100 * sum(cut) / len(cut), 1)}%" if cut else MISSING,
            f"most in {BENCHMARKS[worst].title}: {number(100 * (run.results[worst].get('truncated') or 0.0), 1)}%"
            if worst
            else "",
        ),
        (
            "Smallest difference to speak of",
            f"{points(detectable).removeprefix('+')} points",
            "between two averages like this one, if their samples were not paired; compare pairs them and needs less",
        ),
    ]
    drawn = "".join(
        f'<div class="card"><h3>{escape(name)}</h3><p class="big">{escape(value)}</p><p class="note">{escape(note)}</p></div>'
        for name, value, note in cards
    )
    return f'<section class="grid headline" aria-label="Overview">{drawn}</section>'


def _failed(run: RunFolder) -> str:
    said = [
        f"{BENCHMARKS[name].title if name in BENCHMARKS else name}: {reason}"
        for name, reason in run.failed.items()
    ]
    missing = [
        b.title for name, b in BENCHMARKS.items() if name not in run.results and name not in run.failed
    ]
    if missing and run.results:
        said.append(f"not run: {', '.join(missing)}")
    if not said:
        return ""
    items = "".join(f'<li class="bad">{escape(text)}</li>' for text in said)
    return f'<section><h2>Without a result</h2><ul class="outcomes">{items}</ul></section>'


def _accuracies(run: RunFolder, average: Mapping[str, Any]) -> str:
    lines = []
    for result in run.results.values():
        marks = [accuracy_mark(result["accuracy"])]
        if result.get("stock") is not None:
            stock = 100 * result["stock"]
            marks.append(Mark("before", stock, f"{number(stock, 1)}% ({result['stock_metric']})"))
        lines.append(Line(result["benchmark"], percent(result["accuracy"]), [m for m in marks if m]))
    lines.append(Line("average", percent(average), [m for m in [accuracy_mark(average)] if m]))
    chart = interval_chart(
        "accuracies",
        "Accuracy with its 95% interval",
        lines,
        x_label="accuracy, %",
        x_range=(0, 100),
        looks=[("by rules, as rewards are given", "after"), ("the harness's own metric", "before")],
        note="The harness's own metrics miss boxed answers on many benchmarks, so they are lower for a model that reasons.",
    )
    return f'<section class="grid charts" aria-label="Accuracies">{chart}{_cut_chart(run)}</section>'


def _cut_chart(run: RunFolder) -> str:
    lines = []
    for result in run.results.values():
        share = 100 * (result.get("truncated") or 0.0)
        text = f"{number(share, 1)}%"
        lines.append(Line(result["benchmark"], text, [Mark("wrong", share, text)]))
    note = "A cut answer has no final line to read, so it is mostly wrong whatever the model knows: raise the limit before comparing."
    most = max((mark.value for line in lines for mark in line.marks), default=0.0)
    return interval_chart(
        "cut",
        "Answers cut at the length limit",
        lines,
        x_label="share of answers, %",
        x_range=(0, min(100.0, max(5.0, 1.1 * most))),
        note=note,
    )


def _numbers(
    run: RunFolder, average: Mapping[str, Any], detectable: Mapping[str, float | None], together: float | None
) -> str:
    rows: list[Cells] = []
    for name, result in run.results.items():
        stock = result.get("stock")
        no_stock = str(result.get("stock_error") or "asks a judge model")
        rows.append(
            (
                (result["benchmark"], f"split {result['split']}"),
                (percent(result["accuracy"]), interval(result["accuracy"])),
                (f"{result['accuracy']['n']:,}", _rejects(result)),
                (MISSING, no_stock)
                if stock is None
                else (f"{number(100 * stock, 1)}%", str(result["stock_metric"])),
                MISSING if result.get("truncated") is None else f"{number(100 * result['truncated'], 1)}%",
                points(detectable[name]).removeprefix("+"),
            )
        )
    rows.append(
        (
            "average",
            (percent(average), interval(average)),
            f"{average['n']:,}",
            "",
            "",
            points(together).removeprefix("+"),
        )
    )
    headers = ("benchmark", "accuracy", "samples", "stock", "cut", "detectable, points")
    note = (
        "Detectable: the smallest true difference between two runs of that size that a test at 5% finds with a probability of 80% when "
        "samples are not paired. A smaller one is not to be read as a gain; the paired comparison of two runs (compare) needs less."
    )
    return f'<section><h2>Numbers</h2><p class="note">{note}</p>{table(headers, rows)}</section>'


def _rejects(result: Mapping[str, Any]) -> str:
    return f"and {result['rejects']:,} rejected rows" if result.get("rejects") else ""


def _categories(run: RunFolder) -> str:
    parts = ""
    for name, result in run.results.items():
        by_category = result.get("by_category") or {}
        lines = [
            Line(category, f"{percent(entry)} of {entry['n']:,}", [m for m in [accuracy_mark(entry)] if m])
            for category, entry in by_category.items()
        ]
        if len(lines) > 1:
            chart = interval_chart(
                f"categories-{name}",
                f"{result['benchmark']} by category",
                lines,
                x_label="accuracy, %",
                x_range=(0, 100),
            )
            summary = (
                f"<summary><strong>{escape(result['benchmark'])}</strong>: {len(lines)} categories</summary>"
            )
            parts += f'<details>{summary}<div class="grid charts">{chart}<div></div></div></details>'
    return f"<section><h2>By category</h2>{parts}</section>" if parts else ""


def _gallery(benchmark: Benchmark, samples: Samples, folder: Path, seed: int, *, is_open: bool) -> str:
    cards, counts = "", []
    for right, tag, css in ((True, "right", "right-throughout"), (False, "wrong", "still-wrong")):
        keys = [key for key, sample in samples.items() if sample["correct"] == right]
        rng = random.Random(f"samples:{benchmark.name}:{seed}")
        cards += "".join(
            _card(key, samples[key], folder, tag, css) for key in rng.sample(keys, min(SHOWN, len(keys)))
        )
        counts.append(f"{len(keys):,} {tag}")
    summary = f"<summary><strong>{escape(benchmark.title)}</strong>: {', '.join(counts)}</summary>"
    return (
        f'<details{" open" if is_open else ""}>{summary}<div class="grid">{cards}</div></details>'
        if cards
        else ""
    )


def _card(key: Key, sample: Sample, folder: Path, tag: str, css: str) -> str:
    return f'<article class="card">{heading(key, sample, tag, css)}{asked(sample, [folder])}{answered(sample, "")}</article>'


def _samples(galleries: Sequence[str]) -> str:
    if not any(galleries):
        return ""
    note = f"Drawn at random, at most {SHOWN} right and {SHOWN} wrong ones of each benchmark."
    return f'<section><h2>Samples to look at</h2><p class="note">{note}</p>{"".join(galleries)}</section>'
