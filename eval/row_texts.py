"""What the readers of benchmarks share: options inside a text, numbered pictures, the kind and the tolerance of an open answer."""

from __future__ import annotations

import re
from string import ascii_uppercase

from PIL import Image

from vlm_contextrl.eval.row_fields import Row
from vlm_contextrl.matching import quantity
from vlm_contextrl.pairs import AnswerType

ASK = "Answer the question shown in the image."
ASK_FOR_ALL = "There are several answers: give all of them, separated by commas."
ASK_FOR_LETTER = "Answer the multiple-choice question shown in the image with the letter of the right option."
N_NUMBERED_IMAGES = 7


def labelled_options(text: str, label: str, last: str = "Z") -> tuple[str, tuple[str, ...]]:
    """A text that ends with labelled options, as the text before them and the options; (text, ()) without at least two.

    label: a pattern with `{letter}`; "^" is the start of a line. Labels are looked for in order, from A to `last`.
    """
    spans: list[tuple[int, int]] = []
    for letter in ascii_uppercase[: ascii_uppercase.index(last) + 1]:
        pattern = re.compile(label.replace("{letter}", letter), re.MULTILINE)
        found = pattern.search(text, spans[-1][1] if spans else 0)
        if not found:
            break
        spans.append(found.span())
    if len(spans) < 2:
        return text, ()
    ends = [start for start, _ in spans[1:]] + [len(text)]
    options = tuple(
        text[start:end].strip().rstrip(",;").strip() for (_, start), end in zip(spans, ends, strict=True)
    )
    return text[: spans[0][0]].strip(), options


def partition_at(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    """As `str.partition`, at the last match of a pattern; the outer parts are stripped."""
    matches = list(pattern.finditer(text))
    if not matches:
        return text.strip(), "", ""
    found = matches[-1]
    return text[: found.start()].strip(), found[0], text[found.end() :].strip()


def numbered_images(row: Row, text: str) -> tuple[Image.Image, ...]:
    """The pictures that "<image 1>" and the like refer to, by number; all there are when the text names none."""
    numbers = sorted({int(number) for number in re.findall(r"<image (\d+)>", text)})
    if not numbers:
        numbers = [i for i in range(1, N_NUMBERED_IMAGES + 1) if row.values.get(f"image_{i}") is not None]
    if not numbers:
        raise row.error("image_1", None, "an image")
    return tuple(row.image(f"image_{number}") for number in numbers)


def open_answer_type(answer: str) -> AnswerType:
    """numeric for one number with or without a unit, math for other formulas, exact for words."""
    if quantity(answer) is not None:
        return "numeric"
    return "math" if re.search(r"[\d\\=+^*/()<>\u221a]", answer) else "exact"


def relative_tolerance(answer: str, error: float | None) -> float | None:
    """An absolute error as a share of the answer; None without an error, for zero and for what is no number."""
    found = quantity(answer)
    if not error or found is None or not found[0]:
        return None
    return error * (1 + 1e-9) / abs(float(found[0]))  # the bound itself is inside, whatever the rounding
