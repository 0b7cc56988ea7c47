r"""What the rows of others mean: an image folder, and the official release's jsonl. One JSON object per line.

**Image folder**: a folder with `metadata.jsonl`. Image names are relative to the folder.
    a pair      context_file_name and confounder_file_name, or the texts context_text and confounder_text
    a question  any other row; its images are file_name, or the list image_file_names; may have context_text
    further     id, query | question, answer, confounder_answer, options, answer_type, domain, recipe,
                licence | license, source, provenance (object), verdicts (object)

**Official jsonl**: any other .jsonl file, or a folder that holds exactly one. Image names are relative to the
file's folder. The release's keys are not published with the paper (arXiv 2606.17053), so several names are
taken; the first that is there wins.
    images      images | image: a name, a list of names, or of objects with `path`
    text        query | question | problem | prompt; the placeholders <image>, <image 1> are removed
    answer      answer | solution | ground_truth; \boxed{..} and <answer>..</answer> are taken off
    a pair      two images and an answer A or B, the letter of the image that supports the candidate answer;
                this is candidate_answer | candidate | target_answer, else the text must hold the lines
                "Question: ..." and "Answer: ..."
    a question  any other row
                (also two images with options of its own and no candidate)
    further     as in an image folder; options may be called choices, and domain may be called category;
                without options, lines "(A) .." or "A. .." at the end of the query become the options when the
                answer is one of their letters

In both, a missing id becomes NAME-LINE, and a missing answer_type is guessed from the answer: an option (its
letter or its text), true/false/yes/no, a number, TeX, else exact. A licence must be in the row or be given by
the caller. What this module only interprets, `foreign_rows` reads and checks.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_contextrl import matching
from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ANSWER_TYPES
from vlm_contextrl.row_schema import Kind

_TEXT_KEYS = ("query", "question", "problem", "prompt")
_CANDIDATE_KEYS = ("candidate_answer", "candidate", "target_answer")
_ANSWER_TYPE_NAMES = {
    "bool": "boolean", "float": "numeric", "int": "numeric", "integer": "numeric", "number": "numeric",
    "multiple_choice": "choice", "mcq": "choice", "mcq_letter": "choice", "mcq_text": "choice",
    "expression": "math", "text": "exact", "string": "exact",
}  # fmt: skip
_BOXED_OR_TAGGED = re.compile(r"\\boxed\{(.*)\}\.?|<answer>(.*)</answer>\.?", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*</think>", re.DOTALL)
_LAST_SIMPLE_BOX = re.compile(r".*\\boxed\{([^{}]*)\}", re.DOTALL)
_IMAGE_PLACEHOLDER = re.compile(r"[ \t]*<image[ _]?\d*>[ \t]*\n?", re.IGNORECASE)
_LETTERED_LINE = re.compile(r"\(?([A-Z])[).:]\s*(\S.*)")
_QUESTION_AND_ANSWER = re.compile(
    r"Question:\s*(?P<query>.+?)\s*^[ \t]*(?:[A-Z][a-z]+ )?[Aa]nswer:[ \t]*(?P<answer>[^\n]+)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A row whose images are still names.

    where: file and line, for messages. fields: the other arguments of the row's class.
    images: names; of a pair (context, confounder), or none when its contexts are texts in `fields`.
    """

    where: str
    kind: Kind
    fields: dict[str, Any]
    images: tuple[str, ...]


def draft_folder_row(value: Mapping[str, Any], row_id: str, where: str, licence: str) -> Draft:
    """A line of an image folder's metadata.jsonl; DataError when a key is missing or has the wrong type."""
    fields = _shared_fields(value, row_id, where, licence)
    fields["query"] = _text(value, where, "query", "question")
    fields["answer"] = _text(value, where, "answer")
    if "confounder_file_name" not in value and "confounder_text" not in value:
        names = _image_names(value, where, "image_file_names", "file_name")
        odd = [key for key in value if "file_name" in key or key in ("image", "images")]
        if odd and not names:
            raise DataError(
                f"{where}: no image, but {', '.join(odd)}; expected file_name or image_file_names"
            )
        return _question(fields, value, where, names)
    if "confounder_file_name" in value:
        names = [_text(value, where, f"{side}_file_name") for side in ("context", "confounder")]
        return _pair(fields, value, where, names)
    for side in ("context", "confounder"):
        fields[side] = _text(value, where, f"{side}_text")
    return _pair(fields, value, where, [])


