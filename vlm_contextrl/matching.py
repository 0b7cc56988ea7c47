"""Comparing an extracted answer with the right one, by answer type. The text rules behind `answers.py`.

exact    Words, in order. Case, articles and punctuation do not count; "three" is 3, "1,000" is 1000, "3.0"
         is 3, "07:30" is 7:30; "light-blue" is "light blue". A plural in -s or -es equals its singular from
         4 letters on. Operators and signs count.
boolean  yes/true against no/false; may be followed by a comma or full stop and more, or by "it is" and the
         like, but not by the opposite word.
numeric  Value and unit. "12 cm" equals "12", but not "12 m". Units in words, LaTeX and products ("m s^{-1}",
         "kg\\cdot m"). Thousands separators, percent ("50%" is 50 and 0.5), fractions (also LaTeX and mixed
         "1 1/2"), powers of ten, number words, "million". No unit conversion.
math     See `expressions.py`.
choice   The option letter; see `choice_letter`.

Left out: ordinals, currencies (their sign is dropped), synonyms, numbers inside sentences ("There are 3").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from string import ascii_uppercase

# ---- text


_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2212\ufe63\uff0d", "-"))
_BEFORE_NFKC = {"\u00b2": "^2", "\u00b3": "^3", "\u00ba": "\u00b0"}  # NFKC would make 2, 3 and o of them
_LATEX_SPACE = re.compile(r"\\(?:[,;:! ]|q?quad\b)|~")
_LATEX_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|mbox|operatorname|boxed)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|__|`)(.+?)\1(?!\w)")


def plain(text: str) -> str:
    """One line without markdown, maths delimiters and outer punctuation; wrappers such as \\text{} opened,
    minus signs unified."""
    for char, replacement in _BEFORE_NFKC.items():
        text = text.replace(char, replacement)
    text = "".join(
        f" {unicodedata.normalize('NFKC', c)}" if unicodedata.numeric(c, 2.0) % 1 else c for c in text
    )
    text = unicodedata.normalize("NFKC", text).translate(_MINUS).replace("\u2044", "/")
    text = text.replace("\\%", "%").replace("{,}", ",").replace("\\$", "")
    text = re.sub(r"(?<=\d)\\[,;:](?=\d{3}(?!\d))", "", text)  # 12\,000
    text = re.sub(r"\\[()\[\]]|\$|\\(?:left|right)\b", "", text)
    text = re.sub(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\(?:degree|circ)\b", "\u00b0", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", _LATEX_SPACE.sub(" ", text))
    for pattern, group in ((_LATEX_WRAPPER, r"\1"), (_EMPHASIS, r"\2")):
        previous = None
        while previous != text:
            previous, text = text, pattern.sub(group, text)
    text = " ".join(text.split()).strip("`*_ ")
    text = re.sub(r"^([\"'])(.*)\1$", r"\2", text.rstrip(".,;:? "))
    return re.sub(r"(?<=[^\W\d_]{2})!+$", "", text)  # "Yes!", but not the factorial "5!"


_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SMALL = (
    *("zero", *_ONES, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"),
    *("sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBER_WORD = re.compile(rf"\b(?:({'|'.join(_TENS)})(?:[-\s]({'|'.join(_ONES)}))?|({'|'.join(_SMALL)}))\b")
_TOKEN = re.compile(
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?::\d+)+|\d*\.?\d+|[^\W\d_]+(?:'[^\W\d_]+)?|[^\w\s]"
)
_PUNCTUATION = frozenset(".,;:!?\"'()[]{}`\\\u201c\u201d\u2018\u2019\u2026")


def _with_digits(text: str) -> str:
    """Lower-case text with number words up to 999 written in digits."""

    def digits(match: re.Match[str]) -> str:
        tens, ones, small = match.groups()
        return str(
            _SMALL.index(small)
            if small
            else 10 * _TENS.index(tens) + 20 + (_SMALL.index(ones) if ones else 0)
        )

    return re.sub(r"\b([1-9])\s+hundred\b", r"\g<1>00", _NUMBER_WORD.sub(digits, text))


def words(text: str) -> list[str]:
    """Tokens that count in an exact comparison."""
    text = re.sub(r"\b([ap])\.\s?m\b", r"\1m", plain(text).casefold())
    text = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", _with_digits(text))
    text = re.sub(r"^[-*]\s+(?=[^\W\d_])", "", text)
    tokens = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _PUNCTUATION and not (token == "!" and text[: match.start()][-1:].isdigit()):
            continue  # the factorial "5!" is not 5
        if ":" in token:
            token = re.sub(r"^0(?=\d)", "", token)
        elif token[-1].isdigit():
            token = token.replace(",", "")
            token = re.sub(r"^\.", "0.", re.sub(r"(\.\d*?)0+$", r"\1", token)).rstrip(".")
        tokens.append(token)
    return [token for token in tokens if token not in {"a", "an", "the"}] or tokens


def _same_word(left: str, right: str) -> bool:
    short, long = sorted((left, right), key=len)
    return left == right or (len(short) >= 4 and short.isalpha() and long in {f"{short}s", f"{short}es"})


def words_equal(left: str, right: str) -> bool:
    """The rule of the answer type "exact"."""
    left_words, right_words = words(left), words(right)
    if not left_words or not right_words:
        return left.strip() == right.strip() != ""
    return len(left_words) == len(right_words) and all(map(_same_word, left_words, right_words))


def truth(text: str) -> bool | None:
    """True for yes/true, False for no/false, None when it says neither or both."""
    match = re.match(
        r"(yes|true|no|false)(?:\s*[.,;:!]|\s+(?:it|they|there|this|that|he|she)\b|$)", plain(text).casefold()
    )
    if not match:
        return None
    value = match[1] in {"yes", "true"}
    opposite = r"\b(?:no|false)\b" if value else r"\b(?:yes|true)\b"
    return None if re.search(opposite, plain(text).casefold()) else value


# ---- quantities

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d*)?|\.\d+)"
_QUANTITY = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<number>{_UNSIGNED})(?:\s*/\s*(?P<under>{_UNSIGNED}))?"
    r"(?:\s*(?:\\times|\\cdot|\u00d7|x|\*)\s*10\s*\^\s*\{?(?P<power>[+-]?\d{1,3})\}?|e(?P<exponent>[+-]?\d{1,3})(?!\w))?"
    r"(?P<rest>.*)"
)
_UNIT = re.compile(
    r"[a-z%\u00b0\u03bc\u03c9][a-z%\u00b0\u03bc\u03c9\u00b7/^.0-9 -]{0,40}"
)  # degree, micro, ohm, product
_MULTIPLIERS = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_NO_UNIT = frozenset(
    (
        *("or", "and", "to", "not", "but", "either", "minus", "plus", "times", "over", "half", "halves"),
        *("than", "because", "if"),
    )
)
_UNITS = {
    "%": "percent",
    "\u00b0": "degree",
    "deg": "degree",
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("meter", "metre"), "m"),
    **dict.fromkeys(("kilometer", "kilometre"), "km"),
    **dict.fromkeys(("inch", "inches"), "in"),
    **dict.fromkeys(("foot", "feet"), "ft"),
    **dict.fromkeys(("gram", "gramme"), "g"),
    **dict.fromkeys(("kilogram", "kilo"), "kg"),
    **dict.fromkeys(("second", "sec"), "s"),
    "minute": "min",
    **dict.fromkeys(("hour", "hr", "hrs"), "h"),
    "lbs": "lb",
    "yds": "yd",
    "celsius": "c",
    **dict.fromkeys(("liter", "litre"), "l"),
    **dict.fromkeys(("unit", "units"), ""),
}
KNOWN_UNITS = frozenset(_UNITS.values()) | {
    "n",
    "j",
    "w",
    "v",
    "kj",
    "kw",
    "pa",
    "hz",
    "mol",
    "day",
    "year",
    "mile",
    "yd",
    "lb",
}


def quantity(text: str) -> tuple[Fraction, str] | None:
    """Value and unit ("" for none) of a text that is one number with at most three words of unit; None for
    anything else."""
    text = text.replace("\\mu", "\u03bc").replace("\\Omega", "\u03a9")
    text = _with_digits(plain(text).casefold())
    text = re.sub(r"\^\s*\{\s*([+-]?\d+)\s*\}", r"^\1", text)
    text = re.sub(r"(?<=[a-z0-9])\s*(?:\\cdot\b|\u00b7)\s*(?=[a-z])", "\u00b7", text)
    text = re.sub(
        r"^([+-]?)\s*10\s*\^\s*([+-]?\d{1,3})(?!\d)", r"\g<1>1e\2", text.lstrip("\u20ac\u00a3\u00a5 ")
    )
    if len(text) > 100 or re.search(r"\d{40}", text):
        return None
    text = re.sub(r"^(?:about|approximately|approx\.?|around|roughly|\u2248|\\approx)\s*", "", text)
    text = re.sub(r"^(?:minus|negative)\s+(?=\d)", "-", re.sub(r"^\\?[a-z]+\s*=\s*", "", text))
    text = re.sub(
        r"\\frac\s*(?:\{(-?[\d.]+)\}\s*\{([\d.]+)\}|(\d)\s*(\d))",
        lambda m: f" {m[1] or m[3]}/{m[2] or m[4]}",
        text,
    )
    match = _QUANTITY.fullmatch(re.sub(r"^-\s+", "-", text.strip()))
    if not match:
        return None
    value = Fraction(match["number"].replace(",", "").rstrip("."))
    if match["under"]:
        under = Fraction(match["under"].replace(",", "").rstrip("."))
        if not under:
            return None
        value = int(match["whole"] or 0) + value / under
    value *= Fraction(10) ** int(match["power"] or match["exponent"] or 0)
    unit = _unit(match["rest"])
    if unit is None:
        return None
    factor, name = unit
    return (-value if match["sign"] == "-" else value) * factor, name


def _unit(rest: str) -> tuple[int, str] | None:
    """Factor and canonical name of what follows a number, None when it is no unit."""
    if rest == "k":
        return 1000, ""
    name = rest.strip()
    if not name:
        return 1, ""
    if not _UNIT.fullmatch(name) or re.search(r"(?<![\^a-z])(?<!\^-)\d", name):
        return None
    parts = re.sub(r"([%\u00b0])", r" \1 ", name).split()
    factor = _MULTIPLIERS.get(parts[0].removesuffix("s") if len(parts[0]) > 2 else parts[0], 1)
    parts = parts[1:] if factor > 1 else parts
    if len(parts) > 3 or _NO_UNIT.intersection(parts):
        return None
    squares = {"square": "^2", "squared": "^2", "sq": "^2", "cubic": "^3", "cubed": "^3"}
    powers = [squares.get(part.rstrip(".")) for part in parts]
    power = "".join(found for found in powers if found)
    names = [_unit_name(part) for part, found in zip(parts, powers, strict=True) if not found]
    return factor, " ".join(name for name in names if name) + power


def _unit_name(part: str) -> str:
    part = part.rstrip(".")
    singular = part.removesuffix("s") if len(part) > 3 and not part.endswith("ss") else part
    return _UNITS.get(part, _UNITS.get(singular, singular))


def quantities_equal(
    found: tuple[Fraction, str], right: tuple[Fraction, str], tolerance: float | None = None
) -> bool:
    """Equal values, and equal units when both sides give one.

    tolerance: None compares integers exactly and everything else within a relative 1e-6; a number is a
    relative tolerance for every value, integers included (relative to the right answer, so 0 stays exact).
    """
    (value, unit), (right_value, right_unit) = found, right
    if tolerance is None:
        tolerance = 0.0 if right_value.denominator == 1 else 1e-6

    def close(candidate: Fraction) -> bool:
        return abs(candidate - right_value) <= Fraction(tolerance) * abs(right_value)

    if close(value) and (not unit or not right_unit or unit == right_unit):
        return True
    if unit == "percent" and not right_unit:
        return close(value / 100)
    return right_unit == "percent" and not unit and close(value * 100)


def numbers_equal(found: str, right: str, tolerance: float | None = None) -> bool:
    """The rule of the answer type "numeric". What is no single quantity (a time, a ratio) is compared word
    by word."""
    if words_equal(found, right):
        return True
    left_quantity, right_quantity = quantity(found), quantity(right)
    return bool(
        left_quantity and right_quantity and quantities_equal(left_quantity, right_quantity, tolerance)
    )


def answers_equal(left: str, right: str, answer_type: str) -> bool:
    """Whether two reference answers say the same by the rules above; expressions are compared as written."""
    if answer_type == "boolean":
        return truth(left) == truth(right)
    return numbers_equal(left, right) if answer_type in ("numeric", "math") else words_equal(left, right)


# ---- options

_LEAD_IN = re.compile(
    r"^(?:(?:so|therefore|thus|hence|probably|likely|definitely|clearly|simply|it is|it's"
    r"|i think|i choose|i pick|the)\b,?\s*)+",
    re.IGNORECASE,
)
_DELIMITED = re.compile(
    r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])\s*[.:)\]]|([A-Za-z]),|([A-Za-z])\s+-)\s*(?:[.:,](?!\d)|-(?=\s))?\s*(\S.*)"
)
_MORE_LETTERS = re.compile(r"(?:\W*\b(?:[A-Za-z]|or|and)\b)+\W*")  # "B, c, d": a list, not a choice
_HEDGE = re.compile(r"^\W*(?:or|and|nor|not|but|either|maybe)\b|^\s*[/&|]", re.IGNORECASE)


def choice_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The option letter that a short text names, None when it names none or more than one.

    Read as B: "B", "b", "(B)", "B.", "option B", "B. circle", "B, the circle", and the text of option B
    alone (articles dropped). Refused: two letters, a letter beside another option's text, an option text
    that two options share. "a circle" is not option A. A letter in range is a letter even if it is also
    another option's text. Without options (they stand in the image) A to Z count.
    """
    text = _LEAD_IN.sub("", plain(text)) or plain(text)
    text = re.sub(
        r"^(?:option|choice|letter|answer)\s+(?=[(\[]?[A-Za-z](?:\W|$))", "", text, flags=re.IGNORECASE
    )
    text = re.sub(r"^(\(?[A-Za-z]\)?)!+$", r"\1", text)
    letters = ascii_uppercase[: len(options)] if options else ascii_uppercase
    letter, rest = _letter_and_rest(text)
    if letter and not rest and letter in letters:
        return letter
    verbatim = [
        letter
        for letter, option in zip(letters, options, strict=False)
        if plain(option).casefold() == text.casefold()
    ]
    if len(verbatim) == 1:
        return verbatim[0]
    if letter and letter in letters:
        return letter if _supports(letter, rest, options) else None
    named = [letter for letter, option in zip(letters, options, strict=False) if words_equal(option, text)]
    if named:
        return named[0] if len(named) == 1 else None
    spaced = re.fullmatch(r"\(?([A-Z])\)?\s+(\S.*)", text)
    if spaced and spaced[1] in letters:
        own = options and words_equal(options[letters.index(spaced[1])], spaced[2])
        if own or (spaced[1] not in "AI" and _supports(spaced[1], spaced[2], options)):
            return spaced[1]
    return None


