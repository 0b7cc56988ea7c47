"""Is one run better than another? Paired statistics over the same samples.

With x and y in {0, 1} whether a sample is right in the first run and in the second, d = y - x, and w the weight of a group of samples
(a benchmark, or a part of one; weights sum to 1):

    difference   sum over groups of w * mean(d); its 95% interval by bootstrap over samples, resampled within each group
    sign test    exact: the samples with d != 0 are fair coins if the runs are equally good (McNemar's test in its exact form)
    detectable   the smallest true difference that a two-sided test at 5% finds with a probability of 80%

A verdict needs both, an interval without 0 and p < 0.05: with a handful of samples the bootstrap alone is too sure of itself.

Sources: McNemar 1947 (Psychometrika 12:153); Connor 1987 (Biometrics 43:207) for the paired sample size; Fleiss, Levin and Paik,
Statistical Methods for Rates and Proportions, 3rd ed., eq. 4.14, for the unpaired one; Miller 2024 (arXiv 2411.00640) on errors of evals.
Left out: a correction for looking at twelve benchmarks at once (one in twenty comes out by chance; the average is the result to quote),
and the spread between training seeds, which no comparison of two runs can see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from vlm_contextrl.eval.scoring import mean_of_groups

Verdict = Literal["better", "worse", "within noise"]
Groups = Sequence[Sequence[float]]

LEVEL, POWER = 0.05, 0.8
_Z_LEVEL = NormalDist().inv_cdf(1 - LEVEL / 2)
_Z_POWER = NormalDist().inv_cdf(POWER)
_SIGN_DRAWS = 20_000


def paired_comparison(
    before: Groups, after: Groups, weights: Sequence[float] = (), seed: int = 0
) -> dict[str, Any]:
    """difference {value, n, low, high}, p_value, became_right, became_wrong (counts), detectable, verdict.

    before, after: per group the correctness (0 or 1) of the same samples in the same order; ValueError when their numbers differ.
    weights: of the groups' means, equal without any. Given weights, the sign test weighs its samples by them.
    """
    differences = [
        [y - x for x, y in zip(first, second, strict=True)]
        for first, second in zip(before, after, strict=True)
    ]
    flat = np.asarray([d for group in differences for d in group])
    became_right, became_wrong = int((flat > 0).sum()), int((flat < 0).sum())
    difference = mean_of_groups(differences, weights, seed)
    p_value = (
        weighted_sign_test(differences, weights, seed) if weights else sign_test(became_right, became_wrong)
    )
    return {
        "difference": difference,
        "p_value": p_value,
        "became_right": became_right,
        "became_wrong": became_wrong,
        "detectable": detectable_difference(
            [len(group) for group in differences],
            [sum(map(bool, group)) / len(group) if group else 0.0 for group in differences],
            weights,
        ),
        "verdict": verdict(difference, p_value),
    }


def verdict(difference: dict[str, Any], p_value: float) -> Verdict:
    """`better` or `worse` when the interval leaves out 0 and the sign test agrees, else `within noise`."""
    if difference["value"] is None or p_value >= LEVEL:
        return "within noise"
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "within noise"


def sign_test(became_right: int, became_wrong: int) -> float:
    """Exact two-sided p: twice the probability that of n = right + wrong fair coins at most min(right, wrong) fall on one side."""
    n = became_right + became_wrong
    tail = sum(math.comb(n, k) for k in range(min(became_right, became_wrong) + 1))
    return min(1.0, float(2 * tail / 2**n))


def weighted_sign_test(differences: Groups, weights: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the weighted mean when every sample that changed could as well have changed the other way.

    The sign test for an average over benchmarks, where a sample of a small benchmark weighs more; 20,000 draws, so no p below 0.00005.
    """
    rng = np.random.default_rng(seed)
    draws, observed = np.zeros(_SIGN_DRAWS), 0.0
    for weight, group in zip(weights, differences, strict=True):
        per_sample, discordant = weight / len(group), sum(map(bool, group))
        draws += per_sample * (2.0 * rng.binomial(discordant, 0.5, _SIGN_DRAWS) - discordant)
        observed += per_sample * sum(group)
    as_extreme = int((np.abs(draws) >= abs(observed) - 1e-12).sum())
    return (1 + as_extreme) / (1 + _SIGN_DRAWS)


def detectable_difference(
    sizes: Sequence[int], discordant: Sequence[float], weights: Sequence[float] = ()
) -> float | None:
    """The smallest true difference that the paired test finds with a probability of 80%; None when no difference would be.

    Connor 1987: n = (z_a sqrt(q) + z_b sqrt(q - D^2))^2 / D^2, with q the share of discordant samples, solved for D:

        D = k sqrt(q),   k = (z_a sqrt(n) + z_b sqrt(n - z_a^2 + z_b^2)) / (n + z_b^2)

    A difference D needs a share of at least D discordant samples, so where D > q the share is D itself, and D = k^2. In particular two
    equal runs do not make every difference detectable. Groups: n is 1 / sum(w^2 / n_g) and q the average of the q_g by w^2 / n_g, which
    keep the variance of the weighted mean. sizes, discordant: samples of each group and the share of them that differ.
    """
    n, q = _as_one_group(sizes, discordant, weights)
    if n < 1:
        return None
    root = math.sqrt(max(0.0, n - _Z_LEVEL**2 + _Z_POWER**2))
    k = (_Z_LEVEL * math.sqrt(n) + _Z_POWER * root) / (n + _Z_POWER**2)
    found = k * max(math.sqrt(q), k)
    return found if found <= 1 else None


def detectable_unpaired(
    sizes: Sequence[int], shares: Sequence[float], weights: Sequence[float] = ()
) -> float | None:
    """The same for two runs of different samples, as long as there is one run (or none: then a guess of its accuracy).

    Fleiss, Levin and Paik, eq. 4.14: D sqrt(n) = z_a sqrt(2 m (1 - m)) + z_b sqrt(p (1 - p) + r (1 - r)), with r = p + D and m the mean of
    p and r. D is taken towards one half, the harder direction. Runs over the same samples need less, see `detectable_difference`.
    sizes, shares: samples of each group and their accuracy p; None when no difference is detectable.
    """
    n, p = _as_one_group(sizes, shares, weights)
    p = min(p, 1 - p)

    def missing(difference: float) -> float:
        r = p + difference
        m = (p + r) / 2
        spread = _Z_LEVEL * math.sqrt(2 * m * (1 - m)) + _Z_POWER * math.sqrt(p * (1 - p) + r * (1 - r))
        return spread - difference * math.sqrt(n)

    low, high = 0.0, 1 - p
    if missing(high) > 0:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > 0 else (low, middle)
    return high


def _as_one_group(
    sizes: Sequence[int], shares: Sequence[float], weights: Sequence[float]
) -> tuple[float, float]:
    """(n, share) of one group whose mean has the variance of the weighted mean of these."""
    if not sizes or not all(sizes):
        return 0.0, 0.0
    weights = weights or [1.0] * len(sizes)
    total = sum(weights)
    variances = [(weight / total) ** 2 / size for weight, size in zip(weights, sizes, strict=True)]
    share = sum(v * s for v, s in zip(variances, shares, strict=True)) / sum(variances)
    return 1 / sum(variances), share
