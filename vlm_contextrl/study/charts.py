"""Charts of a study in the style of the core's: every arm has a colour, a marker and a dash, so none rests on colour alone.

Eight arms share none of them; further ones (up to `N_STYLES`) repeat colours, with other markers and dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vlm_contextrl.report.chart_parts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    element,
    figure,
    label,
    level_line,
    nothing,
    number,
    number_table,
    padded,
    units,
    x_axis,
    y_axis,
)
from vlm_contextrl.study.curves import Curves
from vlm_contextrl.study.tables import percent, points

Entry = Mapping[str, Any]  # {value, low, high}, shares

COLOURS = (  # light, dark; Okabe and Ito's palette, darkened or lightened to stand out from the page
    ("#57606a", "#a3adb8"), ("#0b62ae", "#5cb0f5"), ("#b8480a", "#ff9a52"), ("#00795a", "#3fc79f"),
    ("#9b4b82", "#e39ac6"), ("#8a6d00", "#e0c341"), ("#4a4fb5", "#9da2f7"), ("#7a3b1d", "#d39b7c"),
)  # fmt: skip
MARKERS = (
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",  # circle
    "M-4.5 -4.5H4.5V4.5H-4.5Z",  # square
    "M0 -6L5.6 4.2H-5.6Z",  # triangle
    "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",  # diamond
    "M0 6L5.6 -4.2H-5.6Z",  # triangle, pointing down
    "M-2 -5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z",  # plus
    "M0 -6L5.7 -1.9L3.5 4.9H-3.5L-5.7 -1.9Z",  # pentagon
    "M-6 -3H6V3H-6Z",  # bar
)
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "6 2 1 2 1 2")
N_STYLES = 24
_HEIGHT = 300
_CURVE_HEIGHT = 230
_ROW_HEIGHT = 34


def arm_css() -> str:
    """Style sheet of the arms."""
    light = "".join(f"--arm{i}:{pair[0]};" for i, pair in enumerate(COLOURS))
    dark = "".join(f"--arm{i}:{pair[1]};" for i, pair in enumerate(COLOURS))
    rules = "".join(
        f"svg .arm{i}{{--arm:var(--arm{i % 8});--dash:{DASHES[_shape(i)]}}}" for i in range(N_STYLES)
    )
    return f"""
