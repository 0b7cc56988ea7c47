"""The data switches: random confounders, pairs as questions, contexts of other pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_models import image_pair, question
from vlm_contextrl.config import DataSettings
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, check_pair, check_question
from vlm_contextrl.storage import read_pairs, read_questions
from vlm_contextrl.training_rows import (
    OtherContexts,
    RandomConfounders,
    WithPairs,
    selection_question,
    training_rows,
)


def asking(n: int, query: str, answer: str, other: str | None = None, **fields: object) -> ContrastivePair:
    return replace(image_pair(n, other), query=query, answer=answer, **fields)  # type: ignore[arg-type]


def numbers(pairs: Sequence[ContrastivePair], contexts: Sequence[object]) -> list[int]:
    """Which pair's context each one is."""
    own = [pair.context for pair in pairs]
    return [own.index(context) for context in contexts]  # type: ignore[arg-type]


# ---------------------------------------------------------------- contexts of other pairs

COUNTS = [
    asking(0, "How many?", "3", "4"),
    asking(1, "How many?", "4"),
    asking(2, "How many?", "5"),
    asking(3, "How many?", "3"),
    asking(4, "What colour?", "red"),
    asking(5, "What is it?", "3"),
]


@pytest.mark.parametrize("seed", range(5))
def test_pairs_that_ask_the_same_come_first(seed: int) -> None:
    """Pair 0 (3, not 4): contexts 1 and 2 answer the same query by 4 and 5. Of the others only 4 is left: 3 answers 3, 5 says 3, too.
    Neither 3 nor 4: only 2 asks the same, then 4. What a context answers is known where the query is the same."""
    others = OtherContexts(COUNTS, seed)
    found = others.of(COUNTS[0], 3)
    assert sorted(numbers(COUNTS, [context for context, _ in found[:2]])) == [1, 2]
    assert numbers(COUNTS, [found[2][0]]) == [4]
    known = {numbers(COUNTS, [context])[0]: answer for context, answer in found}
    assert known == {1: "4", 2: "5", 4: None}
    neither = others.of(COUNTS[0], 2, for_either_answer=True)
    assert numbers(COUNTS, [context for context, _ in neither]) == [2, 4]


def test_the_same_contexts_at_every_call_and_others_with_another_seed() -> None:
    pairs = [asking(n, "How many?", str(n)) for n in range(30)]
    first = [OtherContexts(pairs, 0).of(pair, 2) for pair in pairs]
    assert [OtherContexts(pairs, 0).of(pair, 2) for pair in pairs] == first
    assert [OtherContexts(pairs, 1).of(pair, 2) for pair in pairs] != first


def test_letters_mean_what_their_options_say() -> None:
    """B is "blue" for one pair and "red" for the other: the answers differ under other options, and A is then the same "red"."""
    colours = {"answer_type": "choice", "options": ("red", "blue")}
    swapped = {"answer_type": "choice", "options": ("blue", "red")}
    pairs = [
        asking(0, "Colour?", "A", **colours),
        asking(1, "Colour?", "B", **swapped),
        asking(2, "Colour?", "A", **swapped),
    ]
    ((context, answer),) = OtherContexts(pairs, 0).of(pairs[0], 1)
    assert (numbers(pairs, [context]), answer) == ([2], None)
    with pytest.raises(
        DataError, match="pair p0: found 1 contexts of other pairs with another answer, expected 2"
    ):
        OtherContexts(pairs, 0).of(pairs[0], 2)


# ---------------------------------------------------------------- random confounders


def test_random_confounders() -> None:
    """Each pair keeps everything but its confounder, which becomes another pair's context; the answer to it is the other pair's where
    that asks the same, and unknown where not. What comes out is a pair."""
    pairs = [asking(n, ("How many?", "What?")[n % 2], f"{n} dots", f"{n + 100} dots") for n in range(8)]
    changed = RandomConfounders(pairs, seed=0)
    assert len(changed) == 8
    assert list(changed) == list(RandomConfounders(pairs, seed=0))
    assert [p.confounder for p in changed] != [p.confounder for p in RandomConfounders(pairs, seed=1)]
    for index, (pair, found) in enumerate(zip(pairs, changed, strict=True)):
        (other,) = numbers(pairs, [found.confounder])
        assert other != index
        assert other % 2 == index % 2
        assert found.confounder_answer == pairs[other].answer
        assert replace(found, confounder=pair.confounder, confounder_answer=pair.confounder_answer) == pair
        assert check_pair(found) is None


