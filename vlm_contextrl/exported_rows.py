"""What a row is called in the formats of others (`exports`): one record of keys per row.

Licence, source, provenance and verdicts go with every record, the last two as JSON texts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row
from vlm_contextrl.prompts import Message, Style, selection_messages, vqa_messages
from vlm_contextrl.row_schema import Kind, arrow_schema, to_record

Record = dict[str, Any]
Save = Callable[
    [EncodedImage, str], str
]  # an image and what it is called within its row -> the name of its file


def supporting_letter(row_id: str, seed: int) -> str:
    """The letter of the image that supports the answer, at random."""
    return random.Random(f"order:{seed}:{row_id}").choice("AB")


def folder_record(row: Row, save: Save) -> Record:
    """A line of an image folder's metadata.jsonl."""
    record = {**_told(row), "answer": row.answer}
    if isinstance(row, QuestionRow):
        names = [save(image, str(index)) for index, image in enumerate(row.images)]
        images = {"file_name": names[0]} if len(names) == 1 else {"image_file_names": names} if names else {}
        return {**images, **record, **_context_text(row)}
    if isinstance(row.context, EncodedImage) and isinstance(row.confounder, EncodedImage):
        names = [save(row.context, "context"), save(row.confounder, "confounder")]
        return {"context_file_name": names[0], "confounder_file_name": names[1], **record}
    return {**record, "context_text": row.context, "confounder_text": row.confounder}


def official_record(row: Row, save: Save, seed: int) -> Record:
    """A line of the official release's jsonl; DataError for text contexts, which it has no key for."""
    record = _told(row)
    if isinstance(row, QuestionRow):
        problem = _flat(vqa_messages(row.query, len(row.images), row.options, row.context_text, "plain"))
        names = [save(image, str(index)) for index, image in enumerate(row.images)]
        return {**record, "problem": problem, "images": names, "answer": row.answer, **_context_text(row)}
    if not isinstance(row.context, EncodedImage):
        expected = "expected images; the formats imagefolder, trl and parquet take texts"
        raise DataError(f"pair {row.id!r}: its contexts are texts, {expected}")
    letter, contexts = _shuffled(row, seed)
    names = [save(image, name) for image, name in zip(contexts, "AB", strict=True)]
    problem = _flat(selection_messages(row.query, row.answer, row.options))
    return {**record, "problem": problem, "images": names, "candidate_answer": row.answer, "answer": letter}


def trl_record(row: Row, seed: int, style: Style, with_images: bool) -> Record:
    """A row of TRL's columns. with_images: whether the dataset has any; templates of text models take plain texts only."""
    record = _told(row)
    if isinstance(row, QuestionRow):
        messages = vqa_messages(row.query, len(row.images), row.options, row.context_text, style)
        images: Sequence[Any] = row.images
        record |= {"solution": row.answer, "context_text": row.context_text}
    else:
        letter, contexts = _shuffled(row, seed)
        record |= {
            "solution": letter,
            "candidate_answer": row.answer,
            "context_text": None,
            "confounder_text": None,
        }
        if isinstance(row.context, EncodedImage):
            images, messages = contexts, selection_messages(row.query, row.answer, row.options)
        else:
            images, messages = [], selection_messages(row.query, row.answer, row.options, "text", contexts)
            record |= {"context_text": row.context, "confounder_text": row.confounder}
    if not with_images:
        return {**record, "prompt": [{"role": "user", "content": _flat(messages)}]}
    parts = [{"text": None, **part} for part in messages[0]["content"]]
    pictures = [{"bytes": image.data, "path": None} for image in images]
    return {**record, "prompt": [{"role": "user", "content": parts}], "images": pictures}


def trl_schema(kind: Kind, with_images: bool) -> Any:
    """The pyarrow schema of `trl_record`, Hugging Face features included."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    content = List({"type": text, "text": text}) if with_images else text
    own = (
        ("candidate_answer", "confounder_answer", "context_text", "confounder_text")
        if kind == "pairs"
        else ("context_text",)
    )
    further = ("answer_type", "domain", "recipe", "licence", "source", "provenance", "verdicts")
    features = {
        "prompt": List({"role": text, "content": content}),
        **({"images": List(Image())} if with_images else {}),
        **dict.fromkeys(("solution", "kind", "id", "query", *own, *further), text),
        "options": List(text),
    }
    return Features(features).arrow_schema


def parquet_record(row: Row) -> Record:
    """The columns of a dataset folder, and kind, licence and source."""
    return {**to_record(row), **{name: _told(row)[name] for name in ("kind", "licence", "source")}}


def parquet_schema(kind: Kind) -> Any:
    """The pyarrow schema of `parquet_record`, Hugging Face features included."""
    from datasets import Features, Value

    own = Features.from_arrow_schema(arrow_schema(kind))
    return Features({**own, **dict.fromkeys(("kind", "licence", "source"), Value("string"))}).arrow_schema


def _told(row: Row) -> Record:
    """What every format tells in the same words: all but the contexts and the answer."""
    source = row.provenance.get("source")
    other = {"confounder_answer": row.confounder_answer} if isinstance(row, ContrastivePair) else {}
    return {
        "kind": "pair" if isinstance(row, ContrastivePair) else "question",
        "id": row.id,
        "query": row.query,
        **other,
        "answer_type": row.answer_type,
        "options": list(row.options),
        "domain": row.domain,
        "recipe": row.recipe,
        "licence": row.provenance["licence"],
        "source": source
        if source is None or isinstance(source, str)
        else json.dumps(source, ensure_ascii=False),
        "provenance": json.dumps(row.provenance, ensure_ascii=False),
        "verdicts": json.dumps(row.verdicts, ensure_ascii=False),
    }


def _context_text(row: QuestionRow) -> Record:
    return {"context_text": row.context_text} if row.context_text else {}


def _shuffled(pair: ContrastivePair, seed: int) -> tuple[str, list[Any]]:
    """The supporting letter, and both contexts in that order."""
    letter = supporting_letter(pair.id, seed)
    return letter, [pair.context, pair.confounder] if letter == "A" else [pair.confounder, pair.context]


def _flat(messages: Sequence[Message]) -> str:
    """A prompt as one text, <image> where a picture stands."""
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in messages[0]["content"])
