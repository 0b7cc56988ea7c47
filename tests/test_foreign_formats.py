"""Image folders and the official release's jsonl: what is taken, what is rejected and why."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.rows import ForeignRows
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.storage import read_manifest, read_pairs, read_questions, write_rows

COLOURS = {"a.png": (255, 0, 0), "b.png": (0, 0, 255), "sub/c.bmp": (0, 255, 0)}


def pixel(image: Any) -> Any:
    assert isinstance(image, EncodedImage)
    return image.decode().getpixel((0, 0))


def rejects_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    assert isinstance(rows, ForeignRows)
    return rows.rejects


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (3, 3), colour).save(root / name)
    return root


def write_lines(file: Path, *values: Any) -> Path:
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


FOLDER_PAIR = {
    "context_file_name": "a.png",
    "confounder_file_name": "sub/c.bmp",
    "query": "Which colour?",
    "answer": "red",
    "licence": "CC0-1.0",
}


def test_image_folder_pairs(folder: Path) -> None:
    full = {
        **FOLDER_PAIR,
        "id": "first",
        "confounder_answer": "green",
        "options": ["red", "green"],
        "domain": "colours",
        "recipe": "mine",
        "source": "me",
        "provenance": {"seed": 3},
        "verdicts": {"human": "keep"},
    }
    texts = {"context_text": "1", "confounder_text": "2", "question": "Sum?", "answer": 1, "license": "MIT"}
    write_lines(folder / "metadata.jsonl", full, "", texts)
    rows = read_pairs(folder)
    assert rows[0] == ContrastivePair(
        id="first",
        query="Which colour?",
        answer="A",
        confounder_answer="B",
        context=EncodedImage((folder / "a.png").read_bytes()),
        confounder=EncodedImage((folder / "sub/c.bmp").read_bytes()),
        options=("red", "green"),
        answer_type="choice",
        domain="colours",
        recipe="mine",
        provenance={"licence": "CC0-1.0", "source": "me", "seed": 3},
        verdicts={"human": "keep"},
    )
    assert rows[1] == ContrastivePair(
        id="data-3",
        query="Sum?",
        answer="1",
        context="1",
        confounder="2",
        answer_type="numeric",
        provenance={"licence": "MIT"},
    )
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
    assert rejects_of(rows) == []


def test_image_folder_questions(folder: Path) -> None:
    write_lines(
        folder / "metadata.jsonl",
        {"file_name": "a.png", "query": "Red?", "answer": True},
        {"image_file_names": ["a.png", "b.png"], "query": "Same?", "answer": "no", "context_text": "Look."},
        {"query": "2 + 2?", "answer": "$4$"},
        FOLDER_PAIR,
    )
    rows = read_questions(folder, licence="CC0-1.0")
    assert [(row.id, row.answer, row.answer_type, len(row.images), row.context_text) for row in rows] == [
        ("data-1", "true", "boolean", 1, ""),
        ("data-2", "no", "boolean", 2, "Look."),
        ("data-3", "$4$", "math", 0, ""),
    ]
    assert [pixel(image) for image in rows[1].images] == [(255, 0, 0), (0, 0, 255)]
    assert rows[0].provenance == {"licence": "CC0-1.0"}
    assert [row.id for row in read_pairs(folder)] == ["data-4"]


def test_rows_that_cannot_be_used_are_rejected_with_their_reason(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3, 3), (9, 9, 9)).save(secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:48])
    Image.new("RGB", (3, 3), COLOURS["a.png"]).save(folder / "same.bmp")
    bad: list[tuple[Any, str]] = [
        ({"context_file_name": "../secret.png"}, "line 2: ../secret.png is outside the data folder"),
        ({"context_file_name": str(secret)}, f"line 3: {secret} is outside the data folder"),
        ({"context_file_name": "link.png"}, "line 4: link.png is outside the data folder"),
        ({"context_file_name": "gone.png"}, "line 5: image file gone.png not found in"),
        ({"context_file_name": "cut.png"}, "line 6: image cut.png: damaged or truncated ("),
        ({"confounder_file_name": "same.bmp"}, "line 7: context and confounder have the same pixels"),
        ({"licence": None}, "line 8: provenance['licence'] is None, expected the source's licence"),
        ({"query": None}, "line 9: no query or question"),
        ({"id": "good"}, "line 10: duplicate id, an earlier row has it"),
        ({"answer_type": "essay"}, "line 11: answer_type is 'essay', expected one of choice, exact, numeric"),
        ({"options": "red"}, "line 12: options is a str, expected a list of texts"),
        ({"verdicts": [1]}, "line 13: verdicts is a list, expected an object"),
    ]
    rows = [{**FOLDER_PAIR, "id": "good"}] + [{**FOLDER_PAIR, **changes} for changes, _ in bad]
    write_lines(folder / "metadata.jsonl", *rows, "{broken", [1], '"a text"')
    read = read_pairs(folder)
    assert [row.id for row in read] == ["good"]
    expected = [reason for _, reason in bad]
    expected += [
        f"line {line}: {text} is not a JSON object" for line, text in ((14, "'{broken'"), (15, "[1]"))
    ]
    expected.append("line 16: 'a text' is not a JSON object")
    rejects = {reason.split("metadata.jsonl: ")[1]: row_id for row_id, reason in rejects_of(read)}
    assert len(rejects) == len(expected)
    for start in expected:
        reason = next(reason for reason in rejects if reason.startswith(start))
        line = start.split(":")[0].removeprefix("line ")
        assert rejects[reason] == ("good" if line == "10" else f"data-{line}")


def test_a_folder_without_a_usable_row_is_an_error(folder: Path) -> None:
    write_lines(folder / "metadata.jsonl", {**FOLDER_PAIR, "context_file_name": "../a.png"})
    message = (
        r"metadata.jsonl: no usable pairs \(1 unusable rows, 0 of the other kind\); the first unusable "
        r"one is 'data-1': .*metadata.jsonl: line 1: \.\./a.png is outside the data folder"
    )
    with pytest.raises(DataError, match=message):
        read_pairs(folder)
    write_lines(folder / "metadata.jsonl", FOLDER_PAIR)
    with pytest.raises(DataError, match=r"no usable questions \(0 unusable rows, 1 of the other kind\)$"):
        read_questions(folder)
    (folder / "metadata.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match=r"metadata.jsonl: cannot be read as UTF-8 text"):
        read_pairs(folder)


def test_official_pairs(folder: Path) -> None:
    prompt = "<image><image>\nQuestion: Which colour\nis it?\nAnswer: red\nWhich image supports the answer?"
    write_lines(
        folder / "train.jsonl",
        {"images": ["a.png", "b.png"], "problem": prompt, "answer": "A"},
        {"images": ["a.png", "b.png"], "problem": prompt.replace("red", "blue"), "answer": r"\boxed{B}"},
        {
            "id": 17,
            "images": [{"path": "a.png"}, {"path": "b.png"}],
            "question": "<image> Which colour?",
            "candidate_answer": "blue",
            "confounder_answer": "red",
            "solution": "<answer>(B)</answer>",
            "category": "colours",
        },
        {"images": ["a.png", "b.png"], "problem": "Which is red?", "answer": "A"},
    )
    rows = read_pairs(folder / "train.jsonl", licence="CC BY 4.0")
    assert [(row.id, row.query, row.answer, row.confounder_answer) for row in rows] == [
        ("train-1", "Which colour\nis it?", "red", None),
        ("train-2", "Which colour\nis it?", "blue", None),
        ("17", "Which colour?", "blue", "red"),
    ]
    assert [(pixel(row.context), pixel(row.confounder)) for row in rows] == [
        ((255, 0, 0), (0, 0, 255)),
        ((0, 0, 255), (255, 0, 0)),
        ((0, 0, 255), (255, 0, 0)),
    ]
    assert rows[2].domain == "colours"
    ((row_id, reason),) = rejects_of(rows)
    assert row_id == "train-4"
    assert reason.endswith(
        "train.jsonl: line 4: a pair without a candidate answer, "
        "expected candidate_answer or a text with lines 'Question: ...' and 'Answer: ...'"
    )


def test_official_questions(folder: Path) -> None:
    write_lines(
        folder / "train.jsonl",
        {"images": ["a.png"], "problem": "<image>How many?", "answer": 3, "licence": "MIT"},
        {"image": "a.png", "problem": "<image>\nWhich?", "answer": "x^2", "answer_type": "Expression"},
        {
            "images": ["a.png", "b.png"],
            "prompt": "Same?",
            "answer": "C",
            "choices": {"A": "y", "B": "n", "C": "-"},
        },
        {"problem": "No picture", "ground_truth": "no"},
        {"images": ["a.png", "b.png"], "candidate": "red", "problem": "Which?", "answer": "A"},
        {"images": ["a.png", 3], "problem": "Which?", "answer": "x"},
        {"images": ["a.png"], "answer": "x"},
    )
    rows = read_questions(folder, licence="CC BY 4.0")
    assert [(row.query, row.answer, row.answer_type, len(row.images)) for row in rows] == [
        ("How many?", "3", "numeric", 1),
        ("Which?", "x^2", "math", 1),
        ("Same?", "C", "choice", 2),
        ("No picture", "no", "boolean", 0),
    ]
    assert [row.provenance["licence"] for row in rows] == ["MIT", "CC BY 4.0", "CC BY 4.0", "CC BY 4.0"]
    reasons = [reason.split("train.jsonl: ")[1] for _, reason in rejects_of(rows)]
    assert reasons == [
        "line 6: images holds 3, expected the name of an image file",
        "line 7: no query or question or problem or prompt",
    ]


def test_official_options_in_the_text(folder: Path) -> None:
    query = "Which? (One is right.)\nChoose:"
    options = "\n(A) a cat\n\n B. a dog \nC: 3) none"
    write_lines(
        folder / "train.jsonl",
        {"images": ["a.png"], "problem": query + options, "answer": "(B)", "answer_type": "mcq_letter"},
        {"images": ["a.png"], "problem": query + options, "answer": "D"},
        {"images": ["a.png"], "problem": query + options.replace("B.", "E."), "answer": "A"},
        {"images": ["a.png"], "problem": options, "answer": "A"},
        {
            "images": ["a.png", "b.png"],
            "problem": f"Question: {query}{options}\nAnswer: C",
            "answer": "B",
            "confounder_answer": "(A)",
        },
    )
    rows = read_questions(folder / "train.jsonl", licence="MIT")
    assert [(row.query, row.options, row.answer, row.answer_type) for row in rows] == [
        (query, ("a cat", "a dog", "3) none"), "B", "choice"),
        (query + options, (), "D", "exact"),
        (query + options.replace("B.", "E."), (), "A", "exact"),
        (options.strip(), (), "A", "exact"),
    ]
    (pair,) = read_pairs(folder / "train.jsonl", licence="MIT")
    assert (pair.query, pair.options) == (query, ("a cat", "a dog", "3) none"))
    assert (pair.answer, pair.confounder_answer) == ("C", "A")
    assert pixel(pair.context) == (0, 0, 255)


def test_foreign_rows_become_a_dataset_folder(folder: Path, tmp_path: Path) -> None:
    write_lines(folder / "metadata.jsonl", FOLDER_PAIR, {**FOLDER_PAIR, "context_file_name": "gone.png"})
    rows = read_pairs(folder)
    write_rows(rows, tmp_path / "out", recipe="imported", config={}, rejects=rejects_of(rows))
    assert list(read_pairs(tmp_path / "out")) == list(rows)
    assert read_manifest(tmp_path / "out").rejects == 1


def test_an_image_that_vanishes_later_is_named(folder: Path) -> None:
    write_lines(folder / "metadata.jsonl", FOLDER_PAIR)
    rows = read_pairs(folder)
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"metadata.jsonl: line 1: image file a.png not found in "):
        rows[0]


def test_a_plain_folder_is_not_taken_for_data(tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl", {})
    write_lines(tmp_path / "two.jsonl", {})
    with pytest.raises(DataError, match=r"incomplete dataset, no manifest.json"):
        read_pairs(tmp_path)


def test_question_row_type(folder: Path) -> None:
    write_lines(folder / "metadata.jsonl", {"file_name": "a.png", "query": "Red?", "answer": "yes"})
    assert isinstance(read_questions(folder, licence="MIT")[0], QuestionRow)


def test_placeholders_and_images_must_agree(folder: Path) -> None:
    """A picture that is spoken of and not there is a reject, not a question without a picture."""
    write_lines(
        folder / "train.jsonl",
        {"image_path": "a.png", "problem": "<image>Which?", "answer": "x"},
        {"images": ["a.png"], "problem": "<image 1>\n<image 2>Same?", "answer": "x"},
        {"images": ["a.png"], "problem": "<image1>Which?", "answer": "x"},
    )
    rows = read_questions(folder, licence="MIT")
    assert [row.query for row in rows] == ["Which?"]
    assert [reason.split(": ")[-1] for _, reason in rejects_of(rows)] == [
        "1 image placeholders in the text and 0 images; expected as many",
        "2 image placeholders in the text and 1 images; expected as many",
    ]


def test_an_image_folder_row_with_a_mistyped_key(folder: Path) -> None:
    write_lines(
        folder / "metadata.jsonl",
        {"image": "a.png", "question": "Which?", "answer": "x"},
        {"file_name": "a.png", "question": "Which?", "answer": "x"},
    )
    rows = read_questions(folder, licence="MIT")
    assert len(rows) == 1
    ((_, reason),) = rejects_of(rows)
    assert "no image, but image; expected file_name or image_file_names" in reason


def test_options_make_a_choice_of_any_wording_of_the_answer(folder: Path) -> None:
    """Lettered options are shown with the question, so their letters must count."""
    answers = ["(B)", "b", "B. square", "Square", "The square"]
    lines = [
        {"images": ["a.png"], "problem": "Which?", "answer": a, "options": ["circle", "square"]}
        for a in answers
    ]
    lines.append({**lines[0], "answer": "true", "answer_type": "boolean", "options": ["true", "false"]})
    write_lines(folder / "train.jsonl", *lines)
    rows = read_questions(folder, licence="MIT")
    assert [(row.answer_type, row.answer) for row in rows] == [("choice", "B")] * 5 + [("choice", "A")]


def test_two_images_with_options_are_a_question(folder: Path) -> None:
    write_lines(
        folder / "train.jsonl",
        {
            "images": ["a.png", "b.png"],
            "question": "Which is red?",
            "options": ["first", "second"],
            "answer": "A",
        },
    )
    (row,) = read_questions(folder, licence="MIT")
    assert (row.answer, row.answer_type, len(row.images)) == ("A", "choice", 2)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("Because. \\boxed{4}", "4"),
        ("<think>hm</think><answer>3</answer>", "3"),
        ("<answer>3</answer>.", "3"),
    ],
)
def test_wrapped_answers(solution: str, answer: str, folder: Path) -> None:
    write_lines(folder / "train.jsonl", {"images": ["a.png"], "problem": "How many?", "solution": solution})
    (row,) = read_questions(folder, licence="MIT")
    assert row.answer == answer


def test_options_in_one_line_of_the_text(folder: Path) -> None:
    """After "Choices:"; in the picture when they have no text; letters in a sentence are none."""
    questions = {
        "Is A larger? Choices: (A) yes (B) no": "(B)",
        "Which is it? choice:(A) a cat, (B) a dog ": "a dog",
        "Which figure? choice: (A) (B) (C)": "B",
        "Which is longer, (A) or (B)?": "B",
        "Which? Choices: (A) one (C) two": "A",
    }
    lines = [{"images": ["a.png"], "problem": query, "answer": answer} for query, answer in questions.items()]
    lines.append({"images": ["a.png", "b.png"], "problem": "Same? Choices: (A) yes (B) no", "answer": "A"})
    write_lines(folder / "train.jsonl", *lines)
    rows = read_questions(folder, licence="MIT")
    assert [(row.query, row.options, row.answer) for row in rows] == [
        ("Is A larger?", ("yes", "no"), "B"),
        ("Which is it?", ("a cat", "a dog"), "B"),
        ("Which figure?", ("A", "B", "C"), "B"),
        ("Which is longer, (A) or (B)?", (), "B"),
        ("Which? Choices: (A) one (C) two", (), "A"),
        ("Same?", ("yes", "no"), "A"),
    ]
