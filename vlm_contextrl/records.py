"""Strict records, read from YAML: typed fields that carry their documentation, one-line errors.

A YAML file holds values only. Unknown keys fail with the nearest name; rules that span fields live on the record. `key=value` overrides
use dotted paths (`optim.learning_rate=1e-5`, `objective.1.weight=0.01`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from vlm_contextrl.errors import ConfigError

R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    """Strict base: no unknown keys, no silent change after the fact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def load_config(record: type[R], path: Path | None, overrides: Sequence[str] = ()) -> R:
    """Read a YAML file (or start empty), apply `key=value` overrides, validate. Raises ConfigError with one line."""
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: found {type(values).__name__} at the top level, expected keys and values"
            )
    for override in overrides:
        _apply(values, override)
    return validate(record, values, str(path) if path else "configuration")


def validate(record: type[R], values: dict[str, Any], where: str) -> R:
    """Validate plain values against a record; the first problem becomes one ConfigError line."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(record, error)}") from None


def describe(
    record: type[BaseModel], prefix: str = "", given: BaseModel | None = None
) -> Iterator[tuple[str, str, str]]:
    """Dotted name, default and description of every setting, those of records inside it, too. given: a default for the whole record."""
    for name, field in record.model_fields.items():
        inside = _records(field.annotation)
        default = getattr(given, name) if given else field.get_default(call_default_factory=True)
        if len(inside) == 1 and get_origin(field.annotation) is not list:
            if not isinstance(default, BaseModel):
                yield f"{prefix}{name}", _default(default), field.description or ""
            whole = default if isinstance(default, BaseModel) else None
            yield from describe(inside[0], f"{prefix}{name}.", whole)
        else:
            yield f"{prefix}{name}", _default(default), field.description or ""


def _default(value: Any) -> str:
    """As it would be written in YAML."""
    if value is PydanticUndefined:
        return "(needed)"
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return json.dumps(plain, ensure_ascii=False)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, for example optim.learning_rate=1e-5")
    try:
        value = _scalar(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not readable as YAML") from None
    node: Any = values
    *parents, last = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"override {override!r}: {key} does not lead to a setting") from None


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str) and text.strip()[:1] not in ('"', "'"):
        try:  # YAML 1.1 reads 1e-5 as a string
            return float(value)
        except ValueError:
            return value
    return value


def _explain(record: type[BaseModel], error: ValidationError) -> str:
    # A mistyped key of a required field is two problems; the unknown key is the one to read.
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path) or "top level"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = sorted(_fields_at(record, problem["loc"][:-1]))
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.55)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}{more}"
    if problem["type"] == "missing":
        return f"{where} is missing{more}"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{message}{more}" if where == "top level" else f"{where}: {message}{found}{more}"


def _fields_at(record: Any, loc: Sequence[int | str]) -> set[str]:
    """Field names of the record that a location leads to; among the terms of the loss the name of one decides."""
    for part in loc:
        found = _records(record)
        named = [
            r
            for r in found
            if "term" in r.model_fields and part in get_args(r.model_fields["term"].annotation)
        ]
        if named:
            record = named[0]
        elif isinstance(part, str):
            record = next((r.model_fields[part].annotation for r in found if part in r.model_fields), None)
    return {name for found_record in _records(record) for name in found_record.model_fields}


def _records(annotation: Any) -> list[type[BaseModel]]:
    """The records inside a type such as `list[A | B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for argument in get_args(annotation) for record in _records(argument)]
