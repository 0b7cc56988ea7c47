r"""What the rows of others mean: image folders, the official release's jsonl, Parquet of any make. One object of keys per row.

**Image folder**: a folder with `metadata.jsonl`, an object per line. Image names are relative to the folder.
    a pair      context_file_name and confounder_file_name, or the texts context_text and confounder_text
    a question  any other row; its images are file_name, or the list image_file_names; may have context_text
    further     id, query | question, answer, confounder_answer, options, answer_type, domain, recipe,
                licence | license, source, provenance (object), verdicts (object)

**Official jsonl**: any other .jsonl file, or a folder that holds exactly one or a `rows.jsonl`. Image names are relative to the
file's folder. The release's keys are not published with the paper (arXiv 2606.17053), so several names are
taken; the first that is there wins.
    images      images | image: a name, a list of names, or of objects with `path`
    text        query | question | problem | prompt; the placeholders <image>, <image 1> are removed; a prompt may be TRL's list of
                messages, whose system message goes into the provenance
    answer      answer | solution | ground_truth; \boxed{..} and <answer>..</answer> are taken off
    a pair      two images and an answer A or B, the letter of the image that supports the candidate answer;
                this is candidate_answer | candidate | target_answer, else the text must hold the lines
                "Question: ..." and "Answer: ..."
                (also context and confounder, images or texts, with the answer that the context supports)
    a question  any other row
                (also two images with options of its own and no candidate); may have context_text | context
    further     as in an image folder; options may be called choices, and domain may be called category;
                without options, lines "(A) .." or "A. .." at the end of the query, or "Choices: (A) .. (B) ..",
                become the options when the answer is one of them

**Parquet**: as the official jsonl, a row per object; an image is also Hugging Face's struct of bytes and path, or the bytes of a file.

In all, other keys with a number or a text of at most 1000 characters go into the provenance, a missing id becomes NAME-LINE, and a
missing answer_type is guessed from the answer: an option (its letter or its text), true/false/yes/no, a number, TeX, else exact.
Options, provenance and verdicts may also be JSON texts. A licence must be in the row or be given by
the caller. What this module only interprets, `rows` reads and checks.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_contextrl import matching
from vlm_contextrl.errors import DataError
from vlm_contextrl.foreign.values import (
    answer_text,
    further,
    image,
    images,
    json_object,
    optional_text,
    text,
    without_messages,
)
from vlm_contextrl.foreign.values import options as read_options
from vlm_contextrl.pairs import ANSWER_TYPES
from vlm_contextrl.row_schema import Kind

TEXT_KEYS = ("query", "question", "problem", "prompt")
ANSWER_KEYS = ("answer", "solution", "ground_truth")
IMAGE_KEYS = ("images", "image")
CANDIDATE_KEYS = ("candidate_answer", "candidate", "target_answer")
SIDES = ("context", "confounder")
KNOWN_KEYS = {
    *TEXT_KEYS, *ANSWER_KEYS, *IMAGE_KEYS, *CANDIDATE_KEYS, *SIDES, "id", "kind", "options", "choices", "answer_type",
    "domain", "category", "recipe", "licence", "license", "source", "data_source", "provenance", "verdicts", "file_name",
    "image_file_names", "context_file_name", "confounder_file_name", "context_text", "confounder_text", "confounder_answer",
}  # fmt: skip
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
_INLINE_LETTER = re.compile(r"\(([A-Z])\)")
_INLINE_OPTIONS = re.compile(r"\s*\b(?:choices?|options?)\s*:\s*(?=\(A\))", re.IGNORECASE)
_QUESTION_AND_ANSWER = re.compile(
    r"Question:\s*(?P<query>.+?)\s*^[ \t]*(?:[A-Z][a-z]+ )?[Aa]nswer:[ \t]*(?P<answer>[^\n]+)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A row whose images are not read yet.

    where: file and line, for messages. fields: the other arguments of the row's class.
    images: names or bytes; of a pair (context, confounder), or none when its contexts are texts in `fields`.
    """

    where: str
    kind: Kind
    fields: dict[str, Any]
    images: tuple[str | bytes, ...]


