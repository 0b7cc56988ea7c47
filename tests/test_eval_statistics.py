"""Paired statistics: numbers worked out by hand, the bootstrap against its closed form, powers by the binomial."""

from __future__ import annotations

import json
import math
from math import comb
from pathlib import Path

import numpy as np
import pytest

from tests.eval_runs import write_run
from vlm_contextrl.errors import ConfigError, InputError
from vlm_contextrl.eval.compare import compare_runs
from vlm_contextrl.eval.compare_report import compare_page
from vlm_contextrl.eval.registry import BENCHMARKS
from vlm_contextrl.eval.scoring import groups
from vlm_contextrl.eval.statistics import (
    detectable_difference,
    detectable_unpaired,
    paired_comparison,
    sign_test,
    weighted_sign_test,
)
from vlm_contextrl.eval.tables import latex_table, markdown_table

Z_LEVEL, Z_POWER = 1.959964, 0.841621


def pair(n: int, gained: int, lost: int) -> tuple[list[list[float]], list[list[float]]]:
    """n samples of which `gained` became right and `lost` wrong; half of the others are right."""
    same = n - gained - lost
    before = [0.0] * gained + [1.0] * lost + [float(i % 2) for i in range(same)]
    after = [1.0] * gained + [0.0] * lost + [float(i % 2) for i in range(same)]
    return [before], [after]


# ---------------------------------------------------------------- sign test


@pytest.mark.parametrize(
    ("right", "wrong", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),  # the first that is below 0.05
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),  # both tails hold the middle: 1.3125, cut to 1
        (9, 1, 2 * (1 + 10) / 1024),
    ],
)
def test_sign_test_by_hand(right: int, wrong: int, p_value: float) -> None:
    """2 * sum over k <= min of C(n, k) / 2^n."""
    assert sign_test(right, wrong) == pytest.approx(p_value, rel=1e-12)


def test_sign_test_of_many_is_the_normal_one() -> None:
    """600 against 540 of 1,140 coins: z = (|600 - 540| - 1) / sqrt(1140) = 1.747, two-sided p = 0.0806."""
    z = 59 / math.sqrt(1140)
    assert sign_test(600, 540) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert sign_test(2000, 0) == pytest.approx(2 * 0.5**2000)  # no overflow


def test_weighted_sign_test_by_hand() -> None:
    """Two samples that became right, weights 1/2: of +-1/2 +-1/2 half are as extreme as 1. Weights 3/4 and 1/4, one gained and one lost:
    1/2 is the least that can be."""
    assert weighted_sign_test([[1.0], [1.0]], [0.5, 0.5]) == pytest.approx(0.5, abs=0.015)
    assert weighted_sign_test([[1.0], [-1.0]], [0.75, 0.25]) == 1.0
    assert weighted_sign_test([[0.0, 0.0]], [1.0]) == 1.0


def test_weighted_sign_test_of_one_group_is_the_exact_one() -> None:
    """20,000 draws: three binomial standard errors of p = 0.109 are 0.0066."""
    group = [1.0] * 8 + [-1.0] * 2 + [0.0] * 30
    assert weighted_sign_test([group], [1.0]) == pytest.approx(sign_test(8, 2), abs=0.0066)


# ---------------------------------------------------------------- difference and interval


