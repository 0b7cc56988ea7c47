"""The funnel of the filters: what each one left, as lines of text and as a drawing (SVG, nothing fetched, light and dark).

Bars are on a logarithmic axis: candidates fall by orders of magnitude. A filter that was only counted is drawn hollow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vlm_contextrl.data_recipes.trajectories.cascade import Stage
from vlm_contextrl.report.chart_parts import element, label, units

_WIDTH, _LEFT, _RIGHT, _TOP = 760, 190, 250, 64
_ROW, _BAR = 46, 13
_STYLE = """<style>
svg { background: #fff; font: 13px system-ui, "Segoe UI", Roboto, sans-serif; }
text { fill: #1b1f24; font-variant-numeric: tabular-nums; }
.title { font-size: 16px; font-weight: 650; } .soft { fill: #57606a; font-size: 12px; } .grid { stroke: #e3e5e8; }
.trajectories { fill: #0b62ae; } .pairs { fill: #8b95a1; } .hollow { fill: none; stroke-dasharray: 3 3; }
.trajectories.hollow { stroke: #0b62ae; } .pairs.hollow { stroke: #8b95a1; }
@media (prefers-color-scheme: dark) { svg { background: #1a1f24; } text { fill: #e8ebee; } .soft { fill: #a3adb8; }
.grid { stroke: #343b43; } .trajectories { fill: #5cb0f5; } .trajectories.hollow { fill: none; stroke: #5cb0f5; } }
</style>"""


def funnel_lines(stages: Sequence[Stage]) -> list[str]:
    """One aligned line per filter."""
    rows = [
        ("filter", "trajectories", "pairs"),
        *((_name(s), f"{s.trajectories:,}", f"{s.pairs:,}" if s.pairs else "") for s in stages),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]


def funnel_svg(stages: Sequence[Stage], rejected: Mapping[str, int]) -> str:
    """The drawing; rejected: trajectories per reason, listed at the right."""
    height = max(_TOP + _ROW * len(stages) + 34, _TOP + 40 + 18 * len(rejected))
    top = max([10, *(max(stage.trajectories, stage.pairs) for stage in stages)])
    end = _WIDTH - _RIGHT - 60  # room for the number behind a full bar

    def x_of(count: int) -> float:
        """A count of one has a short bar, none has no bar."""
        return _LEFT + (end - _LEFT) * (1 + math.log10(count)) / (1 + math.log10(top)) if count else _LEFT

    drawn = [label("What the filters left", "title", 16, 26)]
    drawn += [
        element("rect", "trajectories", x=16, y=38, width=12, height=12),
        label("trajectories left", "soft", 34, 48),
    ]
    drawn += [
        element("rect", "pairs", x=166, y=38, width=12, height=12),
        label("candidate pairs (logarithmic axis)", "soft", 184, 48),
    ]
    bottom = _TOP + _ROW * len(stages)
    for power in range(math.floor(math.log10(top)) + 1):
        x = x_of(10**power)
        drawn.append(element("line", "grid", x1=x, x2=x, y1=_TOP, y2=bottom))
        drawn.append(label(f"{10**power:,}", "soft", x, bottom + 16, "middle"))
    for row, stage in enumerate(stages):
        y = _TOP + _ROW * row + 6
        drawn.append(label(stage.name, "name", _LEFT - 12, y + 14, "end"))
        if not stage.applied:
            drawn.append(label("counted, not asked for", "soft", _LEFT - 12, y + 29, "end"))
        for kind, count, at in (
            ("trajectories", stage.trajectories, y),
            ("pairs", stage.pairs, y + _BAR + 2),
        ):
            if kind == "pairs" and not _compares(stages, row):
                continue
            css = kind if stage.applied else f"{kind} hollow"
            drawn.append(
                element(
                    "rect",
                    css,
                    title=f"{stage.name}: {count:,} {kind}",
                    x=_LEFT,
                    y=at,
                    width=x_of(count) - _LEFT,
                    height=_BAR,
                )
            )
            drawn.append(label(f"{count:,}", "soft", x_of(count) + 5, at + 11))
    side = _WIDTH - _RIGHT + 16
    drawn.append(label("Trajectories in no pair", "soft", side, _TOP + 12))
    for row, (code, count) in enumerate(rejected.items()):
        drawn.append(label(f"{count:,}", "count", side + 52, _TOP + 34 + 18 * row, "end"))
        drawn.append(label(code.replace("_", " "), "soft", side + 60, _TOP + 34 + 18 * row))
    told = "; ".join(f"{s.name}: {s.trajectories} trajectories, {s.pairs} pairs" for s in stages)
    size = f'viewBox="0 0 {_WIDTH} {units(height)}" width="{_WIDTH}" height="{units(height)}"'
    head = f"<title>What the filters left</title><desc>{told}</desc>{_STYLE}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{head}{"".join(drawn)}</svg>\n'


def _compares(stages: Sequence[Stage], row: int) -> bool:
    """Pairs are counted from the first filter that compares trajectories on."""
    return any(stage.pairs for stage in stages[: row + 1])


def _name(stage: Stage) -> str:
    return stage.name if stage.applied else f"({stage.name}: counted, not asked for)"
