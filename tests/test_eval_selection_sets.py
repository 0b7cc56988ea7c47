"""Rows in the published schemas of the selection sets, written by hand, become the pairs that they must, or rejects with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.tiny_models import noise_image
from vlm_contextrl.errors import DataError
from vlm_contextrl.eval import selection_sets
from vlm_contextrl.eval.selection_fixtures import write_selection_fixtures
from vlm_contextrl.eval.selection_readers import (
    CAPTION_QUERY,
    Draft,
    Place,
    Reject,
    hallusionbench,
    mmvp,
    naturalbench,
    vismin,
)
from vlm_contextrl.eval.selection_sets import SELECTION_SETS, PublishedPairs, read_selection_set
from vlm_contextrl.images import encode_png
from vlm_contextrl.pairs import check_pair

Values = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def drafts(reader: Callable[..., Any], rows: Sequence[Values]) -> list[Draft | Reject]:
    return list(reader(rows, SELECTION_SETS[reader.__name__].part))


def said(draft: Draft | Reject) -> tuple[Any, ...]:
    assert isinstance(draft, Draft), draft
    return draft.id, draft.query, draft.answer, draft.confounder_answer


def reason(draft: Draft | Reject) -> str:
    assert isinstance(draft, Reject), draft
    return draft.reason


# ---------------------------------------------------------------- NaturalBench


def item(**changes: Any) -> Values:
    return {
        "Index": 7, "Question_0": "Is the dog asleep?", "Question_1": "Is it day?", "Image_0_Question_0": "Yes",
        "Image_1_Question_0": "No", "Image_0_Question_1": "No", "Image_1_Question_1": "Yes", "Question_Type": "yes_no",
    } | changes  # fmt: skip


def test_naturalbench_gives_a_pair_per_question() -> None:
    first, second = drafts(naturalbench, [item()])
    assert said(first) == ("7-q0", "Is the dog asleep?", "Yes", "No")
    assert said(second) == ("7-q1", "Is it day?", "No", "Yes")
    assert isinstance(first, Draft)
    assert (first.context, first.confounder) == (Place(0, "Image_0"), Place(0, "Image_1"))
    assert (first.answer_type, first.scene, first.domain) == ("boolean", "7", "yes_no")


@pytest.mark.parametrize(
    "question",
    [
        "Which one? Option: A: a red car; B: a bus;",
        "Which one?\nOptions: A. a red car\nB. a bus",
        "Which one? A: a red car; B: a bus",
        "Which one? (A) a red car (B) a bus",
    ],
)
def test_options_are_taken_out_of_a_question(question: str) -> None:
    answers = {"Image_0_Question_0": "B", "Image_1_Question_0": "A"}
    draft = drafts(naturalbench, [item(Question_Type="multiple_choice", Question_0=question, **answers)])[0]
    assert said(draft)[1:] == ("Which one?", "B", "A")
    assert isinstance(draft, Draft)
    assert (draft.options, draft.answer_type) == (("a red car", "a bus"), "choice")


def test_the_older_name_of_a_column_is_read_too() -> None:
    row = item()
    row["Question Type"] = row.pop("Question_Type")
    assert said(drafts(naturalbench, [row])[0])[0] == "7-q0"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Question_Type": "open"}, "found 'open', expected yes_no or multiple_choice"),
        ({"Question_Type": "multiple_choice"}, "row 7, field 'Question_0'.*ends with its options"),
        ({"Question_0": ""}, "row 7, field 'Question_0': found '', expected a text that is not empty"),
    ],
)
def test_an_item_that_makes_no_pair(changes: Values, expected: str) -> None:
    assert re.search(expected, reason(drafts(naturalbench, [item(**changes)])[0]))


# ---------------------------------------------------------------- VisMin


def test_vismin_asks_which_caption_fits() -> None:
    row = {
        "id": "spatial_3",
        "text_0": "A cat left of a dog.",
        "text_1": "A cat right of a dog.",
        "category": "spatial",
    }
    draft = drafts(vismin, [row])[0]
    assert said(draft) == ("spatial_3", CAPTION_QUERY, "A cat left of a dog.", "A cat right of a dog.")
    assert isinstance(draft, Draft)
    assert (draft.context, draft.confounder, draft.domain) == (
        Place(0, "image_0"),
        Place(0, "image_1"),
        "spatial",
    )
    assert "'text_1': found 'no such column'" in reason(drafts(vismin, [{"id": "x", "text_0": "A cat."}])[0])


# ---------------------------------------------------------------- HallusionBench


def figure(figure_id: int, answer: int, question: str = "Is it round?", **changes: Any) -> Values:
    return {
        "category": "VD", "subcategory": "chart", "set_id": "4", "figure_id": f"{figure_id}", "question_id": "0",
        "question": question, "gt_answer": f"{answer}",
    } | changes  # fmt: skip


def test_every_edited_figure_pairs_with_its_original() -> None:
    """Rows 0 and 3 are originals; 1 and 2 are edits of row 0, of which the second keeps the answer (checked later, as for every pair)."""
    other = "Is it red?"
    found = drafts(
        hallusionbench, [figure(0, 1), figure(1, 0), figure(2, 1), figure(0, 0, other), figure(1, 1, other)]
    )
    assert [said(draft)[1:] for draft in found] == [
        ("Is it round?", "Yes", "No"), ("Is it round?", "Yes", "Yes"), ("Is it red?", "No", "Yes"),
    ]  # fmt: skip
    places = [(draft.context.row, draft.confounder.row) for draft in found if isinstance(draft, Draft)]
    assert places == [(0, 1), (0, 2), (3, 4)]


def test_figures_that_make_no_pair() -> None:
    """Each of them is one input: another category, an original and an edit that lack each other, an answer that is none."""
    rows = [
        figure(0, 1, category="VS"), figure(0, 1, set_id="5"), figure(1, 1, set_id="6"), figure(0, 1), figure(1, 2),
    ]  # fmt: skip
    reasons = [reason(draft) for draft in drafts(hallusionbench, rows)]
    assert reasons[0] == "category is 'VS', expected 'VD', visual dependent"
    assert "expected one that is also asked of the set's original, figure_id 0" in reasons[1]
    assert "field 'gt_answer': found '2', expected 0 or 1" in reasons[2]
    assert reasons[3] == "no edited figure has this question"
    assert len(reasons) == 4


# ---------------------------------------------------------------- MMVP


def view(index: int, answer: str, **changes: Any) -> Values:
    return {
        "Index": index, "Question": "Is the door open?", "Options": "(a) Open (b) Closed", "Correct Answer": answer,
    } | changes  # fmt: skip


def test_two_consecutive_indices_are_a_pair() -> None:
    """In whatever order the rows come: 4 and 3, then 1 and 2."""
    rows = [view(4, "(a)"), view(1, "(a)"), view(3, "(b)"), view(2, "(b)")]
    found = {draft.id: draft for draft in drafts(mmvp, rows)}
    assert said(found["3"]) == ("3", "Is the door open?", "B", "A")
    assert said(found["1"]) == ("1", "Is the door open?", "A", "B")
    draft = found["3"]
    assert isinstance(draft, Draft)
    assert (draft.options, draft.context.row, draft.confounder.row) == (("Open", "Closed"), 2, 0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([view(1, "(a)")], "expected two rows of a pair, found 1"),
        (
            [view(1, "(a)"), view(2, "(b)", Question="Is it shut?")],
            "expected that of row 1, 'Is the door open?'",
        ),
        ([view(1, "(a)"), view(2, "(b)", Options="(a) Shut (b) Open")], "expected those of row 1"),
        ([view(1, "(a)", Options="Open"), view(2, "(b)")], "expected options as in '(a) Open (b) Closed'"),
        ([view(1, "(c)"), view(2, "(b)")], "expected an option letter, A to B"),
    ],
)
def test_two_rows_that_make_no_pair(rows: list[Values], expected: str) -> None:
    assert expected in reason(drafts(mmvp, rows)[0])


# ---------------------------------------------------------------- whole sets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    made = write_selection_fixtures(folder)
    assert made == {"naturalbench": 8, "vismin": 4, "hallusionbench": 8, "mmvp": 4}
    return folder


@pytest.mark.parametrize(
    ("name", "pairs", "rejects"),
    [("naturalbench", 8, 0), ("vismin", 4, 0), ("hallusionbench", 8, 9), ("mmvp", 4, 0)],
)
def test_fixtures_are_read(root: Path, name: str, pairs: int, rejects: int) -> None:
    """HallusionBench: per scene two edits that each keep one of two answers, and one row of the other category: 4 * 2 + 1 rejects."""
    chosen = SELECTION_SETS[name]
    found = read_selection_set(chosen, root)
    assert (len(found), len(found.rejects), found.inputs) == (pairs, rejects, pairs + rejects)
    for pair in found:
        assert check_pair(pair) is None
        assert pair.reversed() is not None
        assert pair.provenance["licence"] == chosen.licence
    assert [pair.id for pair in found[:3]] == [pair.id for pair in read_selection_set(chosen, root, limit=3)]


def test_a_limit_counts_only_what_was_looked_at(root: Path) -> None:
    """After the row of category VS, the first edit that keeps an answer comes behind the first pair."""
    found = read_selection_set(SELECTION_SETS["hallusionbench"], root, limit=1)
    assert (len(found), found.inputs) == (1, 2)


def of_rows(rows: Sequence[Values], reader: Callable[..., Any] = vismin) -> PublishedPairs:
    chosen = SELECTION_SETS[reader.__name__]
    return PublishedPairs(chosen, rows, reader(rows, chosen.part), None)


def captions(row_id: str, first: Image.Image, second: Image.Image, **changes: Any) -> Values:
    images = {
        f"image_{i}": {"bytes": encode_png(image), "path": None} for i, image in enumerate((first, second))
    }
    return {"id": row_id, "text_0": "A cat.", "text_1": "A dog.", "category": "object"} | images | changes


def test_pictures_are_checked() -> None:
    """Of five rows one is right; equal pictures, broken ones, no picture and a repeated id are rejects."""
    one, two = noise_image(1), noise_image(2)
    rows = [
        captions("right", one, two), captions("equal", one, one), captions("broken", one, two, image_1={"bytes": b"x"}),
        captions("none", one, two, image_0=None), captions("right", two, one),
    ]  # fmt: skip
    found = of_rows(rows)
    assert [pair.id for pair in found] == ["right"]
    reasons = dict(found.rejects)
    assert reasons["equal"] == "context and confounder have the same pixels, expected two different images"
    assert reasons["broken"].startswith("vismin, row 2, field 'image_1'")
    assert (
        reasons["none"] == "vismin, row 3, field 'image_0': found NoneType, expected an image as file bytes"
    )
    assert reasons["right"] == "duplicate id, an earlier pair has it"
    assert found.inputs == len(rows)


def test_a_set_without_a_pair_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"id": "x", "caption": "A cat."}])
    monkeypatch.setattr(selection_sets, "load_part", lambda part, data_root: rows)
    with pytest.raises(
        DataError, match="vismin: none of 1 candidates is a pair; the first: x; vismin, test, row x"
    ):
        read_selection_set(SELECTION_SETS["vismin"])


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mmvp.*lmms-lab-eval/MMVP"):
        read_selection_set(SELECTION_SETS["mmvp"], tmp_path)
