"""A recipe as a step: every input becomes rows or a reject with its reason, and nothing gets lost on the way.

A reason reads `code: what was found, what was expected`; summaries count codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlm_contextrl.data_recipes.pipeline.engines import Engine
from vlm_contextrl.data_recipes.pipeline.parts import compute_parts
from vlm_contextrl.data_recipes.pipeline.results import unreadable, work_folder, write_result
from vlm_contextrl.dataset_report.stats import read_rejects
from vlm_contextrl.pairs import Row
from vlm_contextrl.row_schema import check_row, kind_of
from vlm_contextrl.shards import ShardRows, ShardWriter
from vlm_contextrl.storage import REJECTS_NAME, free_place

COUNTS_NAME = "counts.json"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome:
    """What became of the input `id`: rows of one kind, or the reason why there are none."""

    id: str
    rows: tuple[Row, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        assert bool(self.rows) != bool(self.reason), f"{self.id}: expected rows or a reason, not both"


Step = Callable[[Sequence[Item]], Sequence[Outcome]]


@dataclass(frozen=True)
class _WriteOutcomes(Generic[Item]):
    step: Step[Item]

    def __call__(self, items: Sequence[Item], folder: Path) -> None:
        outcomes = [_checked(outcome) for outcome in self.step(items)]
        assert len(outcomes) == len(items), f"{len(outcomes)} outcomes of {len(items)} inputs"
        writer: ShardWriter | None = None
        for row in (row for outcome in outcomes for row in outcome.rows):
            writer = writer or ShardWriter(folder, kind_of(row))
            writer.write(row)
        if writer:
            writer.finish()
        counts = {"inputs": len(items), "kept": sum(1 for outcome in outcomes if outcome.rows)}
        (folder / COUNTS_NAME).write_text(json.dumps(counts), encoding="utf-8")
        lines = [json.dumps({"id": o.id, "reason": o.reason}) + "\n" for o in outcomes if o.reason]
        (folder / REJECTS_NAME).write_text("".join(lines), encoding="utf-8")


def _checked(outcome: Outcome) -> Outcome:
    """A row that breaks an invariant takes its input with it."""
    reason = next((f"invalid: {r}" for r in map(check_row, outcome.rows) if r), "")
    return Outcome(outcome.id, (), reason) if reason else outcome


def run_step(
    step: Step[Item],
    items: Sequence[Item],
    out: Path,
    *,
    recipe: str,
    config: Mapping[str, Any],
    input_hash: str,
    batch_size: int,
    engine: Engine,
    refused: Iterable[tuple[str, str]] = (),
    asked: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a step over all items, write the dataset folder `out`, and say what came of it.

    A killed run goes on where it was when it is called again with the same arguments. step: pickled to the workers; one outcome per
    item, that depends on the item alone. refused: (id, reason) of inputs that could not be read; they are counted as inputs.
    asked: hashes of what the step asks besides (`AssistantSettings.content`): another one does not go on with the work.
    Raises DataError when `out` is not new or empty, or no row was kept.
    """
    out = free_place(out)
    work = work_folder(out)
    parts = compute_parts(
        _WriteOutcomes(step),
        items,
        work,
        plan={"recipe": recipe, "config": dict(config), "input": input_hash, "asked": list(asked)},
        batch_size=batch_size,
        engine=engine,
        label=recipe,
    )
    unread = unreadable(refused)
    rejects = [*unread, *(reject for folder in parts.folders for reject in read_rejects(folder))]
    kept = sum(json.loads((folder / COUNTS_NAME).read_text())["kept"] for folder in parts.folders)
    inputs = len(items) + len(unread)
    assert kept + len(rejects) == inputs, f"{kept} kept and {len(rejects)} rejected of {inputs}"
    summary = write_result(
        _rows(parts.folders), out, recipe=recipe, config=config, inputs=inputs, rejects=rejects
    )
    return {
        **summary,
        "seconds": parts.seconds,
        "rows_per_s": (len(items) / parts.seconds) if not parts.resumed and parts.seconds else None,
    }


def _rows(folders: Sequence[Path]) -> Iterator[Row]:
    for folder in folders:
        for file in sorted(folder.glob("data-*.parquet")):
            yield from _read(file)


def _read(file: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    kind: Any = "pairs" if "confounder" in pq.read_schema(file).names else "questions"
    rows: ShardRows[Row] = ShardRows([file], kind)
    yield from rows
