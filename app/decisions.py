"""What reviewers decided: a file of JSON lines that only grows. The state of a pair is what the lines say, read in order.

    {"id", "time", "dataset", "pair", "annotator", "decision": accept | reject | skip, "reason"}
    {"id", "time", "dataset", "pair", "annotator", "decision": "undo", "undoes": id of the line that no longer counts}

A decision is on the disk (fsync) before it is acknowledged, so that a kill loses none. A lock of the file system lets reviewers and servers
append in turn; whoever appends reads first what the others wrote. The last decision of each annotator on a pair stands. The file lies in a
folder of its own, never in the dataset, and carries the dataset's content hash in its name and in every line.

Left out: passwords per annotator. The name is taken as it is given.
"""

from __future__ import annotations

import json
import secrets
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from vlm_contextrl.appended_lines import append_lines, cut_torn_line
from vlm_contextrl.errors import DataError, InputError

Verdict = Literal["accept", "reject", "skip"]
STATES = ("undecided", "accepted", "rejected", "skipped", "disputed", "broken")
MAX_NAME_CHARACTERS, MAX_REASON_CHARACTERS = 60, 500
_KEYS = ("id", "time", "dataset", "pair", "annotator", "decision")
_PATIENCE_S = 20


@dataclass(frozen=True)
class Decision:
    """One line that is not an undo."""

    id: str
    time: str
    dataset: str
    pair: str
    annotator: str
    decision: Verdict
    reason: str = ""


