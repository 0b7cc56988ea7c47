"""The perception term of PAPO: what the policy says given an image should be unlikely without seeing it.

With logp = log pi(o|q, I) of the completion tokens, masked = log pi(o|q, I_masked) of the same tokens, d = masked - logp, and means over
all tokens of an optimizer step:

    KL = mean( exp(d) - d - 1 )                              k3 estimate of KL(pi(o|q, I) || pi(o|q, I_masked))
    H  = mean( -logp )      H_masked = mean( -masked )       sampled estimates of the entropies ("double entropy")
    L  = -gamma KL + eta H + eta_masked H_masked

The KL is maximised. It has no upper bound, and a policy can raise it by rambling; the entropy terms are to hold that down. As sampled
estimates they do so through the value of the loss more than through its gradient: that of mean( -logp ) over completions of the very policy
that is trained is 0 in expectation (its sum over completions o of pi(o) grad log pi(o)), other than the gradient of the entropy itself.

Source: arXiv 2507.06448: gamma 0.01 to 0.02, eta = eta_masked 0.03 to 0.05; images masked by blackening squares of 14 px with
probability 0.6. As in its public code, `masked` is taken once per rollout by the policy that sampled, without gradient. H_masked is then a
constant: it shows in the loss and moves nothing. `masked_gradient: true` takes it anew in every update and gives it the gradient that
the formula asks for; the KL goes on taking it as a constant.

Denominator: `tokens` is the number of completion tokens of the WHOLE optimizer step over all ranks, so losses and metrics of its
micro-batches add up.

Deviations: squares lie on the resized image, so that they are as large as the model sees them. Completions of prompts without an
image are left out, here and in the number of tokens. d is clamped to +-20 and a token's KL to at most 10, as in EasyR1, on which the
public code is built; a token over that has no gradient from the KL. Groups whose rewards are all equal take part, as there.

Left out: annealing of gamma, weights per token or per completion.

B completions, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0


@dataclass(frozen=True)
class PerceptionConfig:
    """gamma, eta and eta_masked of this file's header."""

    kl_coef: float = 0.01
    entropy_coef: float = 0.03
    masked_entropy_coef: float = 0.03


@dataclass(frozen=True, eq=False)
class PerceptionBatch:
    """logps_BT: log-probs of the completion tokens given the images, with gradient. masked_logps_BT: given the masked images, with
    gradient or without. mask_BT: true on completion tokens; what stands elsewhere in the other tensors does not matter.
    """

    logps_BT: Tensor
    masked_logps_BT: Tensor
    mask_BT: Tensor


def perception_loss(
    batch: PerceptionBatch, config: PerceptionConfig, tokens: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """This batch's share of the step's loss (0-d, with gradient) and of its metrics (0-d, detached).

    Metrics, means over tokens: perception_loss, perception_kl, perception_kl_capped (share of tokens at the limit), sampled_entropy,
    masked_entropy (nats). Raises ValueError when `tokens` is not positive.
    """
    if tokens <= 0:
        raise ValueError(f"tokens is {tokens}, expected the number of completion tokens in the whole step")
    mask_BT = batch.mask_BT.bool()
    logps_BT = batch.logps_BT.masked_fill(~mask_BT, 0.0)  # so that a NaN in the padding gets no gradient
    masked_BT = batch.masked_logps_BT.masked_fill(~mask_BT, 0.0)
    difference_BT = (masked_BT.detach() - logps_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    k3_BT = difference_BT.exp() - difference_BT - 1  # 0 in the padding
    kl = k3_BT.clamp(max=KL_LIMIT).sum() / tokens
    entropy, masked_entropy = -logps_BT.sum() / tokens, -masked_BT.sum() / tokens
    loss = -config.kl_coef * kl + config.entropy_coef * entropy + config.masked_entropy_coef * masked_entropy
    metrics = {
        "perception_loss": loss,
        "perception_kl": kl,
        "perception_kl_capped": (k3_BT > KL_LIMIT).to(k3_BT.dtype).sum() / tokens,
        "sampled_entropy": entropy,
        "masked_entropy": masked_entropy,
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
