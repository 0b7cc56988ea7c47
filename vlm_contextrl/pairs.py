"""The two kinds of rows: contrastive pairs z = (Q, A, C+, C-) and ordinary questions.

A `ContrastivePair` holds a query, an answer, the context that supports this answer and the confounder that
looks almost the same and does not (arXiv 2606.17053). Contexts are images or, in text domains, texts. When
it is known which answer the confounder supports, the pair gives a second pair for free (`reversed`) and two
ordinary questions (`questions`).

Images stay encoded until somebody asks for pixels. `check_pair` and `check_question` say in one line which
invariant a row breaks; the storage calls them on the way in and on the way out.
"""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from PIL import Image

from vlm_contextrl.errors import DataError
from vlm_contextrl.images import decode_image, encode_png, pixel_hash
from vlm_contextrl.matching import answers_equal, truth

AnswerType = Literal["choice", "exact", "numeric", "math", "boolean"]
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)
MAX_OPTIONS = len(string.ascii_uppercase)
REVERSED_SUFFIX = "~r"

# A control token inside user text would be encoded as the real token: a second image placeholder or an
# early end of the turn.
CONTROL_TOKEN = re.compile(
    r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad|object_ref_start|object_ref_end"
    r"|box_start|box_end|quad_start|quad_end)\|>"
)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as file bytes (PNG, JPEG, WEBP, GIF or BMP). Two are equal when their bytes are.

    origin: where the bytes came from (file, row, column); starts the message of every decoding error.
    """

    data: bytes = field(repr=False)
    origin: str = field(default="", compare=False)
    _pixel_hash: str = field(default="", init=False, repr=False, compare=False)

    @classmethod
    def from_image(cls, image: Image.Image) -> EncodedImage:
        """The picture as PNG, without loss."""
        return cls(encode_png(image))

    @classmethod
    def with_known_hash(cls, data: bytes, origin: str, known_hash: str) -> EncodedImage:
        """An image whose `pixel_hash` was computed before, from these very bytes."""
        image = cls(data, origin)
        object.__setattr__(image, "_pixel_hash", known_hash)
        return image

    def decode(self, where: str = "image") -> Image.Image:
        """The RGB picture; DataError (see `decode_image`) when it cannot be read."""
        return decode_image(self.data, self.origin or where)

    def pixel_hash(self, where: str = "image") -> str:
        """sha256 over the decoded pixels, computed once per object; DataError when they cannot be read."""
        if not self._pixel_hash:
            object.__setattr__(self, "_pixel_hash", pixel_hash(self.decode(where)))
        return self._pixel_hash


Context = EncodedImage | str


@dataclass(frozen=True, kw_only=True)
class QuestionRow:
    """An ordinary question: a query about any number of images (or about `context_text`) and its answer.

    The other fields are those of `ContrastivePair`.
    """

    id: str
    query: str
    answer: str
    images: tuple[EncodedImage, ...] = ()
    context_text: str = ""
    options: tuple[str, ...] = ()
    answer_type: AnswerType = "exact"
    domain: str = ""
    recipe: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    verdicts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ContrastivePair:
    """One contrastive instance.

    confounder_answer: what the confounder supports; None when unknown.
    options: texts of a multiple-choice query, whose answers are then the letters A, B, ...
    provenance: JSON values, among them a `licence`; known keys are source, seed, scene, edit, similarity,
    changed_fraction. Pairs with the same `scene` never end up in two splits.
    verdicts: what a verifier or a person said about the pair, JSON values.
    """

    id: str
    query: str
    answer: str
    context: Context
    confounder: Context
    confounder_answer: str | None = None
    options: tuple[str, ...] = ()
    answer_type: AnswerType = "exact"
    domain: str = ""
    recipe: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    verdicts: dict[str, Any] = field(default_factory=dict)

    def reversed(self) -> ContrastivePair | None:
        """The pair seen from the confounder (A', C-, C+); None when the confounder's answer is unknown.

        Reversing twice gives the first pair back.
        """
        if self.confounder_answer is None:
            return None
        if self.id.endswith(REVERSED_SUFFIX):
            reversed_id = self.id.removesuffix(REVERSED_SUFFIX)
        else:
            reversed_id = self.id + REVERSED_SUFFIX
        return replace(
            self,
            id=reversed_id,
            answer=self.confounder_answer,
            confounder_answer=self.answer,
            context=self.confounder,
            confounder=self.context,
        )

    def questions(self) -> list[QuestionRow]:
        """The query asked of the context and, when its answer is known, of the confounder."""
        rows = [self._question("~context", self.context, self.answer)]
        if self.confounder_answer is not None:
            rows.append(self._question("~confounder", self.confounder, self.confounder_answer))
        return rows

    def _question(self, id_suffix: str, context: Context, answer: str) -> QuestionRow:
        return QuestionRow(
            id=self.id + id_suffix,
            query=self.query,
            answer=answer,
            images=(context,) if isinstance(context, EncodedImage) else (),
            context_text=context if isinstance(context, str) else "",
            options=self.options,
            answer_type=self.answer_type,
            domain=self.domain,
            recipe=self.recipe,
            provenance=dict(self.provenance),
            verdicts=dict(self.verdicts),
        )


Row = ContrastivePair | QuestionRow


def check_pair(pair: ContrastivePair) -> str | None:
    """None when the pair can be used, else why not, in one line. Decodes both images."""
    return _check_shared_fields(pair) or _check_answers_differ(pair) or _check_contexts(pair)


def check_question(row: QuestionRow) -> str | None:
    """None when the question can be used, else why not, in one line. Decodes every image."""
    reason = _check_shared_fields(row) or _check_text("context_text", row.context_text, may_be_empty=True)
    if reason is None and not isinstance(row.images, tuple):
        reason = f"images is a {type(row.images).__name__}, expected a tuple of EncodedImage"
    for index, image in enumerate(row.images if reason is None else ()):
        reason = reason or _check_decodes(f"images[{index}]", image)
    return reason


def _check_shared_fields(row: ContrastivePair | QuestionRow) -> str | None:
    reason = (
        _check_text("id", row.id)
        or _check_text("query", row.query)
        or _check_text("answer", row.answer)
        or _check_text("domain", row.domain, may_be_empty=True)
        or _check_text("recipe", row.recipe, may_be_empty=True)
        or _check_options(row)
        or _check_json("provenance", row.provenance)
        or _check_json("verdicts", row.verdicts)
    )
    if reason:
        return reason
    licence = row.provenance.get("licence")
    if not isinstance(licence, str) or not licence.strip():
        return f"provenance['licence'] is {licence!r}, expected the source's licence as a text"
    return None


def _check_options(row: ContrastivePair | QuestionRow) -> str | None:
    if row.answer_type not in ANSWER_TYPES:
        return f"answer_type is {row.answer_type!r}, expected one of {', '.join(ANSWER_TYPES)}"
    if not isinstance(row.options, tuple):
        return f"options is a {type(row.options).__name__}, expected a tuple of texts"
    if len(row.options) > MAX_OPTIONS:
        return f"{len(row.options)} options, expected at most {MAX_OPTIONS} (one letter each)"
    for index, option in enumerate(row.options):
        reason = _check_text(f"options[{index}]", option)
        if reason:
            return reason
    if row.answer_type == "boolean" and truth(row.answer) is None:
        return f"answer_type is 'boolean' and answer {row.answer!r}, expected yes, no, true or false"
    if row.answer_type != "choice":
        return None
    return _check_choice("answer", row.answer, row)


def _check_answers_differ(pair: ContrastivePair) -> str | None:
    other = pair.confounder_answer
    if other is None:
        return None
    reason = _check_text("confounder_answer", other)
    if reason is None and pair.answer_type == "choice":
        reason = _check_choice("confounder_answer", other, pair)
    if reason is None and answers_equal(pair.answer, other, pair.answer_type):
        reason = f"answer {pair.answer!r} and confounder_answer {other!r} are the same, expected two answers"
    return reason


def _check_contexts(pair: ContrastivePair) -> str | None:
    context, confounder = pair.context, pair.confounder
    if isinstance(context, str) and isinstance(confounder, str):
        reason = _check_text("context", context) or _check_text("confounder", confounder)
        if reason is None and context.split() == confounder.split():
            reason = "context and confounder are the same text, expected two different ones"
        return reason
    if isinstance(context, EncodedImage) and isinstance(confounder, EncodedImage):
        reason = _check_decodes("context", context) or _check_decodes("confounder", confounder)
        if reason is None and context.pixel_hash() == confounder.pixel_hash():
            reason = "context and confounder have the same pixels, expected two different images"
        return reason
    kinds = f"{type(context).__name__} and {type(confounder).__name__}"
    return f"context and confounder are {kinds}, expected two images (EncodedImage) or two texts (str)"


def _check_text(name: str, value: object, *, may_be_empty: bool = False) -> str | None:
    if not isinstance(value, str):
        return f"{name} is a {type(value).__name__}, expected a text"
    if not may_be_empty and not value.strip():
        return f"{name} is empty"
    if control := CONTROL_TOKEN.search(value):
        return f"{name} holds the control token {control.group()!r}, expected a text without it"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"{name} holds half a character (a lone surrogate) at {error.start}, expected Unicode text"
    return None


def _check_choice(name: str, letter: str, row: ContrastivePair | QuestionRow) -> str | None:
    if len(row.options) < 2:
        return f"answer_type is 'choice' with {len(row.options)} options, expected at least 2"
    letters = string.ascii_uppercase[: len(row.options)]
    if len(letter) == 1 and letter in letters:
        return None
    return f"{name} is {letter!r}, expected one of the option letters {letters[0]} to {letters[-1]}"


def _check_json(name: str, value: object) -> str | None:
    if not isinstance(value, dict):
        return f"{name} is a {type(value).__name__}, expected a dict"
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        return f"{name} cannot be written as JSON ({error})"
    return None


def _check_decodes(name: str, image: object) -> str | None:
    if not isinstance(image, EncodedImage):
        return f"{name} is a {type(image).__name__}, expected an EncodedImage"
    try:
        image.pixel_hash(name)
    except DataError as error:
        return str(error)
    return None
