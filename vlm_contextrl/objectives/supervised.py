"""Supervised fine-tuning: teacher-forced cross-entropy on given answers.

    L = -1/tokens sum_it mask_it logp_it

The SFT stage of the DA-SFT arm (arXiv 2606.17053): the answers are the letters after selection prompts, each with the token that ends the
turn. (The embedded model is trained by sums of its own over packed rows, data_recipes/tinyvl.)

Deviation: the paper says "supervised fine-tuning on them first" and no more; prompt and letters are those of the selection loss, the
learning rate and the number of steps are ours.

Denominator: `tokens` is the number of masked tokens of the WHOLE optimizer step over all ranks, so the
losses (and metrics) of its micro-batches add up.

Left out: label smoothing, a weight per answer (every token counts the same, so long answers count more).

B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SupervisedBatch:
    """logps_BT: log-probs of the given tokens, with gradient. mask_BT: true on the answer's tokens; what
    stands elsewhere in logps_BT does not matter.
    """

    logps_BT: Tensor
    mask_BT: Tensor


def supervised_loss(batch: SupervisedBatch, tokens: float) -> tuple[Tensor, dict[str, Tensor]]:
    """This batch's share of the step's loss (0-d, with gradient) and of its metrics (0-d, detached).

    Metrics: supervised_loss (nats per token) and token_probability, the mean probability of an answer token.
    """
    if tokens <= 0:
        raise ValueError(f"tokens is {tokens}, expected the number of answer tokens in the whole step")
    mask_BT = batch.mask_BT.bool()
    logps_BT = batch.logps_BT.masked_fill(~mask_BT, 0.0)  # so that a NaN in the padding gets no gradient
    loss = -logps_BT.sum() / tokens
    probability = (logps_BT.detach().exp() * mask_BT).sum() / tokens
    return loss, {"supervised_loss": loss.detach(), "token_probability": probability}
