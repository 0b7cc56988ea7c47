"""Which files below a data root hold a part's rows: `ROOT/<hub id>/`, as `huggingface_hub.snapshot_download(local_dir=...)` leaves it.

The first of these that is there decides. S is the part's split, C its configuration (most have none); files are Parquet, JSON or CSV.

    save_to_disk   [C/]S/state.json or [C/]state.json
    card           the `configs:` block of README.md
    image folder   [C/][S/]metadata.jsonl, pictures by `file_name` and the like
    names          C/S-*, C/S, C/S/*, C-S-*, C/C, C or, for a set without other configurations: data/S-*, data/S, S-*, S, S/*
                   (and `data`, a file without a split's name, for the split train)

Nothing outside the root is read: links and paths that lead out are refused, and so are pictures that a row names by path only. A
split of which shards are missing is refused too. Left out: archives, loading scripts.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlm_contextrl.errors import DataError, first_line
from vlm_contextrl.eval.registry import BENCHMARKS, Part

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
METADATA = "metadata.jsonl"
_SAME_SPLIT = ("val", "validation")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=[-.])")


@dataclass(frozen=True)
class RowFiles:
    """builder: the one of `datasets` that reads the files. files: absolute; with the pictures, for an image folder."""

    builder: str
    files: tuple[Path, ...]


def find_files(part: Part, root: Path) -> RowFiles:
    """The files of a part's rows. Raises DataError, one line, when there are none, or not all, or some must not be read."""
    root = root.resolve()
    folder = root / part.dataset
    found = (
        _saved(part, folder) or _carded(part, folder) or _image_folder(part, folder) or _named(part, folder)
    )
    if not found:
        raise DataError(f"{described(part)}: not found in {folder}; get it with `{how_to_fetch(part, root)}`")
    for file in found:
        _check_inside(file, root)
    _check_shards(part, found, root)
    if any(file.name == METADATA for file in found):
        pictures = [picture for file in found if file.name == METADATA for picture in _pictures(file, root)]
        return RowFiles("imagefolder", (*found, *dict.fromkeys(pictures)))
    kinds = sorted({file.suffix for file in found})
    if len(kinds) > 1:
        raise DataError(
            f"{described(part)}: files of several kinds ({', '.join(kinds)}) in {folder}; keep one kind"
        )
    return RowFiles("arrow" if kinds == [".arrow"] else BUILDERS[kinds[0]], tuple(found))


def described(part: Part) -> str:
    """Benchmark, split and hub id, for messages."""
    config = f", configuration {part.config!r}" if part.config else ""
    return f"{benchmark_of(part)}: split {part.split!r} of {part.dataset}{config}"


def benchmark_of(part: Part) -> str:
    """The name of the benchmark that a part belongs to; the part's own name where it is none of the twelve."""
    return next((b.name for b in BENCHMARKS.values() if part in b.parts), part.name)


def how_to_fetch(part: Part, root: Path | str) -> str:
    """The command that gets a part's benchmark."""
    return f"vlm-contextrl eval fetch --data-root {root} --benchmarks {benchmark_of(part)}"


def card_patterns(part: Part, folder: Path) -> list[str]:
    """Where the card says the part's rows are: patterns relative to the folder; none when it does not say."""
    configs = [config for config in _card(folder).get("configs") or [] if isinstance(config, dict)]
    if part.config is None:
        marked = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
        configs = marked or (configs if len(configs) == 1 else [])
    else:
        configs = [c for c in configs if c.get("config_name") == part.config]
    splits: dict[str, list[str]] = {}
    for entry in _as_list(configs[0].get("data_files")) if configs else []:
        split, paths = ("train", entry) if isinstance(entry, str) else (entry.get("split"), entry.get("path"))
        splits.setdefault(str(split), []).extend(str(path) for path in _as_list(paths))
    patterns = next((splits[name] for name in _splits(part) if name in splits), [])
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise DataError(
                f"{folder / 'README.md'}: data file {pattern!r}, expected a path inside the folder"
            )
    return patterns


