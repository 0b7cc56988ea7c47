"""Coloured shapes on a grid: attributes, counts, places, relations. Every edit changes one object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

from vlm_contextrl.data_recipes.render.canvas import COLOURS
from vlm_contextrl.data_recipes.render.object_scene import (
    CELLS,
    PLACES,
    SHAPES,
    SIZES,
    Objects,
    Thing,
    draw,
    facts,
    sample,
)
from vlm_contextrl.data_recipes.render.scene import (
    COUNT_SHARES,
    Alternative,
    Ask,
    Asker,
    Domain,
    Kind,
    among,
    step_weight,
    swap,
    to,
    with_article,
    words,
    yes_no,
)

MAX_COUNT = 4
Edit = tuple[int, dict[str, str | int]]  # index of an object and its new fields
RELATIONS = {"left of": ("column", -1), "right of": ("column", 1), "above": ("row", -1), "below": ("row", 1)}
EXTREMES = {
    "further left": ("column", -1),
    "further right": ("column", 1),
    "higher": ("row", -1),
    "lower": ("row", 1),
}


def _singles(scene: Objects, field: str) -> list[int]:
    """Indices of the objects whose shape (or colour) no other object has."""
    values = [getattr(thing, field) for thing in scene.things]
    counts = Counter(values)
    return [index for index, value in enumerate(values) if counts[value] == 1]


def _reader(field: str, value: str, read: Callable[[Thing], str]) -> Callable[[Objects], str | None]:
    """Reads something off the one object with this shape (or colour); None unless there is exactly one."""

    def answer_of(scene: Objects) -> str | None:
        found = [thing for thing in scene.things if getattr(thing, field) == value]
        return read(found[0]) if len(found) == 1 else None

    return answer_of


def _with(scene: Objects, index: int, **changes: str | int) -> Objects:
    return replace(scene, things=swap(scene.things, index, replace(scene.things[index], **changes)))  # type: ignore[arg-type]  # each field gets its own type


def _edited(scene: Objects) -> Callable[[Edit], Objects]:
    return lambda edit: _with(scene, edit[0], **edit[1])


def _free(scene: Objects) -> list[tuple[int, int]]:
    taken = {(thing.row, thing.column) for thing in scene.things}
    return [cell for cell in CELLS if cell not in taken]


def _name(field: str, value: str) -> str:
    return value if field == "shape" else f"{value} object"


def _refer(
    scene: Objects, rng: Random, fields: tuple[str, ...] = ("shape", "colour")
) -> tuple[str, str, int] | None:
    """(field, value, index) of an object that one word singles out."""
    found = [
        (field, getattr(scene.things[index], field), index)
        for field in fields
        for index in _singles(scene, field)
    ]
    return rng.choice(found) if found else None


def ask_colour(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Colour of the only object of its shape."""
    found = _refer(scene, rng, ("shape",))
    if found is None:
        return None
    _, shape, index = found
    colour = scene.things[index].colour
    return Ask(
        query=words(
            rng,
            ("What colour is the {x}?", "Which colour does the {x} have?", "The {x} is of what colour?"),
            x=shape,
        ),
        answer_of=_reader("shape", shape, lambda thing: thing.colour),
        answer_type="exact",
        answer=colour,
        alternatives=tuple(to(c, _with(scene, index, colour=c)) for c in COLOURS if c != colour),
        vocabulary=COLOURS,
    )


