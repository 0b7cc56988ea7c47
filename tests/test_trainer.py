"""The training loop: what it repeats, what it weighs, what it trains, and what it leaves in the run directory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import (
    FAMILIES,
    given_update,
    gradients,
    odd_bytes,
    plain_model,
    records,
    run_config,
    strict_float64,
    tiny_policy,
    trainer_of,
    worst_difference,
)
from vlm_contextrl import reference, terms
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ContextRLError
from vlm_contextrl.policy import Policy
from vlm_contextrl.scored_rollouts import ScoredRollouts
from vlm_contextrl.terms import mean_over_updates
from vlm_contextrl.trainer import train

Make = Callable[..., RunConfig]


@pytest.fixture
def config(qwen_folders: dict[str, Path], noise_rows: dict[str, Path]) -> Make:
    """run_config on the Qwen2.5-VL folder."""
    return lambda family="qwen2_5_vl", **sections: run_config(qwen_folders[family], noise_rows, **sections)


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_seed_fixes_everything(tuning: str, config: Make, tmp_path: Path) -> None:
    """The same seed writes the same files, whatever was drawn in this process before; another seed other ones."""

    def run(name: str, seed: int) -> tuple[bytes, bytes]:
        torch.rand(3)
        random.random()
        train(config(seed=seed, steps=2, model={"tuning": tuning}), tmp_path / name)
        return tuple((tmp_path / name / f"{s}.jsonl").read_bytes() for s in ("metrics", "samples"))  # type: ignore[return-value]

    first, other = run("a", 0), run("c", 1)
    assert run("b", 0) == first
    assert all(a != b for a, b in zip(first, other, strict=True))


# ---------------------------------------------------------------- weights and accumulation


@pytest.mark.parametrize("family", FAMILIES)
def test_lambda_means_lambda(
    family: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is that of the policy term plus lambda times that of the selection term, in one micro-batch
    or in nine, to 1e-12 in float64."""
    strict_float64(monkeypatch)
    policy = tiny_policy(Path(config(family).model.path)).double()

    def grads(name: str, budget: int, *weights: float) -> dict[str, Tensor]:
        objective = [
            {"term": "policy", "weight": weights[0]},
            {"term": "selection_loss", "weight": weights[1]},
        ]
        changed = config(family, objective=objective, optim={"tokens_per_micro_batch": budget})
        trainer = trainer_of(changed, tmp_path / name, policy)
        trainer.backward(given_update(policy, torch.float64))
        return gradients(policy)

    policy_part = grads("policy", 10**6, 1.0, 0.0)
    selection_part = grads("selection", 10**6, 0.0, 1.0)
    expected = {name: policy_part[name] + 0.3 * selection_part[name] for name in policy_part}
    for budget in (10**6, 300, 1):
        assert worst_difference(grads(str(budget), budget, 1.0, 0.3), expected) < 1e-12
    assert max(float(g.abs().max()) for g in selection_part.values()) > 1e-2


def test_metrics_do_not_depend_on_micro_batches(config: Make, tmp_path: Path) -> None:
    policy = tiny_policy(Path(config().model.path))
    found = []
    for budget in (10**6, 1):
        trainer = trainer_of(config(optim={"tokens_per_micro_batch": budget}), tmp_path / str(budget), policy)
        found.append(trainer.backward(given_update(policy)))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


# ---------------------------------------------------------------- several updates, KL


def record_batches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    batches: list[Any] = []
    original = terms.policy_loss

    def recorded(batch: Any, *args: Any) -> Any:
        batches.append(batch)
        return original(batch, *args)

    monkeypatch.setattr(terms, "policy_loss", recorded)
    return batches


