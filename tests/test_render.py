"""The rendered scenes: facts, answers and edits.

Answers are checked twice: by the question's own `answer_of`, and by a reader (below) that knows only the
query and the English description of the scene.
"""

from __future__ import annotations

import re
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest

from vlm_contextrl.data_recipes.render import (
    DOMAINS,
    SceneQuestion,
    render_scene,
    scene_examples,
)
from vlm_contextrl.data_recipes.render.generate import describe_edit
from vlm_contextrl.images import changed_fraction

TYPES = [(domain.name, question_type) for domain in DOMAINS.values() for question_type in domain.types]
COLOURS = "red|green|blue|yellow|purple|orange|cyan"
SINGULAR = re.compile(r"^(circle|square|triangle|star|cross|heart|\w+(?= object))(?:e?s| objects?)?$")
ROWS_AND_COLUMNS = {"left": 0, "centre": 1, "right": 2, "top": 0, "bottom": 2}
OPENINGS = (
    "a bar chart",
    "a line chart",
    "a pie chart",
    "a clock",
    "a gauge",
    "a table",
    "a sign",
    "a polygon",
)
OPENINGS += ("two lines", "an angle", "bars on a line", "a circle and dots", "a diagram")


def yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


# The reader: (question type, query, facts in English) -> answer -------------------------------------------


def facts_of(description: str) -> list[str]:
    """`a pie chart: red 5, blue 7, white background.` -> [`red 5`, `blue 7`]"""
    opening, _, rest = description.rstrip(".").rpartition(": ")
    assert opening in ("", *OPENINGS)
    facts = rest.split(", ")
    assert facts[-1].endswith(" background")
    return facts[:-1]


def cell_of(place: str) -> dict[str, int]:
    """`top` -> row 0, column 1"""
    words = place.split()
    row = next((ROWS_AND_COLUMNS[word] for word in words if word in ("top", "bottom")), 1)
    return {
        "row": row,
        "column": next((ROWS_AND_COLUMNS[word] for word in words if word in ("left", "right")), 1),
    }


def read_objects(question_type: str, query: str, facts: list[str]) -> str:
    things: list[dict[str, Any]] = []
    for fact in facts:
        size, colour, shape, place = re.fullmatch(r"a (\w+) (\w+) (\w+) at (.+)", fact).groups()  # type: ignore[union-attr]
        things.append({"size": size, "colour": colour, "shape": shape, "place": place, **cell_of(place)})

    def named(text: str) -> list[dict[str, Any]]:
        text = SINGULAR.sub(r"\1", text)
        return [thing for thing in things if text in (thing["colour"], thing["shape"])]

    nouns = re.findall(
        rf"(?:{COLOURS}) objects?|circles?|squares?|triangles?|stars?|cross(?:es)?|hearts?", query
    )
    if question_type == "count":
        return str(len(named(nouns[0])))
    if question_type == "exists":
        colour, shape = re.search(r"an? (\w+) (\w+)", query).groups()  # type: ignore[union-attr]
        return yes_no(any((thing["colour"], thing["shape"]) == (colour, shape) for thing in things))
    if question_type == "further":
        field = "shape" if "shape" in query else "colour"
        phrase = re.search(r"left|right|higher|lower", query).group()  # type: ignore[union-attr]
        axis, last = ("column" if phrase in ("left", "right") else "row"), phrase in ("right", "lower")
        found = re.search(r"(\w+) (?:or|and) (\w+)", query).groups()  # type: ignore[union-attr]
        pair = sorted((named(word)[0] for word in found), key=lambda thing: thing[axis])
        assert pair[0][axis] != pair[1][axis]
        return str(pair[-last][field])
    if question_type == "relation":
        (first,), (second,) = named(nouns[0]), named(nouns[1])
        relation = re.search(r"left of|right of|above|below", query).group()  # type: ignore[union-attr]
        axis = "column" if relation.endswith("of") else "row"
        assert first[axis] != second[axis]
        return yes_no((first[axis] < second[axis]) == (relation in ("left of", "above")))
    (thing,) = named(nouns[0] if nouns else re.search(COLOURS, query).group())  # type: ignore[union-attr]
    return str(thing[question_type])


def extreme(query: str, values: dict[str, int]) -> str:
    best = max if re.search(r"largest|tallest|highest|longer", query) else min
    assert list(values.values()).count(best(values.values())) == 1
    return best(values, key=values.__getitem__)


def read_charts(question_type: str, query: str, facts: list[str]) -> str:
    values = {
        name: int(value) for name, value in (fact.split() for fact in facts if not fact.endswith(" line"))
    }
    asked = [name for name in re.findall(rf"\b(?:{COLOURS}|[A-D])\b", query) if name in values]
    if question_type in ("bar_value", "line_value"):
        return str(values[asked[0]])
    if question_type == "bar_count":
        limit = int(re.search(r"\d", query).group())  # type: ignore[union-attr]
        return str(sum(value > limit for value in values.values()))
    if question_type in ("bar_compare", "pie_compare"):
        return yes_no(values[asked[0]] > values[asked[1]])
    if question_type == "line_rise":
        first, second = sorted(asked)
        return yes_no(values[first] < values[second])
    return extreme(query, values)


