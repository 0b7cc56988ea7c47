"""What the filters need to know of one trajectory: read once, in batches, kept as lines of JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm_contextrl.data_recipes.trajectories import patches
from vlm_contextrl.data_recipes.trajectories.formats import Trajectory
from vlm_contextrl.data_recipes.trajectories.settings import TrajectoriesConfig
from vlm_contextrl.data_recipes.trajectories.sources import Place, Reader
from vlm_contextrl.errors import DataError

FACTS_NAME = "facts.jsonl"


@dataclass
class Facts:
    """edits: counting file -> functions with changes in it. lines: checksums of the distinct changed lines of these files.

    told_by: what told the functions (`tree`, `shown tree`, `hunks`). refused: why the trajectory cannot be used, or empty.
    """

    id: str
    place: Place
    instance: str = ""
    repository: str = ""
    commit: str = ""
    issue: str = ""
    edits: dict[str, list[str]] = field(default_factory=dict)
    lines: Sequence[int] = ()
    told_by: str = ""
    refused: str = ""


@dataclass(frozen=True)
class WriteFacts:
    """Work of one batch: places -> facts.jsonl."""

    config: TrajectoriesConfig
    read: Reader

    def __call__(self, places: Sequence[Place], folder: Path) -> None:
        with (folder / FACTS_NAME).open("w", encoding="utf-8") as file:
            for place in places:
                file.write(json.dumps(asdict(self._facts(place))) + "\n")

    def _facts(self, place: Place) -> Facts:
        try:
            found = self.read(place)
        except DataError as error:
            name = place.file if place.start < 0 else f"{place.file}-{place.number}"
            return Facts(name, place, refused=f"unreadable: {error}")
        facts = Facts(found.id, place, found.instance, found.repository, found.commit, found.issue)
        files = patches.parse_patch(found.patch)
        counting = [file for file in files if not file.is_new and counts(file.path, self.config)]
        facts.refused = self._refusal(found, bool(files), [file.path for file in files], bool(counting))
        if facts.refused:
            return facts
        told = [self._functions(file, found) for file in counting]
        facts.edits = {file.path: names for file, (names, _) in zip(counting, told, strict=True)}
        facts.told_by = ", ".join(sorted({by for _, by in told}))
        facts.lines = sorted(
            {checksum(line) for file in counting for line in file.changed_lines() if line.strip()}
        )
        return facts

    def _refusal(self, found: Trajectory, has_patch: bool, paths: Sequence[str], counting: bool) -> str:
        config = self.config
        if not (found.licence or config.licence):
            return f"no_licence: {found.where} names none; expected a licence field, or licence=NAME for all"
        if not any(message.agent for message in found.messages):
            return f"no_messages: {found.where} has no message of the agent"
        if not has_patch:
            return f"no_patch: {found.where} has no diff, neither submitted nor shown"
        if not found.issue:
            return f"no_issue: {found.where} has no task, expected a first message of the user or a problem_statement"
        if not found.repository:
            return f"no_repository: {found.instance!r} does not tell it; expected repo in a task description (instances=FILE)"
        if config.match == "commit" and not found.commit:
            return f"no_commit: {found.instance!r} does not tell it; give instances=FILE with base_commit, or match=repository"
        if config.resolved_only and found.resolved is not True:
            return f"not_resolved: resolved is {found.resolved}, expected true (resolved_only)"
        if not counting:
            return f"no_counting_file: the patch edits {', '.join(paths[:3])}; expected an existing file like {', '.join(config.files)}"
        return ""

    def _functions(self, file: patches.FilePatch, found: Trajectory) -> tuple[list[str], str]:
        if file.path.endswith(".py"):
            source = self._source(file, found)
            tree = patches.parsed(source) if source is not None else None
            if tree is not None:
                return patches.functions_in_tree(file, tree), "tree"
            shown = patches.shown_source(
                file, [message.text for message in found.messages if not message.agent]
            )
            tree = patches.parsed(shown) if shown is not None else None
            if tree is not None:
                return patches.functions_in_tree(file, tree), "shown tree"
        return patches.functions_in_hunks(file), "hunks"

    def _source(self, file: patches.FilePatch, found: Trajectory) -> str | None:
        """The file in the user's folder of sources; nothing outside of it is read."""
        if self.config.sources is None or not found.commit:
            return None
        root = self.config.sources.resolve() / found.repository.replace("/", "__") / found.commit
        path = (root / file.path).resolve()
        if not path.is_relative_to(self.config.sources.resolve()) or not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); mend or remove it in sources") from error


def counts(path: str, config: TrajectoriesConfig) -> bool:
    """Whether edits of this file count."""
    return any(fnmatchcase(path, p) for p in config.files) and not any(
        fnmatchcase(path, p) for p in config.ignored_files
    )


def checksum(line: str) -> int:
    """Of a line's words and signs, without blanks."""
    return zlib.crc32("".join(line.split()).encode("utf-8", "surrogatepass"))


def read_facts(folders: Iterable[Path]) -> Iterator[Facts]:
    """Facts of all parts, in the order of the input."""
    for folder in folders:
        for line in (folder / FACTS_NAME).read_text(encoding="utf-8").splitlines():
            value: dict[str, Any] = json.loads(line)
            yield Facts(**{**value, "place": Place(*value["place"])})
