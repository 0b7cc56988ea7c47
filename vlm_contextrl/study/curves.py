"""Learning curves: per arm the mean over seeds at every step, and the range from the lowest seed to the highest."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_contextrl.report.charts import moving_mean
from vlm_contextrl.study.budgets import total_steps
from vlm_contextrl.study.cells import Cell
from vlm_contextrl.study.data import HELD_OUT, LEFT_OUT

Record = Mapping[str, Any]
Points = list[tuple[float, float]]  # step, value


@dataclass(frozen=True)
class Band:
    """One step: the mean over seeds, and the seeds that lie lowest and highest."""

    step: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curves:
    """One chart: {arm: bands}."""

    caption: str
    y_label: str
    arms: Mapping[str, Sequence[Band]]


EVALUATED = (
    ("Questions, held out, while training", HELD_OUT, "vqa_accuracy"),
    ("Selection, held out, while training", HELD_OUT, "selection_accuracy"),
    ("Selection in both orders, held out, while training", HELD_OUT, "order_consistent_accuracy"),
    ("Questions, left-out domain, while training", LEFT_OUT, "vqa_accuracy"),
    ("Selection, left-out domain, while training", LEFT_OUT, "selection_accuracy"),
)


def learning_curves(cells: Iterable[Cell]) -> list[Curves]:
    """Of the finished cells; charts without any value are left out."""
    trained = [cell for cell in cells if cell.trains and cell.is_finished]
    charts = [
        _curves(caption, "share right", trained, lambda cell, g=group, m=measure: _evaluated(cell, g, m))
        for caption, group, measure in EVALUATED
    ]
    charts.append(_curves("Reward of sampled answers", "mean reward", trained, _rewards))
    return [chart for chart in charts if chart.arms]


def bands(seeds: Iterable[Points]) -> list[Band]:
    """Over the steps that all seeds have."""
    by_step: dict[float, list[float]] = defaultdict(list)
    count = 0
    for points in seeds:
        count += 1
        for step, value in points:
            by_step[step].append(value)
    return [
        Band(step, statistics.fmean(values), min(values), max(values))
        for step, values in sorted(by_step.items())
        if len(values) == count
    ]


def _curves(caption: str, y_label: str, cells: Iterable[Cell], points_of: Any) -> Curves:
    by_arm: dict[str, list[Points]] = defaultdict(list)
    for cell in cells:
        if points := list(points_of(cell)):
            by_arm[cell.arm].append(points)
    return Curves(caption, y_label, {arm: bands(seeds) for arm, seeds in by_arm.items()})


def _evaluated(cell: Cell, group: str, measure: str) -> Iterator[tuple[float, float]]:
    for record in cell.records("evals"):
        entry = record.get("by_domain", {}).get(group, {}).get(measure)
        if entry is not None and entry["value"] is not None:
            yield record["step"] - _before(cell), entry["value"]


def _rewards(cell: Cell) -> Iterator[tuple[float, float]]:
    """A moving mean over a twelfth of the run: single steps are noise."""
    raw = [
        (float(m["step"] - _before(cell)), m["reward_mean"])
        for m in cell.records("metrics")
        if "reward_mean" in m
    ]
    return ((step, value) for step, value in moving_mean(raw, len(raw) // 12 | 1) if value is not None)


def _before(cell: Cell) -> int:
    """Steps of the stages before rollouts: they lie left of 0, so that arms share the steps of their rollouts."""
    return total_steps(cell.config) - (cell.config.steps or 0)
