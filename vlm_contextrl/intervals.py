"""Accuracies with 95% intervals by bootstrap over the units that were sampled (pairs, questions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

N_RESAMPLES = 2000


def bootstrap(per_unit: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """{value, n, low, high}: mean over units and its 95% percentile interval. `value` is None for no units."""
    values = np.asarray(per_unit, dtype=np.float64)
    if len(values) == 0:
        return {"value": None, "n": 0, "low": None, "high": None}
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(N_RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "n": len(values), "low": float(low), "high": float(high)}


def paired_gain(before: Sequence[float], after: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """{value, low, high} of after - before, the same units on both sides."""
    if len(before) != len(after):
        raise ValueError(f"paired difference of {len(before)} and {len(after)} units")
    gain = bootstrap([b - a for a, b in zip(before, after, strict=True)], seed)
    return {key: gain[key] for key in ("value", "low", "high")}
