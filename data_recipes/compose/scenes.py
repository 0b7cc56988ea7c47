"""Scenes: which cut-out stands where, how large, in which colour, and the five ways in which one object changes.

    opaque area of an object = (size * s)^2,    s = sqrt(width * height of the picture)

so "bigger" is a matter of area and not of outline. The first object is the one that an edit changes. Boxes never overlap and stay
inside the picture. Whatever asks for a random scene gets None when chance did not find one that fits: ask again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

from vlm_contextrl.data_recipes.compose.settings import Edit
from vlm_contextrl.data_recipes.compose.sources import Catalogue

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "yellow": (245, 205, 20),
    "green": (35, 150, 55),
    "blue": (35, 80, 205),
    "purple": (135, 50, 165),
    "pink": (245, 130, 180),
}
GAP = 0.02  # between boxes and to the border, in units of s
MAX_UPSCALING = 1.5
PLACE_TRIES = 20
MIN_MOVE = 0.2  # in units of s


@dataclass(frozen=True)
class Thing:
    """An object in a scene; lengths in pixels. cutout: its position in the catalogue; colour: empty for its own."""

    label: str
    cutout: int
    left: int
    top: int
    width: int
    height: int
    area: int  # opaque pixels
    colour: str = ""

    @property
    def right(self) -> int:
        """Right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """Lower edge."""
        return self.top + self.height

    @property
    def centre(self) -> tuple[float, float]:
        """x, y."""
        return self.left + self.width / 2, self.top + self.height / 2


@dataclass(frozen=True)
class Scene:
    """photograph: its position in the catalogue."""

    photograph: int
    width: int
    height: int
    things: tuple[Thing, ...]

    @property
    def side(self) -> float:
        """The s of the formula above."""
        return math.sqrt(self.width * self.height)

    def with_subject(self, thing: Thing) -> Scene:
        """The scene with another first object."""
        return replace(self, things=(thing, *self.things[1:]))


