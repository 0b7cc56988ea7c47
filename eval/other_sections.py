"""Sections of a run's page beside the twelve benchmarks: selection probes, long texts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from vlm_contextrl.eval.interval_chart import Line, interval_chart
from vlm_contextrl.eval.pages import Cells, accuracy_mark, interval, percent, points, table
from vlm_contextrl.eval.run_folders import RunFolder
from vlm_contextrl.report.chart_parts import MISSING, number


def probes_section(run: RunFolder) -> str:
    """Selection accuracy of every probe, with what tells a choice from a habit; empty without probes."""
    if not run.probes:
        return ""
    lines, rows = [], list[Cells]()
    for result in run.probes.values():
        accuracy = result["selection_accuracy"]
        lines.append(
            Line(result["set"], percent(accuracy), [mark for mark in [accuracy_mark(accuracy)] if mark])
        )
        rows.append(
            (
                (result["set"], f"by {result['mode']}"),
                (percent(accuracy), interval(accuracy)),
                percent(result["order_consistent_accuracy"]),
                percent(result["group_accuracy"]),
                _number(result["mean_margin"]),
                points(result["position_bias"]),
                percent(result["same_image_control"]),
                (f"{accuracy['n']:,}", f"of {result['inputs']:,}"),
            )
        )
    chart = interval_chart(
        "probes", "Selection accuracy with its 95% interval", lines, x_label="selection accuracy, %", x_range=(0, 100),
        note="50% is a guess.",
    )  # fmt: skip
    headers = (
        "probe",
        "selection accuracy",
        "both orders",
        "group",
        "margin",
        "bias to A, points",
        "control",
        "pairs",
    )
    note = (
        "Both orders: right whichever context comes first. Group: right also for the confounder's answer. Control: the same context twice, "
        "50%, or orders and letters are counted wrongly."
    )
    return (
        f'<section><h2>Selection probes</h2><p class="note">{escape(note)}</p>'
        f'<div class="grid charts">{chart}<div></div></div>{table(headers, rows)}</section>'
    )


def long_texts_section(run: RunFolder) -> str:
    """Accuracy of text benchmarks by length; empty without them."""
    rows: list[Cells] = []
    for result in run.long_texts.values():
        for name, entry in {"all": result["accuracy"], **result["by_category"]}.items():
            rows.append(((result["benchmark"], name), (percent(entry), interval(entry)), f"{entry['n']:,}"))
    return (
        f"<section><h2>Long texts</h2>{table(('benchmark', 'accuracy', 'samples'), rows)}</section>"
        if rows
        else ""
    )


def _number(entry: Mapping[str, Any]) -> str:
    return MISSING if entry["value"] is None else number(entry["value"], 2)
