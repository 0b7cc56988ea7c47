"""Charts of one dataset, in the style of the report's: bars of counts, a histogram of one measure, shares around one half."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vlm_contextrl.report.chart_parts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Look,
    Scale,
    element,
    figure,
    label,
    nothing,
    number,
    number_table,
    x_axis,
    y_axis,
)
from vlm_contextrl.report.charts import bin_edges, count_bins

MAX_BARS = 12
_NAME_CHARACTERS = 46
_ROW_HEIGHT, _BAR_HEIGHT = 33, 11
_HISTOGRAM_HEIGHT = 200
_BINS = 24


def count_chart(
    chart_id: str, caption: str, counts: Mapping[str, int], total: int, look: Look = "after"
) -> str:
    """Horizontal bars, one per name in the given order; at most `MAX_BARS`, the rest in a line. total: what shares refer to."""
    if not counts:
        return nothing(caption)
    shown = dict(list(counts.items())[:MAX_BARS])
    rows = [(name or "(none)", n) for name, n in shown.items()]
    x_of = Scale(0, max(n for _, n in rows), 6, WIDTH - 6)
    drawn = []
    for index, (name, n) in enumerate(rows):
        y = 4 + _ROW_HEIGHT * index
        written = (
            name
            if len(name) <= _NAME_CHARACTERS
            else f"{name[: _NAME_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
        )
        drawn.append(label(written, "name", 6, y + 11))
        drawn.append(label(f"{n:,} \N{MIDDLE DOT} {_percent(n, total)}", "tick", WIDTH - 6, y + 11, "end"))
        size = {"width": max(x_of(n) - x_of.start, 1), "height": _BAR_HEIGHT}
        drawn.append(element("rect", f"fill {look}", title=f"{name}: {n}", x=x_of.start, y=y + 16, **size))
    height = 4 + _ROW_HEIGHT * len(rows)
    if others := len(counts) - len(shown):
        n = sum(counts.values()) - sum(shown.values())
        drawn.append(label(f"{others} others", "tick", 6, height + 11))
        drawn.append(
            label(f"{n:,} \N{MIDDLE DOT} {_percent(n, total)}", "tick", WIDTH - 6, height + 11, "end")
        )
        height += _ROW_HEIGHT - _BAR_HEIGHT
    table = [(name or "(none)", f"{n:,}", _percent(n, total)) for name, n in counts.items()]
    words = "; ".join(f"{name}: {n}" for name, n in rows)
    return figure(
        chart_id, caption, words, "".join(drawn), height, table=number_table(("", "rows", "share"), table)
    )


def value_chart(chart_id: str, caption: str, values: Sequence[float], *, x_label: str, y_label: str) -> str:
    """Histogram of one measure, its median marked."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return nothing(caption)
    edges = value_edges(min(known), max(known))
    counts = count_bins(known, edges)
    base = _HISTOGRAM_HEIGHT - BOTTOM
    x_of = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y_of = Scale(0, max(counts) * 1.05, base, TOP + 12)
    drawn = [y_axis(y_of, y_label, count=4)]
    for at, n in enumerate(counts):
        if n:
            x, y = x_of(edges[at]), y_of(n)
            title = f"{n} {y_label} from {number(edges[at], 3)} to {number(edges[at + 1], 3)}"
            size = {"width": x_of(edges[at + 1]) - x, "height": base - y}
            drawn.append(element("rect", "fill after", title=title, x=x, y=y, **size))
    middle = median(known)
    x = x_of(middle)
    drawn.append(element("line", "zero", x1=x, x2=x, y1=TOP + 8, y2=base))
    anchor, side = ("end", -5) if middle > (edges[0] + edges[-1]) / 2 else ("start", 5)
    drawn.append(label(f"median {number(middle, 3)}", "tick", x + side, TOP + 8, anchor))
    drawn.append(x_axis(x_of, _HISTOGRAM_HEIGHT, x_label))
    rows = [(f"{number(edges[i], 3)} to {number(edges[i + 1], 3)}", f"{n:,}") for i, n in enumerate(counts)]
    words = f"{len(known)} values from {number(min(known), 3)} to {number(max(known), 3)}, median {number(middle, 3)}"
    table = number_table((x_label, y_label), rows)
    return figure(chart_id, caption, words, "".join(drawn), _HISTOGRAM_HEIGHT, table=table)


def value_edges(low: float, high: float) -> list[float]:
    """About `_BINS` bins of round width that hold [low, high]."""
    first_edge, second_edge, *_ = bin_edges((high - low) or max(abs(low), 1e-3), _BINS)
    width = second_edge - first_edge
    first = math.floor(low / width + 1e-9)
    last = max(first + 1, math.ceil(high / width - 1e-9))
    return [round(index * width, 10) for index in range(first, last + 1)]


def share_chart(
    chart_id: str, caption: str, shares: Mapping[str, Mapping[str, Any]], wrong: Sequence[str]
) -> str:
    """Bars from one half to each share, those named in `wrong` in the colour of what is wrong; shares: {name: {share, n}}."""
    known = {name: found for name, found in shares.items() if found.get("share") is not None}
    if not known:
        return nothing(caption)
    top = 16
    height = top + _ROW_HEIGHT * len(known) + BOTTOM - 6
    x_of = Scale(0, 100, 16, WIDTH - 16)
    middle = x_of(50)
    drawn = [x_axis(x_of, height, "% of pairs", grid_from=top)]
    drawn.append(element("line", "reference", x1=middle, x2=middle, y1=top - 4, y2=height - BOTTOM))
    drawn.append(label("balanced", "tick", middle, top - 7, "middle"))
    table = []
    for index, (name, found) in enumerate(known.items()):
        y, x = top + _ROW_HEIGHT * index, x_of(100 * found["share"])
        told = f"{number(100 * found['share'], 1)}% of {found['n']:,}"
        drawn.append(label(name, "name", 6, y + 11))
        drawn.append(label(told, "tick", WIDTH - 6, y + 11, "end"))
        size = {"width": max(abs(x - middle), 1.5), "height": _BAR_HEIGHT}
        look = "wrong" if name in wrong else "after"
        drawn.append(
            element("rect", f"fill {look}", title=f"{name}: {told}", x=min(x, middle), y=y + 16, **size)
        )
        table.append((name, told, "unbalanced" if name in wrong else "balanced"))
    words = "; ".join(f"{name}: {told}, {said}" for name, told, said in table)
    return figure(
        chart_id, caption, words, "".join(drawn), height, table=number_table(("", "share", ""), table)
    )


def _percent(n: int, total: int) -> str:
    return f"{number(100 * n / total, 1)}%" if total else ""
