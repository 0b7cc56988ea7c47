"""The policy term: GRPO and its variants, with an optional KL to a reference model.

With r_it = exp(logp_it - old_logp_it), A_i the advantage of completion i and n_i its tokens:

    grpo     L = -1/N sum_i 1/n_i sum_t min(r_it A_i, clip(r_it, 1 - low, 1 + high) A_i)
    dapo     the same terms summed over all tokens, divided by the number of tokens in the step
    dr_grpo  the same terms summed over all tokens, divided by N * max_tokens
    gspo     grpo with one ratio per completion, s_i = exp(1/n_i sum_t (logp_it - old_logp_it))
    cispo    L = -1/tokens sum_it detach(min(r_it, cap)) A_i logp_it
    KL       + kl_coef * (exp(d) - d - 1), d = ref_logp - logp (k3, low variance), reduced like its variant

Sources: arXiv 2402.03300 (grpo), 2503.14476 (dapo), 2503.20783 (dr_grpo), 2507.18071 (gspo) and
2506.13585 (cispo).

Denominators: N and the number of tokens are totals of the WHOLE optimizer step over all ranks, given as
`StepTotals`. A call on a micro-batch returns its share: shares add up to the step's loss exactly, whatever
the accumulation. (Under DDP, which averages gradients over ranks, multiply by the number of ranks.) The
metrics are shares too: add them over micro-batches.

Deviations: log-ratios are clamped to +-20 before exp, as in EasyR1, so one wild token cannot overflow; its
gradient is zero. `dual_clip` (arXiv 1912.09729; EasyR1 has it on, at 3) is off unless given. CISPO's weight
has a cap and no lower bound. The published ContextRL settings are clip 0.2 / 0.3 and KL 0.01
(arXiv 2606.17053).

Left out: entropy bonus; masking of truncated completions (leave them out of the mask); importance
correction for the gap between rollout and training log-probs.

B completions, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vlm_contextrl.errors import ConfigError
from vlm_contextrl.objectives.advantages import AdvantageScale

PolicyVariant = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
LOG_RATIO_LIMIT = 20.0


class Variant(NamedTuple):
    """What defines a variant, and the settings of its paper."""

    denominator: Literal["sequence_mean", "token_mean", "constant"]
    advantage_scale: AdvantageScale
    clip_low: float
    clip_high: float


VARIANTS: dict[PolicyVariant, Variant] = {
    "grpo": Variant("sequence_mean", "group", 0.2, 0.2),
    "dr_grpo": Variant("constant", "none", 0.2, 0.2),
    "dapo": Variant("token_mean", "group", 0.2, 0.28),
    "gspo": Variant("sequence_mean", "group", 3e-4, 4e-4),
    "cispo": Variant("token_mean", "group", 0.2, 0.2),  # the clip range is not used, `cispo_cap` is
}


@dataclass(frozen=True)
class PolicyConfig:
    """variant: a key of VARIANTS. clip_low, clip_high: the ratio stays in [1 - low, 1 + high]. kl_coef: 0
    for no KL. max_tokens: the constant of dr_grpo, needed there (the completion limit). cispo_cap: largest
    weight of cispo. dual_clip: c > 1 bounds the loss of a negative advantage by c |A|; None for no bound.
    """

    variant: PolicyVariant = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.3
    kl_coef: float = 0.0
    max_tokens: int | None = None
    cispo_cap: float = 5.0
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        rules = {
            "variant": (self.variant in VARIANTS, f"one of {', '.join(get_args(PolicyVariant))}"),
            "clip_low": (0 <= self.clip_low < 1, "0 <= clip_low < 1"),
            "clip_high": (self.clip_high >= 0, "clip_high >= 0"),
            "kl_coef": (self.kl_coef >= 0, "kl_coef >= 0"),
            "max_tokens": (
                self.variant != "dr_grpo" or (self.max_tokens or 0) > 0,
                "the completion limit in tokens, which dr_grpo divides by",
            ),
            "cispo_cap": (self.cispo_cap > 0, "cispo_cap > 0"),
            "dual_clip": (self.dual_clip is None or self.dual_clip > 1, "dual_clip > 1, or none"),
        }
        for field, (holds, expected) in rules.items():
            if not holds:
                raise ConfigError(f"policy.{field} is {getattr(self, field)!r}, expected {expected}")

    @classmethod
    def of_paper(cls, variant: PolicyVariant, **changes: Any) -> PolicyConfig:
        """The variant with the clip range of its own paper."""
        found = VARIANTS[variant]
        settings = {"variant": variant, "clip_low": found.clip_low, "clip_high": found.clip_high}
        return cls(**{**settings, **changes})


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """logps_BT: log-probs of the completion tokens under the policy, with gradient. old_logps_BT: under the
    policy that sampled them; for one update per rollout, `logps_BT.detach()`. mask_BT: true on completion
    tokens; what stands elsewhere in the other tensors does not matter. advantages_B. ref_logps_BT: under
    the reference model, needed for a KL.
    """

    logps_BT: Tensor
    old_logps_BT: Tensor
    mask_BT: Tensor
    advantages_B: Tensor
    ref_logps_BT: Tensor | None = None


@dataclass(frozen=True)
class StepTotals:
    """Completions and completion tokens of the whole optimizer step, over all micro-batches and ranks."""

    sequences: float
    tokens: float

    def __post_init__(self) -> None:
        if self.sequences <= 0 or self.tokens <= 0:
            raise ValueError(
                f"step totals {self.sequences} sequences, {self.tokens} tokens; expected both positive"
            )

    @classmethod
    def of(cls, mask_BT: Tensor) -> StepTotals:
        """Totals of a step that is this one batch. A completion without tokens is a completion."""
        return cls(sequences=mask_BT.shape[0], tokens=float(mask_BT.bool().sum()))


def policy_loss(
    batch: PolicyBatch, config: PolicyConfig, normaliser: StepTotals
) -> tuple[Tensor, dict[str, Tensor]]:
    """This batch's share of the step's loss (0-d, with gradient) and of its metrics (0-d, detached).

    Metrics: policy_loss, kl (when a reference is given), ratio_minus_one, approx_kl (k3 of old against new
    policy), clip_fraction_low (A < 0 and the ratio below its bound), clip_fraction_high (A > 0 and above).
    The last four are means over tokens, for gspo over completions; all are 0 on policy, so completions that
    are left out because their advantage is 0 do not distort them.
    """
    mask_BT = batch.mask_BT.bool()
    logps_BT = batch.logps_BT.masked_fill(~mask_BT, 0.0)  # so that a NaN in the padding gets no gradient
    log_ratio_BT = logps_BT - batch.old_logps_BT.masked_fill(~mask_BT, 0.0)
    if config.variant == "gspo":
        n_tokens_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio_BT = (log_ratio_BT.sum(dim=1, keepdim=True) / n_tokens_B1).expand_as(log_ratio_BT)
    log_ratio_BT = log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_BT = log_ratio_BT.exp()
    advantages_B1 = batch.advantages_B.unsqueeze(1)

    if config.variant == "cispo":
        low, high = 0.0, config.cispo_cap
        gain_BT = ratio_BT.clamp(max=high).detach() * advantages_B1 * logps_BT
    else:
        low, high = 1 - config.clip_low, 1 + config.clip_high
        gain_BT = torch.min(ratio_BT * advantages_B1, ratio_BT.clamp(low, high) * advantages_B1)
        if config.dual_clip is not None:
            bounded_BT = torch.max(gain_BT, config.dual_clip * advantages_B1)
            gain_BT = torch.where(advantages_B1 < 0, bounded_BT, gain_BT)

    loss = policy_part = _reduce(-gain_BT, mask_BT, config, normaliser)
    metrics = {"policy_loss": policy_part}
    if batch.ref_logps_BT is not None:
        difference_BT = batch.ref_logps_BT.masked_fill(~mask_BT, 0.0) - logps_BT
        difference_BT = difference_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        kl = _reduce(difference_BT.exp() - difference_BT - 1, mask_BT, config, normaliser)
        loss = loss + config.kl_coef * kl
        metrics["kl"] = kl
    elif config.kl_coef > 0:
        raise ValueError(f"kl_coef is {config.kl_coef} but the batch has no ref_logps_BT")

    def share(values_BT: Tensor) -> Tensor:
        values_BT = values_BT.detach().to(ratio_BT.dtype) * mask_BT
        if config.variant == "gspo":
            return (values_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)).sum() / normaliser.sequences
        return values_BT.sum() / normaliser.tokens

    metrics["ratio_minus_one"] = share(ratio_BT - 1)
    metrics["approx_kl"] = share(ratio_BT - 1 - log_ratio_BT)
    metrics["clip_fraction_low"] = share((ratio_BT < low) & (advantages_B1 < 0))
    metrics["clip_fraction_high"] = share((ratio_BT > high) & (advantages_B1 > 0))
    return loss, {name: value.detach() for name, value in metrics.items()}


def _reduce(values_BT: Tensor, mask_BT: Tensor, config: PolicyConfig, totals: StepTotals) -> Tensor:
    """Sum of the masked values over this batch, divided by the step's denominator."""
    sums_B = (values_BT * mask_BT).sum(dim=1)
    denominator = VARIANTS[config.variant].denominator
    if denominator == "sequence_mean":
        return (sums_B / mask_BT.sum(dim=1).clamp(min=1)).sum() / totals.sequences
    if denominator == "token_mean":
        return sums_B.sum() / totals.tokens
    assert config.max_tokens is not None  # PolicyConfig sees to it
    return sums_B.sum() / (totals.sequences * config.max_tokens)
