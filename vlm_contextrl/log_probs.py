"""Log-probabilities of labels and the entropy of the whole distribution, without logits over all tokens and all of the vocabulary.

    logp_l = z_l[label] - log sum_v exp z_lv          z = hidden @ weight.T / temperature
    H_l    = log sum_v exp z_lv - sum_v p_lv z_lv

Logits are made tile by tile (tokens x vocabulary) with a running log-sum-exp (arXiv 1805.02867). At 7B, 32k completion tokens and 152k
entries, float32 logits would take 20 GB; a tile takes 256 MiB, and four of its size are at work (4 MiB on a CPU, whose cache holds them).
The gradient that arrives at a log-probability is one number g_l, so the direction of the hidden state's gradient is known in the forward
pass, where the tile is at hand, and all that is kept of it is [L, H]:

    dL/dhidden_l = g_l d_l        d_l = ((1 - p_l[label]) weight[label] - sum over the others of p_lv weight_v) / temperature

Only a head that is trained has its tiles made anew in the backward pass. The entropy carries no gradient.

Shapes: L labelled positions, H hidden size, V vocabulary; l and v within a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = (2048, 32768)  # tokens, entries of the vocabulary
CPU_TILE = (1024, 1024)


def label_log_probs(
    hidden_LH: Tensor,
    weight_VH: Tensor,
    labels_L: Tensor,
    temperature: float = 1.0,
    *,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(log-probabilities [L] with gradient, entropies [L] without), in nats, of the LM head `weight_VH` at a temperature.

    Factors of matrix products have the precision of autocast, else of the weight; sums and everything after them float32 at least.
    """
    dtype = product_dtype(weight_VH)
    with torch.autocast(hidden_LH.device.type, enabled=False):
        both: tuple[Tensor, Tensor] = _LabelLogProbs.apply(  # type: ignore[no-untyped-call]  # in torch
            hidden_LH,
            weight_VH,
            labels_L,
            temperature,
            dtype,
            tile or (TILE if hidden_LH.is_cuda else CPU_TILE),
        )
    return both


class _LabelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_LH: Tensor,
        weight_VH: Tensor,
        labels_L: Tensor,
        temperature: float,
        dtype: torch.dtype,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        logps_L, entropy_L, total_L = (hidden_LH.new_zeros(len(labels_L), dtype=precise) for _ in range(3))
        train_hidden, train_weight = ctx.needs_input_grad[:2]
        direction_LH = torch.zeros_like(hidden_LH) if train_hidden else None
        for rows in _tiles(len(labels_L), tile[0]):
            labels_l, hidden_lH = labels_L[rows], hidden_LH[rows].to(dtype)
            largest_l = hidden_LH.new_full((len(labels_l),), -torch.inf, dtype=precise)
            sum_l, weighted_l, label_l = (torch.zeros_like(largest_l) for _ in range(3))
            others_lH = hidden_LH.new_zeros(hidden_lH.shape, dtype=precise)
            for entries in _tiles(len(weight_VH), tile[1]):
                weight_vH = weight_VH[entries].to(dtype)
                z_lv = exact_product(hidden_lH, weight_vH.T).div_(temperature)
                inside_l, at_l1 = _place(labels_l, entries)
                label_l += torch.where(inside_l, z_lv.gather(1, at_l1)[:, 0], 0)
                larger_l = torch.maximum(largest_l, z_lv.amax(1))
                shrink_l = (largest_l - larger_l).exp()
                exp_lv = (z_lv - larger_l[:, None]).exp_()
                sum_l = sum_l * shrink_l + exp_lv.sum(1)
                weighted_l = weighted_l * shrink_l + torch.linalg.vecdot(exp_lv, z_lv)
                largest_l = larger_l
                if train_hidden:
                    # Without the label: as a difference of near-equal numbers it would be lost in bfloat16.
                    exp_lv.scatter_(1, at_l1, exp_lv.gather(1, at_l1).masked_fill_(inside_l[:, None], 0))
                    others_lH = others_lH * shrink_l[:, None] + exact_product(exp_lv.to(dtype), weight_vH)
            total_L[rows] = largest_l + sum_l.log()
            logps_L[rows] = label_l - total_L[rows]
            entropy_L[rows] = total_L[rows] - weighted_l / sum_l
            if direction_LH is not None:
                towards_lH = -logps_L[rows].expm1()[:, None] * weight_VH[labels_l].to(precise)
                direction_LH[rows] = ((towards_lH - others_lH / sum_l[:, None]) / temperature).to(
                    hidden_LH.dtype
                )
        of_weight = (hidden_LH, weight_VH, labels_L, total_L) if train_weight else ()
        ctx.save_for_backward(direction_LH, *of_weight)
        ctx.settings = temperature, dtype, tile
        ctx.mark_non_differentiable(entropy_L)
        return logps_L, entropy_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_L: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        direction_LH, *of_weight = ctx.saved_tensors
        d_hidden_LH = None
        if direction_LH is not None:
            d_hidden_LH = (grad_L[:, None] * direction_LH).to(direction_LH.dtype)
        d_weight_VH = _weight_gradient(grad_L, *of_weight, *ctx.settings) if of_weight else None
        return d_hidden_LH, d_weight_VH, None, None, None, None


def _weight_gradient(
    grad_L: Tensor,
    hidden_LH: Tensor,
    weight_VH: Tensor,
    labels_L: Tensor,
    total_L: Tensor,
    temperature: float,
    dtype: torch.dtype,
    tile: tuple[int, int],
) -> Tensor:
    """sum_l g_l (1[v = label] - p_lv) hidden_l / temperature, the tiles made anew."""
    gradient_VH = torch.zeros_like(weight_VH, dtype=total_L.dtype)
    for rows in _tiles(len(labels_L), tile[0]):
        hidden_lH, grad_l1 = hidden_LH[rows].to(dtype), grad_L[rows][:, None].to(total_L.dtype) / temperature
        for entries in _tiles(len(weight_VH), tile[1]):
            z_lv = exact_product(hidden_lH, weight_VH[entries].to(dtype).T).div_(temperature)
            d_lv = z_lv.sub_(total_L[rows][:, None]).exp_().mul_(-grad_l1)
            inside_l, at_l1 = _place(labels_L[rows], entries)
            d_lv.scatter_add_(1, at_l1, torch.where(inside_l[:, None], grad_l1, 0))
            gradient_VH[entries] += exact_product(d_lv.to(dtype).T, hidden_lH)
    return gradient_VH.to(weight_VH.dtype)


def head_logits(hidden_BH: Tensor, weight_VH: Tensor) -> Tensor:
    """Logits [B, V], in float32 at least, as `label_log_probs` takes them."""
    weight_VH = in_product_dtype(weight_VH)
    with torch.autocast(hidden_BH.device.type, enabled=False):
        return exact_product(hidden_BH.to(weight_VH.dtype), weight_VH.T)


def product_dtype(x: Tensor) -> torch.dtype:
    """Precision in which a factor goes into a product: of autocast, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def in_product_dtype(x: Tensor) -> Tensor:
    return x.to(product_dtype(x))


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of two matrices, with the sums of 16-bit numbers in float32, as they were added up. Rounded to bfloat16, a logit of 20 moves in
    steps of 0.125."""
    if a.dtype not in (torch.bfloat16, torch.float16):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _tiles(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _place(labels_l: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """Which labels lie in a tile of the vocabulary, and in which column, [l, 1] (0 for the others)."""
    inside_l = (labels_l >= entries.start) & (labels_l < entries.stop)
    return inside_l, torch.where(inside_l, labels_l - entries.start, 0)[:, None]
