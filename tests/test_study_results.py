"""The numbers of a study by hand: intervals over seeds, paired differences, budgets, cost, tables."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.study_cells import STEPS, accuracy, finished_cell, lines, run_config
from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.study.budgets import check_equal, cost, spent_otherwise
from vlm_contextrl.study.curves import Band, bands, learning_curves
from vlm_contextrl.study.results import summarise
from vlm_contextrl.study.seed_intervals import over_seeds, paired, t_quantile
from vlm_contextrl.study.tables import markdown, percent, points

SELECTION = {"term": "selection_loss", "weight": 1.0, "pairs_per_update": 5}
POLICY = {"term": "policy", "rewards": {"accuracy": 1.0}}


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_t_quantile_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, abs=5e-5)


def test_one_degree_of_freedom_is_the_cauchy_distribution() -> None:
    """P(|T| < t) = 2/pi atan t, so t = tan(0.95 pi/2)."""
    assert t_quantile(1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-9)


def test_interval_over_seeds_by_hand() -> None:
    """0.6, 0.7, 0.8: mean 0.7, s = 0.1, half = 4.30265 * 0.1 / sqrt(3) = 0.248414."""
    found = over_seeds({1: 0.6, 2: 0.7, 3: 0.8})
    assert found["n_seeds"] == 3
    assert [found[k] for k in ("value", "low", "high")] == pytest.approx([0.7, 0.451586, 0.948414], abs=1e-5)


def test_one_seed_has_no_interval_and_none_no_value() -> None:
    assert over_seeds({7: 0.5}) == {"value": 0.5, "n_seeds": 1, "low": None, "high": None}
    assert over_seeds({}) == {"value": None, "n_seeds": 0, "low": None, "high": None}


def test_difference_is_paired_by_seed() -> None:
    """Seeds 1 to 3 differ by 0.02 each, however far apart they are; seed 4 has no partner."""
    found = over_seeds(paired({1: 0.52, 2: 0.72, 3: 0.92, 4: 0.1}, {3: 0.9, 2: 0.7, 1: 0.5}))
    assert found["n_seeds"] == 3
    assert [found[k] for k in ("value", "low", "high")] == pytest.approx([0.02] * 3)


# ---------------------------------------------------------------- budgets


def test_cost_by_hand(tmp_path: Path) -> None:
    """3 steps of 2 prompts x 4 completions x 2 tokens = 48 tokens, 24 rollouts; 100 tokens run with gradient in an
    update; 10 s a step, 2 of them of the CPU; 5 pairs an update."""
    config = run_config(objective=[POLICY, SELECTION], **{"data.pairs": "p"})
    cell = finished_cell(tmp_path, "a", 1, 0.5, 0.5, 0.5, config=config)
    found = cost(config, cell.records("metrics"), cell.records("timings"))
    assert found == {
        "train_s": 30,
        "cpu_s": 6,
        "updates": 3,
        "rollouts": 24,
        "generated_tokens": 48,
        "trained_tokens": 300,
        "pairs": 15,
        "peak_mib": 300,
    }


def test_what_arms_add_is_counted() -> None:
    """A supervised stage: 2 updates of 7 pairs. Selection prompts: half as many as the 2 questions, so 1 x 4 completions of 3 tokens a
    step beside 2 x 4 of 2 tokens: 3 x (16 + 12) = 84 tokens, 3 x 12 = 36 rollouts, 14 + 3 pairs, 2 + 3 updates."""
    stage = {"steps": 2, "objective": [{"term": "supervised", "pairs_per_update": 7}]}
    config = run_config(
        objective=[POLICY, {"term": "selection_reward", "ratio": 0.5}], before=[stage], **{"data.pairs": "p"}
    )
    metrics: list[dict[str, Any]] = [
        {"step": n, "trained_tokens": 30.0, "skipped_updates": 0.0} for n in (1, 2)
    ]
    sampled = {"reward_mean": 0.5, "completions": 8.0, "completion_tokens": 2.0, "longest_completion": 3.0}
    asked = {
        "selection_completions": 4.0,
        "selection_completion_tokens": 3.0,
        "selection_longest_completion": 4.0,
    }
    metrics += [
        {"step": n, **sampled, **asked, "trained_tokens": 200.0, "skipped_updates": 0.0} for n in (3, 4, 5)
    ]
    assert spent_otherwise(config, metrics) is None
    found = cost(config, metrics, [])
    assert found == {
        "train_s": 0,
        "cpu_s": 0,
        "updates": 5,
        "rollouts": 36,
        "generated_tokens": 84,
        "trained_tokens": 2 * 30 + 3 * 200,
        "pairs": 17,
        "peak_mib": 0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 4}, r"arm 'b': steps is 4, expected 3 as in 'a': arms are compared at equal budgets"),
        ({"rollout.prompts_per_step": 4}, "updates is 6, expected 3"),
        ({"rollout.prompts_per_step": 4, "optim.prompts_per_update": 4}, "rollouts is 48, expected 24"),
        ({"rollout.max_new_tokens": 9}, "rollout.max_new_tokens is 9, expected 8"),
        ({"data.max_prompt_tokens": 99}, "data.max_prompt_tokens is 99, expected 512"),
        ({"model.path": "other"}, "model.path is other, expected tinyvl"),
        ({"data.questions": "other"}, "data.questions is other"),
        ({"data.prompt_style": "direct"}, "data.prompt_style is direct, expected plain"),
        ({"model.max_pixels": 3136}, "model.max_pixels is 3136, expected None"),
        ({"data.eval_pairs": "other"}, "data.eval_pairs is other"),
        ({"steps": None, "epochs": 1}, "arm 'b': counts epochs, expected `steps`"),
    ],
)
def test_unequal_budgets_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_equal({"a": run_config(), "b": run_config(**change)}, "a")


def test_equal_budgets_pass_whatever_the_objective() -> None:
    check_equal(
        {"a": run_config(), "b": run_config(objective=[POLICY, SELECTION], **{"data.pairs": "p"})}, "a"
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"step": 4}, "metrics.jsonl holds 3 steps, 3 of them with rollouts, expected 3 and 3"),
        ({"completions": 7.0}, "step 3 has 7 completions, expected 8"),
        ({"longest_completion": 9.0}, "step 3 has a completion of 9 tokens, expected at most 8"),
        ({"selection_completions": 8.0}, "step 3 has 8 selection_completions, expected 4"),
        ({"selection_longest_completion": 9.0}, "step 3 has a completion of 9 tokens"),
    ],
)
def test_what_a_cell_may_not_do(tmp_path: Path, changed: dict[str, float], reason: str) -> None:
    """Such a cell counts as failed; the others have their numbers."""
    config = run_config(objective=[POLICY, {"term": "selection_reward", "ratio": 0.5}], **{"data.pairs": "p"})
    cell = finished_cell(tmp_path, "asks", 1, 0.5, 0.5, 0.5, config=config)
    asked = {
        "selection_completions": 4.0,
        "selection_completion_tokens": 2.0,
        "selection_longest_completion": 2.0,
    }
    records = [{**record, **asked} for record in cell.records("metrics")]
    lines(cell.run_dir / "metrics.jsonl", records)
    assert spent_otherwise(config, cell.records("metrics")) is None
    lines(cell.run_dir / "metrics.jsonl", [*records[:2], {**records[2], **changed}])
    found = summarise([finished_cell(tmp_path, "grpo", 1, 0.6, 0.5, 0.5), cell], "grpo", {})
    assert found["failed"]["asks-1"].startswith(reason)
    assert found["failed"]["asks-1"].endswith("remove the cell's folder and start again")
    assert found["arms"]["asks"]["vqa_accuracy"]["n_seeds"] == 0
    assert found["arms"]["grpo"]["vqa_accuracy"]["value"] == 0.6


def test_skipped_updates_are_not_counted(tmp_path: Path) -> None:
    """One of three updates had no finite loss."""
    cell = finished_cell(tmp_path, "grpo", 1, 0.5, 0.5, 0.5)
    first, *others = cell.records("metrics")
    metrics = [{**first, "skipped_updates": 1.0}, *others]
    assert cost(cell.config, metrics, [])["updates"] == 2


def test_measures_of_earlier_starts_are_left_out(tmp_path: Path) -> None:
    cell = finished_cell(tmp_path, "grpo", 1, 0.5, 0.5, 0.5)
    found = json.loads((cell.run_dir / "measures.json").read_text())
    (cell.run_dir / "measures.json").write_text(
        json.dumps(found | {"probe_x": {"vqa_accuracy": accuracy(1.0)}})
    )
    assert set(summarise([cell], "grpo", {})["arms"]["grpo"]["measures"]) == {"held_out", "left_out"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"held_out": 1}'])
def test_damaged_measures_are_one_line(tmp_path: Path, text: str) -> None:
    cell = finished_cell(tmp_path, "grpo", 1, 0.5, 0.5, 0.5)
    (cell.run_dir / "measures.json").write_text(text)
    with pytest.raises(DataError, match="measures.json: .* remove it, and the cell is measured again"):
        summarise([cell], "grpo", {})


def test_times_of_the_baseline_are_over_shared_seeds(tmp_path: Path) -> None:
    """Arm b takes 30 and 300 s, the baseline 30 s and has one seed only: b is as dear as the baseline there."""
    cells = [
        finished_cell(tmp_path, "grpo", 1, 0.5, 0.5, 0.5),
        finished_cell(tmp_path, "b", 1, 0.5, 0.5, 0.5),
        finished_cell(tmp_path, "b", 2, 0.5, 0.5, 0.5, step_s=100),
    ]
    train = summarise(cells, "grpo", {})["arms"]["b"]["cost"]["train_s"]
    assert (train["value"], train["extra"], train["times"]) == (165, 0, 1)


# ---------------------------------------------------------------- the result


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    """grpo 0.60 and 0.70, contextrl 0.64 and 0.76 on questions; da_rl has seed 1 only, its other cell failed."""
    cells = [
        finished_cell(tmp_path, "grpo", 0, 0.5, 0.4, 0.3, trains=False),
        finished_cell(tmp_path, "grpo", 1, 0.6, 0.5, 0.4),
        finished_cell(tmp_path, "contextrl", 1, 0.64, 0.8, 0.5, step_s=20),
        finished_cell(tmp_path, "da_rl", 1, 0.55, 0.5, 0.4),
        finished_cell(tmp_path, "grpo", 2, 0.7, 0.5, 0.4),
        finished_cell(tmp_path, "contextrl", 2, 0.76, 0.9, 0.5, step_s=20),
    ]
    return {"name": "s", **summarise(cells, "grpo", {"da_rl-2": "error: no luck"})}


def test_result_by_hand(result: dict[str, Any]) -> None:
    """contextrl: mean 0.70; differences 0.04 and 0.06: mean 0.05, s = 0.0141421, half = 12.7062 * 0.01 = 0.127062."""
    arm = result["arms"]["contextrl"]
    assert arm["vqa_accuracy"]["value"] == pytest.approx(0.7)
    assert arm["selection_accuracy"] == pytest.approx(over_seeds({1: 0.8, 2: 0.9}))
    assert arm["left_out_domain_accuracy"] == {"value": 0.5, "n_seeds": 2, "low": 0.5, "high": 0.5}
    minus = arm["minus_grpo"]["vqa_accuracy"]
    assert [minus[k] for k in ("value", "n_seeds", "low", "high")] == pytest.approx(
        [0.05, 2, -0.077062, 0.177062], abs=1e-6
    )
    assert arm["measures"]["left_out"]["selection_accuracy"]["value"] == 0.5
    assert "group_accuracy" not in arm["measures"]["held_out"]  # it had no value
    assert arm["per_seed"]["2"] == {
        "vqa_accuracy": 0.76,
        "selection_accuracy": 0.9,
        "left_out_domain_accuracy": 0.5,
    }
    assert (arm["cost"]["train_s"]["value"], arm["cost"]["train_s"]["extra"]) == (60, 30)
    assert result["budget"] == {"steps": 3, "updates": 3, "rollouts": 24, "tokens_at_most": 192}
    assert result["seeds"] == [1, 2]
    json.dumps(result, allow_nan=False)


def test_the_baseline_differs_from_itself_by_nothing(result: dict[str, Any]) -> None:
    assert result["arms"]["grpo"]["minus_grpo"]["vqa_accuracy"] == {
        "value": 0,
        "n_seeds": 2,
        "low": 0,
        "high": 0,
    }


def test_a_failed_cell_is_left_out_of_means_and_of_pairs(result: dict[str, Any]) -> None:
    arm = result["arms"]["da_rl"]
    assert arm["vqa_accuracy"] == {"value": 0.55, "n_seeds": 1, "low": None, "high": None}
    assert arm["minus_grpo"]["vqa_accuracy"]["value"] == pytest.approx(-0.05)
    assert "Failed: da_rl-2: error: no luck" in markdown(result)


def test_tables(result: dict[str, Any]) -> None:
    text = markdown(result)
    assert "2 seeds; every arm: 3 steps, 3 updates, 24 rollouts, 192 tokens at most." in text
    assert "| contextrl | 70.0 (" in text
    assert "| da_rl (1 of 2 seeds) | \N{MINUS SIGN}5.0 | 0.0 | 0.0 |" in text
    assert "| contextrl | 1.0 | 2.00 | 3 | 24 | 48 | 300 | 0 | 300 |" in text


def test_an_arm_without_a_finished_cell_has_no_numbers(tmp_path: Path) -> None:
    done = finished_cell(tmp_path, "grpo", 1, 0.6, 0.5, 0.4)
    lost = finished_cell(tmp_path, "papo", 1, 0.6, 0.5, 0.4)
    (lost.run_dir / "measures.json").unlink()
    found = {"name": "s", **summarise([done, lost], "grpo", {"papo-1": "why"})}
    assert found["arms"]["papo"]["vqa_accuracy"]["n_seeds"] == 0
    assert found["arms"]["papo"]["cost"] == {}
    assert found["untrained"] is None
    assert "| papo (0 of 1 seeds) | \N{EN DASH} |" in markdown(found)


def test_words() -> None:
    entry = {"value": -0.0123, "low": -0.03, "high": 0.005}
    assert percent(entry) == "\N{MINUS SIGN}1.2 (\N{MINUS SIGN}3.0 to 0.5)"
    assert points(entry) == "\N{MINUS SIGN}1.2 (\N{MINUS SIGN}3.0 to +0.5)"
    assert points({"value": 0.02, "low": None, "high": None}) == "+2.0"


# ---------------------------------------------------------------- curves


def test_bands_are_mean_and_range_over_the_steps_that_all_seeds_have() -> None:
    assert bands([[(1, 0.2), (2, 0.4)], [(1, 0.4), (2, 0.5), (3, 0.9)]]) == [
        Band(1, pytest.approx(0.3), 0.2, 0.4),
        Band(2, pytest.approx(0.45), 0.4, 0.5),
    ]


def test_curves_start_where_rollouts_do(tmp_path: Path) -> None:
    """Two supervised steps before: the three steps with rollouts are 1 to 3, as in an arm without."""
    stage = {"steps": 2, "objective": [{"term": "supervised"}]}
    cell = finished_cell(
        tmp_path, "da_sft", 1, 0.5, 0.5, 0.5, config=run_config(before=[stage], **{"data.pairs": "p"})
    )
    metrics = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}] + [
        {"step": n + 2, "reward_mean": n / 10, "completion_tokens": 2.0} for n in range(1, STEPS + 1)
    ]
    lines(cell.run_dir / "metrics.jsonl", metrics)
    curves = {c.caption: c for c in learning_curves([cell])}
    assert [b.step for b in curves["Reward of sampled answers"].arms["da_sft"]] == [1, 2, 3]
    assert [b.step for b in curves["Selection, held out, while training"].arms["da_sft"]] == [
        1
    ]  # evaluated at step 3
    assert "Questions, left-out domain, while training" not in curves
