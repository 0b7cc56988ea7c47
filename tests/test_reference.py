"""The trainer against the flat reference: one batch, one loss, one gradient.

The reference repeats prompts and pixels for every completion and runs transformers' plain forward; the trainer
packs, caches and cuts into micro-batches. float64 means all of it: transformers' own float32 casts (RMSNorm,
rotary positions of the vision tower) are taken out for these tests. With them in place two exact ways agree to
3e-8 in the gradient, because sums of rounded numbers are compared with rounded sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import (
    FAMILIES,
    context_is_first,
    given_groups,
    gradients,
    image_pair,
    plain_model,
    question,
    run_config,
    strict_float64,
    tiny_policy,
    worst_difference,
)
from vlm_contextrl import reference
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.pairs import ContrastivePair
from vlm_contextrl.policy import Policy
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.runlog import RunDirectory
from vlm_contextrl.terms import Update
from vlm_contextrl.trainer import Trainer

SELECTION_WEIGHT = 0.5
PAIRS = [image_pair(n, None) for n in range(5)]


def by_trainer(
    policy: Policy, config: Any, folder: Path, pairs: list[ContrastivePair], dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    run = RunDirectory(folder, config, resume=False)
    trainer = Trainer(config, run, Ranks(), policy, [], [0], pairs, [0], HeldOut(config.data))
    metrics = trainer.backward(Update(given_groups(policy, dtype), pairs, "3"))
    return metrics["loss"], gradients(policy)


def by_reference(
    policy: Policy, pairs: list[ContrastivePair], dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    groups = given_groups(policy, dtype)
    loss = reference.step_loss(
        policy.base,
        policy.processor,
        [g.row for g in groups],
        [[c.ids for c in g.completions] for g in groups],
        [torch.tensor(g.rewards, dtype=dtype) for g in groups],
        pairs,
        [context_is_first("3", pair) for pair in pairs],
        reference.Settings(completions_per_prompt=3, selection_weight=SELECTION_WEIGHT),
    )
    loss.backward()
    return loss.item(), gradients(policy)


@pytest.mark.parametrize("budget", [10**6, 250])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_trainer_and_reference_agree(
    family: str,
    dtype: torch.dtype,
    tolerance: float,
    budget: int,
    qwen_folders: dict[str, Path],
    noise_rows: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loss and gradient of every parameter, vision tower included: 1e-10 in float64, 1e-6 in float32.

    Four groups of ragged completions about 1, 2, 0 and 1 images, one without advantage, and five pairs in fixed
    orders; in one batch and in micro-batches.
    """
    if dtype == torch.float64:
        strict_float64(monkeypatch)
    policy = tiny_policy(qwen_folders[family]).to(dtype)
    config = run_config(
        qwen_folders[family],
        noise_rows,
        objective=[{"term": "policy"}, {"term": "selection_loss", "weight": SELECTION_WEIGHT}],
        optim={"tokens_per_micro_batch": budget},
    )
    loss, grads = by_trainer(policy, config, tmp_path, PAIRS, dtype)
    oracle = Policy(plain_model(qwen_folders[family]).to(dtype), policy.processor)
    expected_loss, expected_grads = by_reference(oracle, PAIRS, dtype)
    assert len(grads) == sum(1 for _ in policy.parameters())
    assert loss == pytest.approx(expected_loss, abs=tolerance)
    assert max(float(g.abs().max()) for g in expected_grads.values()) > 1e-2  # there is something to compare
    assert worst_difference(grads, expected_grads) < tolerance


def test_disagreement_shows(
    qwen_folders: dict[str, Path], noise_rows: dict[str, Path], tmp_path: Path
) -> None:
    """One option order flipped, or lambda a tenth off: far outside the tolerance."""
    folder = qwen_folders["qwen2_5_vl"]
    policy = tiny_policy(folder)
    right = by_reference(policy, PAIRS, torch.float32)[1]
    for weight, flipped in ((SELECTION_WEIGHT, 0), (SELECTION_WEIGHT * 1.1, None)):
        objective = [{"term": "policy"}, {"term": "selection_loss", "weight": weight}]
        config = run_config(folder, noise_rows, objective=objective)
        pairs = list(PAIRS)
        if flipped is not None:
            pair = pairs[flipped]
            pairs[flipped] = (
                image_pair(flipped, "7").reversed() or pair
            )  # the same answer, contexts exchanged
        _, wrong = by_trainer(policy, config, tmp_path / str(weight), pairs, torch.float32)
        assert worst_difference(wrong, right) > 1e-4


# ---------------------------------------------------------------- the reference by itself


