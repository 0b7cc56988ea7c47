"""Rows as table columns, and back.

Both kinds     id, query, answer, answer_type, domain, recipe      string
               options                                     list of string
               provenance, verdicts                        a JSON object as a string
Pairs          confounder_answer                           string or null
               context, confounder                         Image or null
               context_text, confounder_text               string or null
Questions      images                                      list of Image
               context_text                                string, "" when there is none

A pair of images has null in both text columns, a pair of texts has null in both image columns. An Image is
the Hugging Face `datasets.Image` feature with embedded bytes: struct<bytes: binary, path: string (null)>.
The features are written into the schema's metadata by hand: writing needs no `datasets` and no cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlm_contextrl.errors import DataError
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, QuestionRow, Row, check_pair, check_question

Kind = Literal["pairs", "questions"]
ColumnType = Literal["string", "strings", "image", "images"]

_LAST_COLUMNS: dict[str, ColumnType] = {
    "options": "strings",
    "answer_type": "string",
    "domain": "string",
    "recipe": "string",
    "provenance": "string",
    "verdicts": "string",
}
COLUMNS: dict[Kind, dict[str, ColumnType]] = {
    "pairs": {
        "id": "string",
        "query": "string",
        "answer": "string",
        "confounder_answer": "string",
        "context": "image",
        "confounder": "image",
        "context_text": "string",
        "confounder_text": "string",
        **_LAST_COLUMNS,
    },
    "questions": {
        "id": "string",
        "query": "string",
        "answer": "string",
        "images": "images",
        "context_text": "string",
        **_LAST_COLUMNS,
    },
}


def kind_of(row: object) -> Kind:
    """Which kind of dataset a row belongs to; DataError for anything that is no row."""
    if isinstance(row, ContrastivePair):
        return "pairs"
    if isinstance(row, QuestionRow):
        return "questions"
    raise DataError(f"found a {type(row).__name__} among the rows, expected ContrastivePair or QuestionRow")


def check_row(row: Row) -> str | None:
    """`check_pair` or `check_question`, whichever fits."""
    return check_pair(row) if isinstance(row, ContrastivePair) else check_question(row)


def images_of(row: Row) -> tuple[EncodedImage, ...]:
    """Every image of a row: context and confounder, or the images of a question."""
    if isinstance(row, QuestionRow):
        return row.images
    return tuple(side for side in (row.context, row.confounder) if isinstance(side, EncodedImage))


def texts_of(row: Row) -> tuple[str, ...]:
    """Every text context of a row."""
    if isinstance(row, QuestionRow):
        return (row.context_text,) if row.context_text else ()
    return tuple(side for side in (row.context, row.confounder) if isinstance(side, str))


def row_digest(row: Row) -> bytes:
    """sha256 of what a row says: ids, texts, answers and the pixels (not the file bytes) of its images."""
    other = row.confounder_answer if isinstance(row, ContrastivePair) else None
    pixels = [image.pixel_hash() for image in images_of(row)]
    said = [row.id, row.query, row.answer, other, row.answer_type, row.options, texts_of(row), pixels]
    return hashlib.sha256(json.dumps(said).encode()).digest()


def arrow_schema(kind: Kind) -> Any:
    """The pyarrow schema of a kind, with the Hugging Face features in its metadata."""
    import pyarrow as pa

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    arrow_types: dict[ColumnType, Any] = {
        "string": pa.string(),
        "strings": pa.list_(pa.string()),
        "image": image,
        "images": pa.list_(image),
    }
    text_feature = {"dtype": "string", "_type": "Value"}
    image_feature = {"_type": "Image"}
    features: dict[ColumnType, dict[str, Any]] = {
        "string": text_feature,
        "strings": {"feature": text_feature, "_type": "List"},
        "image": image_feature,
        "images": {"feature": image_feature, "_type": "List"},
    }
    columns = COLUMNS[kind]
    info = {"info": {"features": {name: features[column] for name, column in columns.items()}}}
    return pa.schema(
        [(name, arrow_types[column]) for name, column in columns.items()],
        metadata={"huggingface": json.dumps(info)},
    )


def to_record(row: Row) -> dict[str, Any]:
    """A row as one value per column."""
    record: dict[str, Any] = {
        "id": row.id,
        "query": row.query,
        "answer": row.answer,
        "options": list(row.options),
        "answer_type": row.answer_type,
        "domain": row.domain,
        "recipe": row.recipe,
        "provenance": json.dumps(row.provenance, ensure_ascii=False),
        "verdicts": json.dumps(row.verdicts, ensure_ascii=False),
    }
    if isinstance(row, QuestionRow):
        record["images"] = [_image_value(image) for image in row.images]
        record["context_text"] = row.context_text
        return record
    record["confounder_answer"] = row.confounder_answer
    for name, side in (("context", row.context), ("confounder", row.confounder)):
        record[name] = _image_value(side) if isinstance(side, EncodedImage) else None
        record[f"{name}_text"] = side if isinstance(side, str) else None
    return record


def from_record(kind: Kind, record: Mapping[str, Any], where: str, known_hashes: Sequence[str] = ()) -> Row:
    """The row of a record, not yet checked; DataError that starts with `where` when a value cannot be read.

    known_hashes: pixel hashes of the row's images, when they were computed before.
    """
    hashes = iter(known_hashes)
    shared: dict[str, Any] = {
        name: record[name] for name in ("id", "query", "answer", "answer_type", "domain", "recipe")
    }
    shared["options"] = tuple(record["options"] or ())
    for name in ("provenance", "verdicts"):
        shared[name] = json_object(record[name], f"{where}: {name}")

    def image(value: Mapping[str, Any] | None, column: str) -> EncodedImage:
        data, origin = (value or {}).get("bytes"), f"{where}: {column}"
        if not isinstance(data, bytes):
            raise DataError(f"{origin}: {value!r}, expected embedded image bytes")
        known = next(hashes, "")
        return EncodedImage.with_known_hash(data, origin, known) if known else EncodedImage(data, origin)

    if kind == "questions":
        images = tuple(image(value, f"images[{i}]") for i, value in enumerate(record["images"] or ()))
        return QuestionRow(images=images, context_text=record["context_text"] or "", **shared)
    sides: dict[str, Any] = {}
    for name in ("context", "confounder"):
        value = record[name]
        sides[name] = record[f"{name}_text"] if value is None else image(value, name)
    return ContrastivePair(confounder_answer=record["confounder_answer"], **sides, **shared)


def _image_value(image: EncodedImage) -> dict[str, Any]:
    return {"bytes": image.data, "path": None}


def json_object(text: object, where: str) -> dict[str, Any]:
    """The JSON object in a provenance or verdicts column; DataError when it is none."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}), expected a JSON object") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is {text!r}, expected a JSON object")
    return value
