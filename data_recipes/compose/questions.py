"""Questions about two scenes that differ in one object: the same words, two different answers, both read off the scenes.

    edit         question
    replaced     presence, which, count, extreme
    removed      presence, count
    moved        position, extreme
    resized      size
    recoloured   colour

A reader gives None where a careful person could hesitate (two objects nearly level, nearly equal in size); such scenes are drawn anew.
Answers are balanced by construction: two-sided questions by the coin that decides which scene is the context, counts by the shares below,
labels and colours by uniform draws. `controls.blind_answers` measures what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import Literal

from vlm_contextrl.data_recipes.compose.labels import countable, names_colour, plural, verb, with_article
from vlm_contextrl.data_recipes.compose.scenes import COLOURS, Scene, Space, Thing
from vlm_contextrl.data_recipes.compose.settings import Edit
from vlm_contextrl.pairs import AnswerType

Kind = Literal["presence", "which", "count", "extreme", "position", "size", "colour"]
Reader = Callable[[Scene], str | None]

KINDS: dict[Edit, tuple[Kind, ...]] = {
    "replaced": ("presence", "which", "count", "extreme"),
    "removed": ("presence", "count"),
    "moved": ("position", "extreme"),
    "resized": ("size",),
    "recoloured": ("colour",),
}
# A count goes from k + 1 to k. With these weights of k each of 1..4 is asked for (nearly) as often: 8, 9, 9, 8 of 34.
COUNTS, COUNT_WEIGHTS = (1, 2, 3), (8, 1, 8)
COUNT_WORDS = ("1", "2", "3", "4")
BOOLEAN_SHARE = 0.35
MAX_OPTIONS = 4
CLEAR = 0.04  # least distance of what is compared, in units of the scene's side
CLEAR_RATIO = 1.5  # least ratio of areas; the longer sides must agree


@dataclass(frozen=True)
class Ask:
    """read: the answer in a scene; vocabulary: texts that may stand as options (none: no multiple choice).

    among: the query says "these"; where it has no options it lists these labels itself.
    """

    query: str
    read: Reader
    answer_type: AnswerType
    vocabulary: tuple[str, ...] = ()
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question with its answers before and after the edit."""

    query: str
    answer: str
    other_answer: str
    answer_type: AnswerType
    options: tuple[str, ...] = ()


def pose(
    kind: Kind, before: Scene, after: Scene, space: Space, choice_share: float, rng: Random
) -> Asked | None:
    """The question, openly or with options in random order; None when the scenes do not answer it clearly and differently."""
    ask = _ASKERS[kind](before, after, space, rng)
    if ask is None:
        return None
    answer, other = ask.read(before), ask.read(after)
    if answer is None or other is None or answer == other:
        return None
    if not ask.vocabulary or rng.random() >= choice_share:
        return Asked(_listing(ask, rng), answer, other, ask.answer_type)
    rest = [word for word in ask.vocabulary if word not in (answer, other)]
    options = [answer, other, *rng.sample(rest, min(MAX_OPTIONS - 2, len(rest)))]
    rng.shuffle(options)
    letters = dict(zip(options, ascii_uppercase, strict=False))
    return Asked(ask.query, letters[answer], letters[other], "choice", tuple(options))


def _listing(ask: Ask, rng: Random) -> str:
    """`Which of these is in the picture: the cat, the dog or the cup?`"""
    if not ask.among:
        return ask.query
    *first, last = (f"the {label}" for label in rng.sample(ask.among, len(ask.among)))
    return f"{ask.query.removesuffix('?')}: {', '.join(first)} or {last}?"


