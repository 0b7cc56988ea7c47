"""Pairs and questions: the derived rows, and every invariant with its message."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.images import pixel_hash
from vlm_contextrl.pairs import (
    ContrastivePair,
    EncodedImage,
    QuestionRow,
    check_pair,
    check_question,
)


def square(colour: str) -> EncodedImage:
    return EncodedImage.from_image(Image.new("RGB", (4, 4), colour))


def pair(**changes: Any) -> ContrastivePair:
    fields: dict[str, Any] = {
        "id": "p1",
        "query": "Which colour?",
        "answer": "red",
        "context": square("red"),
        "confounder": square("blue"),
        "confounder_answer": "blue",
        "provenance": {"licence": "CC0-1.0", "scene": 7},
    }
    return ContrastivePair(**{**fields, **changes})


def question(**changes: Any) -> QuestionRow:
    fields: dict[str, Any] = {
        "id": "q1",
        "query": "Which colour?",
        "answer": "red",
        "images": (square("red"),),
        "provenance": {"licence": "CC0-1.0"},
    }
    return QuestionRow(**{**fields, **changes})


def test_encoded_image_decodes_to_what_it_was_made_from() -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    image = EncodedImage.from_image(picture)
    assert image.decode().tobytes() == picture.tobytes()
    assert image.pixel_hash() == pixel_hash(picture)
    assert image == EncodedImage(image.data, origin="elsewhere")
    assert str(image.data)[:10] not in repr(image)


def test_encoded_image_decodes_once_for_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    image = square("red")
    first = image.pixel_hash()
    monkeypatch.setattr(EncodedImage, "decode", None)
    assert image.pixel_hash() == first


def test_encoded_image_errors_name_the_origin() -> None:
    with pytest.raises(DataError, match=r"^image: 3 bytes"):
        EncodedImage(b"abc").decode()
    with pytest.raises(DataError, match=r"^file.parquet: row 3: context: 3 bytes"):
        EncodedImage(b"abc", origin="file.parquet: row 3: context").decode("image")


def test_reversed_exchanges_contexts_and_answers() -> None:
    other = pair().reversed()
    assert other is not None
    assert (other.id, other.answer, other.confounder_answer) == ("p1~r", "blue", "red")
    assert (other.context, other.confounder) == (square("blue"), square("red"))
    assert check_pair(other) is None
    assert other.reversed() == pair()
    assert pair(confounder_answer=None).reversed() is None


def test_questions_of_an_image_pair() -> None:
    first, second = pair(domain="objects", recipe="render").questions()
    assert (first.id, first.answer, first.images) == ("p1~context", "red", (square("red"),))
    assert (second.id, second.answer, second.images) == ("p1~confounder", "blue", (square("blue"),))
    assert (second.query, second.domain, second.recipe) == ("Which colour?", "objects", "render")
    assert second.provenance == {"licence": "CC0-1.0", "scene": 7}
    assert check_question(first) is None
    assert check_question(second) is None
    assert [row.id for row in pair(confounder_answer=None).questions()] == ["p1~context"]


def test_questions_of_a_text_pair() -> None:
    first, second = pair(context="It is red.", confounder="It is blue.").questions()
    assert (first.images, first.context_text) == ((), "It is red.")
    assert (second.images, second.context_text) == ((), "It is blue.")


CHOICE = {"answer_type": "choice", "options": ("red", "blue", "green")}


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"confounder_answer": None},
        {"context": "a text", "confounder": "another text"},
        {**CHOICE, "answer": "A", "confounder_answer": "C"},
        {"answer": "1", "confounder_answer": "1.5", "answer_type": "numeric"},
        {"options": ("red", "blue")},
    ],
)
def test_good_pairs(good: dict[str, Any]) -> None:
    assert check_pair(pair(**good)) is None


def bmp(image: EncodedImage) -> EncodedImage:
    buffer = io.BytesIO()
    image.decode().save(buffer, "BMP")
    return EncodedImage(buffer.getvalue())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"id": " "}, "id is empty"),
        ({"id": 7}, "id is a int, expected a text"),
        ({"query": ""}, "query is empty"),
        ({"answer": "\n"}, "answer is empty"),
        (
            {"answer": "\ud800"},
            "answer holds half a character (a lone surrogate) at 0, expected Unicode text",
        ),
        ({"domain": None}, "domain is a NoneType, expected a text"),
        (
            {"answer_type": "bool"},
            "answer_type is 'bool', expected one of choice, exact, numeric, math, boolean",
        ),
        ({"options": ("a",) * 27}, "27 options, expected at most 26 (one letter each)"),
        ({"options": ["a"]}, "options is a list, expected a tuple of texts"),
        ({"options": ("a", "")}, "options[1] is empty"),
        (
            {"answer_type": "choice", "options": ("red",), "answer": "A"},
            "answer_type is 'choice' with 1 options, expected at least 2",
        ),
        ({**CHOICE, "answer": "red"}, "answer is 'red', expected one of the option letters A to C"),
        ({**CHOICE, "answer": "D"}, "answer is 'D', expected one of the option letters A to C"),
        ({**CHOICE, "answer": "AB"}, "answer is 'AB', expected one of the option letters A to C"),
        (
            {**CHOICE, "answer": "A", "confounder_answer": "b"},
            "confounder_answer is 'b', expected one of the option letters A to C",
        ),
        (
            {"confounder_answer": " RED. "},
            "answer 'red' and confounder_answer ' RED. ' are the same, expected two answers",
        ),
        ({"confounder_answer": ""}, "confounder_answer is empty"),
        ({"provenance": {}}, "provenance['licence'] is None, expected the source's licence as a text"),
        (
            {"provenance": {"licence": " "}},
            "provenance['licence'] is ' ', expected the source's licence as a text",
        ),
        ({"provenance": None}, "provenance is a NoneType, expected a dict"),
        (
            {"confounder": square("red")},
            "context and confounder have the same pixels, expected two different images",
        ),
        (
            {"confounder": bmp(square("red"))},
            "context and confounder have the same pixels, expected two different images",
        ),
        (
            {"context": "one  text\n", "confounder": " one text"},
            "context and confounder are the same text, expected two different ones",
        ),
        ({"context": "", "confounder": "a text"}, "context is empty"),
        (
            {"confounder": "a text"},
            "context and confounder are EncodedImage and str, "
            "expected two images (EncodedImage) or two texts (str)",
        ),
        (
            {"confounder": EncodedImage(b"abc")},
            "confounder: 3 bytes starting with b'abc' are no image, expected a whole PNG, JPEG, WEBP, GIF or "
            "BMP file",
        ),
    ],
)
def test_bad_pairs(bad: dict[str, Any], reason: str) -> None:
    assert check_pair(pair(**bad)) == reason


@pytest.mark.parametrize("value", [{1}, float("nan"), "\ud800"], ids=["set", "nan", "surrogate"])
def test_what_is_no_json_is_refused(value: Any) -> None:
    for name in ("provenance", "verdicts"):
        reason = check_pair(pair(**{name: {"licence": "MIT", "extra": value}}))
        assert (reason or "").startswith(f"{name} cannot be written as JSON (")


def test_questions_may_have_any_number_of_images() -> None:
    for images in ((), (square("red"),), (square("red"), square("red"))):
        assert check_question(question(images=images)) is None
    assert check_question(question(images=(), context_text="It is red.")) is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"query": " "}, "query is empty"),
        (
            {"provenance": {"licence": ""}},
            "provenance['licence'] is '', expected the source's licence as a text",
        ),
        ({"context_text": None}, "context_text is a NoneType, expected a text"),
        ({"images": [square("red")]}, "images is a list, expected a tuple of EncodedImage"),
        ({"images": (b"abc",)}, "images[0] is a bytes, expected an EncodedImage"),
        ({**CHOICE, "answer": "Z"}, "answer is 'Z', expected one of the option letters A to C"),
    ],
)
def test_bad_questions(bad: dict[str, Any], reason: str) -> None:
    assert check_question(question(**bad)) == reason


def test_a_question_with_one_broken_image_names_it() -> None:
    reason = check_question(question(images=(square("red"), EncodedImage(square("red").data[:48]))))
    assert reason is not None
    assert reason.startswith("images[1]: damaged or truncated (")


def test_rows_are_frozen() -> None:
    with pytest.raises(AttributeError):
        pair().answer = "blue"  # type: ignore[misc]
    assert replace(pair(), answer="green").answer == "green"