def draft_folder_row(value: Mapping[str, Any], row_id: str, where: str, licence: str) -> Draft:
    """A line of an image folder's metadata.jsonl; DataError when a key is missing or has the wrong type."""
    fields = _shared_fields(value, row_id, where, licence)
    fields["query"] = text(value, where, "query", "question")
    fields["answer"] = text(value, where, "answer")
    if "confounder_file_name" not in value and "confounder_text" not in value:
        names = images(value, where, "image_file_names", "file_name")
        odd = [
            key for key in value if value[key] not in (None, []) and ("file_name" in key or key in IMAGE_KEYS)
        ]
        if odd and not names:
            raise DataError(
                f"{where}: no image, but {', '.join(odd)}; expected file_name or image_file_names"
            )
        return _question(fields, value, where, names)
    if "confounder_file_name" in value:
        return _pair(fields, value, where, [text(value, where, f"{side}_file_name") for side in SIDES])
    for side in SIDES:
        fields[side] = text(value, where, f"{side}_text")
    return _pair(fields, value, where, [])


def draft_official_row(value: Mapping[str, Any], row_id: str, where: str, licence: str) -> Draft:
    """A row of the official release or of Parquet; DataError when a key is missing or has the wrong type."""
    value = without_messages(value, where)
    fields = _shared_fields(value, row_id, where, licence)
    told = text(value, where, *TEXT_KEYS)
    query = _IMAGE_PLACEHOLDER.sub("", told).strip()
    answer = _unwrapped(answer_text(value, where, *ANSWER_KEYS), where)
    if any(value.get(key) is not None for key in ("confounder", "confounder_text")):
        fields["query"], fields["answer"] = query, optional_text(value, *CANDIDATE_KEYS) or answer
        return _pair_of_sides(fields, value, where)
    names = images(value, where, *IMAGE_KEYS)
    if (asked := len(_IMAGE_PLACEHOLDER.findall(told))) > len(names):
        raise DataError(
            f"{where}: {asked} image placeholders in the text and {len(names)} images; expected as many"
        )
    letter = answer.strip("(). ")
    told_kind = value.get(
        "kind"
    )  # "pair" or "question" in what `pairs export` writes, where nothing is to be guessed
    is_question = told_kind == "question" or (
        bool(read_options(value, where) or _split_options(query)[1]) and not _names_candidate(value)
    )
    if len(names) == 2 and letter in ("A", "B") and not is_question:
        fields["query"], fields["answer"] = _query_and_candidate(value, query, where)
        if told_kind != "pair":
            value = _options_from_query(fields, value, where)
        return _pair(fields, value, where, names if letter == "A" else names[::-1])
    fields["query"], fields["answer"] = query, answer
    if told_kind != "question":
        value = _options_from_query(fields, value, where)
    return _question(fields, value, where, names)


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
    texts = [optional_text(value, key) or "" for key in TEXT_KEYS]
    return optional_text(value, *CANDIDATE_KEYS) is not None or any(map(_QUESTION_AND_ANSWER.search, texts))


def _pair_of_sides(fields: dict[str, Any], value: Mapping[str, Any], where: str) -> Draft:
    """Of the keys context and confounder: texts when both are, else images; or of context_text and confounder_text."""
    texts = {side: value.get(side) or value.get(f"{side}_text") for side in SIDES}
    if all(isinstance(told, str) for told in texts.values()):
        return _pair({**fields, **texts}, value, where, [])
    return _pair(fields, value, where, [image(value.get(side), where, side) for side in SIDES])


def _pair(fields: dict[str, Any], value: Mapping[str, Any], where: str, names: list[str | bytes]) -> Draft:
    fields["confounder_answer"] = optional_text(value, "confounder_answer")
    _set_answer_type(fields, value, where)
    return Draft(where=where, kind="pairs", fields=fields, images=tuple(names))


def _question(
    fields: dict[str, Any], value: Mapping[str, Any], where: str, names: list[str | bytes]
) -> Draft:
    fields["context_text"] = optional_text(value, "context_text", "context") or ""
    _set_answer_type(fields, value, where)
    return Draft(where=where, kind="questions", fields=fields, images=tuple(names))


