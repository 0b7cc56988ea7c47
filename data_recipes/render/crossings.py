"""Figures to count in: bars that cross a line, dots inside a circle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import BLACK, COLOURS, PALETTE, Canvas, Point
from vlm_contextrl.data_recipes.render.figures import YES_NO, any_background, near
from vlm_contextrl.data_recipes.render.scene import (
    COUNT_SHARES,
    Alternative,
    Ask,
    Asker,
    Kind,
    Scene,
    step_weight,
    swap,
    to,
    words,
    yes_no,
)

HEIGHTS = {"above": -0.27, "crossing": 0.0, "below": 0.27}
CIRCLE_RADIUS = 0.3
DOT_RADIUS = 0.075

# Bars crossing a line ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crossings(Scene):
    """Upright bars that lie above, across or below a level line."""

    kind: ClassVar[str] = "crossings"
    colours: tuple[str, ...]
    places: tuple[str, ...]
    offsets: tuple[float, ...]


def sample_crossings(rng: Random) -> Crossings:
    """Three or four bars, each crossing half of the time."""
    count = rng.randint(3, 4)
    places = tuple("crossing" if rng.random() < 0.5 else rng.choice(("above", "below")) for _ in range(count))
    return Crossings(
        any_background(rng),
        tuple(rng.sample(COLOURS, count)),
        places,
        tuple(near(rng, 0.0, 0.03) for _ in range(count)),
    )


def draw_crossings(scene: Crossings, canvas: Canvas) -> None:
    """A black line across the picture and thick bars."""
    canvas.line([(0.04, 0.5), (0.96, 0.5)], 0.035, BLACK)
    slot = 0.92 / len(scene.places)
    for index, (colour, place, offset) in enumerate(
        zip(scene.colours, scene.places, scene.offsets, strict=True)
    ):
        x, y = 0.04 + slot * (index + 0.5), 0.5 + HEIGHTS[place] + offset
        canvas.line([(x, y - 0.13), (x, y + 0.13)], 0.065, PALETTE[colour])


def _moves(scene: Crossings, index: int) -> list[Crossings]:
    crossing = scene.places[index] == "crossing"
    return [
        replace(scene, places=swap(scene.places, index, place))
        for place in (("above", "below") if crossing else ("crossing",))
    ]


def ask_crossing_count(scene: Crossings, rng: Random) -> Ask[Crossings]:
    """How many bars (0 to 3) cross the line; the edit moves one bar."""
    now = scene.places.count("crossing")
    edits = [other for index in range(len(scene.places)) for other in _moves(scene, index)]
    counts = [other.places.count("crossing") for other in edits]
    templates = (
        "How many bars cross the line?",
        "How many bars cut the black line?",
        "Count the bars that cross the line.",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: str(other.places.count("crossing")),
        answer_type="numeric",
        answer=str(now),
        alternatives=tuple(
            to(str(count), other, step_weight(now, count, 0) / counts.count(count))
            for count, other in zip(counts, edits, strict=True)
            if count <= 3
        ),
    )


def ask_crosses(scene: Crossings, rng: Random) -> Ask[Crossings]:
    """Whether one bar crosses the line; the edit moves it."""
    index = rng.randrange(len(scene.places))
    colour = scene.colours[index]
    now = scene.places[index] == "crossing"
    templates = (
        "Does the {x} bar cross the line?",
        "Does the {x} bar cut the black line?",
        "Is the {x} bar on the line?",
    )
    return Ask(
        query=words(rng, templates, x=colour),
        answer_of=lambda other: yes_no(other.places[index] == "crossing"),
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=tuple(to(yes_no(not now), other) for other in _moves(scene, index)),
    )


CROSSINGS: Kind[Crossings] = Kind(
    "crossings",
    "bars on a line: ",
    sample_crossings,
    draw_crossings,
    lambda scene: [f"{colour} {place}" for colour, place in zip(scene.colours, scene.places, strict=True)],
    (
        Asker("crossing_count", ask_crossing_count, ("0", "1", "2", "3"), COUNT_SHARES),
        Asker("crosses", ask_crosses, YES_NO),
    ),
)

# Dots and a circle ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dots(Scene):
    """Coloured dots inside or outside a circle."""

    kind: ClassVar[str] = "dots"
    centre: Point
    colours: tuple[str, ...]
    spots: tuple[Point, ...]

    def inside(self, index: int) -> bool:
        """Whether the dot lies in the circle (never on it)."""
        return math.dist(self.spots[index], self.centre) < CIRCLE_RADIUS

    @property
    def count(self) -> int:
        """Dots inside the circle."""
        return sum(self.inside(index) for index in range(len(self.spots)))


def _spot(rng: Random, centre: Point, inside: bool, taken: tuple[Point, ...]) -> Point:
    gap = 0.03 + DOT_RADIUS
    while True:
        spot = near(rng, 0.5, 0.41), near(rng, 0.5, 0.41)
        distance = math.dist(spot, centre)
        if (distance < CIRCLE_RADIUS - gap if inside else distance > CIRCLE_RADIUS + gap) and all(
            math.dist(spot, other) > 2 * DOT_RADIUS + 0.02 for other in taken
        ):
            return spot


def sample_dots(rng: Random) -> Dots:
    """Three or four dots, each inside half of the time."""
    count = rng.randint(3, 4)
    centre = near(rng, 0.5, 0.08), near(rng, 0.5, 0.08)
    spots: tuple[Point, ...] = ()
    for _ in range(count):
        spots = (*spots, _spot(rng, centre, rng.random() < 0.5, spots))
    return Dots(any_background(rng), centre, tuple(rng.sample(COLOURS, count)), spots)


def draw_dots(scene: Dots, canvas: Canvas) -> None:
    """A thick black ring and filled dots."""
    canvas.ring(scene.centre, CIRCLE_RADIUS + 0.014, 0.028, BLACK)
    for colour, spot in zip(scene.colours, scene.spots, strict=True):
        canvas.disc(spot, DOT_RADIUS, PALETTE[colour])


def _move(scene: Dots, index: int) -> Callable[[Random], Dots]:
    def make(rng: Random) -> Dots:
        others = scene.spots[:index] + scene.spots[index + 1 :]
        return replace(
            scene, spots=swap(scene.spots, index, _spot(rng, scene.centre, not scene.inside(index), others))
        )

    return make


def ask_inside(scene: Dots, rng: Random) -> Ask[Dots]:
    """Whether a dot is inside the circle; the edit moves it."""
    index = rng.randrange(len(scene.spots))
    now = scene.inside(index)
    outside = rng.random() < 0.3
    templates = (
        "Is the {x} dot inside the circle?",
        "Does the {x} dot lie inside the circle?",
        "Is the {x} dot in the circle?",
    )
    if outside:
        templates = (
            "Is the {x} dot outside the circle?",
            "Does the {x} dot lie outside the circle?",
            "Is the {x} dot out of the circle?",
        )
    return Ask(
        query=words(rng, templates, x=scene.colours[index]),
        answer_of=lambda other: yes_no(other.inside(index) != outside),
        answer_type="boolean",
        answer=yes_no(now != outside),
        alternatives=(Alternative(yes_no(now == outside), _move(scene, index)),),
    )


def ask_inside_count(scene: Dots, rng: Random) -> Ask[Dots]:
    """How many dots (0 to 3) are inside; the edit moves one."""
    now = scene.count
    steps = [(index, now - 1 if scene.inside(index) else now + 1) for index in range(len(scene.spots))]
    counts = [count for _, count in steps]
    templates = (
        "How many dots are inside the circle?",
        "How many dots lie in the circle?",
        "Count the dots inside the circle.",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: str(other.count),
        answer_type="numeric",
        answer=str(now),
        alternatives=tuple(
            Alternative(str(count), _move(scene, index), step_weight(now, count, 0) / counts.count(count))
            for index, count in steps
            if count <= 3
        ),
    )


DOTS: Kind[Dots] = Kind(
    "dots",
    "a circle and dots: ",
    sample_dots,
    draw_dots,
    lambda scene: [
        f"{colour} {'inside' if scene.inside(index) else 'outside'}"
        for index, colour in enumerate(scene.colours)
    ],
    (
        Asker("inside", ask_inside, YES_NO),
        Asker("inside_count", ask_inside_count, ("0", "1", "2", "3"), COUNT_SHARES),
    ),
)