def draft_official_row(value: Mapping[str, Any], row_id: str, where: str, licence: str) -> Draft:
    """A line of the official release; DataError when a key is missing or has the wrong type."""
    fields = _shared_fields(value, row_id, where, licence)
    told = _text(value, where, *_TEXT_KEYS)
    text = _IMAGE_PLACEHOLDER.sub("", told).strip()
    answer = _unwrapped(_text(value, where, "answer", "solution", "ground_truth"), where)
    names = _image_names(value, where, "images", "image")
    if (asked := len(_IMAGE_PLACEHOLDER.findall(told))) > len(names):
        raise DataError(
            f"{where}: {asked} image placeholders in the text and {len(names)} images; expected as many"
        )
    letter = answer.strip("(). ")
    is_question = bool(value.get("options", value.get("choices"))) and not _names_candidate(value)
    if len(names) == 2 and letter in ("A", "B") and not is_question:
        fields["query"], fields["answer"] = _query_and_candidate(value, text, where)
        value = _options_from_query(fields, value)
        return _pair(fields, value, where, names if letter == "A" else names[::-1])
    fields["query"], fields["answer"] = text, answer
    return _question(fields, _options_from_query(fields, value), where, names)


def _unwrapped(answer: str, where: str) -> str:
    """An answer without its thought, its box or tag; DataError when it holds several."""
    answer = _THOUGHT.sub("", answer).strip()
    wrapped = _BOXED_OR_TAGGED.fullmatch(answer)
    if wrapped:
        answer = (wrapped[1] or wrapped[2] or "").strip()
        if "\\boxed{" in answer or "<answer>" in answer:
            raise DataError(f"{where}: answer {answer!r} holds several answers, expected one")
    elif last := _LAST_SIMPLE_BOX.match(answer):
        answer = last[1].strip()
    return answer


def _names_candidate(value: Mapping[str, Any]) -> bool:
    texts = [_optional_text(value, key) or "" for key in _TEXT_KEYS]
    return _optional_text(value, *_CANDIDATE_KEYS) is not None or any(map(_QUESTION_AND_ANSWER.search, texts))


def _pair(fields: dict[str, Any], value: Mapping[str, Any], where: str, names: list[str]) -> Draft:
    fields["confounder_answer"] = _optional_text(value, "confounder_answer")
    _set_answer_type(fields, value, where)
    return Draft(where=where, kind="pairs", fields=fields, images=tuple(names))


def _question(fields: dict[str, Any], value: Mapping[str, Any], where: str, names: list[str]) -> Draft:
    fields["context_text"] = _optional_text(value, "context_text") or ""
    _set_answer_type(fields, value, where)
    return Draft(where=where, kind="questions", fields=fields, images=tuple(names))


def _query_and_candidate(value: Mapping[str, Any], text: str, where: str) -> tuple[str, str]:
    candidate = _optional_text(value, *_CANDIDATE_KEYS)
    if candidate is not None:
        return text, candidate
    for key in _TEXT_KEYS:
        found = _QUESTION_AND_ANSWER.search(_optional_text(value, key) or "")
        if found:
            return _IMAGE_PLACEHOLDER.sub("", found["query"]).strip(), found["answer"].strip()
    expected = "expected candidate_answer or a text with lines 'Question: ...' and 'Answer: ...'"
    raise DataError(f"{where}: a pair without a candidate answer, {expected}")


