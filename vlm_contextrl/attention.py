"""Attention as transformers sees it: one registered name for packed rows, ordinary batches and decoding.

With a layout the packed kernels run (packed_kernels.py). One query per sequence is decoding: heads that share a key become the queries of
one head, so that the cache is read once and not repeated. Everything else is transformers' SDPA.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vlm_contextrl.packed_kernels import KERNELS, attend
from vlm_contextrl.packed_layout import PackedLayout

PACKED = "contextrl_packed"


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    layout: PackedLayout | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [B, H, T, D], key and value [B, H_kv, K, D] to output [B, T, H, D]."""
    if layout is not None:
        return KERNELS[layout.kernel](query, key, value, layout, scaling), None
    if query.shape[2] == 1 and not query.requires_grad:
        return _decode(query, key, value, attention_mask, scaling), None
    if attention_mask is None and query.shape[2] == key.shape[2] and query.requires_grad:
        return attend(query, key, value, None, scaling).transpose(1, 2), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return out


def _decode(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """One query per sequence, [B, H, 1, D] to [B, 1, H, D]; the mask [B, 1, 1, K] is the same for all heads."""
    B, H, _, D = query.shape
    grouped = query.view(B, key.shape[1], -1, D)
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale).reshape(
        B, 1, H, D
    )


def register() -> None:
    """Make the name known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, _forward)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
