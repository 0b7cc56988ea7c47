"""The result of a study (study.json): per arm means over seeds, differences to the baseline paired by seed, cost.

Headline measures: `vqa_accuracy` and `selection_accuracy` on held-out rows of the trained domains, `left_out_domain_accuracy` on
questions about domains that no arm trained on. All other measures of all sets stand under `measures`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm_contextrl.study.budgets import budget_of, cost, spent_otherwise
from vlm_contextrl.study.cells import Cell
from vlm_contextrl.study.data import HELD_OUT, LEFT_OUT
from vlm_contextrl.study.seed_intervals import BySeed, over_seeds, paired

HEADLINE = {
    "vqa_accuracy": (HELD_OUT, "vqa_accuracy"),
    "selection_accuracy": (HELD_OUT, "selection_accuracy"),
    "left_out_domain_accuracy": (LEFT_OUT, "vqa_accuracy"),
}
Measure = tuple[str, str]  # measured set, measure


def summarise(cells: Sequence[Cell], baseline: str, failed: Mapping[str, str]) -> dict[str, Any]:
    """The content of study.json, from the cells that are finished. One that did not use its budget counts among those that failed."""
    failed = dict(failed)
    trained: dict[str, list[Cell]] = defaultdict(list)
    untrained = None
    for cell in cells:
        if not cell.trains:
            untrained = cell
        elif cell.is_finished:
            if reason := spent_otherwise(cell.config, cell.records("metrics")):
                failed[cell.name] = f"{reason}; remove the cell's folder and start again"
            else:
                trained[cell.arm].append(cell)
    arms = list(dict.fromkeys(cell.arm for cell in cells if cell.trains))
    values = {arm: _values(trained[arm]) for arm in arms}
    costs = {arm: _costs(trained[arm]) for arm in arms}
    budget = budget_of(next(cell.config for cell in cells if cell.arm == baseline))
    return {
        "baseline": baseline,
        "seeds": sorted({cell.seed for cell in cells if cell.trains}),
        "budget": {name: budget[name] for name in ("steps", "updates", "rollouts", "tokens_at_most")},
        "untrained": _untrained(untrained) if untrained is not None and untrained.is_finished else None,
        "arms": {
            arm: {
                **_block(values[arm]),
                f"minus_{baseline}": _block(
                    {m: paired(by_seed, values[baseline].get(m, {})) for m, by_seed in values[arm].items()}
                ),
                "per_seed": _headlines_by_seed(values[arm]),
                "cost": _cost(costs[arm], costs[baseline]),
            }
            for arm in arms
        },
        "failed": failed,
    }


def _values(cells: Iterable[Cell]) -> dict[Measure, BySeed]:
    found: dict[Measure, BySeed] = defaultdict(dict)
    for cell in cells:
        measured = cell.measures()
        for name in cell.measured:  # another set, such as a probe of an earlier start, is left out
            for measure, entry in measured[name].items():
                if entry["value"] is not None:
                    found[name, measure][cell.seed] = entry["value"]
    return found


def _block(values: Mapping[Measure, BySeed]) -> dict[str, Any]:
    """The headline measures, then all of them by set."""
    block: dict[str, Any] = {name: over_seeds(values.get(m, {})) for name, m in HEADLINE.items()}
    block["measures"] = defaultdict(dict)
    for (group, measure), by_seed in values.items():
        block["measures"][group][measure] = over_seeds(by_seed)
    return block


def _untrained(cell: Cell) -> dict[str, Any]:
    found = cell.measures()
    measures = {name: found[name] for name in cell.measured}
    empty = {"value": None, "n": 0, "low": None, "high": None}
    headline = {
        name: measures.get(group, {}).get(measure, empty) for name, (group, measure) in HEADLINE.items()
    }
    return {**headline, "measures": measures}


def _headlines_by_seed(values: Mapping[Measure, BySeed]) -> dict[str, dict[str, float]]:
    seeds = sorted({seed for by_seed in values.values() for seed in by_seed})
    return {
        str(seed): {
            name: values[m][seed] for name, m in HEADLINE.items() if m in values and seed in values[m]
        }
        for seed in seeds
    }


def _costs(cells: Iterable[Cell]) -> dict[str, BySeed]:
    found: dict[str, BySeed] = defaultdict(dict)
    for cell in cells:
        for name, value in cost(cell.config, cell.records("metrics"), cell.records("timings")).items():
            found[name][cell.seed] = value
    return found


def _cost(ours: Mapping[str, BySeed], baseline: Mapping[str, BySeed]) -> dict[str, Any]:
    """Means over seeds; extra and times: how much and how many times more than the baseline's, over the seeds that both have."""
    found = {}
    for name, by_seed in ours.items():
        extra = over_seeds(paired(by_seed, baseline.get(name, {})))["value"]
        before = over_seeds({s: v for s, v in baseline.get(name, {}).items() if s in by_seed})["value"]
        times = (before + extra) / before if before else None
        found[name] = {**over_seeds(by_seed), "extra": extra, "times": times}
    return found