def read_dials(question_type: str, query: str, facts: list[str]) -> str:
    if question_type.startswith("clock"):
        time = facts[0].removeprefix("time ")
        hour, minute = time.split(":")
        return {"clock_time": time, "clock_hour": hour, "clock_half": yes_no(minute == "30")}[question_type]
    needle, start, end = (int(number) for number in re.findall(r"\d+", " ".join(facts)))
    if question_type == "gauge_value":
        return str(needle)
    if question_type == "gauge_zone":
        return yes_no(start <= needle <= end)
    return yes_no(needle > int(re.search(r"\d+", query).group()))  # type: ignore[union-attr]


def read_tables(question_type: str, query: str, facts: list[str]) -> str:
    if question_type.startswith("sign"):
        board, shape, word, arrow = facts
        found = {"sign_colour": board.split()[0], "sign_shape": shape.split()[1]}
        return {**found, "sign_word": word.split()[1], "sign_arrow": arrow.split()[1]}[question_type]
    cells = {(row, column): int(number) for row, column, number in (fact.split() for fact in facts)}
    rows = re.findall(COLOURS, query)
    columns = re.findall(r"\b[A-C]\b", query)
    if question_type == "cell":
        return str(cells[rows[0], columns[0]])
    if question_type == "cell_compare":
        return yes_no(cells[rows[0], columns[0]] > cells[rows[1], columns[0]])
    if question_type == "row":
        return extreme(
            query, {row: number for (row, column), number in cells.items() if column == columns[0]}
        )
    return extreme(query, {column: number for (row, column), number in cells.items() if row == rows[0]})


def read_geometry(question_type: str, query: str, facts: list[str]) -> str:
    colours = re.findall(COLOURS, query)
    if question_type == "polygon_sides":
        return facts[0].split()[0]
    if question_type == "angle":
        word, degrees = facts[0].split()[:2]
        assert (int(degrees) > 90) - (int(degrees) < 90) == {"acute": -1, "right": 0, "obtuse": 1}[word]
        return word
    if question_type.startswith("segment"):
        lines = {fact.split()[0]: [int(number) for number in re.findall(r"\d+", fact)] for fact in facts}
        if question_type == "segment_parallel":
            return yes_no(len({turn for _, turn in lines.values()}) == 1)
        return extreme(query, {colour: length for colour, (length, _) in lines.items()})
    if question_type.startswith("graph"):
        arrows = [tuple(fact.split(" points to ")) for fact in facts if "points" in fact]
        nodes = re.findall(r"\b[A-D]\b", query)
        if question_type == "graph_arrow":
            return yes_no((nodes[0], nodes[1]) in arrows)
        return dict(arrows)[nodes[0]]
    states = dict(fact.split() for fact in facts)
    if question_type.endswith("count"):
        return str(sum(state in ("crossing", "inside") for state in states.values()))
    wanted = "crossing" if question_type == "crosses" else "outside" if "out" in query else "inside"
    return yes_no(states[colours[0]] == wanted)


READERS = {
    "objects": read_objects, "charts": read_charts, "dials": read_dials, "tables": read_tables,
    "geometry": read_geometry,
}  # fmt: skip


def read_answer(domain: str, question: SceneQuestion, description: str) -> str:
    answer = READERS[domain](question.type, question.query, facts_of(description))
    return "ABCD"[question.options.index(answer)] if question.options else answer


# Scenes and edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "question_type"), TYPES)
def test_an_edit_changes_one_fact_and_the_answer(name: str, question_type: str) -> None:
    """`answer_of` and the reader agree before and after; one fact differs (of a pie, two shares)."""
    domain, rng = DOMAINS[name], Random(f"edit {question_type}")
    for _ in range(60):
        scene, question = domain.ask(question_type, rng, choice_share=0.3)
        edited = question.edit(rng)
        assert question.type == question_type
        assert (
            question.answer_of(scene)
            == question.answer
            == read_answer(name, question, domain.describe(scene))
        )
        other = question.answer_of(edited)
        assert other == read_answer(name, question, domain.describe(edited)) != question.answer
        before, after = Counter(domain.facts(scene)), Counter(domain.facts(edited))
        expected = 2 if scene.kind == "pie" else 1
        assert sum((before - after).values()) == sum((after - before).values()) == expected
        assert " becomes " in describe_edit(domain, scene, edited)