def _shared_fields(value: Mapping[str, Any], row_id: str, where: str, licence: str) -> dict[str, Any]:
    objects = {}
    for name in ("provenance", "verdicts"):
        objects[name] = {} if value.get(name) is None else value[name]
        if not isinstance(objects[name], dict):
            raise DataError(f"{where}: {name} is a {type(value[name]).__name__}, expected an object")
    named = {
        "licence": _optional_text(value, "licence", "license") or licence,
        "source": _optional_text(value, "source", "data_source"),
    }
    provenance = {**{name: text for name, text in named.items() if text}, **objects["provenance"]}
    return {
        "id": row_id,
        "domain": _optional_text(value, "domain", "category") or "",
        "recipe": _optional_text(value, "recipe") or "",
        "provenance": provenance,
        "verdicts": objects["verdicts"],
    }


def _options_from_query(fields: dict[str, Any], value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the lettered lines that end the query as options, when it has none and the answer fits."""
    lines = fields["query"].splitlines()
    options: dict[str, str] = {}
    while lines and (not lines[-1].strip() or _LETTERED_LINE.fullmatch(lines[-1].strip())):
        found = _LETTERED_LINE.fullmatch(lines.pop().strip())
        options = {found[1]: found[2], **options} if found else options
    letter = fields["answer"].strip("(). ")
    in_order = "".join(options) == string.ascii_uppercase[: len(options)]
    if value.get("options", value.get("choices")) or not lines or not in_order or letter not in options:
        return value
    fields["query"], fields["answer"] = "\n".join(lines), letter
    return {**value, "options": list(options.values())}


def _set_answer_type(fields: dict[str, Any], value: Mapping[str, Any], where: str) -> None:
    """Sets options and answer_type; an answer that is the text of an option becomes its letter."""
    raw = value.get("options", value.get("choices")) or []
    raw = [raw[key] for key in sorted(raw) if raw[key] is not None] if isinstance(raw, dict) else raw
    if not isinstance(raw, list):
        raise DataError(f"{where}: options is a {type(raw).__name__}, expected a list of texts")
    fields["options"] = tuple(as_text(option) for option in raw)
    letter = matching.choice_letter(fields["answer"], fields["options"]) if fields["options"] else None
    named = value.get("answer_type")
    if named is not None:
        answer_type = str(named).lower().replace(" ", "_")
        answer_type = _ANSWER_TYPE_NAMES.get(answer_type, answer_type)
        if answer_type not in ANSWER_TYPES:
            raise DataError(f"{where}: answer_type is {named!r}, expected one of {', '.join(ANSWER_TYPES)}")
    else:
        answer_type = _guess_answer_type(fields["answer"])
    if letter:  # lettered options are shown with the question, so a letter must count as an answer
        answer_type = "choice"
    fields["answer_type"] = answer_type
    for name in ("answer", "confounder_answer"):
        if answer_type == "choice" and fields.get(name) is not None:
            fields[name] = matching.choice_letter(fields[name], fields["options"]) or fields[name].strip(
                "(). "
            )


def _guess_answer_type(answer: str) -> str:
    if answer.casefold() in ("true", "false", "yes", "no"):
        return "boolean"
    if re.fullmatch(r"[-+]?\d[\d,]*(\.\d+)?|[-+]?\.\d+", answer):
        return "numeric"
    return "math" if "\\" in answer or "$" in answer else "exact"


def _image_names(value: Mapping[str, Any], where: str, *keys: str) -> list[str]:
    key = next((key for key in keys if value.get(key) is not None), None)
    if key is None:
        return []
    names = []
    for entry in value[key] if isinstance(value[key], list) else [value[key]]:
        name = entry.get("path") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: {key} holds {entry!r}, expected the name of an image file")
        names.append(name)
    return names


def _text(value: Mapping[str, Any], where: str, *keys: str) -> str:
    text = _optional_text(value, *keys)
    if text is None:
        raise DataError(f"{where}: no {' or '.join(keys)}")
    return text


def _optional_text(value: Mapping[str, Any], *keys: str) -> str | None:
    found = next((value[key] for key in keys if value.get(key) is not None), None)
    return None if found is None else as_text(found)


def as_text(value: object) -> str:
    """A JSON value as a text: itself, or as JSON writes it (`true`, `2.5`)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
