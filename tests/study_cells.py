"""Cells of a study as they are on the disk when they are finished, made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_contextrl.config import RunConfig, load_config
from vlm_contextrl.study.cells import Cell
from vlm_contextrl.study.data import Rows

CONFIGS = Path(__file__).parents[1] / "configs"
MEASURED = {"held_out": Rows(Path("q"), Path("p")), "left_out": Rows(Path("lq"), Path("lp"))}
STEPS = 3


def run_config(**changes: Any) -> RunConfig:
    """GRPO in 3 steps of 2 prompts with 4 completions."""
    overrides = {
        "steps": STEPS,
        "rollout.prompts_per_step": 2,
        "rollout.completions_per_prompt": 4,
        "optim.prompts_per_update": 2,
    }
    return load_config(
        RunConfig,
        CONFIGS / "tiny_grpo.yaml",
        [f"{k}={json.dumps(v)}" for k, v in (overrides | changes).items()],
    )


def accuracy(value: float | None) -> dict[str, Any]:
    return {"value": value, "n": 100, "low": None, "high": None}


def lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def finished_cell(
    folder: Path, arm: str, seed: int, vqa: float, selection: float, left_out: float, *, step_s: float = 10.0,
    config: RunConfig | None = None, trains: bool = True,
) -> Cell:  # fmt: skip
    """Its measures, three steps of `step_s` seconds with 2 tokens a completion, one evaluation at the end."""
    cell = Cell(
        arm,
        seed,
        config or run_config(),
        folder / (f"{arm}-{seed}" if trains else "untrained"),
        MEASURED,
        trains,
    )
    cell.run_dir.mkdir()
    measures = {
        "held_out": {
            "vqa_accuracy": accuracy(vqa),
            "selection_accuracy": accuracy(selection),
            "group_accuracy": accuracy(None),
        },
        "left_out": {"vqa_accuracy": accuracy(left_out), "selection_accuracy": accuracy(0.5)},
    }
    (cell.run_dir / "measures.json").write_text(json.dumps(measures))
    if trains:
        metrics = [
            {
                "step": n,
                "reward_mean": n / 10 + seed / 100,
                "completions": 8.0,
                "completion_tokens": 2.0,
                "longest_completion": 3.0,
                "trained_tokens": 100.0,
                "skipped_updates": 0.0,
            }
            for n in range(1, STEPS + 1)
        ]
        lines(cell.run_dir / "metrics.jsonl", metrics)
        timings = [
            {"step": n, "rollout_s": step_s - 1, "update_s": 1.0, "cpu_s": 2.0, "host_mib": 100.0 * n}
            for n in range(1, STEPS + 1)
        ]
        lines(cell.run_dir / "timings.jsonl", timings)
        groups = {"held_out": {"vqa_accuracy": accuracy(vqa), "selection_accuracy": accuracy(selection)}}
        lines(cell.run_dir / "evals.jsonl", [{"step": STEPS, "by_domain": groups}])
    return cell
