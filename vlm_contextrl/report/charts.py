"""Charts as inline SVG, without a library or a script: learning curves, before/after bars, histograms.

A chart is a `<figure>`: caption, legend, drawing (role "img" with title and description) and the same numbers
as a table behind `<details>`. Colours are CSS classes of the page (`style`); no meaning rests on
colour alone: "before" is hatched and dashed, "after" is solid. Drawings are 380 units wide, so that text
stays readable on a telephone and does not grow huge on a desk.

Values that are None, NaN or infinite leave a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_contextrl.report.chart_parts import (
    BOTTOM,
    LEFT,
    MISSING,
    RIGHT,
    TOP,
    WIDTH,
    Look,
    Scale,
    element,
    figure,
    finite,
    label,
    legend_line,
    level_line,
    nothing,
    number,
    number_table,
    padded,
    units,
    x_axis,
    y_axis,
)

Point = tuple[float, float | None]
Accuracy = Mapping[str, Any]  # {value, n, low, high}, shares from 0 to 1

_TABLE_ROWS = 12
_CURVE_HEIGHT = 220


@dataclass(frozen=True)
class Dot:
    """A measured value with its interval."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One line over steps, or measurements (`dots`) with their intervals."""

    name: str
    look: Look
    points: Sequence[Point] = ()
    dots: Sequence[Dot] = ()


def moving_mean(points: Sequence[Point], over: int) -> list[Point]:
    """Centred mean over `over` neighbours (fewer at the ends), missing values left out."""
    half = over // 2
    smooth: list[Point] = []
    for at, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, at - half) : at + half + 1] if y is not None]
        smooth.append((x, sum(near) / len(near) if near else None))
    return smooth


def line_chart(
    chart_id: str,
    caption: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    references: Mapping[str, float] | None = None,
) -> str:
    """Curves over steps: every value thin, its moving mean thick. References are labelled level lines."""
    values = [y for s in series for _, y in s.points if y is not None]
    values += [edge for s in series for dot in s.dots for edge in (dot.low, dot.high)]
    xs = [x for s in series for x, _ in s.points] + [dot.x for s in series for dot in s.dots]
    if not values:
        return nothing(caption)
    x_of = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    y_of = Scale(*(y_range or padded(min(values), max(values))), _CURVE_HEIGHT - BOTTOM, TOP)
    over = max(len(s.points) for s in series) // 12 | 1
    smooth = {s.name: moving_mean(s.points, over) for s in series}
    drawn = [y_axis(y_of, y_label), x_axis(x_of, _CURVE_HEIGHT, x_label)]
    for name, level in (references or {}).items():
        if y_of.low <= level <= y_of.high:
            drawn.append(level_line(name, y_of(level)))
    for s in series:
        drawn.append(_path(s.points, x_of, y_of, f"raw {s.look}"))
        drawn.append(_path(smooth[s.name], x_of, y_of, f"curve {s.look}"))
        drawn += [_dot(dot, x_of, y_of, s.look) for dot in s.dots]
    keys = [(s.name, s.look, "dot" if s.dots else "line") for s in series]
    return figure(
        chart_id,
        caption,
        "; ".join(_in_words(s, smooth[s.name]) for s in series),
        "".join(drawn),
        _CURVE_HEIGHT,
        legend=legend_line(keys) if len(keys) > 1 else "",
        note=f"Thin: every step; thick: mean over {over} steps." if over > 1 else "",
        table=_curve_table(x_label, series, smooth),
    )


def bar_chart(
    chart_id: str,
    caption: str,
    rows: Sequence[tuple[str, Accuracy | None, Accuracy | None]],
    *,
    x_label: str,
    chance: float | None = None,
) -> str:
    """Accuracies before and after, as horizontal bars of percent with 95% intervals as whiskers."""
    if not any(_value(entry) is not None for _, *both in rows for entry in both):
        return nothing(caption)
    row_height, bar, top = 45, 11, 16
    height = top + row_height * len(rows) + BOTTOM - 6
    x_of = Scale(0, 100, 6, WIDTH - 64)
    drawn = [x_axis(x_of, height, x_label, grid_from=top)]
    if chance is not None:
        x = x_of(100 * chance)
        drawn.append(element("line", "reference", x1=x, x2=x, y1=top - 4, y2=height - BOTTOM))
        drawn.append(label("chance", "tick", x, top - 7, "middle"))
    table = []
    for index, (name, before, after) in enumerate(rows):
        y = top + row_height * index
        drawn.append(label(name, "name", 6, y + 11))
        drawn.append(_bar(x_of, y + 16, bar, "before", before))
        drawn.append(_bar(x_of, y + 16 + bar + 2, bar, "after", after))
        table.append((name, accuracy_words(before), accuracy_words(after)))
    return figure(
        chart_id,
        caption,
        "; ".join(f"{name}: before {before}, after {after}" for name, before, after in table),
        "".join(drawn),
        height,
        legend=legend_line([("before training", "before", "box"), ("after training", "after", "box")]),
        table=number_table(("", "before (95% interval), n", "after (95% interval), n"), table),
    )