def record_groups(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The groups of every step."""
    steps: list[list[Any]] = []
    original = ScoredRollouts.__call__

    def recorded(self: ScoredRollouts, step: int, rows: Any) -> Any:
        groups, metrics = original(self, step, rows)
        steps.append(list(groups.values()))
        return groups, metrics

    monkeypatch.setattr(ScoredRollouts, "__call__", recorded)
    return steps


def test_later_updates_compare_with_the_sampling_policy(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, one per update: the first has ratio 1; the second is compared with log-probs from before the
    first update, so its ratio is not 1. They are those of sampling."""
    batches = record_batches(monkeypatch)
    changed = config(steps=1, optim={"prompts_per_update": 1, "learning_rate": 1e-2})
    metrics = train(changed, tmp_path / "two")
    first, second = batches
    # Two forwards, with and without gradient: some CPUs have other kernels for either.
    torch.testing.assert_close(first.logps_BT, first.old_logps_BT, rtol=0, atol=1e-5)
    assert float((second.logps_BT - second.old_logps_BT).detach().abs().max()) > 1e-3
    assert abs(metrics["ratio_minus_one"]) > 1e-5
    assert metrics["rollout_gap"] < 1e-5  # of the engine, not of the policy that moved on

    single = train(config(steps=1), tmp_path / "one")
    assert single["ratio_minus_one"] == 0.0
    assert single["rollout_gap"] < 1e-5


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_reference_is_the_untrained_model(
    tuning: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first KL is 0 and the second is not; reference log-probs are those of the untouched model, before and
    after training, for full tuning and with adapters switched off."""
    batches, sampled = record_batches(monkeypatch), record_groups(monkeypatch)
    objective = [{"term": "policy", "rewards": config().objective[0].rewards, "kl_coef": 0.5}]
    changed = config(steps=2, model={"tuning": tuning}, objective=objective, optim={"learning_rate": 1e-2})
    trainer = trainer_of(changed, tmp_path)
    kl = []
    model = plain_model(Path(changed.model.path))
    for step in (1, 2):
        kl.append(trainer.step(step)["kl"])
        groups = sampled[-1]
        prompts = [g.prompt for g in groups for _ in g.completions]
        completions = [c.ids for g in groups for c in g.completions]
        with torch.no_grad():
            expected = reference.completion_logps(model, trainer.policy.processor, prompts, completions, 1.0)
        for logps, by_model in zip(batches[-1].ref_logps_BT, expected, strict=True):
            torch.testing.assert_close(logps[: len(by_model)], by_model, rtol=0, atol=1e-5)
    assert kl[0] == pytest.approx(0.0, abs=1e-9)
    assert kl[1] > 1e-5


def test_reference_of_adapters_is_the_model_they_started_from(config: Make, tmp_path: Path) -> None:
    """LoRA that goes on from an adapter: the KL is to the base with that adapter, the first one is 0, and the
    result holds the trained adapter alone."""
    lora = {"tuning": "lora"}
    train(config(steps=2, model=lora, optim={"learning_rate": 5e-2}), tmp_path / "first")
    objective = [{"term": "policy", "rewards": config().objective[0].rewards, "kl_coef": 0.5}]
    going_on = lora | {"adapter": str(tmp_path / "first/final")}
    changed = config(steps=2, model=going_on, objective=objective, optim={"learning_rate": 1e-2})
    train(changed, tmp_path / "second")
    kl = [m["kl"] for m in records(tmp_path / "second", "metrics")]
    assert kl[0] == pytest.approx(0.0, abs=1e-9)
    assert kl[1] > 1e-6
    assert not (tmp_path / "second/final/reference").exists()
    before, after = (
        load_file(tmp_path / f"{name}/final/adapter_model.safetensors") for name in ("first", "second")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_means_over_the_updates_that_have_a_metric(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates, the first without a finite loss: its loss is not counted as 0."""
    found = iter([{"skipped_updates": 1.0}, {"skipped_updates": 0.0, "loss": 3.0}])
    trainer = trainer_of(config(optim={"prompts_per_update": 1}), tmp_path)
    monkeypatch.setattr(trainer, "update", lambda update: next(found))
    found_metrics = trainer.step(1)
    assert (found_metrics["loss"], found_metrics["skipped_updates"]) == (3.0, 0.5)


def test_an_update_of_equal_rewards_counts_as_zero() -> None:
    """One of four updates has a policy term of 2 and an entropy of 1.5; the others have equal rewards throughout. Their loss is 0, their
    entropy unknown."""
    others = [{"skipped_updates": 0.0, "loss": 0.0}] * 3
    found = mean_over_updates(
        [{"skipped_updates": 0.0, "loss": 2.0, "policy_loss": 2.0, "entropy": 1.5}, *others]
    )
    assert found == {"skipped_updates": 0.0, "loss": 0.5, "policy_loss": 0.5, "entropy": 1.5}


# ---------------------------------------------------------------- what is refused at once


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"eval_pairs": "missing"}}, "missing"),
        ({"objective": [{"term": "policy", "rewards": {"acuracy": 1.0}}]}, "acuracy"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    sections: dict[str, Any], message: str, config: Make, tmp_path: Path
) -> None:
    with pytest.raises(ContextRLError, match=message):
        train(config(**sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize("vision", [False, True])
def test_lora_run(vision: bool, config: Make, tmp_path: Path) -> None:
    """The adapter folder holds the language model's adapters, and the tower's on request; all have moved."""
    model = {"tuning": "lora", "lora": {"rank": 4, "alpha": 8, "vision": vision}}
    train(config("qwen3_vl", steps=2, model=model), tmp_path)
    weights = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert any(".visual." in name for name in weights) == vision
    assert all(".language_model." in name or ".visual." in name for name in weights)
    moved = {name for name, w in weights.items() if ".lora_B." in name and float(w.abs().max()) > 0}
    assert moved == {name for name in weights if ".lora_B." in name}


@pytest.mark.parametrize("train_vision", [False, True])
def test_two_steps_of_qwen3_vl(
    train_vision: bool, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image features and deepstack take part: the run reads them, and a trained tower moves with its deepstack
    merger, while a frozen one stays to the bit."""
    deepstack: list[int] = []
    original = Policy._run_vision

    def counted(self: Policy, images: Any) -> Any:
        features = original(self, images)
        deepstack.extend(len(f.deepstack) for f in features.values())
        return features

    monkeypatch.setattr(Policy, "_run_vision", counted)
    changed = config("qwen3_vl", steps=2, model={"train_vision": train_vision})
    metrics = train(changed, tmp_path)
    assert metrics["step"] == 2
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    assert metrics["skipped_updates"] == 0
    assert set(deepstack) == {1}
    before = dict(plain_model(Path(changed.model.path)).named_parameters())
    after = dict(plain_model(tmp_path / "final").named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".visual." in name for name in moved) == train_vision
    assert any("deepstack" in name for name in moved) == train_vision
    assert any(".language_model." in name for name in moved)


def test_learning_is_possible(config: Make, tmp_path: Path) -> None:
    """Forty steps: the reward, the share of odd bytes, rises by a tenth at least (by 0.12 to 0.15 with the seeds 0 to 3)."""
    seen: list[float] = []
    changed = config(steps=40, rollout={"completions_per_prompt": 12}, optim={"learning_rate": 3e-3})
    train(changed, tmp_path, on_step=lambda metrics: seen.append(metrics["reward_mean"]))
    assert sum(seen[-10:]) / 10 > sum(seen[:10]) / 10 + 0.1


def test_bfloat16_products(config: Make, tmp_path: Path) -> None:
    """Under autocast the sampler and the packed forward round differently; the gap that is logged stays small,
    and the weights stay float32."""
    metrics = train(config("qwen3_vl", steps=2, model={"autocast": "bf16"}), tmp_path)
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["rollout_gap"] < 0.05
    assert {w.dtype for w in load_file(tmp_path / "final" / "model.safetensors").values()} == {torch.float32}


# ---------------------------------------------------------------- what is written


def test_run_directory(config: Make, noise_rows: dict[str, Path], tmp_path: Path) -> None:
    """Four steps with evaluations at 2 and 4 and checkpoints at 3 and 4."""
    changed = config(
        steps=4,
        data={"eval_questions": str(noise_rows["questions"]), "eval_pairs": str(noise_rows["pairs"])},
        log={"eval_every": 2, "save_every": 3, "keep_checkpoints": 5, "samples_per_step": 1},
    )
    last = train(changed, tmp_path)
    metrics = records(tmp_path, "metrics")
    assert metrics[-1] == last
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    for name in (
        "reward_mean", "selection_loss", "selection_accuracy", "margin", "outside_clip_right", "outside_clip_wrong", "grad_norm",
        "learning_rate", "completion_tokens", "truncated", "rollout_gap", "entropy", "loss",
    ):  # fmt: skip
        assert all(name in m for m in metrics), name
    assert all(m["rollout_gap"] < 1e-5 for m in metrics)  # the sampler and the packed forward agree
    assert all(0 <= m["truncated"] <= 1 and 1 <= m["completion_tokens"] <= 4 for m in metrics)
    assert not any("_s" in name[-2:] for name in metrics[0])  # no times: the file repeats
    assert [set(t) for t in records(tmp_path, "timings")] == [
        {"step", "rollout_s", "update_s", "cpu_s", "host_mib"}
    ] * 4
    samples = records(tmp_path, "samples")
    assert [s["step"] for s in samples] == [1, 2, 3, 4]
    assert all(len(s["completions"]) == len(s["rewards"]) == 3 for s in samples)
    evals = records(tmp_path, "evals")
    assert [e["step"] for e in evals] == [2, 4]
    for name, n in (("vqa_accuracy", 5), ("selection_accuracy", 4), ("order_consistent_accuracy", 4)):
        assert set(evals[0][name]) == {"value", "n", "low", "high"}
        assert evals[0][name]["n"] == n
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


def test_rewards_stay_with_their_completions(config: Make, tmp_path: Path) -> None:
    """Scored again from the texts in samples.jsonl: the same numbers in the same places."""
    train(config(steps=3, log={"samples_per_step": 9}), tmp_path)
    samples = records(tmp_path, "samples")
    assert len(samples) == 6
    for sample in samples:
        assert sample["rewards"] == pytest.approx(odd_bytes(sample["completions"], []), abs=1e-6)
    assert len({tuple(s["rewards"]) for s in samples}) == 6


def test_schedule_by_hand(config: Make, tmp_path: Path) -> None:
    """Four steps, two of warm-up, cosine: factors 1/2 * 1, 1 * (1 + cos(pi/4)) / 2, (1 + cos(pi/2)) / 2 and
    (1 + cos(3 pi/4)) / 2."""
    optim = {"learning_rate": 1.0, "warmup_steps": 2, "schedule": "cosine"}
    trainer = trainer_of(config(steps=4, optim=optim), tmp_path)
    found = []
    for step in (1, 2, 3, 4):
        trainer._set_learning_rate(step)
        found.append(trainer.optimizer.param_groups[0]["lr"])
    expected = [0.5, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, 3), (2.0, 5), (0.2, 1)])
def test_epochs_by_hand(epochs: float, expected: int, config: Make, tmp_path: Path) -> None:
    """Five questions, two per step: ceil(epochs * 5 / 2)."""
    assert trainer_of(config(steps=None, epochs=epochs), tmp_path).steps == expected
