"""Geometric figures: a polygon, two segments, an angle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import (
    BACKGROUNDS,
    BLACK,
    COLOURS,
    PALETTE,
    Canvas,
    Point,
    on_circle,
)
from vlm_contextrl.data_recipes.render.scene import Ask, Asker, Kind, Scene, among, swap, to, words, yes_no

SIDES = tuple(range(3, 9))
SIDE_WORDS = tuple(str(sides) for sides in SIDES)
LENGTHS = (2, 3, 4, 5)
TURNS = (0, 30, 60, 90, 120, 150)
ANGLES = {"acute": (30, 40, 50, 60), "right": (90,), "obtuse": (120, 130, 140, 150)}
YES_NO = ("yes", "no")


def any_background(rng: Random) -> str:
    return rng.choice(tuple(BACKGROUNDS))


def near(rng: Random, middle: float, spread: float) -> float:
    return round(rng.uniform(middle - spread, middle + spread), 3)


# Polygon ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Polygon(Scene):
    """A regular polygon, turned."""

    kind: ClassVar[str] = "polygon"
    sides: int
    colour: str
    radius: float
    turn: int
    x: float
    y: float


def sample_polygon(rng: Random) -> Polygon:
    """Three to eight sides."""
    return Polygon(
        any_background(rng),
        rng.choice(SIDES),
        rng.choice(COLOURS),
        near(rng, 0.42, 0.03),
        rng.randrange(0, 360, 5),
        near(rng, 0.5, 0.02),
        near(rng, 0.5, 0.02),
    )


def draw_polygon(scene: Polygon, canvas: Canvas) -> None:
    """Filled."""
    step = 360 / scene.sides
    corners = [
        on_circle((scene.x, scene.y), scene.radius, scene.turn + step * side) for side in range(scene.sides)
    ]
    canvas.polygon(corners, PALETTE[scene.colour])
    canvas.line([*corners, corners[0], corners[1]], 0.022, BLACK, round_ends=False)


def ask_sides(scene: Polygon, rng: Random) -> Ask[Polygon]:
    """Number of sides."""
    templates = (
        "How many sides does the polygon have?",
        "How many corners does the polygon have?",
        "Count the sides of the polygon.",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: str(other.sides),
        answer_type="numeric",
        answer=str(scene.sides),
        alternatives=tuple(
            to(str(sides), replace(scene, sides=sides)) for sides in SIDES if sides != scene.sides
        ),
        vocabulary=SIDE_WORDS,
    )


POLYGON: Kind[Polygon] = Kind(
    "polygon",
    "a polygon: ",
    sample_polygon,
    draw_polygon,
    lambda scene: [f"{scene.sides} sides", scene.colour],
    (Asker("polygon_sides", ask_sides),),
)

# Two segments -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segments(Scene):
    """Two segments in opposite corners; lengths in tenths of the side, turns in degrees."""

    kind: ClassVar[str] = "segments"
    colours: tuple[str, str]
    lengths: tuple[int, ...]
    turns: tuple[int, ...]
    middles: tuple[Point, Point]


def sample_segments(rng: Random) -> Segments:
    """Different lengths; parallel half of the time."""
    first, second = rng.sample(COLOURS, 2)
    turn = rng.choice(TURNS)
    other = turn if rng.random() < 0.5 else rng.choice([t for t in TURNS if t != turn])
    down = rng.random() < 0.5
    middles = tuple(
        (near(rng, 0.3 if left else 0.7, 0.02), near(rng, 0.3 if left == down else 0.7, 0.02))
        for left in (True, False)
    )
    return Segments(
        any_background(rng),
        (first, second),
        tuple(rng.sample(LENGTHS, 2)),
        (turn, other),
        (middles[0], middles[1]),
    )


def draw_segments(scene: Segments, canvas: Canvas) -> None:
    """Thick lines."""
    for colour, length, turn, middle in zip(
        scene.colours, scene.lengths, scene.turns, scene.middles, strict=True
    ):
        half = length / 20
        canvas.line(
            [on_circle(middle, half, turn), on_circle(middle, half, turn + 180)], 0.055, PALETTE[colour]
        )


def facts_segments(scene: Segments) -> list[str]:
    """Length and turn of each."""
    return [
        f"{colour} length {length} turn {turn}"
        for colour, length, turn in zip(scene.colours, scene.lengths, scene.turns, strict=True)
    ]


def ask_longer(scene: Segments, rng: Random) -> Ask[Segments]:
    """Colour of the longer or shorter segment; the edit changes one length."""
    word, sign = rng.choice((("longer", 1), ("shorter", -1)))

    def answer_of(other: Segments) -> str | None:
        a, b = (sign * length for length in other.lengths)
        return None if a == b else other.colours[0 if a > b else 1]

    now = answer_of(scene)
    changed = [replace(scene, lengths=swap(scene.lengths, at, length)) for at in (0, 1) for length in LENGTHS]
    edits = [other for other in changed if answer_of(other) not in (None, now)]
    loser = scene.colours[1 if now == scene.colours[0] else 0]
    x, y = rng.sample(scene.colours, 2)
    templates = ("Which line is {w}, {x} or {y}?", "Of the {x} and {y} lines, which is {w}?")
    return Ask(
        query=words(rng, templates, w=word, x=x, y=y),
        answer_of=answer_of,
        answer_type="exact",
        answer=str(now),
        alternatives=tuple(to(loser, other) for other in edits),
    )


def ask_parallel(scene: Segments, rng: Random) -> Ask[Segments]:
    """Whether the two are parallel; the edit turns one of them."""
    now = scene.turns[0] == scene.turns[1]
    changed = [replace(scene, turns=swap(scene.turns, at, turn)) for at in (0, 1) for turn in TURNS]
    templates = (
        "Are the two lines parallel?",
        "Do the two lines run parallel?",
        "Do the two lines have the same direction?",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: yes_no(other.turns[0] == other.turns[1]),
        answer_type="boolean",
        answer=yes_no(now),
        alternatives=tuple(
            to(yes_no(not now), other) for other in changed if (other.turns[0] == other.turns[1]) != now
        ),
    )


SEGMENTS: Kind[Segments] = Kind(
    "segments",
    "two lines: ",
    sample_segments,
    draw_segments,
    facts_segments,
    (Asker("segment_longer", ask_longer), Asker("segment_parallel", ask_parallel, YES_NO)),
)

# Angle ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Angle(Scene):
    """Two arms from one vertex, `degrees` apart; `side` is -1 or 1, the way the second arm turns."""

    kind: ClassVar[str] = "angle"
    degrees: int
    colour: str
    turn: int
    side: int
    x: float
    y: float

    @property
    def sort(self) -> str:
        """acute, right or obtuse."""
        return "right" if self.degrees == 90 else ("acute" if self.degrees < 90 else "obtuse")


def sample_angle(rng: Random) -> Angle:
    """The three sorts equally often."""
    degrees = rng.choice(ANGLES[rng.choice(tuple(ANGLES))])
    return Angle(
        any_background(rng),
        degrees,
        rng.choice(COLOURS),
        rng.randrange(0, 360, 15),
        rng.choice((-1, 1)),
        near(rng, 0.5, 0.05),
        near(rng, 0.5, 0.05),
    )


def draw_angle(scene: Angle, canvas: Canvas) -> None:
    """Two thick arms and an arc of one radius whatever the angle."""
    vertex = scene.x, scene.y
    other = scene.turn + scene.side * scene.degrees
    canvas.arc(vertex, 0.17, min(scene.turn, other), max(scene.turn, other), 0.025, BLACK)
    for turn in (scene.turn, other):
        canvas.line([vertex, on_circle(vertex, 0.4, turn)], 0.05, PALETTE[scene.colour])


def ask_angle(scene: Angle, rng: Random) -> Ask[Angle]:
    """Sort of the angle; the edit turns one arm."""
    templates = (
        "Is the angle acute, right or obtuse?",
        "What kind of angle is this?",
        "Which kind of angle do you see?",
    )
    return Ask(
        query=words(rng, templates),
        answer_of=lambda other: other.sort,
        answer_type="exact",
        answer=scene.sort,
        alternatives=tuple(
            among(sort, degrees, lambda chosen: replace(scene, degrees=chosen))
            for sort, degrees in ANGLES.items()
            if sort != scene.sort
        ),
        vocabulary=tuple(ANGLES),
    )


ANGLE: Kind[Angle] = Kind(
    "angle",
    "an angle: ",
    sample_angle,
    draw_angle,
    lambda scene: [f"{scene.sort} {scene.degrees} degrees", scene.colour],
    (Asker("angle", ask_angle),),
)
