"""How recipes run: inputs in batches, each finished batch on disk, on local processes or on Ray."""

from __future__ import annotations

from vlm_contextrl.data_recipes.pipeline.engines import Engine
from vlm_contextrl.data_recipes.pipeline.parts import Parts, compute_parts
from vlm_contextrl.data_recipes.pipeline.results import (
    nothing_kept,
    reason_counts,
    unreadable,
    work_folder,
    write_result,
)
from vlm_contextrl.data_recipes.pipeline.steps import Outcome, Step, run_step

__all__ = [
    "Engine", "Outcome", "Parts", "Step", "compute_parts", "nothing_kept", "reason_counts", "run_step", "unreadable", "work_folder",
    "write_result",
]  # fmt: skip
