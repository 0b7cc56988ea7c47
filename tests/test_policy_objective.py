"""The policy loss: numbers worked out by hand, a naive loop in float64, and the step's denominators.

B completions, T tokens.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_contextrl.errors import ConfigError
from vlm_contextrl.objectives import OBJECTIVES
from vlm_contextrl.objectives.policy import VARIANTS, PolicyBatch, PolicyConfig, StepTotals, policy_loss

ALL = list(VARIANTS)


def config_of(variant: str, **changes: Any) -> PolicyConfig:
    return PolicyConfig(**{"variant": variant, "max_tokens": 4, **changes})  # type: ignore[arg-type]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- the loss by hand: two completions of 3 and 1 tokens

MASK_BT = torch.tensor([[True, True, True], [True, False, False]])


def hand_batch(ref: bool = False) -> tuple[PolicyBatch, Tensor]:
    """Ratios [[1, 1.5, 0.5], [0.5, -, -]], advantages [1, -1]; old log-probs -1; NaN in the padding."""
    ratio_BT = tensor([[1.0, 1.5, 0.5], [0.5, math.nan, math.nan]])
    logps_BT = (ratio_BT.log() - 1).requires_grad_()
    old_BT = torch.where(MASK_BT, -1.0, math.nan).double()
    ref_BT = torch.where(MASK_BT, tensor([[-1.0, -1.0, -1.0], [-2.0, 0, 0]]), math.nan) if ref else None
    return PolicyBatch(logps_BT, old_BT, MASK_BT, tensor([1.0, -1.0]), ref_BT), logps_BT


def run(config: PolicyConfig, ref: bool = False) -> tuple[float, Tensor, dict[str, float]]:
    batch, logps_BT = hand_batch(ref)
    loss, metrics = policy_loss(batch, config, StepTotals.of(MASK_BT))
    loss.backward()
    assert logps_BT.grad is not None
    return loss.item(), logps_BT.grad, {name: value.item() for name, value in metrics.items()}


def test_grpo_by_hand() -> None:
    """Clip [0.8, 1.3]. Completion 1 (A = 1): min(1, 1) = 1, min(1.5, 1.3) = 1.3, min(0.5, 0.8) = 0.5; mean
    2.8 / 3. Completion 2 (A = -1): min(-0.5, -0.8) = -0.8; mean -0.8. L = -(2.8 / 3 - 0.8) / 2 =
    -0.0666667.

    Gradient with respect to logp is -A r / (n_i * 2) where the unclipped side was taken: token 1: -1/6,
    token 3: -0.5/6. Token 2 is clipped from above, completion 2 from below (A < 0 and r < 0.8): no
    gradient. One of 4 tokens each.
    """
    loss, grad, metrics = run(config_of("grpo"))
    assert loss == pytest.approx(-0.2 / 3, abs=1e-12)
    torch.testing.assert_close(grad, tensor([[-1 / 6, 0, -0.5 / 6], [0, 0, 0]]), rtol=0, atol=1e-12)
    assert metrics["clip_fraction_high"] == 0.25
    assert metrics["clip_fraction_low"] == 0.25
    assert metrics["ratio_minus_one"] == pytest.approx(3.5 / 4 - 1, abs=1e-12)
    # k3 of old against new: r - 1 - log r = 0, 0.5 - log 1.5, -0.5 + log 2 twice
    assert metrics["approx_kl"] == pytest.approx(
        (0.5 - math.log(1.5) + 2 * (math.log(2) - 0.5)) / 4, abs=1e-12
    )


def test_dapo_by_hand() -> None:
    """The same four terms 1 + 1.3 + 0.5 - 0.8 = 2, over 4 tokens: L = -0.5. Gradients -A r / 4."""
    loss, grad, _ = run(config_of("dapo"))
    assert loss == pytest.approx(-0.5, abs=1e-12)
    torch.testing.assert_close(grad, tensor([[-0.25, 0, -0.125], [0, 0, 0]]), rtol=0, atol=1e-12)


def test_dr_grpo_by_hand() -> None:
    """The same sum 2, over 2 completions * max_tokens 4: L = -0.25. Gradients -A r / 8."""
    loss, grad, _ = run(config_of("dr_grpo"))
    assert loss == pytest.approx(-0.25, abs=1e-12)
    torch.testing.assert_close(grad, tensor([[-0.125, 0, -0.0625], [0, 0, 0]]), rtol=0, atol=1e-12)


def test_gspo_by_hand() -> None:
    """s_1 = (1 * 1.5 * 0.5)^(1/3) = 0.75^(1/3) = 0.9085603, inside [0.8, 1.3]; s_2 = 0.5, below.
    L = -(0.9085603 * 1 + min(-0.5, -0.8)) / 2 = -(0.9085603 - 0.8) / 2 = -0.0542801.
    Gradient of completion 1: -s_1 / 3 / 2 for each of its tokens. One of two completions is clipped.
    """
    s_1 = 0.75 ** (1 / 3)
    loss, grad, metrics = run(config_of("gspo"))
    assert loss == pytest.approx(-(s_1 - 0.8) / 2, abs=1e-12)
    torch.testing.assert_close(grad, tensor([[-s_1 / 6] * 3, [0, 0, 0]]), rtol=0, atol=1e-12)
    assert metrics["clip_fraction_low"] == 0.5
    assert metrics["clip_fraction_high"] == 0.0
    assert metrics["ratio_minus_one"] == pytest.approx((s_1 + 0.5) / 2 - 1, abs=1e-12)


def test_cispo_by_hand() -> None:
    """Weights min(r, 1.2) = [1, 1.2, 0.5 | 0.5], all tokens keep a gradient: -w A / 4.
    L = -(1 * (0 - 1) + 1.2 (log 1.5 - 1) + 0.5 (log 0.5 - 1) - 0.5 (log 0.5 - 1)) / 4 = (1 + 1.2 (1 - log
    1.5)) / 4.
    """
    loss, grad, metrics = run(config_of("cispo", cispo_cap=1.2))
    assert loss == pytest.approx((1 + 1.2 * (1 - math.log(1.5))) / 4, abs=1e-12)
    torch.testing.assert_close(grad, tensor([[-0.25, -0.3, -0.125], [0.125, 0, 0]]), rtol=0, atol=1e-12)
    assert metrics["clip_fraction_high"] == 0.25
    assert metrics["clip_fraction_low"] == 0.0


def test_dual_clip_by_hand() -> None:
    """One token with A = -1 and ratio 5: grpo takes -5 (a ratio above the range is not clipped for A < 0),
    dual clip bounds the gain by -3, so the loss is 3 and flat.
    """
    logps_BT = tensor([[math.log(5.0)]]).requires_grad_()
    batch = PolicyBatch(logps_BT, tensor([[0.0]]), torch.tensor([[True]]), tensor([-1.0]))
    loss, _ = policy_loss(batch, config_of("grpo"), StepTotals(1, 1))
    assert loss.item() == pytest.approx(5.0, abs=1e-12)
    loss, _ = policy_loss(batch, config_of("grpo", dual_clip=3.0), StepTotals(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(3.0, abs=1e-12)
    assert logps_BT.grad is not None
    assert logps_BT.grad.item() == 0


@pytest.mark.parametrize("variant", ALL)
def test_kl_by_hand(variant: str) -> None:
    """d = ref - logp = [-log 1, -log 1.5, log 2 | -1 + log 2], k3 = exp(d) - d - 1:
    0, 2/3 + log 1.5 - 1, 2 - log 2 - 1, 2/e + 1 - log 2 - 1. Reduced like the variant, times kl_coef = 0.1.
    """
    k = [0, 2 / 3 + math.log(1.5) - 1, 1 - math.log(2), 2 / math.e - math.log(2)]
    expected = {
        "sequence_mean": (sum(k[:3]) / 3 + k[3]) / 2,
        "token_mean": sum(k) / 4,
        "constant": sum(k) / 8,
    }[VARIANTS[variant].denominator]  # type: ignore[index]
    without, _, _ = run(config_of(variant))
    with_kl, _, metrics = run(config_of(variant, kl_coef=0.1), ref=True)
    assert metrics["kl"] == pytest.approx(expected, abs=1e-12)
    assert with_kl == pytest.approx(without + 0.1 * expected, abs=1e-12)
    assert metrics["policy_loss"] == pytest.approx(without, abs=1e-12)


def test_kl_gradient_pulls_towards_the_reference() -> None:
    """d/dlogp of exp(ref - logp) - (ref - logp) - 1 is 1 - exp(ref - logp): positive above the reference,
    negative below."""
    logps_BT = tensor([[-1.0, -3.0]]).requires_grad_()
    mask_BT = torch.ones(1, 2, dtype=torch.bool)
    batch = PolicyBatch(logps_BT, logps_BT.detach(), mask_BT, tensor([0.0]), tensor([[-2.0, -2.0]]))
    loss, _ = policy_loss(batch, config_of("dapo", kl_coef=1.0), StepTotals(1, 2))
    loss.backward()
    assert logps_BT.grad is not None
    expected = tensor([[(1 - math.exp(-1)) / 2, (1 - math.exp(1)) / 2]])
    torch.testing.assert_close(logps_BT.grad, expected, rtol=0, atol=1e-12)


# ---- properties


def random_batch(seed: int, n_rows: int = 8, n_tokens: int = 5, spread: float = 0.4) -> PolicyBatch:
    generator = torch.Generator().manual_seed(seed)
    old_BT = -torch.rand(n_rows, n_tokens, generator=generator, dtype=torch.float64) - 0.1
    logps_BT = (
        old_BT + spread * torch.randn(n_rows, n_tokens, generator=generator, dtype=torch.float64)
    ).requires_grad_()
    ref_BT = old_BT + 0.2 * torch.randn(n_rows, n_tokens, generator=generator, dtype=torch.float64)
    lengths_B = torch.randint(1, n_tokens + 1, (n_rows,), generator=generator)
    lengths_B[0] = 0  # a completion without tokens
    mask_BT = torch.arange(n_tokens) < lengths_B[:, None]
    advantages_B = torch.randn(n_rows, generator=generator, dtype=torch.float64)
    return PolicyBatch(logps_BT, old_BT, mask_BT, advantages_B, ref_BT)


def naive_loss(batch: PolicyBatch, config: PolicyConfig, totals: StepTotals) -> float:
    """The formulas of policy.py, token by token."""
    per_row: list[list[float]] = []
    assert batch.ref_logps_BT is not None
    for row in range(batch.logps_BT.shape[0]):
        tokens = [t for t in range(batch.logps_BT.shape[1]) if batch.mask_BT[row, t]]
        advantage = batch.advantages_B[row].item()
        logps = [batch.logps_BT[row, t].item() for t in tokens]
        logs = [logp - batch.old_logps_BT[row, t].item() for logp, t in zip(logps, tokens, strict=True)]
        if config.variant == "gspo" and tokens:
            logs = [sum(logs) / len(logs)] * len(logs)
        values = []
        for logp, log_ratio, t in zip(logps, logs, tokens, strict=True):
            ratio = math.exp(log_ratio)
            if config.variant == "cispo":
                value = -min(ratio, config.cispo_cap) * advantage * logp
            else:
                clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
                value = -min(ratio * advantage, clipped * advantage)
                if config.dual_clip is not None and advantage < 0:
                    value = min(value, -config.dual_clip * advantage)
            difference = batch.ref_logps_BT[row, t].item() - logp
            values.append(value + config.kl_coef * (math.exp(difference) - difference - 1))
        per_row.append(values)
    denominator = VARIANTS[config.variant].denominator
    if denominator == "sequence_mean":
        return sum(sum(values) / len(values) for values in per_row if values) / totals.sequences
    total = sum(sum(values) for values in per_row)
    if denominator == "token_mean":
        return total / totals.tokens
    assert config.max_tokens is not None
    return total / (totals.sequences * config.max_tokens)


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_parity_with_a_naive_loop(variant: str, seed: int, dual_clip: float | None) -> None:
    batch = random_batch(seed, spread=0.8)
    config = config_of(variant, kl_coef=0.05, cispo_cap=1.2, dual_clip=dual_clip)
    totals = StepTotals(sequences=11, tokens=37)
    loss, _ = policy_loss(batch, config, totals)
    assert loss.item() == pytest.approx(naive_loss(batch, config, totals), abs=1e-12)


@pytest.mark.parametrize("variant", ALL)
def test_micro_batches_add_up_to_the_step(variant: str) -> None:
    """Loss, gradient and every metric: one batch of 8 rows against 4 of 2, with the same totals."""
    config = config_of(variant, kl_coef=0.05, cispo_cap=1.2)
    whole = random_batch(3)
    totals = StepTotals.of(whole.mask_BT)
    loss, metrics = policy_loss(whole, config, totals)
    loss.backward()
    logps_BT = whole.logps_BT.detach().clone().requires_grad_()
    assert whole.ref_logps_BT is not None
    summed_loss, summed = 0.0, dict.fromkeys(metrics, 0.0)
    for start in range(0, 8, 2):
        rows = slice(start, start + 2)
        part = PolicyBatch(
            logps_BT[rows],
            whole.old_logps_BT[rows],
            whole.mask_BT[rows],
            whole.advantages_B[rows],
            whole.ref_logps_BT[rows],
        )
        part_loss, part_metrics = policy_loss(part, config, totals)
        part_loss.backward()
        summed_loss += part_loss.item()
        summed = {name: summed[name] + value.item() for name, value in part_metrics.items()}
    assert summed_loss == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(logps_BT.grad, whole.logps_BT.grad, rtol=0, atol=1e-14)
    for name, value in metrics.items():
        assert summed[name] == pytest.approx(value.item(), abs=1e-12), name


@pytest.mark.parametrize("variant", ALL)
def test_on_policy_gradient_is_reinforce(variant: str) -> None:
    """At ratio 1 nothing is clipped and dL/dlogp_it = -A_i / denominator_i: 1/(n_i N), 1/tokens or 1/(N
    max_tokens)."""
    batch = random_batch(4, spread=0.0)
    totals = StepTotals.of(batch.mask_BT)
    loss, metrics = policy_loss(batch, config_of(variant), totals)
    loss.backward()
    n_tokens_B1 = batch.mask_BT.sum(1, keepdim=True).clamp(min=1).double()
    scale = {
        "sequence_mean": 1 / (n_tokens_B1 * totals.sequences),
        "token_mean": torch.ones_like(n_tokens_B1) / totals.tokens,
        "constant": torch.ones_like(n_tokens_B1) / (totals.sequences * 4),
    }[VARIANTS[variant].denominator]  # type: ignore[index]
    expected = -batch.advantages_B[:, None] * scale * batch.mask_BT
    torch.testing.assert_close(batch.logps_BT.grad, expected, rtol=0, atol=1e-14)
    assert metrics["clip_fraction_low"] == 0
    assert metrics["clip_fraction_high"] == 0
    assert metrics["approx_kl"].item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("variant", ALL)
def test_descent_raises_good_completions_and_lowers_bad_ones(variant: str) -> None:
    batch = random_batch(5, spread=0.0)
    loss, _ = policy_loss(batch, config_of(variant), StepTotals.of(batch.mask_BT))
    loss.backward()
    assert batch.logps_BT.grad is not None
    step_BT = -batch.logps_BT.grad[batch.mask_BT]
    advantages_BT = batch.advantages_B[:, None].expand_as(batch.mask_BT)[batch.mask_BT]
    assert torch.equal(step_BT.sign(), advantages_BT.sign())


@pytest.mark.parametrize("variant", ALL)
def test_padding_does_not_matter(variant: str) -> None:
    """NaN or infinity outside the mask changes neither loss nor gradient, and gets none."""
    clean, dirty = random_batch(6), random_batch(6)
    garbage = torch.where(dirty.mask_BT, 0.0, math.nan)
    assert dirty.ref_logps_BT is not None
    logps_BT = (dirty.logps_BT.detach() + garbage).requires_grad_()
    dirty = replace(
        dirty,
        logps_BT=logps_BT,
        old_logps_BT=dirty.old_logps_BT - garbage,
        ref_logps_BT=dirty.ref_logps_BT + garbage,
    )
    config, totals = config_of(variant, kl_coef=0.1), StepTotals.of(clean.mask_BT)
    for batch in (clean, dirty):
        policy_loss(batch, config, totals)[0].backward()
    torch.testing.assert_close(logps_BT.grad, clean.logps_BT.grad, rtol=0, atol=0)
    assert logps_BT.grad is not None
    assert (logps_BT.grad[~dirty.mask_BT] == 0).all()


@pytest.mark.parametrize("variant", ALL)
def test_a_wild_log_ratio_stays_finite(variant: str) -> None:
    logps_BT = torch.tensor([[0.0, -500.0]]).requires_grad_()
    mask_BT = torch.ones(1, 2, dtype=torch.bool)
    batch = PolicyBatch(
        logps_BT, torch.tensor([[-500.0, 0.0]]), mask_BT, torch.tensor([-1.0]), torch.tensor([[-500.0, 0.0]])
    )
    loss, metrics = policy_loss(batch, config_of(variant, kl_coef=0.1), StepTotals(1, 2))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logps_BT.grad is not None
    assert logps_BT.grad.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())


# ---- settings


def test_settings_of_the_papers() -> None:
    assert PolicyConfig() == PolicyConfig(variant="grpo", clip_low=0.2, clip_high=0.3, kl_coef=0.0)
    assert PolicyConfig.of_paper("dapo").clip_high == 0.28
    assert PolicyConfig.of_paper("gspo").clip_low == 3e-4
    assert PolicyConfig.of_paper("dr_grpo", max_tokens=64).max_tokens == 64
    assert {name: variant.advantage_scale for name, variant in VARIANTS.items()} == {
        "grpo": "group",
        "dr_grpo": "none",
        "dapo": "group",
        "gspo": "group",
        "cispo": "group",
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"variant": "ppo"}, "variant"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"variant": "dr_grpo"}, "max_tokens"),
        ({"cispo_cap": 0.0}, "cispo_cap"),
        ({"dual_clip": 1.0}, "dual_clip"),
    ],
)
def test_wrong_settings_name_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.{field} is .*, expected"):
        PolicyConfig(**changes)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="no ref_logps_BT"):
        run(config_of("grpo", kl_coef=0.1))
    with pytest.raises(ValueError, match="expected both positive"):
        StepTotals(0, 1)


def test_every_objective_in_the_table_exists() -> None:
    for module in OBJECTIVES.values():
        importlib.import_module(module)
