"""Extraction and comparison of answers: mostly tables, one line per way in which a completion has been
misread."""

from __future__ import annotations

import time

import pytest

from vlm_contextrl.answers import extract_answer, has_format, score_answer
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import AnswerType

SHAPES = ("square", "circle", "dark red triangle", "none of them")

# ---- extraction: where the answer stands


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        ("red", "red"),
        ("  red.\n", "red."),
        ("<answer>red</answer>", "red"),
        ("<answer>blue</answer> no, wait <answer>red</answer>", "red"),
        ("<ANSWER> red </Answer>", "red"),
        ("<answer>\\boxed{red}</answer>", "red"),
        ("\\boxed{blue} is wrong. <answer>red</answer> so \\boxed{green}", "red"),  # the tag decides
        ("First \\boxed{blue}, then I saw it: \\boxed{red}.", "red"),
        ("The answer is blue. \\boxed{red}", "red"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\sqrt{\\frac{a_{1}}{b}}} and so on", "\\sqrt{\\frac{a_{1}}{b}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("an open { brace, then \\boxed{7}", "7"),
        ("\\boxed{7} and a cut off \\boxed{8", "7"),
        ("\\boxed{\\boxed{7}}", "\\boxed{7}"),
        ("\\boxed {7}", "7"),
        ("Some reasoning.\nThe answer is red.", "red"),
        ("The answer is blue. No: the final answer is red.", "red"),
        ("Answer: red", "red"),
        ("**Answer:** red", "red"),
        ("**Answer**: red", "red"),
        ("Thinking...\n\nAnswer:\n\nred", "red"),
        ("The answer is 3.5 because it says so.", "3.5"),
        ("The answer is St. Louis. It is a city.", "St. Louis"),
        ("<think>the answer is blue</think>red", "red"),
        ("the answer is blue</think>\n\nred", "red"),
    ],
)
def test_extract_text(completion: str, extracted: str) -> None:
    assert extract_answer(completion, "exact") == extracted


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "   \n ",
        "<think>the answer is red",  # cut off while thinking
        "<answer></answer>",
        "<answer> </answer> red",
        "\\boxed{}",
        "\\boxed{red} or \\boxed{blue}",
        "\\boxed{red}, \\boxed{blue}",
        "\\boxed{red}\n\\boxed{blue}",
        "$\\boxed{red}$ $\\text{or}$ $\\boxed{blue}$",
        "<answer>red</answer><answer>blue</answer>",
        "The answer is red. Or maybe blue",
        "I look at the picture.\nIt shows many things.",  # two lines without a marker
        "this is one line but it has more than twelve words in it, so no",
    ],
)
def test_extract_nothing(completion: str) -> None:
    assert extract_answer(completion, "exact") is None


def test_joined_boxes_with_the_same_content_are_one_answer() -> None:
    assert extract_answer("\\boxed{Red} and \\boxed{red}", "exact") == "red"


def test_very_long_completions_are_read_in_linear_time() -> None:
    start = time.perf_counter()
    assert extract_answer("\\boxed{" * 20_000, "exact") is None
    assert extract_answer("<answer>" * 20_000 + "x", "exact") is None
    assert extract_answer("\\boxed{" + "a" * 100_000 + "}", "exact") is None
    assert extract_answer("{" * 50_000 + "\\boxed{red}", "exact") == "red"
    assert extract_answer("word " * 50_000 + "The answer is red.", "exact") == "red"
    assert time.perf_counter() - start < 5


# ---- extraction: option letters


@pytest.mark.parametrize(
    "completion",
    [
        "B",
        "b",
        " B\n",
        "B.",
        "B)",
        "(B)",
        "[B]",
        "**B**",
        "$B$",
        "\\text{B}",
        "B. circle",
        "B: circle",
        "(B) circle",
        "B) The circle.",
        "B, the circle",
        "B - circle",
        "B circle",
        "circle",
        "Circle.",
        "the circle",
        "a circle",  # the article is not option A
        "A circle",
        "Option B",
        "option (B)",
        "It is B.",
        "So B",
        "\\boxed{B}",
        "\\boxed{\\text{(B)}}",
        "\\boxed{\\mathbf{B}}",
        "\\boxed{B. circle}",
        "\\boxed{circle}",
        "<answer>A</answer> hmm <answer>B</answer>",
        "<answer>B</answer>",
        "The answer is B",
        "The answer is (B).",
        "the correct answer is **B**.",
        "The correct option is B.",
        "Answer: B",
        "Choice: b",
        "The answer is B because the line is round.",
        "The answer is B. Although A looks alike, it is smaller.",
        "The answer is definitely B.",
        "The answer is B as the figure shows.",
        "The answer to the question is B.",
        "First I compare them.\nThen I decide.\nB",
        "First I compare them.\n(B)",
        "First I compare them.\n**B**",
        "A looks wrong, so it is not that.\n\nB.",
        "Using both lengths, I find:\n\n**B. circle**",
        "Using both lengths, I find:\n(B) The circle.",
    ],
)
def test_extract_letter(completion: str) -> None:
    assert extract_answer(completion, "choice", SHAPES) == "B"


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "A or B",
        "A or B or C",
        "A/B",
        "A, B",
        "A and B",
        "B and C",
        "AB",
        "A B",
        "A, B, C, D",
        "(A)(B)",
        "A. B.",
        "A-B",
        "both",
        "B or not",
        "B. square",  # the letter and the text disagree
        "A. circle",
        "B (or C)",
        "B, maybe C",
        "(B) or (c)",
        "square circle",
        "square or circle",
        "E",  # there are four options
        "\\boxed{E}",
        "\\boxed{A}\\boxed{B}",
        "\\boxed{A} or \\boxed{B}",
        "\\boxed{A,B}",
        "\\boxed{A/B}",
        "\\boxed{}",
        "<answer>A or B</answer>",
        "The answer is A or B or C.",
        "The answer is either A or B.",
        "The answer is B. Or maybe C.",
        "The answer is not A, it is B",
        "The answer is not B",
        "A triangle and a cube",
        "I see a cat",
        "Because of a bad image, nothing can be seen",
        "Using both lengths, I find:\nB. square",
        "Using both lengths, I find:\nB. something else",
        "Both figures are alike.\nA circle is drawn on the left and the right is empty",
    ],
)
def test_extract_no_letter(completion: str) -> None:
    assert extract_answer(completion, "choice", SHAPES) is None