def name_patterns(part: Part) -> list[str]:
    """Where files of the usual names are: patterns relative to the folder, without the ending."""
    places = []
    if part.config is not None:
        config = glob.escape(part.config)
        places = [f"{config}/", f"{config}/data/", f"data/{config}/", f"{config}-", f"data/{config}-"]
    if _only_config(part):
        places += ["data/", ""]
    patterns = []
    for place in places:
        for split in _splits(part):
            patterns += [f"{place}{split}-*", f"{place}{split}"]
            if place.endswith("/") or not place:
                patterns.append(f"{place}{split}/*")
    if part.config is not None:
        return [*patterns, f"{config}/{config}", config]
    return [*patterns, "data"] if part.split == "train" else patterns


def _saved(part: Part, folder: Path) -> list[Path]:
    for place in _places(part, folder):
        for state in (*(place / split / "state.json" for split in _splits(part)), place / "state.json"):
            if not state.is_file():
                continue
            value = _json(state.read_text(encoding="utf-8"), str(state))
            if value.get("_split") not in (*_splits(part), None):
                continue
            names = [str(entry.get("filename")) for entry in value.get("_data_files") or []]
            for name in names:
                if name != Path(name).name or not (state.parent / name).is_file():
                    raise DataError(
                        f"{state}: data file {name!r}, expected one in the same folder; save the set again"
                    )
            return [state.parent / name for name in names]
    return []


def _carded(part: Part, folder: Path) -> list[Path]:
    return _files(path for pattern in card_patterns(part, folder) for path in folder.glob(pattern))


def _image_folder(part: Part, folder: Path) -> list[Path]:
    for place in _places(part, folder):
        below = (
            place / name for base in ("", "data/") for name in (f"{base}{split}" for split in _splits(part))
        )
        for candidate in (*below, place):
            if (candidate / METADATA).is_file():
                return [candidate / METADATA]
    return []


def _named(part: Part, folder: Path) -> list[Path]:
    for pattern in name_patterns(part):
        for ending in BUILDERS:
            if files := _files(folder.glob(pattern + ending)):
                return files
    return []


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        {path for path in paths if path.is_file() and (path.suffix in BUILDERS or path.name == METADATA)}
    )


def _splits(part: Part) -> tuple[str, ...]:
    """The part's split, then what else it is called."""
    return tuple(dict.fromkeys((part.split, *(_SAME_SPLIT if part.split in _SAME_SPLIT else ()))))


def _places(part: Part, folder: Path) -> list[Path]:
    places = [folder / part.config] if part.config is not None else []
    return places + ([folder] if _only_config(part) else [])


def _only_config(part: Part) -> bool:
    """Whether files without a configuration in their names can only be this part's."""
    parts = [other for benchmark in BENCHMARKS.values() for other in benchmark.parts]
    return all(other.config == part.config for other in parts if other.dataset == part.dataset)


def _check_inside(file: Path, root: Path) -> None:
    if not file.resolve().is_relative_to(root):
        raise DataError(f"{file}: leads out of the data root to {file.resolve()}; copy the file into {root}")


def _check_shards(part: Part, files: list[Path], root: Path) -> None:
    shards: dict[int, list[int]] = {}
    for file in files:
        if match := _SHARD.search(file.name):
            shards.setdefault(int(match[2]), []).append(int(match[1]))
    for total, numbers in shards.items():
        if len(shards) > 1 or sorted(numbers) != list(range(total)):
            found = ", ".join(file.name for file in files[:8])
            raise DataError(
                f"{described(part)}: expected each shard of {total} once in {files[0].parent}, found {found}; "
                f"delete them and get them with `{how_to_fetch(part, root)}`"
            )


def _pictures(metadata: Path, root: Path) -> Iterator[Path]:
    """The files that the rows of an image folder name, each there and inside the root."""
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{metadata}, line {number}"
        for key, value in _json(line, where).items():
            if not (key in ("file_name", "file_names") or key.endswith(("_file_name", "_file_names"))):
                continue
            for name in _as_list(value):
                if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
                    raise DataError(f"{where}: {key} is {name!r}, expected a path inside the folder")
                picture = metadata.parent / name
                if not picture.is_file():
                    raise DataError(f"{where}: {key} names {name!r}, which is not there")
                _check_inside(picture, root)
                yield picture


def _card(folder: Path) -> dict[str, Any]:
    """The head of README.md; empty without one."""
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        value = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError as error:
        raise DataError(
            f"{folder / 'README.md'}: its head is not YAML ({first_line(error)}); fetch it again"
        ) from error
    return value if isinstance(value, dict) else {}


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object")
    return value


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
