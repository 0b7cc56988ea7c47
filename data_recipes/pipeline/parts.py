"""Long work in parts that survive a kill.

    FOLDER/plan.json       what is computed from what: another plan never goes on in the same folder
    FOLDER/part-000012/    what batch 12 gave; renamed into place when it is whole

Batches are consecutive items, so the parts in order are the results in the order of the input, whichever worker made them and however
often the work was stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlm_contextrl import __version__
from vlm_contextrl.data_recipes.pipeline.engines import Engine
from vlm_contextrl.errors import DataError
from vlm_contextrl.storage import new_folder

PLAN_NAME = "plan.json"
Item = TypeVar("Item")
Work = Callable[[Sequence[Item], Path], None]  # items of a batch, and the folder to fill


@dataclass(frozen=True)
class Parts:
    """folders: one per batch, in order; resumed: batches that were there before; seconds: of the others."""

    folders: list[Path]
    resumed: int
    seconds: float


@dataclass(frozen=True)
class _Task(Generic[Item]):
    work: Work[Item]
    items: Sequence[Item]
    folder: Path
    batch_size: int

    def __call__(self, batch: int) -> None:
        start = batch * self.batch_size
        with new_folder(_part(self.folder, batch)) as unfinished:
            self.work(self._items(start), unfinished)

    def _items(self, start: int) -> Sequence[Item]:
        try:
            return self.items[start : start + self.batch_size]
        except DataError as error:  # a row that was whole when it was written
            raise DataError(f"{error}; `vlm-contextrl pairs import` keeps the other rows") from error


def compute_parts(
    work: Work[Item],
    items: Sequence[Item],
    folder: Path,
    *,
    plan: Mapping[str, Any],
    batch_size: int,
    engine: Engine,
    label: str,
) -> Parts:
    """Fill `folder` with one part per batch of items; parts that are there already are not computed again.

    work and items are pickled to the workers; `items` should read lazily. plan: JSON values that settle the results, such as
    settings and the content hash of the input. Raises DataError when the folder holds parts of another plan.
    """
    folder = folder.resolve()
    n_batches = -(-len(items) // batch_size)
    _agree_on_plan(folder, {**plan, "items": len(items), "batch_size": batch_size, "version": __version__})
    for unfinished in folder.glob(".*.unfinished"):
        shutil.rmtree(unfinished, ignore_errors=True)
    missing = [batch for batch in range(n_batches) if not _part(folder, batch).is_dir()]
    resumed = n_batches - len(missing)
    if resumed:
        print(
            f"{label}: going on after {min(resumed * batch_size, len(items))} of {len(items)}",
            file=sys.stderr,
        )
    started_s = time.perf_counter()
    with progress_bar() as progress:
        bar = progress.add_task(
            label, total=len(items), completed=min(resumed * batch_size, len(items)), rate=""
        )
        done = 0
        for batch in engine.run(_Task(work, items, folder, batch_size), missing):
            n = min(batch_size, len(items) - batch * batch_size)
            done += n
            progress.update(bar, advance=n, rate=f"{done / (time.perf_counter() - started_s):.3g}/s")
    return Parts([_part(folder, b) for b in range(n_batches)], resumed, time.perf_counter() - started_s)


def progress_bar() -> Any:
    """A bar with count, rate and time left, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True))


def _part(folder: Path, batch: int) -> Path:
    return folder / f"part-{batch:06d}"


def _agree_on_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    file = folder / PLAN_NAME
    text = json.dumps(plan, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror}); choose another place for the result"
        ) from error
    try:
        if not file.exists() or not any(folder.glob("part-*")):
            file.write_text(text, encoding="utf-8")
            return
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be used ({error}); remove {folder} to begin anew") from error
    wanted = json.loads(text)
    if difference := _difference(found, wanted):
        raise DataError(
            f"{folder}: holds unfinished work with another {difference}; give the same settings to go on, or remove the "
            "folder to begin anew"
        )


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first value that differs, by the keys that lead to it: `config.seed (0, now 1)`; "" when none does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        return next(
            (told for key in keys if (told := _difference(found.get(key), wanted.get(key), f"{name}.{key}"))),
            "",
        )
    return "" if found == wanted else f"{name[1:]} ({_short(found)}, now {_short(wanted)})"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
