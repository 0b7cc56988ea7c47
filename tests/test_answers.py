"""Extraction and comparison of answers: mostly tables, one line per way in which a completion has been
misread."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from vlm_contextrl import expressions
from vlm_contextrl.answers import extract_answer, has_format, is_correct, score_answer
from vlm_contextrl.errors import DataError

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
        "Both figures are alike.\nA circle is drawn on the left and the right is empty",
    ],
)
def test_extract_no_letter(completion: str) -> None:
    assert extract_answer(completion, "choice", SHAPES) is None


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


# ---- comparison


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("Red", "red"),
        ("red.", "Red"),
        ('"red"', "red"),
        ("the red circle", "a red circle"),
        ("three", "3"),
        ("3", "Three"),
        ("twenty-one", "21"),
        ("two hundred", "200"),
        ("light-blue", "light blue"),
        ("circles", "circle"),
        ("boxes", "box "),
        ("7:30", "07:30"),
        ("07:30 p.m.", "7:30 PM"),
        ("1,000", "1000"),
        ("3.0", "3"),
        ("0.50", ".5"),
        ("\u22125", "-5"),
        ("don\u2019t", "don\u2019t"),
        ("\\text{red}", "red"),
        ("**red**", "red"),
        ("A", "a"),  # an answer that is nothing but an article stays
        ("caf\u00e9", "cafe\u0301"),
        ("?", "?"),
        ("red, blue", "red blue"),
    ],
)
def test_exact_equal(found: str, answer: str) -> None:
    if (found, answer) == ("boxes", "box "):
        assert not is_correct(found, answer, "exact")  # short words have no plural: "boxes" is not "box"
    else:
        assert is_correct(found, answer, "exact")


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (None, "red"),
        ("", "red"),
        ("red or blue", "red"),
        ("red blue", "red"),
        ("not red", "red"),
        ("blue red", "red blue"),
        ("5", "-5"),
        ("x-1", "x+1"),
        ("x-1", "x 1"),
        ("5%", "5"),
        ("1.234", "1234"),
        ("3 4", "34"),
        ("gas", "ga"),
        ("7:30", "19:30"),
        ("12", "1, 2"),
        ("?", "!"),
        (".", "red"),
    ],
)
def test_exact_different(found: str | None, answer: str) -> None:
    assert not is_correct(found, answer, "exact")


@pytest.mark.parametrize(
    ("found", "answer", "correct"),
    [
        ("yes", "Yes", True),
        ("Yes.", "true", True),
        ("No!", "no", True),
        ("False", "no", True),
        ("Yes, the circle is red.", "yes", True),
        ("No, it is blue", "yes", False),
        ("yes and no", "yes", False),
        ("Yes. No.", "yes", False),
        ("yes/no", "yes", False),
        ("not true", "true", False),
        ("No idea", "no", False),
        ("maybe", "no", False),
        ("yesterday", "yes", False),
    ],
)
def test_boolean(found: str, answer: str, correct: bool) -> None:
    assert is_correct(found, answer, "boolean") is correct


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("12", "12"),
        ("12 cm", "12"),
        ("12", "12 cm"),
        ("12cm", "12 centimeters"),
        ("12 cm\u00b2", "12 square cm"),
        ("12 cm^2", "12 cm\u00b2"),
        ("3 cats", "3"),
        ("three cats", "3 cats"),
        ("1,000", "1000"),
        ("1{,}000", "1000"),
        ("1,234,567.5", "1234567.5"),
        ("\u22125", "-5"),
        ("- 5", "-5"),
        ("minus five", "-5"),
        ("50%", "50"),
        ("50%", "0.5"),
        ("50", "50%"),
        ("0.5", "50 %"),
        ("50\\%", "50 percent"),
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("$\\dfrac{1}{2}$", "1/2"),
        ("\\frac12", "0.5"),
        ("1 1/2", "1.5"),
        ("1\\frac{1}{2}", "1.5"),
        ("\u00bd", "0.5"),
        ("3\u00bd", "3.5"),
        ("-\\frac{1}{2}", "-0.5"),
        ("3 \\times 10^{4}", "30000"),
        ("3e4", "30000"),
        ("3 x 10^-2", "0.03"),
        ("3 million", "3000000"),
        ("a dozen", "a dozen"),
        ("about 12", "12"),
        ("x = 12", "12"),
        ("30\u00b0", "30 degrees"),
        ("30^\\circ", "30"),
        ("$5", "5"),
        ("12.", "12"),
        ("12.0", "12"),
        ("007", "7"),
        ("07:30", "7:30"),
        ("0.3333333", "1/3"),
        ("\uff11\uff12", "12"),  # full-width digits
    ],
)
def test_numeric_equal(found: str, answer: str) -> None:
    assert is_correct(found, answer, "numeric")


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("12 m", "12 cm"),
        ("12 cm", "12 cm^2"),
        ("3 cats", "3 dogs"),
        ("12", "13"),
        ("5", "-5"),
        ("3 or 4", "3"),
        ("3 or four", "3"),
        ("3, 4", "3"),
        ("3 4", "3"),
        ("3-4", "3"),
        ("3/4", "3"),
        ("3+4", "3"),
        ("3^2", "3"),
        ("2 = 3", "3"),
        ("1/0", "1"),
        ("3 million", "3"),
        ("5k", "5"),
        ("3 and a half", "3"),
        ("3 times 4", "3"),
        ("7:30", "7"),
        ("1,00", "100"),
        ("1,2345", "12345"),
        ("3.5.2", "3.5"),
        ("0.333", "1/3"),
        ("three hundred", "3"),
        ("100.0000001", "100"),  # integers are exact
        ("", "0"),
        ("none", "0"),
        ("1e999999999", "1"),
        ("9" * 5000, "9"),
        ("nan", "nan1"),
        ("inf", "0"),
    ],
)
def test_numeric_different(found: str, answer: str) -> None:
    assert not is_correct(found, answer, "numeric")


def test_numeric_tolerance() -> None:
    """Relative to the right answer: |98 - 100| / 100 = 0.02; around 0 nothing but 0 is close."""
    assert not is_correct("98", "100", "numeric")
    assert is_correct("98", "100", "numeric", tolerance=0.02)
    assert not is_correct("97.9", "100", "numeric", tolerance=0.02)
    assert not is_correct("0.001", "0", "numeric", tolerance=0.02)
    assert is_correct("3.1415927", "3.14159265", "numeric")  # 1.2e-8, within the default 1e-6
    assert not is_correct("3.1416", "3.14159265", "numeric")  # 2.3e-6


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("\\frac{1}{2}", "0.5"),
        ("x+1", "1+x"),
        ("(x+1)^2", "x^2+2x+1"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("2\u221a3", "2\\sqrt{3}"),
        ("x = 3", "3"),
        ("3", "x=3"),
        ("2,1", "1,2"),
        ("\\{1, 2\\}", "2,1"),
        ("(1, 2)", "(1,2)"),
        ("\\dfrac{\\pi}{2}", "\\frac{\\pi}{2}"),
        ("\u03c0/2", "\\frac{\\pi}{2}"),
        ("30^\\circ", "30"),
        ("5\\text{ cm}", "5"),
        ("red", "red"),
        ("Isosceles triangle", "isosceles triangle"),
        ("1,000", "1000"),
        ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}"),
        ("y = 2x + 1", "y=1+2x"),
        ("2y = 4x + 2", "y = 2x+1"),  # the same line
        ("3 < x", "x > 3"),
        ("-x < -3", "x>3"),
        ("[1, 2)", "[1,2)"),
        ("(x-1)(x+1)", "x^2-1"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("xy", "yx"),
        ("2pi", "2\\pi"),
        ("9^{9^{9}}", "9^{9^{9}}"),  # the same text is equal without being evaluated
    ],
)
def test_math_equal(found: str, answer: str) -> None:
    assert is_correct(found, answer, "math")


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("x-1", "x+1"),
        ("1 or 2", "2"),
        ("1, 2", "2"),
        ("1 \\text{ and } 2", "2"),
        ("\\pm 3", "3"),
        ("2 = 3", "3"),
        ("3 = 3 = 4", "3"),
        ("2@3", "2"),
        ("11_2", "11"),
        ("2\\foo", "2"),
        ("2^", "2"),
        ("5x", "5"),
        ("5m", "5"),
        ("5 m", "5 cm"),
        ("5 \\text{ or more}", "5"),
        ("2 because", "2"),
        ("der", "red"),  # not a product of letters
        ("blue", "red"),
        ("(2,1)", "(1,2)"),
        ("[1,2]", "[1,2)"),
        ("0.333", "1/3"),
        ("y = 2x", "y = 2x+1"),
        ("x < 3", "x > 3"),
        ("x >= 3", "x > 3"),
        ("y", "x"),
        ("\\sqrt{x^2}", "x"),
        ("\\sqrt{\\sqrt{\\sqrt{2}}*\\frac{0.5}{2}}", "5"),  # would take minutes to simplify
        ("1/0", "1"),
        ("\\frac{x}{x-x}", "x"),
    ],
)
def test_math_different(found: str, answer: str) -> None:
    assert not is_correct(found, answer, "math")


@pytest.mark.parametrize(
    "attack",
    [
        "9^{9^{9}}",
        "9**9**9**9",
        "9^{9999999}",
        "((2^{999})^{999})^{999}",
        "(a+b+c+d)^{99}",
        "((a+b)^{9})^{9}",
        "(99999!)!",
        "999999999!",
        "\\int_0^1 e^{x^2} dx",
        "\\sum_{n=1}^{10000000} n",
        "(" * 60 + "x" + ")" * 60,
        "\\frac{1}{" * 30 + "x" + "}" * 30,
        "1+" * 5000 + "1",
    ],
)
def test_expressions_that_would_stall_are_never_evaluated(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(found: str, right: str) -> bool:
        raise AssertionError(f"evaluated {found!r}")

    monkeypatch.setattr(expressions, "_same", never)
    assert not is_correct(attack, "x+1", "math")


def test_math_works_in_a_thread_and_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """math_verify's own timeout needs the main thread, and switching it off makes it warn once per
    process."""
    import math_verify.grader
    import math_verify.parser

    math_verify.parser.TIMEOUT_WARNING_SHOWN = math_verify.grader.TIMEOUT_WARNING_SHOWN = False
    expressions._same.cache_clear()
    results: list[bool] = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=lambda: results.append(is_correct("\\sqrt{4}+x", "x+2", "math")))
        thread.start()
        thread.join()
    assert results == [True]
    assert not caplog.records
    assert not logging.getLogger("math_verify.parser").filters


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
    ],
)
def test_has_format(completion: str, style: str, good: bool) -> None:
    assert has_format(completion, style) is good  # type: ignore[arg-type]