:root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
{rules}
svg .name {{ paint-order: stroke; stroke: var(--card); stroke-width: 3; }}
svg .mark {{ fill: var(--arm); stroke: var(--card); stroke-width: 1; }}
svg .mark.seed {{ opacity: .45; stroke: none; }}
svg .mark.hollow {{ fill: var(--card); stroke: var(--ink); stroke-width: 1.6; }}
svg .line {{ fill: none; stroke: var(--arm); stroke-width: 2.2; stroke-linejoin: round; stroke-dasharray: var(--dash); }}
svg .band {{ fill: var(--arm); opacity: .1; }}
svg .spread {{ stroke: var(--arm); stroke-width: 1.5; fill: none; }}
svg .bar {{ fill: var(--arm); }}
"""


def _shape(index: int) -> int:
    """Which marker and dash: arms with the same colour have different ones."""
    return (index + 3 * (index // 8)) % 8


def _css(index: int) -> str:
    return f"arm{index % N_STYLES}"


@dataclass(frozen=True)
class Spot:
    """One arm of the scatter plot: means with their intervals, and the single seeds as (x, y)."""

    name: str
    x: Entry
    y: Entry
    seeds: Sequence[tuple[float, float]] = ()


def scatter(
    chart_id: str, caption: str, spots: Sequence[Spot], start: Spot | None, *, x_label: str, y_label: str
) -> str:
    """Shares in percent. start: the model before training, hollow. Intervals that leave the drawing are cut at its edge."""
    known = [spot for spot in spots if spot.x["value"] is not None and spot.y["value"] is not None]
    if not known:
        return nothing(caption)
    shown = (
        [*known, start]
        if start is not None and start.x["value"] is not None and start.y["value"] is not None
        else known
    )
    places = [(spot.x["value"], spot.y["value"]) for spot in shown] + [
        s for spot in known for s in spot.seeds
    ]
    x_of = Scale(*padded(*_ends([100 * x for x, _ in places])), LEFT, WIDTH - RIGHT)
    y_of = Scale(*padded(*_ends([100 * y for _, y in places])), _HEIGHT - BOTTOM, TOP)
    drawn = [y_axis(y_of, y_label), x_axis(x_of, _HEIGHT, x_label, grid_from=TOP)]
    for index, spot in enumerate(spots):
        drawn += [_mark(index, x_of(100 * x), y_of(100 * y), "seed", scale=0.6) for x, y in spot.seeds]
    for index, spot in enumerate(spots):
        if spot in known:
            x, y = x_of(100 * spot.x["value"]), y_of(100 * spot.y["value"])
            drawn.append(_spread(index, x_of, spot.x, lambda a, b, y=y: f"M{a} {units(y)}H{b}"))
            drawn.append(_spread(index, y_of, spot.y, lambda a, b, x=x: f"M{units(x)} {a}V{b}"))
            drawn.append(_mark(index, x, y, title=f"{spot.name}: {_words(spot)}"))
    if shown is not known and start is not None:
        x, y = x_of(100 * start.x["value"]), y_of(100 * start.y["value"])
        drawn.append(
            element("circle", "mark hollow", title=f"{start.name}: {_words(start)}", cx=x, cy=y, r=5.5)
        )
    keys = [_key(spot.name, _mark(i, 13, 6)) for i, spot in enumerate(spots)]
    if shown is not known and start is not None:
        keys.append(_key(start.name, element("circle", "mark hollow", cx=13, cy=6, r=4.5)))
    return figure(
        chart_id, caption, "; ".join(f"{spot.name}: {_words(spot)}" for spot in shown), "".join(drawn), _HEIGHT,
        legend=_legend(keys),
        note="Large: mean over seeds, with 95% intervals; small: single seeds.",
        table=number_table(("arm", x_label, y_label), [(s.name, percent(s.x), percent(s.y)) for s in shown]),
    )  # fmt: skip


def curve_chart(chart_id: str, curves: Curves, order: Sequence[str], references: Mapping[str, float]) -> str:
    """Means over seeds as lines, the range of the seeds as bands. order: of all arms; an arm's place decides its colour."""
    bands = [(order.index(arm), arm, found) for arm, found in curves.arms.items() if found]
    if not bands:
        return nothing(curves.caption)
    steps = [b.step for _, _, found in bands for b in found]
    edges = [edge for _, _, found in bands for b in found for edge in (b.low, b.high)]
    first, last = min(steps), max(steps)
    x_of = Scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y_of = Scale(*padded(*_ends([*edges, *references.values()])), _CURVE_HEIGHT - BOTTOM, TOP)
    drawn = [y_axis(y_of, curves.y_label), x_axis(x_of, _CURVE_HEIGHT, "step with rollouts")]
    drawn += [level_line(name, y_of(level)) for name, level in references.items()]
    for index, _, found in bands:
        there = [f"{units(x_of(b.step))} {units(y_of(b.high))}" for b in found]
        back = [f"{units(x_of(b.step))} {units(y_of(b.low))}" for b in reversed(found)]
        drawn.append(element("path", f"band {_css(index)}", d=f"M{'L'.join([*there, *back])}Z"))
    for index, _, found in bands:
        line = "L".join(f"{units(x_of(b.step))} {units(y_of(b.mean))}" for b in found)
        drawn.append(element("path", f"line {_css(index)}", d=f"M{line}"))
    rows = [
        (arm, f"{found[0].step:g}: {number(found[0].mean, 3)}", f"{found[-1].step:g}: {number(found[-1].mean, 3)}",
         f"{number(found[-1].low, 3)} to {number(found[-1].high, 3)}")
        for _, arm, found in bands
    ]  # fmt: skip
    return figure(
        chart_id, curves.caption, "; ".join(f"{arm}: step {a}, step {b}" for arm, a, b, _ in rows), "".join(drawn), _CURVE_HEIGHT,
        legend=_legend([_key(arm, element("path", f"line {_css(i)}", d="M0 6H26")) for i, arm, _ in bands]),
        note="Lines: mean over seeds; bands: from the lowest seed to the highest.",
        table=number_table(("arm", "first step", "last step", "range at the last step"), rows),
    )  # fmt: skip