def test_a_long_option_may_be_repeated_word_for_word() -> None:
    """More than 12 words, but nothing other than a letter and its own option."""
    long = "the large red circle that stands to the left of the small blue square in the upper half"
    assert extract_answer(f"B. {long}.", "choice", ("square", long)) == "B"
    assert extract_answer(f"A. {long}.", "choice", ("square", long)) is None
    assert extract_answer(f"B. {long}, or perhaps the square.", "choice", ("square", long)) is None


def test_the_highest_kind_decides_even_when_it_cannot_be_read() -> None:
    """A box with two letters is not rescued by a sentence with one."""
    assert extract_answer("The answer is B. \\boxed{A or B}", "choice", SHAPES) is None


@pytest.mark.parametrize(
    ("completion", "options", "letter"),
    [
        ("2", ("1", "2"), "B"),  # digits are texts, not positions
        ("two", ("1", "2"), "B"),
        ("B. 2", ("1", "2"), "B"),
        ("B. 1", ("1", "2"), None),
        ("red", ("red", "red"), None),  # two options share the text
        ("A", ("B", "A"), "A"),  # a letter in range is a letter
        ("B. -5", ("5", "-5"), "B"),  # the minus is not a dash
        ("(B) - 5", ("-5", "5"), "B"),  # and here the dash is not a minus
        ("Hence:\nB. -5", ("5", "-5"), "B"),
        ("x", ("x", "y"), "A"),  # out of range: the text counts
        ("x-ray", ("e-mail", "x-ray"), "B"),
        ("e-mail", ("a", "b", "c", "d", "e-mail"), "E"),
        ("T-shirt", ("shirt", "T-shirt"), "B"),
        ("yes", ("Yes", "No"), "A"),
        ("D", (), "D"),  # the options stand in the image
        ("D. 5 cm", (), "D"),
        ("D or E", (), None),
    ],
)
def test_letter_with_other_options(completion: str, options: tuple[str, ...], letter: str | None) -> None:
    assert extract_answer(completion, "choice", options) == letter


# ---- rows


def test_score_answer() -> None:
    assert score_answer("B. circle", "B", "choice", SHAPES)
    assert score_answer("B", "circle", "choice", list(SHAPES))
    assert score_answer("Red.", "red")
    assert score_answer("A", "A")
    assert not score_answer("A or B or C", "A", "choice", SHAPES)
    assert not score_answer("", "red")
    assert score_answer("98", "100", "numeric", tolerance=0.05)


def test_a_row_whose_answer_is_no_option_is_an_error_not_a_zero() -> None:
    with pytest.raises(DataError, match="'E' is none of the 4 options"):
        score_answer("B", "E", "choice", SHAPES)


@pytest.mark.parametrize(
    ("completion", "style", "good"),
    [
        ("B", "direct", True),
        ("one two three four five six seven eight nine ten eleven twelve", "direct", True),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", "direct", False),
        ("B\nbecause", "direct", False),
        ("", "direct", False),
        ("<think>B", "direct", False),
        ("<think>long\nthought</think>\nB", "direct", True),
        ("So \\boxed{B}", "reasoning", True),
        ("So \\boxed{\\frac{1}{2}}.", "reasoning", True),
        ("So <answer>B</answer>", "reasoning", True),
        ("So B", "reasoning", False),
        ("\\boxed{}", "reasoning", False),
        ("\\boxed{B", "reasoning", False),
        ("\\boxed{A} or \\boxed{B}", "reasoning", False),
        ("<think>\\boxed{B}", "reasoning", False),
        ("<think>\\boxed{B}</think> B", "reasoning", False),
        ("red 3, blue 5. Answer: blue", "plain", True),
        ("<think>red 3", "plain", False),
        ("", "plain", False),
    ],
)
def test_has_format(completion: str, style: str, good: bool) -> None:
    assert has_format(completion, style) is good  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "completion",
    ["a, b, c", "\\boxed{a, b, c}", "Answer: a, b, c, d", "b, c", "b. c. d.", "b) c)", "b - c", "A\nB\nC\nD",
     "\\boxed{A} or maybe \\boxed{B}", "<answer>A</answer> or maybe <answer>B</answer>"],
)  # fmt: skip
def test_a_list_of_letters_is_no_choice(completion: str) -> None:
    assert extract_answer(completion, "choice", SHAPES) is None


def test_one_letter_with_an_exclamation_mark() -> None:
    assert extract_answer("The answer is B!", "choice", SHAPES) == "B"


@pytest.mark.parametrize(
    ("completion", "answer", "answer_type"),
    [("3 hrs", "3 hours", "numeric"), ("5 lbs", "5 lb", "numeric"), ("12 sq. cm", "12 cm^2", "numeric"),
     ("25 \u00b0C", "25 degrees Celsius", "numeric"), ("sin(x)", "\\sin x", "math"), ("ln(2)", "\\ln 2", "math")],
)  # fmt: skip
def test_units_and_functions_in_other_words(completion: str, answer: str, answer_type: AnswerType) -> None:
    assert score_answer(completion, answer, answer_type)