def histogram(
    chart_id: str,
    caption: str,
    before: Sequence[float],
    after: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    clip: float | None = None,
) -> str:
    """Two histograms over one axis, one above the other, with zero and the clip marked."""
    known = [abs(v) for v in (*before, *after) if math.isfinite(v)]
    if not known:
        return nothing(caption)
    edges = bin_edges(max(known))
    counts: dict[Look, list[int]] = {"before": count_bins(before, edges), "after": count_bins(after, edges)}
    x_of = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    panel, first = 92, TOP + 12
    height = first + 2 * (panel + 2) - 2 + BOTTOM
    drawn = []
    for index, look in enumerate(counts):
        top = first + index * (panel + 2)
        y_of = Scale(0, max(1, *counts[look]) * 1.05, top + panel - 8 * (1 - index), top)
        drawn += [y_axis(y_of, y_label, count=3), *_bins(counts[look], edges, x_of, y_of, look)]
        drawn.append(label(look, "name", LEFT + 4, top + 10))
    marks = {0.0: "zero", **({-clip: "reference", clip: "reference"} if clip and clip < edges[-1] else {})}
    for value, css in marks.items():
        drawn.append(element("line", css, x1=x_of(value), x2=x_of(value), y1=TOP + 4, y2=height - BOTTOM))
    drawn.append(label("\N{LEFTWARDS ARROW} wrong", "tick", x_of(0) - 5, TOP + 4, "end"))
    drawn.append(label("right \N{RIGHTWARDS ARROW}", "tick", x_of(0) + 5, TOP + 4))
    drawn.append(x_axis(x_of, height, x_label))
    rows = [
        (f"{number(edges[i])} to {number(edges[i + 1])}", str(counts["before"][i]), str(counts["after"][i]))
        for i in range(len(edges) - 1)
    ]
    return figure(
        chart_id,
        caption,
        "; ".join(_margins_in_words(name, v) for name, v in (("before", before), ("after", after))),
        "".join(drawn),
        height,
        note="Each row has its own vertical scale."
        + (f" Dotted lines: the clip, ±{clip:g}." if clip and clip < edges[-1] else ""),
        table=number_table((x_label, "before", "after"), rows),
    )


def bin_edges(reach: float, bins_per_side: int = 12) -> list[float]:
    """Equal bins of round width, symmetric about zero, that hold [-reach, reach]; zero is an edge."""
    rough = max(reach, 1e-6) / bins_per_side
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    side = max(1, math.ceil(reach / width - 1e-9))
    return [round(i * width, 10) for i in range(-side, side + 1)]


def count_bins(values: Iterable[float], edges: Sequence[float]) -> list[int]:
    """Values per bin; a value on an edge goes to the right, on the last edge to the last bin."""
    counts = [0] * (len(edges) - 1)
    width = edges[1] - edges[0]
    for value in values:
        if math.isfinite(value):
            counts[min(max(math.floor((value - edges[0]) / width + 1e-9), 0), len(counts) - 1)] += 1
    return counts


def accuracy_words(entry: Accuracy | None) -> str:
    """`62.0% (58.1 to 65.9), n = 500`."""
    value = _value(entry)
    if entry is None or value is None:
        return "no data"
    words = f"{number(100 * value, 1)}%"
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    if low is not None and high is not None:
        words += f" ({number(100 * low, 1)} to {number(100 * high, 1)})"
    return f"{words}, n = {entry['n']}" if entry.get("n") is not None else words


# ---------------------------------------------------------------- what is drawn


