"""Answers as they come: one JSON line per sample, appended and flushed, so that a killed run goes on where it was.

Several processes write files of their own (`answers.RANK.jsonl`, one writer at a time) and read all of them. A last line that a
kill has torn is cut off.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_contextrl.appended_lines import append_lines, cut_torn_line, read_lines
from vlm_contextrl.result_files import write_json

TOTAL_NAME = "total.json"
Key = tuple[str, int]  # part, number of the row


@contextmanager
def opened_journal(folder: Path, rank: int = 0) -> Iterator[Journal]:
    """The journal of one process, which no other process writes meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"answers.{rank}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what is left of a killed run ends at once (worker.py)
        yield Journal(folder, rank)


class Journal:
    """The answers of one benchmark in one run."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self._path = folder / f"answers.{rank}.jsonl"
        cut_torn_line(self._path)
        self._known = {(line["part"], line["doc_id"]): line for line in read_journal(folder)}

    def find(self, key: Key, prompt_hash: str) -> Mapping[str, Any] | None:
        """What was answered to this very prompt, or None."""
        line = self._known.get(key)
        return line if line is not None and line["prompt_hash"] == prompt_hash else None

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Write answers and see them onto the disk."""
        append_lines(self._path, lines)
        self._known |= {(line["part"], line["doc_id"]): line for line in lines}


def read_journal(folder: Path) -> Iterator[dict[str, Any]]:
    """All whole lines of all processes, oldest first within one. DataError for a broken one in the middle."""
    for path in sorted(folder.glob("answers.*.jsonl")):
        yield from read_lines(path, "delete the line, its sample is then asked again")


def expect(folder: Path, samples: int) -> None:
    """Say how many samples there will be."""
    write_json(folder / TOTAL_NAME, {"samples": samples})


def progress_of(folder: Path) -> tuple[int, int | None]:
    """Samples done, and of how many (None: not known yet), as another process sees them."""
    total, probed = folder / TOTAL_NAME, folder / "per_pair.jsonl"
    done = sum(path.read_bytes().count(b"\n") for path in folder.glob("answers.*.jsonl"))
    if probed.exists():
        done += max(0, probed.read_bytes().count(b"\n") - 1)  # less its header
    return done, json.loads(total.read_text(encoding="utf-8"))["samples"] if total.exists() else None
