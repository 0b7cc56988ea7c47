"""Two to five coloured shapes on a jittered 3x3 grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import BACKGROUNDS, COLOURS, PALETTE, Canvas, Point, on_circle
from vlm_contextrl.data_recipes.render.scene import Scene

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = ("small", "large")
RADIUS = {"small": 0.125, "large": 0.162}
CELLS = tuple((row, column) for row in range(3) for column in range(3))
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True)
class Thing:
    """One object; `dx` and `dy` are its jitter inside the cell."""

    shape: str
    colour: str
    size: str
    row: int
    column: int
    dx: float
    dy: float

    @property
    def place(self) -> str:
        """The cell in words."""
        return PLACES[3 * self.row + self.column]


@dataclass(frozen=True)
class Objects(Scene):
    """The objects, in reading order of their first drawing."""

    kind: ClassVar[str] = "objects"
    things: tuple[Thing, ...]


def sample(rng: Random) -> Objects:
    """Few shapes and colours per scene, so that repeated and unique ones both occur."""
    shapes = rng.sample(SHAPES, rng.randint(2, 5))
    colours = rng.sample(COLOURS, rng.randint(2, 5))
    cells = sorted(rng.sample(CELLS, rng.randint(2, 5)))
    things = tuple(
        Thing(
            rng.choice(shapes),
            rng.choice(colours),
            rng.choice(SIZES),
            row,
            column,
            _jitter(rng),
            _jitter(rng),
        )
        for row, column in cells
    )
    return Objects(rng.choice(tuple(BACKGROUNDS)), things)


def _jitter(rng: Random) -> float:
    return round(rng.uniform(-0.012, 0.012), 4)


def facts(scene: Objects) -> list[str]:
    """One fact per object."""
    ordered = sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    return [f"a {thing.size} {thing.colour} {thing.shape} at {thing.place}" for thing in ordered]


def draw(scene: Objects, canvas: Canvas) -> None:
    """Every object filled in its colour."""
    for thing in scene.things:
        centre = (
            (1 / 6 + thing.column / 3) * 0.99 + 0.005 + thing.dx,
            (1 / 6 + thing.row / 3) * 0.99 + 0.005 + thing.dy,
        )
        draw_shape(canvas, thing.shape, centre, RADIUS[thing.size], thing.colour)


def draw_shape(canvas: Canvas, shape: str, centre: Point, radius: float, colour: str) -> None:
    """A filled shape that just fits the circle or square of `radius`."""
    fill = PALETTE[colour]
    x, y = centre
    if shape == "circle":
        canvas.disc(centre, radius, fill)
    elif shape == "square":
        side = radius * 0.9
        canvas.box(x - side, y - side, x + side, y + side, fill)
    elif shape == "triangle":
        canvas.polygon(
            [(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)], fill
        )
    elif shape == "star":
        points = [
            on_circle(centre, radius * (1.04 if spoke % 2 == 0 else 0.45), 36 * spoke) for spoke in range(10)
        ]
        canvas.polygon(points, fill)
    elif shape == "cross":
        arm = radius * 0.34
        canvas.box(x - arm, y - radius, x + arm, y + radius, fill)
        canvas.box(x - radius, y - arm, x + radius, y + arm, fill)
    else:
        bump = radius * 0.53
        for side in (-1, 1):
            canvas.disc((x + side * bump * 0.93, y - radius * 0.35), bump, fill)
        slope = bump / math.sqrt(2)
        outer = bump * 0.93 + slope
        low = y - radius * 0.35 + slope
        canvas.polygon([(x - outer, low), (x, y - radius * 0.35), (x + outer, low), (x, low + outer)], fill)
