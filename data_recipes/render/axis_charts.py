"""Bar and line charts: whole values from 1 to 9 over ruled axes. Every edit changes one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import BACKGROUNDS, BLACK, COLOURS, PALE, PALETTE, Canvas
from vlm_contextrl.data_recipes.render.scene import (
    COUNT_SHARES,
    Ask,
    Asker,
    Kind,
    Scene,
    among,
    step_weight,
    swap,
    to,
    words,
    yes_no,
)

VALUES = tuple(range(1, 10))
VALUE_WORDS = tuple(str(value) for value in VALUES)
LETTERS = ("A", "B", "C", "D")
LEFT, RIGHT, TOP = 0.17, 0.985, 0.085
YES_NO = ("yes", "no")
Values = tuple[int, ...]


@dataclass(frozen=True)
class Bars(Scene):
    """Bars from left to right, all of different heights when sampled."""

    kind: ClassVar[str] = "bar"
    colours: tuple[str, ...]
    values: Values


@dataclass(frozen=True)
class Line(Scene):
    """One line over lettered positions."""

    kind: ClassVar[str] = "line"
    colour: str
    values: Values


def _background(rng: Random) -> str:
    return rng.choice(tuple(BACKGROUNDS))


def sample_bars(rng: Random) -> Bars:
    """Three or four bars of different heights."""
    count = rng.randint(3, 4)
    return Bars(_background(rng), tuple(rng.sample(COLOURS, count)), tuple(rng.sample(VALUES, count)))


def sample_line(rng: Random) -> Line:
    """Four points of different heights."""
    return Line(_background(rng), rng.choice(COLOURS), tuple(rng.sample(VALUES, len(LETTERS))))


def _axes(canvas: Canvas, bottom: float) -> Callable[[float], float]:
    """Grid lines at 1..9, the numbers 3, 6 and 9; returns value -> y."""

    def height(value: float) -> float:
        return bottom - (bottom - TOP) * value / 9

    for value in VALUES:
        y = height(value)
        canvas.box(
            LEFT,
            y - 0.003,
            RIGHT,
            y + (0.005 if value % 3 == 0 else 0.001),
            (120, 120, 120) if value % 3 == 0 else PALE,
        )
        if value % 3 == 0:
            canvas.text((0.075, y), str(value), 0.125)
    return height


def draw_bars(scene: Bars, canvas: Canvas) -> None:
    """Bars on a grid, standing on the axis."""
    bottom = 0.965
    height = _axes(canvas, bottom)
    slot = (RIGHT - LEFT) / len(scene.values)
    for index, (colour, value) in enumerate(zip(scene.colours, scene.values, strict=True)):
        x = LEFT + slot * (index + 0.5)
        canvas.box(x - 0.37 * slot, height(value), x + 0.37 * slot, bottom, PALETTE[colour])
    canvas.box(LEFT - 0.01, TOP - 0.02, LEFT + 0.008, bottom + 0.018, BLACK)
    canvas.box(LEFT - 0.01, bottom, RIGHT, bottom + 0.018, BLACK)


def draw_line(scene: Line, canvas: Canvas) -> None:
    """A thick line with a disc at every point and its letter below the axis."""
    bottom = 0.82
    height = _axes(canvas, bottom)
    canvas.box(LEFT - 0.01, TOP - 0.02, LEFT + 0.008, bottom + 0.018, BLACK)
    canvas.box(LEFT - 0.01, bottom, RIGHT, bottom + 0.018, BLACK)
    slot = (RIGHT - LEFT) / len(scene.values)
    points = [(LEFT + slot * (index + 0.5), height(value)) for index, value in enumerate(scene.values)]
    canvas.line(points, 0.035, PALETTE[scene.colour])
    for letter, point in zip(LETTERS, points, strict=False):
        canvas.disc(point, 0.045, PALETTE[scene.colour])
        canvas.text((point[0], 0.915), letter, 0.125)


def facts_bars(scene: Bars) -> list[str]:
    """One fact per bar."""
    return [f"{colour} {value}" for colour, value in zip(scene.colours, scene.values, strict=True)]


def facts_line(scene: Line) -> list[str]:
    """The colour, then one fact per point."""
    return [
        f"{scene.colour} line",
        *(f"{letter} {value}" for letter, value in zip(LETTERS, scene.values, strict=False)),
    ]


def only_top(values: Sequence[int], sign: int) -> int | None:
    """Index of the one largest (sign 1) or smallest (sign -1) value; None on a tie."""
    signed = [sign * value for value in values]
    best = max(signed)
    return signed.index(best) if signed.count(best) == 1 else None


def _value_of(scene: Bars, colour: str) -> int | None:
    return scene.values[scene.colours.index(colour)] if colour in scene.colours else None


def ask_bar_value(scene: Bars, rng: Random) -> Ask[Bars]:
    """Height of a bar."""
    index = rng.randrange(len(scene.values))
    colour = scene.colours[index]
    templates = (
        "What is the value of the {x} bar?",
        "How high is the {x} bar?",
        "Which number does the {x} bar reach?",
    )
    return Ask(
        query=words(rng, templates, x=colour),
        answer_of=lambda other: str(_value_of(other, colour)),
        answer_type="numeric",
        answer=str(scene.values[index]),
        alternatives=tuple(
            to(str(value), replace(scene, values=swap(scene.values, index, value)))
            for value in VALUES
            if value != scene.values[index]
        ),
        vocabulary=VALUE_WORDS,
    )


def new_tops(changes: Sequence[Values], now: int | None, sign: int) -> dict[int, list[Values]]:
    """The changed values by the index of their extreme, where that is not the old one and not shared."""
    found: dict[int, list[Values]] = {}
    for values in changes:
        top = only_top(values, sign)
        if top is not None and top != now:
            found.setdefault(top, []).append(values)
    return found


def _changes(values: Values, indices: Sequence[int] | None = None) -> list[Values]:
    """Every change of one value (at one of `indices`)."""
    places = range(len(values)) if indices is None else indices
    return [swap(values, at, value) for at in places for value in VALUES if value != values[at]]


def ask_bar_extreme(scene: Bars, rng: Random) -> Ask[Bars] | None:
    """Colour of the tallest or shortest bar; the edit changes one bar."""
    word, sign = rng.choice((("tallest", 1), ("shortest", -1)))
    top = only_top(scene.values, sign)
    if top is None:
        return None

    def answer_of(other: Bars) -> str | None:
        found = only_top(other.values, sign)
        return None if found is None else other.colours[found]

    templates = (
        "Which colour is the {w} bar?",
        "What colour is the {w} bar?",
        "Name the colour of the {w} bar.",
    )
    return Ask(
        query=words(rng, templates, w=word),
        answer_of=answer_of,
        answer_type="exact",
        answer=scene.colours[top],
        alternatives=tuple(
            among(scene.colours[new], values, lambda v: replace(scene, values=v))
            for new, values in new_tops(_changes(scene.values), top, sign).items()
        ),
        vocabulary=scene.colours,
    )


def ask_bar_compare(scene: Bars, rng: Random) -> Ask[Bars] | None:
    """Whether one bar is higher than another; the edit changes one of the two."""
    first, second = rng.sample(range(len(scene.values)), 2)
    x, y = scene.colours[first], scene.colours[second]

    def answer_of(other: Bars) -> str | None:
        a, b = _value_of(other, x), _value_of(other, y)
        return None if a is None or b is None or a == b else yes_no(a > b)

    now = scene.values[first] > scene.values[second]
    changes = _changes(scene.values, (first, second))
    edits = [v for v in changes if v[first] != v[second] and (v[first] > v[second]) != now]
    if not edits:
        return None
    templates = (
        "Is the {x} bar higher than the {y} bar?",
        "Is {x} higher than {y}?",
        "Is the {x} bar taller than the {y} bar?",
    )
    return Ask(
        query=words(rng, templates, x=x, y=y),
        answer_of=answer_of,
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=(among(yes_no(not now), edits, lambda v: replace(scene, values=v)),),
    )


def ask_bar_count(scene: Bars, rng: Random) -> Ask[Bars]:
    """How many bars (0 to 3) are higher than a number; the edit takes one bar across it."""
    limit = rng.randint(2, 7)

    def count(values: Sequence[int]) -> int:
        return sum(value > limit for value in values)

    now = count(scene.values)
    templates = (
        "How many bars are higher than {n}?",
        "How many bars are above {n}?",
        "Count the bars higher than {n}.",
    )
    reached = {
        step: [v for v in _changes(scene.values) if count(v) == step]
        for step in (now - 1, now + 1)
        if step <= 3
    }
    return Ask(
        query=words(rng, templates, n=str(limit)),
        answer_of=lambda other: str(count(other.values)),
        answer_type="numeric",
        answer=str(now),
        alternatives=tuple(
            among(str(step), edits, lambda v: replace(scene, values=v), step_weight(now, step, 0))
            for step, edits in reached.items()
            if edits
        ),
    )


def ask_line_value(scene: Line, rng: Random) -> Ask[Line]:
    """Height of a point."""
    index = rng.randrange(len(scene.values))
    templates = (
        "What is the value at {x}?",
        "How high is the line at {x}?",
        "Which number does the line reach at {x}?",
    )
    return Ask(
        query=words(rng, templates, x=LETTERS[index]),
        answer_of=lambda other: str(other.values[index]),
        answer_type="numeric",
        answer=str(scene.values[index]),
        alternatives=tuple(
            to(str(value), replace(scene, values=swap(scene.values, index, value)))
            for value in VALUES
            if value != scene.values[index]
        ),
        vocabulary=VALUE_WORDS,
    )


def ask_line_peak(scene: Line, rng: Random) -> Ask[Line] | None:
    """Letter of the highest or lowest point; the edit moves one point."""
    word, sign = rng.choice((("highest", 1), ("lowest", -1)))
    top = only_top(scene.values, sign)
    if top is None:
        return None

    def answer_of(other: Line) -> str | None:
        found = only_top(other.values, sign)
        return None if found is None else LETTERS[found]

    templates = (
        "At which letter is the line {w}?",
        "Where is the line {w}?",
        "Which letter marks the {w} point?",
    )
    return Ask(
        query=words(rng, templates, w=word),
        answer_of=answer_of,
        answer_type="exact",
        answer=LETTERS[top],
        alternatives=tuple(
            among(LETTERS[new], values, lambda v: replace(scene, values=v))
            for new, values in new_tops(_changes(scene.values), top, sign).items()
        ),
    )


def ask_line_rise(scene: Line, rng: Random) -> Ask[Line] | None:
    """Whether the line rises between neighbours; the edit moves one of the two points."""
    index = rng.randrange(len(scene.values) - 1)

    def rises(values: Sequence[int]) -> bool | None:
        return None if values[index] == values[index + 1] else values[index] < values[index + 1]

    def answer_of(other: Line) -> str | None:
        found = rises(other.values)
        return None if found is None else yes_no(found)

    now = scene.values[index] < scene.values[index + 1]
    edits = [values for values in _changes(scene.values, (index, index + 1)) if rises(values) is (not now)]
    if not edits:
        return None
    templates = (
        "Does the line rise from {x} to {y}?",
        "Does the line go up from {x} to {y}?",
        "Is {y} higher than {x}?",
    )
    return Ask(
        query=words(rng, templates, x=LETTERS[index], y=LETTERS[index + 1]),
        answer_of=answer_of,
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=(among(yes_no(not now), edits, lambda v: replace(scene, values=v)),),
    )


BAR: Kind[Bars] = Kind(
    "bar",
    "a bar chart: ",
    sample_bars,
    draw_bars,
    facts_bars,
    (
        Asker("bar_value", ask_bar_value),
        Asker("bar_extreme", ask_bar_extreme),
        Asker("bar_compare", ask_bar_compare, YES_NO),
        Asker("bar_count", ask_bar_count, ("0", "1", "2", "3"), COUNT_SHARES),
    ),
)
LINE: Kind[Line] = Kind(
    "line",
    "a line chart: ",
    sample_line,
    draw_line,
    facts_line,
    (
        Asker("line_value", ask_line_value),
        Asker("line_peak", ask_line_peak, LETTERS),
        Asker("line_rise", ask_line_rise, YES_NO),
    ),
)