class DecisionLog:
    """The decisions on one dataset. Safe to use from several threads, and beside other processes."""

    def __init__(self, folder: Path, dataset: Path, content_hash: str) -> None:
        """Raises InputError when the folder lies in the dataset or cannot be used, DataError when a line of the file cannot be read."""
        folder = folder.resolve()
        inside = dataset.resolve()
        if folder == inside or folder.is_relative_to(inside):
            raise InputError(
                f"{folder}: lies in the dataset {inside}, expected a folder outside it (--decisions)"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be made ({error.strerror}); name another folder (--decisions)"
            ) from error
        self.file = folder / f"decisions-{content_hash[:16]}.jsonl"
        self._content_hash = content_hash
        self._file_lock = FileLock(self.file.with_suffix(".lock"), timeout=_PATIENCE_S)
        self._thread_lock = threading.RLock()
        self._forget()
        with self._alone():
            pass

    # ------------------------------------------------------------ what stands

    def refresh(self) -> None:
        """Take in what others have appended."""
        with self._thread_lock:
            self._take_in()

    def standing(self, pair: str) -> list[Decision]:
        """The last decision of every annotator on a pair, the latest at the end."""
        with self._thread_lock:
            last = [stack[-1] for stack in self._stacks.get(pair, {}).values() if stack]
        return sorted(last, key=lambda decision: decision.time)

    def state(self, pair: str) -> str:
        """One of STATES, `broken` never. disputed: one annotator accepts, another rejects; a skip counts only where nobody did either."""
        said = {decision.decision for decision in self.standing(pair)}
        if {"accept", "reject"} <= said:
            return "disputed"
        words = {"accept": "accepted", "reject": "rejected", "skip": "skipped"}
        return next((state for verdict, state in words.items() if verdict in said), "undecided")

    def pairs(self) -> list[str]:
        """Ids of the pairs that were ever decided on."""
        with self._thread_lock:
            return list(self._stacks)

    def changed_since(self, seen: int) -> tuple[int, list[str]]:
        """How many lines there are by now, and the pairs that the lines after the first `seen` are about."""
        with self._thread_lock:
            return len(self._touched), self._touched[seen:]

    # ------------------------------------------------------------ appending

    def decide(self, annotator: str, pairs: Sequence[str], verdict: str, reason: str = "") -> tuple[str, ...]:
        """One line per pair, all on the disk when this returns: their ids. InputError for what cannot be written."""
        who, why = annotator_name(annotator), _line_of_text(reason, "reason", MAX_REASON_CHARACTERS)
        if verdict not in get_args(Verdict):
            raise InputError(f"decision is {verdict!r}, expected accept, reject or skip")
        if verdict == "reject" and not why:
            raise InputError("a rejection needs a reason: choose one or write one")
        head = {"time": _now(), "dataset": self._content_hash}
        with self._alone():
            lines = [
                {
                    "id": secrets.token_hex(8),
                    **head,
                    "pair": pair,
                    "annotator": who,
                    "decision": verdict,
                    "reason": why,
                }
                for pair in pairs
            ]
            self._append(lines)
        return tuple(line["id"] for line in lines)

    def undo(self, annotator: str, ids: Sequence[str]) -> list[str]:
        """Lines that take back decisions of this annotator that still stand; the pairs they were about."""
        who = annotator_name(annotator)
        head = {"time": _now(), "dataset": self._content_hash}
        with self._alone():
            found = [self._known[one] for one in ids if one in self._known]
            undone = [decision for decision in found if decision.annotator == who]
            lines = [
                {
                    "id": secrets.token_hex(8),
                    **head,
                    "pair": one.pair,
                    "annotator": who,
                    "decision": "undo",
                    "undoes": one.id,
                }
                for one in undone
            ]
            self._append(lines)
        return [decision.pair for decision in undone]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else appends; what they appended before is known, and a line that a kill has torn is cut off."""
        with self._thread_lock:
            try:
                with self._file_lock:
                    self._take_in()
                    if self.file.exists() and self.file.stat().st_size > self._offset:
                        cut_torn_line(self.file)
                    yield
            except Timeout as error:
                raise InputError(
                    f"{self._file_lock.lock_file}: held by another process for {_PATIENCE_S} s; end it and try again"
                ) from error
            except OSError as error:
                raise InputError(
                    f"{self.file}: cannot be written ({error.strerror}); nothing was decided"
                ) from error

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if lines:
            append_lines(self.file, lines)
            self._take_in()

    # ------------------------------------------------------------ reading

    def _forget(self) -> None:
        self._offset = 0
        self._stacks: dict[str, dict[str, list[Decision]]] = {}
        self._known: dict[str, Decision] = {}  # those that stand or could stand again, by id
        self._touched: list[str] = []

    def _take_in(self) -> None:
        """Whole lines after what is known; from the start when the file is shorter than that."""
        size = self.file.stat().st_size if self.file.exists() else 0
        if size < self._offset:
            self._forget()
        if size == self._offset:
            return
        with self.file.open("rb") as file:
            file.seek(self._offset)
            new = file.read(size - self._offset)
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            self._fold(self._parsed(line))
            self._offset += len(line)

    def _parsed(self, line: bytes) -> dict[str, str]:
        where = f"{self.file}, byte {self._offset}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{where}: not JSON ({error}); mend the line, or move the file away to begin anew"
            ) from error
        if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in _KEYS):
            raise DataError(
                f"{where}: found {value!r:.80}, expected an object with {', '.join(_KEYS)}; mend the line"
            )
        if value["dataset"] != self._content_hash:
            raise DataError(
                f"{where}: is about the dataset {value['dataset']:.16}, expected {self._content_hash:.16}"
            )
        return value

    def _fold(self, line: Mapping[str, str]) -> None:
        self._touched.append(line["pair"])
        stack = self._stacks.setdefault(line["pair"], {}).setdefault(line["annotator"], [])
        if line["decision"] == "undo":
            undone = self._known.pop(line.get("undoes", ""), None)
            if undone in stack:
                stack.remove(undone)
            return
        decision = Decision(**{key: line[key] for key in _KEYS}, reason=line.get("reason", ""))  # type: ignore[arg-type]
        stack.append(decision)
        self._known[decision.id] = decision


def annotator_name(name: str) -> str:
    """The name as it is written down. InputError when it is empty, too long or no single line."""
    found = _line_of_text(name, "annotator", MAX_NAME_CHARACTERS)
    if not found:
        raise InputError("annotator is empty: write your name before you decide")
    return found


def as_json(decision: Decision) -> dict[str, str]:
    """For `verdicts["human"]` of an exported pair."""
    return {key: value for key, value in asdict(decision).items() if key not in ("id", "pair", "dataset")}


def _line_of_text(text: str, name: str, limit: int) -> str:
    found = " ".join(str(text).split())
    if len(found) > limit:
        raise InputError(f"{name} has {len(found)} characters, expected at most {limit}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in found):
        raise InputError(f"{name} {found!r:.40} holds a character that cannot be shown")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
