"""Files of JSON lines that grow: what was appended survives a kill, a last line that a kill has torn is cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append and see it onto the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, advice: str) -> Iterator[dict[str, Any]]:
    """All whole lines; none when there is no such file. DataError for one that is no JSON object; advice: what to do about it."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn or empty
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); {advice}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}: found {value!r:.60}, expected a JSON object; {advice}")
        yield value


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last newline, before anything is appended."""
    if path.exists():
        whole = path.read_bytes()
        kept = whole.rfind(b"\n") + 1
        if kept < len(whole):
            os.truncate(path, kept)
