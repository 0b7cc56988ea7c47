"""The training loop: what it repeats, what it weighs, what it refuses, and what it leaves in the run directory."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import (
    FAMILIES,
    given_groups,
    gradients,
    image_pair,
    plain_model,
    run_config,
    strict_float64,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import reference, terms
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ConfigError, DataError, InputError, MissingExtraError, RewardError
from vlm_contextrl.models import load_policy
from vlm_contextrl.policy import Policy
from vlm_contextrl.runlog import RunDirectory
from vlm_contextrl.storage import read_pairs, read_questions
from vlm_contextrl.terms import Share, Update
from vlm_contextrl.trainer import NonFiniteUpdatesError, Trainer, train

Make = Callable[..., RunConfig]


@pytest.fixture
def config(qwen_folders: dict[str, Path], noise_rows: dict[str, Path]) -> Make:
    """run_config on the Qwen2.5-VL folder."""
    return lambda family="qwen2_5_vl", **sections: run_config(qwen_folders[family], noise_rows, **sections)


def trainer_of(config: RunConfig, folder: Path, policy: Policy | None = None) -> Trainer:
    """A trainer as `train` makes it, to be driven step by step."""
    run = RunDirectory(folder, config, resume=False)
    assert config.data.pairs
    questions, pairs = read_questions(config.data.questions), read_pairs(config.data.pairs)
    at = list(range(len(questions))), list(range(len(pairs)))
    policy = policy or load_policy(config.model)
    return Trainer(config, run, Accelerator(), policy, questions, at[0], pairs, at[1])


def update_of(policy: Policy, dtype: torch.dtype = torch.float32) -> Update:
    return Update(given_groups(policy, dtype), [image_pair(n) for n in range(3)], random.Random(0))


def records(run: Path, stream: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{stream}.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_seed_fixes_everything(tuning: str, config: Make, tmp_path: Path) -> None:
    """The same seed writes the same files, whatever was drawn in this process before; another seed other ones."""

    def run(name: str, seed: int) -> tuple[bytes, bytes]:
        torch.rand(3)
        random.random()
        train(config(seed=seed, steps=2, model={"tuning": tuning}), tmp_path / name)
        return tuple((tmp_path / name / f"{s}.jsonl").read_bytes() for s in ("metrics", "samples"))  # type: ignore[return-value]

    assert run("a", 0) == run("b", 0)
    other = run("c", 1)
    assert other[0] != run("d", 0)[0]
    assert other[1] != run("e", 0)[1]


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
        trainer.backward(update_of(policy, torch.float64))
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
        found.append(trainer.backward(update_of(policy)))
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


def test_later_updates_compare_with_the_sampling_policy(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, one per update: the first has ratio 1; the second is compared with log-probs from before the
    first update, so its ratio is not 1. They are those of sampling."""
    batches = record_batches(monkeypatch)
    changed = config(steps=1, optim={"prompts_per_update": 1, "learning_rate": 1e-2})
    metrics = train(changed, tmp_path / "two")
    first, second = batches
    assert torch.equal(first.logps_BT, first.old_logps_BT)
    assert float((second.logps_BT - second.old_logps_BT).detach().abs().max()) > 1e-3
    assert abs(metrics["ratio_minus_one"]) > 1e-5
    assert metrics["rollout_gap"] > 1e-5  # the second update's gap, half of it in the mean

    single = train(config(steps=1), tmp_path / "one")
    assert single["ratio_minus_one"] == 0.0
    assert single["rollout_gap"] < 1e-5


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_reference_is_the_untrained_model(
    tuning: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first KL is 0 and the second is not; reference log-probs are those of the untouched model, before and
    after training, for full tuning and with adapters switched off."""
    batches = record_batches(monkeypatch)
    objective = [{"term": "policy", "rewards": config().objective[0].rewards, "kl_coef": 0.5}]
    changed = config(steps=2, model={"tuning": tuning}, objective=objective, optim={"learning_rate": 1e-2})
    trainer = trainer_of(changed, tmp_path)
    kl = []
    model = plain_model(Path(changed.model.path))
    for step in (1, 2):
        groups = trainer._rollout(step)
        kl.append(trainer._update_all(step, groups)["kl"])
        prompts = [g.prompt for g in groups for _ in g.completions]
        completions = [c.ids for g in groups for c in g.completions]
        with torch.no_grad():
            expected = reference.completion_logps(model, trainer.policy.processor, prompts, completions, 1.0)
        for logps, by_model in zip(batches[-1].ref_logps_BT, expected, strict=True):
            torch.testing.assert_close(logps[: len(by_model)], by_model, rtol=0, atol=1e-5)
    assert kl[0] == pytest.approx(0.0, abs=1e-9)
    assert kl[1] > 1e-5


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
    """Thirty steps: the reward, the share of odd bytes, rises by a tenth at least."""
    seen: list[float] = []
    changed = config(steps=30, optim={"learning_rate": 3e-3})
    train(changed, tmp_path, on_step=lambda metrics: seen.append(metrics["reward_mean"]))
    assert sum(seen[-10:]) / 10 > sum(seen[:10]) / 10 + 0.1


# ---------------------------------------------------------------- prompts that are too long


def prompt_lengths(config: RunConfig) -> dict[str, int]:
    policy = tiny_policy(Path(config.model.path))
    rows = read_questions(config.data.questions)
    return {row.id: len(reference.question_prompt(policy.processor, row)) for row in rows}


def test_overlong_prompts_are_an_error(config: Make, tmp_path: Path) -> None:
    """The message names the first row, its length, the limit and three ways out; nothing is written."""
    lengths = prompt_lengths(config())
    longest = max(lengths.values())
    first = next(id for id, n in lengths.items() if n == longest)
    over = sum(n == longest for n in lengths.values())
    message = (
        f"questions: {over} of 5 prompts are longer than {longest - 1} tokens, first {first} with {longest}, "
        f"longest {longest}; raise data.max_prompt_tokens, lower model.max_pixels, or set data.on_overlong=reject"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        train(config(data={"max_prompt_tokens": longest - 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overlong_prompts_can_be_rejected(config: Make, tmp_path: Path) -> None:
    """Each goes to rejects.jsonl with its length, none is trained on. The pairs are longer than any question, so
    they would all go: that is an error in either mode."""
    lengths = prompt_lengths(config())
    limit = sorted(lengths.values())[2]
    rejected = {id for id, n in lengths.items() if n > limit}
    settings = {"max_prompt_tokens": limit, "on_overlong": "reject", "pairs": None}
    objective = [{"term": "policy", "rewards": config().objective[0].rewards}]
    changed = config(steps=6, data=settings, objective=objective, log={"samples_per_step": 2})
    train(changed, tmp_path / "run")
    found = records(tmp_path / "run", "rejects")
    assert {(r["kind"], r["id"], r["reason"]) for r in found} == {
        ("questions", id, f"prompt of {lengths[id]} tokens") for id in rejected
    }
    assert {r["id"] for r in records(tmp_path / "run", "samples")} == set(lengths) - rejected
    with pytest.raises(DataError, match="^pairs: 4 of 4 prompts are longer"):
        train(config(data={"max_prompt_tokens": limit, "on_overlong": "reject"}), tmp_path / "other")


# ---------------------------------------------------------------- what goes wrong


class Poisoned:
    """A term whose loss is `value`, or whose gradient is not finite."""

    weight = 1.0

    def __init__(self, value: float) -> None:
        self.value = value

    def shares(self, policy: Policy, update: Update, budget_tokens: int) -> Iterator[Share]:
        parameter = next(p for p in policy.parameters() if p.requires_grad)
        if self.value == 0:
            yield lambda: ((parameter * 0).sum().sqrt(), {"part": 1.0})  # 0, with gradient inf * 0
        else:
            yield lambda: (parameter.sum() * self.value, {"part": self.value})


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_updates_that_are_not_finite_are_skipped(value: float, config: Make, tmp_path: Path) -> None:
    """Weights stay as they are and the metrics hold no NaN; a good update in between starts the count anew; the
    third in a row stops the run."""
    trainer = trainer_of(config(optim={"max_skipped_updates": 3}), tmp_path)
    good, update = trainer.terms, update_of(trainer.policy)

    def weights() -> list[Tensor]:
        return [p.detach().clone() for p in trainer.trainable]

    def poisoned_update() -> dict[str, float]:
        trainer.terms = [Poisoned(value)]
        return trainer.update(update)

    before = weights()
    for _ in range(2):
        metrics = poisoned_update()
        assert metrics["skipped_updates"] == 1.0
        assert all(math.isfinite(v) for v in metrics.values())
        json.dumps(metrics, allow_nan=False)
    assert all(torch.equal(a, b) for a, b in zip(weights(), before, strict=True))
    trainer.terms = good
    assert trainer.update(update)["skipped_updates"] == 0.0
    assert not all(torch.equal(a, b) for a, b in zip(weights(), before, strict=True))
    for _ in range(2):
        poisoned_update()
    with pytest.raises(NonFiniteUpdatesError, match="3 updates in a row with a non-finite loss or gradient"):
        poisoned_update()


def failing_reward(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    for row in rows:
        if row["id"] == "q3":
            raise KeyError("no such thing")
    return [0.0] * len(rows)


def test_a_failing_reward_names_its_row(config: Make, tmp_path: Path) -> None:
    """Five questions, two per step: by the third step q3 has come up. The run stops there."""
    name = f"{failing_reward.__module__}:failing_reward"
    objective = [{"term": "policy", "rewards": {name: 1.0}}]
    with pytest.raises(RewardError, match=r"failed on row 'q3': KeyError"):
        train(config(steps=3, objective=objective), tmp_path)
    assert not (tmp_path / "final").exists()


def test_an_unknown_reward_is_found_before_training(config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        train(config(objective=[{"term": "policy", "rewards": {"acuracy": 1.0}}]), tmp_path)


def test_run_folders(config: Make, tmp_path: Path) -> None:
    """An existing run is not overwritten, nothing cannot be resumed, other settings cannot be slipped in; the
    log section may change."""
    train(config(steps=1), tmp_path / "run")
    with pytest.raises(InputError, match="exists and is not empty"):
        train(config(steps=1), tmp_path / "run")
    with pytest.raises(InputError, match="nothing to resume"):
        train(config(steps=1), tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match=r"another configuration \(steps, rollout\)"):
        train(config(steps=2, rollout={"temperature": 0.5}), tmp_path / "run", resume=True)
    train(config(steps=1, log={"save_every": 1}), tmp_path / "run", resume=True)


def test_a_missing_tracker(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]  # makes the import fail
    with pytest.raises(MissingExtraError, match=re.escape("vlm-contextrl[wandb]")):
        train(config(log={"trackers": ["wandb"]}), tmp_path)


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
    assert [set(t) for t in records(tmp_path, "timings")] == [{"step", "rollout_s", "update_s"}] * 4
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
    from tests.tiny_models import odd_bytes

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
