"""Comparing mathematical expressions: the answer type "math".

In this order: equal text; plain quantities by the numeric rule; words, when the right answer is a word;
else `math_verify` parses both sides, and expressions are equal when they have the same value at three
points. Sets and tuples are compared element by element, equations and inequalities by the differences of
their sides. Intervals are left to `math_verify.verify`.

Why values instead of `math_verify.verify` throughout: it simplifies without a bound, its timeout works only
in the main thread, and in training the expressions come from a sampled policy: short ones such as
\\sqrt{\\sqrt{\\sqrt{2}}*\\frac{0.5}{2}} stall it for minutes.

Left out: expressions over 150 characters, integrals, sums, limits, matrices, undefined functions, powers of
powers, variables that the right answer lacks. They are equal only to the same text. Two functions that
agree at the three points to 12 digits would be called equal.
"""

from __future__ import annotations

import cmath
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

from vlm_contextrl.matching import KNOWN_UNITS, plain, quantities_equal, quantity, words_equal

_FUNCTIONS = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
    *("ln", "log", "exp", "sqrt"),
)
_COMMANDS = frozenset(
    (
        *_FUNCTIONS,
        *("frac", "pi", "cdot", "times", "div", "pm", "mp", "infty", "cup", "cap", "in"),
        *("le", "leq", "ge", "geq", "lt", "gt", "ne", "neq"),
        *("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma", "rho"),
    )
)
_SYMBOLS = {
    "\u03c0": "\\pi ",
    "\u221e": "\\infty ",
    "\u2264": "\\le ",
    "\u2265": "\\ge ",
    "\u00d7": "\\times ",
    "\u00b7": "\\cdot ",
}
# What sympy raises when a parsed object has no number at a point, or none that it can compute.
_NO_VALUE = (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)
# Values of the variables, in alphabetical order: below and above 1, and negative, where square roots and
# logarithms tell apart.
_POINTS = (
    (0.7310585, 1.6180341, 2.2360682, 0.4142137, 1.2599211, 3.3166248),
    (2.7071069, 0.5772157, 1.3247182, 1.9021606, 0.2915026, 0.8414711),
    (-1.3733577, -0.6434107, 0.8944274, -2.0946152, 1.7724541, -0.3678795),
)


def expressions_equal(found: str, right: str, tolerance: float | None = None) -> bool:
    """The rule of the answer type "math". tolerance: for plain quantities, as in
    `matching.quantities_equal`."""
    left_text, right_text = _expression(found), _expression(right)
    if _without_spaces(left_text) == _without_spaces(right_text) != "":
        return True
    left_quantity, right_quantity = _strict_quantity(found), _strict_quantity(right)
    if left_quantity and right_quantity:
        return quantities_equal(left_quantity, right_quantity, tolerance)
    if quantity(found) and quantity(right):
        return False  # "5m" against "5": the parser would drop the m as a unit
    if re.fullmatch(r"[A-Za-z][A-Za-z ]+[A-Za-z]", right_text):
        return words_equal(found, right)
    if re.search(r"\b(?:or|either|and)\b", left_text) and not re.search(r"\b(?:or|and)\b", right_text):
        return False
    return _parses_whole(left_text, like=right_text) and _is_cheap(left_text) and _same(left_text, right_text)