def test_one_pair_has_no_other() -> None:
    with pytest.raises(DataError, match="pair p0: found 0 contexts"):
        RandomConfounders([image_pair(0)], 0)[0]


# ---------------------------------------------------------------- pairs as questions


def test_selection_question_by_hand() -> None:
    """The context second: its letter is B, and the pictures lie in that order."""
    pair = asking(0, "How many?", "3", "4", domain="dots")
    row = selection_question(pair, 1)
    assert (row.answer, row.options) == ("B", ("the first image", "the second image"))
    assert row.images == (pair.confounder, pair.context)
    assert row.query == "Question: How many?\nAnswer: 3\nWhich image supports the answer?"
    assert (row.id, row.domain, row.provenance) == ("p0~select", "dots", pair.provenance)
    assert check_question(row) is None


def test_selection_question_about_texts() -> None:
    pair = replace(image_pair(0), context="It is red.", confounder="It is blue.")
    row = selection_question(pair, 0)
    assert (row.answer, row.images) == ("A", ())
    assert row.context_text == "The first context:\nIt is red.\nThe second context:\nIt is blue."
    assert row.options == ("the first context", "the second context")
    assert check_question(row) is None


def test_pairs_behind_the_questions() -> None:
    """Two questions; of four pairs two know what the confounder supports, and give two rows each. Letters are drawn per row."""
    pairs = [image_pair(n, "8" if n % 2 else None) for n in range(4)]
    questions = [question(n) for n in range(2)]
    rows = WithPairs(questions, pairs, of_each=False, seed=0)
    assert [row.id.removesuffix("~select") for row in rows] == [
        "q0",
        "q1",
        "p0",
        "p1",
        "p1~r",
        "p2",
        "p3",
        "p3~r",
    ]
    assert [row.query.split("\n")[1] for row in rows[2:5]] == ["Answer: 7", "Answer: 7", "Answer: 8"]
    for row, pair in ((rows[3], pairs[1]), (rows[4], pairs[1].reversed())):
        assert pair is not None
        assert row.images["AB".index(row.answer)] == pair.context
    many = WithPairs([], [image_pair(n) for n in range(60)], of_each=False, seed=0)
    letters = Counter(row.answer for row in many)
    assert min(letters.values()) > 40  # of 120
    assert list(many) == list(WithPairs([], [image_pair(n) for n in range(60)], of_each=False, seed=0))


def test_a_share_of_the_rows_by_hand() -> None:
    """Ten questions and a share of one sixth: two rows more, other ones under another seed; a half needs ten of 16, four fifths forty."""
    questions, pairs = [question(n) for n in range(10)], [image_pair(n, "8") for n in range(8)]

    def drawn(share: float, seed: int = 0) -> list[str]:
        return [row.id for row in WithPairs(questions, pairs, of_each=False, seed=seed, share=share)][10:]

    assert len(drawn(1 / 6)) == 2
    assert len(set(drawn(0.5))) == 10
    assert drawn(0.5) == drawn(0.5) != drawn(0.5, seed=1)
    with pytest.raises(
        DataError, match=r"pairs_share 0.8 of the rows needs 40 questions of pairs beside 10 others, found 16"
    ):
        drawn(0.8)


def test_queries_of_each_context_behind_the_questions() -> None:
    pairs = [image_pair(n, "8" if n % 2 else None) for n in range(2)]
    rows = WithPairs([question(0)], pairs, of_each=True, seed=0)
    assert [(row.id, row.answer) for row in rows] == [
        ("q0", "7"), ("p0~context", "7"), ("p1~context", "7"), ("p1~confounder", "8"),
    ]  # fmt: skip
    assert rows[3].images == (pairs[1].confounder,)


def test_switches(noise_rows: dict[str, Path]) -> None:
    """Off: the folders as they are. On: what the classes above make of them."""

    def read(**switches: object) -> tuple[list[QuestionRow], list[ContrastivePair]]:
        questions, pairs = training_rows(DataSettings(**noise_rows, **switches), seed=3)  # type: ignore[arg-type]
        return list(questions), list(pairs)

    questions, pairs = list(read_questions(noise_rows["questions"])), list(read_pairs(noise_rows["pairs"]))
    assert read() == (questions, pairs)
    assert read(pairs_as_questions="selection") == (
        list(WithPairs(questions, pairs, of_each=False, seed=3)),
        pairs,
    )
    assert len(read(pairs_as_questions="vqa")[0]) == 5 + 2 + 4
    assert all(isinstance(row.images[0], EncodedImage) for row in read(pairs_as_questions="vqa")[0][5:])