@pytest.mark.parametrize(("name", "question_type"), TYPES)
def test_questions_are_well_formed(name: str, question_type: str) -> None:
    """Short answers in lower case (labels and option letters in upper case), of the type they claim."""
    domain, rng = DOMAINS[name], Random(f"form {question_type}")
    queries = set()
    for _ in range(60):
        scene, question = domain.ask(question_type, rng, choice_share=0.3)
        queries.add(re.sub(rf"{COLOURS}|\b[A-D]\b|\d", "x", question.query))
        assert re.fullmatch("[^{}]+[?.]", question.query)
        assert len(domain.describe(scene).split()) <= 45
        assert len(set(question.options)) == len(question.options) != 1
        assert (question.answer_type == "choice") == bool(question.options)
        pattern = {
            "choice": "[A-D]",
            "boolean": "yes|no",
            "numeric": r"\d+",
            "exact": r"[a-z]+( [a-z]+)?|[A-D]|\d+:\d\d",
        }
        assert re.fullmatch(pattern[question.answer_type], question.answer)
    assert len(queries) >= 2


def test_an_objects_edit_touches_only_the_cells_involved() -> None:
    """Outside the cells (plus 3% for jitter) of the objects that differ, every pixel is the same."""
    domain, rng = DOMAINS["objects"], Random("local")
    for question_type in domain.types:
        for _ in range(12):
            scene, question = domain.ask(question_type, rng)
            edited = question.edit(rng)
            before, after = (np.asarray(domain.draw(each, 112)) for each in (scene, edited))
            outside = (before != after).any(axis=-1)
            for thing in {*scene.things, *edited.things} - ({*scene.things} & {*edited.things}):  # type: ignore[attr-defined]
                top, left = (int(112 * (at / 3 - 0.03)) for at in (thing.row, thing.column))
                outside[max(top, 0) : top + 45, max(left, 0) : left + 45] = False
            assert not outside.any()


# Largest share of pixels that an edit of a type may change; everything else stays below 0.25.
LARGE_EDITS = {
    "pie_extreme": 0.6,
    "pie_compare": 0.65,
    "sign_colour": 0.8,
    "polygon_sides": 0.5,
    "sign_word": 0.3,
}


@pytest.mark.parametrize(("name", "question_type"), TYPES)
def test_an_edit_changes_few_pixels_but_some(name: str, question_type: str) -> None:
    domain, rng = DOMAINS[name], Random(f"pixels {question_type}")
    for size_px in (56, 112, 112, 112, 112, 112, 112, 150):
        scene, question = domain.ask(question_type, rng)
        pictures = [render_scene(name, each, size_px) for each in (scene, question.edit(rng))]
        assert pictures[0].size == (size_px, size_px)
        assert pictures[0].mode == "RGB"
        assert 0.002 < changed_fraction(*pictures) < LARGE_EDITS.get(question_type, 0.25)


def test_answers_are_near_uniform_before_and_after_the_edit() -> None:
    """Total variation distance to uniform (over the answers seen), for every type with at most 12 answers.

    400 draws of K equally likely answers lie about sqrt(K / (2 pi 400)) away: 0.07 for K = 12.
    """
    for name, question_type in TYPES:
        rng, answers, edited = Random(f"balance {question_type}"), Counter[str](), Counter[str]()
        for _ in range(400):
            _, question = DOMAINS[name].ask(question_type, rng, choice_share=0.0)
            answers[question.answer] += 1
            edited[str(question.answer_of(question.edit(rng)))] += 1
        for counts in (answers, edited):
            vocabulary = answers.keys() | edited.keys()
            if (
                question_type == "further"
            ):  # six shapes and seven colours: two vocabularies, half of the time each
                vocabulary = {word for word in vocabulary if word in COLOURS.split("|")}
                counts = Counter({word: counts[word] for word in vocabulary})
            if len(vocabulary) <= 12:
                even = 1 / len(vocabulary)
                distance = sum(abs(counts[word] / counts.total() - even) for word in vocabulary) / 2
                assert distance < 0.1, (question_type, counts)


def test_option_letters_are_balanced() -> None:
    """With four options each letter is right a quarter of the time, before and after the edit."""
    rng, before, after = Random("letters"), Counter[str](), Counter[str]()
    for _ in range(1500):
        name, question_type = rng.choice(
            [pair for pair in TYPES if pair[1] in ("colour", "place", "clock_time", "cell")]
        )
        _, question = DOMAINS[name].ask(question_type, rng, choice_share=1.0)
        before[question.answer] += 1
        after[str(question.answer_of(question.edit(rng)))] += 1
    for counts in (before, after):
        assert all(abs(counts[letter] / 1500 - 0.25) < 0.04 for letter in "ABCD"), counts


def test_scene_examples_give_pictures_descriptions_and_questions() -> None:
    image, description, questions, name = scene_examples(1, 7, ["objects"], 64, 3)
    again = scene_examples(1, 7, ["objects"], 64, 3)
    assert (image.size, name, description) == ((64, 64), "objects", again[1])
    assert image.tobytes() == again[0].tobytes()
    assert [question.query for question in questions] == [question.query for question in again[2]]
    assert 1 <= len(questions) <= 3
    assert all(question.answer == read_answer(name, question, description) for question in questions)
    seen = {scene_examples(0, index)[3] for index in range(60)}
    assert seen == set(DOMAINS)