def _presence(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    label = before.things[0].label
    phrase = with_article(label)
    query = rng.choice((f"Does the picture show {phrase}?", f"Can you see {phrase} in the picture?"))
    return Ask(query, lambda scene: "yes" if _named(scene, label) else "no", "boolean")


def _which(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    old, new = before.things[0].label, after.things[0].label
    options = (old, new, *space.absent(before, (new,), MAX_OPTIONS - 2, rng))

    def read(scene: Scene) -> str | None:
        shown = [label for label in options if _named(scene, label)]
        return shown[0] if len(shown) == 1 else None

    query = rng.choice(("Which of these is in the picture?", "Which of these can be seen in the picture?"))
    return Ask(query, read, "exact", options, among=options)


def _count(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    label = before.things[0].label
    if not countable(label):
        return None
    many = plural(label)
    query = rng.choice((f"How many {many} are in the picture?", f"Count the {many}. How many are there?"))
    return Ask(query, lambda scene: str(len(_named(scene, label))), "numeric", COUNT_WORDS)


def _extreme(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    place, position = rng.choice(tuple(_EXTREMES.items()))

    def read(scene: Scene) -> str | None:
        first, *rest = sorted(scene.things, key=position)
        clear = CLEAR * scene.side
        gaps = (b - a for other in rest for a, b in zip(position(first), position(other), strict=True))
        return first.label if rest and min(gaps) >= clear else None

    labels = tuple(dict.fromkeys(thing.label for scene in (before, after) for thing in scene.things))
    query = rng.choice((f"Which of these is {place}?", f"Of these, which one is {place}?"))
    return Ask(query, read, "exact", labels, among=labels)


def _position(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    if len(before.things) < 2:
        return None
    one, other = _two_labels(before, rng)
    words, of = rng.choice(((("left", "right"), " of"), (("above", "below"), "")))

    def read(scene: Scene) -> str | None:
        a, b = _single(scene, one), _single(scene, other)
        gaps = (b.left - a.right, a.left - b.right) if of else (b.top - a.bottom, a.top - b.bottom)
        return next((word for word, gap in zip(words, gaps, strict=True) if gap >= CLEAR * scene.side), None)

    start = f"{verb(one).capitalize()} the {one}"
    if rng.random() < BOOLEAN_SHARE:
        word = rng.choice(words)
        return Ask(f"{start} {word}{of} the {other}?", _yes_if(read, word), "boolean")
    return Ask(f"{start} {' or '.join(rng.sample(words, 2))}{of} the {other}?", read, "exact", words)


def _size(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    if len(before.things) < 2:
        return None
    one, other = _two_labels(before, rng)
    bigger = rng.random() < 0.5

    def read(scene: Scene) -> str | None:
        small, large = sorted((_single(scene, one), _single(scene, other)), key=lambda thing: thing.area)
        longer = max(large.width, large.height) > max(small.width, small.height)
        clear = longer and large.area >= CLEAR_RATIO * small.area
        return (large if bigger else small).label if clear else None

    if rng.random() < BOOLEAN_SHARE:
        word = "bigger" if bigger else "smaller"
        query = f"In this picture, {verb(one)} the {one} {word} than the {other}?"
        return Ask(query, _yes_if(read, one), "boolean")
    ways = ("is bigger in", "takes up more of") if bigger else ("is smaller in", "takes up less of")
    return Ask(
        f"Which {rng.choice(ways)} the picture, the {one} or the {other}?", read, "exact", (one, other)
    )


def _colour(before: Scene, after: Scene, space: Space, rng: Random) -> Ask | None:
    label = before.things[0].label
    if names_colour(label):
        return None

    def read(scene: Scene) -> str:
        return _single(scene, label).colour

    if rng.random() < BOOLEAN_SHARE:
        colour = rng.choice((read(before), read(after)))
        return Ask(f"{verb(label).capitalize()} the {label} {colour}?", _yes_if(read, colour), "boolean")
    start = rng.choice(("What colour", "Which colour"))
    return Ask(f"{start} {verb(label)} the {label}?", read, "exact", tuple(COLOURS))


_ASKERS: dict[Kind, Callable[[Scene, Scene, Space, Random], Ask | None]] = {
    "presence": _presence,
    "which": _which,
    "count": _count,
    "extreme": _extreme,
    "position": _position,
    "size": _size,
    "colour": _colour,
}
# Edge and centre, less is nearer to the place: both must agree.
_EXTREMES: dict[str, Callable[[Thing], tuple[float, float]]] = {
    "farthest to the left in the picture": lambda thing: (thing.left, thing.centre[0]),
    "farthest to the right in the picture": lambda thing: (-thing.right, -thing.centre[0]),
    "highest up in the picture": lambda thing: (thing.top, thing.centre[1]),
    "lowest down in the picture": lambda thing: (-thing.bottom, -thing.centre[1]),
}


def _named(scene: Scene, label: str) -> list[Thing]:
    return [thing for thing in scene.things if thing.label == label]


def _single(scene: Scene, label: str) -> Thing:
    found = _named(scene, label)
    assert len(found) == 1, f"{len(found)} objects with the label {label!r}, expected 1"
    return found[0]


def _two_labels(scene: Scene, rng: Random) -> list[str]:
    """The changed object's label and another one's, in random order."""
    labels = [scene.things[0].label, rng.choice(scene.things[1:]).label]
    rng.shuffle(labels)
    return labels


def _yes_if(read: Reader, answer: str) -> Reader:
    def read_yes(scene: Scene) -> str | None:
        found = read(scene)
        return None if found is None else "yes" if found == answer else "no"

    return read_yes
