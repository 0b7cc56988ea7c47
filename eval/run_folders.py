"""Run folders of `vlm-contextrl eval`, read for comparisons and pages: settings, results, samples. Nothing is written.

Settings are those of `RUN/run.json`, a benchmark is finished when `RUN/NAME/result.json` is there, its samples are in
`RUN/NAME/samples.jsonl`, `RUN/results.json` names what failed. What cannot be read is a DataError with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import DataError, InputError
from vlm_contextrl.eval.registry import BENCHMARKS

Key = tuple[str, str]  # part, id
Sample = Mapping[str, Any]
Samples = dict[Key, Sample]

_NEEDED: dict[str, type | tuple[type, ...]] = {
    "part": str,
    "id": (str, int),
    "correct": bool,
    "completion": str,
    "question": str,
    "answer": str,
    "options": list,
}


@dataclass(frozen=True)
class RunFolder:
    """A run.

    results: the finished benchmarks' result.json, in the order of the registry. probes, long_texts: the same of those. failed: reasons by
    name.
    """

    name: str
    path: Path
    settings: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    long_texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def samples(self, benchmark: str) -> Samples:
        """The samples of a finished benchmark by (part, id), in the order of the file."""
        return read_samples(self.path / benchmark / "samples.jsonl")

    def data(self, benchmark: str) -> Any:
        """The fingerprint of the benchmark's data, None when the run has not kept it."""
        path = self.path / benchmark / "content.json"
        return read_object(path).get("data") if path.exists() else None


def read_run(path: Path, name: str = "") -> RunFolder:
    """The run at `path`. InputError when there is none."""
    if not (path / "run.json").is_file():
        found = (
            "no such folder" if not path.exists() else "no run.json in it" if path.is_dir() else "is a file"
        )
        raise InputError(f"{path}: {found}, expected the --out folder of `vlm-contextrl eval`")
    summary = read_object(path / "results.json") if (path / "results.json").exists() else {}
    failed = summary.get("failed") or {}
    results = {
        benchmark: read_object(path / benchmark / "result.json")
        for benchmark in BENCHMARKS
        if benchmark not in failed and (path / benchmark / "result.json").is_file()
    }
    return RunFolder(
        name or path.resolve().name, path, read_object(path / "run.json"), results, failed, summary.get("probes") or {},
        summary.get("long_texts") or {},
    )  # fmt: skip


def read_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Runs whose names differ: the folder's, with the one above it where two are alike, with a number where that is alike too."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.resolve().parts[-2:]) for path in paths]
    for index, name in enumerate(names):
        if before := names[:index].count(name):
            names[index] = f"{name} ({before + 1})"
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; DataError when the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}), expected a JSON object") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def read_samples(path: Path) -> Samples:
    """`samples.jsonl` by (part, id). DataError for a line that is broken, lacks a field or repeats a sample."""
    samples: Samples = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                key, sample = _sample(line, f"{path}, line {number}")
                if key in samples:
                    raise DataError(f"{path}, line {number}: sample {'/'.join(key)} for the second time")
                samples[key] = sample
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run the benchmark again") from error
    return samples


def _sample(line: str, where: str) -> tuple[Key, Sample]:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where}: not JSON ({error}); delete {where.partition(',')[0]} and its result.json and run again"
        ) from error
    if not isinstance(sample, dict):
        raise DataError(f"{where}: found {type(sample).__name__}, expected a JSON object")
    for name, kind in _NEEDED.items():
        if not isinstance(sample.get(name), kind):
            raise DataError(f"{where}: {name} is {sample.get(name)!r}, expected {_named(kind)}")
    return (sample["part"], str(sample["id"])), sample


def _named(kind: type | tuple[type, ...]) -> str:
    return " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
