"""Geometry: the figures of figures.py and crossings.py, and diagrams of lettered nodes joined by arrows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from vlm_contextrl.data_recipes.render.canvas import BACKGROUNDS, BLACK, PALETTE, WHITE, Canvas, Point
from vlm_contextrl.data_recipes.render.crossings import CROSSINGS, DOTS
from vlm_contextrl.data_recipes.render.figures import ANGLE, POLYGON, SEGMENTS, YES_NO
from vlm_contextrl.data_recipes.render.scene import Ask, Asker, Domain, Kind, Scene, swap, to, words, yes_no

LETTERS = ("A", "B", "C", "D")
CORNERS: dict[str, Point] = {
    "top left": (0.2, 0.2),
    "top right": (0.8, 0.2),
    "bottom left": (0.2, 0.8),
    "bottom right": (0.8, 0.8),
}
NODE_RADIUS = 0.145
Arrow = tuple[str, str]


@dataclass(frozen=True)
class Graph(Scene):
    """`corners[i]` holds node LETTERS[i]; at most one arrow leaves a node and at most one joins two nodes."""

    kind: ClassVar[str] = "graph"
    corners: tuple[str, ...]
    shifts: tuple[Point, ...]
    arrows: tuple[Arrow, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """The nodes that are there."""
        return LETTERS[: len(self.corners)]


def sample_graph(rng: Random) -> Graph:
    """Three or four nodes; most of them point somewhere."""
    count = rng.randint(3, 4)
    letters = LETTERS[:count]
    arrows: tuple[Arrow, ...] = ()
    for letter in rng.sample(letters, count):
        targets = [target for target in letters if target != letter and (target, letter) not in arrows]
        if targets and (not arrows or rng.random() < 0.7):
            arrows = (*arrows, (letter, rng.choice(targets)))
    shifts = tuple((round(rng.uniform(-0.03, 0.03), 3), round(rng.uniform(-0.03, 0.03), 3)) for _ in letters)
    return Graph(
        rng.choice(tuple(BACKGROUNDS)),
        tuple(rng.sample(tuple(CORNERS), count)),
        shifts,
        tuple(sorted(arrows)),
    )


def draw_graph(scene: Graph, canvas: Canvas) -> None:
    """White discs with letters, thick blue arrows between their rims."""
    centres = {
        letter: (CORNERS[corner][0] + shift[0], CORNERS[corner][1] + shift[1])
        for letter, corner, shift in zip(LETTERS, scene.corners, scene.shifts, strict=False)
    }
    for source, target in scene.arrows:
        (x, y), (u, v) = centres[source], centres[target]
        length = math.dist((x, y), (u, v))
        dx, dy = (u - x) / length, (v - y) / length
        canvas.arrow(
            (x + dx * NODE_RADIUS, y + dy * NODE_RADIUS),
            (u - dx * (NODE_RADIUS + 0.01), v - dy * (NODE_RADIUS + 0.01)),
            0.045,
            0.13,
            PALETTE["blue"],
        )
    for letter, centre in centres.items():
        canvas.disc(centre, NODE_RADIUS, BLACK)
        canvas.disc(centre, NODE_RADIUS - 0.02, WHITE)
        canvas.text(centre, letter, 0.145)


def facts_graph(scene: Graph) -> list[str]:
    """Places of the nodes, then the arrows."""
    nodes = [f"{letter} {corner}" for letter, corner in zip(LETTERS, scene.corners, strict=False)]
    return nodes + [f"{source} points to {target}" for source, target in sorted(scene.arrows)]


def _targets(scene: Graph, source: str) -> list[str]:
    return [target for start, target in scene.arrows if start == source]


def _retarget(scene: Graph, source: str, target: str) -> Graph:
    """The arrow that leaves `source` ends at `target` instead."""
    at = next(index for index, arrow in enumerate(scene.arrows) if arrow[0] == source)
    return replace(scene, arrows=swap(scene.arrows, at, (source, target)))


def _reverse(scene: Graph, arrow: Arrow) -> Graph:
    at = scene.arrows.index(arrow)
    return replace(scene, arrows=swap(scene.arrows, at, (arrow[1], arrow[0])))


def ask_target(scene: Graph, rng: Random) -> Ask[Graph] | None:
    """The node that a node points to; the edit turns that arrow elsewhere."""
    if len(scene.letters) < len(LETTERS):  # otherwise D would be a rare answer
        return None
    source, target = rng.choice(scene.arrows)
    others = [
        letter
        for letter in scene.letters
        if letter not in (source, target) and (letter, source) not in scene.arrows
    ]
    if not others:
        return None

    def answer_of(other: Graph) -> str | None:
        found = _targets(other, source)
        return found[0] if len(found) == 1 else None

    templates = (
        "Which node does {x} point to?",
        "Where does the arrow from {x} end?",
        "The arrow from {x} goes to which node?",
    )
    return Ask(
        query=words(rng, templates, x=source),
        answer_of=answer_of,
        answer_type="exact",
        answer=target,
        alternatives=tuple(to(letter, _retarget(scene, source, letter)) for letter in others),
    )


def ask_arrow(scene: Graph, rng: Random) -> Ask[Graph] | None:
    """Whether an arrow joins two nodes in this direction; the edit turns or reverses one arrow."""
    letters = scene.letters
    if rng.random() < 0.5:
        source, target = rng.choice(scene.arrows)
    else:
        absent = [(x, y) for x in letters for y in letters if x != y and (x, y) not in scene.arrows]
        source, target = rng.choice(
            [(x, y) for x, y in absent if (y, x) in scene.arrows or _targets(scene, x)]
        )
    truth = (source, target) in scene.arrows
    edits: list[Graph] = []
    if truth:
        turned = [
            letter
            for letter in letters
            if letter not in (source, target) and (letter, source) not in scene.arrows
        ]
        edits += [_retarget(scene, source, letter) for letter in turned]
        if not _targets(scene, target):
            edits.append(_reverse(scene, (source, target)))
    elif (target, source) in scene.arrows:
        if not _targets(scene, source):
            edits.append(_reverse(scene, (target, source)))
    elif _targets(scene, source):
        edits.append(_retarget(scene, source, target))
    if not edits:
        return None
    templates = (
        "Is there an arrow from {x} to {y}?",
        "Does {x} point to {y}?",
        "Does an arrow go from {x} to {y}?",
    )
    return Ask(
        query=words(rng, templates, x=source, y=target),
        answer_of=lambda other: yes_no((source, target) in other.arrows),
        answer_type="boolean",
        answer=yes_no(truth),
        alternatives=tuple(to(yes_no(not truth), other) for other in edits),
    )


GRAPH: Kind[Graph] = Kind(
    "graph",
    "a diagram: ",
    sample_graph,
    draw_graph,
    facts_graph,
    (Asker("graph_target", ask_target, LETTERS), Asker("graph_arrow", ask_arrow, YES_NO)),
)

GEOMETRY = Domain("geometry", (POLYGON, SEGMENTS, ANGLE, CROSSINGS, DOTS, GRAPH))
