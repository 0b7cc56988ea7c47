"""Result files: written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import InputError

_ODD = "backslashreplace"  # half a surrogate pair, as in a file name that is no UTF-8; in JSON such an escape is read back


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
            path.write_text(text, encoding="utf-8", errors=_ODD)
            return
        unfinished.write_text(text, encoding="utf-8", errors=_ODD)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