def ask_shape(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Shape of the only object of its colour."""
    found = _refer(scene, rng, ("colour",))
    if found is None:
        return None
    _, colour, index = found
    shape = scene.things[index].shape
    return Ask(
        query=words(
            rng,
            ("What shape is the {x} object?", "Which shape is {x}?", "What is the shape of the {x} object?"),
            x=colour,
        ),
        answer_of=_reader("colour", colour, lambda thing: thing.shape),
        answer_type="exact",
        answer=shape,
        alternatives=tuple(to(s, _with(scene, index, shape=s)) for s in SHAPES if s != shape),
        vocabulary=SHAPES,
    )


def ask_count(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Number (1 to 4) of objects of a shape or colour; the edit changes that attribute of one object."""
    field = rng.choice(("shape", "colour"))
    all_values = SHAPES if field == "shape" else COLOURS
    value = rng.choice(sorted({getattr(thing, field) for thing in scene.things}))
    inside = [index for index, thing in enumerate(scene.things) if getattr(thing, field) == value]
    outside = [index for index in range(len(scene.things)) if index not in inside]
    count = len(inside)
    others = [other for other in all_values if other != value]
    fewer: list[Edit] = [(index, {field: other}) for index in inside for other in others]
    more: list[Edit] = [(index, {field: value}) for index in outside]
    alternatives: list[Alternative[Objects]] = []
    if count > 1:
        alternatives.append(among(str(count - 1), fewer, _edited(scene), step_weight(count, count - 1, 1)))
    if more and count < MAX_COUNT:
        alternatives.append(among(str(count + 1), more, _edited(scene), step_weight(count, count + 1, 1)))
    if count > MAX_COUNT or (count < MAX_COUNT and not more):  # the latter would make edited fours rare
        return None
    plural = f"{value} objects" if field == "colour" else value + ("es" if value == "cross" else "s")
    return Ask(
        query=words(
            rng, ("How many {x} are there?", "Count the {x}.", "What is the number of {x}?"), x=plural
        ),
        answer_of=lambda other: str(sum(getattr(thing, field) == value for thing in other.things)),
        answer_type="numeric",
        answer=str(count),
        alternatives=tuple(alternatives),
    )


def ask_exists(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Whether a colour and a shape meet in one object; a `no` is a near miss."""
    pairs = Counter((thing.colour, thing.shape) for thing in scene.things)
    if rng.random() < 0.5:
        present = sorted(pair for pair, count in pairs.items() if count == 1)
        if not present:
            return None
        colour, shape = rng.choice(present)
    else:
        near = {(c, thing.shape) for thing in scene.things for c in COLOURS}
        near |= {(thing.colour, s) for thing in scene.things for s in SHAPES}
        colour, shape = rng.choice(sorted(near - set(pairs)))
    truth = (colour, shape) in pairs
    edits: list[Edit] = []
    for index, thing in enumerate(scene.things):
        if truth and (thing.colour, thing.shape) == (colour, shape):
            edits += [(index, {"colour": c}) for c in COLOURS if c != colour]
            edits += [(index, {"shape": s}) for s in SHAPES if s != shape]
        elif not truth and thing.shape == shape:
            edits.append((index, {"colour": colour}))
        elif not truth and thing.colour == colour:
            edits.append((index, {"shape": shape}))
    templates = ("Is there {x}?", "Do you see {x}?", "Does the picture show {x}?")
    return Ask(
        query=words(rng, templates, x=with_article(f"{colour} {shape}")),
        answer_of=lambda other: yes_no(
            any((thing.colour, thing.shape) == (colour, shape) for thing in other.things)
        ),
        answer_type="boolean",
        answer=yes_no(truth),
        alternatives=(among(yes_no(not truth), edits, _edited(scene)),) if edits else (),
    )


def _flips(scene: Objects, first: int, second: int, axis: str) -> list[Edit]:
    """Moves to a free cell that reverse the order of two objects on the axis, in line where possible."""
    other_axis = "row" if axis == "column" else "column"
    before = getattr(scene.things[first], axis) < getattr(scene.things[second], axis)
    moves: list[Edit] = []
    straight: list[Edit] = []
    for index, fixed in ((first, second), (second, first)):
        for row, column in _free(scene):
            moved: dict[str, str | int] = {"row": row, "column": column}
            at, limit = (row if axis == "row" else column), getattr(scene.things[fixed], axis)
            if at == limit or ((at < limit) == before) == (index == first):
                continue
            moves.append((index, moved))
            if moved[other_axis] == getattr(scene.things[index], other_axis):
                straight.append(moves[-1])
    return straight or moves


def _order(first: tuple[str, str], second: tuple[str, str], axis: str) -> Callable[[Objects], int | None]:
    """Sign of first minus second on the axis; None where one of them is not unique or they are level."""

    def sign(scene: Objects) -> int | None:
        places = []
        for field, value in (first, second):
            found = [thing for thing in scene.things if getattr(thing, field) == value]
            if len(found) != 1:
                return None
            places.append(getattr(found[0], axis))
        return None if places[0] == places[1] else (1 if places[0] > places[1] else -1)

    return sign


def ask_relation(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Whether one object is left of, right of, above or below another; the edit moves one of them."""
    first, second = _refer(scene, rng), _refer(scene, rng)
    if first is None or second is None or first[2] == second[2]:
        return None
    relation = rng.choice(tuple(RELATIONS))
    axis, wanted = RELATIONS[relation]
    sign = _order(first[:2], second[:2], axis)
    now = sign(scene)
    edits = _flips(scene, first[2], second[2], axis)
    if now is None or not edits:
        return None

    def answer_of(other: Objects) -> str | None:
        found = sign(other)
        return None if found is None else yes_no(found == wanted)

    templates = ("Is the {x} {r} the {y}?", "Is the {x} placed {r} the {y}?", "Does the {x} lie {r} the {y}?")
    return Ask(
        query=words(rng, templates, x=_name(*first[:2]), y=_name(*second[:2]), r=relation),
        answer_of=answer_of,
        answer_type="boolean",
        answer=yes_no(now == wanted),
        alternatives=(among(yes_no(now != wanted), edits, _edited(scene)),),
    )


def ask_further(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Which of two objects lies further left, right, up or down; the edit moves one of them."""
    field = rng.choice(("shape", "colour"))
    first, second = _refer(scene, rng, (field,)), _refer(scene, rng, (field,))
    if first is None or second is None or first[2] == second[2]:
        return None
    phrase = rng.choice(tuple(EXTREMES))
    axis, wanted = EXTREMES[phrase]
    sign = _order(first[:2], second[:2], axis)
    now = sign(scene)
    edits = _flips(scene, first[2], second[2], axis)
    if now is None or not edits:
        return None

    def answer_of(other: Objects) -> str | None:
        found = sign(other)
        return None if found is None else (first[1] if found == wanted else second[1])

    answer, loser = (first[1], second[1]) if now == wanted else (second[1], first[1])
    templates = ("Which {f} is {r}, {x} or {y}?", "Of {x} and {y}, which {f} is {r}?")
    return Ask(
        query=words(rng, templates, f=field, r=phrase, x=first[1], y=second[1]),
        answer_of=answer_of,
        answer_type="exact",
        answer=answer,
        alternatives=(among(loser, edits, _edited(scene)),),
    )


def ask_place(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """The cell of an object; the edit moves it to a free one."""
    found = _refer(scene, rng)
    if found is None:
        return None
    field, value, index = found
    return Ask(
        query=words(
            rng,
            ("Where is the {x}?", "In which place is the {x}?", "Where do you see the {x}?"),
            x=_name(field, value),
        ),
        answer_of=_reader(field, value, lambda thing: thing.place),
        answer_type="exact",
        answer=scene.things[index].place,
        alternatives=tuple(
            to(PLACES[3 * r + c], _with(scene, index, row=r, column=c)) for r, c in _free(scene)
        ),
        vocabulary=PLACES,
    )


def ask_size(scene: Objects, rng: Random) -> Ask[Objects] | None:
    """Whether an object is large or small."""
    found = _refer(scene, rng)
    if found is None:
        return None
    field, value, index = found
    size = scene.things[index].size
    other = "small" if size == "large" else "large"
    templates = ("Is the {x} large or small?", "What size is the {x}?", "Which size does the {x} have?")
    return Ask(
        query=words(rng, templates, x=_name(field, value)),
        answer_of=_reader(field, value, lambda thing: thing.size),
        answer_type="exact",
        answer=size,
        alternatives=(to(other, _with(scene, index, size=other)),),
    )


OBJECTS = Domain(
    "objects",
    (
        Kind(
            "objects",
            "",
            sample,
            draw,
            facts,
            (
                Asker("colour", ask_colour),
                Asker("shape", ask_shape),
                Asker("count", ask_count, ("1", "2", "3", "4"), COUNT_SHARES),
                Asker("exists", ask_exists, ("yes", "no")),
                Asker("relation", ask_relation, ("yes", "no")),
                Asker("further", ask_further),
                Asker("place", ask_place, PLACES),
                Asker("size", ask_size, SIZES),
            ),
        ),
    ),
)
