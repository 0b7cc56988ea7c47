"""Means over seeds with 95% t intervals: what another seed would give, not what other questions would.

    mean +- t(0.975, n - 1) * s / sqrt(n)

with s the standard deviation (n - 1 in its denominator) over n seeds. A difference between arms is paired: the same seed gives both the
same questions, pairs and random numbers. One seed has no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

BySeed = dict[int, float]
Interval = dict[str, Any]  # {value, n_seeds, low, high}; None where there is nothing to say


def over_seeds(values: Mapping[int, float]) -> Interval:
    """Mean and its interval, of a value by seed."""
    n = len(values)
    if n == 0:
        return {"value": None, "n_seeds": 0, "low": None, "high": None}
    mean = statistics.fmean(values.values())
    if n == 1:
        return {"value": mean, "n_seeds": 1, "low": None, "high": None}
    half = t_quantile(n - 1) * statistics.stdev(values.values()) / math.sqrt(n)
    return {"value": mean, "n_seeds": n, "low": mean - half, "high": mean + half}


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> BySeed:
    """Ours minus the baseline, of the seeds that both have."""
    return {seed: ours[seed] - baseline[seed] for seed in ours if seed in baseline}


def t_quantile(freedom: int) -> float:
    """The t of Student's distribution that |T| stays below with probability 0.95; freedom: degrees, at least 1."""
    low, high = 0.0, 13.0  # 12.71 for one degree is the largest
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return low


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) by the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    if odd:
        return (angle + math.sin(angle) * total) * 2 / math.pi
    return math.sin(angle) * total