def _query_and_candidate(value: Mapping[str, Any], query: str, where: str) -> tuple[str, str]:
    candidate = optional_text(value, *CANDIDATE_KEYS)
    if candidate is not None:
        return query, candidate
    for key in TEXT_KEYS:
        found = _QUESTION_AND_ANSWER.search(optional_text(value, key) or "")
        if found:
            return _IMAGE_PLACEHOLDER.sub("", found["query"]).strip(), found["answer"].strip()
    expected = "expected candidate_answer or a text with lines 'Question: ...' and 'Answer: ...'"
    raise DataError(f"{where}: a pair without a candidate answer, {expected}")


def _shared_fields(value: Mapping[str, Any], row_id: str, where: str, licence: str) -> dict[str, Any]:
    objects = {name: json_object(value, where, name) for name in ("provenance", "verdicts")}
    if not objects["provenance"].get("licence"):
        objects["provenance"].pop("licence", None)
    named = {
        "licence": optional_text(value, "licence", "license")
        or objects["provenance"].get("licence")
        or licence,
        "source": optional_text(value, "source", "data_source"),
    }
    told = {name: found for name, found in named.items() if found}
    return {
        "id": row_id,
        "domain": optional_text(value, "domain", "category") or "",
        "recipe": optional_text(value, "recipe") or "",
        "provenance": {**further(value, KNOWN_KEYS), **told, **objects["provenance"]},
        "verdicts": objects["verdicts"],
    }


def _options_from_query(fields: dict[str, Any], value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The row with the lettered options that end the query, when it has none of its own and the answer is one of them."""
    if read_options(value, where):
        return value
    query, found = _split_options(fields["query"])
    letter = matching.choice_letter(fields["answer"], found) if found else None
    if letter is None:
        return value
    fields["query"], fields["answer"] = query, letter
    return {**value, "options": list(found)}


def _split_options(query: str) -> tuple[str, tuple[str, ...]]:
    """A query and the options that end it, lettered from A on: a line each, or in a line that begins with "Choices:"."""
    if inline := _INLINE_OPTIONS.search(query):
        _, *pieces = _INLINE_LETTER.split(query[inline.end() :])
        letters, rest = pieces[::2], query[: inline.start()]
        # "(A) (B) (C)": the options stand in the picture
        options = [text.strip(" ,;\n") or letter for letter, text in zip(letters, pieces[1::2], strict=True)]
    else:
        lines, letters, options = query.splitlines(), [], []
        while lines and (not lines[-1].strip() or _LETTERED_LINE.fullmatch(lines[-1].strip())):
            if line := _LETTERED_LINE.fullmatch(lines.pop().strip()):
                letters, options = [line[1], *letters], [line[2], *options]
        rest = "\n".join(lines)
    in_order = "".join(letters) == string.ascii_uppercase[: len(letters)]
    return (rest, tuple(options)) if rest.strip() and options and in_order else (query, ())


def _set_answer_type(fields: dict[str, Any], value: Mapping[str, Any], where: str) -> None:
    """Sets options and answer_type; an answer that is the text of an option becomes its letter."""
    fields["options"] = read_options(value, where)
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
    elif fields["options"]:
        raise DataError(
            f"{where}: answer {fields['answer']!r} is none of the {len(fields['options'])} options, expected a letter or the text of one "
            "(a number is no letter)"
        )
    fields["answer_type"] = answer_type
    for name in ("answer", "confounder_answer"):
        if answer_type == "choice" and fields.get(name) is not None:
            letter = matching.choice_letter(fields[name], fields["options"])
            fields[name] = letter or fields[name].strip("(). ")


def _guess_answer_type(answer: str) -> str:
    if answer.casefold() in ("true", "false", "yes", "no"):
        return "boolean"
    if re.fullmatch(r"[-+]?\d[\d,]*(\.\d+)?|[-+]?\.\d+", answer):
        return "numeric"
    return "math" if "\\" in answer or "$" in answer else "exact"
