"""The selection loss L_CA: choose the context that supports the answer, by teacher forcing on its letter.

    D = l+ - log sum_{k != +} exp(l_k)          for two options the margin D = l+ - l-
    L = 1/pairs sum_z -log sigmoid(clip(D_z))

l_k is the logit of option letter k at the position after the prompt, l+ the one of the context that supports
the answer. -log sigmoid(D) is exactly the cross-entropy over the K options, so K > 2 (`contexts`, ours) is the same loss: the pair's two
contexts and K - 2 of other pairs, which answer the same query differently, or another one (training_rows.py).
Source: arXiv 2606.17053 (two options, clip to [-c, c] with c = 5).

clip "two_sided" (the paper): no gradient outside [-c, c], neither for pairs that are confidently right
nor for pairs that are confidently wrong. "one_sided": only the confidently right ones are flat, so the
confidently wrong keep their gradient. "none": plain cross-entropy.

orders "random" (ours; the paper does not say): one row per pair. "both" (ours): every pair is shown in both option
orders and the loss is taken of the average margin, which cancels a constant preference for a position.

Denominator: `pairs` is the number of pairs of the WHOLE optimizer step over all ranks, so the losses (and
metrics) of its micro-batches add up; both rows of a pair must be in the same micro-batch. The weight lambda
is the trainer's.

Left out: `reverse: true`, which adds the instance (A', C-, C+) of pairs whose confounder answer is known; it
only changes which instances are built. Normalising over the whole vocabulary: only option letters are
compared.

B rows, O options, Z pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from vlm_contextrl.errors import ConfigError

Clip = Literal["two_sided", "one_sided", "none"]
Orders = Literal["random", "both"]


@dataclass(frozen=True)
class SelectionConfig:
    """clip and orders as in the header of this file; clip_value: c, in logits."""

    clip: Clip = "two_sided"
    clip_value: float = 5.0
    orders: Orders = "random"

    def __post_init__(self) -> None:
        if self.clip not in get_args(Clip):
            clips = ", ".join(get_args(Clip))
            raise ConfigError(f"selection_loss.clip is {self.clip!r}, expected one of {clips}")
        if self.orders not in get_args(Orders):
            raise ConfigError(
                f"selection_loss.orders is {self.orders!r}, expected one of {', '.join(get_args(Orders))}"
            )
        if not self.clip_value > 0:
            raise ConfigError(f"selection_loss.clip_value is {self.clip_value!r}, expected a positive number")

    @property
    def rows_per_pair(self) -> int:
        return 2 if self.orders == "both" else 1


@dataclass(frozen=True, eq=False)
class SelectionBatch:
    """logits_BO: logits of the option letters at the position after the prompt, column k being the k-th
    option shown. support_B: index of the option whose context supports the answer. pair_index_B: for
    orders="both", equal numbers mark the two rows of a pair; without it rows 2z and 2z + 1 are pair z.
    """

    logits_BO: Tensor
    support_B: Tensor
    pair_index_B: Tensor | None = None


def selection_loss(
    batch: SelectionBatch, config: SelectionConfig, pairs: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """This batch's share of the step's loss (0-d, with gradient) and of its metrics (0-d, detached).

    Metrics, means over pairs unless said otherwise: selection_loss; selection_accuracy (the supporting
    logit is the largest, which is D > 0 for two options; a tie is wrong); margin; outside_clip_right
    (D > c) and outside_clip_wrong (D < -c), whatever the clip is; no_gradient (the pairs that the clip
    really flattens); position_a_rate (rows whose largest logit is the first option's, a tie of k counting
    1/k; 1/K is unbiased).

    Raises ValueError for inconsistent shapes, and for pairs that are not two rows with different positions
    of the support.
    """
    if pairs <= 0:
        raise ValueError(f"pairs is {pairs}, expected the number of pairs in the whole step")
    margins_B, ahead_B = _margins(batch)
    margins_Z = _average_orders(margins_B, batch) if config.orders == "both" else margins_B
    c = config.clip_value
    if config.clip == "two_sided":
        clipped_Z = margins_Z.clamp(-c, c)
    elif config.clip == "one_sided":
        clipped_Z = margins_Z.clamp(max=c)
    else:
        clipped_Z = margins_Z
    loss = softplus(-clipped_Z).sum() / pairs

    detached_Z, logits_BO = margins_Z.detach(), batch.logits_BO.detach()
    ahead_Z = detached_Z if config.orders == "both" else ahead_B.detach()
    right_Z, wrong_Z = detached_Z > c, detached_Z < -c
    flat = {"two_sided": right_Z | wrong_Z, "one_sided": right_Z, "none": torch.zeros_like(right_Z)}
    largest_BO = (logits_BO == logits_BO.amax(dim=1, keepdim=True)).to(margins_B.dtype)

    def share(is_so_Z: Tensor) -> Tensor:
        return is_so_Z.to(detached_Z.dtype).sum() / pairs

    metrics = {
        "selection_loss": loss.detach(),
        "selection_accuracy": share(ahead_Z > 0),
        "margin": detached_Z.sum() / pairs,
        "outside_clip_right": share(right_Z),
        "outside_clip_wrong": share(wrong_Z),
        "no_gradient": share(flat[config.clip]),
        "position_a_rate": (largest_BO[:, 0] / largest_BO.sum(dim=1)).sum() / (pairs * config.rows_per_pair),
    }
    return loss, metrics


def _margins(batch: SelectionBatch) -> tuple[Tensor, Tensor]:
    """Logit of the supporting option minus the log-sum-exp of the others', and minus the largest of the others', per row; at least in
    float32."""
    logits_BO, support_B = batch.logits_BO, batch.support_B.long()
    if logits_BO.dim() != 2 or logits_BO.shape[1] < 2 or support_B.shape != logits_BO.shape[:1]:
        shapes = f"logits {list(logits_BO.shape)} and support {list(support_B.shape)}"
        raise ValueError(f"selection batch with {shapes}, expected [rows, at least 2 options] and [rows]")
    if logits_BO.dtype in (torch.float16, torch.bfloat16):
        logits_BO = logits_BO.float()
    is_support_BO = one_hot(support_B, logits_BO.shape[1]).bool()
    others_BO = logits_BO.masked_fill(is_support_BO, -torch.inf)
    support_logit_B = logits_BO.gather(1, support_B.unsqueeze(1)).squeeze(1)
    return support_logit_B - others_BO.logsumexp(dim=1), support_logit_B - others_BO.amax(dim=1)


def _average_orders(margins_B: Tensor, batch: SelectionBatch) -> Tensor:
    """Mean margin of the two rows of every pair, shape [Z], in the order of the pair numbers."""
    n_rows = margins_B.shape[0]
    if batch.pair_index_B is None:
        index_B = torch.arange(n_rows, device=margins_B.device) // 2
    else:
        index_B = torch.unique(batch.pair_index_B, return_inverse=True)[1]
    n_pairs = (n_rows + 1) // 2
    rows_Z = torch.bincount(index_B, minlength=n_pairs)
    if n_rows % 2 or rows_Z.shape[0] != n_pairs or bool((rows_Z != 2).any()):
        raise ValueError(
            f"orders 'both' with {rows_Z.tolist()} rows per pair, expected 2 rows for every pair"
        )
    order_B = torch.argsort(index_B, stable=True)
    support_Z2 = batch.support_B[order_B].view(n_pairs, 2)
    same_Z = support_Z2[:, 0] == support_Z2[:, 1]
    if bool(same_Z.any()):
        raise ValueError(
            f"orders 'both': {int(same_Z.sum())} pairs show the supporting context twice at the same position"
        )
    return margins_B[order_B].view(n_pairs, 2).mean(dim=1)