@pytest.mark.parametrize(("n", "gained", "lost"), [(400, 60, 40), (1000, 30, 80), (191, 25, 20)])
def test_interval_is_that_of_the_closed_form(n: int, gained: int, lost: int) -> None:
    """Of a paired difference of Bernoullis: variance (b + c) / n - ((b - c) / n)^2 per sample, so the interval is
    mean +- 1.96 sqrt(variance / n). For 60 and 40 of 400: 0.05 +- 1.96 sqrt(0.2475 / 400) = 0.05 +- 0.0488."""
    mean = (gained - lost) / n
    half = 1.96 * math.sqrt(((gained + lost) / n - mean**2) / n)
    found = paired_comparison(*pair(n, gained, lost))["difference"]
    assert (found["value"], found["n"]) == (pytest.approx(mean), n)
    assert found["low"] == pytest.approx(mean - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(mean + half, abs=0.1 * half)


def test_pairing_is_what_makes_it_narrow() -> None:
    """Accuracy 0.5 on 400 samples, 20 gained: unpaired the interval of the difference is +-0.069, paired +-0.021."""
    found = paired_comparison(*pair(400, 20, 0))
    assert found["difference"]["low"] > 0.025
    assert (found["became_right"], found["became_wrong"], found["verdict"]) == (20, 0, "better")
    assert found["p_value"] == pytest.approx(2 / 2**20)


def test_equal_runs_have_no_width() -> None:
    found = paired_comparison(*pair(100, 0, 0))
    assert found["difference"] == {"value": 0.0, "n": 100, "low": 0.0, "high": 0.0}
    assert (found["p_value"], found["verdict"]) == (1.0, "within noise")


def test_worse_is_the_mirror_of_better() -> None:
    better, worse = paired_comparison(*pair(300, 30, 5)), paired_comparison(*reversed(pair(300, 30, 5)))
    assert (better["verdict"], worse["verdict"]) == ("better", "worse")
    assert worse["difference"]["value"] == -better["difference"]["value"]
    assert worse["p_value"] == better["p_value"]
    assert worse["detectable"] == better["detectable"]


def test_a_handful_of_samples_is_no_verdict() -> None:
    """All of four became right: the bootstrap says [1, 1], but four coins fall alike in one of eight throws."""
    found = paired_comparison(*pair(4, 4, 0))
    assert (found["difference"]["low"], found["difference"]["high"]) == (1.0, 1.0)
    assert (found["p_value"], found["verdict"]) == (0.125, "within noise")


def test_no_samples() -> None:
    found = paired_comparison([[]], [[]])
    assert found["difference"] == {"value": None, "n": 0, "low": None, "high": None}
    assert (found["p_value"], found["detectable"], found["verdict"]) == (1.0, None, "within noise")


def test_unequal_numbers_of_samples() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_comparison([[0.0, 1.0]], [[0.0]])


def test_same_seed_same_interval() -> None:
    first, again, other = (paired_comparison(*pair(90, 20, 9), seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_average_over_benchmarks_by_hand() -> None:
    """Two benchmarks: 10 of 20 gained (+0.5) and 0 of 400 (0): the average is 0.25, not 10/420. Its standard error is half of the first
    one's, sqrt(0.25 / 20) / 2 = 0.0559."""
    before = [*pair(20, 10, 0)[0], *pair(400, 0, 0)[0]]
    after = [*pair(20, 10, 0)[1], *pair(400, 0, 0)[1]]
    found = paired_comparison(before, after, [0.5, 0.5])
    assert (found["difference"]["value"], found["difference"]["n"]) == (0.25, 420)
    half = 1.96 * math.sqrt(0.25 / 20) / 2
    assert found["difference"]["high"] - found["difference"]["low"] == pytest.approx(2 * half, rel=0.1)
    assert found["verdict"] == "better"


def test_parts_weigh_the_same_where_the_benchmark_says_so() -> None:
    """MMMU-Pro is the mean of two parts: of the first 1 of 2 is right, of the second 0 of 6: 0.25. BLINK pools its parts: 1 of 8."""
    for name, value in (("mmmu_pro", 0.25), ("blink", 0.125)):
        first, second = (part.name for part in BENCHMARKS[name].parts[:2])
        samples = [{"part": first, "id": str(i), "correct": i == 0} for i in range(2)]
        samples += [{"part": second, "id": str(i), "correct": False} for i in range(6)]
        right = groups(BENCHMARKS[name], samples)
        wrong = [[0.0] * len(group) for group in right]
        assert paired_comparison(wrong, right)["difference"]["value"] == value


def test_equal_models_are_seldom_told_apart() -> None:
    """100 comparisons of equally good models at a level of 5%: 5 verdicts expected, three standard errors more are 11."""
    rng = np.random.default_rng(0)
    verdicts = 0
    for _ in range(100):
        changes = rng.choice([-1.0, 0.0, 1.0], 150, p=[0.1, 0.8, 0.1])
        before = (changes < 0).astype(float).tolist()
        after = (changes > 0).astype(float).tolist()
        verdicts += paired_comparison([before], [after])["verdict"] != "within noise"
    assert verdicts <= 11


# ---------------------------------------------------------------- what could be detected


@pytest.mark.parametrize(("n", "q"), [(191, 0.15), (1000, 0.2), (3940, 0.05)])
def test_detectable_difference_is_connors_sample_size_turned_round(n: int, q: float) -> None:
    """n = (z_a sqrt(q) + z_b sqrt(q - D^2))^2 / D^2. For n = 1000 and q = 0.2: D = 0.0396."""
    found = detectable_difference([n], [q])
    assert found is not None
    wanted = (Z_LEVEL * math.sqrt(q) + Z_POWER * math.sqrt(q - found**2)) ** 2 / found**2
    assert wanted == pytest.approx(n, rel=1e-4)
    if n == 1000:
        assert found == pytest.approx(0.0396, abs=0.0001)


def test_what_is_called_detectable_is_detected() -> None:
    """400 samples of which 20% change: a true difference of that size is found in 80% of runs, by the exact test in a little less."""
    n, q = 400, 0.2
    true = detectable_difference([n], [q])
    assert true is not None
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [(q + true) / 2, (q - true) / 2, 1 - q], 1000)
    found = np.mean([sign_test(int(right), int(wrong)) < 0.05 for right, wrong, _ in draws])
    assert 0.72 < found < 0.84


def test_equal_runs_do_not_make_everything_detectable() -> None:
    """No sample of 191 changed. A true difference D changes a share D at least, and six gained ones are the fewest with p < 0.05: with
    D = 0.0406 six or more come in 80% of runs."""
    found = detectable_difference([191], [0.0])
    assert found == pytest.approx(0.0406, abs=0.0002)
    assert found is not None
    power = 1 - sum(comb(191, k) * found**k * (1 - found) ** (191 - k) for k in range(6))
    assert power == pytest.approx(0.8, abs=0.03)


def test_detectable_difference_of_groups() -> None:
    """Two equal parts are one group of twice the size; of benchmarks of 191 and 3,940 the average has the variance of one group of
    1 / (1/4/191 + 1/4/3940) = 728.7 samples, where q counts by 1/n: 0.1 * 0.9538 + 0.3 * 0.0462 = 0.1092."""
    assert detectable_difference([100, 100], [0.1, 0.1]) == pytest.approx(detectable_difference([200], [0.1]))
    found = detectable_difference([191, 3940], [0.1, 0.3], [0.5, 0.5])
    n, q = 728.7, 0.1092
    assert found == pytest.approx((Z_LEVEL + Z_POWER) * math.sqrt(q / n), rel=0.01)
    assert detectable_difference([100, 300], [0.1, 0.1], [1, 3]) == pytest.approx(
        detectable_difference([400], [0.1])
    )


def test_unpaired_is_the_textbook_sample_size() -> None:
    """D sqrt(n) = z_a sqrt(2 m (1 - m)) + z_b sqrt(p (1 - p) + r (1 - r)). For V* (191 samples, 70% right): 13.8 points."""
    for n, p in ((191, 0.7), (1000, 0.25), (456, 0.03)):
        found = detectable_unpaired([n], [p])
        assert found is not None
        r = p + found if p < 0.5 else p - found
        m = (p + r) / 2
        spread = Z_LEVEL * math.sqrt(2 * m * (1 - m)) + Z_POWER * math.sqrt(p * (1 - p) + r * (1 - r))
        assert found * math.sqrt(n) == pytest.approx(spread, rel=1e-5)
    assert detectable_unpaired([191], [0.7]) == pytest.approx(0.138, abs=0.001)


def test_unpaired_at_the_edges() -> None:
    """Nothing right is no certainty; p and 1 - p are alike; too few samples detect nothing."""
    assert (detectable_unpaired([456], [0.0]) or 0) > 0.01
    assert detectable_unpaired([300], [0.3]) == pytest.approx(detectable_unpaired([300], [0.7]))
    assert detectable_unpaired([1], [0.5]) is None
    assert detectable_unpaired([], []) is None
    assert detectable_difference([2], [0.5]) is None


def test_pairing_detects_more() -> None:
    paired, unpaired = detectable_difference([900], [0.15]), detectable_unpaired([900], [0.5])
    assert paired is not None
    assert unpaired is not None
    assert paired < 0.6 * unpaired


# ---------------------------------------------------------------- probes


def write_probe(run: Path, name: str, margins: list[tuple[float, float]], mode: str = "logits") -> None:
    """A finished probe: margins of the context as A and as B, per pair."""
    records = [
        {
            "id": f"p{n}", "domain": "", "digest": "d", "margins": list(both), "reverse_margins": None, "control_margins": [0, 0]
        }
        for n, both in enumerate(margins)
    ]  # fmt: skip
    folder = run / name
    folder.mkdir(parents=True)
    (folder / "per_pair.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [{"mode": mode}, *records])
    )
    summary = json.loads((run / "results.json").read_text())
    result = {"set": "Own pairs", "mode": mode, "selection_accuracy": {"value": 0.5}}
    summary.setdefault("probes", {})[name] = result
    (run / "results.json").write_text(json.dumps(summary))


def test_probes_are_compared_pair_by_pair(tmp_path: Path) -> None:
    """Of 8 pairs the first run is right in one order each (1/2), the second in both orders of 6: 0.5 to 0.875. Six changes of one sign:
    p = 2 / 2^6.
    """
    before = write_run(tmp_path / "base", {})
    after = write_run(tmp_path / "tuned", {})
    write_probe(before, "own", [(1.0, -1.0)] * 8)
    write_probe(after, "own", [(1.0, 1.0)] * 6 + [(1.0, -1.0)] * 2)
    result = compare_runs([before, after]).result
    entry = result["probes"]["own"]
    found = entry["against_baseline"]["tuned"]
    assert (entry["n"], entry["accuracy"]["base"]["value"], entry["accuracy"]["tuned"]["value"]) == (
        8,
        0.5,
        0.875,
    )
    assert found["difference"]["value"] == pytest.approx(0.375)
    assert found["p_value"] == pytest.approx(2 / 2**6)
    assert (result["benchmarks"], result["average"]) == ({}, None)
    assert "Own pairs, selection" in markdown_table(result)
    assert "Own pairs, selection" in latex_table(result)
    assert "1 selection probe, 8 pairs" in compare_page(compare_runs([before, after]))


def test_probes_asked_otherwise_are_refused(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "base", {}), write_run(tmp_path / "tuned", {})
    write_probe(before, "own", [(1.0, -1.0)])
    write_probe(after, "own", [(1.0, -1.0)], mode="generation")
    with pytest.raises(ConfigError, match="own: mode is 'logits' in base and 'generation' in tuned"):
        compare_runs([before, after])
    other = write_run(tmp_path / "other", {})
    with pytest.raises(InputError, match="own: not finished in other"):
        compare_runs([before, other])