@dataclass(frozen=True)
class Space:
    """Scenes that can be: over what, of which sizes."""

    catalogue: Catalogue
    size_px: int
    smallest: float
    largest: float

    def sample(self, photograph: int, copies: int, others: int, coloured: bool, rng: Random) -> Scene | None:
        """`copies` objects of one label, then `others` of further ones; coloured: the first has a colour of `COLOURS`."""
        source = self.catalogue.photographs[photograph]
        scale = self.size_px / max(source.width_px, source.height_px)
        scene = Scene(photograph, round(source.width_px * scale), round(source.height_px * scale), ())
        labels: list[str] = []
        for index in range(1 + others):
            label = self._further_label(labels, source.shows, rng)
            if label is None:
                return None
            labels.append(label)
            for _ in range(copies if index == 0 else 1):
                thing = self._place(scene, label, rng)
                if thing is None:
                    return None
                scene = replace(scene, things=(*scene.things, thing))
        if coloured:
            scene = scene.with_subject(replace(scene.things[0], colour=rng.choice(tuple(COLOURS))))
        return scene

    def absent(self, scene: Scene, also: tuple[str, ...], n: int, rng: Random) -> list[str]:
        """Up to n labels that fit neither the scene's objects nor `also` nor each other's."""
        taken = [*(thing.label for thing in scene.things), *also]
        found: list[str] = []
        while len(found) < n:
            shows = self.catalogue.photographs[scene.photograph].shows
            label = self._further_label([*taken, *found], shows, rng)
            if label is None:
                break
            found.append(label)
        return found

    def replaced(self, scene: Scene, rng: Random) -> Scene | None:
        """Another label in the same place, with the same opaque area."""
        old = scene.things[0]
        shows = self.catalogue.photographs[scene.photograph].shows
        label = self._further_label([thing.label for thing in scene.things], shows, rng)
        if label is None:
            return None
        cutout = rng.choice(self.catalogue.by_label[label])
        return self._put(scene, label, cutout, math.sqrt(old.area) / scene.side, old.centre)

    def removed(self, scene: Scene, rng: Random) -> Scene | None:
        """Without the first object; something must be left."""
        return replace(scene, things=scene.things[1:]) if len(scene.things) > 1 else None

    def moved(self, scene: Scene, rng: Random) -> Scene | None:
        """The same object somewhere else."""
        old = scene.things[0]
        span_x, span_y = scene.width - old.width, scene.height - old.height
        new = replace(old, left=round(rng.uniform(0, span_x)), top=round(rng.uniform(0, span_y)))
        far = math.dist(old.centre, new.centre) >= MIN_MOVE * scene.side
        return scene.with_subject(new) if far and _free(scene, new, scene.things[1:]) else None

    def resized(self, scene: Scene, rng: Random) -> Scene | None:
        """The same object in the same place, larger or smaller."""
        old = scene.things[0]
        size = rng.uniform(self.smallest, self.largest)
        return self._put(scene, old.label, old.cutout, size, old.centre)

    def recoloured(self, scene: Scene, rng: Random) -> Scene | None:
        """The same object in another colour."""
        old = scene.things[0]
        colour = rng.choice([name for name in COLOURS if name != old.colour])
        return scene.with_subject(replace(old, colour=colour))

    def _put(
        self, scene: Scene, label: str, cutout: int, size: float, centre: tuple[float, float]
    ) -> Scene | None:
        new = self._thing(scene, label, cutout, size)
        if new is None:
            return None
        new = replace(new, left=round(centre[0] - new.width / 2), top=round(centre[1] - new.height / 2))
        return scene.with_subject(new) if _free(scene, new, scene.things[1:]) else None

    def _further_label(self, taken: list[str], shows: tuple[str, ...], rng: Random) -> str | None:
        for _ in range(PLACE_TRIES):
            label = rng.choice(self.catalogue.labels)
            if self.catalogue.fits(label, taken) and not self.catalogue.may_show(shows, label):
                return label
        return None

    def _place(self, scene: Scene, label: str, rng: Random) -> Thing | None:
        for _ in range(PLACE_TRIES):
            cutout = rng.choice(self.catalogue.by_label[label])
            thing = self._thing(scene, label, cutout, rng.uniform(self.smallest, self.largest))
            if thing is None:
                continue
            left = round(rng.uniform(0, scene.width - thing.width))
            top = round(rng.uniform(0, scene.height - thing.height))
            thing = replace(thing, left=left, top=top)
            if _free(scene, thing, scene.things):
                return thing
        return None

    def _thing(self, scene: Scene, label: str, index: int, size: float) -> Thing | None:
        """The object at this size, not yet in its place; None when it is larger than the picture or than its pixels allow."""
        cutout = self.catalogue.cutouts[index]
        scale = size * scene.side / math.sqrt(cutout.width_px * cutout.height_px * cutout.fill)
        width, height = round(cutout.width_px * scale), round(cutout.height_px * scale)
        if scale > MAX_UPSCALING or width > scene.width or height > scene.height or min(width, height) < 2:
            return None
        return Thing(label, index, 0, 0, width, height, round((size * scene.side) ** 2))


EDITS: dict[Edit, Callable[[Space, Scene, Random], Scene | None]] = {
    "replaced": Space.replaced,
    "moved": Space.moved,
    "recoloured": Space.recoloured,
    "removed": Space.removed,
    "resized": Space.resized,
}


def _free(scene: Scene, thing: Thing, others: tuple[Thing, ...]) -> bool:
    """Whether the box is inside the picture and off the other boxes."""
    gap = GAP * scene.side
    inside = (
        thing.left >= gap
        and thing.top >= gap
        and thing.right <= scene.width - gap
        and thing.bottom <= scene.height - gap
    )
    return inside and all(
        thing.right + gap <= other.left
        or other.right + gap <= thing.left
        or thing.bottom + gap <= other.top
        or other.bottom + gap <= thing.top
        for other in others
    )


def describe(scene: Scene, catalogue: Catalogue) -> dict[str, Any]:
    """The scene as JSON values, with the names of its files."""
    things = [{**asdict(thing), "cutout": catalogue.cutouts[thing.cutout].file} for thing in scene.things]
    photograph = catalogue.photographs[scene.photograph].file
    return {"photograph": photograph, "width": scene.width, "height": scene.height, "things": things}


def scene_hash(description: dict[str, Any]) -> str:
    """A stable name of a described scene: 16 hex digits."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
