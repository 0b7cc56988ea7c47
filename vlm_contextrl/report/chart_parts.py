"""Parts that the charts share: scales, round ticks, axes, captions, legends, tables of the drawn numbers.

Lengths are SVG units; a drawing is `WIDTH` units wide whatever its size on the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Look = Literal["before", "after", "right", "wrong"]

WIDTH = 380
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 40  # room for tick labels and axis labels
MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scale:
    """Linear map of data [low, high] to units [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def finite(value: object) -> float | None:
    """The value as a float, None for anything that cannot be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: float | None, digits: int = 2) -> str:
    """For people: a real minus sign, a dash for a missing value, no negative zero."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with a little room at both ends; never empty."""
    pad = 0.06 * (high - low) or max(0.05 * abs(high), 0.05)
    return low - pad, high + pad


def units(value: float) -> str:
    """A length as it is written in SVG."""
    return f"{value:.1f}".removesuffix(".0")


def element(name: str, css: str = "", *, title: str = "", **attributes: float | str) -> str:
    """One SVG element; numbers become lengths, `title` its tooltip."""
    given = {"class": css, **attributes} if css else attributes
    written = "".join(
        f' {key.replace("_", "-")}="{escape(value, quote=True) if isinstance(value, str) else units(value)}"'
        for key, value in given.items()
    )
    return f"<{name}{written}><title>{escape(title)}</title></{name}>" if title else f"<{name}{written}/>"


def label(text: str, css: str, x: float, y: float, anchor: str = "start") -> str:
    """Text with its baseline at y."""
    placed = f'x="{units(x)}" y="{units(y)}" text-anchor="{anchor}"'
    return f'<text class="{css}" {placed}>{escape(text)}</text>'


def y_axis(y_of: Scale, name: str, count: int = 5) -> str:
    """Grid lines with their values, and the axis label turned by a quarter."""
    drawn = []
    for value in ticks(y_of.low, y_of.high, count):
        y = y_of(value)
        drawn.append(element("line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        drawn.append(label(_tick(value), "tick", LEFT - 5, y + 4, "end"))
    turned = f'transform="translate(11 {units(y_of.middle)}) rotate(-90)" text-anchor="middle"'
    drawn.append(f'<text class="axis" {turned}>{escape(name)}</text>')
    return "".join(drawn)


def x_axis(x_of: Scale, height: float, name: str, grid_from: float | None = None) -> str:
    """The base line with ticks and label; grid lines from `grid_from` down when it is given."""
    base = height - BOTTOM
    drawn = [element("line", "base", x1=x_of.start, x2=x_of.end, y1=base, y2=base)]
    for value in ticks(x_of.low, x_of.high):
        x = x_of(value)
        if grid_from is not None:
            drawn.append(element("line", "grid", x1=x, x2=x, y1=grid_from, y2=base))
        drawn.append(element("line", "base", x1=x, x2=x, y1=base, y2=base + 4))
        drawn.append(label(_tick(value), "tick", x, base + 15, "middle"))
    drawn.append(label(name, "axis", x_of.middle, height - 8, "middle"))
    return "".join(drawn)


def level_line(name: str, y: float) -> str:
    """A dotted line across the drawing, named at its right end."""
    line = element("line", "reference", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
    return line + label(name, "tick", WIDTH - RIGHT, y - 4, "end")


def figure(
    chart_id: str,
    caption: str,
    described: str,
    drawn: str,
    height: float,
    *,
    legend: str = "",
    note: str = "",
    table: str = "",
) -> str:
    """The chart with everything around it. `described` is read aloud in place of the drawing."""
    name = escape(chart_id, quote=True)
    notes = f'<p class="note">{escape(note)}</p>' if note else ""
    labels = f'role="img" aria-labelledby="{name}-t {name}-d"'
    return (
        f'<figure class="chart" id="{name}"><figcaption>{escape(caption)}</figcaption>{legend}'
        f'<svg viewBox="0 0 {WIDTH} {units(height)}" {labels}><title id="{name}-t">{escape(caption)}</title>'
        f'<desc id="{name}-d">{escape(described)}</desc>{drawn}</svg>{notes}'
        f"<details><summary>The numbers as a table</summary>{table}</details></figure>"
    )


def nothing(caption: str) -> str:
    """In place of a chart that has no data."""
    note = '<p class="note">Nothing was recorded for this chart.</p>'
    return f'<figure class="chart"><figcaption>{escape(caption)}</figcaption>{note}</figure>'


def legend_line(entries: Sequence[tuple[str, Look, str]]) -> str:
    """Name, look and shape (line, box, dot) of what is drawn."""
    keys = []
    for name, look, shape in entries:
        drawn = {
            "line": element("path", f"curve {look}", d="M1 6H25"),
            "box": element("rect", f"fill {look}", x=1, y=1, width=24, height=10),
            "dot": element("path", "whisker", d="M13 0V12")
            + element("circle", f"fill {look}", cx=13, cy=6, r=4),
        }[shape]
        svg = f'<svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{drawn}</svg>'
        keys.append(f"<span>{svg}{escape(name)}</span>")
    return f'<p class="legend">{"".join(keys)}</p>'


def number_table(headers: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headers)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)
