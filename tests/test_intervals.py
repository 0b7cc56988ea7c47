"""Bootstrap intervals: what is exact by hand, and what a known distribution must give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlm_contextrl.intervals import bootstrap, paired_gain


def test_no_units() -> None:
    assert bootstrap([]) == {"value": None, "n": 0, "low": None, "high": None}


def test_equal_units_have_no_width() -> None:
    """Every resample of 0.25 0.25 0.25 has the mean 0.25."""
    assert bootstrap([0.25] * 3) == {"value": 0.25, "n": 3, "low": 0.25, "high": 0.25}


def test_one_unit() -> None:
    assert bootstrap([1.0]) == {"value": 1.0, "n": 1, "low": 1.0, "high": 1.0}


def test_two_units_by_hand() -> None:
    """A resample of {0, 1} is 0, 0.5 or 1 with probabilities 1/4, 1/2, 1/4: the 2.5% quantile is 0, the 97.5%
    quantile 1."""
    assert bootstrap([0.0, 1.0]) == {"value": 0.5, "n": 2, "low": 0.0, "high": 1.0}


def test_a_share_of_many_units() -> None:
    """400 units, 300 right: the interval is 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400) = 0.75 +- 0.0424, to a tenth of
    its width (2,000 resamples, and steps of 1/400)."""
    found = bootstrap([1.0] * 300 + [0.0] * 100)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (found["value"], found["n"]) == (0.75, 400)
    assert found["low"] == pytest.approx(0.75 - half, abs=0.2 * half)
    assert found["high"] == pytest.approx(0.75 + half, abs=0.2 * half)


def test_contains_the_mean_and_repeats() -> None:
    units = np.random.default_rng(0).normal(size=37).tolist()
    found = bootstrap(units, seed=5)
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(sum(units) / 37)
    assert bootstrap(units, seed=5) == found
    assert bootstrap(units, seed=6) != found


def test_covers_the_true_mean() -> None:
    """Nominal 95% of 60 samples of 60 units, 57 of them; three binomial standard errors are 5."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        found = bootstrap(rng.random(60).tolist())
        hits += found["low"] <= 0.5 <= found["high"]
    assert 52 <= hits <= 60


def test_paired_gain_by_hand() -> None:
    """Before 0 0 1 1, after 1 0 1 1: differences 1 0 0 0, mean 0.25. Resampled means are k / 4 with k binomial
    (4, 1/4): P(k = 0) = 0.316, P(k >= 3) = 0.051, P(k = 4) = 0.004, so the interval is 0 to 0.75."""
    assert paired_gain([0, 0, 1, 1], [1, 0, 1, 1]) == {"value": 0.25, "low": 0.0, "high": 0.75}


def test_a_constant_gain_is_certain() -> None:
    """The units differ a lot, their differences not at all: pairing takes the spread away."""
    assert paired_gain([0.0, 5.0, 9.0], [1.0, 6.0, 10.0]) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="paired difference of 2 and 3 units"):
        paired_gain([0, 1], [0, 1, 1])


def test_no_pairs() -> None:
    assert paired_gain([], []) == {"value": None, "low": None, "high": None}