def echoed_option(line: str, options: Sequence[str] = ()) -> str | None:
    """The option letter of a line that is only this letter, or the letter and the option's own text."""
    letters = ascii_uppercase[: len(options)] if options else ascii_uppercase
    letter, rest = _letter_and_rest(plain(line))
    if letter not in letters or not letter:
        return None
    own = options and words_equal(options[letters.index(letter)], rest)
    return letter if own or not rest else None


def _letter_and_rest(text: str) -> tuple[str, str]:
    """("B", "") for "(b)", ("B", "circle") for "B. circle", ("", text) for a text without such a letter."""
    single = re.fullmatch(r"[(\[]?([A-Za-z])[)\]]?", text)
    if single:
        return single[1].upper(), ""
    delimited = _DELIMITED.fullmatch(text)
    if not delimited:
        return "", text
    return next(group for group in delimited.groups() if group).upper(), delimited[6]


def _supports(letter: str, rest: str, options: Sequence[str]) -> bool:
    """Whether what follows a letter agrees with it: the option's own text, or words that name no other
    option."""
    letters = ascii_uppercase[: len(options)] if options else ascii_uppercase
    if options and words_equal(options[letters.index(letter)], rest):
        return True
    if _HEDGE.search(rest) or _MORE_LETTERS.fullmatch(rest):
        return False
    others = re.findall(r"\b[A-Z]\b|(?<=\()[A-Za-z](?=\))", rest)
    if any(other.upper() in letters and other.upper() != letter for other in others):
        return False
    said = f" {' '.join(words(rest))} "
    return not any(
        f" {' '.join(words(option))} " in said
        for other, option in zip(letters, options, strict=False)
        if other != letter
    )
