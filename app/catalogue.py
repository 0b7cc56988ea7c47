"""What the app knows of every pair of a dataset before anybody looks at it: texts, categories and measures, as columns.

Opening reads the columns without the images. What needs pixels (does the row decode, how much of it changed) is found by `examine`, in a
thread of its own, and kept in a cache file under the name of the dataset's content, so that the next start knows it at once.

A row that cannot be used is an entry like the others, with its fault: it can be found, shown and named, and the rest works.

    verdict     who judged the pair last, and how: a person, the verifier, a judge, the exact checks, nobody
    score       of the verifier: the smaller one of its share of right answers on the context and of other answers on the confounder
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_contextrl.errors import DataError
from vlm_contextrl.images import changed_fraction
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.prompts import option_lines
from vlm_contextrl.report.chart_parts import finite
from vlm_contextrl.result_files import write_json
from vlm_contextrl.row_schema import json_object, to_record
from vlm_contextrl.shards import ShardRows
from vlm_contextrl.storage import content_hash, read_manifest, read_pairs

CATEGORIES = ("domain", "recipe", "verdict")
MEASURES = ("score", "similarity", "changed_fraction")
NONE = "(none)"
_TEXT_COLUMNS = [
    "id", "query", "answer", "confounder_answer", "options", "domain", "recipe", "provenance", "verdicts",
]  # fmt: skip
_SAVE_EVERY_ROWS = 2000


@dataclass(frozen=True)
class Entry:
    """One row of the columns. row: in the dataset, None for one that no reader gives. fault: why it cannot be used, "" when it can."""

    id: str
    row: int | None
    text: str
    categories: Mapping[str, str]
    measures: Mapping[str, float]
    fault: str = ""


class Catalogue:
    """The pairs of a dataset by index, id or key. A key is a short name of an id that is safe in an address."""

    def __init__(
        self, path: Path, rows: Sequence[ContrastivePair], entries: Sequence[Entry], digest: str
    ) -> None:
        self.path, self.content_hash = path, digest
        self.recipe = read_manifest(path).recipe if isinstance(rows, ShardRows) else "import"
        self._rows, self._at_row = rows, [entry.row for entry in entries]
        self.ids = [entry.id for entry in entries]
        self.texts = [entry.text for entry in entries]
        self.keys = [_key(digest, entry.id) for entry in entries]
        self.by_id = {name: index for index, name in enumerate(self.ids)}
        self.by_key = {key: index for index, key in enumerate(self.keys)}
        assert len(self.by_key) == len(self.by_id) == len(entries), "ids are unique, and so are their keys"
        self.names: dict[str, list[str]] = {}
        self.codes: dict[str, NDArray[np.int64]] = {}
        for category in CATEGORIES:
            values = [entry.categories[category] for entry in entries]
            self.names[category] = [name for name, _ in Counter(values).most_common()]
            code = {name: number for number, name in enumerate(self.names[category])}
            self.codes[category] = np.array([code[value] for value in values], dtype=np.int64)
        self.measures = {
            name: np.array([entry.measures[name] for entry in entries], dtype=np.float64) for name in MEASURES
        }
        self.faults = {index: entry.fault for index, entry in enumerate(entries) if entry.fault}
        self.examined = 0  # rows whose pixels were looked at

    def __len__(self) -> int:
        return len(self.ids)

    def pair(self, index: int) -> ContrastivePair:
        """The pair; DataError, remembered as the entry's fault, when it cannot be used."""
        row = self._at_row[index]
        if row is None or index in self.faults:
            raise DataError(self.faults[index])
        try:
            return self._rows[row]
        except DataError as error:
            self.faults[index] = str(error)
            raise

    def examine(self, cache: Path | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Look at the pixels of every pair: faults, and changed areas that the dataset does not tell. Goes on where `cache` ends."""
        file = cache / f"{self._version()}.json" if cache else None
        self._recall(file)
        while self.examined < len(self) and not stopped():
            index = self.examined
            with suppress(DataError):
                pair = self.pair(index)
                if math.isnan(self.measures["changed_fraction"][index]):
                    self.measures["changed_fraction"][index] = _changed(pair)
            self.examined += 1
            if self.examined % _SAVE_EVERY_ROWS == 0 or self.examined == len(self):
                self._save(file)

    def _version(self) -> str:
        """The content hash and the state of the files: a damaged file keeps the hash of its manifest."""
        digest = hashlib.sha256(self.content_hash.encode())
        for file in sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]:
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()[:32]

    def _recall(self, file: Path | None) -> None:
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file else {}
            examined, faults, changed = int(found["examined"]), found["faults"], found["changed_fraction"]
            known = {int(index): float(value) for index, value in changed.items()}
            broken = {int(index): str(fault) for index, fault in faults.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # no cache, or one that cannot be read: it is made again
        if not 0 <= examined <= len(self) or any(not 0 <= i < len(self) for i in (*known, *broken)):
            return
        self.faults = broken | self.faults
        for index, value in known.items():
            self.measures["changed_fraction"][index] = value
        self.examined = examined

    def _save(self, file: Path | None) -> None:
        if file is None:
            return
        changed = self.measures["changed_fraction"]
        with suppress(OSError, ValueError):  # a cache: without a place for it the next start looks again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                file,
                {
                    "examined": self.examined,
                    "faults": {str(index): fault for index, fault in dict(self.faults).items()},
                    "changed_fraction": {
                        str(i): float(changed[i]) for i in np.flatnonzero(~np.isnan(changed))
                    },
                },
            )


def open_catalogue(path: Path, *, licence: str = "") -> Catalogue:
    """The catalogue of a dataset of pairs in any format that `read_pairs` takes, and with its DataErrors."""
    path = Path(path)
    rows = read_pairs(path, licence=licence)
    entries = list(_entries(path, rows))
    refused: Sequence[tuple[str, str]] = getattr(rows, "rejects", ())
    taken = {entry.id for entry in entries}
    for number, (row_id, fault) in enumerate(refused):
        name = row_id if row_id not in taken else f"{row_id} (rejected {number})"
        taken.add(name)
        entries.append(_broken(name, None, fault))
    return Catalogue(path, rows, entries, content_hash(path))


def cache_folder() -> Path:
    """Where the app keeps what it found out: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm_contextrl" / "app"


def verdict_of(verdicts: Mapping[str, Any]) -> str:
    """Who judged last, and how, in words."""
    said = {name: value for name, value in verdicts.items() if isinstance(value, Mapping)}
    if "human" in said:
        return f"human: {said['human'].get('decision', NONE)}"
    if "verifier" in said:
        found = score_of(verdicts)
        return "verifier agrees" if found > 0.5 else "verifier disagrees"
    for name, words in (("judge", "judge"), ("exact", "exact checks only")):
        if name in said:
            return words
    return NONE


def score_of(verdicts: Mapping[str, Any]) -> float:
    """The verifier's score in [0, 1]; NaN without one."""
    said = verdicts.get("verifier")
    shares = (
        [finite(said.get(f"{side}_share")) for side in ("context", "confounder")]
        if isinstance(said, Mapping)
        else []
    )
    right, wrong = shares if len(shares) == 2 else (None, None)
    return math.nan if right is None or wrong is None else min(right, 1 - wrong)


def _entries(path: Path, rows: Sequence[ContrastivePair]) -> Iterator[Entry]:
    if not isinstance(rows, ShardRows):
        for row, pair in enumerate(rows):
            yield _entry(row, to_record(pair), pair.id)
        return
    for row, record in enumerate(rows.records(_TEXT_COLUMNS)):
        yield _entry(row, record, f"{path}: row {row}")


def _entry(row: int, record: Mapping[str, Any], where: str) -> Entry:
    row_id = str(record["id"] or f"row {row}")
    try:
        provenance = json_object(record["provenance"], f"{where}: provenance")
        verdicts = json_object(record["verdicts"], f"{where}: verdicts")
        options = option_lines([str(option) for option in record["options"] or ()])
    except DataError as error:
        return _broken(row_id, row, str(error))
    exact = verdicts.get("exact")
    measured = exact.get("changed_fraction") if isinstance(exact, Mapping) else None
    measures = {
        "score": score_of(verdicts),
        "similarity": _number(provenance.get("similarity")),
        "changed_fraction": _number(provenance.get("changed_fraction", measured)),
    }
    said = (
        row_id,
        record["query"],
        record["answer"],
        record["confounder_answer"],
        options,
        provenance.get("edit"),
    )
    categories = {
        "domain": record["domain"] or NONE,
        "recipe": record["recipe"] or NONE,
        "verdict": verdict_of(verdicts),
    }
    return Entry(row_id, row, "\n".join(str(part) for part in said if part).casefold(), categories, measures)


def _broken(row_id: str, row: int | None, fault: str) -> Entry:
    categories = dict.fromkeys(CATEGORIES, NONE)
    return Entry(row_id, row, row_id.casefold(), categories, dict.fromkeys(MEASURES, math.nan), fault)


def _number(value: object) -> float:
    found = finite(value)
    return math.nan if found is None else found


def _changed(pair: ContrastivePair) -> float:
    if not (isinstance(pair.context, EncodedImage) and isinstance(pair.confounder, EncodedImage)):
        return math.nan
    return changed_fraction(pair.context.decode(), pair.confounder.decode())


def _key(digest: str, row_id: str) -> str:
    return hashlib.sha256(f"{digest}:{row_id}".encode()).hexdigest()[:24]
