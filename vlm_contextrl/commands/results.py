"""How commands show and save what they found."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import InputError


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write whole or not at all; nothing to do without a path."""
    if path is not None:
        write_text(path, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path | None, records: Iterable[Mapping[str, Any]]) -> None:
    """As `write_json`, one object per line."""
    if path is not None:
        lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
        write_text(path, "".join(f"{line}\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write beside the final place, then rename; into a pipe or device as it is. Raises InputError when it cannot be written."""
    path = path.resolve()
    unfinished = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.unfinished")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def show_table(title: str, headers: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on stdout; cells are shown as they are, the first column on the left, numbers on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    # Text from a dataset is data: no markup, no emoji codes, no colours by guess.
    Console(markup=False, emoji=False, highlight=False).print(table)


def show_summary(summary: Mapping[str, Any]) -> None:
    """One `key: value` line per entry, nested mappings on one line, lists by their length."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {number(entry)}" for name, entry in value.items()) or None
        if isinstance(value, list):
            value = f"{len(value)} (all of them with --json)" if value else None
        if value is not None:
            print(f"{key}: {number(value)}")


def number(value: object) -> str:
    """Short form of a number; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