def _without_spaces(text: str) -> str:
    """But for those between digits: "3 4" is not 34."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


def _expression(text: str) -> str:
    text = plain(text)
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    text = re.sub(r"\u221a\s*(\d+|[a-z]|\([^()]*\))", r"\\sqrt{\1}", text.replace("**", "^"))
    text = re.sub(r"(?<![\\A-Za-z])(arc(?:sin|cos|tan)|sin|cos|tan|ln|log)(?![A-Za-z])", r"\\\1 ", text)
    return " ".join(re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text).split())


def _strict_quantity(text: str) -> tuple[Fraction, str] | None:
    """A quantity whose unit, if any, is a real one: "5x" and "5m" are products here, "5 m" and "5cm" are
    lengths."""
    found = quantity(text)
    if found is None or not found[1]:
        return found
    spaced = re.search(r"\d\s+\S+$", plain(text)) is not None
    parts = [part for part in re.split(r"[/\u00b7 ]|\^-?\d+", found[1]) if part]
    known = bool(parts) and all(part in KNOWN_UNITS for part in parts)
    return found if known and (spaced or len(parts[0]) > 1) else None


# ---- the gate in front of the parser


def _parses_whole(text: str, like: str) -> bool:
    """Whether the parser would read all of the text. It skips what it does not know: "2@3" and "11_2" would
    be 2 and 11."""
    if len(text) > 150 or not re.fullmatch(r"[A-Za-z0-9+\-*/^=<>()\[\]{},.!|_\\:%\u00b0 ]+", text):
        return False
    if set(re.findall(r"\\([A-Za-z]+)", text)) - _COMMANDS or re.search(r"\\[^A-Za-z{}]|[!^_]\s*$", text):
        return False
    bare = _without_commands(text)
    if any(word not in _FUNCTIONS for word in re.findall(r"[A-Za-z]{3,}", bare)):
        return False
    if "_" in text and "_" not in like:
        return False
    sides = re.split(r"(?<![<>!])=", text)
    if "=" not in like and (len(sides) > 2 or (len(sides) == 2 and not re.search(r"[A-Za-z]", sides[0]))):
        return False  # only the right-hand side would be looked at: "2 = 3" would be 3
    assigned = re.match(r"\s*([a-z])\s*=", bare)  # "x = 3" may answer "3"
    allowed = _variables(_without_commands(like)) | set(assigned.groups() if assigned else ())
    return _variables(bare) <= allowed


def _without_commands(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+", " ", text)


def _variables(text: str) -> set[str]:
    return set("".join(re.findall(r"(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])", text.casefold()))) - {"e", "i"}


def _is_cheap(text: str) -> bool:
    """Whether an expression stays small even when it is multiplied out; every function counts as one more
    variable."""
    functions = _function_count(text)
    text = _without_commands(text)
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if functions > 4 or deepest > 6 or re.search(r"\d{16}|!\s*!|[)\]}]\s*!|\d{4,}\s*!", text):
        return False
    if re.search(r"\^\s*(?:\{[^{}]*\}|\S)\s*\^", text):
        return False  # a tower of powers
    total = grouped = 1
    for base, power in re.findall(r"(.?)\s*\^\s*(\{[^{}]*\}?|\S)", text):
        numbers = [int(digits) for digits in re.findall(r"\d+", power)]
        if "^" in power or "!" in power or any(number > 999 for number in numbers):
            return False
        total *= max([1, *numbers])
        grouped *= max([1, *numbers]) if base in ")]}" else 1
    letters = len(set(re.findall(r"[A-Za-z]", text))) + functions
    terms = math.comb(min(grouped, 10_000) + letters, letters)
    return total <= 10_000 and terms <= (50 if re.search(r"[<>=]|\\(?:le|ge|lt|gt|ne|in)", text) else 1000)


def _function_count(text: str) -> int:
    return len(re.findall(rf"\\?(?:{'|'.join(_FUNCTIONS)})(?![a-z])", text))


# ---- values


@lru_cache(maxsize=4096)
def _same(found: str, right: str) -> bool:
    import math_verify  # loads sympy, about a second
    import sympy  # type: ignore[import-untyped, unused-ignore]

    with _no_timeout_warning():
        parsed = [math_verify.parse(f"${side}$", parsing_timeout=None) for side in (found, right)]
        answer, gold = (next((x for x in side if isinstance(x, sympy.Basic)), None) for side in parsed)
        if answer is None or gold is None:
            return False
        try:
            same = _same_values(answer, gold)
        except _NO_VALUE:
            return False
        if same is None and _function_count(found) <= found.count("\\sqrt"):
            same = math_verify.verify(gold, answer, timeout_seconds=None)
        return bool(same)


def _same_values(left: Any, right: Any) -> bool | None:
    """Whether two sympy objects are equal by value; None for intervals and whatever else is no value."""
    import sympy  # type: ignore[import-untyped, unused-ignore]
    from sympy.core.relational import Relational  # type: ignore[import-untyped, unused-ignore]

    if isinstance(left, Relational) and isinstance(right, Relational):
        return _same_relation(left, right)
    if isinstance(left, sympy.Eq) and isinstance(left.lhs, sympy.Symbol):
        return _same_values(left.rhs, right)
    if isinstance(right, sympy.Eq) and isinstance(right.lhs, sympy.Symbol):
        return _same_values(left, right.rhs)
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return _same_at_points(left, right)
    collections = (sympy.FiniteSet, sympy.Tuple)
    left_items, right_items = (
        list(side.args) if isinstance(side, collections) else [side] for side in (left, right)
    )
    if left_items == [left] and right_items == [right]:
        return None
    if isinstance(left, sympy.Tuple) and isinstance(right, sympy.Tuple):
        return len(left_items) == len(right_items) and all(map(_same_values, left_items, right_items))
    return len(left_items) == len(right_items) and _same_unordered(left_items, right_items)


def _same_unordered(left: Sequence[Any], right: Sequence[Any]) -> bool:
    rest = list(right)
    for item in left:
        match = next((other for other in rest if _same_values(item, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_at_points(left: Any, right: Any) -> bool:
    import sympy  # type: ignore[import-untyped, unused-ignore]

    tolerance = 1e-6 if left.atoms(sympy.Float) or right.atoms(sympy.Float) else 1e-12
    values = _values(left, right)
    return values is not None and all(abs(a - b) <= tolerance * abs(b) + 1e-15 for a, b in values)


def _same_relation(left: Any, right: Any) -> bool:
    """Two equations or inequalities: the differences of their sides are multiples of each other (positive
    ones, for inequalities)."""
    import sympy  # type: ignore[import-untyped, unused-ignore]

    if isinstance(left, sympy.Gt | sympy.Ge):
        left = left.reversed
    if isinstance(right, sympy.Gt | sympy.Ge):
        right = right.reversed
    if left.func is not right.func or not left.free_symbols or not right.free_symbols:
        return False
    values = _values(left.lhs - left.rhs, right.lhs - right.rhs)
    if values is None or any(not a or not b for a, b in values):
        return False
    factors = [a / b for a, b in values]
    positive = isinstance(left, sympy.Eq | sympy.Ne) or (abs(factors[0].imag) < 1e-12 and factors[0].real > 0)
    return positive and all(abs(factor - factors[0]) <= 1e-12 * abs(factors[0]) for factor in factors)


def _values(left: Any, right: Any) -> list[tuple[complex, complex]] | None:
    """Both expressions at every point; None where one has no finite value or there are too many variables."""
    import sympy  # type: ignore[import-untyped, unused-ignore]

    names = sorted({str(symbol) for side in (left, right) for symbol in side.free_symbols})
    if len(names) > len(_POINTS[0]):
        return None
    values: list[tuple[complex, complex]] = []
    for point in _POINTS if names else _POINTS[:1]:
        at = {name: sympy.Float(value, 20) for name, value in zip(names, point, strict=False)}
        left_value, right_value = (
            complex(side.evalf(20, subs={symbol: at[str(symbol)] for symbol in side.free_symbols}))
            for side in (left, right)
        )
        if not cmath.isfinite(left_value) or not cmath.isfinite(right_value):
            return None
        values.append((left_value, right_value))
    return values


@contextmanager
def _no_timeout_warning() -> Iterator[None]:
    """Drops the one line by which math_verify says on a process's first call that its timeout is off."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Timeout is disabled")

    loggers = [logging.getLogger(f"math_verify.{name}") for name in ("parser", "grader")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