def _path(points: Sequence[Point], x_of: Scale, y_of: Scale, css: str) -> str:
    steps, pen_down = [], False
    for x, y in points:
        if y is None:
            pen_down = False
            continue
        inside = min(max(y, y_of.low), y_of.high)
        steps.append(f"{'L' if pen_down else 'M'}{units(x_of(x))} {units(y_of(inside))}")
        pen_down = True
    return element("path", css, d="".join(steps)) if steps else ""


def _dot(dot: Dot, x_of: Scale, y_of: Scale, look: Look) -> str:
    x = x_of(dot.x)
    title = f"step {dot.x:g}: {number(dot.value, 3)} ({number(dot.low, 3)} to {number(dot.high, 3)})"
    whisker = element("line", "whisker", x1=x, x2=x, y1=y_of(dot.low), y2=y_of(dot.high))
    return whisker + element("circle", f"fill {look}", title=title, cx=x, cy=y_of(dot.value), r=4)


def _bar(x_of: Scale, y: float, thickness: float, look: Look, entry: Accuracy | None) -> str:
    value = _value(entry)
    right, base = WIDTH - 4, y + thickness - 2
    if entry is None or value is None:
        return label("no data", "tick", right, base, "end")
    width = x_of(100 * value) - x_of.start
    title = f"{look}: {accuracy_words(entry)}"
    drawn = element("rect", f"fill {look}", title=title, x=x_of.start, y=y, width=width, height=thickness)
    low, high = finite(entry.get("low")), finite(entry.get("high"))
    if low is not None and high is not None:
        ends = [units(x_of(100 * edge)) for edge in (low, high)]
        caps = "".join(f"M{x} {units(y + 2)}V{units(y + thickness - 2)}" for x in ends)
        line = f"M{ends[0]} {units(y + thickness / 2)}H{ends[1]}{caps}"
        drawn += element("path", "halo", d=line) + element("path", "whisker", d=line)
    return drawn + label(f"{number(100 * value, 1)}%", f"value {look}", right, base, "end")


def _bins(counts: Sequence[int], edges: Sequence[float], x_of: Scale, y_of: Scale, look: Look) -> list[str]:
    drawn = []
    for at, n in enumerate(counts):
        if n:
            x, y = x_of(edges[at]), y_of(n)
            size = {"width": x_of(edges[at + 1]) - x, "height": y_of(0) - y}
            title = f"{look}: {n} pairs from {number(edges[at])} to {number(edges[at + 1])}"
            drawn.append(element("rect", f"fill {look}", title=title, x=x, y=y, **size))
    return drawn


# ---------------------------------------------------------------- the same in words and tables


def _curve_table(x_label: str, series: Sequence[Series], smooth: Mapping[str, Sequence[Point]]) -> str:
    tables = ""
    lines = [s for s in series if s.points]
    if lines:
        means = {s.name: dict(smooth[s.name]) for s in lines}
        xs = sorted({x for s in lines for x, _ in s.points})
        chosen = sorted({round(i * (len(xs) - 1) / (_TABLE_ROWS - 1)) for i in range(_TABLE_ROWS)})
        rows = [[f"{xs[at]:g}", *(number(means[s.name].get(xs[at]), 3) for s in lines)] for at in chosen]
        tables = number_table((x_label, *(f"{s.name} (mean)" for s in lines)), rows)
    for s in series:
        if s.dots:
            dots = [
                [f"{d.x:g}", number(d.value, 3), f"{number(d.low, 3)} to {number(d.high, 3)}"] for d in s.dots
            ]
            tables += number_table((x_label, s.name, "95% interval"), dots)
    return tables


def _in_words(series: Series, smooth: Sequence[Point]) -> str:
    known = [(x, y) for x, y in smooth if y is not None] or [(d.x, d.value) for d in series.dots]
    if not known:
        return f"{series.name}: no values"
    (first_x, first), (last_x, last) = known[0], known[-1]
    return f"{series.name}: {number(first)} at step {first_x:g}, {number(last)} at step {last_x:g}"


def _margins_in_words(name: str, values: Sequence[float]) -> str:
    if not values:
        return f"{name}: {MISSING}"
    right = sum(v > 0 for v in values)
    return f"{name}: {right} of {len(values)} margins above zero, mean {number(sum(values) / len(values))}"


def _value(entry: Accuracy | None) -> float | None:
    return None if entry is None else finite(entry.get("value"))
