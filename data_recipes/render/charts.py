"""Charts: the bars and lines of axis_charts.py, and pies.

The shares of a pie sum to twelve, so its edit moves the boundary between two slices and both their shares
change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.axis_charts import BAR, LINE, YES_NO, Values, new_tops, only_top
from vlm_contextrl.data_recipes.render.canvas import BACKGROUNDS, COLOURS, PALETTE, WHITE, Canvas
from vlm_contextrl.data_recipes.render.scene import Ask, Asker, Domain, Kind, Scene, among, words, yes_no

WHOLE = 12


@dataclass(frozen=True)
class Pie(Scene):
    """Slices clockwise from `start` degrees, in twelfths of the whole."""

    kind: ClassVar[str] = "pie"
    colours: tuple[str, ...]
    values: Values
    start: int


def sample_pie(rng: Random) -> Pie:
    """Three or four slices of different sizes."""
    count = rng.randint(3, 4)
    while True:
        cuts = sorted(rng.sample(range(1, WHOLE), count - 1))
        shares = tuple(after - before for before, after in zip([0, *cuts], [*cuts, WHOLE], strict=True))
        if len(set(shares)) == count:
            return Pie(
                rng.choice(tuple(BACKGROUNDS)),
                tuple(rng.sample(COLOURS, count)),
                shares,
                rng.randrange(0, 360, 5),
            )


def draw_pie(scene: Pie, canvas: Canvas) -> None:
    """Slices with white gaps."""
    angle = float(scene.start)
    edges = []
    for colour, value in zip(scene.colours, scene.values, strict=True):
        canvas.slice((0.5, 0.5), 0.46, angle, angle + 360 * value / WHOLE, PALETTE[colour])
        edges.append(angle)
        angle += 360 * value / WHOLE
    for edge in edges:
        canvas.spoke((0.5, 0.5), 0.0, 0.46, edge, 0.014, WHITE)


def facts_pie(scene: Pie) -> list[str]:
    """One fact per slice, in twelfths."""
    return [f"{colour} {value}" for colour, value in zip(scene.colours, scene.values, strict=True)]


def _shifts(values: Values) -> list[Values]:
    """Every way to move one boundary; the first slice starts where it did, so no other slice turns."""
    found = []
    for index in range(len(values) - 1):
        total = values[index] + values[index + 1]
        for share in range(1, total):
            if share != values[index]:
                found.append((*values[:index], share, total - share, *values[index + 2 :]))
    return found


def ask_pie_extreme(scene: Pie, rng: Random) -> Ask[Pie] | None:
    """Colour of the largest or smallest slice; the edit moves one boundary."""
    word, sign = rng.choice((("largest", 1), ("smallest", -1)))
    top = only_top(scene.values, sign)
    moved = new_tops(_shifts(scene.values), top, sign)
    if top is None:
        return None

    def answer_of(other: Pie) -> str | None:
        found = only_top(other.values, sign)
        return None if found is None else other.colours[found]

    templates = (
        "Which colour is the {w} slice?",
        "What colour is the {w} slice?",
        "Name the colour of the {w} slice.",
    )
    return Ask(
        query=words(rng, templates, w=word),
        answer_of=answer_of,
        answer_type="exact",
        answer=scene.colours[top],
        alternatives=tuple(
            among(scene.colours[new], values, lambda v: replace(scene, values=v))
            for new, values in moved.items()
        ),
        vocabulary=scene.colours,
    )


def ask_pie_compare(scene: Pie, rng: Random) -> Ask[Pie] | None:
    """Whether one slice is larger than another; the edit moves one boundary."""
    first, second = rng.sample(range(len(scene.values)), 2)
    x, y = scene.colours[first], scene.colours[second]

    def answer_of(other: Pie) -> str | None:
        a, b = (other.values[other.colours.index(colour)] for colour in (x, y))
        return None if a == b else yes_no(a > b)

    now = scene.values[first] > scene.values[second]
    edits = [v for v in _shifts(scene.values) if v[first] != v[second] and (v[first] > v[second]) != now]
    if not edits:
        return None
    templates = (
        "Is the {x} slice larger than the {y} slice?",
        "Is {x} larger than {y}?",
        "Does {x} have a larger slice than {y}?",
    )
    return Ask(
        query=words(rng, templates, x=x, y=y),
        answer_of=answer_of,
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=(among(yes_no(not now), edits, lambda v: replace(scene, values=v)),),
    )


PIE: Kind[Pie] = Kind(
    "pie",
    "a pie chart: ",
    sample_pie,
    draw_pie,
    facts_pie,
    (
        Asker("pie_extreme", ask_pie_extreme),
        Asker("pie_compare", ask_pie_compare, YES_NO),
    ),
)

CHARTS = Domain("charts", (BAR, LINE, PIE))
