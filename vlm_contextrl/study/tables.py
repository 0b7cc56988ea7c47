"""The numbers of a study in words: rows of its tables, and study.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm_contextrl.report.chart_parts import MINUS, MISSING, number
from vlm_contextrl.study.results import HEADLINE

Result = Mapping[str, Any]  # study.json (docs/results.md)

LABELS = {
    "vqa_accuracy": "Questions, held out",
    "selection_accuracy": "Selection, held out",
    "left_out_domain_accuracy": "Questions, left-out domain",
}


def percent(entry: Mapping[str, Any]) -> str:
    """`89.3 (88.1 to 90.5)`, in percent."""
    return _shown(entry, "")


def points(entry: Mapping[str, Any]) -> str:
    """`+1.8 (+0.6 to +3.0)`, in percentage points."""
    return _shown(entry, "+")


def _shown(entry: Mapping[str, Any], sign: str) -> str:
    def one(value: float) -> str:
        return sign * (value > 0) + number(100 * value, 1)

    if entry["value"] is None:
        return MISSING
    interval = "" if entry["low"] is None else f" ({one(entry['low'])} to {one(entry['high'])})"
    return one(entry["value"]) + interval


def cost_words(cost: Mapping[str, Any]) -> list[str]:
    """The cells of a row below `cost_headers`."""
    if not cost:
        return [MISSING] * 8
    train = cost["train_s"]
    counts = ("updates", "rollouts", "generated_tokens", "trained_tokens", "pairs", "peak_mib")
    return [
        f"{train['value'] / 60:.1f}",
        f"{train['times']:.2f}" if train["times"] else MISSING,
        *(_with_extra(cost[name]) for name in counts),
    ]


def _with_extra(entry: Mapping[str, Any]) -> str:
    """`240 (+100)`: the value, and how much of it the baseline has not."""
    extra = entry["extra"]
    more = f" ({'+' if extra > 0 else MINUS}{abs(extra):,.0f})" if extra is not None and round(extra) else ""
    return f"{entry['value']:,.0f}{more}"


def cost_rows(result: Result) -> list[list[str]]:
    """Every arm, below `cost_headers`."""
    return [[arm_words(result, arm), *cost_words(found["cost"])] for arm, found in result["arms"].items()]


def arm_words(result: Result, arm: str) -> str:
    """The name of an arm, and how many seeds it has when some are missing."""
    n, planned = len(result["arms"][arm]["per_seed"]), len(result["seeds"])
    return arm if n == planned else f"{arm} ({n} of {planned} seeds)"


def cost_headers(baseline: str) -> tuple[str, ...]:
    """Of the cost table."""
    counts = ("updates", "rollouts", "tokens sampled", "tokens trained on", "pairs", "peak memory, MiB")
    return ("arm", "training, min", f"times {baseline}", *counts)


# Columns of the cost table, for a terminal that is too narrow for all of them at once.
COST_PARTS = {"Cost, mean over seeds": (0, 1, 2, 3, 7, 8), "Completions": (0, 4, 5, 6)}


def accuracy_rows(result: Result) -> list[list[str]]:
    """The untrained model and every arm: the headline measures in percent."""
    rows = (
        [["untrained", *(percent(result["untrained"][m]) for m in HEADLINE)]] if result["untrained"] else []
    )
    return rows + [
        [arm_words(result, arm), *(percent(found[m]) for m in HEADLINE)]
        for arm, found in result["arms"].items()
    ]


def difference_rows(result: Result) -> list[list[str]]:
    """Every other arm minus the baseline, in points."""
    key = f"minus_{result['baseline']}"
    others = {arm: found for arm, found in result["arms"].items() if arm != result["baseline"]}
    return [
        [arm_words(result, arm), *(points(found[key][m]) for m in HEADLINE)] for arm, found in others.items()
    ]


def markdown(result: Result) -> str:
    """The tables of study.md."""
    seeds, budget, baseline = result["seeds"], result["budget"], result["baseline"]
    words = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in budget.items())
    parts = [
        f"# {result['name']}\n",
        f"{len(seeds)} seeds; every arm: {words}. In brackets 95% intervals over seeds (untrained: over questions or pairs).\n",
        _table(("%", *LABELS.values()), accuracy_rows(result)),
        f"Minus {baseline}, paired by seed, in points:\n",
        _table(("points", *LABELS.values()), difference_rows(result)),
        "Cost, mean over seeds; in brackets what is more than the baseline's:\n",
        _table(cost_headers(baseline), cost_rows(result)),
    ]
    parts += [f"Failed: {name}: {reason}\n" for name, reason in result["failed"].items()]
    return "\n".join(parts)


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