def test_advantages_by_hand() -> None:
    """Rewards 1 0 0 0: mean 1/4, unbiased deviation sqrt(3/4 * 1/4 * 4 / 3) = 1/2; advantages 1.5 and -0.5."""
    found = reference.group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([1.5, -0.5, -0.5, -0.5]), rtol=0, atol=1e-5)


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5 and 1 with advantage 1: clipped at 1.3, so -(1.3 + 1) / 2 = -1.15. Ratio 0.5 with advantage -2:
    clipped at 0.8, the minimum is -1.6, so 1.6. Mean over the two completions: 0.225."""
    logps = [torch.tensor([1.5, 1.0]).log(), torch.tensor([0.5]).log()]
    old = [torch.zeros(2), torch.zeros(1)]
    loss = reference.policy_loss(logps, old, torch.tensor([1.0, -2.0]), reference.Settings())
    assert loss.item() == pytest.approx(0.225, abs=1e-6)


def test_rollout_stops_and_repeats(qwen_folders: dict[str, Path]) -> None:
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    settings = reference.Settings(completions_per_prompt=3, max_new_tokens=5)
    prompt = reference.question_prompt(policy.processor, question(0))

    def once(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        found = reference.rollout(policy.base, policy.processor, prompt, settings, generator)
        return [c.tolist() for c in found]

    completions = once(0)
    assert completions == once(0) != once(1)
    for ids in completions:
        assert 1 <= len(ids) <= 5
        assert len(ids) == 5 or ids[-1] in policy.processor.end_ids


def test_rollout_never_samples_a_placeholder(qwen_folders: dict[str, Path]) -> None:
    """A sampled image token would need pixels that do not exist: the next forward would fail."""
    policy = tiny_policy(qwen_folders["qwen2_5_vl"], trainable=False)
    head, image_token = policy.base.lm_head, policy.processor.image_token_id
    original = head.forward

    def forward(hidden: Tensor) -> Tensor:
        logits: Tensor = original(hidden)
        logits[..., image_token] += 20.0
        return logits

    head.forward = forward
    settings = reference.Settings(completions_per_prompt=2, max_new_tokens=3)
    prompt = reference.question_prompt(policy.processor, question(0))
    found = reference.rollout(
        policy.base, policy.processor, prompt, settings, torch.Generator().manual_seed(0)
    )
    assert all(image_token not in ids.tolist() for ids in found)


@pytest.mark.parametrize("part", ["policy", "selection"])
def test_a_step_goes_the_right_way(part: str, qwen_folders: dict[str, Path]) -> None:
    """A small step of plain gradient descent gains lr * |g|^2: off the selection loss of its pairs, or onto the
    advantage-weighted log-probs, mean over completions of A * mean over tokens, whose gradient is that of the
    policy loss (whose own value is always 0 on policy)."""
    policy = tiny_policy(qwen_folders["qwen3_vl"])
    groups, settings = given_groups(policy), reference.Settings(selection_weight=1.0)
    completions = [[c.ids for c in g.completions] for g in groups]
    advantages = [reference.group_advantages(torch.tensor(g.rewards)) for g in groups]
    rewards = [torch.tensor(g.rewards) * (part == "policy") for g in groups]
    pairs, first = (
        (PAIRS, [context_is_first("0", pair) for pair in PAIRS]) if part == "selection" else ([], [])
    )

    @torch.no_grad()
    def worth() -> float:
        if part == "selection":
            return -reference.selection_loss(policy.base, policy.processor, pairs, first, settings).item()
        flat = [c for group in completions for c in group]
        prompts = [g.prompt for g in groups for _ in g.completions]
        logps = reference.completion_logps(policy.base, policy.processor, prompts, flat, 1.0)
        means = torch.stack([logp.mean() for logp in logps])
        return (means * torch.cat(advantages)).mean().item()

    before, lr = worth(), 1e-3
    rows = [g.row for g in groups]
    reference.step_loss(
        policy.base, policy.processor, rows, completions, rewards, pairs, first, settings
    ).backward()
    squared = sum(float(p.grad.pow(2).sum()) for p in policy.parameters() if p.grad is not None)
    torch.optim.SGD(policy.parameters(), lr=lr).step()
    assert worth() - before == pytest.approx(lr * squared, rel=0.2)


def test_train_step_runs(qwen_folders: dict[str, Path]) -> None:
    """Two steps change the weights; with the same generator they are the same two steps."""
    ends = []
    for _ in range(2):
        policy = tiny_policy(qwen_folders["qwen2_5_vl"])
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
        settings = reference.Settings(completions_per_prompt=2, max_new_tokens=2, selection_weight=1.0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            metrics = reference.train_step(
                policy.base, policy.processor, optimizer, [question(0)], PAIRS[:2], settings, generator
            )
        assert metrics.keys() == {"loss", "reward"}
        assert 0 <= metrics["reward"] <= 1
        ends.append((metrics, dict(policy.base.named_parameters())))
    start = dict(plain_model(qwen_folders["qwen2_5_vl"]).named_parameters())
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][name], ends[1][1][name]) for name in start)
    assert any(not torch.equal(ends[0][1][name], start[name]) for name in start)
