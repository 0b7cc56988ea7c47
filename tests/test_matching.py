"""Comparison of answers by type: what is equal, what must not be, and expressions that would stall."""

from __future__ import annotations

import logging
import threading

import pytest

from vlm_contextrl import expressions
from vlm_contextrl.answers import is_correct


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
        ("5!", "5"),
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
        ("Yes it is.", "yes", True),
        ("No, it is yes.", "no", False),
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
        ("16\\,\\text{cm}^{2}", "16"),
        ("9.8\\ \\mathrm{m/s^{2}}", "9.8"),
        ("2.5\\times10^{4}\\,\\mathrm{N/m^{2}}", "25000"),
        ("5\\,\\Omega", "5"),
        ("5 \u03a9", "5"),
        ("10\\,\\mu\\text{m}", "10"),
        ("6\\text{ m s}^{-1}", "6"),
        ("3\\ \\mathrm{kg\\cdot m/s}", "3"),
        ("12\\,000", "12000"),
        ("10^{-3}", "0.001"),
        ("\u20ac12", "12"),
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
        ("5!", "5"),
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
        ("\\dfrac12", "1/2"),
        ("25\\text{ cm}^{3}", "25"),
        ("9.8\\,\\text{m/s}^2", "9.8"),
        ("10^2", "100"),
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
        ("3 4", "34"),
        ("3\\quad 4", "34"),
        ("6 7", "67"),
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
        ("1 < 2", "3 < 4"),
        ("f(x)", "x"),
        ("x-x+5", "5"),  # variables that the right answer lacks are not evaluated
        ("[1,", "[1,2]"),
        ("(1,(2,3))", "(1,2,3)"),
        ("tan", "ant"),
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
