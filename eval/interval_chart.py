"""Values with their intervals as dots and whiskers, one row per benchmark or category, in the style of the core's charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_contextrl.report.chart_parts import (
    BOTTOM,
    WIDTH,
    Look,
    Scale,
    element,
    figure,
    label,
    legend_line,
    nothing,
    number_table,
    padded,
    units,
    x_axis,
)

_NAME_CHARACTERS = 34
_NAME_HEIGHT, _MARK_HEIGHT, _GAP = 16, 12, 6


@dataclass(frozen=True)
class Mark:
    """A value in percent or points; without an interval a dot alone. text: the same in words."""

    look: Look
    value: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One row: its name, a few words at its right end, its marks from top to bottom, a shaded band to both sides of zero."""

    name: str
    words: str
    marks: Sequence[Mark]
    band: float | None = None


def interval_chart(
    chart_id: str,
    caption: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    x_range: tuple[float, float] | None = None,
    looks: Sequence[tuple[str, Look]] = (),
    note: str = "",
) -> str:
    """The chart; looks: what is said of each look in the legend and heads the columns of the table of numbers."""
    edges = [
        edge for line in lines for m in line.marks for edge in (m.value, m.low, m.high) if edge is not None
    ]
    if not edges:
        return nothing(caption)
    bands = [edge for line in lines if line.band is not None for edge in (-line.band, line.band)]
    x_of = Scale(*(x_range or padded(min(*edges, *bands, 0.0), max(*edges, *bands, 0.0))), 10, WIDTH - 16)
    heights = [_NAME_HEIGHT + max(1, len(line.marks)) * _MARK_HEIGHT + _GAP for line in lines]
    height = sum(heights) + BOTTOM
    drawn = [x_axis(x_of, height, x_label, grid_from=2)]
    top = 0
    for line, line_height in zip(lines, heights, strict=True):
        if line.band is not None:
            left, right = x_of(-line.band), x_of(line.band)
            y, width = top + _NAME_HEIGHT + 2, right - left
            band = line_height - _NAME_HEIGHT - 2
            drawn.append(element("rect", style="fill:var(--grid)", x=left, y=y, width=width, height=band))
        if x_of.low < 0 < x_of.high:
            x = x_of(0)
            drawn.append(element("line", "zero", x1=x, x2=x, y1=top + _NAME_HEIGHT, y2=top + line_height))
        drawn.append(label(_shortened(line.name), "name", 8, top + 13))
        drawn.append(label(line.words, "tick", WIDTH - 8, top + 13, "end"))
        for index, mark in enumerate(line.marks):
            drawn.append(_mark(mark, x_of, top + _NAME_HEIGHT + _MARK_HEIGHT * (index + 0.5) + 1))
        top += line_height
    said = [(line.name, *_texts(line, looks), line.words) for line in lines]
    return figure(
        chart_id,
        caption,
        "; ".join(f"{line.name}: {', '.join(m.text for m in line.marks) or 'no data'}" for line in lines),
        "".join(drawn),
        height,
        legend=legend_line([(name, look, "dot") for name, look in looks]) if looks else "",
        note=note,
        table=number_table(("", *(name for name, _ in looks), ""), said),
    )


def _mark(mark: Mark, x_of: Scale, y: float) -> str:
    drawn = ""
    if mark.low is not None and mark.high is not None:
        ends = [units(x_of(edge)) for edge in (mark.low, mark.high)]
        caps = "".join(f"M{x} {units(y - 3)}V{units(y + 3)}" for x in ends)
        drawn = element("path", "whisker", d=f"M{ends[0]} {units(y)}H{ends[1]}{caps}")
    return drawn + element("circle", f"fill {mark.look}", title=mark.text, cx=x_of(mark.value), cy=y, r=4)


def _texts(line: Line, looks: Sequence[tuple[str, Look]]) -> list[str]:
    return ["; ".join(m.text for m in line.marks if m.look == look) for _, look in looks]


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