def difference_chart(
    chart_id: str, caption: str, rows: Sequence[tuple[int, str, Entry]], *, x_label: str
) -> str:
    """Differences in points with their intervals, one row per arm: (place among all arms, name, entry)."""
    known = [row for row in rows if row[2]["value"] is not None]
    if not known:
        return nothing(caption)
    edges = [
        100 * edge for _, _, e in known for edge in (e["value"], e["low"], e["high"]) if edge is not None
    ]
    top = 8
    height = top + _ROW_HEIGHT * len(rows) + BOTTOM
    x_of = Scale(*padded(*_ends([0.0, *edges])), 8, WIDTH - RIGHT)
    drawn = [x_axis(x_of, height, x_label, grid_from=top)]
    drawn.append(element("line", "zero", x1=x_of(0), x2=x_of(0), y1=top, y2=height - BOTTOM))
    for place, (index, name, entry) in enumerate(rows):
        y = top + _ROW_HEIGHT * place
        drawn.append(label(name, "name", 10, y + 12))
        drawn.append(label(points(entry), "tick", WIDTH - RIGHT, y + 12, "end"))
        if entry["value"] is not None:
            drawn.append(_spread(index, x_of, entry, lambda a, b, y=y: f"M{a} {units(y + 23)}H{b}"))
            drawn.append(_mark(index, x_of(100 * entry["value"]), y + 23))
    words = [(name, points(entry)) for _, name, entry in rows]
    return figure(
        chart_id, caption, "; ".join(f"{name}: {text}" for name, text in words), "".join(drawn), height,
        table=number_table(("arm", "points (95% interval)"), words),
    )  # fmt: skip


def cost_chart(
    chart_id: str, caption: str, rows: Sequence[tuple[int, str, float, str]], *, x_label: str
) -> str:
    """Horizontal bars: (place among all arms, name, value, words at its right end)."""
    if not rows:
        return nothing(caption)
    top = 8
    height = top + _ROW_HEIGHT * len(rows) + BOTTOM
    x_of = Scale(0, max(value for _, _, value, _ in rows) * 1.02 or 1, 8, WIDTH - RIGHT)
    drawn = [x_axis(x_of, height, x_label, grid_from=top)]
    for place, (index, name, value, text) in enumerate(rows):
        y = top + _ROW_HEIGHT * place
        drawn.append(label(name, "name", 10, y + 12))
        drawn.append(label(text, "tick", WIDTH - RIGHT, y + 12, "end"))
        drawn.append(element("rect", f"bar {_css(index)}", x=8, y=y + 17, width=x_of(value) - 8, height=10))
    return figure(
        chart_id, caption, "; ".join(f"{name}: {text}" for _, name, _, text in rows), "".join(drawn), height,
        table=number_table(("arm", x_label, ""), [(name, number(value, 1), text) for _, name, value, text in rows]),
    )  # fmt: skip


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _mark(index: int, x: float, y: float, css: str = "", title: str = "", scale: float = 1.0) -> str:
    size = "" if scale == 1.0 else f" scale({scale})"
    place = f"translate({units(x)} {units(y)}){size}"
    return element(
        "path", f"mark {css} {_css(index)}", title=title, d=MARKERS[_shape(index)], transform=place
    )


def _spread(index: int, scale: Scale, entry: Entry, path: Any) -> str:
    if entry["low"] is None or entry["high"] is None:
        return ""
    low, high = sorted((scale.start, scale.end))
    ends = (units(min(max(scale(100 * entry[side]), low), high)) for side in ("low", "high"))
    return element("path", f"spread {_css(index)}", d=path(*ends))


def _legend(keys: Sequence[str]) -> str:
    return f'<p class="legend">{"".join(keys)}</p>'


def _key(name: str, drawn: str) -> str:
    return f'<span><svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{drawn}</svg>{escape(name)}</span>'


def _words(spot: Spot) -> str:
    return f"{percent(spot.x)} across, {percent(spot.y)} up"
