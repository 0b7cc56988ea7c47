"""Single values of foreign rows: texts, images, options, chat prompts. Errors are one line that starts with `where`."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

from vlm_contextrl.errors import DataError

MAX_FURTHER_CHARACTERS = 1000
_SHOWN_CHARACTERS = 80


def as_text(value: object) -> str:
    """A JSON value as a text: itself, or as JSON writes it (`true`, `2.5`)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def optional_text(value: Mapping[str, Any], *keys: str) -> str | None:
    """The first of some keys that holds something, as a text."""
    found = next((value[key] for key in keys if value.get(key) is not None), None)
    return None if found is None else as_text(found)


def text(value: Mapping[str, Any], where: str, *keys: str) -> str:
    """As `optional_text`; DataError when there is none."""
    found = optional_text(value, *keys)
    if found is None:
        raise DataError(f"{where}: no {' or '.join(keys)}")
    return found


def answer_text(value: Mapping[str, Any], where: str, *keys: str) -> str:
    """As `text`; a list must hold one answer."""
    key = next((key for key in keys if value.get(key) is not None), keys[0])
    found = value.get(key)
    if isinstance(found, list):
        if len(found) != 1:
            raise DataError(f"{where}: {key} holds {len(found)} answers, expected one")
        return text({key: found[0]}, where, key)
    return text(value, where, *keys)


def json_object(value: Mapping[str, Any], where: str, name: str) -> dict[str, Any]:
    """An object, or the JSON text of one; empty when there is none."""
    found = value.get(name)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise DataError(f"{where}: {name} is no JSON ({error}), expected an object") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DataError(f"{where}: {name} is a {type(found).__name__}, expected an object")
    return dict(found)


def options(value: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Options as a list, an object by letter, or a text that reads like a list; none when the key is missing or empty."""
    found = value.get("options")
    found = value.get("choices") if found is None else found
    if isinstance(found, str) and found.strip():
        found = _read_list(found)
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found) if found[key] is not None]
    found = found or []
    if not isinstance(found, list):
        raise DataError(f"{where}: options is a {type(found).__name__}, expected a list of texts")
    return tuple(as_text(option) for option in found if option is not None)


def _read_list(told: str) -> object:
    """`["a", "b"]` or `['a', 'b']` as a list; anything else as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(told)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    return told


def images(value: Mapping[str, Any], where: str, *keys: str) -> list[str | bytes]:
    """The images under the first key that holds something: names of files, or the bytes of files."""
    key = next((key for key in keys if value.get(key) is not None), None)
    if key is None:
        return []
    found = value[key] if isinstance(value[key], list) else [value[key]]
    return [image(entry, where, key) for entry in found]


def image(entry: object, where: str, key: str) -> str | bytes:
    """A name, bytes, or an object with `bytes` or `path` (Hugging Face's Image)."""
    found = entry
    if isinstance(entry, dict):
        found = entry.get("bytes") if entry.get("bytes") is not None else entry.get("path")
    if not isinstance(found, str | bytes) or not found:
        shown = repr(entry)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
        raise DataError(f"{where}: {key} holds {shown}, expected the name of an image file")
    return found


def further(value: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Other keys with a number or a short text, for the provenance."""
    return {key: found for key, found in value.items() if key not in known and _is_short(found)}


def _is_short(found: object) -> bool:
    if isinstance(found, float):
        return math.isfinite(found)
    return isinstance(found, int) or (isinstance(found, str) and len(found) <= MAX_FURTHER_CHARACTERS)


def without_messages(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A row whose chat `prompt` has become its text, with <image> where a picture stands; a system message goes to `system`."""
    messages = value.get("prompt")
    if not isinstance(messages, list):
        return value
    told: dict[str, str] = {}
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    if roles not in (["user"], ["system", "user"]):
        found = ", ".join(map(str, roles)) or "no message"
        raise DataError(
            f"{where}: prompt holds {found}, expected one user message, after a system message or not"
        )
    for message in messages:
        told[message["role"]] = _content_text(message.get("content"), where)
    system = {"system": told["system"]} if told.get("system") else {}
    return {**value, "prompt": told["user"], **system}


def _content_text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    told = ""
    for part in parts:
        fields = part if isinstance(part, dict) else {}
        if fields.get("type") == "image":
            told += "<image>\n"
        elif fields.get("type") == "text" and isinstance(fields.get("text"), str):
            told += fields["text"]
        else:
            raise DataError(
                f"{where}: prompt holds a part of type {fields.get('type')!r}, expected text or image"
            )
    return told
