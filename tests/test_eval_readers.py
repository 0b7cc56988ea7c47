"""Rows of the twelve benchmarks, written by hand in their published schema, become the questions that a person would write down."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.eval.questions import Question, judge_by_rules
from vlm_contextrl.eval.readers import READERS, read_question
from vlm_contextrl.eval.registry import BENCHMARKS, Part

RED, BLUE = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (5, 3), "blue")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def part(benchmark: str, number: int = 0) -> Part:
    return BENCHMARKS[benchmark].parts[number]


def read(benchmark: str, number: int = 0, **row: Any) -> Question:
    return read_question(benchmark, part(benchmark, number), row)


def facts(question: Question) -> tuple[str, str, str, tuple[str, ...]]:
    return question.text, question.answer, question.answer_type, question.options


def test_every_benchmark_has_a_reader() -> None:
    assert set(READERS) == set(BENCHMARKS)


# ---- MathVista


def mathvista(**changes: Any) -> Question:
    row = {
        "pid": "7", "question": "Which is it?", "decoded_image": RED, "choices": None, "unit": None, "precision": None,
        "answer": "3", "question_type": "free_form", "answer_type": "integer", "metadata": {"task": "figure question answering"},
    }  # fmt: skip
    return read("mathvista", **(row | changes))


def test_mathvista_answers_are_texts_of_options() -> None:
    question = mathvista(
        question_type="multi_choice", answer_type="text", choices=["x", "y", "z"], answer="y"
    )
    assert facts(question) == ("Which is it?", "B", "choice", ("x", "y", "z"))
    assert question.id == "7"
    assert question.category == "figure question answering"


def test_mathvista_takes_every_option_that_reads_like_the_answer() -> None:
    """Row 781 of the published set has the right text twice: C and D are right."""
    question = mathvista(question_type="multi_choice", choices=["9", "12", "18", "18"], answer="18")
    assert (question.answer, question.alternatives) == ("C", ("D",))
    assert [judge_by_rules(question, letter).correct for letter in "ABCD"] == [False, False, True, True]


def test_mathvista_rounds_to_the_published_precision() -> None:
    """1.2 with one decimal: 1.15 to 1.25 round to it, that is 0.05 / 1.2 of 1.2; an integer is exact."""
    question = mathvista(answer="1.2", answer_type="float", precision=1.0)
    assert question.tolerance == pytest.approx(0.05 / 1.2)
    assert [judge_by_rules(question, text).correct for text in ("1.2", "1.24", "1.16", "1.26", "1.1")] == [
        *(True, True, True),
        *(False, False),
    ]
    assert [judge_by_rules(mathvista(), text).correct for text in ("3", "3.0", "3.01")] == [True, True, False]


def test_mathvista_shows_the_unit_and_reads_lists() -> None:
    assert mathvista(unit="years").text == "Which is it? (Unit: years)"
    question = mathvista(answer="[2014, 2016]", answer_type="list")
    assert question.answer_type == "exact"
    assert [judge_by_rules(question, t).correct for t in ("[2014, 2016]", "2014, 2016", "[2016, 2014]")] == [
        True,
        True,
        False,
    ]


# ---- MathVerse, MathVision


def test_mathverse_splits_options_from_the_question() -> None:
    row = {
        "sample_index": "9", "problem_version": "Vision Dominant", "image": RED, "answer": "C", "question_type": "multi-choice",
        "question": "AB is parallel to CD, then angle 2 is ()\nChoices:\nA:50°\nB:60°\nC:65°\nD:90°",
    }  # fmt: skip
    question = read("mathverse", **row)
    assert facts(question) == (
        "AB is parallel to CD, then angle 2 is ()",
        "C",
        "choice",
        ("50°", "60°", "65°", "90°"),
    )
    assert question.category == "Vision Dominant"


@pytest.mark.parametrize(
    ("kind", "answer", "told"), [("multi-choice", "D", "letter"), ("free-form", r"2 \sqrt{221}", "question")]
)
def test_mathverse_in_the_picture_only(kind: str, answer: str, told: str) -> None:
    row = {
        "sample_index": "9",
        "problem_version": "Vision Only",
        "image": RED,
        "question": "",
        "question_type": kind,
    }
    question = read("mathverse", **row, answer=answer)
    assert question.answer == answer
    assert question.options == ()
    assert "shown in the image" in question.text
    assert told in question.text


def test_mathvision_kinds() -> None:
    """An answer that is a letter without options means drawn options."""
    row = {
        "id": "4",
        "question": "How many?\n<image1>",
        "decoded_image": RED,
        "subject": "counting",
        "level": 1,
    }
    assert facts(read("mathvision", **row, options=[], answer="6")) == (
        "How many?\n<image1>",
        "6",
        "numeric",
        (),
    )
    assert facts(read("mathvision", **row, options=[], answer="C"))[1:] == ("C", "choice", ())
    assert facts(read("mathvision", **row, options=[], answer="(3,-4)"))[1:] == ("(3,-4)", "math", ())
    assert facts(read("mathvision", **row, options=list("ABCDE"), answer="D"))[1:] == (
        "D",
        "choice",
        tuple("ABCDE"),
    )


# ---- MMMU, MMMU-Pro


def mmmu(**changes: Any) -> Question:
    row = {
        "id": "validation_Energy_and_Power_2", "question": "<image 1> What is it?", "options": "['red', \"it's\"]", "answer": "B",
        "question_type": "multiple-choice", **{f"image_{i}": None for i in range(1, 8)}, "image_1": RED,
    }  # fmt: skip
    return read("mmmu", **(row | changes))


def test_mmmu_options_are_a_python_literal() -> None:
    assert facts(mmmu()) == ("<image 1> What is it?", "B", "choice", ("red", "it's"))
    assert mmmu().category == "Energy_and_Power"


def test_mmmu_images_are_those_that_are_named_also_in_options() -> None:
    question = mmmu(options="['<image 2>', 'none']", image_2=BLUE, image_3=RED)
    assert [image.size for image in question.images] == [(4, 3), (5, 3)]


def test_mmmu_open_questions_may_have_several_right_answers() -> None:
    """Alternatives; numbers with decimals count to two of them, as in the published scorer: 3.43 for 3.429."""
    question = mmmu(question_type="open", options="[]", answer="['24/7', '3.429']")
    assert (question.answer, question.alternatives, question.answer_type) == ("24/7", ("3.429",), "numeric")
    assert [judge_by_rules(question, t).correct for t in ("24/7", "3.429", "3.43", "3.5")] == [
        True,
        True,
        True,
        False,
    ]
    whole = mmmu(question_type="open", options="[]", answer="8")
    assert whole.tolerance is None
    words = mmmu(question_type="open", options="[]", answer="Transformation")
    assert words.answer_type == "exact"


def test_mmmu_pro_both_parts() -> None:
    """The part with drawn questions has no `question`; its options are not shown again. Gold letters go up to J."""
    options = str([f"{i} m" for i in range(10)])
    shown = {"id": "test_Music_1", "options": options, "answer": "J", "subject": "Music"}
    standard = read("mmmu_pro", 0, **shown, question="Which <image 1>?", image_1=RED)
    assert facts(standard) == ("Which <image 1>?", "J", "choice", tuple(f"{i} m" for i in range(10)))
    vision = read("mmmu_pro", 1, **shown, image=RED)
    assert vision.options == ()
    assert vision.answer == "J"
    assert judge_by_rules(vision, r"\boxed{J}").correct


def test_mmmu_pro_nested_options() -> None:
    """One published row has its list of options in a list."""
    row = {
        "id": "validation_Accounting_29",
        "question": "<image 1>?",
        "image_1": RED,
        "subject": "Accounting",
        "answer": "B",
    }
    assert read("mmmu_pro", **row, options="[['A', 'B', 'Neither']]").options == ("A", "B", "Neither")


# ---- choices inside texts


@pytest.mark.parametrize("tail", ["", "\nAnswer with the option's letter from the given choices directly."])
def test_vstar(tail: str) -> None:
    text = f"What is the material of the glove?\n(A) rubber\n(B) cotton (soft)\n(C) kevlar{tail}"
    question = read("vstar", question_id="0", text=text, image=RED, label="A", category="direct_attributes")
    assert facts(question) == (
        "What is the material of the glove?",
        "A",
        "choice",
        ("rubber", "cotton (soft)", "kevlar"),
    )
    assert question.category == "direct_attributes"


def mmstar(question: str, answer: str = "D") -> Question:
    return read("mmstar", index=3, question=question, image=RED, answer=answer, category="coarse perception")


def test_mmstar() -> None:
    asked = "Which option is right?\nOptions: A: It has vitamin B., B: It is red, blue., C: Beneath the bed., D: No."
    assert facts(mmstar(asked)) == (
        "Which option is right?", "D", "choice", ("It has vitamin B.", "It is red, blue.", "Beneath the bed.", "No."),
    )  # fmt: skip
    assert mmstar(asked).id == "3"


@pytest.mark.parametrize("asked", ["Which is D?", "Which?\nOptions: A: one, B: two"])
def test_mmstar_options_that_cannot_be_told_apart_stay_in_the_text(asked: str) -> None:
    question = mmstar(asked)
    assert facts(question) == (asked, "D", "choice", ())
    assert judge_by_rules(question, "The answer is D.").correct


def test_blink_asks_its_prompt_about_all_images() -> None:
    row = {
        "idx": "val_Jigsaw_1", "sub_task": "Jigsaw", "question": "short", "choices": ["the second image", "the third image"],
        "prompt": "<image> <image> Which one is missing?\nSelect from the following choices.\n\n(A) the second image\n(B) the third image",
        "image_1": RED, "image_2": BLUE, "image_3": None, "image_4": None, "answer": "(B)",
    }  # fmt: skip
    question = read("blink", **row)
    assert facts(question)[0] == "Which one is missing?\nSelect from the following choices."
    assert facts(question)[1:] == ("B", "choice", ("the second image", "the third image"))
    assert [image.size for image in question.images] == [(4, 3), (5, 3)]


def test_scienceqa_counts_answers_from_zero_and_has_a_stable_id() -> None:
    row = {
        "question": "Which?",
        "choices": ["x", "y"],
        "answer": 1,
        "hint": "Look.",
        "subject": "natural science",
    }
    question = read("scienceqa", **row, image=RED)
    assert facts(question) == ("Context: Look.\nWhich?", "B", "choice", ("x", "y"))
    assert read("scienceqa", **row, image=RED.copy()).id == question.id
    assert read("scienceqa", **row, image=BLUE).id != question.id


def test_phyx_cuts_instruction_and_options_and_decodes_base64() -> None:
    text = "How fast?Please directly answer the question and provide the correct OPTION LETTER ONLY, e.g., A, B, C, D. OPTION: "
    options = r"A: 1.5 \text{ m/s} B: 2 m/s, east C: 3:1 D: E: none"
    image = base64.b64encode(encoded(BLUE, "JPEG")).decode()
    question = read("phyx", index=5, question=text + options, image=image, answer="C", category="Optics")
    assert facts(question) == (
        "How fast?",
        "C",
        "choice",
        (r"1.5 \text{ m/s}", "2 m/s, east", "3:1", "E: none"),
    )
    assert question.images[0].size == (5, 3)


def test_mme_realworld() -> None:
    row = {
        "index": "1",
        "question": "Which?",
        "answer": "E",
        "category": "Perception/Monitoring",
        "l2-category": "color",
    }
    image = base64.b64encode(encoded(RED)).decode()
    five = [f"({letter}) {word}" for letter, word in zip("ABCDE", ("x", "y", "z", "u", "none"), strict=True)]
    question = read("mme_realworld_lite", **row, bytes=image, **{"multi-choice options": five})
    assert facts(question) == ("Which?", "E", "choice", ("x", "y", "z", "u", "none"))
    twice = ["(A) x", "(A) y", "(C) z"]
    assert facts(read("mme_realworld_lite", **row, bytes=image, **{"multi-choice options": twice})) == (
        "Which?\n(A) x\n(A) y\n(C) z", "E", "choice", (),
    )  # fmt: skip


# ---- images and bad rows


def test_images_are_read_decoded_as_bytes_and_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    row = {"question_id": "0", "text": "Q\n(A) x\n(B) y", "label": "A", "category": "c"}
    for image in (clear, {"bytes": encoded(clear), "path": None}, encoded(clear)):
        (read_image,) = read("vstar", **row, image=image).images
        assert read_image.mode == "RGB"
        assert read_image.getpixel((0, 0)) == (255, 255, 255)


VSTAR = {"question_id": "8", "text": "Q\n(A) x\n(B) y", "label": "A", "category": "c", "image": RED}
BLINK = {
    "idx": "8", "sub_task": "Counting", "question": "Q", "prompt": "Q", "choices": ["1", "2"], "answer": "(A)", "image_1": RED,
}  # fmt: skip


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("vstar", {**VSTAR, "label": "C"}, "field 'label': found 'C', expected an option letter, A to B"),
        ("vstar", {**VSTAR, "image": None}, "field 'image': found None, expected an image"),
        (
            "vstar",
            {**VSTAR, "image": "no base64!"},
            "field 'image': found 'Error: .*expected an image that can be decoded",
        ),
        ("vstar", {**VSTAR, "image": b"GIF89a"}, "field 'image': .*expected an image that can be decoded"),
        ("vstar", {**VSTAR, "text": " "}, "field 'text': found ' ', expected a text that is not empty"),
        (
            "vstar",
            {k: v for k, v in VSTAR.items() if k != "text"},
            "field 'text': found 'no such column', expected a text",
        ),
        ("vstar", {**VSTAR, "text": ["Q"]}, "field 'text': found \\['Q'\\], expected a text"),
        (
            "blink",
            {**BLINK, "answer": "(hidden)"},
            "field 'answer': found '\\(hidden\\)', expected an option letter, A to B",
        ),
        ("blink", {**BLINK, "image_1": None}, "field 'image_1': found None, expected an image"),
        ("blink", {**BLINK, "choices": 3}, "field 'choices': found 3, expected a list of texts"),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line(benchmark: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{benchmark}, {part(benchmark).name}, row 8, {message}$") as caught:
        read_question(benchmark, part(benchmark), row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: mathvista(question_type="multi_choice", choices=["x"], answer="y"),
         r"'answer': found 'y', expected one of the choices \['x'\]"),
        (lambda: mmmu(options="['red'"), "'options': found \"\\['red'\", expected a list of texts, written as in Python"),
        (lambda: mmmu(image_1=None), "'image_1': found None, expected an image"),
        (lambda: read("scienceqa", question="Q", hint="", choices=["x"], image=RED, answer=1),
         "'answer': found 1, expected the number of an option, 0 to 0"),
        (lambda: read("vstar", text="Q"), "vstar_bench, row \\?, field 'question_id': found 'no such column', expected a text"),
    ],
)  # fmt: skip
def test_other_faults(made: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made()
